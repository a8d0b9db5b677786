"""Settings of a pipeline file that would have no effect are refused, with the key to set instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cluster import stages
from cluster.config.run_file import RunFile
from cluster.pipeline_file import load_run
from cluster.stages import known_stages
from solon.errors import InputError
from tests.unit.cluster.test_pipeline_file import AUDIT, AUDITORS, POOLS, TRAIN, WHOLE, evaluate, load, refusal
from tests.unit.run_files import write_run

OTHER = '[pools.other]\nrole = "rollout"\nmodel = "org/other"\n'


@pytest.mark.parametrize("text", [OTHER + POOLS.replace("seed = 7", ""), POOLS + OTHER])
def test_a_second_pool_of_engines_that_would_get_no_weights_is_refused(tmp_path: Path, text: str):
    asks = evaluate("auditor").replace("judge =", 'policy = "other"\njudge =')
    auditor = AUDITORS.partition("[pools.second]")[0]
    message = refusal(tmp_path, text + auditor + asks + TRAIN)
    assert "have the role rollout, expected one pool of this role" in message
    assert "remove pools.other, name 'policy' in every stage and set pools.policy.size = 3" in message


def test_the_engines_that_get_the_weights_are_those_that_the_training_names(tmp_path: Path):
    pools = POOLS.replace("pools.policy", "pools.student").replace("pools.judge", "pools.teacher")
    stage = TRAIN.replace('type = "rlaif"', 'type = "rlaif"\npolicy = "student"\njudge = "teacher"')
    run = load(tmp_path, pools + stage)
    assert (run.policy_pool, run.judge_pool) == ("student", "teacher")
    bare = RunFile.load(write_run(tmp_path, ""))
    assert {bare.policy_pool, bare.judge_pool} <= bare.workers.keys()


def test_workers_of_an_audit_pool_that_no_stage_would_ask_are_refused(tmp_path: Path):
    message = refusal(tmp_path, WHOLE, "pools.second.size=2")
    assert "pools.second has the role audit and the size 2, expected 1" in message
    assert "set pools.second.size = 1" in message


@pytest.mark.parametrize(
    ("top", "stage"),
    [
        ("[learn]\nepochs = 3", "epochs = 2"),
        ("[learn]\nlora = { r = 4 }", "lora = { r = 8 }"),
        ("[learn]\nlora = { r = 4 }", 'lora = "none"'),
    ],
)
def test_two_values_of_one_key_in_a_table_are_refused(tmp_path: Path, top: str, stage: str):
    message = refusal(tmp_path, POOLS + top + TRAIN.replace("epochs = 2", stage))
    assert "stages[1]: `learn." in message
    assert "expected one value; remove one" in message


def test_two_tables_without_a_common_key_and_equal_values_are_merged(tmp_path: Path):
    run = load(tmp_path, POOLS + "[learn]\nepochs = 2\nlora = { r = 4 }" + TRAIN + "lora = { alpha = 8 }")
    assert run.learn.lora is not None
    assert (run.learn.epochs, run.learn.lora.r, run.learn.lora.alpha) == (2, 4, 8)


KEYS = [
    ("max_model_len = 512", "engine.max_model_len"),
    ("max_running = 7", "engine.max_running"),
    ("num_gpus = 1", "placement.num_gpus"),
    ("num_cpus = 2", "placement.num_cpus"),
    ("labels = { a = 'b' }", "placement.labels"),
    ("num_actors = 4", "size"),
]


@pytest.mark.parametrize(("setting", "key"), KEYS)
def test_a_key_of_a_pool_in_rollout_is_refused_wherever_it_is_set(tmp_path: Path, setting: str, key: str):
    instead = f"set pools.policy.{key} instead"
    in_stage = TRAIN.replace("group_size = 4", f"group_size = 4, {setting}")
    assert instead in refusal(tmp_path, POOLS + in_stage)
    assert instead in refusal(tmp_path, POOLS + f"[rollout]\n{setting}\n" + TRAIN)
    assert instead in refusal(tmp_path, POOLS + TRAIN, f"rollout.{setting.replace(' = ', '=', 1)}")
    assert instead in refusal(tmp_path, POOLS + TRAIN, f"rollout={{ {setting} }}")


def test_the_model_of_an_auditor_is_set_in_its_pool(tmp_path: Path):
    for section, pool in (("evaluate", "second"), ("watch", "auditor")):
        instead = f"`{section}.audit_judge` has no effect in a pipeline file, expected the key of a pool"
        for message in (
            refusal(tmp_path, WHOLE, f"{section}.audit_judge=org/else"),
            refusal(tmp_path, f"{section}.audit_judge = 'org/else'\n{WHOLE}"),
        ):
            assert instead in message
            assert f"set pools.{pool}.model instead" in message


@pytest.mark.parametrize(("section", "kind", "setting"), [("evaluate", "evaluate", "max_prompts = 5"),
                                                          ("watch", "audit", "kl_factor = 3.0")])  # fmt: skip
def test_a_section_that_no_stage_uses_is_refused(tmp_path: Path, section: str, kind: str, setting: str):
    words = f"`{section}` has no effect without a stage of type {kind}"
    assert words in refusal(tmp_path, f"{POOLS}[{section}]\n{setting}\n{TRAIN}")
    assert words in refusal(tmp_path, POOLS + TRAIN, f"{section}.{setting.replace(' = ', '=')}")
    assert load(tmp_path, WHOLE, f"{section}.{setting.replace(' = ', '=')}")


def test_keys_of_the_judges_section_name_the_pool_of_the_judges(tmp_path: Path):
    assert "set pools.judge.size instead" in refusal(tmp_path, POOLS + TRAIN, "judging.num_actors=2")
    assert "set pools.judge.model instead" in refusal(tmp_path, POOLS + TRAIN, "judge=org/else")
    assert "set pools.policy.model instead" in refusal(tmp_path, "policy = 'a/b'\n" + POOLS + TRAIN)


def test_the_record_of_a_run_holds_the_values_of_its_pools_and_is_read(tmp_path: Path):
    run = load(tmp_path, WHOLE)
    record = {"hash": run.hash, "constitution_hash": "c", "solon": "1"} | run.model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert load_run(tmp_path / "config.json", overrides=["rollout.group_size=2"]).rollout.group_size == 2
    with pytest.raises(InputError, match=r"pools\.policy\.engine\.max_running"):
        load_run(tmp_path / "config.json", overrides=["rollout.max_running=2"])


@pytest.mark.parametrize("name", ["a/b", "../up", "a b", "é", "a.b", "x" * 101])
def test_the_name_of_an_evaluation_is_fit_for_a_file_name(tmp_path: Path, name: str):
    text = POOLS + AUDITORS + AUDIT + evaluate("second", f'name = "{name}"\n') + TRAIN
    assert "letters, digits, `-` and `_`" in refusal(tmp_path, text)
    stages = load(tmp_path, text.replace(f'"{name}"', '"Held-out_2"'))
    assert "Held-out_2" in str(stages)


@pytest.mark.parametrize("size", ["true", "2.0", '"2"'])
def test_the_size_of_a_pool_is_a_whole_number_and_nothing_that_looks_like_one(tmp_path: Path, size: str):
    message = refusal(tmp_path, (POOLS + TRAIN).replace('role = "judge"', f'role = "judge"\nsize = {size}', 1))
    assert "size" in message
    assert "expected a whole number" in message


def test_a_stage_that_does_nothing_is_named_when_the_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "idle.py").write_text(
        "from cluster.stages.base import Stage\n\n\nclass Idle(Stage):\n    kind = 'idle'\n"
    )
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    with pytest.raises(TypeError, match=r"cluster.stages.idle.Idle has no run; define it"):
        known_stages()
    sys.modules.pop("cluster.stages.idle", None)


@pytest.mark.parametrize("override", ["stages=[]", "stages=1", 'stages=[{type="rlaif"}]', "stages.0.type=rlaif"])
def test_stages_are_not_set_on_the_command_line(tmp_path: Path, override: str):
    assert "stages are set in the file" in refusal(tmp_path, WHOLE, override)


@pytest.mark.parametrize("override", ["pools=[]", "pools=1", "pools.judge=1", "pools.jugde.size=2"])
def test_only_keys_of_pools_in_the_file_are_set_on_the_command_line(tmp_path: Path, override: str):
    message = refusal(tmp_path, WHOLE, override)
    assert "expected a key of one of the pools" in message
    assert "did you mean `judge`" in message or "jugde" not in override


@pytest.mark.parametrize(
    "override",
    ["pools.judge.placement.num_cpus=inf", "pools.judge.size=99999999999999999999", "pools.judge.size=10001"],
)
def test_numbers_that_no_cluster_has_are_refused_at_once(tmp_path: Path, override: str):
    key = override.partition("=")[0].rpartition(".")[2]
    message = refusal(tmp_path, WHOLE, override)
    assert key in message
    assert "expected" in message


@pytest.mark.parametrize("name", ['""', '"../x"', '"a b"'])
def test_the_name_of_a_pool_is_fit_for_the_name_of_an_actor(tmp_path: Path, name: str):
    pool = f'[pools.{name}]\nrole = "audit"\nmodel = "org/other"\n'
    assert "expected at most 64 letters, digits, - and _" in refusal(tmp_path, POOLS + pool + TRAIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('stages = "rlaif"\n[pools.a]\nrole = "judge"\n', 'has "rlaif" as its stages, expected [[stages]]'),
        ('pools = ["a"]\n[[stages]]\ntype = "rlaif"\n', 'has ["a"] as its pools, expected [pools.NAME]'),
    ],
)
def test_what_stands_in_the_place_of_stages_or_pools_is_shown(tmp_path: Path, text: str, words: str):
    assert words in refusal(tmp_path, text)
