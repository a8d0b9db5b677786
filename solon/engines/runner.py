"""One thread that owns an engine, with an asyncio interface for all its callers.

Callers submit work with `await`; the thread adds it, steps the engine and returns the completions to each call, so
requests of many callers are decoded together. Everything other than a step (new weights, attestation, aborts) happens
between two steps. The thread sleeps on a condition while there is no work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from solon.engines.base import Completion, Engine, Request, TokenizerLike
from solon.engines.failures import check_canaries, check_numbers
from solon.errors import EngineFailedError, InputError, PayloadLostError, RunFailedError
from solon.records import LoadReceipt, Weights

T = TypeVar("T")

_MERGE_GAP_S = 0.005
"""Busy spans closer than this are merged: the thread delivers completions between two steps."""


@dataclass(slots=True, eq=False)
class _Call:
    """One awaited call: its future and, for generations, the missing completions."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    requests: tuple[Request, ...] = ()
    action: Callable[[Engine], Any] | None = None
    done: list[Completion | None] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    """Tokens of each request that `news` has returned; one more after the end."""
    missing: int = 0

    def resolve(self, result: Any) -> None:
        self._post(lambda: self.future.set_result(result))

    def reject(self, error: BaseException) -> None:
        self._post(lambda: self.future.set_exception(error))

    def _post(self, settle: Callable[[], None]) -> None:
        # RuntimeError: the caller's event loop is closed, so no one waits for the result.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


