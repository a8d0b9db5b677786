"""The watch of a run: who audits, who is asked about the canaries, and what an alarm does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from actors.calls import open_payload
from cluster.config.run_file import RunFile
from cluster.launch import WorkerSet
from cluster.start import Start
from solon.feedback.trials.gold import GoldPair
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.canary import Canary
from solon.feedback.watching.observer import WatchingObserver
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_state import WatchState
from solon.recovery.supervised_lanes import ask_any
from solon.telemetry.recorder import Recorder


def make_watch(
    run: RunFile,
    workers: WorkerSet,
    start: Start,
    *,
    canary: Sequence[GoldPair],
    recorder: Recorder,
    on_stop: Callable[[dict[str, Any]], None],
    note: Callable[[str], None],
) -> WatchingObserver | None:
    """What stands between the loop and the recorder; None: the run is not watched. on_stop: ends it, with the alarm."""
    if not run.watch.audit_judge:
        return None
    relative = run.feedback.task == "pairwise"
    watch = Watch(run.watch, canaries=run.watch.canaries, seed=run.seed, is_relative=relative)

    async def on_alarm(alarm: Alarm) -> None:
        if alarm.action == "raise_kl":
            await workers["learner"].lane.raise_kl(run.watch.kl_factor)
        else:
            on_stop(dataclasses.asdict(alarm))

    watching = WatchingObserver(
        recorder,
        watch,
        gold=workers["audit-judge"].lane,
        open_payload=open_payload,
        on_action=on_alarm,
        canary=Canary(canary) if canary else None,
        # One identity for all judges of a run, so that any of them may be asked.
        judge=lambda items: ask_any(workers["judge"].lanes, lambda judge: judge.judge_fresh(items)),
    )
    state = None if start.checkpoint is None else start.checkpoint.run.get("watch")
    if state is not None:
        known = WatchState.from_json(state)
        watching.restore(known.for_another_judge() if start.judges_again else known)
        if watch.standing:
            note(
                f"warning: alarms that stand since before: {', '.join(watch.standing)}; none is raised again until it "
                "has gone"
            )
    return watching
