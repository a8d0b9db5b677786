"""The driver of a run: checks, launches, evaluates, trains, evaluates again, and writes it all down."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from actors.calls import open_box
from actors.judge import RemoteJudge
from actors.ledger import RemoteLedger
from cluster.checkpoint import save_checkpoint
from cluster.evaluate import AuditEvaluator, Evaluator, OracleEvaluator, Scores, evaluate
from cluster.launch import ClusterInfo, Crew, Launcher, cluster
from cluster.preflight import Inputs, check_cluster, check_inputs
from cluster.run_file import RunFile
from solon.feedback.watching.canary import Canary
from solon.feedback.watching.drift import Window
from solon.feedback.watching.watch import Alarm, Watch
from solon.feedback.watching.watching import WatchingObserver
from solon.loop import Lanes, run_loop
from solon.prompts import PromptSource
from solon.recorder import Recorder
from solon.run_directory import RunDirectory
from solon.tally import Tally
from solon.weights import Publication

EVALUATION_SEED = 20_000


class View(Protocol):
    """Shows a run to a person."""

    def note(self, text: str) -> None: ...
    def cluster(self, info: ClusterInfo, directory: Path) -> None: ...
    def starting(self, names: Sequence[str]) -> None: ...
    def ready(self, name: str) -> None: ...
    def evaluated(self, when: str, scores: Scores) -> None: ...
    def training(self, tally: Tally, ledger: RemoteLedger) -> None: ...
    def changed(self, event: str) -> None: ...
    def ended(self, summary: dict[str, Any], directory: Path) -> None: ...


def train(run: RunFile, *, name: str | None, default_name: str, root: Path, view: View) -> dict[str, Any]:
    """A whole run; returns its summary. Raises InputError before any engine starts where that is possible, and
    RunFailedError or what a stage died of afterwards; `summary.json` is written in every case after that."""
    inputs = check_inputs(run)
    for warning in inputs.warnings:
        view.note(f"warning: {warning}")
    with cluster() as info:
        check_cluster(run, info.resources)
        directory = RunDirectory.create(root, name, default=default_name)
        view.cluster(info, directory.path)
        config = {"hash": run.hash, "constitution_hash": inputs.constitution.hash, **run.model_dump(mode="json")}
        directory.write_json("config.json", config)
        return asyncio.run(_Driver(run, inputs, directory, view).drive())


class _Driver:
    """State of one run in the driver's process."""

    def __init__(self, run: RunFile, inputs: Inputs, directory: RunDirectory, view: View) -> None:
        self._run = run
        self._inputs = inputs
        self._directory = directory
        self._view = view
        self._stop = asyncio.Event()
        self._signals = _Signals(self._stop)
        self._tally = Tally(staleness_bound=run.staleness.max_staleness, total_steps=run.steps)
        self._scores: dict[str, Scores | None] = {"before": None, "after": None}
        self._publication: Publication | None = None
        self._ledger: RemoteLedger | None = None
        self._auditor: RemoteJudge | None = None
        self._watching: WatchingObserver | None = None
        self._stopped_by: Alarm | None = None

    async def drive(self) -> dict[str, Any]:
        """Run to the end; the summary is written and shown whatever happens."""
        status: str = "failed"
        failure: Exception | None = None
        try:
            with self._signals:
                status = await self._train()
        except asyncio.CancelledError:
            if not self._signals.interrupted:
                raise
            status = "stopped"
        except Exception as error:
            failure = error
        self._tally.end()
        summary = await self._summarise(status, failure)
        self._view.ended(summary, self._directory.path)
        if failure is not None:
            raise failure
        return summary

    async def _train(self) -> str:
        run = self._run
        launcher = Launcher(run, self._inputs.constitution, run_name=self._directory.path.name)
        self._view.starting(launcher.names())
        crew = await launcher.launch(total_groups=run.steps * run.ledger.batch_groups, on_ready=self._view.ready)
        self._ledger = crew.ledger
        if run.auditor:
            self._auditor = await launcher.audit_judge()
        evaluator = self._evaluator()
        publication = self._publication = Publication(
            crew.rollout,
            tolerance=run.publish.logprob_tolerance or default_tolerance(run),
            timeout_s=run.publish.timeout_s,
            initial=crew.initial[0],
        )
        await publication.verify(*crew.initial)
        await self._evaluate("before", crew, evaluator)
        committed = await self._run_loop(crew, publication)
        self._tally.end()
        await self._checkpoint(crew, committed)
        if self._stop.is_set():
            return "stopped"
        await self._evaluate("after", crew, evaluator)
        return "completed"

    async def _run_loop(self, crew: Crew, publication: Publication) -> int:
        run, loop = self._run, asyncio.get_running_loop()
        provenance = {"run_id": self._directory.path.name, **dataclasses.asdict(crew.judge_identity)}
        recorder = Recorder(
            self._directory,
            self._tally,
            unbox=open_box,
            provenance=provenance,
            on_failure=lambda _: _ignore(loop.call_soon_threadsafe(self._stop.set)),
            on_change=self._view.changed,
        )
        self._watching = self._watch(recorder, crew)
        lanes = Lanes(
            rollout=crew.rollout,
            judges=crew.judges,
            learner=crew.learner,
            ledger=crew.ledger,
            prompts=PromptSource(self._inputs.prompts, seed=run.seed),
            publication=publication,
            observer=self._watching or recorder,
            checkpoint=lambda step: self._checkpoint_when_due(crew, step),
        )
        recorder.event("started", config_hash=run.hash)
        self._tally.begin()
        self._view.training(self._tally, crew.ledger)
        self._signals.may_finish = True
        try:
            return await run_loop(lanes, steps=run.steps, min_valid=run.feedback.min_valid, stop=self._stop)
        finally:
            self._tally.end()
            with suppress(Exception):
                for event in await crew.ledger.drain_events():
                    recorder.event(event.pop("event"), **event)
            try:
                if self._watching is not None:
                    await self._watching.close()
            finally:
                recorder.event("ended", steps=self._tally.steps)
                await asyncio.to_thread(recorder.close)

    def _watch(self, recorder: Recorder, crew: Crew) -> WatchingObserver | None:
        run = self._run
        if not run.watch.audit_judge or self._auditor is None:
            return None
        relative = run.feedback.task == "pairwise"
        watch = Watch(run.watch, canaries=run.watch.canaries, seed=run.seed, is_relative=relative)

        async def on_alarm(alarm: Alarm) -> None:
            if alarm.action == "raise_kl":
                await crew.learner.raise_kl(run.watch.kl_factor)
            elif self._stopped_by is None:
                self._stopped_by = alarm
                self._stop.set()

        return WatchingObserver(
            recorder,
            watch,
            gold=self._auditor,
            unbox=open_box,
            on_action=on_alarm,
            canary=Canary(self._inputs.canary) if self._inputs.canary else None,
            judge=crew.judges[0].judge_fresh,
        )

    def _evaluator(self) -> Evaluator | None:
        match self._run.evaluate.evaluator:
            case "nursery":
                return OracleEvaluator()
            case "judge":
                assert self._auditor is not None, "the run file names one"
                return AuditEvaluator(self._auditor)
            case _:
                return None

    async def _evaluate(self, when: str, crew: Crew, evaluator: Evaluator | None) -> None:
        if evaluator is None:
            return
        seed = EVALUATION_SEED + self._run.seed
        scores, answers = await evaluate(crew.rollout, self._inputs.heldout, evaluator, seed=seed)
        self._scores[when] = scores
        rows = [
            {"prompt": [dataclasses.asdict(m) for m in prompt.messages], "answer": answer}
            for prompt, answer in zip(self._inputs.heldout, answers, strict=True)
        ]
        self._directory.write_json(f"heldout-{when}.json", rows)
        self._view.evaluated(when, scores)

    async def _checkpoint_when_due(self, crew: Crew, step: int) -> None:
        every = self._run.checkpoint_every
        if every and step % every == 0 and step < self._run.steps:  # the last one is written at the end anyway
            await self._checkpoint(crew, step)

    async def _checkpoint(self, crew: Crew, step: int) -> None:
        if step:
            counts: dict[str, Any] = {**await crew.ledger.counts()}
            await save_checkpoint(
                self._directory.path / "checkpoints",
                crew.learner,
                step=step,
                ledger=counts,
                config_hash=self._run.hash,
            )

    async def _summarise(self, status: str, failure: Exception | None) -> dict[str, Any]:
        counts = {"admitted": 0, "committed": 0, "dropped": 0}
        if self._ledger is not None:
            with suppress(Exception):
                counts = await asyncio.wait_for(self._ledger.counts(), timeout=5)
        summary = self._tally.summary(
            status=status, counts=counts, attested=self._publication.attested if self._publication else 0
        )
        summary["eval"] = self._scores
        if self._watching is not None:
            summary["watch"] = self._watching.summary()
        if self._watching is not None and self._stopped_by is not None:
            summary["stopped_by"] = dataclasses.asdict(self._stopped_by) | {
                "checkpoint": best_checkpoint(self._directory.path / "checkpoints", self._watching.watch.best)
            }
        summary["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if failure is not None:
            summary["failure"] = f"{type(failure).__name__}: {failure}"
        self._directory.close()
        with suppress(Exception):
            self._directory.write_json("trace.json", {"traceEvents": self._tally.trace()})
        self._directory.write_json("summary.json", summary)
        return summary


def best_checkpoint(folder: Path, best: Window | None) -> str | None:
    """Name of the last checkpoint that is not younger than the window gold liked best; None when there is none."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    known = [step for step in steps if best is not None and step <= best.last_step]
    return f"step-{known[-1]:06d}" if known else None


def default_tolerance(run: RunFile) -> float:
    """Canary gap that numerics alone explain, nats."""
    is_float32 = run.rollout.dtype == "float32" or (run.rollout.dtype == "auto" and run.rollout.num_gpus == 0)
    return 2e-3 if is_float32 else 0.25


class _Signals:
    """Ctrl-C and SIGTERM end the run after the step in hand; a second one, or one before training, at once."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self.interrupted = False
        self.may_finish = False
        """Training has begun: there is a step in hand."""

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _on_signal(self) -> None:
        if (self.interrupted or not self.may_finish) and self._task is not None:
            self._task.cancel()
        self.interrupted = True
        self._stop.set()


def _ignore(_: object) -> None:
    """Makes a callback of something that returns a handle."""
