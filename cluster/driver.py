"""The driver of a run: launches, evaluates, trains, evaluates again, and writes it all down."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from actors.calls import open_payload
from cluster.audit import make_watch
from cluster.config.run_file import RunFile
from cluster.evaluate import AuditEvaluator, Evaluator, OracleEvaluator, Scores, evaluate
from cluster.final_summary import FinalSummary
from cluster.lanes import assemble_lanes, publication_for
from cluster.launch import Launcher, WorkerSet
from cluster.pools.base import Role
from cluster.preflight.checks import Inputs
from cluster.rewind import best_of
from cluster.saving import Saver, restore_ledger
from cluster.signals import Signals
from cluster.start import Start
from cluster.view import View
from cluster.watchdog import Watchdog, draining_here
from solon.checkpoints.folder import ASIDE, Checkpoint, CheckpointFolder
from solon.checkpoints.remote import go_back
from solon.clock import Clock
from solon.doctor.ending import ending
from solon.doctor.goal import end_failure, end_warnings
from solon.errors import RunFailedError
from solon.feedback.watching.best import ranked
from solon.feedback.watching.observer import WatchingObserver
from solon.files.prompts import PromptSource
from solon.ledger.async_ledger import AsyncLedger
from solon.loop import run_loop
from solon.pipeline.publication import Publication
from solon.runs.directory import RunDirectory
from solon.telemetry.movement import Movement
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals

EVALUATION_SEED = 20_000


class Driver:
    """State of one run in the driver's process. `summary = await Driver(...).drive()`"""

    def __init__(
        self,
        run: RunFile,
        inputs: Inputs,
        directory: RunDirectory,
        view: View,
        *,
        start: Start,
        resume: str = "the same command with --resume",
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        """resume: what a person types to continue this run. roles: what makes workers, in place of the usual."""
        self._run = run
        self._final = FinalSummary(directory, end=self._end_of)
        self._inputs = inputs
        self._directory = directory
        self._view = view
        self._start = start
        self._resume = resume
        self._stop = asyncio.Event()
        self._clock = Clock()
        self._signals = Signals(self._stop, tell=self._view.note)
        self._totals = RunTotals(
            staleness_bound=run.staleness.max_staleness,
            total_steps=run.steps,
            is_relative=run.feedback.task == "pairwise",
            clock=self._clock,
            movement=Movement(max_tokens=run.rollout.max_tokens, truncated=run.learn.truncated),
        )
        self._scores: dict[str, Scores | None] = {"before": None, "after": None}
        self._provenance: dict[str, Any] = {"run_id": directory.path.name}
        self._publication: Publication | None = None
        self._workers: WorkerSet | None = None
        self._saver: Saver | None = None
        self._watching: WatchingObserver | None = None
        self._stopped_by: dict[str, Any] | None = None
        """What ended the run early."""
        checkpoint = start.checkpoint
        self._launcher = Launcher(
            run,
            inputs.constitution,
            run_name=directory.path.name,
            emit=lambda name, **fields: self._recorder.event(name, **fields),
            checkpoint=str(checkpoint.path.resolve()) if checkpoint else "",
            clock=self._clock,
            roles=roles,
        )
        self._ledger = AsyncLedger(
            run.ledger,
            run.staleness,
            total_groups=run.steps * run.ledger.batch_groups,
            clock=self._clock,
        )
        if checkpoint is not None:
            self._totals.restore(checkpoint.run["tally"])
            self._scores |= checkpoint.run["scores"]

    async def drive(self) -> dict[str, Any]:
        """Run to the end; the summary is written and shown whatever happens."""
        status: str = "failed"
        failure: Exception | None = None
        loop = asyncio.get_running_loop()
        self._final.begin()
        self._recorder = Recorder(
            self._directory,
            self._totals,
            open_payload=open_payload,
            provenance=self._provenance,
            on_failure=lambda _: _ignore(loop.call_soon_threadsafe(self._recording_failed)),
            on_change=self._view.changed,
            on_backlog=lambda nbytes: _ignore(loop.call_soon_threadsafe(self._ledger.hold_back, nbytes)),
        )
        for stage, rows in self._inputs.refused.items():
            for row in rows:
                self._recorder.quarantine.add(
                    stage=stage, reason=row.reason, line=row.place.number, file=row.place.file, excerpt=row.excerpt
                )
        try:
            with self._signals:
                try:
                    status = await self._train()
                finally:
                    if self._workers is not None:
                        await self._workers.close()
                    await self._close_records()
        except asyncio.CancelledError:
            if not self._signals.interrupted and self._final.ray_failure is None:
                raise
            status = "stopped"
            self._stopped_by = {"kind": "interrupted", "message": self._signals.said(at_once=True)}
        except Exception as error:
            status, failure = "failed", self._directory.explained(error)  # records may fail after a stop in good order
        if self._final.ray_failure is not None:  # whatever else was raised follows from it
            status, failure = "failed", self._final.ray_failure
        self._totals.end()
        summary = await self._summarise(status, failure)
        unwritten = self._final.write(summary)
        self._view.ended(summary, self._directory.path)
        # Why the run ended matters more than that its summary is missing.
        if (cause := failure or unwritten) is not None:
            for note in self._notes(summary["end"]):
                cause.add_note(note)
            raise cause
        return summary

    def _recording_failed(self) -> None:
        """Nothing can be recorded any more: end after the current step, or at once when the directory is gone. A
        learner that is being replaced would look there for its checkpoint for ever."""
        self._stop.set()
        if self._directory.is_gone:
            self._final.cut_short()

    # -- called by the watch of Ray (cluster.ray_session.watch), from its thread -------------------------------------

    def ray_lost(self, error: RunFailedError) -> None:
        """Ray is gone: write that down at once, and end."""
        self._final.ray_lost(error, steps=self._totals.steps, note=self._view.note)

    def helper_lost(self, what: str, cause: str) -> None:
        """A process of Ray's is gone that the run does not need."""
        self._final.in_the_loop(lambda: self._recorder.event("ray_helper_lost", worker=what, cause=cause))

    def final_message(self, error: Exception) -> str:
        """The last lines of a run whose process cannot end in the ordinary way."""
        return self._final.final_message(error)

    @property
    def has_begun(self) -> bool:
        """Whether training began: everything before it leaves a run that is gone on with as it was."""
        return self._signals.may_finish

    async def _train(self) -> str:
        run, checkpoint = self._run, self._start.checkpoint
        self._view.starting(self._launcher.names())
        workers = self._workers = await self._launcher.launch(on_ready=self._view.ready, say=self._view.note)
        self._provenance |= dataclasses.asdict(workers["judge"].started[0])
        self._ledger.listen(self._recorder.event)
        if checkpoint is not None:
            restore_ledger(self._ledger, checkpoint, judges_again=self._start.judges_again)
            self._recorder.event(
                "resumed",
                step=checkpoint.step,
                admitted=checkpoint.ledger.admitted,
                held=[entry.ordinal for entry in checkpoint.ledger.entries],
                damaged=list(self._start.damaged),
                records=[damage.text for damage in self._start.records.damages],
                unlisted=not self._start.records.has_account,
                **await asyncio.to_thread(self._go_back, checkpoint),
            )
        elif self._start.directory is not None:
            self._recorder.event(
                "resumed", step=0, admitted=0, held=[], damaged=list(self._start.damaged), records=[], unlisted=False
            )
        initial = workers["learner"].started[0]
        publication = self._publication = publication_for(
            workers["rollout"].pool,
            workers["learner"].lane,
            settings=run.publish,
            initial=initial[0],
            recovery=run.recovery,
            attested=self._start.step,
            clock=self._clock,
        )
        await publication.verify(*initial)
        for guard in workers.guards:
            guard.start()
        evaluator = self._evaluator(workers)
        if self._scores["before"] is None:
            await self._evaluate("before", workers, evaluator)
        saver = self._saver = self._make_saver(workers)
        committed = await self._run_loop(workers, publication, saver)
        self._totals.end()
        self._recorder.event("trained", step=committed, stopped=self._stop.is_set())
        if committed and (self._stop.is_set() or saver.saved_at != committed):
            self._directory.require_here()
            await saver.save(committed, is_last=True)
        if self._stop.is_set():
            return "stopped"
        allowed = run.ledger.max_dropped_share
        if failure := end_failure(self._totals.movement, *await self._finished(), allowed=allowed):
            raise RunFailedError(failure)
        return "completed" if await self._unless_stopped(self._evaluate("after", workers, evaluator)) else "stopped"

    def _go_back(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Set aside what the run goes back from; for the event that tells of it."""
        if not self._start.goes_back:
            return {}
        aside = CheckpointFolder(checkpoint.path.parent).set_aside(after=checkpoint.step)
        if self._run.checkpoint_url:
            go_back(checkpoint.path.name, self._run.checkpoint_url)
        if aside:
            self._view.note(f"set aside in {checkpoint.path.parent / ASIDE}: {', '.join(aside)}")
        return {"aside": aside, "changed": dict(self._start.changed)}

    async def _finished(self) -> tuple[dict[str, int], int]:
        """Groups dropped, by reason, and how many were committed."""
        return await self._ledger.dropped(), (await self._ledger.counts())["committed"]

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether the work was done. It is given up when the run is stopped: `--resume` does it then."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            return working.done()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _run_loop(self, workers: WorkerSet, publication: Publication, saver: Saver) -> int:
        run = self._run
        self._watching = make_watch(
            run,
            workers,
            self._start,
            canary=self._inputs.canary,
            recorder=self._recorder,
            on_stop=self._stop_for,
            note=self._view.note,
        )
        if self._watching is not None:
            # It keeps the payload of a group until it hears that the group came to nothing.
            self._ledger.listen(self._watching.event)

        async def checkpoint(step: int) -> None:
            if run.saves_after(step) and step < run.steps:  # the last one is written at the end anyway
                self._directory.require_here()
                await saver.save(step)

        lanes = assemble_lanes(
            rollout=workers["rollout"].pool,
            judges=workers["judge"].pool,
            learner=workers["learner"].lane,
            ledger=self._ledger,
            prompts=PromptSource(self._inputs.prompts, seed=run.seed),
            publication=publication,
            observer=self._watching or self._recorder,
            recovery=run.recovery,
            checkpoint=checkpoint,
            clock=self._clock,
        )
        watchdog = Watchdog(
            run.recovery,
            ledger=self._ledger,
            guards=lambda: workers.guards,
            recorder=self._recorder,
            on_stop=self._end_early,
            draining=draining_here,
            clock=self._clock,
        )
        self._recorder.event("started", config_hash=run.hash, step=self._start.step)
        self._totals.begin()
        self._view.training(self._totals, self._ledger)
        self._signals.may_finish = True
        try:
            async with watchdog:
                return await run_loop(
                    lanes, steps=run.steps, first=self._start.step, min_valid=run.feedback.min_valid, stop=self._stop
                )
        finally:
            self._totals.end()
            if self._watching is not None:
                await self._watching.close()

    def _end_early(self, reason: str) -> None:
        self._stop_for({"kind": "draining", "message": reason})

    def _stop_for(self, cause: dict[str, Any]) -> None:
        """End the run after the step that is being trained; the first cause is told."""
        self._stopped_by = self._stopped_by or cause
        self._stop.set()

    async def _close_records(self) -> None:
        self._recorder.event("ended", steps=self._totals.steps)
        await asyncio.to_thread(self._recorder.close)

    def _make_saver(self, workers: WorkerSet) -> Saver:
        run = self._run
        folder = CheckpointFolder(self._directory.path / "checkpoints", keep=run.checkpoint_keep)

        def best() -> list[int]:
            if self._watching is None:
                return []
            watch, steps = self._watching.watch, folder.steps()
            # What gold likes best, and what an alarm that is raised next would go back to.
            sound = [step for limit in watch.held_at for step in [s for s in steps if s <= limit][-1:]]
            return [*ranked(steps, watch.known)[:1], *sound]

        return Saver(
            folder,
            directory=self._directory,
            learner=workers["learner"].lane,
            ledger=self._ledger,
            recorder=self._recorder,
            config_hash=run.hash,
            url=run.checkpoint_url,
            state=self._state,
            spared=best,
            resume=self._resume,
        )

    async def _state(self) -> dict[str, Any]:
        """What else of the run a checkpoint keeps."""
        return {
            "run_id": self._directory.path.name,
            "constitution_hash": self._inputs.constitution.hash,
            "inputs": dict(self._inputs.digests),
            "tally": self._totals.state(),
            "scores": self._scores,
            "stopped_by": self._stopped_by,
            "watch": None if self._watching is None else (await self._watching.state()).to_json(),
        }

    def _evaluator(self, workers: WorkerSet) -> Evaluator | None:
        match self._run.evaluate.evaluator:
            case "nursery":
                return OracleEvaluator()
            case "judge":
                return AuditEvaluator(workers["audit-judge"].lane)
            case _:
                return None

    async def _evaluate(self, when: str, workers: WorkerSet, evaluator: Evaluator | None) -> None:
        if evaluator is None:
            return
        seed = EVALUATION_SEED + self._run.seed
        found = await evaluate(workers["rollout"].lanes, self._inputs.heldout, evaluator, seed=seed)
        self._scores[when] = found.scores
        self._directory.write_json(f"heldout-{when}.json", found.rows())
        self._view.evaluated(when, found.scores)

    async def _summarise(self, status: str, failure: Exception | None) -> dict[str, Any]:
        summary = self._totals.summary(
            status=status,
            counts=await self._ledger.counts(),
            attested=self._publication.attested if self._publication else 0,
            injected=self._directory.lines("chaos.jsonl"),
        )
        summary["warnings"] += end_warnings(
            self._totals.movement,
            *await self._finished(),
            allowed=self._run.ledger.max_dropped_share,
            failure=str(failure or ""),
        )
        if self._watching is not None:
            summary["warnings"] += self._watching.warnings(but=(self._stopped_by or {}).get("kind", ""))
        summary["eval"] = self._scores
        summary |= self._inputs.counts
        summary["quarantine"] = self._recorder.quarantine.summary()
        if self._watching is not None:
            summary["watch"] = self._watching.summary()
        if status == "stopped" and self._stopped_by is None and self._signals.received:
            self._stopped_by = {"kind": "signal", "message": self._signals.said()}
        if self._stopped_by is not None:
            windows = self._watching.watch.known if self._watching is not None else []
            best = best_of(CheckpointFolder(self._directory.path / "checkpoints"), windows, self._stopped_by)
            summary["stopped_by"] = self._stopped_by | {"checkpoint": best or None}
        summary["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if failure is not None:
            summary["failure"] = f"{type(failure).__name__}: {failure}"
        summary["end"] = self._end_of(summary)
        return summary

    def _notes(self, end: Mapping[str, str | None]) -> list[str]:
        """What a person does about a failure, said after its cause."""
        if end["resume"]:
            return [f"resume: {end['resume']}"]
        if not self.has_begun and self._start.directory is not None:
            return [f"{self._directory.path} is as it was before this attempt to resume it"]
        return [f"what to do: {end['remedy']}"] if end["remedy"] else []

    def _end_of(self, summary: Mapping[str, Any]) -> Mapping[str, str | None]:
        path = self._directory.path.absolute()
        return ending(summary, self._directory.config, path, has_begun=self.has_begun).as_json()


def _ignore(_: object) -> None:
    """Makes a callback of something that returns a handle."""
