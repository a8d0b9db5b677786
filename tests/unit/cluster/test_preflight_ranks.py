"""Models that the ranks of an engine cannot divide are refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.config.pools import PoolSpec
from cluster.preflight.ranks import check_ranks
from solon.errors import InputError
from solon.models.facts import ModelFacts

LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "vocab_size": 49152, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
"""Of SmolLM2-135M."""


def facts_of(**changed: Any) -> ModelFacts:
    return ModelFacts(path=Path("model"), config=LLAMA | changed, tokenizer_config={}, generation={})


def pool_of(ranks: int) -> PoolSpec:
    pool = PoolSpec(role="rollout", num_ranks=ranks)
    pool._section = "rollout"
    return pool


@pytest.mark.parametrize(
    ("changed", "ranks", "what"),
    [
        ({}, 2, "divide its 9 attention heads"),
        ({}, 9, "divide its 1536 features of the feed-forward layers"),
        ({"num_attention_heads": 12, "num_key_value_heads": 6}, 4, "divide its 6 heads of keys and values"),
        ({"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 1001}, 2, "its 1001 features"),
        ({"num_attention_heads": 10, "num_key_value_heads": 5, "intermediate_size": 1000}, 5, "of the vocabulary"),
        ({"num_attention_heads": 8, "num_key_value_heads": 8, "num_local_experts": 4, "moe_intermediate_size": 33}, 2,
         "features of an expert"),
    ],
)  # fmt: skip
def test_a_size_that_does_not_divide_is_named(changed: dict[str, Any], ranks: int, what: str):
    with pytest.raises(InputError, match=rf"policy model .*: rollout\.tensor_parallel = {ranks} .*{what}"):
        check_ranks(facts_of(**changed), pool_of(ranks), role="policy")


def test_the_largest_number_that_fits_is_proposed():
    with pytest.raises(InputError, match=r"set rollout\.tensor_parallel = 3$"):
        check_ranks(facts_of(), pool_of(8), role="policy")


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(9, 3, 3), (32, 8, 8), (32, 2, 8), (16, 1, 4)])
def test_fewer_heads_of_keys_than_ranks_are_held_by_several(heads: int, kv_heads: int, ranks: int):
    check_ranks(facts_of(num_attention_heads=heads, num_key_value_heads=kv_heads), pool_of(ranks), role="policy")


def test_groups_of_a_quantised_model_stay_whole():
    scheme = {"config_groups": {"group_0": {"weights": {"group_size": 128}}}}
    small = facts_of(num_attention_heads=8, num_key_value_heads=8, quantization_config=scheme)
    check_ranks(small, pool_of(4), role="judge")  # 1536 / 4 = 3 x 128
    with pytest.raises(InputError, match="into groups of 128"):
        check_ranks(small, pool_of(8), role="judge")


def test_a_reward_model_and_further_judges_have_one_rank():
    rewards = facts_of(architectures=["LlamaForSequenceClassification"], num_labels=1)
    with pytest.raises(InputError, match="with a reward model, expected a language model"):
        check_ranks(rewards, pool_of(3), role="judge")
    with pytest.raises(InputError, match=r"2 further judge\(s\) in one actor"):
        check_ranks(facts_of(), pool_of(3), role="judge", others=2)


def test_one_rank_takes_every_model():
    check_ranks(facts_of(num_attention_heads=7, intermediate_size=13), pool_of(1), role="policy", others=3)
