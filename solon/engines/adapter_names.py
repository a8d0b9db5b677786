"""Names of adapters: of their tensors in files (PEFT's), and of the policy versions that engines serve."""

from __future__ import annotations

from solon.errors import AttestationError

PREFIX = "base_model.model."
"""PEFT's prefix of every name."""
_A, _B = ".lora_A.weight", ".lora_B.weight"
MOST_RANK = 512
"""vLLM takes no larger rank."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, MOST_RANK)
"""Room that vLLM makes for a rank; a test compares it with the installed source."""


def factor_names(layer: str) -> tuple[str, str]:
    """Names of the factors A and B of a layer.

    >>> factor_names("model.layers.0.mlp.up_proj")[0]
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    """
    return f"{PREFIX}{layer}{_A}", f"{PREFIX}{layer}{_B}"


def layer_of(name: str) -> tuple[str, str]:
    """The layer of a factor, and which it is, "A" or "B". Raises AttestationError for another tensor."""
    for ending, factor in ((_A, "A"), (_B, "B")):
        if name.startswith(PREFIX) and name.endswith(ending):
            return name.removeprefix(PREFIX).removesuffix(ending), factor
    raise AttestationError(
        f"an adapter came with the tensor {name!r}, expected factors named {PREFIX}LAYER{_A} and {_B}; publish the "
        "adapter of linear layers alone"
    )


def version_name(version: int, loaded: int) -> str:
    """Name of an adapter in an engine. loaded: how often the engine loaded this version before: a name is never used
    twice, since vLLM keys its prefix cache by it.

    >>> version_name(3, 0), version_name(3, 1)
    ('solon-v3', 'solon-v3.1')
    """
    return f"solon-v{version}" + (f".{loaded}" if loaded else "")


def room_for(rank: int) -> int:
    """The smallest rank that vLLM makes room for and that holds this one.

    >>> room_for(4), room_for(17)
    (8, 32)
    """
    return next(room for room in RANKS if room >= rank)
