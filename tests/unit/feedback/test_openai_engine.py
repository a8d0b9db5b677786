"""Judges behind an endpoint: requests, the parsing of replies, and every kind of failure in between."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.endpoint.ask import EndpointAsk, EndpointConfig
from solon.feedback.endpoint.config import read_key
from solon.feedback.endpoint.reply import NOWHERE, clean, label_logprobs, matchers, read_error, read_reply, retry_after
from solon.feedback.endpoint.wire import Breaker
from solon.feedback.judges.verdicts import read_bool
from solon.feedback.questions import Answer, Question
from solon.feedback.spending.limiter import AsyncLimits, Limiter
from solon.feedback.spending.limits import LimitsConfig
from solon.files.validation import describe_invalid
from solon.verdicts import Status
from tests.unit.endpoint_server import (
    Behaviour,
    EndpointServer,
    Seen,
    answer,
    drip,
    error,
    flood,
    half,
    hang_up,
    never,
    raw,
    reply,
)

TEXT = Question((), (), text="Which is better? Verdict:", labels=(" A", " B"))
IDS = Question((5, 6, 7), (11, 12))
A_OR_B = {"A": 0.7, " B": 0.2, "the": 0.05}
KEY = "sk-" + "abcdefgh" * 4


def config(server: EndpointServer, **changes: Any) -> EndpointConfig:
    settings = {"model": "judge", "timeout_s": 5.0, "backoff_s": 0.01, **changes}
    return EndpointConfig(base_url=server.base_url, **settings)


async def ask(server: EndpointServer, *questions: Question, **changes: Any) -> list[Answer]:
    async with EndpointAsk(config(server, **changes)) as endpoint:
        return await endpoint(questions or (TEXT,))


async def ask_one(*behaviours: Behaviour, question: Question = TEXT, **changes: Any) -> Answer:
    with EndpointServer(*behaviours) as server:
        (answered,) = await ask(server, question, **changes)
        return answered


def failure(answered: Answer) -> Status | None:
    """The failure of an answer, which then holds no number."""
    assert (answered.failure is None) != (answered.logprobs == ())
    return answered.failure


# -- requests and parsing ----------------------------------------------------------------------------------------


async def test_a_text_goes_as_chat_and_its_labels_are_read_off_the_likeliest_tokens():
    with EndpointServer(answer(A_OR_B)) as server:
        (answered,) = await ask(server, seed=3, extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert answered.logprobs == pytest.approx((math.log(0.7), math.log(0.2)))
    assert (answered.prompt_tokens, answered.output_tokens, answered.top) == (10, 1, "")
    (seen,) = server.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "chat_template_kwargs": {"enable_thinking": False},
        "model": "judge",
        "temperature": 0,
        "seed": 3,
        "messages": [{"role": "user", "content": TEXT.text}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }


async def test_a_text_can_go_as_completion():
    with EndpointServer(answer(A_OR_B)) as server:
        (answered,) = await ask(server, api="completions", top_logprobs=5)
    assert answered.logprobs == pytest.approx((math.log(0.7), math.log(0.2)))
    assert server.seen[0].path == "/v1/completions"
    assert server.seen[0].body["prompt"] == TEXT.text
    assert server.seen[0].body["logprobs"] == 5


async def test_token_ids_go_as_ids_and_labels_are_found_by_id():
    with EndpointServer(answer({"token_id:11": 0.25, "token_id:3": 0.5, "token_id:12": 0.125})) as server:
        (answered,) = await ask(server, IDS)
    assert answered.logprobs == pytest.approx((math.log(0.25), math.log(0.125)))
    assert server.seen[0].body["prompt"] == [5, 6, 7]
    assert server.seen[0].body["logprob_token_ids"] == [11, 12]


async def test_token_ids_at_an_endpoint_that_shows_words_need_words_for_the_labels():
    assert failure(await ask_one(answer(A_OR_B), question=IDS)) is Status.UNPARSABLE
    worded = Question((5, 6), (11, 12), labels=("A", "B"))
    answered = await ask_one(answer(A_OR_B), question=worded)
    assert answered.logprobs == pytest.approx((math.log(0.7), math.log(0.2)))


async def test_answers_come_in_the_order_of_the_questions():
    def by_number(seen: Seen) -> dict[str, float]:
        return {"A": (1 + int(seen.body["messages"][0]["content"])) / 100, "B": 0.5}

    questions = [Question((), (), text=str(n), labels=("A", "B")) for n in range(40)]
    with EndpointServer(answer(by_number)) as server:
        answers = await ask(server, *questions, max_concurrency=7)
    assert [round(100 * math.exp(a.logprobs[0])) for a in answers] == list(range(1, 41))
    assert server.most_open <= 7


def shown(**probabilities: float) -> dict[str, float]:
    return {token.replace("_", " "): math.log(p) for token, p in probabilities.items()}


def read_labels(tokens: dict[str, float], *labels: str) -> tuple[float, ...] | None:
    question = Question((), (), text="?", labels=labels)
    return label_logprobs(tokens, matchers(question, tokens))


def test_variants_of_a_label_add_up():
    assert read_labels(shown(A=0.4, _A=0.2, B=0.1, _B=0.1, C=0.2), " A", " B") == pytest.approx(
        (math.log(0.6), math.log(0.2))
    )
    assert read_labels({"ĠA": math.log(0.5), "▁B": math.log(0.25)}, "A", "B") == pytest.approx(
        (math.log(0.5), math.log(0.25))
    )
    # A word may begin a sentence; a single letter in another case is another word.
    assert read_labels(shown(Yes=0.5, yes=0.25, NO=0.125), " yes", " no") == pytest.approx(
        (math.log(0.75), math.log(0.125))
    )
    assert read_labels(shown(A=0.5, a=0.3, B=0.1), "A", "B") == pytest.approx((math.log(0.5), math.log(0.1)))


def test_a_label_that_is_not_shown_gets_its_largest_possible_probability():
    # The smallest shown has 0.1, but only 0.05 are left.
    assert read_labels(shown(A=0.85, C=0.1), "A", "B") == pytest.approx((math.log(0.85), math.log(0.05)))
    # 0.3 are left, but nothing that is not shown is likelier than 0.1.
    assert read_labels(shown(A=0.6, C=0.1), "A", "B") == pytest.approx((math.log(0.6), math.log(0.1)))
    assert read_labels(shown(C=0.6, D=0.1), "A", "B") is None
    # Two of three marks share the rest.
    assert read_labels(shown(**{"1": 0.8}), "1", "2", "3") == pytest.approx(
        (math.log(0.8), math.log(0.1), math.log(0.1))
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=30), st.integers(1, 20))
def test_log_probs_hidden_by_an_endpoint_never_make_a_margin_larger(weights: list[float], top: int):
    total = sum(weights)
    everything = {f"t{n}": math.log(w / total) for n, w in enumerate(weights)}
    true = everything["t0"] - everything["t1"]
    likeliest = dict(sorted(everything.items(), key=lambda item: -item[1])[:top])
    logprobs = read_labels(likeliest, "t0", "t1")
    if logprobs is not None:
        margin = logprobs[0] - logprobs[1]
        assert abs(margin) <= abs(true) + 1e-9
        assert margin * true >= -1e-9
        assert sum(map(math.exp, logprobs)) <= 1 + 1e-6


async def test_a_reply_without_any_label_is_low_mass_and_quotes_the_reply():
    answered = await ask_one(answer({"Sorry": 0.9, "I": 0.05}))
    assert answered.logprobs == (NOWHERE, NOWHERE)
    assert answered.top == "Sorry"
    reading = read_bool(answered.logprobs, FeedbackConfig(min_mass=1e-9))
    assert (reading.status, reading.margin) == (Status.LOW_MASS, None)


async def test_text_mode_accepts_only_a_whole_word():
    with EndpointServer(answer({" A.": 1.0})) as server:
        (answered,) = await ask(server, read="text", text_margin=1.5)
    assert answered.logprobs[0] - answered.logprobs[1] == pytest.approx(1.5)
    assert sum(map(math.exp, answered.logprobs)) == pytest.approx(1.0)
    assert "logprobs" not in server.seen[0].body
    assert failure(await ask_one(answer({"A or B": 1.0}), read="text")) is Status.UNPARSABLE
    assert failure(await ask_one(answer({"": 1.0}), read="text")) is Status.UNPARSABLE
    assert failure(await ask_one(answer({"I would say that": 1.0}, finish="length"), read="text")) is Status.TRUNCATED


async def test_tokens_that_the_endpoint_did_not_count_are_estimated_and_flagged():
    with EndpointServer(answer(A_OR_B, usage={})) as server:
        async with EndpointAsk(config(server)) as endpoint:
            (answered,) = await endpoint((TEXT,))
            assert endpoint.meter.estimated == 1
    assert answered.prompt_tokens == math.ceil(0.3 * len(TEXT.text))
    (odd,) = [await ask_one(answer(A_OR_B, usage={"prompt_tokens": -5, "completion_tokens": "x"}))]
    assert odd.prompt_tokens == answered.prompt_tokens


async def test_cached_tokens_have_their_own_price():
    usage = {"prompt_tokens": 1000, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 600}}
    prices = {"usd_per_million_input": 2.0, "usd_per_million_cached": 0.5, "usd_per_million_output": 10.0}
    answered = await ask_one(answer(A_OR_B, usage=usage), **prices)
    assert answered.usd == pytest.approx((400 * 2.0 + 600 * 0.5 + 2 * 10.0) / 1e6)
    assert answered.cached_tokens == 600


async def test_half_a_surrogate_pair_does_not_stop_a_question():
    answered = await ask_one(answer(A_OR_B), question=Question((), (), text="broken \ud83d text", labels=("A", "B")))
    assert answered.failure is None


# -- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 403])
async def test_a_refused_key_names_the_variable_and_never_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
):
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with EndpointServer(error(code, f"Incorrect API key provided: {KEY}")) as server:
        endpoint = EndpointAsk(config(server, api_key_env="JUDGE_API_KEY"))
        with pytest.raises(InputError, match=rf"refused the key \({code}\).*JUDGE_API_KEY") as caught:
            await endpoint([TEXT] * 3)
        await endpoint.aclose()
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value)
    assert KEY not in repr(vars(endpoint)) + caplog.text


async def test_a_missing_model_is_an_input_error():
    with pytest.raises(InputError, match=r"has no model 'judge'.*does not exist"):
        await ask_one(error(404, "The model `judge` does not exist."))


async def test_a_redirect_is_not_followed():
    # The key would go along.
    with pytest.raises(InputError, match="redirects requests"):
        await ask_one(raw(b"", status=307, headers={"location": "http://127.0.0.1:9/v1"}))


@pytest.mark.parametrize("first", [error(500), error(503), error(429), hang_up, half])
async def test_a_transient_failure_is_retried(first: Behaviour):
    with EndpointServer(first, first, answer(A_OR_B)) as server:
        (answered,) = await ask(server)
    assert answered.failure is None
    assert len(server.seen) == 3


@pytest.mark.parametrize("always", [error(500, "boom"), error(429, "boom"), hang_up, half])
async def test_at_most_three_retries_are_made(always: Behaviour):
    with EndpointServer(always) as server:
        (answered,) = await ask(server)
    assert failure(answered) is Status.TRANSPORT_ERROR
    assert answered.detail
    assert len(server.seen) == 4


async def test_a_missing_endpoint_is_a_transport_error():
    with EndpointServer(never) as server:
        pass
    (answered,) = await ask(server)
    assert failure(answered) is Status.TRANSPORT_ERROR
    assert "cannot be reached" in answered.detail


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        (error(400, "bad request"), Status.ENGINE_ERROR),
        (error(422, "no"), Status.ENGINE_ERROR),
        (error(400, "too long", code="context_length_exceeded"), Status.TRUNCATED),
        (error(400, "This model's maximum context length is 256 tokens."), Status.TRUNCATED),
        (error(400, "filtered", code="content_filter"), Status.REFUSAL),
        (error(408), Status.TIMEOUT),
        (error(402, "no credit"), Status.BUDGET_SKIP),
        (error(429, "no credit", code="insufficient_quota"), Status.BUDGET_SKIP),
        (raw(b"<html>hello</html>"), Status.UNPARSABLE),
        (raw(b""), Status.UNPARSABLE),
        (raw(b"\xff\xfe\x00"), Status.UNPARSABLE),
        (raw(b'{"choices": [{"mess'), Status.UNPARSABLE),
        (raw(b"[" * 200_000), Status.UNPARSABLE),
        (raw(b"[]"), Status.UNPARSABLE),
        (reply({}), Status.UNPARSABLE),
        (reply({"choices": []}), Status.UNPARSABLE),
        (reply({"choices": [{"message": {"content": "A"}}]}), Status.UNPARSABLE),
        (reply({"choices": [{"message": {"content": "A"}, "logprobs": {"content": []}}]}), Status.UNPARSABLE),
        (reply({"choices": [{"message": {"content": "A"}, "logprobs": [1]}]}), Status.UNPARSABLE),
        (reply({"choices": [{"message": {"refusal": "I cannot judge this."}}]}), Status.REFUSAL),
        (reply({"choices": [{"message": {"content": "A"}, "finish_reason": "content_filter"}]}), Status.REFUSAL),
        (flood, Status.UNPARSABLE),
        (raw(gzip.compress(b"{}"), headers={"content-encoding": "gzip"}), Status.UNPARSABLE),
    ],
)
async def test_a_permanent_failure_is_not_retried_and_has_its_own_status(behaviour: Behaviour, status: Status):
    with EndpointServer(behaviour) as server:
        (answered,) = await ask(server)
    assert failure(answered) is status
    assert 0 < len(answered.detail) <= 200
    assert len(server.seen) == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "0.5", "null", '"high"', "true", "9" * 400])
async def test_an_invalid_log_prob_is_no_verdict(value: str):
    entry = f'{{"token": "A", "logprob": {value}}}'
    body = f'{{"choices": [{{"logprobs": {{"content": [{{"top_logprobs": [{entry}]}}]}}}}]}}'
    assert failure(await ask_one(raw(body.encode()))) is Status.UNPARSABLE


async def test_probabilities_above_one_are_garbage():
    assert failure(await ask_one(answer({"A": 0.9, "B": 0.9}))) is Status.UNPARSABLE


@pytest.mark.parametrize("behaviour", [never, drip])
async def test_silence_and_endless_dripping_end_at_the_deadline(behaviour: Behaviour):
    with EndpointServer(behaviour) as server:
        started = time.monotonic()
        (answered,) = await ask(server, timeout_s=0.2)
        assert time.monotonic() - started < 5
    assert failure(answered) is Status.TIMEOUT
    assert len(server.seen) == 1


async def test_every_caller_observes_a_wait_that_the_endpoint_requests():
    with EndpointServer(error(429, headers={"retry-after": "0.3"}), answer(A_OR_B)) as server:
        async with EndpointAsk(config(server)) as endpoint:
            started = time.monotonic()
            first = asyncio.ensure_future(endpoint([TEXT]))
            await until(lambda: bool(server.seen))
            await asyncio.sleep(0.05)
            (other,) = await endpoint([TEXT])
            assert time.monotonic() - started >= 0.3
            assert other.failure is None
            assert (await first)[0].failure is None
    assert len(server.seen) == 3


async def test_a_requested_wait_that_is_too_long_is_not_observed():
    with EndpointServer(error(429, headers={"retry-after": "3600"})) as server:
        (answered,) = await ask(server)
    assert failure(answered) is Status.TRANSPORT_ERROR
    assert "asks to wait 3600 s" in answered.detail
    assert len(server.seen) == 1


async def test_a_cancelled_question_leaves_no_connection():
    with EndpointServer(never) as server:
        async with EndpointAsk(config(server)) as endpoint:
            asking = asyncio.ensure_future(endpoint([TEXT] * 5))
            await until(lambda: server.open == 5)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await until(lambda: server.open == 0)
            # The slots are free again.
            server.behave(answer(A_OR_B))
            assert [a.failure for a in await endpoint([TEXT] * 40)] == [None] * 40


async def test_no_connection_is_left_after_a_deadline_or_a_flood():
    with EndpointServer(drip, flood, answer(A_OR_B)) as server:
        async with EndpointAsk(config(server, timeout_s=0.2)) as endpoint:
            await endpoint([TEXT])
            await endpoint([TEXT])
            await until(lambda: server.open == 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (the server is in another thread)
            await asyncio.sleep(0.005)


async def test_an_endpoint_that_is_down_is_not_called_and_later_probed():
    with EndpointServer(error(500)) as server:
        limits = {"max_concurrency": 1, "max_retries": 0, "breaker_failures": 3, "breaker_cool_down_s": 0.2}
        async with EndpointAsk(config(server, **limits)) as endpoint:
            answers = await endpoint([TEXT] * 10)
            assert [a.failure for a in answers] == [Status.TRANSPORT_ERROR] * 10
            assert len(server.seen) == 3
            assert "failed 3 times in a row" in answers[-1].detail
            server.behave(answer(A_OR_B))
            await asyncio.sleep(0.25)
            assert [a.failure for a in await endpoint([TEXT] * 5)] == [None] * 5


def test_the_breaker_lets_one_probe_through_at_a_time():
    now = [0.0]
    breaker = Breaker(failures=2, cool_down_s=10, clock=lambda: now[0])
    assert breaker.allows()
    breaker.failed("a")
    assert breaker.allows()
    breaker.failed("b")
    assert not breaker.allows()
    now[0] = 10.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    now[0] = 20.0  # the probe was never heard of
    assert breaker.allows()
    breaker.succeeded()
    assert [breaker.allows(), breaker.allows()] == [True, True]
    assert breaker.trips == 1


async def test_untrusted_text_is_made_harmless():
    answered = await ask_one(error(400, "\x1b[31mred\x00\n" + "x" * 5000))
    assert answered.detail.isprintable()
    assert len(answered.detail) <= 200
    assert clean("your key " + KEY, secret=KEY) == "your key [key]"


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["choices", "logprobs", "content", "message", "usage", "token"]), inner, max_size=4
            )
        ),
        max_leaves=15,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_malformed_reply_raises_or_becomes_a_number(body: bytes):
    for how in ("logprobs", "text"):
        reading = read_reply(body, TEXT, how=how, text_margin=1.0)  # type: ignore[arg-type]
        assert (reading.failure is None) == bool(reading.logprobs)
        assert all(math.isfinite(logprob) for logprob in reading.logprobs)
    assert not read_error(500, {"retry-after": body[:20].decode("latin-1")}, body, now=0.0).status.valid


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("7", now=0) == 7
    assert retry_after("Thu, 01 Jan 1970 00:02:00 GMT", now=50.0) == 70
    assert retry_after("Thu, 01 Jan 1970 00:00:10 GMT", now=50.0) == 0
    for nonsense in (None, "", "soon", "-5", "nan", "inf", "1e5"):
        assert retry_after(nonsense, now=0) is None


# -- money -------------------------------------------------------------------------------------------------------

PRICES = {"usd_per_million_input": 1000.0, "usd_per_million_output": 0.0}
"""A thousandth of a dollar for a prompt token."""


def limited(**settings: Any) -> Limiter:
    limits = LimitsConfig(**settings)
    return Limiter(AsyncLimits(limits), limits)


async def test_many_concurrent_callers_do_not_exceed_the_cap():
    # Reserved: 25 bytes and 256 of the endpoint's own, 0.281 USD; spent: 10 tokens, 0.010 USD.
    limiter = limited(max_usd=0.5)
    with EndpointServer(answer(A_OR_B, after_s=0.005)) as server:
        async with EndpointAsk(config(server, **PRICES), limiter) as endpoint:
            answers = await endpoint([TEXT] * 40)
    paid = [a for a in answers if a.failure is None]
    assert sum(a.usd for a in paid) <= 0.5
    # Refused only when the rest could not pay for one question at its worst.
    assert len(paid) == len(server.seen) == 22
    assert {failure(a) for a in answers if a.failure} == {Status.BUDGET_SKIP}
    assert "start again with a larger cap" in answers[-1].detail


async def test_a_second_start_with_more_money_continues_where_the_first_stopped(tmp_path: Path):
    async def start(cap: float) -> list[Answer]:
        settings = LimitsConfig(max_usd=cap, spend_file=str(tmp_path / "spend.json"))
        port = AsyncLimits(settings)
        limiter = Limiter(port, settings)
        with EndpointServer(answer(A_OR_B)) as server:
            async with EndpointAsk(config(server, **PRICES), limiter) as endpoint:
                answers = await endpoint([TEXT] * 10)
        await limiter.close()
        await port.close()
        return answers

    first = await start(0.3)
    assert sum(a.failure is None for a in first) == 2
    assert all(a.failure in (None, Status.BUDGET_SKIP) for a in first)
    assert not any(a.failure is None for a in await start(0.3))
    assert sum(a.failure is None for a in await start(0.33)) == 3


async def test_a_budget_of_zero_asks_nothing_and_says_so():
    with EndpointServer(answer(A_OR_B)) as server:
        async with EndpointAsk(config(server), limited(max_usd=0.0)) as endpoint:
            answers = await endpoint([TEXT] * 3)
    assert [failure(a) for a in answers] == [Status.BUDGET_SKIP] * 3
    assert answers[0].detail == "the spend cap is 0 USD: nothing is asked"
    assert server.seen == []


def test_a_cap_without_prices_is_refused():
    with pytest.raises(InputError, match="cannot be kept: the endpoint has no prices"):
        EndpointAsk(EndpointConfig(base_url="https://judge.example/v1", model="m"), limited(max_usd=1.0))


async def test_a_failure_that_may_have_been_billed_counts_as_spent():
    limiter = limited(max_usd=10.0)
    with EndpointServer(error(500), never) as server:
        async with EndpointAsk(config(server, timeout_s=0.1, **PRICES), limiter) as endpoint:
            await endpoint([TEXT])
        await limiter.close()
        spend = await limiter._port.spend()
    # The 500 cost nothing; the silence may have cost all that was reserved.
    assert (spend.spent, spend.reserved, spend.calls) == (pytest.approx(0.281), 0.0, 2)


# -- the config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"api_key_env": KEY}, "is not the name of an environment variable"),
        ({"api_key_env": "my-key"}, "is not the name of an environment variable"),
        ({"model": KEY}, "`model` looks like a key"),
        ({"extra": {"headers": {"authorization": f"Bearer {KEY}"}}}, "`extra` looks like a key"),
        ({"extra": {"temperature": 2}}, "`extra` has `temperature`"),
        ({"api_key": KEY}, "unknown key `api_key`"),
        ({"base_url": "http://judge.example/v1"}, "plain http to another machine"),
        ({"base_url": "https://user:pw@judge.example/v1"}, "has a user, a query or a fragment"),
        ({"base_url": "https://judge.example/v1?key=1"}, "has a user, a query or a fragment"),
        ({"base_url": "https://judge.example/v1/chat/completions"}, "names one method"),
        ({"base_url": "judge.example"}, "is not an address"),
        ({"base_url": "https://judge.example:99999/v1"}, "is not an address"),
        ({"base_url": "file:///etc/passwd"}, "is not an address"),
        ({"max_retries": 4}, "less than or equal to 3"),
        ({"timeout_s": math.nan}, "finite"),
        ({"api_key_env": "A", "api_key_file": "b"}, "keep one"),
    ],
)
def test_a_config_that_cannot_work_says_why_and_shows_no_key(changes: dict[str, Any], words: str):
    with pytest.raises(ValidationError) as caught:
        EndpointConfig(**{"base_url": "https://judge.example/v1", "model": "m", **changes})
    message = describe_invalid(EndpointConfig, caught.value)
    assert words in message
    assert KEY not in message + str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.1/v1", "http://[::1]:8/v1"])
def test_plain_http_is_for_this_machine(url: str):
    assert EndpointConfig(base_url=url, model="m").is_loopback
    assert not EndpointConfig(base_url="http://judge.lan/v1", model="m", allow_http=True).is_loopback


def test_a_key_comes_from_a_variable_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def at(**where: str) -> EndpointConfig:
        return EndpointConfig(base_url="https://judge.example/v1", model="m", **where)  # type: ignore[arg-type]

    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    assert read_key(at(api_key_env="JUDGE_API_KEY")) == read_key(at(api_key_file=str(file))) == KEY
    assert read_key(at()) == ""
    monkeypatch.delenv("JUDGE_API_KEY")
    with pytest.raises(InputError, match="JUDGE_API_KEY is empty or not set"):
        read_key(at(api_key_env="JUDGE_API_KEY"))
    file.write_text(f"{KEY}\nX-Injected: 1")
    with pytest.raises(InputError, match="more than one word") as caught:
        read_key(at(api_key_file=str(file)))
    assert KEY not in str(caught.value)


def test_the_digest_covers_the_settings_that_decide_a_verdict_and_no_others():
    base = {"base_url": "https://judge.example/v1", "model": "m"}
    digest = EndpointConfig(**base).digest
    for changes in ({"model": "n"}, {"api": "completions"}, {"read": "text"}, {"seed": 1}, {"extra": {"top_k": 1}}):
        assert EndpointConfig(**{**base, **changes}).digest != digest
    for changes in ({"timeout_s": 9.0}, {"usd_per_million_input": 1.0}, {"api_key_env": "K"}, {"max_retries": 0}):
        assert EndpointConfig(**{**base, **changes}).digest == digest
