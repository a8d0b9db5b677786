"""Asynchronous reinforcement learning from AI feedback: the loop of `solon/loop.py` on the pools of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cluster.stages.base import PoolNeed, Stage

if TYPE_CHECKING:
    from cluster.saving import Saver
    from cluster.session import RunSession

SETTINGS = (
    "prompts",
    "constitution",
    "steps",
    "data",
    "rollout",
    "feedback",
    "learn",
    "ledger",
    "staleness",
    "publish",
)


class RlaifStage(Stage):
    """`{ type = "rlaif", policy = "policy", judge = "judge", prompts = "prompts.jsonl", constitution = "c.yaml" }`"""

    kind: ClassVar[str] = "rlaif"
    moved: ClassVar[Mapping[str, str]] = {key: key for key in SETTINGS}
    makes: ClassVar[tuple[str, ...]] = ("trained policy",)
    is_once: ClassVar[bool] = True

    type: Literal["rlaif"] = "rlaif"
    policy: str = "policy"
    """The pool whose engines generate, and whose model is trained."""
    judge: str = "judge"
    """The pool that labels."""

    def pools(self) -> Sequence[PoolNeed]:
        return [
            PoolNeed(key="policy", name=self.policy, role="rollout"),
            PoolNeed(key="judge", name=self.judge, role="judge"),
        ]

    async def run(self, session: RunSession) -> bool:
        from solon.doctor.goal import end_failure
        from solon.errors import RunFailedError

        session.provenance |= dataclasses.asdict(session.workers[self.judge].started[0])
        async with _saver(session) as saver:
            committed = await self._train(session, saver)
            session.totals.end()
            session.recorder.event("trained", step=committed, stopped=session.stop.is_set())
            await saver.settled()
            if committed and (session.stop.is_set() or saver.saved_at != committed):
                session.directory.require_here()
                await saver.save(committed, is_last=True)
        if session.stop.is_set():
            return False
        allowed = session.run.ledger.max_dropped_share
        if failure := end_failure(session.totals.movement, *await session.finished(), allowed=allowed):
            raise RunFailedError(failure)
        return True

    async def _train(self, session: RunSession, saver: Saver) -> int:
        """The total number of committed steps."""
        from cluster.elasticity import LearnerMove, elasticity_of
        from cluster.lanes import assemble_lanes
        from cluster.ray_metrics import Sampling
        from cluster.watchdog import Watchdog, draining_here
        from solon.files.prompts import PromptSource
        from solon.loop import run_loop

        run, workers = session.run, session.workers

        learner, elasticity = workers.of_role("learner").lane, elasticity_of(session, self.policy, self.judge)
        move = LearnerMove(learner, elasticity)

        async def checkpoint(step: int) -> None:
            saver.require_sound()
            if (move.is_due() or run.saves_after(step)) and step < run.steps:  # the final one is written separately
                session.directory.require_here()
                await saver.save(step)
                await move.after(saver)

        lanes = assemble_lanes(
            rollout=workers[self.policy].pool,
            judges=workers[self.judge].pool,
            learner=learner,
            ledger=session.ledger,
            prompts=PromptSource(session.inputs.prompts, seed=run.seed),
            publication=session.publication,
            observer=session.watching or session.recorder,
            recovery=run.recovery,
            checkpoint=checkpoint,
            clock=session.clock,
        )
        watchdog = Watchdog(
            run.recovery,
            ledger=session.ledger,
            guards=lambda: workers.guards,
            recorder=session.recorder,
            on_stop=lambda reason: session.stop_for({"kind": "draining", "message": reason}),
            draining=draining_here,
            clock=session.clock,
        )
        sampling = Sampling(session.exports, ledger=session.ledger, workers=workers, clock=session.clock.now)
        session.recorder.event("started", config_hash=run.hash, step=session.start.step)
        session.totals.begin()
        session.view.training(session.totals, session.ledger)
        session.signals.may_finish = True
        try:
            async with watchdog, elasticity, sampling:
                return await run_loop(
                    lanes,
                    steps=run.steps,
                    first=session.start.step,
                    min_valid=run.feedback.min_valid,
                    stop=session.stop,
                )
        finally:
            session.totals.end()
            if session.watching is not None:
                await session.watching.close()


def _saver(session: RunSession) -> Saver:
    from cluster.saving import Saver
    from solon.checkpoints.folder import CheckpointFolder
    from solon.feedback.watching.best import ranked

    run, inputs = session.run, session.inputs
    folder = CheckpointFolder(session.directory.path / "checkpoints", keep=run.checkpoint_keep)

    def best() -> list[int]:
        if session.watching is None:
            return []
        watch, steps = session.watching.watch, folder.steps()
        # The checkpoint that gold likes best, and the one to which the next alarm would go back.
        sound = [step for limit in watch.held_at for step in [s for s in steps if s <= limit][-1:]]
        return [*ranked(steps, watch.known)[:1], *sound]

    async def state() -> dict[str, Any]:
        """Other state of the run for a checkpoint."""
        return {
            "run_id": session.directory.path.name,
            "constitution_hash": inputs.constitution.hash,
            "inputs": dict(inputs.digests),
            "tally": session.totals.state(),
            "scores": session.scores,
            "stopped_by": session.stopped_by,
            "watch": None if session.watching is None else (await session.watching.state()).to_json(),
        }

    return Saver(
        folder,
        directory=session.directory,
        learner=session.workers.of_role("learner").lane,
        ledger=session.ledger,
        recorder=session.recorder,
        config_hash=run.hash,
        url=run.checkpoint_url,
        state=state,
        spared=best,
        resume=session.resume,
        is_async=run.checkpoint_async,
    )
