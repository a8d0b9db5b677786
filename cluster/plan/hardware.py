"""Devices with published rates: `device_of("h200")`. The figures are in `hardware.toml`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from solon.errors import InputError, nearest
from solon.files.toml_file import read_toml

TABLE = Path(__file__).with_name("hardware.toml")


class Device(BaseModel):
    """One device. Rates are those of dense arithmetic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    memory_gib: float = Field(gt=0)
    gb_per_s: float = Field(gt=0)
    """Of its memory, 1e9 bytes a second."""
    bf16: float = Field(gt=0)
    """1e12 operations a second, as the next two."""
    float32: float = Field(gt=0)
    """Without tensor cores, which round to fewer bits."""
    int8: float = Field(ge=0)
    fp8: float = Field(ge=0)
    usd_per_hour: float = Field(ge=0)
    """A placeholder."""
    source: str

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * 2**30)

    def operations(self, quantisation: str) -> float:
        """Operations a second on the weights of a model compressed in this way; empty: it is not."""
        kind = quantisation.lower()
        if "fp8" in kind or "float-quantized" in kind:
            return 1e12 * (self.fp8 or self.bf16)
        return 1e12 * (self.int8 or self.bf16) if "int-quantized" in kind else 1e12 * self.bf16


@cache
def devices() -> dict[str, Device]:
    """All known devices, by the name that `--gpu-type` takes."""
    return {key: Device.model_validate(value) for key, value in read_toml(TABLE, what="hardware table").items()}


def device_of(name: str) -> Device:
    """Raises InputError for a type that is not in the table."""
    key = name.strip().lower().replace("-", "").replace("_", "").removeprefix("nvidia").removeprefix("amd").strip()
    known = devices()
    if key in known:
        return known[key]
    raise InputError(
        f"--gpu-type {name} is not known{nearest(key, known)}; known are {', '.join(known)}. For any other device, "
        "measure there: solon measure RUN.toml --out rates.json, then solon plan RUN.toml --rates rates.json"
    )
