"""`solon`, with engines and a learner that fail internally on request: `python -m tests.chaos.real_run train ...`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ray

from actors.judge import JudgeShell
from actors.learner import LearnerShell
from actors.rollout import RolloutShell
from cluster.pools.audit import AuditRole
from cluster.pools.judge import JudgeRole
from cluster.pools.learner import LearnerRole
from cluster.pools.rollout import RolloutRole
from solon.cli.main import main
from tests.chaos.failing import fail_like_a_device, is_told_to_fail, with_failures


class RolloutThatFails(RolloutShell):
    """A rollout engine."""

    async def start(self) -> None:
        fail_in_vllm("rollout")
        await super().start()


class JudgeThatFails(JudgeShell):
    """A feedback model."""

    async def start(self) -> Any:
        fail_in_vllm("judge")
        return await super().start()


class LearnerThatFails(LearnerShell):
    """A learner."""

    def start(self, checkpoint: str, meeting: Any = None) -> Any:
        import torch

        zero_grad = torch.optim.Optimizer.zero_grad

        def fails(*arguments: Any, **options: Any) -> None:
            if is_told_to_fail("learner"):
                fail_like_a_device()
            zero_grad(*arguments, **options)

        torch.optim.Optimizer.zero_grad = fails  # type: ignore[method-assign]
        fail_on_a_rank()
        yield from super().start(checkpoint, meeting)

    def step(self, step: int, *payloads: Any) -> Any:
        if is_told_to_fail("rank-change"):
            damage(self._learner)
        yield from super().step(step, *payloads)


def fail_on_a_rank() -> None:
    """From now on, this process computes a number that is not finite on request."""
    from learners.core.policy import Policy

    score = Policy.score

    def fails(self: Policy, *arguments: Any, **options: Any) -> Any:
        scored = score(self, *arguments, **options)
        if scored.logprobs_M.requires_grad and is_told_to_fail("rank-nan"):
            return dataclasses.replace(scored, logprobs_M=scored.logprobs_M * math.nan)
        return scored

    Policy.score = fails  # type: ignore[method-assign]


def damage(learner: Any) -> None:
    """Change a weight of this process alone."""
    import torch

    from learners.core.sharding import local

    parameter = next(iter(learner.optimizers["policy"].parameters.values()))
    with torch.no_grad():
        local(parameter).view(-1)[:1] += 1.0


def fail_in_vllm(role: str) -> None:
    """From now on, the engines of this process fail on request."""
    import solon.engines.vllm as vllm

    start_vllm = vllm.start_vllm
    vllm.start_vllm = lambda *arguments, **options: with_failures(start_vllm(*arguments, **options), role)


if __name__ == "__main__":
    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
    main(
        roles={
            "rollout": RolloutRole(ray.remote(**options)(RolloutThatFails)),
            "judge": JudgeRole(ray.remote(**options)(JudgeThatFails)),
            "audit": AuditRole(ray.remote(**options)(JudgeThatFails)),
            "learner": LearnerRole(
                ray.remote(**options, concurrency_groups={"signs": 1, "writes": 1})(LearnerThatFails)
            ),
        }
    )
