"""Publication of a policy version: a transaction that ends in proof that every engine runs it.

    await publication.publish(manifest, payload_ref)     # rolls over the engines; raises AttestationError

A silent failure to load (a repacked layer left behind, an adapter pushed empty) looks like staleness for weeks.
So after every load three things are compared: the fingerprint of what arrived, every tensor that the engine now
computes with, and the log-probs of canary sequences against the learner's own; `solon.pipeline.attestation` says how.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from solon.clock import Clock
from solon.errors import AttestationError, CallLostError, PayloadLostError, WorkerLostError
from solon.pipeline.attestation import NOISE_RATIO, attest
from solon.protocols import PayloadRef
from solon.records import LoadReceipt, Weights


class PublishConfig(BaseModel):
    """What counts as attested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    logprob_tolerance: float = Field(0.0, ge=0)
    """Largest canary log-prob difference between learner and engine, nats. 0, automatic: it may be 2e-3 where the
    engine computes in float32. In 16 bits the mean difference is judged, by `noise_ratio`."""
    noise_ratio: float = Field(NOISE_RATIO, gt=1)
    """16 bits: the mean canary difference may be so many times what rounding alone does to the learner's own canaries;
    honest engines were seen between 0.7 and 2.5 times. Stale tensors are found by their values, whatever this is."""
    timeout_s: float = Field(300, gt=0)
    """An engine that has not taken the weights by then is replaced."""


class Publishable(Protocol):
    """An engine that can take new weights."""

    name: str

    async def load_weights(self, weights: PayloadRef) -> LoadReceipt: ...

    @property
    def incarnation(self) -> int:
        """Which of the processes that hosted it is meant."""
        ...

    def lost(self, error: WorkerLostError, incarnation: int) -> None:
        """That process did not answer: it is to be replaced, and joins again when it holds the current weights."""
        ...

    async def ready(self) -> bool:
        """Waits while it is being replaced. False: it never will be. Raises what ended the run with it."""
        ...


class Publication:
    """Publishes to all engines, one after another, so that generation never stops on all of them at once.

    Remembers fingerprint and checksums of the last version: an update that changes nothing is an error too. An engine
    that dies or does not answer is left out, not waited for; `join` lets its successor in again.
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
    ) -> None:
        """`initial`: what the engines are to hold first; `attested`: versions attested before, in a resumed run;
        `renewal_s`: how long to wait for a new learner when the weights were lost with the old one;
        `clock`: what deadlines are measured with."""
        self._engines = list(engines)
        """All that belong to the run, those that are being replaced included."""
        self._members = list(self._engines)
        """Those that are to hold the current weights."""
        self._settings = settings
        self._fingerprint = initial.fingerprint
        self._checksums: dict[str, str] = {}
        self._current: tuple[Weights, PayloadRef] | None = None
        self._turn = asyncio.Lock()
        self._joined = asyncio.Condition(self._turn)
        self._renewed = asyncio.Event()
        self._renewal_s = renewal_s
        self._clock = clock or Clock()
        self.attested = attested
        self.max_gap = 0.0
        """Largest canary gap of all versions attested so far, nats."""

    async def verify(self, manifest: Weights, payload_ref: PayloadRef) -> None:
        """Load the learner's initial weights everywhere: proof that learner and engines start from one model.

        Not counted as a publication. An engine that is lost on the way joins again. Raises AttestationError.
        """
        async with self._turn:
            self._current = manifest, payload_ref
            await self._load_everywhere(manifest, payload_ref, changed=False)

    async def publish(self, manifest: Weights, payload_ref: PayloadRef, *, moved: bool = True) -> list[LoadReceipt]:
        """Load and attest `manifest.version` everywhere. Raises AttestationError naming engine and cause.

        `moved=False`: the learner says that no gradient moved the policy, so the same bytes are no error. When every
        engine was lost, waits until one of their successors has joined with this version.
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
        """Let an engine in, or in again, once it holds the current weights. Raises what loading them raises."""
        async with self._turn:
            if self._current is not None:
                self._checksums.pop(engine.name, None)
                await self._load(engine, *self._current, changed=False)
            for engines in (self._engines, self._members):
                if engine not in engines:
                    engines.append(engine)
            self._joined.notify_all()

    def leave(self, engine: Publishable) -> None:
        """It is being replaced: it gets no new weights until it joins again."""
        if engine in self._members:
            self._members.remove(engine)

    def dismiss(self, engine: Publishable) -> None:
        """It has left the run."""
        self.leave(engine)
        if engine in self._engines:
            self._engines.remove(engine)
        self._checksums.pop(engine.name, None)

    async def _load_everywhere(self, manifest: Weights, payload_ref: PayloadRef, *, changed: bool) -> list[LoadReceipt]:
        """Returns when one engine at least holds them; the receipts of those that did at once."""
        receipts = []
        for engine in list(self._members):
            if engine not in self._members:  # lost, or dismissed, while the others were loading
                continue
            incarnation = engine.incarnation
            try:
                receipts.append(await self._load(engine, manifest, payload_ref, changed=changed))
            except WorkerLostError as error:
                self.leave(engine)
                engine.lost(error, incarnation)
        await self._some_engine()
        return receipts

    async def _some_engine(self) -> None:
        """Waits until one has joined, without the turn. Raises what ended the last of them: no other stage would, since
        `generate` waits for what is published here."""
        while not self._members:
            joined = asyncio.ensure_future(self._joined.wait_for(lambda: bool(self._members)))
            ready = asyncio.gather(*(engine.ready() for engine in self._engines))
            try:
                waiting: set[asyncio.Future[Any]] = {joined, ready}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if ready.done():
                    ready.result()
                    await joined  # none of those that were there comes back without joining
            finally:
                joined.cancel()
                ready.cancel()
                # Until the turn is taken again.
                await asyncio.gather(joined, ready, return_exceptions=True)

    def renew(self, manifest: Weights, payload_ref: PayloadRef) -> None:
        """The same version again, under another reference: the first copy may be lost with its machine."""
        if self._current is not None and manifest.version == self._current[0].version:
            self._current = manifest, payload_ref
            self._renewed.set()

    async def _made_again(self, lost: PayloadRef) -> tuple[Weights, PayloadRef]:
        """The current weights, computed again by a new learner. Raises PayloadLostError when none does in time."""
        assert self._current is not None
        manifest, payload_ref = self._current
        if payload_ref is not lost:
            return manifest, payload_ref
        self._renewed.clear()
        try:
            await self._clock.within(self._renewed.wait(), self._renewal_s)
        except TimeoutError:
            raise PayloadLostError(
                f"the weights of version {manifest.version} are gone with the machine that they lay on; start the "
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
                manifest, payload_ref = await self._made_again(payload_ref)
                receipt = await self._send(engine, payload_ref)
            except CallLostError:  # taking the same weights twice does no harm, and the receipt says which they are
                receipt = await self._send(engine, payload_ref)
        except TimeoutError:
            raise WorkerLostError(
                f"engine {engine.name} did not take policy version {manifest.version} within "
                f"{self._settings.timeout_s:.0f} s; raise publish.timeout_s or look at its log"
            ) from None
        receipt = attest(
            manifest,
            receipt,
            last_checksum=self._checksums.get(engine.name) if changed else None,
            tolerance=self._settings.logprob_tolerance,
            noise_ratio=self._settings.noise_ratio,
        )
        self.max_gap = max(self.max_gap, receipt.max_gap)
        self._checksums[engine.name] = receipt.checksum
        return receipt
