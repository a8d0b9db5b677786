"""Publication of a policy version: a transaction that ends with proof that every engine runs it.

    await publication.publish(manifest, payload_ref)     # one engine after another; raises AttestationError

A silent failure to load (a stale repacked layer, an empty adapter) looks like staleness for weeks. So three things are
compared after every load: the fingerprint of the received bytes, every live tensor of the engine, and the log-probs of
canary sequences against the learner's own; see `solon.pipeline.attestation`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from solon.clock import Clock
from solon.errors import AttestationError, CallLostError, PayloadLostError, WorkerLostError
from solon.pipeline.attestation import NOISE_RATIO, attest
from solon.protocols import PayloadRef
from solon.records import LoadReceipt, Weights


class PublishConfig(BaseModel):
    """How weights travel to the engines, and when an engine counts as attested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    way: Literal["merged", "adapter"] = "merged"
    """What a version is. `merged`: all weights, adapters added into them. `adapter`: the LoRA adapters alone, beside
    weights that each engine loads once from its files and that may be quantised (`rollout.base_model`): hundreds of
    times fewer bytes, no packing, and more time for each token. Needs `learn.lora` and vLLM."""
    max_loras: int = Field(2, ge=2, le=64)
    """With `way = "adapter"`: versions that an engine holds at once. An answer is finished with the version it was
    begun with; when that one's place is needed, it continues with the newest, which computes its tokens again."""

    logprob_tolerance: float = Field(0.0, ge=0)
    """Largest canary log-prob difference between learner and engine, nats. 0, automatic: 2e-3 for an engine that
    computes in float32. In 16 bits the mean difference is judged, by `noise_ratio`."""
    noise_ratio: float = Field(NOISE_RATIO, gt=1)
    """16 bits: largest ratio of the mean canary difference to the rounding noise of the learner's own canaries; honest
    engines were measured between 0.7 and 2.5. Quantised weights below adapters: ratio to the difference at the first
    version of this session. Stale tensors are found by their values, independent of this setting."""
    timeout_s: float = Field(300, gt=0)
    """An engine that has not loaded the weights in this time is replaced."""
    engines_at_once: int = Field(1, ge=1)
    """Engines that take a version at the same time. With many engines one after the other takes longer than a step:
    raise it until publication fits; generation pauses on that many engines at once."""


class Publishable(Protocol):
    """An engine that can load new weights."""

    name: str

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt: ...

    @property
    def incarnation(self) -> int:
        """Number of earlier processes that hosted this engine."""
        ...

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """Report that this process did not answer: it is replaced, and joins again once it holds the current
        weights."""
        ...

    async def ready(self) -> bool:
        """Waits while it is being replaced. False: it was given up. Raises the error that ended the run."""
        ...


