"""The state that the stages of a run share: directory, records, signals, workers and weights, in one exit stack."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from actors.calls import open_payload
from cluster.config.run_file import RunFile
from cluster.evaluate import Scores
from cluster.lanes import publication_for
from cluster.launch import Launcher, WorkerSet
from cluster.pools.base import Role
from cluster.preflight.checks import Inputs
from cluster.ray_metrics import exports_for
from cluster.saving import restore_ledger
from cluster.signals import Signals
from cluster.start import Start
from cluster.view import View
from solon.checkpoints.folder import ASIDE, Checkpoint, CheckpointFolder
from solon.checkpoints.remote import go_back
from solon.clock import Clock
from solon.feedback.watching.observer import WatchingObserver
from solon.ledger.async_ledger import AsyncLedger
from solon.pipeline.publication import Publication
from solon.runs.directory import RunDirectory
from solon.telemetry.exports import RunExports
from solon.telemetry.movement import Movement
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals


class RunSession:
    """`async with RunSession(...) as session: await stage.run(session)`"""

    workers: WorkerSet
    publication: Publication
    recorder: Recorder
    exports: RunExports | None

    def __init__(
        self,
        run: RunFile,
        inputs: Inputs,
        directory: RunDirectory,
        view: View,
        *,
        start: Start,
        resume: str,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        """resume: the command that continues this run. roles: factories of the workers, in place of the usual ones."""
        self.run, self.inputs, self.directory, self.view = run, inputs, directory, view
        self.start, self.resume = start, resume
        self.clock = Clock()
        self.stop = asyncio.Event()
        """Set: the run ends after the current step."""
        self.stopped_by: dict[str, Any] | None = None
        """What ended the run early."""
        self.signals = Signals(self.stop, tell=view.note)
        self.scores: dict[str, Scores | None] = {"before": None, "after": None}
        """Held-out scores by the name of the evaluation."""
        self.watching: WatchingObserver | None = None
        """The audit, if a stage attached one."""
        self.has_workers = self.has_resumed = False
        self.provenance: dict[str, Any] = {"run_id": directory.path.name}
        """The origin that every label on record states."""
        self.totals = RunTotals(
            staleness_bound=run.staleness.max_staleness,
            total_steps=run.steps,
            is_relative=run.feedback.task == "pairwise",
            movement=Movement(max_tokens=run.rollout.max_tokens, truncated=run.learn.truncated),
            clock=self.clock,
        )
        self.ledger = AsyncLedger(
            run.ledger, run.staleness, total_groups=run.steps * run.ledger.batch_groups, clock=self.clock
        )
        checkpoint = start.checkpoint
        self.launcher = Launcher(
            run,
            inputs.constitution,
            run_name=directory.path.name,
            emit=lambda name, **fields: self.recorder.event(name, **fields),
            checkpoint=str(checkpoint.path.resolve()) if checkpoint else "",
            clock=self.clock,
            roles=roles,
        )
        if checkpoint is not None:
            self.totals.restore(checkpoint.run["tally"])
            self.scores |= checkpoint.run["scores"]
        self._stack = AsyncExitStack()

    def open_records(self, *, on_failure: Any) -> None:
        """The records of the run, while it lasts. on_failure: called in the loop when nothing can be recorded."""
        loop = asyncio.get_running_loop()

        def in_the_loop(call: Any) -> Any:
            def soon(*arguments: Any) -> None:
                loop.call_soon_threadsafe(call, *arguments)

            return soon

        self.exports = exports_for(self.directory.path.name, self.totals, self.run.workers, say=self.view.note)
        self.recorder = Recorder(
            self.directory,
            self.totals,
            open_payload=open_payload,
            provenance=self.provenance,
            on_failure=in_the_loop(lambda _: on_failure()),
            on_change=self.view.changed,
            on_backlog=in_the_loop(self.ledger.hold_back),
            exports=self.exports,
        )
        for stage, rows in self.inputs.refused.items():
            for row in rows:
                self.recorder.quarantine.add(
                    stage=stage, reason=row.reason, line=row.place.number, file=row.place.file, excerpt=row.excerpt
                )

    async def __aenter__(self) -> RunSession:
        self._stack.enter_context(self.signals)
        self._stack.push_async_callback(self._close_records)
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._stack.__aexit__(*error)

    async def launch(self) -> None:
        """Start the workers of every pool, restore the checkpoint, and prove that the engines hold the learner's
        weights."""
        run, launcher, view = self.run, self.launcher, self.view
        view.starting(launcher.names())
        workers = self.workers = await launcher.launch(on_ready=view.ready, say=view.note)
        self.has_workers = True
        self._stack.push_async_callback(workers.close)
        self.ledger.listen(self.recorder.event)
        self.ledger.follow(granted=self.recorder.granted, taken=self.recorder.taken)
        await self._resumed()
        (initial,) = workers.of_role("learner").take_started()
        self.publication = publication_for(
            workers[run.policy_pool].pool,
            workers.of_role("learner").lane,
            settings=run.publish,
            initial=initial[0],
            recovery=run.recovery,
            attested=self.start.step,
            clock=self.clock,
            emit=self.recorder.event,
        )
        await self.publication.verify(*initial)
        for guard in workers.guards:
            guard.start()

    async def _resumed(self) -> None:
        start, checkpoint = self.start, self.start.checkpoint
        self.has_resumed = start.directory is not None
        if checkpoint is not None:
            restore_ledger(self.ledger, checkpoint, judges_again=start.judges_again)
            self.recorder.event(
                "resumed",
                step=checkpoint.step,
                admitted=checkpoint.ledger.admitted,
                held=[entry.ordinal for entry in checkpoint.ledger.entries],
                damaged=list(start.damaged),
                records=[damage.text for damage in start.records.damages],
                unlisted=not start.records.has_account,
                **await asyncio.to_thread(self._go_back, checkpoint),
            )
        elif start.directory is not None:
            self.recorder.event(
                "resumed", step=0, admitted=0, held=[], damaged=list(start.damaged), records=[], unlisted=False
            )

    def _go_back(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Set aside the records after the checkpoint to which the run goes back; returns details for the event."""
        if not self.start.goes_back:
            return {}
        aside = CheckpointFolder(checkpoint.path.parent).set_aside(after=checkpoint.step)
        if self.run.checkpoint_url:
            go_back(checkpoint.path.name, self.run.checkpoint_url)
        if aside:
            self.view.note(f"set aside in {checkpoint.path.parent / ASIDE}: {', '.join(aside)}")
        return {"aside": aside, "changed": dict(self.start.changed)}

    def stop_for(self, cause: dict[str, Any]) -> None:
        """End the run after the current step; the first cause is reported."""
        self.stopped_by = self.stopped_by or cause
        self.stop.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether the work was done. A stopped run gives it up: `--resume` does it then."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
            return working.done()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def finished(self) -> tuple[dict[str, int], int]:
        """Groups dropped, by reason, and how many were committed."""
        return await self.ledger.dropped(), (await self.ledger.counts())["committed"]

    async def _close_records(self) -> None:
        self.recorder.event("ended", steps=self.totals.steps)
        await asyncio.to_thread(self.recorder.close)
