"""Whether a model can be divided over the ranks of an engine, as vLLM divides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config.pools import PoolSpec
from solon.errors import InputError
from solon.models.facts import ModelFacts

VOCABULARY_ROWS = 64
"""vLLM pads a vocabulary to a multiple of this before it divides it."""


def check_ranks(facts: ModelFacts, pool: PoolSpec, *, role: str, others: int = 0) -> None:
    """Raises InputError for a model that the ranks of this pool's engines cannot divide. others: further judges in the
    same actor."""
    ranks, key = pool.num_ranks, key_of(pool)
    if ranks == 1:
        return
    who = f"{role} model {facts.path}: {key} = {ranks}"
    if facts.gives_rewards:
        raise InputError(f"{who} with a reward model, expected a language model; set {key} = 1")
    if others:
        raise InputError(
            f"{who} with {others} further judge(s) in one actor, expected none: a process is a rank of one engine "
            f"only; set {key} = 1, or remove [feedback.cascade], [feedback.jury] or the proxy"
        )
    for what, size in _odd(facts, ranks):
        fits = [some for some in range(ranks, 0, -1) if not list(_odd(facts, some))]
        raise InputError(
            f"{who} does not divide its {size} {what}, which every rank gets a share of; set {key} = {fits[0]}"
        )


def key_of(pool: PoolSpec) -> str:
    """The key that sets the number of ranks of an engine."""
    return pool.key("num_ranks") if pool.section.startswith("pools.") else f"{pool.section}.tensor_parallel"


def _odd(facts: ModelFacts, ranks: int) -> Iterator[tuple[str, int]]:
    """What cannot be divided into this many parts, and its size."""
    text = facts.text
    heads = _count(text, "num_attention_heads", "n_head")
    if heads is not None and heads % ranks:
        yield "attention heads", heads
    kv_heads = _count(text, "num_key_value_heads") or heads
    # With fewer of them than ranks, several ranks hold the same one.
    if kv_heads is not None and kv_heads % ranks and ranks % kv_heads:
        yield "heads of keys and values", kv_heads
    width = _count(text, "intermediate_size", "n_inner", "ffn_dim")
    if width is not None and width % ranks:
        yield "features of the feed-forward layers (intermediate_size)", width
    elif width is not None and (group := _group_size(facts.config)) and (width // ranks) % group:
        yield f"features of the feed-forward layers into groups of {group}, in which it is quantised,", width
    if (experts := _count(text, "moe_intermediate_size")) and facts.experts and experts % ranks:
        yield "features of an expert (moe_intermediate_size)", experts
    vocabulary = _count(text, "vocab_size")
    if vocabulary is not None and -(-vocabulary // VOCABULARY_ROWS) * VOCABULARY_ROWS % ranks:
        yield f"tokens of the vocabulary, padded to a multiple of {VOCABULARY_ROWS},", vocabulary


def _count(text: Mapping[str, Any], *keys: str) -> int | None:
    return next((value for key in keys if type(value := text.get(key)) is int and value > 0), None)


def _group_size(config: Mapping[str, Any]) -> int:
    """Columns that share a scale in a quantised model; 0: whole rows."""
    found = config.get("quantization_config") or config.get("compression_config")
    groups = found.get("config_groups") if isinstance(found, dict) else None
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        size = weights.get("group_size") if isinstance(weights, dict) else None
        if type(size) is int and size > 0:
            return size
    return 0
