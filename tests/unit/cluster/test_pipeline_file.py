"""Pipeline files: their meaning, their shorthand, and every refusal before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import cluster.pools
import cluster.stages
from cluster.config.fitting import fit_run
from cluster.config.run_file import RunFile
from cluster.pipeline_file import Pipeline, load_run, stages_of
from cluster.placement.placement import demands_of
from cluster.stages import known_stages
from solon.errors import InputError
from tests.unit.run_files import write_run

POOLS = """
seed = 7
[pools.policy]
role = "rollout"
model = "org/policy"
size = 2
engine = { max_running = 8 }
[pools.judge]
role = "judge"
model = "org/judge"
placement = { num_gpus = 0.5, labels = { "solon.io/pool" = "judge" } }
"""
AUDITORS = """
[pools.auditor]
role = "audit"
model = "org/auditor"
[pools.second]
role = "audit"
model = "org/second"
placement = { num_cpus = 2 }
"""
TRAIN = """
[[stages]]
type = "rlaif"
prompts = "prompts.jsonl"
constitution = "constitution.yaml"
steps = 5
rollout = { group_size = 4 }
[stages.learn]
epochs = 2
"""
AUDIT = '[[stages]]\ntype = "audit"\njudge = "auditor"\naction = "stop"\n'


def evaluate(judge: str, more: str = "") -> str:
    text = '[[stages]]\ntype = "evaluate"\nevaluator = "judge"\nprompts = "held.jsonl"\n'
    return f'{text}judge = "{judge}"\n{more}'


WHOLE = POOLS + AUDITORS + evaluate("second") + AUDIT + TRAIN + evaluate("second")


def load(tmp_path: Path, text: str, *overrides: str) -> RunFile:
    (tmp_path / "pipeline.toml").write_text(text)
    return load_run(tmp_path / "pipeline.toml", overrides=overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_a_pipeline_file_names_pools_once_and_stages_use_them(tmp_path: Path):
    run = load(tmp_path, WHOLE, "pools.policy.size=3", "learn.epochs=4")
    assert isinstance(run, Pipeline)
    assert [stage.type for stage in run.stages] == ["evaluate", "audit", "rlaif", "evaluate"]
    assert [stage.name for stage in run.stages] == ["before", "", "", "after"]
    assert (run.policy, run.judge, run.steps, run.seed) == ("org/policy", "org/judge", 5, 7)
    assert (run.rollout.group_size, run.rollout.num_actors, run.rollout.max_running) == (4, 3, 8)
    assert run.learn.epochs == 4
    assert run.prompts == str(tmp_path / "prompts.jsonl")
    assert (run.watch.action, run.evaluate.evaluator) == ("stop", "judge")


def test_a_second_judge_pool_is_placed_and_counted_by_configuration_alone(tmp_path: Path):
    run = load(tmp_path, WHOLE)
    asked = {demand.name: (demand.cpus, demand.gpus, demand.section) for demand in demands_of(run)}
    assert asked == {
        "policy-0": (1, 0, "pools.policy"),
        "policy-1": (1, 0, "pools.policy"),
        "judge-0": (1, 0.5, "pools.judge"),
        "auditor-0": (1, 0, "pools.auditor"),
        "second-0": (2, 0, "pools.second"),
        "learner": (1, 0, "learn"),
    }
    assert (run.cpus, run.gpus) == (7, 0.5)
    fitted, notes = fit_run(run, cpus=4.5)
    assert fitted.cpus <= 4.5
    assert fitted.workers["second"].placement.num_cpus == 2
    assert any("pools.judge.placement.num_cpus" in note for note in notes)


def test_four_keys_are_shorthand_for_pools_and_stages(tmp_path: Path):
    bare = RunFile.load(write_run(tmp_path, ""))
    assert [stage.type for stage in stages_of(bare)] == ["rlaif"]
    text = "[evaluate]\nprompts = 'p.jsonl'\nevaluator = 'judge'\naudit_judge = 'o/a'\n[watch]\naudit_judge = 'o/a'"
    run = load_run(write_run(tmp_path, text))
    assert not isinstance(run, Pipeline)
    assert [(stage.type, stage.name) for stage in stages_of(run)] == [
        ("evaluate", "before"), ("audit", ""), ("rlaif", ""), ("evaluate", "after"),
    ]  # fmt: skip
    assert all(need.name in run.workers for stage in stages_of(run) for need in stage.pools())


def test_the_record_of_a_pipeline_run_is_that_pipeline(tmp_path: Path):
    import json

    run = load(tmp_path, WHOLE)
    record = {"hash": run.hash, "constitution_hash": "c", "solon": "1"}
    (tmp_path / "config.json").write_text(json.dumps(record | run.model_dump(mode="json")))
    again = load_run(tmp_path / "config.json")
    assert again.hash == run.hash
    assert [*stages_of(again)] == [*stages_of(run)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (POOLS + '[[stages]]\ntype = "rlai"', ["stages[1] has the type 'rlai'", "audit, evaluate, rlaif", "rlaif"]),
        (POOLS + "[[stages]]\npolicy = 'policy'", ["stages[1] has no type"]),
        (POOLS + '[[stages]]\ntype = "rlaif"\njudge = "judg"', ["'judg', which is not there", "judge = 'judge'"]),
        (POOLS + '[[stages]]\ntype = "rlaif"\njudge = "policy"', ["has the role rollout", "judge = 'judge'"]),
        (POOLS + '[pools.judge]\nrole = "judge"', ["two pools of the name 'judge'", "judge-2"]),
        (POOLS + '[pools.judge-0]\nrole = "audit"\nmodel = "a/b"\nsize = 1' + TRAIN,
         ["worker of the name of pools.judge"]),
        (POOLS.replace('role = "judge"', 'role = "juge"') + TRAIN, ["has the role 'juge'", "judge"]),
        (POOLS + "[pools.learner]\nrole = 'judge'\nmodel = 'a/b'" + TRAIN, ["name of the learner"]),
        (POOLS.replace('model = "org/judge"', 'model = "org/judge"\nsize = 0') + TRAIN,
         ["needs the pool 'judge', whose size is 0", "pools.judge.size = 1"]),
        (POOLS + AUDITORS + TRAIN, ["no stage names the pool 'auditor'"]),
        (POOLS + AUDITORS + TRAIN + AUDIT + evaluate("second"), ["(audit) does nothing", "move it before rlaif"]),
        (POOLS + TRAIN + TRAIN, ["is there twice"]),
        (POOLS + AUDITORS + evaluate("auditor") + evaluate("second") + TRAIN,
         ["2 stages of type evaluate", "before-2"]),
        (POOLS + AUDITORS + AUDIT + evaluate("second"), ["does nothing without a later stage", "add a stage"]),
        (POOLS + '[[stages]]\ntype = "evaluate"' + TRAIN, ["stages[1] (evaluate) has no evaluator", "'judge'"]),
        (POOLS + AUDITORS + AUDIT + TRAIN + evaluate("second") + '[[stages]]\ntype = "evaluate"\nname = "x"\n',
         ["stages[4] (evaluate)", "set judge to a pool of role audit"]),
        (POOLS, ["has no stages"]),
        (TRAIN, ["has no pools"]),
        ('judge = "a/b"\n' + POOLS + TRAIN, ["`judge` is a key of a run file"]),
        (POOLS + TRAIN.replace("steps", "step"), ["unknown key `step`", "steps"]),
        (POOLS.replace("size = 2", "sise = 2") + TRAIN, ["pools.policy: unknown key `sise`", "size"]),
    ],
)  # fmt: skip
def test_a_pipeline_that_cannot_work_is_refused_with_the_nearest_legal_choice(
    tmp_path: Path, text: str, words: list[str]
):
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == [], message


STAGE = '''
from typing import ClassVar, Literal
from cluster.stages.base import PoolNeed, Stage

class ToyStage(Stage):
    """Needs what it is told to need."""
    kind: ClassVar[str] = "toy"
    needs: ClassVar[tuple[str, ...]] = ("trained policy",)
    type: Literal["toy"] = "toy"
    helper: str = "helper"

    def pools(self):
        return [PoolNeed(key="helper", name=self.helper, role="toy-role")]

    async def run(self, session) -> bool:
        session.view.note(f"toy with {session.workers[self.helper].lane.name}")
        return True
'''
ROLE = '''
from typing import ClassVar
from cluster.pools.judge import JudgeRole

class ToyRole(JudgeRole):
    """A third kind of pool."""
    role: ClassVar[str] = "toy-role"
'''
TOY_POOL = '[pools.helper]\nrole = "toy-role"\nmodel = "org/helper"\n'
TOY = '[[stages]]\ntype = "toy"\n'


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage and a role, one new file each in the folder of its kind."""
    for package, name, text in ((cluster.stages, "toy_stage", STAGE), (cluster.pools, "toy_role", ROLE)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(__import__("sys").modules, f"{package.__name__}.{name}", raising=False)


@pytest.mark.usefixtures("toys")
def test_a_new_stage_and_a_new_role_are_one_file_each_and_no_edit_elsewhere(tmp_path: Path):
    assert "toy" in known_stages()
    run = load(tmp_path, POOLS + TOY_POOL + TRAIN + TOY)
    assert [stage.type for stage in stages_of(run)] == ["rlaif", "toy"]
    assert "helper-0" in [demand.name for demand in demands_of(run)]
    message = refusal(tmp_path, POOLS + TOY_POOL + TOY + TRAIN)
    assert "stages[1] (toy) needs the trained policy of an earlier stage" in message
    assert "move it after rlaif" in message
