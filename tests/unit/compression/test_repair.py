"""Training on the grid: what is trained is what is served, and lost margins come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compression.distil import Distillation, DistillationConfig, Distilled
from compression.export import export
from compression.flips import damage
from compression.live import LiveModel, load_model
from compression.pairs import scores_of
from compression.repair import repair
from compression.units import forms_of, uniform
from learners.core.grid import on_grid, trained_on_grid
from solon.models.formats import format_of
from tests.models import make_model
from tests.unit.compression.test_workflow import make_pairs


@pytest.mark.parametrize("forms", [("w4a16-g64", "w8a8"), ("fp8", "w4a16-g32"), ("fp8", "fp8")])
def test_weights_that_were_trained_on_the_grid_are_exactly_those_that_are_served(
    tmp_path: Path, forms: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Distillation, "held_loss", lambda _: 0.0)  # whatever it is, the training is kept
    source = make_model(tmp_path / "model")
    live = LiveModel.load(source)
    assignment = {unit.name: form for unit, form in zip(live.units, forms * 4, strict=True)}
    repair(source, tmp_path / "trained", live.units, assignment, make_pairs(60), DistillationConfig(learning_rate=3e-5))
    trained = LiveModel.load(tmp_path / "trained")
    ids = torch.randint(3, 100, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with trained_on_grid(trained.model, forms_of(trained.units, assignment)):
            in_training = trained.model(ids).logits
        with trained.compressed(assignment) as model:
            rounded = model(ids).logits
        export(tmp_path / "trained", tmp_path / "out", trained.units, assignment)
        served = load_model(tmp_path / "out")(ids).logits
    assert torch.equal(in_training, served)
    assert torch.equal(rounded, served)
    assert not torch.equal(LiveModel.load(source).model.lm_head.weight, trained.model.lm_head.weight)


def test_a_16_bit_model_is_trained_on_the_scales_that_its_files_have(tmp_path: Path):
    source = make_model(tmp_path / "model")
    load_model(source).to(torch.bfloat16).save_pretrained(source)
    live = LiveModel.load(source)
    assignment, seen = uniform(live.units, "w4a16-g32"), {}

    class Watched(Distillation):
        def finish(self) -> Distilled:
            found = super().finish()
            layers = dict(self._student.named_modules())
            seen.update({name: layers[name].parametrizations.weight.original.detach() for name in forms})
            return found

    forms = forms_of(live.units, assignment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compression.repair.Distillation", Watched)
        repair(
            source, tmp_path / "trained", live.units, assignment, make_pairs(60), DistillationConfig(learning_rate=3e-5)
        )
    export(tmp_path / "trained", tmp_path / "out", live.units, assignment)
    served = load_model(tmp_path / "out")
    student = load_model(tmp_path / "trained")
    for name, form in forms.items():
        trained = on_grid(seen[name].to(torch.bfloat16), form)
        assert torch.equal(trained, on_grid(student.get_submodule(name).weight, form))
        assert torch.equal(trained, served.get_submodule(name).weight), name


def test_margins_that_three_bits_lost_come_back(tmp_path: Path):
    source, pairs = make_model(tmp_path / "model"), make_pairs(48)
    live = LiveModel.load(source)
    before = scores_of(live.model, pairs)
    liked = [pair for pair, margin in zip(pairs, before.margin_P, strict=True) if margin > 0]
    before = scores_of(live.model, liked)
    assignment = {unit.name: "w3a16-g128" for unit in live.units}
    with live.compressed(assignment) as model:
        hurt = damage(before, scores_of(model, liked))
    config = DistillationConfig(learning_rate=3e-4, epochs=30)
    repair(source, tmp_path / "repaired", live.units, assignment, liked, config)
    repaired = LiveModel.load(tmp_path / "repaired")
    with repaired.compressed(assignment) as model:
        after = damage(before, scores_of(model, liked))
    assert after.margin_damage < 0.3 * hurt.margin_damage


def test_gradients_pass_the_grid_and_the_weights_are_as_before_afterwards(tmp_path: Path):
    live = LiveModel.load(make_model(tmp_path / "model"))
    model, assignment = live.model.requires_grad_(True), uniform(live.units, "w4a16-g32")
    layer = model.model.layers[0].mlp.down_proj
    kept = layer.weight.detach().clone()
    with trained_on_grid(model, forms_of(live.units, assignment)):
        assert torch.equal(layer.weight, on_grid(kept, format_of("w4a16-g32")))
        model(torch.arange(8)[None]).logits.square().sum().backward()
        gradient = layer.parametrizations.weight.original.grad
        assert gradient.abs().sum() > 0
    assert torch.equal(layer.weight, kept)
    assert list(dict(model.named_parameters())) == list(dict(load_model(tmp_path / "model").named_parameters()))
