"""The whole system: real vLLM engines, a real int8 judge, a real Ray cluster, started as a user starts it."""

from __future__ import annotations

import collections
import gzip
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from solon.checkpoints.folder import CheckpointFolder
from solon.runs.directory import BALLAST_BYTES
from solon.runs.objects import RUN
from tests.documented import undocumented
from tests.e2e.conftest import ROOT, Run, environment, run_solon, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(nursery: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo's run, whole."""
    return run_solon(tmp_path_factory.mktemp("demo"), "demo", "--set", "checkpoint_every=20")


def test_the_demo_lifts_held_out_adherence_and_no_principle_falls(demo: Run):
    assert demo.returncode == 0, demo.output[-3000:]
    before, after = demo.summary["eval"]["before"], demo.summary["eval"]["after"]
    assert before["mean"] <= 0.60
    assert after["mean"] >= 0.90
    assert {name for name in before if after[name] < before[name]} == set()


def test_the_summary_matches_its_contract(demo: Run):
    summary = demo.summary
    assert summary["status"] == "completed"
    assert summary["steps"] == len(demo.metrics)
    assert summary["reward"]["last"] > summary["reward"]["first"]
    assert summary["staleness"]["max"] <= summary["staleness"]["bound"]
    assert summary["weights"]["attested"] == summary["weights"]["published"] == summary["steps"] > 0
    assert 0 < summary["weights"]["max_logprob_gap"] < 2e-3
    groups = summary["groups"]
    assert groups["admitted"] == groups["committed"] + groups["dropped"]
    assert set(summary["overlap"]["busy"]) == {"generate", "label", "learn"}
    assert summary["overlap"]["binding_stage"] in summary["overlap"]["busy"]
    assert min(summary["throughput"].values()) > 0
    assert summary["labels"]["total"] == summary["labels"]["valid"] + summary["labels"]["invalid"]
    assert summary["faults"] == {"injected": 0, "recovered": 0, "by_event": {}}


def test_every_group_is_trained_once_from_valid_labels_and_every_rollout_is_on_disk(demo: Run):
    trained = [ordinal for line in demo.metrics for ordinal in line["batch/ordinals"]]
    assert len(trained) == len(set(trained)) == demo.summary["groups"]["committed"]
    rollouts, labels = demo.table("rollouts"), demo.table("labels")
    assert set(trained) <= {row["ordinal"] for row in rollouts}
    assert all(sum(row["version_tokens"]) == len(row["token_ids"]) == len(row["logprobs"]) for row in rollouts)
    by_group = collections.defaultdict(list)
    for row in labels:
        by_group[row["ordinal"]].append(row)
        assert row["valid"] == (row["margin"] is not None)
        assert row["quantization"] == "int-quantized"
        assert row["constitution_hash"] == json.loads((demo.directory / "config.json").read_text())["constitution_hash"]
    assert all(any(row["reward"] is not None for row in by_group[ordinal]) for ordinal in trained)


def test_every_file_column_and_key_of_a_run_is_described(demo: Run):
    assert undocumented(demo.directory, RUN) == []


def test_rows_have_the_outcome_of_every_rollout_and_every_held_out_answer(demo: Run):
    by_step = collections.defaultdict(list)
    for row in demo.table("rollouts"):
        by_step[row["step"]].append(row)
    for line in demo.metrics:
        rows = by_step[line["step"]]
        assert {row["ordinal"] for row in rows} == set(line["batch/ordinals"])
        rewards = [row["reward"] for row in rows if row["reward"] is not None]
        assert statistics.fmean(rewards) == pytest.approx(line["learn/reward/mean"], abs=1e-6)
        assert all((row["advantage"] is not None) == (row["reward"] is not None) for row in rows)
    for when in ("before", "after"):
        rows = json.loads((demo.directory / f"heldout-{when}.json").read_text())
        for principle, share in demo.summary["eval"][when].items():
            found = [row["scores"][principle] for row in rows if principle in row["scores"]]
            assert principle == "mean" or statistics.fmean(found) == pytest.approx(share)


def test_lanes_appear_in_the_trace_and_the_checkpoint_is_a_model(demo: Run):
    events = json.loads((demo.directory / "trace.json").read_text())
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} >= {
        "rollout-0",
        "judge-0",
        "learner",
    }
    latest = demo.directory / "checkpoints" / (demo.directory / "checkpoints" / "LATEST").read_text().strip()
    manifest = json.loads((latest / "manifest.json").read_text())
    assert {"policy/config.json", "policy/model.safetensors", "ledger.json"} <= set(manifest["files"])
    assert sorted(p.name for p in latest.parent.glob("step-*")) == ["step-000001", "step-000020", latest.name]
    assert not (demo.directory / ".ballast").exists()


