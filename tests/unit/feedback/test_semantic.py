"""The semantic cache: texts that must never count as the same, and the proof that it needs before it serves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks._near_duplicates import adversarial, harmless
from solon.engines.embedding import EncoderEmbed
from solon.errors import InputError
from solon.feedback.caches.semantic import SemanticConfig, SemanticJudge, clopper_pearson
from solon.feedback.caches.semantic_rule import is_verifiable, may_stand_for
from solon.feedback.interfaces import Item
from solon.records import Message
from solon.verdicts import Status, Verdict


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("it is safe", "it is not safe"),
        ("it is safe", "it is unsafe"),
        ("take 5 grams", "take 50 grams"),
        ("take five grams", "take six grams"),
        ("the dog bites the man", "the man bites the dog"),
        ("Anna paid Boris", "Boris paid Anna"),
        ("call Anna", "call Hana"),
        ("I can help with that", "I can't help with that"),
        ("use `rm -r x`", "use `rm -r y`"),
        ("first mix it , then heat it", "first heat it , then mix it"),
        ("all of them work", "some of them work"),
        ("it costs 5%", "it costs -5%"),
        ("yes", "yes yes yes yes"),
        ("", "hello"),
        ("it is good", "it is bad"),
        ("Anna left.", "Hana left."),
        (
            "the drug raises the pressure of the old and the weak",
            "the drug lowers the pressure of the old and the weak",
        ),
    ],
)
def test_texts_that_mean_different_things_do_not_stand_for_each_other(one: str, other: str):
    assert not may_stand_for(one, other)
    assert not may_stand_for(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the valve is open .", "The valve is open."),
        ("please look at the old garden today", "please look at the old  garden  today !"),
        ("a long answer about the big garden of my mother", "A really long answer about the big garden of my mother."),
    ],
)
def test_texts_that_differ_in_spaces_stops_or_courtesies_may(one: str, other: str):
    assert may_stand_for(one, other)
    assert may_stand_for(other, one)


def test_no_adversarial_near_duplicate_passes_the_rule():
    passed = [pair for pair in adversarial(4000) if may_stand_for(pair.one, pair.other)]
    assert passed == []


def test_most_harmless_ones_do():
    assert sum(may_stand_for(pair.one, pair.other) for pair in harmless(400)) > 300


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_rule_is_symmetric_and_reflexive(one: str, other: str):
    assert may_stand_for(one, one)
    assert may_stand_for(one, other) == may_stand_for(other, one)


def test_prompts_about_numbers_or_code_are_left_alone():
    assert is_verifiable("what is 2 + 2 ?")
    assert is_verifiable("fix this: `x = 1`")
    assert not is_verifiable("how do I say sorry ?")


# -- the cache -------------------------------------------------------------------------------------------------


@dataclass
class Counting:
    """Answers yes to everything, unless configured otherwise."""

    margins: dict[str, float | None] = field(default_factory=dict)
    always: float = 2.0
    asked: list[Item] = field(default_factory=list)
    name: str = "judge"

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        return [self._verdict(self.margins.get(i.answers[0], self.always)) for i in items]

    def _verdict(self, margin: float | None) -> Verdict:
        status = Status.OK if margin is not None else Status.TIMEOUT
        return Verdict(status=status, margin=margin, questions=1, prompt_tokens=9)


async def embed(texts: Sequence[str]) -> np.ndarray:
    """Bags of hashed words: near duplicates are near."""
    rows = np.zeros((len(texts), 4096), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().split():
            row[int.from_bytes(hashlib.sha256(word.encode()).digest()[:3], "big") % 4096] += 1
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def item(*answers: str, prompt: str = "how do I say sorry ?", question: str = "is it kind?") -> Item:
    return Item(
        task="pointwise" if len(answers) == 1 else "pairwise",
        conversation=(Message(role="user", content=prompt),),
        answers=answers,
        principle_id="kind",
        question=question,
    )


CONFIG = SemanticConfig(threshold=0.8, max_error=0.01, verify=0.05)
TEXT = "this is my long answer about it , my friend"
PROMPTS = tuple(f"how do I say {word}{other} ?" for word in "abcdef" for other in "klmnop")


def variant(number: int) -> str:
    """The same words with other stops; all at the same cosine from `TEXT`."""
    return f"{TEXT} {'!' * (number // 2)}{'?' * (number % 2)}."


async def trusted(judge: Counting, *, config: SemanticConfig = CONFIG, checks: int = 9) -> SemanticJudge:
    """A semantic judge with an entry under each of 36 prompts, which could have been served 324 times."""
    cache = SemanticJudge(judge, embed, config)
    for prompt in PROMPTS:
        await cache.judge([item(TEXT, prompt=prompt)])
        for number in range(checks + 1):
            await cache.judge([item(variant(number), prompt=prompt)])
    return cache


async def test_nothing_is_served_before_the_cache_is_trusted():
    judge = Counting()
    cache = SemanticJudge(judge, embed, CONFIG)
    for number in range(200):
        await cache.judge([item(variant(number))])
    assert (cache.counts.served, len(judge.asked)) == (0, 200)
    assert cache.counts.observed == 198  # not the entry itself, nor the first near duplicate, which made it stand
    assert not cache.is_trusted


async def test_asking_the_very_same_again_proves_nothing():
    cache = SemanticJudge(Counting(), embed, CONFIG)
    for _ in range(400):
        await cache.judge([item(TEXT)])
    assert cache.counts.observed == 0
    assert not cache.is_trusted


async def test_a_trusted_cache_serves_marks_and_shrinks_verdicts():
    judge = Counting()
    cache = await trusted(judge)
    assert cache.is_trusted
    asked, observed = len(judge.asked), cache.counts.observed
    verdicts = await cache.judge([item(variant(99), prompt=prompt) for prompt in PROMPTS])
    served = [verdict for verdict in verdicts if verdict.source == "semantic_cache"]
    assert len(served) >= 30
    assert len(judge.asked) - asked == len(verdicts) - len(served) == cache.counts.observed - observed
    # Nothing wrong in 299 checks: at most 1 - 0.05 ** (1 / 299) = 0.00997. p = 0.8808 shrinks to 0.8732; log-odds:
    assert observed == 299
    assert served[0].margin == pytest.approx(1.9296, abs=1e-4)
    assert all(verdict.questions == verdict.prompt_tokens == 0 for verdict in served)


async def test_a_fresh_entry_serves_nothing_however_trusted_the_cache_is():
    judge = Counting()
    cache = await trusted(judge, config=CONFIG.model_copy(update={"verify": 1e-9}))
    prompt = "how do I say no ?"
    sources = [(await cache.judge([item(text, prompt=prompt)]))[0].source for text in (TEXT, variant(1), variant(2))]
    assert sources == ["judge", "judge", "semantic_cache"]


async def test_a_wrong_entry_no_longer_serves_texts_at_that_distance():
    judge = Counting(margins={variant(1): -2.0})
    cache = await trusted(judge, config=CONFIG.model_copy(update={"verify": 1e-9}))
    judge.margins[variant(20)] = -2.0
    prompt = "how do I say no ?"
    texts = [TEXT, *(variant(number) for number in (20, 21, 22, 23, 24))]
    verdicts = [(await cache.judge([item(text, prompt=prompt)]))[0] for text in texts]
    assert [verdict.source for verdict in verdicts] == ["judge"] * 6


async def test_another_prompt_or_question_is_never_served():
    cache = await trusted(Counting())
    served = cache.counts.served
    await cache.judge([item(variant(99), prompt="how do I say no ?")])
    await cache.judge([item(variant(99), prompt=PROMPTS[0], question="is it brief?")])
    assert cache.counts.served == served


async def test_two_answers_that_are_near_duplicates_of_each_other_are_left_to_the_judge():
    cache = await trusted(Counting())
    for answers in ((TEXT, variant(1)), (variant(1), TEXT), (TEXT, variant(2)), (variant(2), TEXT)):
        assert (await cache.judge([item(*answers, prompt=PROMPTS[0])]))[0].source == "judge"


async def test_a_pair_in_the_other_order_is_another_pair():
    judge = Counting()
    cache = await trusted(judge, config=CONFIG.model_copy(update={"verify": 1e-9}))
    other, prompt = "that is something else which I would never tell you", PROMPTS[0]
    pairs = [(TEXT, other), (variant(1), other), (variant(2), other), (other, TEXT), (other, variant(1))]
    sources = [(await cache.judge([item(*pair, prompt=prompt)]))[0].source for pair in pairs]
    assert sources == ["judge", "judge", "semantic_cache", "judge", "judge"]


async def test_a_judge_that_failed_leaves_nothing_to_serve():
    judge = Counting(margins={TEXT: None})
    cache = SemanticJudge(judge, embed, CONFIG)
    for _ in range(2):
        assert (await cache.judge([item(TEXT)]))[0].status is Status.TIMEOUT
    await cache.judge([item(variant(1))])
    assert cache.counts.observed == 0


@pytest.mark.parametrize("not_its_own", [{"source": "proxy"}, {"propensity": 0.2}])
async def test_a_verdict_that_is_not_the_judges_own_is_not_repeated(not_its_own: dict[str, Any]):
    class Proxied(Counting):
        async def judge(self, items: Sequence[Item]) -> list[Verdict]:
            return [replace(verdict, **not_its_own) for verdict in await super().judge(items)]

    cache = SemanticJudge(Proxied(), embed, CONFIG)
    for number in range(9):
        await cache.judge([item(variant(number))])
    assert cache.counts.observed == 0


async def test_prompts_about_numbers_are_not_even_embedded():
    async def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError(texts)

    cache = SemanticJudge(Counting(), never, CONFIG)
    assert (await cache.judge([item("4", prompt="what is 2 + 2 ?")]))[0].margin == 2.0


async def test_wrong_hits_turn_the_cache_off(caplog: pytest.LogCaptureFixture):
    judge = Counting()
    cache = await trusted(judge)
    judge.always = -2.0
    for number in range(100, 120):
        await cache.judge([item(variant(number), prompt=prompt) for prompt in PROMPTS])
    assert not cache.is_trusted
    served = cache.counts.served
    await cache.judge([item(variant(200), prompt=prompt) for prompt in PROMPTS])
    assert cache.counts.served == served
    assert [r.getMessage() for r in caplog.records if "semantic cache is off" in r.getMessage()] != []


async def test_many_good_checks_long_ago_do_not_outweigh_a_few_bad_ones_now():
    judge = Counting()
    cache = await trusted(judge, config=CONFIG.model_copy(update={"verify": 1.0}), checks=60)
    assert (cache.counts.observed, cache.counts.wrong) == (2160, 0)
    judge.always = -2.0
    trusts = []
    for prompt in PROMPTS[:5]:
        await cache.judge([item(variant(200), prompt=prompt)])
        trusts.append(cache.is_trusted)
    assert trusts == [True, True, True, True, False]  # 5 wrong among the last 1000: an upper bound of 1.05 %


@pytest.mark.parametrize(("wrong", "checked", "fine"), [(0, 298, 0), (0, 299, 1), (1, 472, 0), (1, 473, 1), (0, 0, 0)])
def test_the_bound_is_exact(wrong: int, checked: int, fine: int):
    assert (clopper_pearson(wrong, checked) <= 0.01) is bool(fine)


# -- embeddings ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights, saved as any encoder is."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("encoder")
    words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "a", "kind", "and", "long", "answer", "not"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=24, **sizes))
    model.save_pretrained(path)
    return path


async def test_an_embedding_is_the_mean_of_the_last_states_whatever_else_is_in_the_batch(encoder: Path):
    import torch
    from transformers import AutoModel

    texts = ["a kind answer", "a kind and long answer not not not", "kind"]
    rows_ND = await EncoderEmbed(str(encoder))(texts)
    with torch.inference_mode():
        states_TD = AutoModel.from_pretrained(encoder).eval()(torch.tensor([[2, 3, 6]])).last_hidden_state[0]
    mean_D = states_TD.mean(0).numpy()
    assert rows_ND.shape == (3, 16)
    assert np.allclose(rows_ND[0], mean_D / np.linalg.norm(mean_D), atol=1e-5)
    assert np.allclose(np.linalg.norm(rows_ND, axis=1), 1, atol=1e-5)


async def test_an_encoder_serves_several_callers_and_leaves_the_threads_of_the_process_alone(encoder: Path):
    import torch

    threads = torch.get_num_threads()
    embed = EncoderEmbed(str(encoder))
    texts = [["a kind answer"] * n + ["and " * 99] for n in range(1, 13)]
    rows = await asyncio.gather(*(embed(some) for some in texts))
    assert all(np.allclose(some[0], rows[0][0], atol=1e-5) for some in rows)
    assert torch.get_num_threads() == threads


def test_a_model_that_is_no_encoder_is_refused(encoder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"absent.*expected a Hugging Face encoder"):
        EncoderEmbed(str(tmp_path / "absent"))
    for file in encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(InputError, match="expected a Hugging Face encoder"):
        EncoderEmbed(str(tmp_path))