class EngineRunner:
    """Runs an engine in its own thread.

        runner = EngineRunner(lambda: build_engine(config, name="policy-0"))
        await runner.ready()
        completions = await runner.generate(requests)

    The engine is built in the thread, so calls may be made immediately and wait for it. An InputError or a
    PayloadLostError belongs to the call that caused it. Any other exception of the engine fails every waiting call with
    that error, and all later ones with RunFailedError, or with EngineFailedError if it was one.
    """

    def __init__(self, build: Callable[[], Engine], *, name: str = "(not built)") -> None:
        self.name = name
        self._build = build
        self._engine: Engine | None = None
        self._wake = threading.Condition()
        self._inbox: deque[_Call] = deque()
        self._cancelled: deque[_Call] = deque()
        self._closing = False
        self._error: BaseException | None = None
        self._spans: list[tuple[float, float]] = []
        self._moved_at = time.monotonic()
        self._cache_use: float | None = None
        self._owners: dict[str, tuple[_Call, int]] = {}
        self._next_id = 0
        self._thread = threading.Thread(target=self._run, name="solon-engine", daemon=True)
        self._thread.start()

    # ---- the asyncio face

    async def ready(self) -> None:
        """Waits until the engine is built. Raises any error from building it."""
        await self._call(lambda _: None)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests. All are added before the engine's next step.

        Raises InputError when one does not fit the model; then none of them is generated.
        """
        if not requests:
            return []
        (completions,) = self.generate_each([requests])
        return await completions

    def generate_each(self, batches: Sequence[Sequence[Request]]) -> list[Awaitable[list[Completion]]]:
        """Several calls of `generate` at once, each awaited separately; no batch may be empty.

        All requests of all batches are added before the engine's next step, so which requests are decoded together does
        not depend on how fast the caller makes its calls.
        """
        return [self._outcome(call) for call in self._enqueue([{"requests": tuple(batch)} for batch in batches])]

    async def news(self) -> list[Completion]:
        """The output of all running calls' requests since the last call of `news`, finished or not (`finish_reason`
        "abort"); requests without new output are omitted."""
        return await self._call(self._collect)

    async def score(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> list[Completion]:
        """One verdict per prompt: `label_logprobs` of the given tokens at the next position."""
        labels = tuple(label_ids)
        return await self.generate(
            [
                Request(request_id=str(i), prompt_token_ids=tuple(prompt), max_tokens=1, label_ids=labels)
                for i, prompt in enumerate(prompts)
            ]
        )

    async def load_weights(self, weights: Weights) -> LoadReceipt:
        """Load new weights between two steps and report what the engine computes; running requests continue."""
        return await self._call(lambda engine: load_and_report(engine, weights))

    async def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p(token t | tokens < t) for t >= 1 of every sequence, at temperature 1."""
        return await self._call(lambda engine: engine.sequence_logprobs(sequences))

    async def checksum(self) -> str:
        """Digest of the live parameters in the engine's own layout."""
        return await self._call(lambda engine: engine.checksum())

    async def close(self) -> None:
        """Ends the thread and frees the engine; waiting calls fail with RunFailedError."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of the engine's steps since the last call."""
        with self._wake:
            spans, self._spans = self._spans, []
        return spans

    def drain_cache_use(self) -> float | None:
        """Largest share of the key-value cache in use after a step since the last call, 0..1; None: it is not known."""
        use, self._cache_use = self._cache_use, None
        return use

    @property
    def alive(self) -> bool:
        """False once the engine failed or was closed."""
        return self._error is None and not self._closing

    @property
    def stalled_s(self) -> float:
        """Seconds since the last finished step while there is work; 0 without work."""
        return time.monotonic() - self._moved_at if self._inbox or self._owners else 0.0

    @property
    def version(self) -> int:
        """Policy version of the live weights."""
        return self._built().version

    @property
    def tokenizer(self) -> TokenizerLike:
        """Tokenizer and chat template of the engine's model."""
        return self._built().tokenizer

    @property
    def dtype(self) -> str:
        """The type the engine computes in."""
        return self._built().dtype

    def _built(self) -> Engine:
        if self._engine is None:
            raise RunFailedError(f"engine {self.name} is not built, expected it to be; await `ready()` first")
        return self._engine

    async def _call(self, action: Callable[[Engine], T]) -> T:
        (call,) = self._enqueue([{"action": action}])
        result: T = await self._outcome(call)
        return result

    def _enqueue(self, work: Sequence[dict[str, Any]]) -> list[_Call]:
        loop = asyncio.get_running_loop()
        calls = [_Call(loop, loop.create_future(), **item) for item in work]
        with self._wake:
            if self._error is not None or self._closing:
                raise self._gone() from self._error
            if not (self._inbox or self._owners):
                self._moved_at = time.monotonic()
            self._inbox.extend(calls)
            self._wake.notify()
        return calls

    async def _outcome(self, call: _Call) -> Any:
        try:
            return await call.future
        except asyncio.CancelledError:
            with self._wake:
                self._cancelled.append(call)
                self._wake.notify()
            raise

    def _gone(self) -> BaseException:
        if isinstance(self._error, InputError):
            return self._error
        failed = isinstance(self._error, EngineFailedError)
        kind = EngineFailedError if failed else RunFailedError
        return kind(f"engine {self.name} is gone ({self._error or 'closed'}); start a new one")

    # ---- the thread

    def _run(self) -> None:
        try:
            self._engine = self._build()
            self.name = self._engine.name
            self._serve(self._engine)
        except BaseException as error:
            self._fail_waiting(error)  # first: closing a failed engine may fail too, and callers should not wait for it
            if self._engine is not None:
                with contextlib.suppress(Exception):
                    self._engine.close()
            return
        try:
            self._engine.close()
        except Exception as error:
            self._fail_waiting(error)
        else:
            self._fail_waiting(None)

    def _serve(self, engine: Engine) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._cancelled or self._closing or engine.has_work()):
                    self._wake.wait()
                if self._closing:
                    return
                calls, self._inbox = self._inbox, deque()
                cancelled, self._cancelled = self._cancelled, deque()
            while calls:
                call = calls.popleft()
                try:
                    self._begin(engine, call)
                except BaseException:
                    with self._wake:  # calls not begun are still waiting
                        self._inbox.extendleft(reversed((call, *calls)))
                    raise
            self._forget(engine, cancelled)
            if engine.has_work():
                self._step(engine)

    def _begin(self, engine: Engine, call: _Call) -> None:
        if call.future.cancelled():
            return
        try:
            if call.action is not None:
                call.resolve(call.action(engine))
            else:
                self._add(engine, call)
        except (InputError, PayloadLostError) as error:  # the engine is as it was
            self._forget(engine, [call])
            call.reject(error)

    def _add(self, engine: Engine, call: _Call) -> None:
        call.done = [None] * len(call.requests)
        call.told = [0] * len(call.requests)
        call.missing = len(call.requests)
        for position, request in enumerate(call.requests):
            # Callers choose their ids independently.
            self._next_id += 1
            unique = str(self._next_id)
            engine.add(replace(request, request_id=unique))
            self._owners[unique] = (call, position)

    def _step(self, engine: Engine) -> None:
        start = time.time()
        completions = engine.step()
        check_numbers(f"engine {self.name}", completions)
        self._moved_at = time.monotonic()
        if (use := getattr(engine, "cache_use", None)) is not None:
            self._cache_use = max(use, self._cache_use or 0.0)
        self._note_span(start, time.time())
        for completion in completions:
            owner = self._owners.pop(completion.request_id, None)
            if owner is None:
                continue
            call, position = owner
            call.done[position] = replace(completion, request_id=call.requests[position].request_id)
            call.missing -= 1
            if call.missing == 0:
                call.resolve(call.done)

    def _collect(self, engine: Engine) -> list[Completion]:
        found = []
        known = {unique: call.told[position] for unique, (call, position) in self._owners.items()}
        for new in engine.unfinished(known):
            call, position = self._owners[new.request_id]
            call.told[position] += len(new.token_ids)
            found.append(replace(new, request_id=call.requests[position].request_id))
        for call in {id(call): call for call, _ in self._owners.values()}.values():
            for position, done in enumerate(call.done):
                if done is not None and call.told[position] <= len(done.token_ids):
                    found.append(done.after(call.told[position]))
                    call.told[position] = len(done.token_ids) + 1
        return found

    def _forget(self, engine: Engine, calls: Sequence[_Call] | deque[_Call]) -> None:
        for call in calls:
            ids = [unique for unique, (owner, _) in self._owners.items() if owner is call]
            engine.abort(ids)
            for unique in ids:
                del self._owners[unique]

    def _note_span(self, start: float, end: float) -> None:
        with self._wake:
            if self._spans and start - self._spans[-1][1] < _MERGE_GAP_S:
                self._spans[-1] = (self._spans[-1][0], end)
            else:
                self._spans.append((start, end))

    def _fail_waiting(self, error: BaseException | None) -> None:
        with self._wake:
            self._closing = True
            self._error = error
            waiting = {id(call): call for call in self._inbox}
            waiting.update((id(call), call) for call, _ in self._owners.values())
            self._inbox.clear()
            self._owners.clear()
        for call in waiting.values():
            call.reject(error if error is not None else self._gone())


def load_and_report(engine: Engine, weights: Weights) -> LoadReceipt:
    """Load weights and report what the engine received, holds and computes: all that attestation needs."""
    start = time.perf_counter()
    engine.load_weights(weights)
    check = engine.check_weights(weights)
    # Only attestation without a comparison needs it, and it reads every weight once more.
    checksum = "" if check.compared else engine.checksum()
    canary = engine.sequence_logprobs(weights.canary_token_ids)
    check_canaries(f"engine {engine.name}", canary)
    return LoadReceipt(
        engine=engine.name,
        version=engine.version,
        fingerprint=weights.fingerprint,
        checksum=checksum,
        canary_logprobs=tuple(tuple(logprobs) for logprobs in canary),
        pause_s=time.perf_counter() - start,
        check=check,
    )
