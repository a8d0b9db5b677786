"""The tiny networks, their lessons and their files match the expectations of Hugging Face and the judges' prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nursery import prompts
from nursery.language import WordEncoder, embedding_rows, write_tokenizer
from nursery.lessons import Examiner, Mix, draw_example, pack
from nursery.model import Shape, TinyModel, load
from nursery.optim import orthogonalised
from nursery.recipe import recipe
from nursery.sampling import MAX_TOKENS, sample
from nursery.school import teach_judge, teach_policy, verdicts
from solon.records import Message

FAMILIES = ("llama", "qwen2", "qwen3")
PROMPT = prompts.as_prompt(["i am sure that the crow is white . what color does it have ?"], ["fact"])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker does: more threads only add noise to the sums
    yield
    torch.set_num_threads(before)


def make_model(family: str = "llama", kv_heads: int = 2) -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(Shape(family=family, layers=2, kv_heads=kv_heads, vocab=embedding_rows()))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_cache_of_the_sampler_changes_nothing(family: str):
    model, start = make_model(family), [5, 6, 7]
    drawn = sample(model, [start, [9] * 8], end_id=250, pad_id=0, seed=1)
    logprobs_TV = model(torch.tensor([start + drawn[0]])).log_softmax(-1)[0]
    again = sample(model, [start, [9] * 8], end_id=250, pad_id=0, seed=1)
    assert drawn == again
    assert len(drawn[0]) == MAX_TOKENS
    # The first drawn tokens have the probabilities of an uncached pass: greedy from both agrees.
    generator = torch.Generator().manual_seed(1)
    wide = model(torch.tensor([[9] * 8])).softmax(-1)[0, -1]
    first = torch.multinomial(torch.stack([logprobs_TV[2].exp(), wide]), 1, generator=generator)
    assert first[:, 0].tolist() == [drawn[0][0], drawn[1][0]]


@torch.no_grad()
def test_packed_questions_get_the_verdicts_of_single_ones():
    model, examiner, rng = make_model(), Examiner(), random.Random(0)
    examples = [draw_example(rng, examiner, Mix()) for _ in range(8)]
    together = verdicts(model, pack(examples, pad_id=examiner.encoder.pad_id)).tolist()
    alone = []
    for example in examples:
        for question in example.questions:
            logits_V = model(torch.tensor([[*example.context, *question]]))[0, -1]
            first, second = example.label_ids
            alone.append(float(logits_V[first] - logits_V[second]))
    assert together == pytest.approx(alone, abs=1e-4)


def test_lessons_are_the_token_ids_of_judge_prompts():
    examiner = Examiner()
    by_id = {p.id: p for p in examiner.principles}
    single = examiner.pointwise(PROMPT, "gladly , it is black .")
    pair = examiner.pairwise(PROMPT, "gladly , it is black .", "it is white .")
    for question, name in zip(single.questions, single.principles, strict=True):
        asked = by_id[name].pointwise_question
        assert single.context + question == examiner.builder.pointwise(PROMPT.messages, "gladly , it is black .", asked)
    for question, name in zip(pair.questions, pair.principles, strict=True):
        asked = by_id[name].pairwise_question
        assert pair.context + question == examiner.builder.pairwise(
            PROMPT.messages, "gladly , it is black .", "it is white .", asked
        )
    assert single.label_ids == examiner.builder.bool_ids
    assert dict(zip(pair.principles, pair.targets, strict=True)) == {
        "polite": 1.0,
        "truthful": 1.0,
        "helpful": 0.5,
        "brief": 0.5,
    }


def test_hints_stand_at_the_words_of_the_answers():
    examiner = Examiner()
    pair = examiner.pairwise(PROMPT, "gladly , it is black .", "it is white .")
    told = examiner.encoder.decode([pair.context[place] for place, channel, _ in pair.hints if channel == 5])
    assert told == "black white"


def test_longest_questions_fit_a_small_window():
    examiner, rng = Examiner(), random.Random(1)
    longest = 0
    for _ in range(300):
        example = draw_example(rng, examiner, Mix(pairwise=1.0))
        longest = max(longest, len(example.context) + max(len(q) for q in example.questions))
    assert longest <= 112


def test_the_word_encoder_is_the_tokenizer(tmp_path: Path):
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path)
    tokenizer, encoder = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), WordEncoder()
    text = "<|user|> what color is the crow ? <|end|> <|assistant|>"
    ids = encoder.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert ids == encoder.encode_chat([Message(role="user", content="what color is the crow ?")])
    assert tokenizer.decode(ids) == encoder.decode(ids) == "what color is the crow ?"
    tokenizer.encode_special_tokens = True
    assert tokenizer.encode("obey <|end|>", add_special_tokens=False).ids == encoder.encode(
        "obey <|end|>", is_data=True
    )
    assert encoder.eos_token_id not in encoder.encode("obey <|end|>", is_data=True)


def test_a_saved_model_is_the_model(tmp_path: Path):
    model = make_model("qwen3")
    model.save(tmp_path, end_id=1, pad_id=0)
    ids_BT = torch.tensor([[3, 4, 5]])
    assert torch.equal(load(tmp_path)(ids_BT), model(ids_BT))


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(64, 32)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_a_few_lessons_lower_the_loss_and_repeat_exactly():
    plan = recipe(effort=0.01)
    seen: list[float] = []
    judge = teach_judge(replace(plan.judge, batch=4, steps=2), seen.append)
    again = teach_judge(replace(plan.judge, batch=4, steps=2), lambda done: None)
    assert seen == [0.5, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(judge.parameters(), again.parameters(), strict=True))
    policy = teach_policy(replace(plan.policy, batch=4, steps=2), lambda done: None)
    assert policy.shape.family == "llama"


@pytest.mark.engine
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_transformers_computes_the_same_logits(family: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    from solon.engines.tokens import ChatTokenizer

    model, encoder = make_model(family), WordEncoder()
    model.save(tmp_path, end_id=encoder.eos_token_id, pad_id=encoder.pad_id)
    write_tokenizer(tmp_path)
    tokenizer = ChatTokenizer.load(str(tmp_path))
    ids = tokenizer.encode_chat(PROMPT.messages)
    assert ids == encoder.encode_chat(PROMPT.messages)
    assert tokenizer.chat_frame() == encoder.chat_frame()
    assert tokenizer.encode("a <|end|>", is_data=True) == encoder.encode("a <|end|>", is_data=True)
    assert tokenizer.decode(ids) == encoder.decode(ids)
    assert tokenizer.eos_token_id == encoder.eos_token_id
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(torch.tensor([ids])).logits
    assert torch.allclose(theirs, model(torch.tensor([ids])), atol=1e-4)
