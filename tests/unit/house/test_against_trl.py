"""The pure parts of the comparison with TRL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks._peer_work import SAME_WORK, Course, group_of, load, lora_settings, run_file
from benchmarks._process_tree import TreeMeter, at, descendants, parent_and_seconds
from benchmarks._trl_side import JudgeReward, grpo_settings
from benchmarks.against_trl import rows
from cluster.config.run_file import RunFile
from solon.files.prompts import prompt_id
from solon.records import Feedback, Message, Prompt

NURSERY = Path(__file__).resolve().parents[3] / "examples" / "nursery.toml"


def work(*overrides: str) -> RunFile:
    return RunFile.load(NURSERY, overrides=[*SAME_WORK, *overrides])


def prompt(text: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(prompt_id=prompt_id(messages), messages=messages)


def test_trl_gets_the_batch_group_size_lengths_and_optimiser_of_the_run_file() -> None:
    run = work("learn.learning_rate=3e-4", "steps=7")
    found = grpo_settings(run, micro_batch=32, generation="transformers", bf16=False, out="x")
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 16 * 8
    assert (found["num_generations"], found["max_completion_length"], found["max_steps"]) == (8, 24, 7)
    assert (found["learning_rate"], found["adam_beta2"], found["weight_decay"]) == (3e-4, 0.95, 0.0)
    assert (found["beta"], found["num_iterations"], found["temperature"]) == (0.0, 1, 1.0)


def test_a_micro_batch_larger_than_the_batch_is_the_batch_and_one_that_does_not_divide_it_is_refused() -> None:
    found = grpo_settings(work(), micro_batch=1000, generation="vllm", bf16=True, out="x")
    assert (found["per_device_train_batch_size"], found["use_vllm"], found["bf16"]) == (128, True, True)
    with pytest.raises(ValueError, match="not divisible by micro batches of 100"):
        grpo_settings(work(), micro_batch=100, generation="transformers", bf16=False, out="x")


def test_both_sides_take_one_optimiser_step_a_batch_without_critic_or_reference() -> None:
    learn = work().learn
    assert (learn.objective_name, learn.steps_per_batch, learn.kl_coefficient) == ("group_relative", 1, 0.0)


def test_adapters_of_the_run_file_are_adapters_of_trl() -> None:
    assert lora_settings(work()) is None
    found = lora_settings(work("learn.lora.r=4"))
    assert found == {"r": 4, "lora_alpha": 32.0, "target_modules": "all-linear", "lora_dropout": 0.0}


def test_a_model_without_a_world_gets_a_run_file_in_which_it_judges_itself(tmp_path: Path) -> None:
    run = load(run_file(str(tmp_path / "model"), tmp_path), [])
    assert run.policy == run.judge == str(tmp_path / "model")
    assert run.evaluate.evaluator == ""


def test_the_judge_reads_the_groups_of_a_batch_in_order_and_a_missing_label_stays_missing() -> None:
    asked = []

    class Judge:
        async def label(self, group):
            asked.append(group)
            rewards = tuple(None if r.is_cut else float(len(r.text)) for r in group.rollouts)
            return None, Feedback(ordinal=group.ordinal, attempt=0, rewards_G=rewards, labels=())

    reward = JudgeReward.__new__(JudgeReward)
    reward._prompts, reward._worker, reward.ends = [prompt("a"), prompt("b")], Judge(), frozenset({2})
    reward._run = _in_a_loop
    answers = [[{"role": "assistant", "content": text}] for text in ("one", " four ", "x", "yy")]
    found = reward(
        prompts=[None] * 4, completions=answers, completion_ids=[[5, 2], [5, 2], [5], [2]], ordinal=[0, 0, 1, 1]
    )
    assert found == [3.0, 4.0, None, 2.0]
    assert [(group.ordinal, group.prompt.messages[0].content) for group in asked] == [(0, "a"), (1, "b")]


def _in_a_loop(work):
    import asyncio

    return asyncio.run(work)


def test_groups_of_another_program_have_its_texts_and_say_which_were_cut() -> None:
    group = group_of(3, prompt("a"), [" hello "], [True])
    assert (group.rollouts[0].text, group.rollouts[0].is_cut, group.conversation[0].content) == ("hello", True, "a")


def test_snapshots_count_neither_as_time_nor_as_processor_time_of_training(tmp_path: Path) -> None:
    course = Course(began_s=10.0, steps_s=[12.0, 15.0], paused_s=[(12.0, 13.0), (15.0, 16.0)])
    assert course.trained_s == 4.0
    assert course.cpu_s(lambda start, end: 2 * (end - start)) == 8.0
    course.write(tmp_path / "course.json")
    assert Course.read(tmp_path / "course.json") == course


def test_the_policy_after_some_seconds_is_the_last_that_was_saved_before() -> None:
    saved = {"step-1": "a", "step-2": "b", "final": "c"}
    course = Course(began_s=0.0, steps_s=[1.0, 2.0, 3.0], policies=saved)
    assert [course.policy_at(s) for s in (0.5, 1.5, 2.5, 3.0)] == ["", "a", "b", "c"]
    assert Course(began_s=0.0, steps_s=[9.0], policies={"snapshot": "s", "final": "f"}).policy_at(4.0) == "s"


def test_processes_of_a_tree_are_found_by_their_parents() -> None:
    assert descendants({2: 1, 3: 2, 5: 4}, 1) == {1, 2, 3}
    assert parent_and_seconds("7 (a ) b) S 3 " + "0 " * 9 + "150 50 0")[0] == 3
    assert at([(0.0, 1.0), (2.0, 3.0)], 9.0) == 3.0


def test_a_meter_counts_the_processor_time_and_memory_of_children() -> None:
    burn = "import time; end = time.time() + 1.5\nwhile time.time() < end: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    start_s = time.time()
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    with TreeMeter(process.pid) as meter:
        process.wait()
    assert meter.cpu_s(start_s, time.time()) > 0.3
    assert meter.peak_bytes(start_s, time.time()) > 2**20
    assert sum(meter.by_process(start_s, time.time()).values()) > 0.2


def test_rows_are_medians_over_rounds_and_say_which_goals_are_met() -> None:
    def side(rate: float, adherence: float) -> dict[str, float]:
        figures = {"rollouts_per_s": rate, "step_s": 1.0, "cpu_s_per_rollout": 0.01, "peak_mib": 1.0, "startup_s": 1.0}
        return figures | {"adherence_final": adherence, "adherence_equal_time": adherence}

    rounds = [{"solon": side(rate, 0.9), "trl": side(100.0, 0.8)} for rate in (100.0, 300.0, 400.0)]
    found = {row.metric: row for row in rows(rounds, title="t", goal=">= 3")}
    assert found["t: trained rollouts/s, ratio"].ours == 3.0
    speed = found["t: trained rollouts/s (reference: TRL)"]
    assert (speed.ours, speed.reference) == (300.0, 100.0)
    assert found["t: held-out adherence after equal steps, mean"].ours == pytest.approx(0.9)
    assert all(row.met in (True, None) for row in found.values())
    assert "t: held-out adherence after equal steps, mean" not in {
        row.metric for row in rows(rounds, title="t", seconds=60.0)
    }
