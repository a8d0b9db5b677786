"""Formats and units of models; what is computed live is what is written; assignments under a byte budget."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from compression.assignment import assign, front, promoted
from compression.export import export
from compression.flips import Damage
from compression.live import LiveModel, load_model
from compression.quantise import weight_bytes
from compression.request import Request
from compression.sensitivity import Sweep, SweepFile, costs_of, ranking_agreement, smallest
from compression.units import Matrix, Unit, size_of, skeleton, uniform, units_of
from solon.errors import InputError
from solon.models.formats import FORMATS, SEARCHED, format_named
from tests.models import make_model

MIXED = ("w4a16-g64", "w8a8", "keep")


def unit(name: str, rows: int = 128, columns: int = 128) -> Unit:
    return Unit(name=name, matrices=(Matrix(name=name, rows=rows, columns=columns),), itemsize=4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma"])
def test_units_of_a_model_are_what_engines_fuse(tmp_path: Path, architecture: str):
    source = make_model(tmp_path / "model", architecture=architecture)
    units = units_of(skeleton(source))
    assert [one.name for one in units] == [f"{n}.{k}" for n in range(2) for k in ("qkv", "o", "gate_up", "down")]
    assert [matrix.name.rpartition(".")[2] for matrix in units[0].matrices] == ["q_proj", "k_proj", "v_proj"]
    assert not any("lm_head" in matrix.name for one in units for matrix in one.matrices)


def test_a_format_that_does_not_fit_is_refused_with_the_matrix_and_formats_that_do():
    units = [unit("0.qkv"), unit("0.odd", rows=128, columns=160)]
    with pytest.raises(InputError, match=r"0.odd is 128 x 160; take w4a16-g32 or w8a8"):
        uniform(units, "w4a16-g128")
    with pytest.raises(InputError, match=r"did you mean `w8a8`"):
        format_named("w8a88")


@pytest.mark.parametrize("forms", [MIXED, ("fp8",), ("fp8", "w4a16-g32", "w8a8")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_live_is_exactly_what_transformers_loads_and_sizes_are_those_of_the_files(
    tmp_path: Path, forms: tuple[str, ...], dtype: torch.dtype
):
    source = make_model(tmp_path / "model")
    load_model(source).to(dtype).save_pretrained(source)
    live = LiveModel.load(source)
    ids = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    kept = live.model(ids).logits
    assignment = {one.name: name for one, name in zip(live.units, itertools.cycle(forms), strict=False)}
    with live.compressed(assignment) as model:
        expected = model(ids).logits
    assert torch.equal(live.model(ids).logits, kept)  # the model is as before
    record = export(source, tmp_path / "small", live.units, assignment)
    found = load_model(tmp_path / "small")(ids).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, kept)
    saved = size_of(live.units, uniform(live.units, "keep")) - size_of(live.units, assignment)
    # Headers and the shapes that packed weights carry are not counted.
    assert record.source_weight_bytes - record.weight_bytes == pytest.approx(saved, abs=8000)
    assert weight_bytes(tmp_path / "small") == record.weight_bytes


def test_an_export_that_would_change_nothing_or_replace_something_is_refused(tmp_path: Path):
    source = make_model(tmp_path / "model")
    units = units_of(skeleton(source))
    with pytest.raises(InputError, match="nothing to write"):
        export(source, tmp_path / "out", units, uniform(units, "keep"))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists"):
        export(source, tmp_path / "there", units, uniform(units, "w8a8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]


COSTS = {
    (name, form): cost * weight
    for name, weight in (("a", 1.0), ("b", 10.0), ("c", 0.1))
    for form, cost in (("w4a16-g128", 0.04), ("w8a8", 0.01), ("keep", 0.0))
}


def test_the_assignment_is_the_best_of_all_within_the_budget():
    units = [unit(name) for name in "abc"]
    forms = ("w4a16-g128", "w8a8", "keep")
    for share in (0.15, 0.3, 0.6, 1.0):
        budget = int(share * size_of(units, uniform(units, "keep")))
        found = assign(units, COSTS, budget)
        every = [dict(zip("abc", chosen, strict=True)) for chosen in itertools.product(forms, repeat=3)]
        within = [one for one in every if size_of(units, one) <= budget]
        assert found.size <= budget
        assert found.cost == pytest.approx(min(sum(COSTS[n, f] for n, f in one.items()) for one in within))
    with pytest.raises(InputError, match=r"smallest size is 0\.13"):
        assign(units, COSTS, 10)


def test_a_larger_size_is_never_more_harmful_and_promotion_takes_the_unit_that_saves_most():
    units = [unit(name) for name in "abc"]
    points = front(units, COSTS)
    assert [one.cost for one in points] == sorted((one.cost for one in points), reverse=True)
    assert points[-1].cost == 0
    low = uniform(units, "w4a16-g128")
    assert promoted(units, COSTS, low) == {**low, "b": "w8a8"}
    assert promoted(units, COSTS, uniform(units, "keep")) is None


def damage(soft: float, nll: float) -> Damage:
    return Damage(soft_flips=soft, flips=0.0, net_flips=0.0, margin_damage=0.0, nll=nll)


def test_costs_are_half_alone_and_half_beside_the_others_and_the_guide_may_be_perplexity():
    units = [unit("a"), unit("b")]
    forms = ("w4a16-g128", "w8a8")
    sweeps = [Sweep(kind="low", unit="", form="", damage=damage(0.10, 1.0))]
    for name, alone, out in (("a", 0.02, 0.04), ("b", 0.04, 0.08)):
        sweeps += [
            Sweep(kind="in", unit=name, form="w4a16-g128", damage=damage(alone, 0.5)),
            Sweep(kind="in", unit=name, form="w8a8", damage=damage(alone / 2, -0.1)),
            Sweep(kind="out", unit=name, form="", damage=damage(out, 0.9)),
        ]
    costs = costs_of(units, forms, sweeps, guide="preferences")
    assert costs["a", "w4a16-g128"] == pytest.approx(0.5 * (0.02 + 0.06))
    assert costs["a", "w8a8"] == pytest.approx(0.5 * (0.01 + 0.03))
    assert costs["b", "keep"] == 0
    by_nll = costs_of(units, forms, sweeps, guide="perplexity")
    assert by_nll["a", "w4a16-g128"] == pytest.approx(0.5 * (0.5 + 0.1))
    # A gain by chance is a change like a loss: half of 0.1 alone, and of its share of what is added beside the others.
    assert by_nll["a", "w8a8"] == pytest.approx(0.5 * (0.1 + 0.1 / 0.5 * 0.1))
    assert smallest(units[0], forms) == "w4a16-g128"
    assert np.isnan(ranking_agreement(units, forms, sweeps))  # equal harm to perplexity: there is no ranking


def test_finished_sweeps_are_read_again_and_a_torn_line_is_dropped(tmp_path: Path):
    path = tmp_path / "sweeps.jsonl"
    first = Sweep(kind="in", unit="a", form="w8a8", damage=damage(0.1, 0.2))
    SweepFile(path).add(first)
    with path.open("a") as file:
        file.write('{"kind": "in", "un')
    again = SweepFile(path)
    assert again.get(first.key) == first
    second = Sweep(kind="out", unit="a", form="", damage=damage(0.3, 0.4))
    again.add(second)
    assert SweepFile(path).get(second.key) == second
    assert {one.name for one in FORMATS.values()} == set(FORMATS)


def test_fp8_takes_the_bytes_of_int8_and_is_chosen_only_where_it_is_named(tmp_path: Path):
    units = units_of(skeleton(make_model(tmp_path / "model")))
    assert size_of(units, uniform(units, "fp8")) == size_of(units, uniform(units, "w8a8"))
    by_default = Request(model=tmp_path, out=tmp_path).formats
    assert by_default == SEARCHED == ("w4a16-g128", "w4a16-g64", "w4a16-g32", "w8a8", "keep")
    assert smallest(units[0], ("fp8", "keep")) == "fp8"
