"""Plans that divide engines, publish adapters, count what published rates cost, replace no file, and read well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.config.run_file import RunFile
from cluster.plan.alone import JudgeAlone, LearnerAlone, RolloutAlone
from cluster.plan.hardware import devices
from cluster.plan.measuring import measure
from cluster.plan.memory import sizes_for
from cluster.plan.rates import Rates
from cluster.plan.roofline import EAGER_S, published_rates
from cluster.plan.splits import splits_of
from solon.cli.main import app
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.files.prompts import load_prompts
from solon.files.toml_file import read_toml
from tests.unit.plan.test_plan import planned, rates, refused, run_file

LARGE = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
         "intermediate_size": 29568}  # fmt: skip
"""Of 72 B parameters: 145 GB in bfloat16, more than one H200 has beside its copy."""


@pytest.mark.parametrize(("engine", "judge"), [(1, 1), (2, 1), (4, 2), (8, 8), (3, 1)])
def test_splits_of_divided_engines_never_take_more_devices_than_there_are(engine: int, judge: int):
    for gpus in range(1, 40):
        found = list(splits_of(gpus, [1, 2, 4], [1], engine_ranks=engine, judge_ranks=judge))
        assert all(split.devices <= gpus for split in found)
        assert bool(found) or gpus < engine + judge + (engine > 1 and judge > 1)
        assert all(split.share("generate") == 1 for split in found if engine > 1)


def test_an_engine_that_fits_on_no_device_is_divided_and_says_so(tmp_path: Path):
    out = tmp_path / "planned.toml"
    flags = ("--gpus", "32", "--gpu-type", "h200", "--set", "learn.lora.r=16", "--write", str(out))
    flags += ("--set", "learn.gradient_checkpointing=true")
    plan = planned(run_file(tmp_path, policy=LARGE), *flags)
    roles = {role["role"]: role for role in plan["memory"]}  # type: ignore[attr-defined]
    run = RunFile.load(out)
    assert run.rollout.tensor_parallel == roles["rollout"]["ranks"] == roles["rollout"]["devices"] > 1
    assert roles["rollout"]["peak_gib"] <= 139
    assert run.judging.tensor_parallel == 1
    assert run.gpus == plan["recommended"]["devices"] <= 32  # type: ignore[index]
    assert "rollout.tensor_parallel" in str(plan["divided"])
    assert "# rollout.tensor_parallel" in out.read_text()


def test_a_fixed_number_of_devices_of_an_engine_is_kept(tmp_path: Path):
    flags = ("--gpus", "9", "--gpu-type", "h200", "--set", "rollout.tensor_parallel=2")
    plan = planned(run_file(tmp_path), *flags)
    split = plan["recommended"]["split"]  # type: ignore[index]
    assert split["engine_ranks"] == 2
    assert not plan["divided"]
    assert 2 * split["engines"] + split["judges"] + split["ranks"] == plan["recommended"]["devices"] <= 9  # type: ignore[index]


def test_engines_that_cannot_be_divided_are_refused_with_the_reason(tmp_path: Path):
    adapters = ("--set", "learn.lora.r=16", "--set", "publish.way=adapter")
    message = refused(run_file(tmp_path, policy=LARGE), "--gpus", "8", "--gpu-type", "l4", *adapters)
    assert "publish.way = 'adapter' divides no engine" in message


def test_ranks_that_do_not_divide_the_model_are_refused_before_the_plan(tmp_path: Path):
    given = ("--gpus", "8", "--gpu-type", "h200", "--set", "rollout.tensor_parallel=4")
    assert "attention heads" in refused(run_file(tmp_path), *given)


def test_measured_rates_of_one_device_are_scaled_and_remarked(tmp_path: Path):
    run = RunFile.load(run_file(tmp_path))
    found = Rates.load(rates(tmp_path, run, settings={"rollout": {"tensor_parallel": 1}}))
    wider = run.model_copy(update={"rollout": run.rollout.model_copy(update={"tensor_parallel": 2})})
    assert found.for_ranks(wider).rollout.step_s == pytest.approx(found.rollout.step_s / 1.7)
    assert "assumption" in found.remarks(wider)[0]
    assert found.for_ranks(wider).rollout.cores == 2 * found.rollout.cores
    assert not found.for_ranks(wider).memory
    assert found.for_ranks(run) == found


def published(path: Path, *overrides: str) -> Rates:
    run = RunFile.load(path, overrides=list(overrides))
    sizes, compressed = sizes_for(run)
    prompts = load_prompts(run.prompts, read=run.data, max_bad_share=run.data.max_bad_share).prompts
    constitution = Constitution.load(run.constitution)
    return published_rates(run, devices()["h200"], "h200", sizes, compressed, prompts, constitution)


def test_adapters_are_all_that_is_published_and_held_twice(tmp_path: Path):
    path = run_file(tmp_path)
    given = ["--set", "learn.lora.r=16", "--set", "publish.way=adapter"]
    flags = ("--gpus", "8", "--gpu-type", "h200", "--set", "rollout.kv_cache_gib=4")
    whole, adapted = planned(path, *flags), planned(path, *flags, *given)
    first, second = (plan["memory"][0]["gib"]["working"] for plan in (whole, adapted))  # type: ignore[index]
    assert first - second > 0.8  # GiB: half a billion weights in 16 bits
    assert published(path, *given[1::2]).publish.load_s < 0.1 * published(path).publish.load_s


def test_a_learner_is_never_faster_than_the_starts_of_its_operations(tmp_path: Path):
    path = run_file(tmp_path)
    few = published(path, "rollout.max_tokens=8", "ledger.batch_groups=1").learn
    assert few.step_s + few.token_s * 32 - few.export_s >= few.least_s > 24 * 3 * EAGER_S
    for ranks in (1, 2, 64):
        step_s, token_s = few.with_ranks(ranks, 32)
        assert step_s + token_s * 32 >= few.export_s + few.least_s * 0.999


def test_float32_learners_do_not_get_the_peak_of_bfloat16(tmp_path: Path):
    path = run_file(tmp_path)
    narrow, wide = published(path).learn, published(path, "learn.dtype=float32").learn
    assert wide.token_s > 5 * narrow.token_s


def test_an_update_of_adapters_moves_their_bytes_alone(tmp_path: Path):
    path = run_file(tmp_path)
    whole, adapted = published(path).learn, published(path, "learn.lora.r=16").learn
    assert adapted.step_s - adapted.export_s < whole.step_s - whole.export_s


def test_embeddings_cost_a_judge_no_arithmetic(tmp_path: Path):
    path = run_file(tmp_path)
    before = published(path).judging.group_s
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    # Three times the vocabulary doubles the parameters of this model.
    (tmp_path / "judge" / "config.json").write_text(json.dumps(config | {"vocab_size": 3 * config["vocab_size"]}))
    assert published(path).judging.group_s < 1.1 * before


def test_a_plan_replaces_no_file_unasked_and_the_run_file_never(tmp_path: Path):
    path, out = run_file(tmp_path), tmp_path / "planned.toml"
    out.write_text("mine")
    flags = ("--gpus", "8", "--gpu-type", "h200", "--write")
    assert "--force" in refused(path, *flags, str(out))
    assert out.read_text() == "mine"
    before = path.read_text()
    assert "another name" in refused(path, *flags, str(path), "--force")
    (tmp_path / "link.toml").symlink_to(path)
    assert "another name" in refused(path, *flags, str(tmp_path / "link.toml"), "--force")
    assert path.read_text() == before
    planned(path, *flags, str(out), "--force")
    assert RunFile.load(out)


def test_written_paths_below_the_file_are_relative_and_others_absolute(tmp_path: Path):
    path, out = run_file(tmp_path), tmp_path / "planned.toml"
    (tmp_path / "same").symlink_to(tmp_path)
    planned(path, "--gpus", "8", "--gpu-type", "h200", "--write", str(tmp_path / "same" / out.name))
    raw = read_toml(out, what="run file")
    assert raw["policy"] == "policy"
    assert raw["prompts"] == "prompts.jsonl"
    assert Path(str(raw["constitution"])).is_absolute()
    (tmp_path / "moved").mkdir()
    for name in ("policy", "judge", "prompts.jsonl", "planned.toml"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert RunFile.load(tmp_path / "moved" / "planned.toml").policy == str(tmp_path / "moved" / "policy")


def test_a_batch_that_admits_too_little_is_said_to_bind(tmp_path: Path):
    flags = ("--gpus", "64", "--gpu-type", "h200", "--set", "ledger.batch_groups=2", "--set", "rollout.group_size=2")
    plan = planned(run_file(tmp_path), *flags)
    best = plan["recommended"]
    assert best["binds"] == "admission"  # type: ignore[index]
    assert set(best["utilisation"]) == {"generate", "label", "learn"}  # type: ignore[index]
    assert "binds: admission" in str(plan["remarks"])
    assert "devices stay idle" in str(plan["remarks"])


def test_no_two_rows_of_a_plan_are_the_same(tmp_path: Path):
    plan = planned(run_file(tmp_path), "--gpus", "16", "--gpu-type", "h200")
    rows = [plan["recommended"], *plan["runners_up"]]  # type: ignore[misc]
    shown = [(str(row["split"] | {"staleness": 0}), f"{row['groups_per_s']:.3g}", row["busy"]) for row in rows]
    assert len({str(one) for one in shown}) == len(shown)


@pytest.mark.parametrize("gpus", ["1", "2", "16"])
def test_a_plan_fits_80_columns(tmp_path: Path, gpus: str):
    text = CliRunner().invoke(app, ["plan", str(run_file(tmp_path)), "--gpus", gpus, "--gpu-type", "h200"]).output
    tables = [
        one for one in text.splitlines() if one.startswith(("groups/s", "weights", "split ", "generate", "binds "))
    ]
    assert len(tables) == 5
    assert all(len(one) <= 80 for one in tables)
    assert "a second copy of the weights during a reload" in text


def test_a_model_that_is_not_here_comes_with_the_command_that_fetches_its_shape(tmp_path: Path):
    given = ("--gpus", "8", "--gpu-type", "h200", "--set", "judge=an-org/no-such-model")
    message = refused(run_file(tmp_path), *given)
    assert "hf download an-org/no-such-model config.json --local-dir DIR" in message
    assert "--set judge=DIR" in message


@pytest.mark.parametrize(("key", "value"), [("rollout.tensor_parallel", "2"), ("judging.tensor_parallel", "4")])
def test_engines_of_several_devices_are_not_measured_but_planned(tmp_path: Path, key: str, value: str):
    run = RunFile.load(run_file(tmp_path), overrides=[f"{key}={value}"])
    with pytest.raises(InputError, match=rf"{key} = {value}, expected 1.*one device is measured"):
        measure(run, (), seconds=1)


def test_roles_that_are_measured_alone_keep_warnings_of_libraries_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunFile.load(run_file(tmp_path))
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    for role in (RolloutAlone, JudgeAlone, LearnerAlone):
        variables = role.environment(run)
        assert variables["VLLM_LOGGING_LEVEL"] == "ERROR"
        assert "resource_tracker" in variables["PYTHONWARNINGS"]
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert RolloutAlone.environment(run)["VLLM_LOGGING_LEVEL"] == "DEBUG"
