"""Whole runs of pipeline files on lanes that live in this process: the same command line, driver and files as ever."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import cluster.pools
import cluster.stages
from tests.unit.recovery.test_alarm_runs import OpinionRole, folder, solon  # noqa: F401  # fixtures
from tests.unit.run_files import make_model

PIPELINE = """
checkpoint_every = 3
[pools.policy]
role = "rollout"
model = "policy"
[pools.judge]
role = "judge"
model = "judge"
size = 2
[pools.auditor]
role = "audit"
model = "auditor"
[pools.second]
role = "audit"
model = "second"
[[stages]]
type = "evaluate"
prompts = "prompts.jsonl"
evaluator = "judge"
judge = "second"
[[stages]]
type = "audit"
judge = "auditor"
audit_share = 1
audit_window = 32
symptom_answers = 32
symptom_every = 1
[[stages]]
type = "rlaif"
prompts = "prompts.jsonl"
constitution = "constitution.yaml"
steps = 6
rollout = { group_size = 8 }
feedback = { min_valid = 1 }
ledger = { batch_groups = 4 }
learn = { kl_coefficient = 0.08 }
[[stages]]
type = "evaluate"
judge = "second"
"""


@pytest.fixture
def pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    async def label_group(self: Any, group: Any) -> Any:
        asked.append(self.name)
        return await label(self, group) if group.rollouts[0].text else _nothing(group)

    from tests.unit.recovery.test_alarm_runs import Opinion

    asked: list[str] = []
    label = Opinion.label_group
    monkeypatch.setattr(Opinion, "label_group", label_group)
    monkeypatch.setattr(Opinion, "asked", asked, raising=False)
    make_model(folder / "second")
    (folder / "pipeline.toml").write_text(PIPELINE)
    return folder


TOYS = {
    cluster.stages: """
from typing import ClassVar, Literal
from cluster.stages.base import PoolNeed, Stage

class ToyStage(Stage):
    kind: ClassVar[str] = "toy"
    needs: ClassVar[tuple[str, ...]] = ("trained policy",)
    type: Literal["toy"] = "toy"

    def pools(self):
        return [PoolNeed(key="helper", name="helper", role="toy")]

    async def run(self, session) -> bool:
        session.directory.write_json("toy.json", [lane.name for lane in session.workers["helper"].lanes])
        return True
""",
    cluster.pools: """
from typing import ClassVar
from cluster.pools.base import Role
from solon.recovery.supervised_lanes import SupervisedJudge
from tests.unit.recovery.test_alarm_runs import Opinion

class ToyRole(Role):
    role: ClassVar[str] = "toy"

    def workers(self, pool, context):
        return [Opinion(name) for name in pool.worker_names]

    def supervised(self, workers, context):
        return [SupervisedJudge(worker, context.guard(worker)) for worker in workers]
""",
}
"""A stage and a role, one new file each."""


def test_a_toy_stage_on_a_third_kind_of_pool_runs_after_the_training(
    pipeline: Path,
    solon: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    for package, text in TOYS.items():
        extra = pipeline / package.__name__
        extra.mkdir()
        (extra / "toy_in_a_run.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(extra)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.toy_in_a_run", raising=False)
    make_model(pipeline / "helper")
    helper = '[pools.helper]\nrole = "toy"\nmodel = "helper"\nsize = 2\n[[stages]]\ntype = "toy"\n'
    (pipeline / "pipeline.toml").write_text(PIPELINE + helper)
    run = solon("train", "pipeline.toml", "--name", "night")
    assert (run.code, run.summary["status"]) == (0, "completed"), run.out + run.err
    assert json.loads((run.directory / "toy.json").read_text()) == ["helper-0", "helper-1"]


def _nothing(group: Any) -> Any:
    from solon.records import Feedback

    return Feedback(ordinal=group.ordinal, attempt=group.attempt, rewards_G=(None,), labels=())


def test_a_pipeline_with_two_audit_pools_runs_its_stages_in_turn(pipeline: Path, solon: Any):  # noqa: F811
    from tests.unit.recovery.test_alarm_runs import Opinion

    run = solon("train", "pipeline.toml", "--name", "night")
    assert (run.code, run.summary["status"], run.summary["steps"]) == (0, "completed", 6), run.out + run.err
    asked: list[str] = Opinion.asked  # type: ignore[attr-defined]
    # The second pool evaluates before and after, the first audits in between.
    audited = [n for n, name in enumerate(asked) if name == "auditor-0"]
    evaluated = [n for n, name in enumerate(asked) if name == "second-0"]
    assert evaluated[0] < min(audited) <= max(audited) < evaluated[-1]
    assert (run.directory / "heldout-before.json").exists()
    assert (run.directory / "heldout-after.json").exists()
    assert run.summary["watch"]["audited"] > 0

    more = solon("train", "pipeline.toml", "--name", "night", "--resume", "--steps", "8")
    assert (more.code, more.summary["status"], more.summary["steps"]) == (0, "completed", 8), more.out + more.err
    record = solon("train", str(run.directory / "config.json"), "--name", "night", "--resume", "--steps", "8")
    assert record.code == 0, record.err


def test_check_accepts_a_pipeline_file_and_refuses_one_before_anything_starts(
    pipeline: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    from solon.cli.main import main

    monkeypatch.setattr(sys, "argv", ["solon", "check", "pipeline.toml"])
    with pytest.raises(SystemExit) as end:
        main(roles={"judge": OpinionRole()})
    out, err = capsys.readouterr()
    assert not end.value.code, err
    assert "pipeline.toml: good. 3 prompts" in out
    assert all(name in out for name in ("rollout", "judge", "audit judge", "learner"))
    text = (pipeline / "pipeline.toml").read_text().replace('judge = "second"', 'judge = "secnd"')
    (pipeline / "pipeline.toml").write_text(text)
    monkeypatch.setattr(sys, "argv", ["solon", "train", "pipeline.toml", "--name", "other"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "judge = 'second'" in capsys.readouterr().err
    assert not (pipeline / "runs" / "other").exists()
