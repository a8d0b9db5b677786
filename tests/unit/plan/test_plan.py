"""Plans: rates, splits, lanes that share cores, what does not fit, and the file that is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.config.run_file import RunFile
from cluster.plan.hardware import device_of, devices
from cluster.plan.rates import Rates, line
from cluster.plan.shared import Machine, SharedRun, Work
from cluster.plan.splits import Split, splits_of
from cluster.plan.write import toml_text
from solon.cli.main import app, main
from solon.errors import InputError
from solon.files.toml_file import read_toml
from solon.ledger.staleness import StalenessConfig

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
RUN = """
policy = "{folder}/policy"
judge = "{folder}/judge"
prompts = "prompts.jsonl"
constitution = "{examples}/assistant.yaml"

[rollout]
max_tokens = 256
enforce_eager = false

[judging]
enforce_eager = false

[feedback]
task = "pairwise"

[learn]
advantages = "group"
"""
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def run_file(folder: Path, *, policy: dict[str, object] | None = None) -> Path:
    for name in ("policy", "judge"):
        (folder / name).mkdir()
        config = CONFIG | (policy or {}) if name == "policy" else CONFIG
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "prompts.jsonl").write_text('{"prompt": "why is the sky blue?"}\n' * 3)
    path = folder / "run.toml"
    path.write_text(RUN.format(folder=folder, examples=EXAMPLES))
    return path


def planned(path: Path, *flags: str) -> dict[str, object]:
    found = CliRunner().invoke(app, ["plan", str(path), *flags, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return dict(json.loads(found.stdout))


def refused(path: Path, *flags: str) -> str:
    with pytest.raises(InputError) as error:
        CliRunner().invoke(app, ["plan", str(path), *flags], catch_exceptions=False)
    return str(error.value)


def work(**changes: object) -> Work:
    values: dict[str, object] = {
        "engines": 1,
        "judges": 1,
        "slots": 64,
        "held": 16,
        "group_size": 4,
        "batch_groups": 8,
        "staleness": StalenessConfig(target_staleness=2),
        "lockstep": False,
        "steps": 30,
        "lengths": (20,),
        "decode": (0.05, 0.0),
        "label": (0.0, 0.125),
        "learn": (1.0, 0.0),
        "load_s": 0.0,
        "first_s": 0.0,
        "driver_s": 0.0,
        "cores": {"generate": 1.0, "label": 1.0, "learn": 1.0, "load": 1.0},
    }
    return Work(**(values | changes))  # type: ignore[arg-type]


def test_on_one_device_service_times_add():
    alone = SharedRun(work(), Machine(cores=3)).outcome()
    shared = SharedRun(work(), Machine(cores=1)).outcome()
    # Generation, labels and a step take a second each.
    assert alone.wall_s == pytest.approx(30 + 2, abs=1.5)
    # Groups of two batches that decode together share steps.
    assert shared.wall_s >= 85


def test_cores_that_disturb_each_other_slow_every_lane():
    free = SharedRun(work(), Machine(cores=3)).outcome()
    crowded = SharedRun(work(), Machine(cores=3, crowding=0.5)).outcome()
    assert 1.5 * free.wall_s < crowded.wall_s <= 2 * free.wall_s + 1


def test_no_trained_group_is_staler_than_the_target_in_order():
    outcome = SharedRun(work(), Machine(cores=2)).outcome()
    assert outcome.staleness_max <= 4
    assert outcome.staleness_p50 <= 2
    on_policy = SharedRun(work(staleness=StalenessConfig(target_staleness=0)), Machine(cores=2)).outcome()
    assert on_policy.staleness_max == 0
    assert on_policy.groups_per_s < outcome.groups_per_s


def test_the_first_step_of_a_short_run_counts_once():
    before, after = (SharedRun(work(first_s=seconds), Machine(cores=3)).outcome().wall_s for seconds in (0.0, 7.0))
    assert after - before == pytest.approx(7.0, abs=1.0)


def test_a_lane_that_gives_way_gets_what_is_left():
    first, rest = Machine(cores=2).speeds(1.0, 2.0)
    assert first == 1.0
    assert rest == pytest.approx(0.5)


def test_a_line_through_measurements_never_has_a_negative_part():
    assert line([(1, 10, 1.5), (1, 20, 2.5), (1, 40, 4.5)]) == pytest.approx((0.5, 0.1))
    assert min(line([(1, 10, 1.0), (1, 20, 1.9), (1, 40, 3.5)])) >= 0
    assert line([(1, 10, 1.0), (1, 20, 2.2), (1, 40, 5.0)])[0] == 0


def test_splits_never_take_more_devices_than_there_are():
    for gpus in (1, 2, 3, 8, 64, 300):
        found = list(splits_of(gpus, [1, 2], [1]))
        assert found
        assert all(split.devices <= gpus for split in found)
        assert any(split.devices == gpus for split in found)


def test_every_published_device_names_its_source():
    assert set(devices()) >= {"a100", "h100", "h200", "b200", "l4", "l40s", "mi300x"}
    assert all(device.source and device.memory < 200 << 30 for device in devices().values())
    assert device_of("NVIDIA-H200") is devices()["h200"]


def test_an_unknown_device_is_refused_with_the_known_ones_and_the_way_out():
    with pytest.raises(InputError, match=r"h20.*known are a100.*--rates"):
        device_of("h20")


def test_a_plan_names_split_memory_cost_and_what_would_move_it(tmp_path: Path):
    plan = planned(run_file(tmp_path), "--gpus", "8", "--gpu-type", "h200")
    best, roles = plan["recommended"], {role["role"]: role for role in plan["memory"]}  # type: ignore[index, attr-defined]
    assert best["devices"] <= 8
    assert best["groups_per_s"] > 0
    assert best["usd_per_1000_groups"] > 0
    assert set(roles) == {"rollout", "judge", "learner"}
    assert roles["learner"]["gib"]["optimiser"] * roles["learner"]["workers"] > 3
    assert plan["price_is_placeholder"]
    assert plan["rates"]["source"] == "published"
    assert plan["assumptions"]
    assert len(plan["runners_up"]) <= 3  # type: ignore[arg-type]


def test_a_price_that_was_given_is_no_placeholder_and_scales_the_cost(tmp_path: Path):
    path = run_file(tmp_path)
    cheap, dear = (planned(path, "--gpus", "3", "--gpu-type", "a100", "--price", price) for price in ("1", "2"))
    assert not cheap["price_is_placeholder"]
    assert dear["recommended"]["usd_per_1000_groups"] == pytest.approx(  # type: ignore[index]
        2 * cheap["recommended"]["usd_per_1000_groups"],  # type: ignore[index]
        rel=1e-3,
    )


@pytest.mark.parametrize("gpus", ["1", "2", "8"])
def test_the_written_file_is_a_run_file_with_the_recommended_split(tmp_path: Path, gpus: str):
    out = tmp_path / "planned.toml"
    plan = planned(run_file(tmp_path), "--gpus", gpus, "--gpu-type", "h200", "--write", str(out))
    run, best = RunFile.load(out), plan["recommended"]
    split = best["split"]  # type: ignore[index]
    assert run.rollout.num_actors == split["engines"]
    assert run.judging.num_actors == split["judges"]
    assert run.learn.num_ranks == split["ranks"]
    assert run.staleness.target_staleness == split["staleness"]
    assert run.gpus <= int(gpus)
    assert run.rollout.max_tokens == 256


def test_a_policy_that_fits_nowhere_is_refused_with_the_role_and_the_gap(tmp_path: Path):
    large = {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 29568}
    message = refused(run_file(tmp_path, policy=large), "--gpus", "8", "--gpu-type", "l4")
    assert "rollout" in message
    assert "needs" in message
    assert "GiB" in message


def test_too_few_devices_for_the_learner_say_what_else_helps(tmp_path: Path):
    large = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "intermediate_size": 18944}
    message = refused(run_file(tmp_path, policy=large), "--gpus", "3", "--gpu-type", "a100")
    assert "learner" in message
    assert "needs" in message
    assert "more devices" in message


def test_a_plan_for_no_machine_is_refused(tmp_path: Path):
    path = run_file(tmp_path)
    assert "--gpu-type" in refused(path)
    assert "--rates" in refused(path)
    assert "--gpus" in refused(path, "--gpu-type", "h200")


def test_a_learner_of_several_nodes_is_not_planned(tmp_path: Path):
    given = ("--gpus", "8", "--gpu-type", "h200", "--set", "learn.num_ranks=4", "--set", "learn.num_nodes=2")
    assert "learn.num_nodes = 2, expected 1" in refused(run_file(tmp_path), *given)


def rates(folder: Path, run: RunFile, **changes: object) -> Path:
    values: dict[str, object] = {
        "source": "measured",
        "device": "cpu",
        "cores": 2,
        "machine": "a machine",
        "date": "2026-01-01",
        "versions": {},
        "policy": run.policy,
        "judge": run.judge,
        "models": {},
        "settings": {},
        "rollout": {"step_s": 0.01, "token_s": 0.001, "cores": 1},
        "judging": {"call_s": 0.01, "group_s": 0.05, "cores": 1},
        "learn": {"step_s": 0.1, "token_s": 0.0001, "cores": 1, "export_s": 0.01},
        "publish": {"load_s": 0.01, "cores": 1},
        "driver_s": 0.001,
        "answer_tokens": [10, 20],
        "prompt_tokens": 20,
        "memory": {"rollout": 1 << 30},
    }
    path = folder / "rates.json"
    path.write_text(json.dumps(values | changes))
    return path


def test_measured_rates_of_shared_cores_plan_the_staleness(tmp_path: Path):
    path = run_file(tmp_path)
    plan = planned(path, "--rates", str(rates(tmp_path, RunFile.load(path))))
    assert plan["recommended"]["split"]["on_cpu"]
    assert len(plan["runners_up"]) == 3
    measured = {role["role"]: role["is_measured"] for role in plan["memory"]}  # type: ignore[attr-defined]
    assert measured == {"rollout": True, "judge": False, "learner": False}


def test_rates_of_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = run_file(tmp_path)
    run = RunFile.load(path)
    monkeypatch.setattr("cluster.plan.rates.digest_of", lambda model: "now")
    found = Rates.load(rates(tmp_path, run, models={"policy": "then", "judge": "now"}, policy="old"))
    with pytest.raises(InputError, match=r"measured with the policy old.*measure again"):
        found.require_models(run, "rates.json")


def test_rates_of_cores_say_nothing_about_gpus(tmp_path: Path):
    path = run_file(tmp_path)
    file = rates(tmp_path, RunFile.load(path))
    message = refused(path, "--rates", str(file), "--gpus", "8", "--gpu-type", "h200")
    assert "measured on the cores" in message
    assert "leave --rates out" in message


@pytest.mark.parametrize("content", ["", "{}", '{"source": "guess"}', "[1"])
def test_a_file_that_holds_no_rates_is_refused_in_one_line(tmp_path: Path, content: str):
    path = tmp_path / "rates.json"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        Rates.load(path)
    assert "solon measure" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_exits_with_2_for_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    command = ["solon", "plan", str(run_file(tmp_path)), "--gpus", "8", "--gpu-type", "h20"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "known are" in capsys.readouterr().err


def test_text_of_toml_reads_back(tmp_path: Path):
    raw = {"a": 1, "b": 'x"\\\n\x7f', "c": [1.5, True], "t": {"u": {"v": "w"}, "list": [{"k": 1}, {"k": 2}]}}
    path = tmp_path / "x.toml"
    path.write_text(toml_text(raw), encoding="utf-8")
    assert read_toml(path, what="x") == raw


def test_a_split_of_shared_lanes_counts_one_device():
    split = Split(engines=1, judges=1, ranks=1, staleness=1, sharing=("generate", "label"))
    assert split.devices == 2
    assert split.share("generate") == 0.5
    assert split.share("learn") == 1.0
