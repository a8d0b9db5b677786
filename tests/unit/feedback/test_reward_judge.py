"""A reward model as a judge: its number at the last token is the margin, on every backend, whatever the padding."""

from __future__ import annotations

import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.preflight.checks import check_judge
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.scoring import build_scoring_engine
from solon.engines.turns import encode_turn
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import host_judge
from solon.feedback.judges.identity import weights_digest
from solon.feedback.judges.reward_judge import CENTRE, Centre, RewardJudge, require_backend
from solon.records import Message
from solon.verdicts import Status, Verdict
from tests.unit.feedback.test_program_judge import constitution, item
from tests.unit.learner_builders import VOCABULARY, write_tokenizer

LONGEST = 24


def write_reward_model(directory: Path, *, labels: int = 1, seed: int = 0, **centre: Any) -> str:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, num_labels=labels, pad_token_id=1, eos_token_id=1,
        bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory)
    write_tokenizer(directory)
    if centre:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {CENTRE: centre}))
    return str(directory)


def engine(model: str, **more: Any) -> EngineConfig:
    return EngineConfig(model=model, backend="transformers", max_model_len=LONGEST, **more)


def judged(model: str, *items: Any, principles: tuple[str, ...] = ("a", "b"), **feedback: Any) -> list[Verdict]:
    async def run() -> list[Verdict]:
        judge = host_judge(engine(model), FeedbackConfig(**feedback), constitution(*principles), name="judge")
        assert isinstance(judge, RewardJudge)
        try:
            await judge.start()
            return await judge.judge(items)
        finally:
            await judge.close()

    return asyncio.run(run())


@torch.no_grad()
def by_hand(model: str, answer: str) -> float:
    """One sequence at a time, the hidden state of the last token read by hand."""
    from transformers import AutoModelForSequenceClassification

    from solon.engines.tokens import ChatTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    prompt, ids = encode_turn(ChatTokenizer.load(model), item("a", "x").conversation, answer)
    hidden = network.model(input_ids=torch.tensor([[*prompt, *ids]]))[0]
    return float(network.score(hidden[0, -1]))


def test_the_margin_of_an_answer_is_the_head_at_its_last_token_also_where_padding_ends_turns(tmp_path: Path):
    model = write_reward_model(tmp_path)
    answers = ["w5 w6", "w7", "w9 w9 w9 w9 w9 w9"]
    found = judged(model, *(item("a", answer) for answer in answers))
    assert [one.status for one in found] == [Status.OK] * 3
    assert [one.margin for one in found] == pytest.approx([by_hand(model, one) for one in answers], abs=1e-4)


def test_two_answers_are_compared_by_the_difference_in_either_order(tmp_path: Path):
    model = write_reward_model(tmp_path, shifts=[5.0], scale=2.0)
    one, other = judged(model, item("a", "w5", "w7"), item("a", "w7", "w5"), task="pairwise")
    expected = 2 * (by_hand(model, "w5") - by_hand(model, "w7"))
    assert (one.margin, other.margin) == pytest.approx((expected, -expected), abs=1e-4)


def test_shift_and_scale_move_a_single_answer(tmp_path: Path):
    model = write_reward_model(tmp_path, shifts=[1.5], scale=3.0)
    (found,) = judged(model, item("a", "w5 w6"))
    assert found.raw_margin == pytest.approx(by_hand(model, "w5 w6") - 1.5, abs=1e-4)
    assert found.margin == pytest.approx(3 * (by_hand(model, "w5 w6") - 1.5), abs=1e-4)


def test_an_ensemble_judges_by_its_mean_less_the_disagreement(tmp_path: Path):
    shifts = [0.3, -0.2, 0.1]
    model = write_reward_model(tmp_path, shifts=shifts, pessimism=0.5)
    others = [write_reward_model(tmp_path / f"member-{n}", seed=n) for n in (1, 2)]
    centred = [by_hand(one, "w5 w6") - shift for one, shift in zip((model, *others), shifts, strict=True)]
    (found,) = judged(model, item("a", "w5 w6"))
    assert found.margin == pytest.approx(statistics.fmean(centred) - 0.5 * statistics.stdev(centred), abs=1e-4)
    with pytest.raises(InputError, match="several models share a process"):
        require_backend(Centre(shifts=(0.0, 0.0)), "vllm", model)
    before = weights_digest(tmp_path)
    write_reward_model(tmp_path / "member-1", seed=9)
    assert weights_digest(tmp_path) != before


