"""Judges behind any endpoint with the OpenAI protocol: each question is one request for one token.

    question ──slot──▶ breaker ──▶ limiter ──permit──▶ request ──▶ log-probs of the labels, or a failure with its name
                          ▲                                │ connection lost, 5xx, 429: again, at most three times
                          └────────── pause, full jitter ──┘

A question with a text is sent as chat or as completion; one with token ids is sent to `/completions` as ids, which vLLM
and SGLang accept. A failure gives a failed answer, never a number. Only errors that concern every question are raised:
a refused key, an unknown model.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Sequence
from typing import Any

from solon.errors import InputError, first_cause, short
from solon.feedback.endpoint.config import EndpointConfig, read_key
from solon.feedback.endpoint.reply import Problem, Reading, read_reply
from solon.feedback.endpoint.wire import Breaker, Wire
from solon.feedback.questions import Answer, Question
from solon.feedback.spending.cost import CallMeter
from solon.feedback.spending.limiter import AsyncLimits, Limiter
from solon.feedback.spending.limits import Bill, LimitsConfig, Permit, Want
from solon.verdicts import Status

__all__ = ["EndpointAsk", "EndpointConfig"]

MOST_EXTRA_TOKENS = 256
"""Tokens that an endpoint may add to a question, by its chat template for example."""
LONGEST_BACKOFF_S = 20.0


class EndpointAsk:
    """`answers = await EndpointAsk(config)(questions)`; an `Ask`. Close it with `aclose()`, or use `async with`.

    limiter: shared by all callers of this endpoint; none: no limits. meter: counts requests. Raises InputError when the
    key is missing or refused, when the model is unknown, and for a spend cap without prices.
    """

    def __init__(self, config: EndpointConfig, limiter: Limiter | None = None, meter: CallMeter | None = None) -> None:
        unlimited = LimitsConfig()
        self._config = config
        self._limiter = limiter or Limiter(AsyncLimits(unlimited), unlimited)
        self.meter = meter or CallMeter()
        if self._limiter.config.max_usd and not (config.usd_per_million_input or config.usd_per_million_output):
            raise InputError(
                f"a spend cap of {self._limiter.config.max_usd:g} USD cannot be kept: the endpoint has no prices; set "
                "usd_per_million_input and usd_per_million_output"
            )
        self._wire = Wire(
            config.base_url,
            key=read_key(config),
            timeout_s=config.timeout_s,
            is_loopback=config.is_loopback,
        )
        self.breaker = Breaker(failures=config.breaker_failures, cool_down_s=config.breaker_cool_down_s)
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._tokens_per_byte = 0.3
        """For questions with a text, as counted by the endpoint; a guess until its first count."""

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(question)) for question in questions]
        except ExceptionGroup as errors:
            # The first one stopped the others; it is the error to show.
            raise first_cause(errors) from None
        return [task.result() for task in tasks]

    async def aclose(self) -> None:
        """Closes the connections; the limiter stays open."""
        await self._wire.close()

    async def __aenter__(self) -> EndpointAsk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _one(self, question: Question) -> Answer:
        async with self._slots:
            answer = await self._answer(question)
        self.meter.questions += 1
        if answer.failure is not None:
            self.meter.failures[str(answer.failure)] += 1
        return answer

    async def _answer(self, question: Question) -> Answer:
        path, content = self._request(question)
        problem: Problem | None = None
        for attempt in range(self._config.max_retries + 1):
            if problem is not None:
                if not await self._pause(problem, attempt):
                    break
                self.meter.retries += 1
            if not self.breaker.allows():
                problem = problem or Problem(status=Status.TRANSPORT_ERROR, detail=str(self.breaker))
                break
            permit = await self._limiter.acquire(self._want(question))
            if permit.refusal:
                return Answer((), failure=Status.BUDGET_SKIP, detail=permit.refusal)
            outcome = await self._attempt(question, permit, path, content)
            if isinstance(outcome, Answer):
                return outcome
            problem = outcome
            if problem.is_fatal:
                raise InputError(self._fatal(problem))
            if not problem.may_retry:
                break
        assert problem is not None
        return Answer((), failure=problem.status, detail=problem.detail)

    async def _pause(self, problem: Problem, attempt: int) -> bool:
        """Waits before a retry; False when the endpoint asks for a longer pause than allowed."""
        asked = problem.after_s or 0.0
        if asked > self._config.retry_after_max_s:
            return False
        if asked:
            await self._limiter.hold(asked)  # the next requests would be refused as well
        longest = min(self._config.backoff_s * 2 ** (attempt - 1), LONGEST_BACKOFF_S)
        await asyncio.sleep(asked + random.uniform(0, longest))
        return True

    async def _attempt(self, question: Question, permit: Permit, path: str, content: bytes) -> Answer | Problem:
        started = time.monotonic()
        bill = Bill(permit.number)  # without further information, everything reserved counts as spent
        try:
            reply = await self._wire.post(path, content)
            if isinstance(reply, Problem):
                self._note(reply)
                if not reply.is_billed:
                    bill = Bill(permit.number, tokens=None, usd=0.0)
                return reply
            self.breaker.succeeded()
            how, margin = self._config.read, self._config.text_margin
            reading = read_reply(reply, question, how=how, text_margin=margin, secret=self._wire.key)
            answer = self._price(question, reading)
            if reading.usage is not None:
                bill = Bill(permit.number, tokens=answer.prompt_tokens + answer.output_tokens, usd=answer.usd)
            return answer
        finally:
            self._limiter.settle(bill)
            self.meter.attempts += 1
            self.meter.seconds += time.monotonic() - started

    def _note(self, problem: Problem) -> None:
        is_patience = problem.after_s is not None and problem.after_s > self._config.retry_after_max_s
        if problem.is_down or is_patience:
            self.breaker.failed(problem.detail)
        elif not problem.may_retry:
            self.breaker.succeeded()

    def _price(self, question: Question, reading: Reading) -> Answer:
        """The answer with its cost; missing counts are estimated."""
        usage, config = reading.usage, self._config
        num_bytes = _num_bytes(question)
        if usage is None:
            self.meter.estimated += 1
            prompt, cached, output = self._prompt_tokens(question), 0, 1
        else:
            prompt, cached, output = usage.prompt_tokens, usage.cached_tokens, usage.output_tokens
            if num_bytes:
                self._tokens_per_byte += 0.1 * (min(prompt / num_bytes, 1.0) - self._tokens_per_byte)
        cached_price = config.usd_per_million_cached
        price = config.usd_per_million_input if cached_price is None else cached_price
        usd = (prompt - cached) * config.usd_per_million_input + cached * price
        usd = (usd + output * config.usd_per_million_output) / 1e6
        return Answer(
            reading.logprobs,
            prompt_tokens=prompt,
            cached_tokens=cached,
            output_tokens=output,
            failure=reading.failure,
            detail=reading.detail,
            usd=usd,
            top=reading.top,
        )

    def _want(self, question: Question) -> Want:
        """Expected tokens and the largest possible cost: no tokenizer makes more tokens than bytes."""
        most_prompt = (_num_bytes(question) or len(question.prompt_token_ids)) + MOST_EXTRA_TOKENS
        output = self._max_tokens
        config = self._config
        input_price = max(config.usd_per_million_input, config.usd_per_million_cached or 0.0)
        usd = (most_prompt * input_price + output * config.usd_per_million_output) / 1e6
        return Want(tokens=self._prompt_tokens(question) + output, usd=usd)

    def _prompt_tokens(self, question: Question) -> int:
        if not question.text:
            return len(question.prompt_token_ids)
        return math.ceil(_num_bytes(question) * self._tokens_per_byte)

    @property
    def _max_tokens(self) -> int:
        return self._config.text_tokens if self._config.read == "text" else 1

    def _request(self, question: Question) -> tuple[str, bytes]:
        config = self._config
        text = _sendable(question.text)
        body: dict[str, Any] = {**config.extra, "model": config.model, "temperature": 0}
        if config.seed is not None:
            body["seed"] = config.seed
        if question.text and config.api == "chat":
            body |= {"messages": [{"role": "user", "content": text}], config.max_tokens_field: self._max_tokens}
            if config.read == "logprobs":
                body |= {"logprobs": True, "top_logprobs": config.top_logprobs}
            return "/chat/completions", json.dumps(body).encode()
        body |= {"prompt": text or list(question.prompt_token_ids), "max_tokens": self._max_tokens}
        if config.read == "logprobs":
            body["logprobs"] = config.top_logprobs
            if not question.text:
                # vLLM: exactly these tokens, by id. Other servers ignore the fields.
                body |= {"return_tokens_as_token_ids": True, "logprob_token_ids": list(question.label_ids)}
        return "/completions", json.dumps(body).encode()

    def _fatal(self, problem: Problem) -> str:
        config = self._config
        where = f"the endpoint {config.base_url}"
        if problem.code in (401, 403):
            source = (
                f"the environment variable {config.api_key_env}"
                if config.api_key_env
                else f"the file {config.api_key_file}"
                if config.api_key_file
                else "no key at all; set `api_key_env`"
            )
            # The endpoint's message is omitted: some repeat the key.
            return f"{where} refused the key ({problem.code}), which came from {source}; check it and what it may use"
        if problem.code == 404:
            return (
                f"{where} has no model {short(config.model)}, or base_url does not end where it should (usually in "
                f"/v1): {problem.detail}"
            )
        return f"{where} redirects requests ({problem.code}); set base_url to its actual address"


def _sendable(text: str) -> str:
    """An encodable text: a model can write an unpaired surrogate, which cannot be sent."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _num_bytes(question: Question) -> int:
    return len(_sendable(question.text).encode())
