"""Alignments of several stages, as a user runs them, on the nursery's models and real engines."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
FILE = """
policy = "nursery:policy"
judge = "nursery:judge"
prompts = "nursery:train_prompts"
constitution = "nursery:constitution"
heldout_prompts = "nursery:heldout_prompts"

[label]
feedback = { template = "compact" }
write = { max_tokens = 24, answers = 4 }

[[stages]]
type = "preferences"
max_prompts = 48

[[stages]]
type = "sft"
learn = { learning_rate = 1e-3, max_tokens = 128 }

[[stages]]
type = "dpo"
learn = { learning_rate = 5e-4 }

[[stages]]
type = "reward_model"
policy = "nursery:policy"
learn = { learning_rate = 1e-3 }
heldout_share = 0.2

[[stages]]
type = "evaluate"
evaluator = "nursery"
max_prompts = 64
sampling = { max_tokens = 24 }
"""
STAGES = ["preferences", "sft", "dpo", "reward_model", "evaluate"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "align.toml").write_text(FILE)
    return subprocess.Popen(
        solon_command("align", "align.toml", "--json", *arguments), cwd=folder,
        env=environment(SOLON_RUNS=str(folder / "runs")), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == code, out[-2000:] + errors[-3000:]
    return (json.loads(out) if not code else {}), errors


def digests(result: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["digest"] for stage in result["stages"]}


@pytest.fixture(scope="module")
def whole(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a finished alignment, and its result."""
    folder = tmp_path_factory.mktemp("align")
    return folder, finish(start(folder))[0]


def test_the_stages_make_models_that_load_and_a_policy_that_is_better_than_half(whole: tuple[Path, dict[str, Any]]):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    folder, result = whole
    assert [stage["name"] for stage in result["stages"]] == STAGES
    assert all(stage["made_in_s"] > 0 for stage in result["stages"])
    places = {stage["name"]: Path(stage["folder"]) for stage in result["stages"]}
    for name in ("sft", "dpo"):
        AutoModelForCausalLM.from_pretrained(places[name] / "model")
    assert AutoModelForSequenceClassification.from_pretrained(places["reward_model"] / "model").config.num_labels == 1
    assert json.loads((places["evaluate"] / "scores.json").read_text())["mean"] > 0.65
    assert (folder / "runs" / "align" / "stages" / "03-dpo" / "model" / "model.safetensors").exists()
    reports = {stage["name"]: stage["report"] for stage in result["stages"]}
    assert reports["dpo"]["last_loss"] < reports["dpo"]["first_loss"] == pytest.approx(0.693, abs=0.01)
    assert reports["reward_model"]["heldout_pairs"] > 10


def test_a_second_start_makes_nothing_and_a_change_makes_only_what_depends_on_it(whole: tuple[Path, dict[str, Any]]):
    folder, result = whole
    again = finish(start(folder))[0]
    assert digests(again) == digests(result)
    assert [stage["made_in_s"] for stage in again["stages"]] == [None] * len(STAGES)
    planned = finish(start(folder, "--dry-run", "--from", "dpo"))[0]["stages"]
    assert [stage["runs"] for stage in planned] == [False, False, True, True, True]
    other = finish(start(folder, "--dry-run", "--set", "label.write.answers=3"))[0]["stages"]
    assert other[0]["why"] == "settings.label.write.answers was 4, is 3"
    assert "made first" in other[1]["why"]


def test_a_result_that_was_changed_by_hand_is_refused(whole: tuple[Path, dict[str, Any]]):
    folder, result = whole
    config = Path(result["stages"][1]["folder"]) / "model" / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    try:
        _, errors = finish(start(folder), code=2)
    finally:
        config.write_text(before)
    assert "has other files than when it was made (model/config.json)" in errors
    assert "Traceback" not in errors


def test_a_killed_alignment_redoes_no_finished_stage_and_ends_with_the_same_files(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
):
    rng, kills, finished = random.Random(0), 0, set[str]()
    while kills < 4:
        process = start(tmp_path)
        time.sleep(rng.uniform(4, 25))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        finished |= {path.stem for path in (tmp_path / "runs" / "artifacts").glob("*.json")}
    made = {path.stem: path.stat().st_mtime for path in (tmp_path / "runs" / "artifacts").glob("*.json")}
    result = finish(start(tmp_path))[0]
    assert digests(result) == digests(whole[1])
    for name in finished & made.keys():
        assert (tmp_path / "runs" / "artifacts" / f"{name}.json").stat().st_mtime == made[name], "made twice"


