"""Promises that hold for every input, looked for over random ones: staleness, cache keys, constitutions, verdicts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import time
from collections import Counter
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.constitution.constitution import Constitution, Principle
from solon.feedback.config import FeedbackConfig
from solon.feedback.endpoint.config import EndpointConfig
from solon.feedback.endpoint.reply import read_reply
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.judges.verdicts import read_bool, read_pair, read_score
from solon.feedback.questions import Question, question_digest
from solon.ledger.staleness import choose
from tests.unit.fuzzing import spoil_json, spoil_yaml, spoilt
from tests.unit.house.test_fuzz_files import CONSTITUTION, assert_is_for_people, outcome

# --- staleness: the gate against every schedule there is ------------------------------------------------------


def can_all_be_trained(deadlines: list[int], *, first: int, batch: int) -> bool:
    """Whether some order of training meets every deadline; tried one after the other, from step `first` on."""
    if not deadlines:
        return True
    if any(deadline < first for deadline in deadlines):
        return False
    for chosen in itertools.combinations(range(len(deadlines)), min(batch, len(deadlines))):
        left = [deadline for index, deadline in enumerate(deadlines) if index not in chosen]
        if can_all_be_trained(left, first=first + 1, batch=batch):
            return True
    return False


@settings(max_examples=80, deadline=None)
@given(
    ready=st.lists(st.integers(3, 7), max_size=5),
    unfinished=st.lists(st.integers(2, 7), max_size=4),
    batch=st.integers(1, 3),
)
def test_a_batch_is_taken_exactly_when_some_batch_leaves_all_others_trainable(
    ready: list[int], unfinished: list[int], batch: int
):
    step = 3
    pairs = sorted((deadline, ordinal) for ordinal, deadline in enumerate(ready))
    taken = choose(pairs, Counter(unfinished), step=step, batch_groups=batch)
    possible = [
        combination
        for combination in itertools.combinations(range(len(ready)), batch)
        if can_all_be_trained(
            [d for i, d in enumerate(ready) if i not in combination] + unfinished, first=step + 1, batch=batch
        )
    ]
    assert (taken is not None) == bool(possible)
    if taken is not None:
        assert tuple(sorted(taken)) in possible
        assert all(ready[ordinal] >= step for ordinal in taken)


# --- cache keys ------------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple)
ODD = st.text(st.sampled_from('|\\",[]:a1= critique'), max_size=6)
QUESTIONS = st.builds(Question, IDS, IDS) | st.builds(
    lambda text, labels: Question((), (), text=text, labels=labels),
    ODD.filter(bool),
    st.lists(ODD, max_size=3).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(QUESTIONS, QUESTIONS)
def test_two_questions_have_one_key_only_when_they_are_one_question(one: Question, other: Question):
    assert (question_digest(one) == question_digest(other)) == (one == other)


def test_no_two_of_many_small_questions_share_a_key():
    ids = [tuple(ids) for size in range(4) for ids in itertools.product((0, 1, 2), repeat=size)]
    questions = [Question(prompt, labels) for prompt in ids for labels in ids]
    assert len({question_digest(question) for question in questions}) == len(questions)


FIELDS = ("weights_digest", "quantization", "engine", "engine_version", "dtype", "tokenizer_digest")
IDENTITIES = st.builds(
    lambda texts, critique: JudgeIdentity(
        judge_id="j",
        model="m",
        template_id="t",
        constitution_id="c",
        constitution_hash="h",
        critique_tokens=critique,
        **dict(zip(FIELDS, texts, strict=True)),
    ),
    st.tuples(*(st.text(st.sampled_from("|\\a"), max_size=2) for _ in FIELDS)),
    st.integers(0, 2),
)


@settings(max_examples=100, deadline=None)
@given(IDENTITIES, IDENTITIES)
def test_two_judges_share_verdicts_only_when_all_that_decides_them_is_the_same(
    one: JudgeIdentity, other: JudgeIdentity
):
    assert (one.digest == other.digest) == (one == other)


def test_a_separator_within_a_field_moves_no_text_from_one_field_to_the_next():
    whole = JudgeIdentity(
        judge_id="j",
        model="m",
        weights_digest="w",
        quantization="q|vllm",
        engine="vllm",
        engine_version="1",
        dtype="bf16",
        tokenizer_digest="t",
        template_id="a",
        constitution_id="c",
        constitution_hash="h",
    )
    moved = dataclasses.replace(whole, quantization="q", engine="vllm|vllm")
    assert whole.digest != moved.digest
    assert whole.calibrated_for != moved.calibrated_for
    forged = dataclasses.replace(whole, tokenizer_digest="t|critique=5")
    assert forged.digest != dataclasses.replace(whole, critique_tokens=5).digest


def test_keys_are_the_same_in_every_version():
    # A changed key costs every user all cached verdicts and calibrations.
    identity = JudgeIdentity(
        judge_id="j",
        model="m",
        weights_digest="w",
        quantization="none",
        engine="vllm",
        engine_version="0.31.0",
        dtype="bfloat16",
        tokenizer_digest="t",
        template_id="compact/1",
        constitution_id="c",
        constitution_hash="h",
    )
    assert identity.digest[:16] == "b27f4fdc37f55a79"
    assert identity.calibrated_for == "ff8188fddb9173be"
    assert question_digest(Question((1, 2, 3), (7, 8)))[:16] == "634178da693f358b"
    assert question_digest(Question((), (), text="Better?", labels=("A", "B")))[:16] == "27f42f7bbbe5fede"


ENDPOINTS = st.fixed_dictionaries(
    {
        "base_url": st.sampled_from(["https://a.example/v1", "https://b.example/v1"]),
        "model": st.sampled_from(["a", "b", 'a", "chat']),
        "api": st.sampled_from(["chat", "completions"]),
        "read": st.sampled_from(["logprobs", "text"]),
        "seed": st.sampled_from([None, 0, 1]),
        "extra": st.sampled_from([{}, {"a": 1}, {"a": "1"}, {"a": {"b": None}}]),
        "top_logprobs": st.sampled_from([5, 20]),
    }
)


@settings(max_examples=80, deadline=None)
@given(ENDPOINTS, ENDPOINTS)
def test_two_endpoints_share_verdicts_only_when_they_are_asked_the_same_way(one: dict[str, Any], other: dict[str, Any]):
    assert (EndpointConfig(**one).digest == EndpointConfig(**other).digest) == (one == other)


# --- constitutions -----------------------------------------------------------------------------------------------

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4)
)
KEYS = st.sampled_from([*Principle.model_fields, *Constitution.model_fields, "schema", "any", "tags_any", "id"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.integers() | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
WHOLE = yaml.safe_load(CONSTITUTION)


def load(text: str) -> None:
    """Loads, or refuses in one short line, at once."""
    started = time.process_time()
    message = outcome(lambda: Constitution.parse(text))
    assert time.process_time() - started < 2
    if message is not None:
        assert_is_for_people(message)
        return
    constitution = Constitution.parse(text)
    written = yaml.safe_dump(constitution.model_dump(mode="json", by_alias=True))
    assert Constitution.parse(written).hash == constitution.hash


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.dictionaries(KEYS, VALUES, max_size=3), st.booleans())
def test_any_yaml_is_a_constitution_or_is_refused_in_one_line(top: Any, principle: Any, is_list: bool):
    principles = [{**WHOLE["principles"][0], **principle}, WHOLE["principles"][1]]
    content = {**WHOLE, "principles": principles, **top}
    load(yaml.safe_dump([content] if is_list else content))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_any_spoilt_constitution_loads_or_is_refused_in_one_line(seed: int):
    load(spoilt(random.Random(seed), CONSTITUTION.encode(), spoil_yaml).decode("utf-8", "replace"))


# --- verdicts ------------------------------------------------------------------------------------------------------

ASKED = Question((), (), text="Which is better?", labels=("A", "B"))
ANY_FLOAT = st.floats() | st.floats(-30, 0.0) | st.sampled_from([0.0, -0.0, 0.01, -1e6, 1e308, -1e308, 5e-324])
TOKENS = st.sampled_from(["A", " A", "▁A", "B", "a", "ĠB", "", "token_id:5", "\x1b[2J", "\ud800"]) | st.text(max_size=4)


def reply(shown: list[tuple[str, float]], *, chat: bool, finish: str, text: str) -> bytes:
    if chat:
        entries = [{"token": token, "logprob": logprob} for token, logprob in shown]
        choice: dict[str, Any] = {
            "message": {"content": text},
            "logprobs": {"content": [{"token": text, "logprob": 0.0, "top_logprobs": entries}]},
        }
        if shown:
            choice["logprobs"]["content"][0] |= {"logprob": None}
    else:
        choice = {"text": text, "logprobs": {"top_logprobs": [dict(shown)]}}
    return json.dumps({"choices": [{**choice, "finish_reason": finish}], "usage": {"prompt_tokens": 3}}).encode()


REPLIES = st.builds(
    reply,
    st.lists(st.tuples(TOKENS, ANY_FLOAT), max_size=5),
    chat=st.booleans(),
    finish=st.sampled_from(["stop", "length", "content_filter", ""]),
    text=st.sampled_from(["A", " B.", "A or B", "yes", ""]) | st.text(max_size=12),
)


def assert_is_a_verdict(body: bytes, how: Any, config: FeedbackConfig) -> None:
    reading = read_reply(body, ASKED, how=how, text_margin=1.0)
    assert (reading.failure is None) == bool(reading.logprobs)
    assert reading.detail.isprintable()
    assert reading.top.isprintable()
    if reading.failure is not None:
        assert not reading.failure.valid
        return
    for verdict in (read_bool(reading.logprobs, config), read_pair(reading.logprobs, reading.logprobs[::-1], config)):
        assert verdict.status.valid == (verdict.margin is not None)
        assert verdict.margin is None or math.isfinite(verdict.margin)
        assert 0 <= verdict.mass <= 1


@settings(max_examples=80, deadline=None)
@given(REPLIES, st.sampled_from(["logprobs", "text"]), st.floats(1e-6, 1))
def test_any_row_of_log_probs_and_any_text_is_a_typed_verdict(body: bytes, how: str, min_mass: float):
    assert_is_a_verdict(body, how, FeedbackConfig(min_mass=min_mass))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["logprobs", "text"]))
def test_any_spoilt_reply_is_a_typed_verdict(seed: int, how: str):
    valid = reply([("A", -0.2), (" B", -1.9)], chat=seed % 2 == 0, finish="stop", text="A")
    assert_is_a_verdict(spoilt(random.Random(seed), valid, spoil_json), how, FeedbackConfig())


@settings(max_examples=80, deadline=None)
@given(st.lists(ANY_FLOAT, min_size=2, max_size=9), st.floats(1e-6, 1), st.floats(1e-3, 1e3))
def test_any_marks_are_a_typed_verdict(marks: list[float], min_mass: float, temperature: float):
    verdict = read_score(marks, FeedbackConfig(min_mass=min_mass, temperature=temperature))
    assert verdict.status.valid == (verdict.margin is not None)
    assert verdict.margin is None or math.isfinite(verdict.margin)


@pytest.mark.parametrize("chat", [True, False])
def test_the_reply_that_is_spoilt_is_a_valid_one(chat: bool):
    reading = read_reply(
        reply([("A", -0.2), (" B", -1.9)], chat=chat, finish="stop", text="A"), ASKED, how="logprobs", text_margin=1.0
    )
    assert reading.logprobs == pytest.approx((-0.2, -1.9))