class Publication:
    """Publishes to a few engines at a time, so that generation never stops on all of them at once.

    Keeps fingerprint and checksums of the last version: an update that changes nothing is an error too. An engine that
    dies or does not answer is skipped; its replacement is admitted by `join`.
    """

    def __init__(
        self,
        engines: Iterable[Publishable],
        *,
        settings: PublishConfig,
        initial: Weights,
        attested: int = 0,
        renewal_s: float = 600.0,
        clock: Clock | None = None,
        emit: Callable[..., None] = lambda name, **fields: None,
    ) -> None:
        """`initial`: the weights that the engines must hold first; `attested`: versions attested before, in a resumed
        run; `renewal_s`: how long to wait for a new learner when the weights were lost with the old one; `clock`:
        measures deadlines; `emit`: gets an event for an engine that proves nothing."""
        self._engines = list(engines)
        """All engines of the run, including those being replaced."""
        self._members = list(self._engines)
        """Engines that must hold the current weights."""
        self._settings = settings
        self._fingerprint = initial.fingerprint
        self._checksums: dict[str, str] = {}
        self._quantised_gap = 0.0
        """Mean canary gap of the first version over quantised weights, nats; 0 before it."""
        self._current: tuple[Weights, PayloadRef] | None = None
        self._turn = asyncio.Lock()
        self._joined = asyncio.Condition(self._turn)
        self._renewed = asyncio.Event()
        self._renewal_s = renewal_s
        self._clock = clock or Clock()
        self._emit = emit
        self.attested = attested
        self.max_gap = 0.0
        """Largest canary gap of all versions attested so far, nats."""

    async def verify(self, manifest: Weights, payload_ref: PayloadRef) -> None:
        """Load the learner's initial weights everywhere: proof that learner and engines start from one model.

        Not counted as a publication. An engine lost meanwhile joins again. Raises AttestationError.
        """
        async with self._turn:
            self._current = manifest, payload_ref
            await self._load_everywhere(manifest, payload_ref, changed=False)

    async def publish(self, manifest: Weights, payload_ref: PayloadRef, *, moved: bool = True) -> list[LoadReceipt]:
        """Load and attest `manifest.version` everywhere. Raises AttestationError naming engine and cause.

        `moved=False`: no gradient moved the policy, so identical bytes are no error. When every engine was lost, waits
        until a replacement has joined with this version.
        """
        async with self._turn:
            if moved and manifest.fingerprint == self._fingerprint:
                raise AttestationError(
                    f"policy version {manifest.version} has the same bytes as the version before: the update changed "
                    "nothing; check learn.learning_rate and that the right parameters are trained"
                )
            changed = manifest.fingerprint != self._fingerprint
            self._current, self._fingerprint = (manifest, payload_ref), manifest.fingerprint
            receipts = await self._load_everywhere(manifest, payload_ref, changed=changed)
            self.attested += 1
            return receipts

    async def join(self, engine: Publishable) -> None:
        """Admit an engine, at first or after a loss, once it holds the current weights. Raises any loading error."""
        async with self._turn:
            if self._current is not None:
                self._checksums.pop(engine.name, None)
                await self._load(engine, *self._current, changed=False)
            for engines in (self._engines, self._members):
                if engine not in engines:
                    engines.append(engine)
            self._joined.notify_all()

    def leave(self, engine: Publishable) -> None:
        """The engine is being replaced: it gets no new weights until it joins again."""
        if engine in self._members:
            self._members.remove(engine)

    def dismiss(self, engine: Publishable) -> None:
        """The engine has left the run."""
        self.leave(engine)
        if engine in self._engines:
            self._engines.remove(engine)
        self._checksums.pop(engine.name, None)

    async def _load_everywhere(self, manifest: Weights, payload_ref: PayloadRef, *, changed: bool) -> list[LoadReceipt]:
        """Returns when at least one engine holds the weights; the receipts of those that loaded them directly."""
        receipts: list[LoadReceipt] = []
        left = deque(self._members)

        async def in_turn() -> None:
            while left:
                engine = left.popleft()
                if engine not in self._members:  # lost, or dismissed, while the others were loading
                    continue
                incarnation = engine.incarnation
                try:
                    receipts.append(await self._load(engine, manifest, payload_ref, changed=changed))
                except WorkerLostError as error:
                    self.leave(engine)
                    engine.lost(error, incarnation)

        others = [asyncio.ensure_future(in_turn()) for _ in range(self._settings.engines_at_once - 1)]
        try:
            await in_turn()
            await asyncio.gather(*others)
        finally:
            for turn in others:
                turn.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await self._wait_for_engine()
        return receipts

    async def _wait_for_engine(self) -> None:
        """Wait, without holding the turn, until an engine has joined. Raises the error that ended the last one: no
        other stage would, since `generate` waits for this publication."""
        while not self._members:
            joined = asyncio.ensure_future(self._joined.wait_for(lambda: bool(self._members)))
            ready = asyncio.gather(*(engine.ready() for engine in self._engines))
            try:
                waiting: set[asyncio.Future[Any]] = {joined, ready}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    ready.result()
                    await joined  # no lost engine comes back without joining
            finally:
                joined.cancel()
                ready.cancel()
                # Until the turn is taken again.
                await asyncio.gather(joined, ready, return_exceptions=True)

    def renew(self, manifest: Weights, payload_ref: PayloadRef) -> None:
        """Hold the same version under another reference: the first copy may be lost with its machine."""
        if self._current is None:
            return
        current = self._current[0]
        if manifest.version == current.version and manifest.incarnation >= current.incarnation:
            self._current = manifest, payload_ref
            self._renewed.set()

    async def _recomputed(self, lost: PayloadRef) -> tuple[Weights, PayloadRef]:
        """The current weights, recomputed by a new learner. Raises PayloadLostError when none does so in time."""
        assert self._current is not None
        manifest, payload_ref = self._current
        if payload_ref is not lost:
            return manifest, payload_ref
        self._renewed.clear()
        try:
            await self._clock.within(self._renewed.wait(), self._renewal_s)
        except TimeoutError:
            raise PayloadLostError(
                f"the weights of version {manifest.version} were lost with the machine that held them; start the "
                "same command with --resume"
            ) from None
        return self._current

    async def _send(self, engine: Publishable, payload_ref: PayloadRef) -> LoadReceipt:
        return await self._clock.within(engine.load_weights(payload_ref), self._settings.timeout_s)

    async def _load(
        self, engine: Publishable, manifest: Weights, payload_ref: PayloadRef, *, changed: bool
    ) -> LoadReceipt:
        try:
            try:
                receipt = await self._send(engine, payload_ref)
            except PayloadLostError:
                manifest, payload_ref = await self._recomputed(payload_ref)
                receipt = await self._send(engine, payload_ref)
            except CallLostError:  # loading the same weights twice does no harm, and the receipt identifies them
                receipt = await self._send(engine, payload_ref)
        except TimeoutError:
            raise WorkerLostError(
                f"engine {engine.name} did not take policy version {manifest.version} within "
                f"{self._settings.timeout_s:.0f} s; raise publish.timeout_s or check its log"
            ) from None
        try:
            receipt = attest(
                manifest,
                receipt,
                last_checksum=self._checksums.get(engine.name) if changed else None,
                tolerance=self._settings.logprob_tolerance,
                noise_ratio=self._settings.noise_ratio,
                quantised_gap=self._quantised_gap,
            )
        except AttestationError as error:
            self._emit("attestation_failed", worker=engine.name, version=manifest.version, cause=str(error))
            raise
        if receipt.check.quantised and not self._quantised_gap:
            self._quantised_gap = receipt.mean_gap
        self.max_gap = max(self.max_gap, receipt.max_gap)
        self._checksums[engine.name] = receipt.checksum
        return receipt