def test_supervised_tuning_on_two_workers_of_ray_train_makes_a_model_that_loads(
    whole: tuple[Path, Any], tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    demonstrations = Path(whole[1]["stages"][0]["folder"]) / "demonstrations.jsonl"
    (tmp_path / "ray.toml").write_text(
        f'policy = "nursery:policy"\n[[stages]]\ntype = "sft"\ndemonstrations = "{demonstrations}"\n'
        "learn = { learning_rate = 1e-3, max_tokens = 128, batch = 8, num_workers = 2 }\n"
    )
    done = subprocess.run(
        solon_command("align", "ray.toml", "--json"), cwd=tmp_path,
        env=environment(SOLON_RUNS=str(tmp_path / "runs")), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (stage,) = json.loads(done.stdout)["stages"]
    assert stage["report"]["last_loss"] < stage["report"]["first_loss"] + 0.1
    assert stage["report"]["steps"] == -(-stage["report"]["conversations"] // 8)
    AutoModelForCausalLM.from_pretrained(Path(stage["folder"]) / "model")


def test_a_stage_that_cannot_work_ends_with_its_cause(nursery: Any, tmp_path: Path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "same", "rejected": "same"}\n')
    (tmp_path / "bad.toml").write_text(
        'policy = "nursery:policy"\n[[stages]]\ntype = "dpo"\npreferences = "pairs.jsonl"\n'
    )
    done = subprocess.run(
        solon_command("align", "bad.toml"), cwd=tmp_path, env=environment(SOLON_RUNS=str(tmp_path / "runs")),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "two equal answers with a certain label" in done.stderr
    assert "Traceback" not in done.stderr


HEAD = FILE.partition('[[stages]]\ntype = "sft"')[0]
"""With the preferences that `whole` has made."""


def test_a_reward_model_judges_in_reinforcement_learning_and_the_drift_of_every_policy_is_measured(
    whole: tuple[Path, dict[str, Any]],
):
    folder, result = whole
    (folder / "reward.toml").write_text(
        HEAD
        + """
[[stages]]
type = "reward_model"
learn = { learning_rate = 1e-3 }
[[stages]]
type = "rlaif"
judge = "reward_model"
[stages.run]
steps = 2
rollout = { group_size = 4, max_tokens = 24, max_model_len = 128, num_cpus = 0.5 }
judging = { max_model_len = 256, num_cpus = 0.5 }
ledger = { batch_groups = 4 }
learn = { objective = "group_relative", learning_rate = 4e-4, num_cpus = 0.5 }
[[stages]]
type = "drift"
max_prompts = 16
max_tokens = 24
"""
    )
    done = subprocess.run(
        solon_command("align", "reward.toml", "--json"), cwd=folder, env=environment(SOLON_RUNS=str(folder / "runs")),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    preferences, reward_model, rlaif, drift = json.loads(done.stdout)["stages"]
    assert preferences["digest"] == result["stages"][0]["digest"]
    config = json.loads((Path(reward_model["folder"]) / "model" / "config.json").read_text())
    assert set(config["solon_reward"]) == {"shifts", "scale", "pessimism"}
    assert rlaif["report"]["labels"]["invalid"] == 0
    assert rlaif["report"]["labels"]["total"] > 0
    assert set(drift["report"]["kl"]) == {"start"}
    # A mean over a few sampled answers after two steps: it has a value, and may fall below 0 by chance.
    assert 0 < abs(drift["report"]["kl"]["start"]) < 1


def test_methods_are_compared_once_and_a_second_start_only_prints(whole: tuple[Path, dict[str, Any]]):
    folder, _ = whole
    head = HEAD.replace('[[stages]]\ntype = "preferences"\nmax_prompts = 48\n', "")
    stages = '[[methods.stages]]\ntype = "preferences"\nmax_prompts = 48\n'
    (folder / "compare.toml").write_text(
        head.replace("[label]", "seeds = [0]\n[label]")
        + '[evaluate]\nevaluator = "nursery"\nmax_prompts = 48\nsampling = { max_tokens = 24 }\n'
        + f'[[methods]]\nname = "dpo"\n{stages}[[methods.stages]]\ntype = "dpo"\nlearn = {{ learning_rate = 5e-4 }}\n'
        + f'[[methods]]\nname = "kto"\n{stages}[[methods.stages]]\ntype = "kto"\nlearn = {{ learning_rate = 5e-4 }}\n'
        + f'[[methods]]\nname = "broken"\n{stages}[[methods.stages]]\ntype = "dpo"\nmax_tokens = 8\n'
    )

    def run() -> tuple[dict[str, Any], str, float]:
        started = time.monotonic()
        done = subprocess.run(
            solon_command("compare", "compare.toml", "--json"), cwd=folder,
            env=environment(SOLON_RUNS=str(folder / "runs")), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-3000:]
        return json.loads(done.stdout), done.stderr, time.monotonic() - started

    first, errors, took = run()
    assert [one["name"] for one in first["methods"]] == ["dpo", "kto"]
    assert "broken" in first["failed"]
    assert "broken failed" in errors
    assert "Traceback" not in errors
    for one in first["methods"]:
        assert one["cost"]["ai_labels"] > 0
        assert one["cost"]["seconds"] > 0
        assert one["kl"] is not None
        assert one["change"]["low"] < one["change"]["value"] < one["change"]["high"]
    assert "One seed says nothing" in first["advice"]
    assert (folder / "runs" / "compare" / "comparison.html").stat().st_size > 100_000
    second, _, again = run()
    assert second["methods"] == first["methods"]
    assert again < took / 2
