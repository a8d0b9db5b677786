"""Canary log-probs of a checkpoint's policy, so that an engine that loads it later can be attested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from solon.checkpoints.folder import CANARIES
from solon.errors import AttestationError, InputError, one_line
from solon.pipeline.attestation import FLOAT32_TOLERANCE, NOISE_RATIO, canary_gap


class Canaries(BaseModel):
    """What the learner computes of exactly the saved weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token_ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]
    """log p(token t | tokens < t) for t >= 1, nats, at temperature 1, in float32."""
    noise: float
    """Mean effect of 16-bit arithmetic alone, nats."""

    def write(self, folder: Path) -> None:
        """Into a checkpoint that is being written."""
        (folder / CANARIES).write_text(self.model_dump_json() + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Canaries | None:
        """None: the checkpoint has none. Raises InputError for a damaged file."""
        path = folder / CANARIES
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(f"{path} cannot be read: {one_line(str(error))}; the checkpoint is damaged") from None

    def attest(self, found: Sequence[Sequence[float]], *, dtype: str, who: str) -> float:
        """The gap of an engine's log-probs: the largest in float32, the mean in 16 bits, nats. Raises AttestationError
        where it exceeds what rounding explains."""
        gap = canary_gap(self.logprobs, found)
        value, allowed = gap.mean, max(FLOAT32_TOLERANCE, NOISE_RATIO * self.noise)
        if dtype == "float32":
            value, allowed = gap.max, FLOAT32_TOLERANCE
        if not value <= allowed:
            raise AttestationError(
                f"{who} computes other log-probs than the learner did: they differ by {value:.2e} nats, tolerated "
                f"{allowed:.2e} in {dtype}; compare how both read the model's config.json"
            )
        return value
