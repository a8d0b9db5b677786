"""The comparison of live tensors with a payload, on engines of a few lines that lay weights out as real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from solon.engines import live_values
from solon.engines.live_values import Live, same_values
from solon.engines.live_weights import PACKED, CheckpointTensors, LiveWeights
from solon.errors import AttestationError
from solon.records import WeightCheck

WIDTH = 16


def sent(seed: int, *, zero_biases: bool = False) -> dict[str, Tensor]:
    """A little model's tensors as files have them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (40, WIDTH),
        "model.layers.0.self_attn.q_proj.weight": (16, WIDTH),
        "model.layers.0.self_attn.k_proj.weight": (8, WIDTH),
        "model.layers.0.self_attn.v_proj.weight": (8, WIDTH),
        "model.layers.0.self_attn.q_proj.bias": (16,),
        "model.layers.0.self_attn.k_proj.bias": (8,),
        "model.layers.0.self_attn.v_proj.bias": (8,),
        "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
        "model.layers.0.mlp.c_fc.weight": (WIDTH, 24),
        "model.layers.0.attention.query_key_value.weight": (12, WIDTH),
        "model.layers.0.attention.query_key_value.bias": (12,),
        "model.layers.1.experts.0.w1.weight": (8, WIDTH),
        "model.layers.1.experts.1.w1.weight": (8, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if zero_biases:
        made |= {name: torch.zeros_like(tensor) for name, tensor in made.items() if name.endswith("bias")}
    return made


ORDER = torch.tensor([3, 0, 9, 1, 2, 11, 10, 4, 8, 7, 5, 6])


def laid_out(tensors: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The same in an engine's layout."""
    own = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    attention = "model.layers.0.self_attn."

    def joined(leaf: str) -> Tensor:
        return torch.cat([own[f"{attention}{part}_proj.{leaf}"] for part in "qkv"])

    return {
        "model.embed_tokens.weight": torch.cat([own["model.embed_tokens.weight"], torch.ones(24, WIDTH, dtype=dtype)]),
        f"{attention}qkv_proj.weight": joined("weight"),
        f"{attention}qkv_proj.bias": joined("bias"),
        f"{attention}o_proj.weight": own[f"{attention}o_proj.weight"],
        "model.layers.0.mlp.c_fc.weight": own["model.layers.0.mlp.c_fc.weight"].T.contiguous(),
        "model.layers.0.attention.query_key_value.weight": own["model.layers.0.attention.query_key_value.weight"][
            ORDER
        ],
        "model.layers.0.attention.query_key_value.bias": own["model.layers.0.attention.query_key_value.bias"][ORDER],
        "model.layers.1.experts.w13_weight": torch.stack(
            [own[f"model.layers.1.experts.{i}.w1.weight"] for i in (0, 1)]
        ),
        "model.norm.weight": own["model.norm.weight"],
    }


def live_of(held: dict[str, Tensor], *, packed: tuple[str, ...] = ("qkv_proj.weight",)) -> list[Live]:
    """Layers that are read directly, layers that only multiply, and a head that is tied to the embedding."""
    live = []
    for name, tensor in held.items():
        if name.endswith(packed):
            live.append(
                Live(
                    name=name + PACKED,
                    loaded_as=name,
                    dtype=tensor.dtype,
                    multiply=lambda x, weight=tensor: x @ weight.T,
                    width=tensor.shape[1],
                )
            )
        else:
            live.append(Live(name=name, loaded_as=name, dtype=tensor.dtype, tensor=tensor))
    head = held["model.embed_tokens.weight"].clone()
    live.append(
        Live(
            name="lm_head.weight" + PACKED,
            loaded_as="model.embed_tokens.weight",
            dtype=head.dtype,
            multiply=lambda x: x @ head.T,
            width=head.shape[1],
        )
    )
    return live


def check(learnt: LiveWeights, live: list[Live], tensors: dict[str, Tensor]) -> WeightCheck:
    return learnt.check(live, tensors, salt=1, dtype="bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_completely_loaded_weights_are_fresh_in_every_layout(dtype: torch.dtype):
    learnt = LiveWeights(live_of(laid_out(sent(0), dtype)), sent(0))
    found = check(learnt, live_of(laid_out(sent(1), dtype)), sent(1))
    assert (found.stale, found.unknown) == ((), ("model.layers.1.experts.w13_weight",))
    assert found.compared == 9


@pytest.mark.parametrize("step", [1.0, 1e-2])
def test_each_stale_tensor_is_found_and_only_it(step: float):
    old, new = sent(0), {name: tensor + step * sent(1)[name] for name, tensor in sent(0).items()}
    held_old, held_new = laid_out(old), laid_out(new)
    for name in (one.name for one in live_of(held_old)):
        learnt = LiveWeights(live_of(held_old), old)
        stale_one = {one.name: one for one in live_of(held_old)}[name]
        live = [stale_one if one.name == name else one for one in live_of(held_new)]
        assert check(learnt, live, new).stale == (name,)


def test_a_step_below_rounding_leaves_nothing_stale():
    old = {name: tensor.bfloat16().float() for name, tensor in sent(0).items()}
    new = {name: tensor * (1 + 1e-6) for name, tensor in old.items()}
    learnt = LiveWeights(live_of(laid_out(old)), old)
    for tensors in (new, {name: tensor.bfloat16() for name, tensor in new.items()}):  # sent in either dtype
        assert check(learnt, live_of(laid_out(old)), tensors).stale == ()


def test_biases_that_are_zero_at_first_do_not_fix_the_order_of_their_rows():
    learnt = LiveWeights(live_of(laid_out(sent(0, zero_biases=True))), sent(0, zero_biases=True))
    assert check(learnt, live_of(laid_out(sent(1))), sent(1)).stale == ()


def test_a_square_matrix_of_zeros_does_not_count_as_understood():
    name = "model.layers.0.self_attn.o_proj.weight"
    old = sent(0) | {name: torch.zeros(WIDTH, WIDTH)}
    learnt = LiveWeights(live_of(laid_out(old)), old)
    turned = laid_out(sent(1)) | {name: sent(1)[name].T.bfloat16()}
    assert name in check(learnt, live_of(turned), sent(1)).unknown


def test_a_tensor_of_unknown_layout_must_change_when_its_layer_is_sent_again():
    expert = "model.layers.1.experts.0.w1.weight"
    new = sent(0) | {expert: sent(1)[expert]}
    learnt = LiveWeights(live_of(laid_out(sent(0))), sent(0))
    assert check(learnt, live_of(laid_out(sent(0))), sent(0)).stale == ()
    assert check(learnt, live_of(laid_out(sent(0))), new).stale == ("model.layers.1.experts.w13_weight",)
    assert check(learnt, live_of(laid_out(new)), new).stale == ()


def test_other_columns_of_a_wide_packed_copy_are_read_for_every_version(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_values, "_READ_BUDGET", 0)
    monkeypatch.setattr(live_values, "_MIN_COLUMNS", 4)
    old, new = sent(0), sent(0)
    name = "model.layers.0.self_attn.q_proj.weight"
    new[name] = new[name].clone()
    new[name][:, 5] += 1  # one column of sixteen
    found = 0
    for version in range(60):
        learnt = LiveWeights(live_of(laid_out(old)), old)
        found += bool(learnt.check(live_of(laid_out(old)), new, salt=version, dtype="bfloat16").stale)
    assert 5 <= found <= 30  # a quarter


def test_names_may_differ_in_the_wrapper_around_the_layers():
    tensors = {name.removeprefix("model."): tensor for name, tensor in sent(0).items()}
    learnt = LiveWeights(live_of(laid_out(sent(0))), tensors)
    assert check(learnt, live_of(laid_out(sent(0))), tensors).compared == 9


@pytest.mark.parametrize("wrapper", ["transformer.", "model.", "model.language_model."])
def test_a_published_tensor_is_found_under_another_name_than_in_the_file(wrapper: str):
    """Files of GPT-2 and BLOOM say `h.0…` where learner and engine say `transformer.h.0…`."""

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {wrapper + name.removeprefix("model."): tensor for name, tensor in tensors.items()}

    in_file = {name.removeprefix("model."): tensor for name, tensor in sent(0).items()}
    head = {"model.embed_tokens.weight": laid_out(sent(1))["model.embed_tokens.weight"]}
    learnt = LiveWeights(live_of(laid_out(sent(0))), in_file)
    found = check(learnt, live_of(laid_out(sent(1))), renamed(sent(1)))
    assert (found.compared, found.stale, found.uncompared) == (9, (), ())
    learnt = LiveWeights(live_of(laid_out(sent(0))), in_file)
    found = check(learnt, live_of(laid_out(sent(0)) | head), renamed(sent(1)))
    assert len(found.stale) == 8  # all but embedding and head, and the unknown one, which had to change
    assert "model.layers.1.experts.w13_weight" in found.stale


def test_a_file_that_has_the_wrapper_around_some_layers_alone_is_compared_whole():
    in_file = {n.removeprefix("model.") if ".0." in n else n: tensor for n, tensor in sent(0).items()}
    learnt = LiveWeights(live_of(laid_out(sent(0))), in_file)
    stale = {"model.layers.0.self_attn.o_proj.weight": laid_out(sent(0))["model.layers.0.self_attn.o_proj.weight"]}
    assert check(learnt, live_of(laid_out(sent(1)) | stale), sent(1)).stale == tuple(stale)


def test_an_ambiguous_name_is_never_guessed():
    tensors = {"a": torch.randn(2, 3), "model.a": torch.randn(2, 3)}
    live = [Live(name=n, loaded_as=n, dtype=torch.float32, tensor=t) for n, t in tensors.items()]
    found = check(LiveWeights(live, tensors), live, tensors)
    assert (found.compared, found.unknown) == (0, ("a", "model.a"))


def test_an_understood_tensor_that_is_unsent_or_missing_is_reported_as_uncompared():
    learnt = LiveWeights(live_of(laid_out(sent(0))), sent(0))
    norm, other = "model.norm.weight", "model.layers.0.mlp.c_fc.weight"
    live = [one for one in live_of(laid_out(sent(1))) if one.name != other]
    found = check(learnt, live, {name: tensor for name, tensor in sent(1).items() if name != norm})
    assert (found.compared, found.stale) == (7, ())
    assert set(found.uncompared) == {norm, other}
    assert set(found.unknown) == {norm, other, "model.layers.1.experts.w13_weight"}


def test_an_engine_that_shows_no_tensor_does_not_count_as_fresh():
    with pytest.raises(AttestationError, match="no live tensor"):
        LiveWeights([], sent(0))


QUERIES = "model.layers.0.attention.query_key_value."


@pytest.mark.parametrize("packed", [(), ("query_key_value.weight",)])
def test_rows_in_another_order_are_compared_exactly_in_the_order_that_was_learnt(packed: tuple[str, ...]):
    learnt = LiveWeights(live_of(laid_out(sent(0)), packed=packed), sent(0))
    right = laid_out(sent(1))
    assert check(learnt, live_of(right, packed=packed), sent(1)).stale == ()
    weight = right[QUERIES + "weight"]
    swapped = weight[[1, 0, *range(2, 12)]]
    shuffled = torch.stack([weight[torch.randperm(12), column] for column in range(WIDTH)], 1)
    for wrong in (swapped, shuffled, sent(1)[QUERIES + "weight"].bfloat16()):
        (stale,) = check(learnt, live_of(right | {QUERIES + "weight": wrong}, packed=packed), sent(1)).stale
        assert stale.removesuffix(PACKED) == QUERIES + "weight"


@pytest.mark.parametrize("packed", [(), ("query_key_value.weight", "qkv_proj.weight")])
def test_a_bias_that_is_zero_at_first_has_the_order_of_its_weight(packed: tuple[str, ...]):
    learnt = LiveWeights(live_of(laid_out(sent(0, zero_biases=True)), packed=packed), sent(0, zero_biases=True))
    right = laid_out(sent(1))
    joined = "model.layers.0.self_attn.qkv_proj.bias"
    assert check(learnt, live_of(right, packed=packed), sent(1)).stale == ()
    for name, wrong in ((joined, right[joined].roll(8)), (QUERIES + "bias", sent(1)[QUERIES + "bias"].bfloat16())):
        assert check(learnt, live_of(right | {name: wrong}, packed=packed), sent(1)).stale == (name,)


def test_an_order_hidden_by_identical_rows_is_unknown():
    old = sent(0, zero_biases=True)
    old[QUERIES + "weight"][3] = old[QUERIES + "weight"][7]
    learnt = LiveWeights(live_of(laid_out(old)), old)
    found = check(learnt, live_of(laid_out(sent(1))), sent(1))
    assert (found.stale, found.uncompared) == ((), ())
    assert {QUERIES + "weight", QUERIES + "bias"} < set(found.unknown)


def test_a_norm_of_ones_is_compared_in_the_order_of_the_features():
    old = sent(0) | {"model.norm.weight": torch.ones(WIDTH)}
    learnt = LiveWeights(live_of(laid_out(old)), old)
    right = laid_out(sent(1))
    wrong = right | {"model.norm.weight": right["model.norm.weight"].flip(0)}
    assert check(learnt, live_of(right), sent(1)).stale == ()
    assert check(learnt, live_of(wrong), sent(1)).stale == ("model.norm.weight",)


def test_values_are_compared_piece_by_piece_in_the_dtype_that_is_held(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live_values, "_CHUNK_ELEMENTS", 10)
    tensor = torch.randn(7, 3, 2)
    assert same_values(tensor.bfloat16(), tensor)
    assert not same_values(tensor, tensor.bfloat16())
    other = tensor.clone()
    other[-1, -1, -1] += 1
    assert not same_values(other, tensor)
    assert not same_values(tensor[:6], tensor)
    assert same_values(torch.tensor(2.0), torch.tensor(2.0))
    assert not same_values(torch.tensor(2.0), torch.tensor([2.0]))


def test_the_tensors_of_a_checkpoint_are_read_from_all_its_files(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-2.safetensors")
    read = CheckpointTensors(str(tmp_path))
    assert sorted(read) == ["a", "b"]
    assert torch.equal(read["b"], torch.zeros(3))


def test_a_packed_copy_is_never_multiplied_with_another_width_than_its_own():
    def multiply(probe_KC: Tensor) -> Tensor:
        assert probe_KC.shape[1] == 8, "a kernel would read beyond its operand"
        return probe_KC @ weight.T

    weight = torch.randn(24, 8)
    parts = {"up_proj.weight": weight[:12], "gate_proj.weight": weight[12:]}
    live = Live(
        name="gate_up_proj.weight", loaded_as="gate_up_proj.weight", dtype=torch.float32, multiply=multiply, width=8
    )
    learnt = LiveWeights([live], parts, joined={"gate_up_proj": ("up_proj", "gate_proj")})
    assert check(learnt, [live], parts).compared == 1
    assert check(LiveWeights([live], {"gate_up_proj.weight": weight.T}), [live], parts).compared == 0


def test_a_packed_copy_that_is_not_understood_is_unknown():
    weight = torch.randn(4, 4)
    live = Live(name="a" + PACKED, loaded_as="a", dtype=torch.float32, multiply=lambda x: x @ weight.T, width=4)
    found = check(LiveWeights([live], {"a": torch.randn(4, 4)}), [live], {"a": weight})
    assert (found.compared, found.unknown) == (0, ("a" + PACKED,))


def test_a_processor_that_flushes_subnormals_to_zero_leaves_nothing_stale():
    weight = torch.tensor([[1e-39, 1.0], [2.0, -1e-40]]).bfloat16()
    assert bool((weight != 0).all())
    flushed = torch.where(weight.abs() < 1e-38, 0, weight)
    live = Live(name="a", loaded_as="a", dtype=torch.bfloat16, multiply=lambda x: x @ flushed.T, width=2)
    learnt = LiveWeights([live], {"a": weight})
    assert check(learnt, [live], {"a": weight}).compared == 1
    assert check(learnt, [live], {"a": weight}).stale == ()
