"""Harm by gradients: exact for small changes, one figure a pair, and its part in the choice of what is swept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from compression import screen
from compression.assignment import assign, random_assignments
from compression.flips import Damage, soft_flips
from compression.live import LiveModel
from compression.pairs import scores_of
from compression.screen import (
    agreement,
    answer_changes,
    completed,
    margin_changes,
    output_change,
    screened,
    soft_flips_of,
    swept_units,
)
from compression.sensitivity import Sweep, SweepFile, measured, plan_of, sweeps_of
from compression.units import size_of, uniform
from solon.errors import RunFailedError
from solon.models.formats import KEEP, format_of
from tests.models import make_model
from tests.unit.compression.test_formats import unit
from tests.unit.compression.test_workflow import make_pairs

FORMS = ("w4a16-g32", "w8a8")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    return LiveModel.load(make_model(tmp_path_factory.mktemp("screen") / "model"))


def test_a_small_change_of_a_unit_is_predicted_exactly_for_every_pair(live: LiveModel, monkeypatch: pytest.MonkeyPatch):
    pairs, step = make_pairs(12), 1e-3
    noise = {
        id(live.layers[matrix.name]): torch.randn(
            matrix.rows, matrix.columns, generator=torch.Generator().manual_seed(number)
        )
        for number, matrix in enumerate(m for one in live.units for m in one.matrices)
    }

    def nudged(layer, x_RTI, form):
        return x_RTI @ (step * noise[id(layer)]).T

    monkeypatch.setattr(screen, "output_change", nudged)
    predicted, of_answers = (of(live, pairs, ["w8a8"], rows=10) for of in (margin_changes, answer_changes))
    before = scores_of(live.model, pairs)
    for one in live.units:
        layers = [live.layers[matrix.name] for matrix in one.matrices]
        sides = []
        for sign in (1, -1):
            for layer in layers:
                layer.weight.data += sign * step * noise[id(layer)]
            sides.append(scores_of(live.model, pairs))
            for layer in layers:
                layer.weight.data -= sign * step * noise[id(layer)]
        for name, found_P in (
            ("margin_P", predicted[one.name, "w8a8"]),
            ("chosen_P", of_answers[one.name, "w8a8"][0]),
            ("rejected_P", of_answers[one.name, "w8a8"][1]),
        ):
            exact_P = (getattr(sides[0], name) - getattr(sides[1], name)) / 2  # terms of second order cancel
            assert np.abs(found_P - exact_P).max() < 0.02 * np.abs(exact_P).max() + 1e-5, (one.name, name)
    assert np.abs(scores_of(live.model, pairs).margin_P - before.margin_P).max() < 1e-4
    assert all(parameter.grad is None for parameter in live.model.parameters())


def test_the_change_of_an_output_has_rounded_weights_and_rounded_inputs(live: LiveModel):
    layer = live.layers[live.units[0].matrices[0].name]
    x_RTI = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    for name in FORMS:
        with live.compressed({live.units[0].name: name}):
            after = layer(x_RTI)
        found = output_change(layer, x_RTI, format_of(name))
        assert torch.allclose(found, after - layer(x_RTI), atol=1e-5)
        assert found.abs().max() > 1e-4


def test_gradients_rank_units_and_formats_as_sweeps_do(live: LiveModel, tmp_path: Path):
    pairs = make_pairs(96)
    before = scores_of(live.model, pairs)
    estimates = soft_flips_of(before, margin_changes(live, pairs, FORMS))
    plan = [one for one in plan_of(live.units, FORMS) if one.kind == "in"]
    sweeps = sweeps_of(plan, SweepFile(tmp_path / "s"), lambda some: measured(live, pairs, before, some))
    assert len(estimates) == len(plan) == 16
    found = agreement(estimates, sweeps)
    assert found is not None
    assert found > 0.8
    for form in FORMS:  # also among the units of one format
        exact = [one.damage.soft_flips for one in sweeps if one.form == form]
        assert spearmanr([estimates[one.unit, form] for one in sweeps if one.form == form], exact).statistic > 0.6


def test_the_batch_size_changes_estimates_by_rounding_alone(live: LiveModel):
    pairs = [replace(pair, prompt=pair.prompt[: 1 + n % 5]) for n, pair in enumerate(make_pairs(9))]
    whole, small = margin_changes(live, pairs, FORMS), margin_changes(live, pairs, FORMS, rows=2)
    assert all(np.abs(whole[key] - small[key]).max() < 1e-5 for key in whole)
    before = scores_of(live.model, pairs)
    changed = replace(before, chosen_P=before.chosen_P + whole["0.o", "w8a8"])
    assert soft_flips_of(before, whole)["0.o", "w8a8"] == pytest.approx(soft_flips(before, changed).mean())


def test_a_finished_screen_is_read_again_and_one_that_was_cut_is_made_again(
    live: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pairs, kept = make_pairs(6), tmp_path / "screen.json"
    before = scores_of(live.model, pairs)
    first = screened(live, pairs, before, FORMS, kept)
    kept.write_text(kept.read_text()[:40])
    assert screened(live, pairs, before, FORMS, kept) == pytest.approx(first)
    monkeypatch.setattr(screen, "margin_changes", None)
    assert screened(live, pairs, before, FORMS[:1], kept) == pytest.approx(
        {key: value for key, value in first.items() if key[1] == FORMS[0]}
    )


def damage(soft: float) -> Damage:
    return Damage(soft_flips=soft, flips=0.0, net_flips=0.0, margin_damage=0.0, nll=0.0)


def test_the_highest_share_is_swept_and_the_others_costs_are_on_the_scale_of_sweeps():
    units, forms = [unit(name) for name in "abcd"], ("w4a16-g128", "w8a8")
    alone = {"a": 1.0, "b": 9.0, "c": 3.0, "d": 2.0}
    screen_costs = {(name, form): alone[name] * (1 if form == "w8a8" else 4) for name in alone for form in forms}
    assert swept_units(units, forms, screen_costs, 0.5) == ["b", "c"]
    assert swept_units(units, forms, screen_costs, 0.01) == ["b"]
    assert swept_units(units, forms, screen_costs, 1.0) == ["b", "c", "d", "a"]
    costs = {("b", form): 0.5 * screen_costs["b", form] for form in forms} | {("b", KEEP): 0.0}
    whole = completed(costs, screen_costs, units)
    assert whole["a", "w4a16-g128"] == pytest.approx(0.5 * 4)
    assert whole["b", "w8a8"] == costs["b", "w8a8"]
    assert [whole[name, KEEP] for name in "abcd"] == [0.0] * 4
    assert assign(units, whole, int(0.2 * size_of(units, uniform(units, KEEP)))).assignment.keys() == set("abcd")


def test_too_few_or_equal_sweeps_have_no_agreement():
    sweeps = [Sweep(kind="in", unit=name, form="w8a8", damage=damage(n / 10)) for n, name in enumerate("abc")]
    estimates = {(name, "w8a8"): math.exp(n) for n, name in enumerate("abc")}
    assert agreement(estimates, sweeps) == pytest.approx(1.0)
    assert agreement(estimates, sweeps[:2]) is None
    assert agreement(dict.fromkeys(estimates, 1.0), sweeps) is None


def test_sweeps_that_are_left_out_are_an_error(tmp_path: Path):
    plan = plan_of([unit("a")], ["w8a8"])
    with pytest.raises(RunFailedError, match=r"0 of 3 sweeps were measured, expected all"):
        sweeps_of(plan, SweepFile(tmp_path / "s"), lambda missing: [])


def test_what_measures_is_closed_at_once_when_a_sweep_cannot_be_kept(tmp_path: Path):
    ended = []

    def measure(missing):
        try:
            for one in missing:
                yield Sweep(kind=one.kind, unit=one.unit, form=one.form, damage=damage(0.1))
        finally:
            ended.append(True)

    file = SweepFile(tmp_path / "missing" / "sweeps")
    with pytest.raises(FileNotFoundError) as kept:
        sweeps_of(plan_of([unit("a")], ["w8a8"]), file, measure)
    assert ended, kept  # while the traceback lives


def test_random_assignments_use_the_budget_and_differ():
    units = [unit(name) for name in "abcdef"]
    costs = {(one.name, form): 1.0 for one in units for form in ("w4a16-g128", "w8a8", KEEP)}
    whole = size_of(units, uniform(units, KEEP))
    budget = int(0.4 * whole)
    found = random_assignments(units, costs, budget, 8, seed=0)
    assert found == random_assignments(units, costs, budget, 8, seed=0)
    assert len({tuple(sorted(one.items())) for one in found}) > 1
    largest = unit("a").size(format_of(KEEP)) - unit("a").size(format_of("w8a8"))
    assert all(budget - largest < size_of(units, one) <= budget for one in found)
