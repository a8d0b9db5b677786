"""Publication of a policy version: a transaction that ends in proof that every engine runs it.

    await publication.publish(manifest, box)     # rolls over the engines; raises AttestationError

A silent failure to load (a repacked layer left behind, an adapter pushed empty) looks like staleness for weeks.
So after every load three things are compared: the fingerprint of what arrived, the checksum of what the engine
now holds, and the log-probs of canary sequences that it now computes against the learner's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from solon.errors import AttestationError
from solon.protocols import Box
from solon.records import LoadReceipt, Weights


class PublishConfig(BaseModel):
    """What counts as attested."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    logprob_tolerance: float = Field(0.0, ge=0)
    """Largest canary log-prob difference between learner and engine, nats; 0: 2e-3 in float32, 0.25 in 16 bits."""
    timeout_s: float = Field(300, gt=0)
    """An engine that has not taken the weights by then fails the run."""


class Publishable(Protocol):
    """An engine that can take new weights."""

    name: str

    async def load_weights(self, weights: Box) -> LoadReceipt: ...


class Publication:
    """Publishes to all engines, one after another, so that generation never stands still everywhere.

    Remembers fingerprint and checksums of the last version: an update that changes nothing is an error too.
    """

    def __init__(self, engines: Sequence[Publishable], *, tolerance: float, timeout_s: float, initial: Weights) -> None:
        self._engines = engines
        self._tolerance = tolerance
        self._timeout_s = timeout_s
        self._fingerprint = initial.fingerprint
        self._checksums: dict[str, str] = {}
        self.attested = 0
        self.max_gap = 0.0
        """Largest canary gap of all versions attested so far, nats."""

    async def verify(self, manifest: Weights, box: Box) -> None:
        """Load the learner's initial weights everywhere: proof that learner and engines start from one model.

        Not counted as a publication. Raises AttestationError.
        """
        for engine in self._engines:
            await self._load(engine, manifest, box, changed=False)

    async def publish(self, manifest: Weights, box: Box, *, moved: bool = True) -> list[LoadReceipt]:
        """Load and attest `manifest.version` everywhere. Raises AttestationError naming engine and cause.

        `moved=False`: the learner says that no gradient moved the policy, so the same bytes are no error.
        """
        if moved and manifest.fingerprint == self._fingerprint:
            raise AttestationError(
                f"policy version {manifest.version} has the same bytes as the version before: the update changed "
                "nothing; check learn.learning_rate and that the right parameters are trained"
            )
        changed = manifest.fingerprint != self._fingerprint
        receipts = [await self._load(engine, manifest, box, changed=changed) for engine in self._engines]
        self._fingerprint = manifest.fingerprint
        self.attested += 1
        return receipts

    async def _load(self, engine: Publishable, manifest: Weights, box: Box, *, changed: bool) -> LoadReceipt:
        try:
            async with asyncio.timeout(self._timeout_s):
                receipt = await engine.load_weights(box)
        except TimeoutError:
            raise AttestationError(
                f"engine {engine.name} did not take policy version {manifest.version} within "
                f"{self._timeout_s:.0f} s; raise publish.timeout_s or look at its log"
            ) from None
        gap = attest(manifest, receipt, last_checksum=self._checksums.get(engine.name) if changed else None)
        if not gap <= self._tolerance:
            raise AttestationError(
                f"engine {engine.name} computes other log-probs than the learner after publishing version "
                f"{manifest.version}: largest canary gap {gap:.2e} nats, tolerated {self._tolerance:.2e}; "
                "some layer still holds old weights"
            )
        self.max_gap = max(self.max_gap, gap)
        self._checksums[engine.name] = receipt.checksum
        return receipt


def attest(manifest: Weights, receipt: LoadReceipt, *, last_checksum: str | None) -> float:
    """The canary gap in nats, after version, fingerprint and checksum were found right.

    Raises AttestationError.
    """
    who = f"engine {receipt.engine} after publishing version {manifest.version}"
    if receipt.version != manifest.version:
        raise AttestationError(f"{who}: reports version {receipt.version}")
    if receipt.fingerprint != manifest.fingerprint:
        raise AttestationError(f"{who}: received other bytes than the learner sent (fingerprints differ)")
    if receipt.checksum == last_checksum:
        raise AttestationError(f"{who}: its live parameters did not change")
    return canary_gap(manifest.canary_logprobs, receipt.canary_logprobs)


def canary_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Largest absolute difference; infinite when shapes differ, nothing is compared or a value is not finite."""
    if [len(row) for row in ours] != [len(row) for row in theirs] or not any(ours):
        return float("inf")
    ours_N, theirs_N = (np.concatenate([np.asarray(row, np.float64) for row in rows]) for rows in (ours, theirs))
    if not (np.isfinite(ours_N).all() and np.isfinite(theirs_N).all()):
        return float("inf")
    return float(np.abs(ours_N - theirs_N).max())
