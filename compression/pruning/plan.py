"""What is removed, and the shapes that are left: known before anything is computed."""

from __future__ import annotations

import copy
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from solon.errors import InputError

Method = Literal["alignment", "wanda", "magnitude"]
METHODS: tuple[Method, ...] = ("alignment", "wanda", "magnitude")
MULTIPLE = 32
"""Channels are kept in multiples of this, as formats and kernels need them."""
SHAPED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose channels, groups and layers are cut out."""
OWN_HEAD_WIDTH = ("llama", "mistral", "qwen3")
"""Those whose engines read the width of a head from the configuration: of the others the number of heads stays."""


class Pruning(BaseModel):
    """What is removed, as shares: `Pruning(weights=0.5)`, `Pruning(channels=0.25, layers=0.1)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: float = Field(0.0, ge=0, lt=1)
    """Of each row of every matrix: set to 0."""
    channels: float = Field(0.0, ge=0, lt=1)
    """Of the inner channels of every feed-forward network: cut out."""
    groups: float = Field(0.0, ge=0, lt=1)
    """Of the attention heads of every layer, by groups that share keys and values: cut out."""
    layers: float = Field(0.0, ge=0, lt=1)
    """Of the layers: cut out."""
    method: Method = "alignment"
    """Which weights go first: by preferences and text, by weights and inputs, or by weights alone."""

    @property
    def is_any(self) -> bool:
        """Whether something is removed."""
        return bool(self.weights or self.cuts)

    @property
    def cuts(self) -> bool:
        """Whether the shapes change."""
        return bool(self.channels or self.groups or self.layers)

    @classmethod
    def parsed(cls, text: str) -> Pruning:
        """`weights=0.5,method=wanda`; empty: nothing. Raises InputError that names what was not understood."""
        found: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals or name.strip() not in cls.model_fields or name.strip() in found:
                raise InputError(
                    f"--prune got {part!r}, expected weights=SHARE, channels=SHARE, groups=SHARE, layers=SHARE or "
                    "method=alignment|wanda|magnitude, each once, separated by commas"
                )
            found[name.strip()] = value.strip()
        if "method" in found and "weights" not in found:
            raise InputError("--prune method is about weights; give weights=SHARE too, or leave it out")
        try:
            pruning = cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            wanted = "one of alignment, wanda and magnitude" if first["loc"][0] == "method" else "a share such as 0.25"
            raise InputError(f"--prune {first['loc'][0]} is {first['input']!r}, expected {wanted}") from None
        if zero := next((name for name in found if getattr(pruning, name) == 0), None):
            raise InputError(f"--prune {zero} is {found[zero]!r}, which removes nothing, expected a share such as 0.25")
        return pruning

    def __str__(self) -> str:
        asked = {name: value for name, value in self.model_dump(exclude={"method"}).items() if value}
        return ", ".join(f"{name}={value:g}" for name, value in asked.items())


def planned(config: Any, pruning: Pruning) -> Any:
    """A copy of a model's configuration with the shapes after pruning. Raises InputError for a share that leaves
    nothing, and for architectures whose parts cannot be cut out."""
    found = copy.deepcopy(config)
    if not pruning.cuts:
        return found
    if config.model_type not in SHAPED:
        raise InputError(
            f"got a model of type {config.model_type!r}, expected one of {', '.join(SHAPED)} for channels, groups and "
            "layers to be cut out; prune weights instead, or choose another model"
        )
    if pruning.layers:
        found.num_hidden_layers -= _removed(pruning.layers, int(config.num_hidden_layers), "layers", "layer")
        if getattr(config, "layer_types", None):
            if len(set(config.layer_types)) > 1:
                raise InputError("the model has layers of several kinds, so none is cut out; leave --prune layers out")
            found.layer_types = config.layer_types[: found.num_hidden_layers]
    if pruning.channels:
        inner = int(config.intermediate_size)
        kept = round((1 - pruning.channels) * inner / MULTIPLE) * MULTIPLE
        if not 0 < kept < inner:
            raise InputError(
                f"--prune channels={pruning.channels:g} keeps {kept} of {inner} channels, expected a multiple of "
                f"{MULTIPLE} below {inner}; give a share of {MULTIPLE / inner:.3g} to {1 - MULTIPLE / inner:.3g}"
            )
        found.intermediate_size = kept
    if pruning.groups:
        if config.model_type not in OWN_HEAD_WIDTH:
            raise InputError(
                f"engines work out the width of a head of {config.model_type!r} from the number of heads, so none is "
                "cut out; leave --prune groups out, and prune channels or layers"
            )
        heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        found.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        found.num_key_value_heads -= _removed(pruning.groups, groups, "groups", "group of heads")
        found.num_attention_heads = found.num_key_value_heads * (heads // groups)
        if config.model_type != "qwen3" and config.hidden_size % found.num_attention_heads:
            fitting = [kept for kept in range(1, groups) if config.hidden_size % (kept * (heads // groups)) == 0]
            raise InputError(
                f"--prune groups={pruning.groups:g} keeps {found.num_attention_heads} heads, and Transformers needs a "
                f"number that divides {config.hidden_size}; give one of "
                f"{', '.join(f'{1 - kept / groups:.3g}' for kept in reversed(fitting)) or 'none: prune channels'}"
            )
    return found


def _removed(share: float, there: int, name: str, what: str) -> int:
    count = round(share * there)
    if not 0 < count < there:
        raise InputError(
            f"--prune {name}={share:g} removes {count} of {there}, expected at least one and not every {what}; "
            f"one is {1 / there:.3g}"
        )
    return count