def test_principles_and_concurrent_callers_share_forward_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from solon.engines.scoring_transformers import TransformersScoring

    sizes, whole = [], TransformersScoring.score

    def counted(self: Any, sequences: Any) -> list[float]:
        sizes.append(len(sequences))
        return whole(self, sequences)

    monkeypatch.setattr(TransformersScoring, "score", counted)
    model = write_reward_model(tmp_path)

    async def run() -> list[list[Verdict]]:
        judge = host_judge(engine(model), FeedbackConfig(), constitution("a", "b"), name="judge")
        await judge.start()
        try:
            calls = [judge.judge([item(p, f"w{n}") for p in ("a", "b")]) for n in range(5, 10)]
            return await asyncio.gather(*calls)
        finally:
            await judge.close()

    found = asyncio.run(run())
    assert sum(sizes) == 5
    assert len(sizes) <= 2
    assert all(first.margin == second.margin for first, second in found)
    assert len({first.margin for first, _ in found}) == 5


def test_a_conversation_that_does_not_fit_has_no_reward_and_the_others_keep_theirs(tmp_path: Path):
    model = write_reward_model(tmp_path)
    long, short = judged(model, item("a", " ".join(["w5"] * LONGEST)), item("a", "w5"))
    assert (long.status, long.margin) == (Status.TRUNCATED, None)
    assert short.margin == pytest.approx(by_hand(model, "w5"), abs=1e-4)


def test_an_engine_that_fails_fails_the_callers_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from solon.engines.scoring_transformers import TransformersScoring
    from solon.errors import EngineFailedError

    def fails(*_: Any) -> list[float]:
        raise EngineFailedError("out of memory")

    monkeypatch.setattr(TransformersScoring, "score", fails)
    with pytest.raises(EngineFailedError):
        judged(write_reward_model(tmp_path), item("a", "w5"))


@pytest.mark.parametrize(
    ("make", "feedback", "message"),
    [
        ({}, {"task": "predicate"}, "has one number for a whole answer"),
        ({}, {"calibration": "book.json"}, "its scale is in its config.json"),
        ({"labels": 3}, {}, "has 3 labels, expected one"),
        ({"shifts": ["much"]}, {}, "expected a list of finite shifts"),
        ({"scale": 0}, {}, "expected a list of finite shifts"),
        ({"pessimism": 1.0}, {}, "expected a list of finite shifts"),
        ({"surprise": 1}, {}, "expected a list of finite shifts"),
        ({"shifts": 3}, {}, "expected a list of finite shifts"),
    ],
)
def test_what_cannot_judge_is_refused_when_it_starts(
    tmp_path: Path, make: dict[str, Any], feedback: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        judged(write_reward_model(tmp_path, **make), item("a", "w5"), **feedback)


def test_a_head_that_is_missing_is_refused_before_and_when_it_is_loaded(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    model = write_reward_model(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != "score.weight"}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"holds no score\.weight, its head: it would be random"):
        check_judge(model, "compact")
    with pytest.raises(InputError, match=r"lacks score\.weight, expected all weights"):
        build_scoring_engine(engine(model), name="judge")
    save_file(tensors | {"score.weight": torch.zeros(1, 16)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"a head of shape \(1, 16\), expected \(1, 32\)"):
        check_judge(model, "compact")


def test_a_reward_model_passes_the_checks_of_a_judge_and_writes_no_text(tmp_path: Path):
    model = write_reward_model(tmp_path)
    check_judge(model, "assistant", options=engine(model), feedback=FeedbackConfig(), constitution=constitution("a"))
    with pytest.raises(InputError, match="expected pointwise or pairwise"):
        check_judge(model, "compact", options=engine(model), feedback=FeedbackConfig(task="score"))
    with pytest.raises(InputError, match=r"is a reward model .*, expected a language model"):
        build_engine(engine(model), name="policy")
    with pytest.raises(InputError, match="its head would be quantised too"):
        build_scoring_engine(engine(model, quantization="bnb_int8"), name="judge")


def test_a_system_turn_is_part_of_what_is_scored(tmp_path: Path):
    from dataclasses import replace

    model, plain = write_reward_model(tmp_path), item("a", "w5")
    told = replace(plain, conversation=(Message(role="system", content="w20"), *plain.conversation))
    one, other = judged(model, plain, told)
    assert one.margin != other.margin
