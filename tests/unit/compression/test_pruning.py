"""Pruning: what is removed, what stays, shapes that engines serve, and what the command refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from compression.distil import DistillationConfig
from compression.export import export
from compression.live import LiveModel, load_model
from compression.pairs import Pair, laid_out, parted, scores_of
from compression.pruning.importance import Importance, importance_of
from compression.pruning.masks import alignment_only, cubic, masked, masks_of, of_zeros, set_to_zero, top_weights
from compression.pruning.plan import METHODS, Pruning, planned
from compression.pruning.prune import prune
from compression.pruning.shapes import cut_out
from compression.repair import repair
from compression.units import uniform
from solon.errors import InputError
from solon.models.certificate import read_certificate
from tests.models import make_model
from tests.unit.compression.test_workflow import compress, make_pairs

QUICK = DistillationConfig(learning_rate=1e-4, epochs=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("source") / "model")


def losses(model: Any, pair: Pair) -> dict[str, torch.Tensor]:
    """By the definition, one pair at a time."""
    rows = [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
    ids, mask, answer = laid_out(rows)
    logprobs = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    of_row = logprobs.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~answer, 0.0).sum(-1)
    tokens = len(pair.chosen)
    return {"alignment": -(of_row[0] - of_row[1]) / tokens, "utility": -of_row[0] / tokens}


@pytest.mark.parametrize("kind", ["alignment", "utility"])
def test_importance_is_the_mean_over_pairs_of_weight_times_gradient(source: Path, kind: str):
    live, pairs = LiveModel.load(source), make_pairs(11)
    found = importance_of(live.model, live.units, pairs)
    model = load_model(source).requires_grad_(True)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        weight = model.get_submodule(name).weight
        expected = torch.zeros_like(weight)
        for pair in pairs:
            (gradient,) = torch.autograd.grad(losses(model, pair)[kind], weight)
            expected += (weight * gradient).detach().abs() / len(pairs)
        assert torch.allclose(getattr(found[name], kind), expected, rtol=1e-3, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in live.model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_every_row_loses_the_share_that_was_asked_for(source: Path, method: Any, sparsity: float):
    live = LiveModel.load(source)
    found = importance_of(live.model, live.units, make_pairs(8))
    masks = masks_of(found, sparsity=sparsity, method=method)
    for name, mask in masks.items():
        assert (mask.sum(-1) == round((1 - sparsity) * mask.shape[-1])).all(), name
    if method == "alignment":
        protected = top_weights({name: one.alignment for name, one in found.items()}, 0.05)
        kept = sum(int((protected[name] & masks[name]).sum()) for name in masks)
        assert kept >= 0.99 * sum(int(one.sum()) for one in protected.values())
    if method == "magnitude":
        weight = live.model.get_submodule("model.layers.0.mlp.up_proj").weight.abs()
        mask = masks["model.layers.0.mlp.up_proj"]
        assert weight.masked_fill(~mask, torch.inf).amin(-1).ge(weight.masked_fill(mask, 0).amax(-1)).all()


def test_alignment_only_weights_are_among_the_top_of_preferences_and_not_of_text(source: Path):
    live = LiveModel.load(source)
    found = importance_of(live.model, live.units, make_pairs(8))
    aligned, text = ({name: getattr(one, kind) for name, one in found.items()} for kind in ("alignment", "utility"))
    only = alignment_only(aligned, text, share=0.05)
    share = sum(int(one.sum()) for one in only.values()) / sum(one.numel() for one in only.values())
    assert 0 < share < 0.05
    useful = top_weights(text, 0.05)
    assert not any((only[name] & useful[name]).any() for name in only)


def test_sparsity_rises_to_what_was_asked_for():
    steps = [cubic(step, 4, 0.6) for step in range(1, 5)]
    assert steps == sorted(steps)
    assert steps[-1] == 0.6


def test_zeros_stay_zeros_in_training_and_when_they_are_rounded(source: Path, tmp_path: Path):
    report = prune(source, tmp_path / "pruned", make_pairs(40), Pruning(weights=0.5), QUICK)
    assert report.steps == 5
    pruned = LiveModel.load(tmp_path / "pruned")
    zeros = {name: ~mask for name, mask in of_zeros(pruned.model, pruned.units).items()}
    for name, mask in zeros.items():
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.02), name
    assignment = uniform(pruned.units, "w4a16-g32")
    repair(source, tmp_path / "repaired", pruned.units, assignment, make_pairs(24), QUICK, start=tmp_path / "pruned")
    repaired = LiveModel.load(tmp_path / "repaired")
    export(tmp_path / "repaired", tmp_path / "out", repaired.units, assignment)
    served, ids = load_model(tmp_path / "out"), torch.arange(6, 20)[None]
    with torch.no_grad():
        logits = served(ids).logits
        with repaired.compressed(assignment) as rounded:
            assert torch.equal(rounded(ids).logits, logits)
    for name, mask in zeros.items():
        assert (repaired.model.get_submodule(name).weight[mask] == 0).all(), name
        assert (served.get_submodule(name).weight[mask] == 0).all(), name
    assert not torch.equal(repaired.model.lm_head.weight, pruned.model.lm_head.weight)


def test_training_that_makes_a_copy_worse_is_undone_and_named(source: Path, tmp_path: Path):
    pairs = make_pairs(24)
    report = prune(
        source, tmp_path / "bad", pairs, Pruning(channels=0.25), QUICK.model_copy(update={"learning_rate": 0.3})
    )
    assert not report.is_kept
    assert report.first_loss == report.last_loss
    assert "was undone: give a lower --repair-rate" in str(report)
    bare = cut_out(load_model(source), pairs, Pruning(channels=0.25)).state_dict()
    assert all(torch.equal(one, bare[name]) for name, one in load_model(tmp_path / "bad").state_dict().items())
    enough = DistillationConfig(learning_rate=3e-4, epochs=6)
    good = prune(source, tmp_path / "good", make_pairs(80), Pruning(channels=0.5, layers=0.5), enough)
    assert good.is_kept
    assert good.last_loss < good.first_loss


def test_masked_weights_get_no_gradient(source: Path):
    model = load_model(source).requires_grad_(True)
    name = "model.layers.0.mlp.up_proj"
    mask = torch.rand_like(model.get_submodule(name).weight) > 0.5
    with masked(model, {name: mask}):
        model(torch.arange(6, 20)[None]).logits.square().sum().backward()
        gradient = model.get_submodule(name).weight.grad
        assert (gradient[~mask] == 0).all()
        assert gradient[mask].abs().sum() > 0
    assert (model.get_submodule(name).weight[~mask] == 0).all()


@pytest.mark.parametrize(
    "pruning", [Pruning(channels=0.25), Pruning(groups=0.5), Pruning(layers=0.5), Pruning(channels=0.5, groups=0.5)]
)
def test_cut_models_have_the_planned_shapes_in_files_that_load(source: Path, tmp_path: Path, pruning: Pruning):
    prune(source, tmp_path / "cut", make_pairs(16), pruning, QUICK)
    expected = planned(AutoConfig.from_pretrained(source), pruning)
    found = AutoConfig.from_pretrained(tmp_path / "cut")
    for name in ("num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        assert getattr(found, name) == getattr(expected, name), name
    model, before = load_model(tmp_path / "cut"), load_model(source)
    ids = torch.arange(6, 20)[None]
    with torch.no_grad():
        assert torch.isfinite(model(ids).logits).all()
        written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)  # uses the cache of every layer
    assert written.shape[1] > ids.shape[1]
    assert sum(one.numel() for one in model.parameters()) < sum(one.numel() for one in before.parameters())


def test_channels_that_do_nothing_go_first(source: Path):
    model = load_model(source)
    inner = model.config.intermediate_size
    dead = torch.randperm(inner, generator=torch.Generator().manual_seed(0))[: inner // 4]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, dead] = 0
    pairs = make_pairs(16)
    smaller = cut_out(model, pairs, Pruning(channels=0.25))
    assert scores_of(smaller, pairs).margin_P == pytest.approx(scores_of(model, pairs).margin_P, abs=1e-3)


def test_a_layer_that_does_nothing_goes_first(source: Path):
    model = load_model(source)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    pairs = make_pairs(8)
    smaller = cut_out(model, pairs, Pruning(layers=1 / len(model.model.layers)))
    assert scores_of(smaller, pairs).margin_P == pytest.approx(scores_of(model, pairs).margin_P, abs=1e-4)


def test_a_pruned_copy_is_certified_with_what_was_removed(tmp_path: Path):
    report = compress(tmp_path, form="w8a8", prune="channels=0.125", gate="lenient", repair_rate=1e-3)
    assert report["pruning"]["channels"] == 0.125
    assert report["linear_bytes"]["after"] < report["linear_bytes"]["before"] / 4
    work = next((tmp_path / "out.work").glob("*/candidate-1"))
    assert (
        json.loads((work / "config.json").read_text())["intermediate_size"]
        < json.loads((tmp_path / "model" / "config.json").read_text())["intermediate_size"]
    )
    if report["out"]:
        assert read_certificate(tmp_path / "out")["pruning"]["channels"] == 0.125


def test_a_pruned_copy_needs_no_format(tmp_path: Path):
    report = compress(tmp_path, form="", prune="weights=0.1,method=magnitude", gate="lenient", repair_rate=1e-4)
    assert report["verdict"] == "accept", report["reason"]
    model = load_model(tmp_path / "out")
    assert float((model.model.layers[0].mlp.up_proj.weight == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_set_to_zero_removes_for_good(source: Path):
    model = load_model(source)
    name = "model.layers.0.mlp.up_proj"
    set_to_zero(model, {name: torch.zeros_like(model.get_submodule(name).weight, dtype=torch.bool)})
    assert not model.get_submodule(name).weight.any()


def test_groups_are_cut_only_where_engines_serve_what_is_left():
    llama = AutoConfig.for_model("llama", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
    with pytest.raises(InputError, match=r"keeps 24 heads.*divides 4096; give one of 0.5, 0.75"):
        planned(llama, Pruning(groups=0.25))
    assert planned(llama, Pruning(groups=0.5)).num_attention_heads == 16
    qwen = AutoConfig.for_model("qwen2", hidden_size=896, num_attention_heads=14, num_key_value_heads=2)
    with pytest.raises(InputError, match=r"leave --prune groups out"):
        planned(qwen, Pruning(groups=0.5))
    other = AutoConfig.for_model("gpt2")
    with pytest.raises(InputError, match=r"'gpt2', expected one of llama"):
        planned(other, Pruning(channels=0.5))


def test_protected_weights_of_a_crowded_row_go_in_the_order_of_their_scores():
    scores = torch.rand(8, 64, generator=torch.Generator().manual_seed(0))
    crowded = scores.clone()
    crowded[0] += 10
    one = Importance(alignment=crowded, utility=scores, wanda=scores, magnitude=scores)
    (mask,) = masks_of({"m": one}, sparsity=0.75, method="alignment").values()
    assert (mask.sum(-1) == 16).all()
    kept, removed = crowded[0][mask[0]], crowded[0][~mask[0]]
    assert kept.mean() > removed.mean() + 0.3


def test_pairs_are_an_even_sample_of_prompts_whatever_the_order_of_the_file():
    pairs = [replace(pair, prompt_id=f"p{number // 4}") for number, pair in enumerate(make_pairs(400))]
    parts = parted(pairs)
    assert parted(pairs[::-1]) == parts
    for some in parts.values():
        prompts = {pair.prompt_id for pair in some}
        assert {pair.prompt_id for pair in some[: len(prompts)]} == prompts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heads=0.5", r"--prune got 'heads=0.5', expected weights=SHARE"),
        ("weights", r"--prune got 'weights'"),
        ("weights=0.1,weights=0.2", r"each once"),
        ("weights=half", r"--prune weights is 'half'"),
        ("channels=1", r"--prune channels is '1', expected a share"),
        ("weights=0.5,method=best", r"--prune method is 'best'"),
    ],
)
def test_what_is_not_understood_is_named(text: str, words: str):
    with pytest.raises(InputError, match=words):
        Pruning.parsed(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "", "prune": ""}, r"got no target, expected one of --format"),
        ({"form": "w8a8", "size": 0.3, "prune": "layers=0.5"}, r"got both --format and --size"),
        ({"screen": 0.5}, r"only --size makes some, or --format with --recover"),
        ({"prune": "layers=0.01"}, r"layers=0.01 removes 0 of 2"),
        ({"prune": "groups=0.99"}, r"groups=0.99 removes 4 of 4"),
        ({"prune": "channels=0.99"}, r"channels=0.99 keeps 0 of"),
        ({"prune": "weights=0.5", "algorithm": "gptq"}, r"gptq would fill the zeros"),
        ({"prune": "channels=0.5,method=wanda"}, r"method is about weights"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_anything_is_computed(
    tmp_path: Path, settings: dict[str, Any], words: str
):
    with pytest.raises(InputError, match=words):
        compress(tmp_path, **settings)
    assert not (tmp_path / "out.work").exists()
