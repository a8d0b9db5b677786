"""The audit of a run: which model audits, which judge answers the canaries, and what an alarm does."""

from __future__ import annotations

import dataclasses

from actors.calls import open_payload
from cluster.session import RunSession
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.canary import Canary
from solon.feedback.watching.observer import WatchingObserver
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_state import WatchState
from solon.recovery.supervised_lanes import SupervisedJudge, ask_any


def make_watch(session: RunSession, *, gold: SupervisedJudge) -> WatchingObserver:
    """Sits between the loop and the recorder. gold: the judge that audits."""
    run, start, workers = session.run, session.start, session.workers
    relative = run.feedback.task == "pairwise"
    watch = Watch(run.watch, canaries=run.watch.canaries, seed=run.seed, is_relative=relative)

    async def on_alarm(alarm: Alarm) -> None:
        if alarm.action == "raise_kl":
            await workers.of_role("learner").lane.raise_kl(run.watch.kl_factor)
        else:
            session.stop_for(dataclasses.asdict(alarm))

    watching = WatchingObserver(
        session.recorder,
        watch,
        gold=gold,
        open_payload=open_payload,
        on_action=on_alarm,
        canary=Canary(session.inputs.canary) if session.inputs.canary else None,
        # All judges of a run share one identity, so any of them may be asked.
        judge=lambda items: ask_any(workers[run.judge_pool].lanes, lambda judge: judge.judge_fresh(items)),
        on_audit=session.recorder.audited,
    )
    state = None if start.checkpoint is None else start.checkpoint.run.get("watch")
    if state is not None:
        known = WatchState.from_json(state)
        watching.restore(known.for_another_judge() if start.judges_again else known)
        if watch.standing:
            session.view.note(
                f"warning: alarms still active from before the resume: {', '.join(watch.standing)}; none is "
                f"raised again until it "
                "has gone"
            )
    return watching
