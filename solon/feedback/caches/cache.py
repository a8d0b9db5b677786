"""The exact cache: each question is asked once per judge, in this run or any later one.

    ask ──▶ memory ──▶ being asked already? ──▶ store on disk or in Redis ──▶ the judge

Key: digest of the judge's identity (weights, quantisation, engine numerics, tokenizer, critique) and of the question's
token ids and label ids; template, constitution, principle and order are visible in the token ids. Not in the key: run,
time, policy version, calibration, thresholds. Raw log-probs are stored and interpreted at every read, so that a new
calibration costs no forward pass. Failures are not stored, except unparsable answers, in the store, for a day: at
temperature 0 the same question gets the same text.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.errors import InputError
from solon.feedback.caches.store import SqliteStore, Store
from solon.feedback.questions import Answer, Ask, Question, question_digest
from solon.files.marks import FilePath
from solon.verdicts import Status

_log = logging.getLogger(__name__)


class CacheConfig(BaseModel):
    """`CacheConfig(path="verdicts.sqlite")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: int = Field(200_000, ge=0)
    """Verdicts kept in memory; 0 turns the cache off."""
    path: FilePath = ""
    """SQLite file on a local disk, in which verdicts outlive the process; empty: memory only."""
    path_entries: int = Field(5_000_000, ge=1)
    """Verdicts kept in that file; the oldest are removed."""
    redis_env: str = Field("", pattern=r"^[A-Z_]*[A-Z0-9_]*$")
    """Name of the environment variable with the address of a Redis that the machines of a cluster share, instead of a
    file. The address itself may contain a password and is never written."""
    shadow: float = Field(0.0, ge=0, le=1)
    """Share of hits that is asked again in the background, to measure how often the engine's verdict changes."""

    @model_validator(mode="after")
    def _one_store(self) -> CacheConfig:
        if self.path and self.redis_env:
            raise ValueError("cache has both path and redis_env, expected one store; remove one")
        return self


class ExactCache:
    """`await cache.ask(questions)`: from memory or the store where possible, else through `ask`, each question once.

    Failures are not cached: callers that wait get them, the next caller asks again. Cancelling a caller does not affect
    others that wait for the same answer.
    """

    def __init__(
        self, ask: Ask, *, judge_digest: str, entries: int, store: Store | None = None, shadow: float = 0.0
    ) -> None:
        self._ask = ask
        self._judge_digest = judge_digest
        self._entries = entries
        self._store = store
        self._shadow = shadow
        self._rng = random.Random(judge_digest)
        self._known: OrderedDict[bytes, Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Answer]] = {}
        self._storing: set[asyncio.Task[None]] = set()
        self._shadowing: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        """Hits: `memory`, `store`, `joined`. Misses: `asked`. `evicted` from memory; `stored`, `store_failures`;
        `shadowed` hits that were asked again, `flipped` ones among them, `shadow_failures`."""

    def key(self, question: Question) -> bytes:
        """Content address of a verdict."""
        return hashlib.sha256(f"{self._judge_digest}:{question_digest(question)}".encode()).digest()

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions."""
        if self._entries == 0:
            return await self._ask(questions)
        keys = [self.key(question) for question in questions]
        fresh: dict[bytes, Question] = {}
        futures: dict[bytes, asyncio.Future[Answer]] = {}
        known: dict[bytes, Answer] = {}
        for key, question in zip(keys, questions, strict=True):
            if key in self._known:
                self._known.move_to_end(key)
                known[key] = self._known[key]
                self.counts["memory"] += 1
            elif key in self._asking:
                futures[key] = self._asking[key]
                self.counts["joined"] += 1
            else:
                fresh[key] = question
                futures[key] = self._asking[key] = asyncio.get_running_loop().create_future()
        if self._shadow and known:
            asked = dict(zip(keys, questions, strict=True))
            self._ask_again((asked[key], answer) for key, answer in known.items())
        if fresh:
            # In its own task, so that it outlives a cancelled caller.
            finding = asyncio.ensure_future(self._find(fresh))
            finding.add_done_callback(_retrieve)
            await asyncio.shield(finding)
        paid: set[bytes] = set()
        answers = []
        for key in keys:
            answer = known[key] if key in known else await asyncio.shield(futures[key])
            is_first = key in fresh and key not in paid
            paid.add(key)
            answers.append(
                answer
                if is_first
                else Answer(
                    answer.logprobs, source="exact_cache", failure=answer.failure, detail=answer.detail, top=answer.top
                )
            )
        return answers

    async def close(self) -> None:
        """Wait until all answers are in the store, and close it. Answers to open questions are no longer stored."""
        for task in self._shadowing:
            task.cancel()
        while self._storing or self._shadowing:
            await asyncio.gather(*self._storing, *self._shadowing, return_exceptions=True)
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def _find(self, fresh: dict[bytes, Question]) -> None:
        try:
            stored = await self._stored(list(fresh))
            self.counts["store"] += len(stored)
            self._ask_again((fresh[key], answer) for key, answer in stored.items())
            wanted = {key: question for key, question in fresh.items() if key not in stored}
            self.counts["asked"] += len(wanted)
            answers = await self._ask(list(wanted.values())) if wanted else []
            assert len(answers) == len(wanted), f"{len(answers)} answers to {len(wanted)} questions"
        except BaseException as error:
            for key in fresh:
                future = self._asking.pop(key)
                if isinstance(error, Exception):
                    future.set_exception(error)
                    future.exception()  # mark as retrieved: the caller raises it, even if no one else waits
                else:
                    future.cancel()
            raise
        asked = dict(zip(wanted, answers, strict=True))
        for key, answer in {**stored, **asked}.items():
            self._asking.pop(key).set_result(answer)
            if _is_kept(answer):
                self._remember(key, answer)
        self._keep({key: answer for key, answer in asked.items() if _is_kept(answer) or _is_kept_for_a_day(answer)})

    def _remember(self, key: bytes, answer: Answer) -> None:
        self._known[key] = replace(answer, source="exact_cache")
        if len(self._known) > self._entries:
            self._known.popitem(last=False)
            self.counts["evicted"] += 1

    def _keep(self, answers: dict[bytes, Answer]) -> None:
        """Write to the store in the background."""
        if self._store is None or not answers:
            return
        task = asyncio.ensure_future(self._put(self._store, answers))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _stored(self, keys: list[bytes]) -> dict[bytes, Answer]:
        if self._store is None or not keys:
            return {}
        try:
            return await self._store.get_many(keys)
        except Exception as error:
            self._note(error)
            return {}

    async def _put(self, store: Store, answers: dict[bytes, Answer]) -> None:
        try:
            await store.put_many(answers)
            self.counts["stored"] += len(answers)
        except Exception as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Report a failing store (full disk, lost mount): it costs forward passes later, but present verdicts are
        valid."""
        if not self.counts["store_failures"]:
            _log.warning(
                "the store of verdicts fails: %s; until it works, verdicts are recomputed; free space or fix it",
                error,
            )
        self.counts["store_failures"] += 1

    def _ask_again(self, hits: Iterable[tuple[Question, Answer]]) -> None:
        """Ask a share of the hits again in a background task: no hit is delayed, and no failure reaches a caller."""
        if not self._shadow:
            return
        drawn = [(asked, answer) for asked, answer in hits if _is_kept(answer) and self._rng.random() < self._shadow]
        if drawn:
            task = asyncio.ensure_future(self._compare(drawn))
            self._shadowing.add(task)
            task.add_done_callback(self._shadowing.discard)

    async def _compare(self, hits: Sequence[tuple[Question, Answer]]) -> None:
        try:
            again = await self._ask([asked for asked, _ in hits])
        except Exception:  # callers that need the judge get its error themselves
            self.counts["shadow_failures"] += len(hits)
            return
        for (_, before), after in zip(hits, again, strict=True):
            if _is_kept(after):
                self.counts["shadowed"] += 1
                self.counts["flipped"] += _likeliest(before) != _likeliest(after)
            else:
                self.counts["shadow_failures"] += 1


def open_cache(ask: Ask, config: CacheConfig, *, judge_digest: str) -> ExactCache:
    """The cache in front of a judge, as configured. Raises InputError when its store cannot be used."""
    store: Store | None = None
    if config.entries and config.path:
        store = SqliteStore(config.path, entries=config.path_entries)
    elif config.entries and config.redis_env:
        from solon.feedback.caches.redis_store import RedisStore

        if not (address := os.environ.get(config.redis_env, "")):
            raise InputError(
                f"feedback.cache.redis_env names {config.redis_env}, which is not set here, expected an address "
                "such as redis://host:6379/0; set it wherever judges run"
            )
        store = RedisStore(address)
    return ExactCache(ask, judge_digest=judge_digest, entries=config.entries, store=store, shadow=config.shadow)


def _is_kept(answer: Answer) -> bool:
    """NaN is a fault of the engine, not a verdict: asked again."""
    return (
        answer.failure is None and bool(answer.logprobs) and not any(math.isnan(logprob) for logprob in answer.logprobs)
    )


def _is_kept_for_a_day(answer: Answer) -> bool:
    return answer.failure is Status.UNPARSABLE


def _likeliest(answer: Answer) -> int:
    return max(range(len(answer.logprobs)), key=answer.logprobs.__getitem__)


def _retrieve(task: asyncio.Task[None]) -> None:
    """Retrieve the error, which the caller raises; if the caller was cancelled, the error is dropped."""
    if not task.cancelled():
        task.exception()