def unfitting(nursery: Any, folder: Path) -> list[str]:
    """Overrides: a policy whose template refuses system turns, and prompts of which one in ten is refused and another
    one in ten is too long."""
    policy = shutil.copytree(nursery.policy, folder / "policy")
    config = json.loads((policy / "tokenizer_config.json").read_text())
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
    config["chat_template"] = refuse + config["chat_template"]
    (policy / "tokenizer_config.json").write_text(json.dumps(config))
    rows = [json.loads(line) for line in nursery.train_prompts.read_text().splitlines()[:100]]
    for row in rows[::10]:
        row["prompt"] = [{"role": "system", "content": "the fox"}, *row["prompt"]]
    for row in rows[5::10]:
        row["prompt"][-1]["content"] += " the fox" * 100
    with gzip.open(folder / "prompts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return ["--set", f"policy={policy}", "--set", f"prompts={folder / 'prompts.jsonl.gz'}"]


def test_two_runs_with_target_zero_and_one_seed_commit_the_same_groups_with_the_same_rewards(
    nursery: Any, tmp_path: Path
):
    overrides = ["--set", "staleness.target_staleness=0", "--seed", "7", "--steps", "4", *unfitting(nursery, tmp_path)]
    first, second = (run_solon(tmp_path, name, *overrides) for name in ("first", "second"))
    assert (first.returncode, second.returncode) == (0, 0), first.output[-2000:] + second.output[-2000:]
    assert [m["batch/ordinals"] for m in first.metrics] == [m["batch/ordinals"] for m in second.metrics]
    assert texts(first) == texts(second)
    for a, b in zip(first.metrics, second.metrics, strict=True):
        assert a["learn/reward/mean"] == pytest.approx(b["learn/reward/mean"], abs=1e-4)
        assert a["batch/staleness/max"] == b["batch/staleness/max"] == 0
    # Prompts that the policy cannot answer are left out and counted.
    found = {key: first.summary["prompts"][key] for key in ("read", "used", "refused", "overlong", "broken")}
    assert found == {"read": 100, "used": 80, "refused": 10, "overlong": 10, "broken": 0}
    kept = first.summary["quarantine"]["by_stage"]["prompts"]
    # A refusal names the turns of the conversation, so that it may have several reasons.
    assert sum(count for reason, count in kept.items() if "no system turn here" in reason) == 10
    assert sum(count for reason, count in kept.items() if reason.endswith("tokens, 104 fit")) == 10
    assert "10 of 100 prompts (10.0%) are refused by the policy's chat template; dropped" in first.output
    assert (first.summary["heldout"]["read"], first.summary["heldout"]["used"]) == (400, 400)


def texts(run: Run) -> dict[tuple[int, int], str]:
    return {(row["ordinal"], row["index"]): row["text"] for row in run.table("rollouts")}


def test_ctrl_c_finishes_the_step_saves_everything_and_exits_0(nursery: Any, tmp_path: Path):
    child = start(tmp_path, "stopped", "--steps", "500")
    try:
        wait_for_step(child, tmp_path / "runs" / "stopped", 3)
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=120)
    finally:
        end(child)
    run = Run(child.returncode, output, tmp_path / "runs" / "stopped")
    assert run.returncode == 0, output[-3000:]
    assert "Traceback" not in output
    summary = run.summary
    assert summary["status"] == "stopped"
    assert summary["steps"] >= 3
    assert (run.directory / "checkpoints" / "LATEST").exists()
    # Every generated rollout is on disk, trained or not.
    assert len({row["ordinal"] for row in run.table("rollouts")}) >= summary["groups"]["committed"]


def test_a_full_disk_stops_the_run_with_one_message_and_loses_nothing(nursery: Any, tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = BALLAST_BYTES + 64 * 2**20  # the ballast, and a few checkpoints
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    child = None
    try:
        child = start(tmp_path, "full", "--steps", "500", SOLON_RUNS=str(disk))
        wait_for_step(child, disk / "full", 2)
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes(disk))
        output, _ = child.communicate(timeout=120)
        run = Run(child.returncode, output, disk / "full")
        assert run.returncode == 1, output[-3000:]
        assert "Traceback" not in output
        assert "disk" in output
        assert "is full; everything generated so far was written" in output
        assert run.summary["status"] == "failed"
        # The last checkpoint found the room that was reserved for it: no step is lost.
        last = CheckpointFolder(run.directory / "checkpoints").last()
        assert last is not None
        assert last.step == run.summary["steps"]
        trained = {ordinal for line in run.metrics for ordinal in line["batch/ordinals"]}
        assert trained <= {row["ordinal"] for row in run.table("rollouts")}
    finally:
        if child is not None:
            end(child)
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_an_unusable_judge_is_refused_before_an_engine_starts(nursery: Any, tmp_path: Path):
    started = time.monotonic()
    run = run_solon(tmp_path, "refused", "--set", "judge=/no/such/model")
    assert run.returncode == 2
    assert "judge model /no/such/model does not exist" in run.output
    assert "Traceback" not in run.output
    assert not run.directory.exists()
    assert time.monotonic() - started < 30


def start(folder: Path, name: str, *arguments: str, **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        solon_command("train", str(ROOT / "examples" / "nursery.toml"), "--name", name, *arguments),
        cwd=folder,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_step(child: subprocess.Popen[str], directory: Path, step: int, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    metrics = directory / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= step):
        assert child.poll() is None, child.communicate()[0][-3000:]
        assert time.monotonic() < deadline, "no step in time"
        time.sleep(0.2)


def end(child: subprocess.Popen[str]) -> None:
    """End a child that a failing test left behind, by its id."""
    if child.poll() is None:
        child.kill()
        child.communicate(timeout=30)


def free_bytes(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize
