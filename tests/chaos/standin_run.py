"""A run on timed stand-ins through the real driver, as a process: `python -m tests.chaos.standin_run ...`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

import cluster.train
from cluster.config.run_file import RunFile
from cluster.launch import cluster as open_cluster
from cluster.pools.base import Role
from cluster.preflight.checks import Inputs
from solon.cli.view import SilentView
from solon.constitution.constitution import Constitution
from solon.errors import InputError, RunFailedError
from solon.files.prompts import prompt_id
from solon.protocols import Assignment, LabelReport
from solon.records import Feedback, Group, Label, Message, Prompt, Span
from solon.verdicts import Status, Verdict
from tests.chaos.failing import fail_if_told
from tests.standins.roles import StandinAudit, StandinJudge, StandinLearner, StandinRollout
from tests.standins.workers import TimedJudge, TimedLearner, TimedRollout

BATCH = 8
SLOW_S = 2.0
CONSTITUTION = Path(__file__).resolve().parents[2] / "nursery" / "constitution.yaml"


def run_of(*, steps: int, seed: int, target: int) -> RunFile:
    """The run file of a stand-in run: impatient, with checkpoints every few steps."""
    raw: dict[str, Any] = {
        "policy": "stand/in",
        "judge": "stand/in",
        "prompts": "none",
        "constitution": str(CONSTITUTION),
        "steps": steps,
        "seed": seed,
        "checkpoint_every": 3,
        "checkpoint_keep": 2,
        "rollout": {"num_cpus": 0, "num_actors": 2, "group_size": 1},
        "judging": {"num_cpus": 0, "num_actors": 2},
        "learn": {"num_cpus": 0, "advantages": "gae"},
        "feedback": {"task": "pointwise", "template": "compact", "min_valid": 1},
        "ledger": {"batch_groups": BATCH, "max_losses": 10_000, "lease_s": 30},
        "evaluate": {"prompts": "none", "evaluator": "judge", "audit_judge": "stand/in-audit"},
        "staleness": {"target_staleness": target, "max_staleness": 4},
        "recovery": {
            "max_restarts": 10_000,
            "backoff_s": 0,
            "beat_every_s": 0.5,
            "beat_timeout_s": 3,
            "stall_s": 60,
            "grace_s": 2,
        },
    }
    return RunFile.parse(raw, source="the stand-in run")


def prompts_of(count: int = 50) -> tuple[Prompt, ...]:
    """Distinct prompts."""
    found = []
    for number in range(count):
        messages = (Message(role="user", content=f"what is {number} ?"),)
        found.append(Prompt(prompt_id=prompt_id(messages), messages=messages))
    return tuple(found)


def is_slow(ordinal: int) -> bool:
    """Whether the judges are slow with this group."""
    return ordinal % 61 == 17


def is_spoilt(ordinal: int) -> bool:
    """Whether no judge reaches a verdict on this group."""
    return ordinal % 47 == 11


class FailingRollout(TimedRollout):
    """Fails internally on request."""

    async def _one(self, item: Assignment) -> tuple[Group, Span]:
        fail_if_told("rollout")
        return await super()._one(item)


class FailingLearner(TimedLearner):
    """Fails internally on request."""

    def step(self, step: int, *payloads: Any) -> Iterator[Any]:
        fail_if_told("learner")
        yield from super().step(step, *payloads)


class LabellingJudge(TimedJudge):
    """Puts a label on every reward, so that the files show who was labelled; some are late, and some are without a
    verdict where they are to be spoilt."""

    def __init__(self, seconds: float, *, name: str, spoils: bool = False) -> None:
        super().__init__(seconds, name=name)
        self._spoils = spoils

    role = "judge"

    async def label(self, group: Group) -> tuple[LabelReport, Feedback]:
        fail_if_told(self.role)
        if is_slow(group.ordinal):
            await asyncio.sleep(SLOW_S)
        report, feedback = await super().label(group)
        if self._spoils and is_spoilt(group.ordinal):
            count = len(group.rollouts)
            why = Status.UNPARSABLE
            label = Label(
                task="pointwise", principle_id="stand-in", rollouts=(0,), verdict=Verdict(status=why, margin=None)
            )
            spoilt = dataclasses.replace(feedback, rewards_G=(None,) * count, labels=(label,) * count)
            causes = ((str(why), count),)
            return dataclasses.replace(report, num_valid=0, invalid=count, invalid_by_status=causes), spoilt
        labels = tuple(
            Label(
                task="pointwise",
                principle_id="stand-in",
                rollouts=(n,),
                verdict=Verdict(status=Status.OK, margin=1.0, judge=self.name),
            )
            for n in range(len(group.rollouts))
        )
        return report, dataclasses.replace(feedback, labels=labels)


class AuditingJudge(LabellingJudge):
    """A class of its own, so that its process is recognisable."""

    role = "audit"


FailingRolloutActor = ray.remote(num_cpus=0)(FailingRollout)
FailingLearnerActor = ray.remote(num_cpus=0, concurrency_groups={"signs": 1, "writes": 1})(FailingLearner)

LabellingJudgeActor = ray.remote(num_cpus=0)(LabellingJudge)
AuditingJudgeActor = ray.remote(num_cpus=0)(AuditingJudge)


@dataclasses.dataclass(frozen=True)
class Pace:
    """The speed of the stand-ins, and whether judges reach no verdict on some groups."""

    lane_s: float = 0.1
    """Seconds of a batch in each lane."""
    spoils: bool = False


def standin_roles(pace: Pace) -> dict[str, Role]:
    """Stand-ins where engines, judges and learner would be."""
    engine, judge = (
        actor.options(scheduling_strategy="SPREAD") for actor in (FailingRolloutActor, LabellingJudgeActor)
    )
    label_s = pace.lane_s / BATCH
    return {
        "rollout": StandinRollout(
            lambda pool, name, _: lambda made: engine.remote(pace.lane_s, 0.5, name=name, slots=BATCH),
            groups_at_once=BATCH,
        ),
        "judge": StandinJudge(
            lambda pool, name, _: lambda made: judge.remote(label_s, name=name, spoils=pace.spoils),
            groups_at_once=BATCH,
        ),
        "audit": StandinAudit(lambda pool, name, _: lambda made: AuditingJudgeActor.remote(label_s, name=name)),
        "learner": StandinLearner(
            lambda pool, name, _: lambda made: FailingLearnerActor.remote(pace.lane_s, name=name)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--lane", type=float, default=Pace.lane_s, help="seconds of a batch in each lane")
    parser.add_argument("--spoils", action="store_true", help="the judges reach no verdict on some groups")
    options = parser.parse_args()
    pace = Pace(options.lane, options.spoils)
    run = run_of(steps=options.steps, seed=options.seed, target=options.target)
    inputs = Inputs(
        constitution=Constitution.load(run.constitution), prompts=prompts_of(), heldout=prompts_of(4), warnings=()
    )
    # There are no models to check, and no dashboard to wait for.
    cluster.train.fit_run = lambda run, **_: (run, ())  # type: ignore[assignment]
    cluster.train.check_inputs = lambda *_, **__: inputs  # type: ignore[assignment]
    cluster.train.cluster = functools.partial(open_cluster, dashboard=False)  # type: ignore[assignment]
    try:
        cluster.train.train(
            run, name=options.name, default_name="run", root=options.root, view=SilentView(), resume=True,
            roles=standin_roles(pace),
        )  # fmt: skip
    except (InputError, RunFailedError) as error:
        print("\n".join([f"the run failed: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
