"""`solon inspect`: figures from a model's files, checked against the arithmetic of attention."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from solon.cli.inspect import attention_of, describe, run_inspect, variants
from solon.errors import InputError
from solon.models.facts import ModelFacts
from solon.models.sizes import sizes_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 128256,
    "max_position_embeddings": 8192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def model(tmp_path: Path, **changes: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    return tmp_path


@pytest.mark.parametrize(("heads", "kind"), [(32, "multi-head"), (8, "grouped-query"), (1, "multi-query")])
def test_the_cache_falls_with_the_heads_of_keys_and_values(tmp_path: Path, heads: int, kind: str):
    config = CONFIG | {"num_key_value_heads": heads}
    facts = ModelFacts(path=tmp_path, config=config, tokenizer_config={}, generation={})
    sizes = sizes_of(facts)
    assert sizes is not None
    assert attention_of(sizes) == kind
    found = describe(facts, sizes, dtype="bfloat16", length=1000, concurrency=4, on_gpu=True)
    by_kind = {row["attention"]: row for row in found["cache"]}
    assert by_kind.keys() == variants(sizes).keys()
    assert by_kind[kind]["per_token"] == 2 * 32 * heads * 128 * 2
    assert by_kind[kind]["at_concurrency"] == by_kind[kind]["per_token"] * 4000
    assert by_kind["multi-query"]["ratio"] == 1 / 32
    assert by_kind["multi-head"]["per_token"] == 32 * by_kind["multi-query"]["per_token"]


def test_an_eight_billion_model_has_eight_billion_weights_and_a_learner_of_many_copies(tmp_path: Path):
    found = run_inspect(str(model(tmp_path)), dtype="bfloat16", length=None, concurrency=64, on_gpu=True, as_json=True)
    assert found["parameters"] == pytest.approx(8.03e9, rel=0.001)
    assert found["weights"] == 2 * found["parameters"]
    assert found["length"] == 8192
    roles = {row["role"]: row["bytes"] for row in found["roles"]}
    full, adapted = (roles[name] for name in roles if "group_relative" in name)
    assert full > 16 * found["parameters"] > adapted / 2 > 0
    assert roles["learner, ppo, all weights"] > full


def test_what_is_no_decoder_on_this_machine_is_refused(tmp_path: Path):
    given = {"dtype": "bfloat16", "length": None, "concurrency": 1, "on_gpu": True, "as_json": True}
    with pytest.raises(InputError, match="is not on this machine"):
        run_inspect("org/none", **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        run_inspect(str(tmp_path), **given)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is not an ordinary decoder"):
        run_inspect(str(model(tmp_path, num_local_experts=8)), **given)  # type: ignore[arg-type]
