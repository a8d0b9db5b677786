"""Ranks write what one process writes, and an error of one of them ends the writing on all at once."""

from __future__ import annotations

import gc
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.config import LoraConfig, NetworkConfig
from learners.core.leading import alone_led
from learners.core.policy import Policy
from learners.core.processes import run_on_ranks
from learners.core.publish import Publisher
from learners.core.ranks import ALONE, RankFailedError, Ranks
from learners.distilling import Distilling, teach_student
from learners.networks.student import Student, label_logprobs
from learners.objectives.distil import DistilConfig, Lesson
from learners.objectives.reward_model import RewardModelConfig
from learners.rewarding import Ensemble, Heldout, teach_and_save
from solon.engines.tokens import load_tokenizer
from solon.errors import RunFailedError
from solon.feedback.questions import Question
from solon.runs.directory import DiskFullError
from tests.unit.learner_builders import random_groups, write_llama
from tests.unit.learners.test_reward_model import PAD, good_pairs

AT_ONCE_S = 30.0
"""Far below the deadline of the ranks."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("llama"), tied=False, num_key_value_heads=4)


def export(ranks: Ranks, model: str, folder: str, options: dict[str, Any]) -> int:
    """Save a policy in small files; the most bytes of whole tensors at once, of the first rank."""
    import learners.core.policy as module
    from tests.unit.engines.test_model_writer import Held

    held, gather = Held(), module.full
    module.full = lambda tensor: held.made(gather(tensor))
    try:
        config = NetworkConfig(**options)
        torch.manual_seed(0)
        policy = Policy(config, model=model, temperature=1.0, ranks=ranks)
        policy.divide()
        publisher = Publisher(policy, model=model, dtype="bfloat16", shard_bytes=20_000)
        files = replace(publisher.files(), evidence=None)
        gc.collect()
        before = held.most = held.now
        publisher.write(files, Path(folder))
    finally:
        module.full = gather
    return held.most - before


@pytest.mark.parametrize(
    "options", [{}, {"lora": LoraConfig(r=4)}, {"grid": "w4a16-g32"}], ids=["whole", "lora", "grid"]
)
def test_ranks_export_the_files_of_one_process_and_hold_a_tensor_at_a_time(
    llama: str, tmp_path: Path, options: dict[str, Any]
):
    export(ALONE, llama, str(tmp_path / "alone"), options)
    most, _ = run_on_ranks(2, export, llama, str(tmp_path / "ranks"), options, timeout_s=120)
    alone, ranks = (
        {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
        for folder in (tmp_path / "alone", tmp_path / "ranks")
    )
    assert alone == ranks
    assert sum(name.startswith("model-0") for name in alone) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ranks")
    assert most <= 2 * max(parameter.numel() * 4 for parameter in loaded.parameters())
    assert len(load_tokenizer(str(tmp_path / "ranks"))) == 32
    Policy(NetworkConfig(), model=str(tmp_path / "ranks"), temperature=1.0)


def failing(ranks: Ranks, model: str, where: str) -> tuple[str, str, float]:
    """What a rank raises when the first one fails between two tensors, and after how many seconds."""
    policy = Policy(NetworkConfig(), model=model, temperature=1.0, ranks=ranks)
    policy.divide()
    began = time.monotonic()
    try:
        if where == "whole":
            with policy.whole() as whole:
                if whole is not None:
                    next(iter(whole.merged.values()))
                    raise KeyError("a tensor of another model")
        else:
            with alone_led(ranks) as leading:
                if leading:
                    raise KeyError("a tensor of another model")
    except (KeyError, RankFailedError) as error:
        return type(error).__name__, str(error), time.monotonic() - began
    return "", "", time.monotonic() - began


@pytest.mark.parametrize("where", ["whole", "beside"])
def test_an_error_of_the_first_rank_reaches_the_others_at_once(llama: str, where: str):
    (first, _, _), (other, said, seconds) = run_on_ranks(2, failing, llama, where, timeout_s=300)
    assert (first, other) == ("KeyError", "RankFailedError")
    assert said == "rank 0 of 2 failed: KeyError: 'a tensor of another model'"
    assert seconds < AT_ONCE_S


def save_without_room(ranks: Ranks, model: str, folder: str, rank: int, room: int) -> tuple[str, str, str, float, bool]:
    """A checkpoint on ranks of which one may write only small files, then again with room."""
    config = LearnConfig(advantages="group", kl_coefficient=0.0)
    learner = build_learner(config, model=model, temperature=1.0, seed=0, ranks=ranks)
    learner.train(0, random_groups(4, 3))
    learner.stage()
    place, before = Path(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    began, found = time.monotonic(), ("", "", "")
    if ranks.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        learner.write(place)
    except RunFailedError as error:
        found = type(error).__name__, str(error), getattr(error, "who", "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    seconds, left = time.monotonic() - began, (place / "policy").exists()
    ranks.total([0.0])
    learner.write(place)
    return *found, seconds, left


def test_a_full_disk_on_a_part_of_a_checkpoint_names_the_rank_on_all(llama: str, tmp_path: Path):
    found = run_on_ranks(2, save_without_room, llama, str(tmp_path / "saved"), 1, 2_000, timeout_s=300)
    for kind, said, who, seconds, _ in found:
        assert (kind, who) == ("DiskFullError", "rank 1 of 2")
        assert said.startswith("the part of rank 1 of 2 of the learner's state does not fit into")
        assert seconds < AT_ONCE_S
    assert (tmp_path / "saved" / "policy" / "model.safetensors").exists()


def test_a_full_disk_under_the_policy_ends_it_on_all_and_it_may_be_written_again(llama: str, tmp_path: Path):
    (first, second) = run_on_ranks(2, save_only_policy, llama, str(tmp_path / "policy"), 16_000, timeout_s=300)
    assert first[0] == "DiskFullError"
    assert second[0] == "RankFailedError"
    assert "rank 0 of 2 failed: DiskFullError: the disk of" in second[1]
    assert max(first[2], second[2]) < AT_ONCE_S
    assert [one.name for one in tmp_path.iterdir()] == ["policy"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


def save_only_policy(ranks: Ranks, model: str, folder: str, room: int) -> tuple[str, str, float]:
    """A policy where the first rank may write only small files, then again with room."""
    policy = Policy(NetworkConfig(), model=model, temperature=1.0, ranks=ranks)
    policy.divide()
    publisher = Publisher(policy, model=model, dtype="float32")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    began, found = time.monotonic(), ("", "")
    if ranks.is_first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        publisher.save(Path(folder))
    except RunFailedError as error:
        found = type(error).__name__, str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    seconds = time.monotonic() - began
    ranks.total([0.0])
    publisher.save(Path(folder))
    return *found, seconds


def same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert float((value - theirs[name]).norm()) <= 1e-5 * float(value.norm()), name


def test_a_reward_model_of_two_ranks_is_that_of_one_process(llama: str, tmp_path: Path):
    taught = good_pairs(24, 0)
    heldout = [Heldout(pair=pair, prompt=str(n // 4)) for n, pair in enumerate(good_pairs(24, 1))]
    config = RewardModelConfig(learning_rate=1e-3, head_learning_rate=1e-3, batch=8, max_tokens_per_microbatch=128)
    found = []
    for ranks in (1, 2):
        ensemble = Ensemble(members=2, pad_id=PAD, pessimism=0.5, num_ranks=ranks)
        found.append(teach_and_save(llama, taught, heldout, config, ensemble, save_to=tmp_path / str(ranks)))
    alone, together = found
    assert together.centre.shifts == pytest.approx(alone.centre.shifts, rel=1e-4, abs=1e-5)
    assert together.figures["heldout_accuracy"] == pytest.approx(alone.figures["heldout_accuracy"])
    assert [one.last_loss for one in together.reports] == pytest.approx([one.last_loss for one in alone.reports], 1e-5)
    for member in ("", "member-1"):
        same_weights(tmp_path / "1" / member, tmp_path / "2" / member)
        assert (tmp_path / "2" / member / "tokenizer.json").exists()


def test_a_student_of_two_ranks_is_that_of_one_process(llama: str, tmp_path: Path):
    lessons = [
        Lesson(question=Question((3 + n % 9, 5, 7 + n % 4), (30, 31)), margin=float(n % 9 - 4)) for n in range(40)
    ]
    config = DistilConfig(learning_rate=1e-3, batch=8, max_tokens_per_microbatch=32, epochs=1, hard_share=None)
    for ranks in (1, 2):
        report = teach_student(
            llama, lessons, config, Distilling(layers=(0,), num_ranks=ranks), save_to=tmp_path / str(ranks)
        )
        assert report.steps == 5
    same_weights(tmp_path / "1", tmp_path / "2")
    student = Student.load(tmp_path / "2")
    assert label_logprobs(student, [one.question for one in lessons]).shape == (40, 2)


def test_a_full_disk_under_a_reward_model_of_ranks_is_told_once(llama: str, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        with pytest.raises(DiskFullError, match="is full"):
            teach_and_save(
                llama, good_pairs(8, 0), [], RewardModelConfig(batch=8), Ensemble(members=1, pad_id=PAD, num_ranks=2),
                save_to=tmp_path / "model",
            )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*tmp_path.iterdir()]
