"""What a compression is asked for, and what is refused before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compression.formats import FORMATS
from compression.gate.gate import ALPHA, LOOKS
from compression.gate.thresholds import Role, Strictness
from compression.pairs import Pair
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised, require_model
from solon.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of a compression. One of `form` and `size` is given."""

    model: Path
    out: Path
    role: Role = "policy"
    """A judge is asked questions of one token; its answers are not written."""
    form: str = ""
    """One format for all units."""
    size: float = 0.0
    """Largest share of the bytes of the linear layers; formats are then chosen for each unit."""
    formats: tuple[str, ...] = tuple(FORMATS)
    """From which they are chosen."""
    algorithm: str = "rtn"
    gate: Strictness = "strict"
    recover: bool = False
    repair_rate: float = 1e-5
    """Learning rate of the training on the grid that recovery ends with."""
    answers: int = 320
    """Prompts whose answers are written and searched for repetition; 0: none."""
    work: Path | None = None
    """Folder of finished steps; by default beside the output."""
    serve: bool = True
    """Start vLLM with the accepted model and let it write."""


def check(request: Request) -> None:
    """Raises InputError for a model, target or output that cannot be used."""
    config = EngineConfig(model=str(request.model))
    require_model(config)
    if is_quantised(config):
        raise InputError(f"{request.model} is compressed already, expected a model that is not; compress its original")
    if bool(request.form) == bool(request.size):
        raise InputError("expected either a format for all layers or a size: give --format or --size, not both")
    if request.size and not 0 < request.size < 1:
        raise InputError(f"--size is {request.size:g}, expected a share of the bytes of the linear layers, such as 0.3")
    if request.out.exists():
        raise InputError(f"{request.out} exists, expected a new directory; remove it or choose another")


def require_enough(gate: Sequence[Pair], threshold: float) -> None:
    """Raises InputError when not even a model without any flip could be accepted."""
    alpha = ALPHA * LOOKS[-1][1]
    least = math.ceil(math.log(alpha) / math.log(1 - threshold))
    found = len({pair.prompt_id for pair in gate})
    if found < least:
        raise InputError(
            f"{found} prompts are for the gate, which are half of all, expected at least {least}: with fewer "
            f"not even a "
            f"model without a change could be accepted; give pairs of at least {2 * least} prompts"
        )
