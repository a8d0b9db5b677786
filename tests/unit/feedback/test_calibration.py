"""From raw margins to margins that come true as often as they claim, and the file that keeps the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError
from solon.feedback.quality.calibration import (
    FEWEST_PAIRS,
    Calibration,
    Fit,
    calibrate,
    calibrate_principles,
    fit,
)
from solon.feedback.quality.calibration_book import CalibrationBook
from solon.feedback.quality.metrics import nll, sigmoid

LN3 = math.log(3)


def make_rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_gold(
    num: int = 2000, *, temperature: float = 2.0, bias: float = 0.0, spread: float = 2.0, seed: int = 0
) -> tuple[Any, Any]:
    """Raw margins of a judge whose calibrated ones are raw / temperature - bias, and hard targets."""
    rng = make_rng(seed)
    honest = rng.normal(0, spread, num)
    return (honest + bias) * temperature, (rng.random(num) < sigmoid(honest)).astype(float)


def make_calibration(**changes: Any) -> Calibration:
    raw, targets = make_gold(200)
    task = changes.pop("task", "pairwise")
    return calibrate(task, raw, targets, rng=make_rng(), resamples=20).model_copy(update=changes)


# -- fit -------------------------------------------------------------------------------------------------------


def test_the_temperature_of_one_margin_matches_the_hand_computed_one():
    # right in 3 of 4 pairs at a raw margin of 2: sigmoid(2 / T) = 3/4
    found = fit([2.0] * 400, [1.0] * 300 + [0.0] * 100, fit_bias=False)
    assert found.temperature == pytest.approx(2 / LN3)
    assert (found.bias, found.bound) == (0.0, "none")
    assert fit([2.0] * 400, [0.75] * 400, fit_bias=False).temperature == pytest.approx(2 / LN3)


def test_temperature_and_bias_of_two_margins_match_the_hand_computed_ones():
    # 0 -> 1/4 and 4 -> 9/10: log-odds -ln 3 and 2 ln 3
    found = fit([0.0] * 200 + [4.0] * 200, [0.25] * 200 + [0.9] * 200, fit_bias=True)
    assert found.temperature == pytest.approx(4 / (3 * LN3), rel=1e-5)
    assert found.bias == pytest.approx(LN3, rel=1e-5)
    assert found([0.0, 4.0]) == pytest.approx([-LN3, 2 * LN3], rel=1e-5)


def test_a_weight_counts_like_as_many_pairs():
    raw, targets = [2.0] * 200, [1.0] * 100 + [0.0] * 100
    weighted = fit(raw, targets, [3.0] * 100 + [1.0] * 100, fit_bias=False)
    assert weighted.temperature == pytest.approx(2 / LN3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_fit_finds_the_numbers_that_made_the_data(scale: float):
    raw, targets = make_gold(10_000, temperature=2.0 * scale, bias=0.7)
    found = fit(raw, targets, fit_bias=True)
    assert found.temperature == pytest.approx(2.0 * scale, rel=0.06)
    assert found.bias == pytest.approx(0.7, abs=0.06)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_no_numbers_nearby_predict_better_than_the_fitted_ones(seed: int, fit_bias: bool):
    raw, targets = make_gold(300, bias=0.5 if fit_bias else 0.0, seed=seed)
    best = fit(raw, targets, fit_bias=fit_bias)
    least = nll(best(raw), targets).value()
    for factor in (0.95, 1.05):
        for shift in (-0.05, 0.0, 0.05) if fit_bias else (0.0,):
            near = Fit(temperature=best.temperature * factor, bias=best.bias + shift)
            assert nll(near(raw), targets).value() >= least


def test_it_does_not_matter_on_which_side_gold_has_the_better_answer():
    raw, targets = make_gold(500)
    chosen_first = np.where(targets == 1, raw, -raw)
    assert fit(chosen_first, np.ones(500), fit_bias=False).temperature == pytest.approx(
        fit(raw, targets, fit_bias=False).temperature, rel=1e-5
    )


def test_a_judge_that_is_always_right_is_trusted_as_far_as_the_number_of_pairs_allows():
    raw = np.array([1.0, -1.0] * 100)
    found = fit(raw, (raw > 0).astype(float), fit_bias=False)
    assert found.bound == "sharp"
    # the mean margin becomes ln 201, odds of 201 to 1 after 200 pairs without a mistake
    assert found.temperature == pytest.approx(1 / math.log(201))
    far = fit(raw + 40, (raw > 0).astype(float), fit_bias=True)
    assert far.bound == "sharp"
    assert far([41.0, 39.0]) == pytest.approx([math.log(201), -math.log(201)], rel=1e-5)


def test_a_judge_that_says_the_opposite_is_hardly_counted():
    raw, targets = make_gold(500)
    found = fit(-raw, targets, fit_bias=False)
    assert found.bound == "flat"
    assert np.abs(found(raw)).mean() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("raw", "targets", "fit_bias", "message"),
    [
        ([1.0] * 50, [1.0] * 50, False, rf"got 50 gold pairs.*expected at least {FEWEST_PAIRS}.*label more"),
        ([1.0, 2.0] * 100, [1.0] * 200, True, "all 200 targets are 1, expected both kinds"),
        ([0.0] * 200, [1.0] * 200, False, "says 0.0 about all 200 gold pairs"),
        ([3.0] * 200, [1.0, 0.0] * 100, True, "says 3.0 about all 200 gold pairs"),
        ([1.0, math.nan] * 100, [1.0] * 200, False, "raw_margins: got nan"),
        ([1.0] * 200, [2.0] * 200, False, "expected probabilities from 0 to 1"),
        ([1.0] * 200, [1.0] * 199, False, "expected one number per pair"),
    ],
)
def test_gold_that_determines_no_calibration_is_refused(raw: Any, targets: Any, fit_bias: bool, message: str):
    with pytest.raises(InputError, match=message):
        fit(raw, targets, fit_bias=fit_bias)


def test_few_pairs_of_large_weight_are_few():
    with pytest.raises(InputError, match="that count as 10"):
        fit([1.0] * 1000, [1.0] * 1000, [1.0] * 10 + [0.0] * 990, fit_bias=False)


# -- calibrate -------------------------------------------------------------------------------------------------


def test_calibration_corrects_an_overconfident_judge_as_measured_out_of_sample():
    raw, targets = make_gold(4000, temperature=2.5)
    found = calibrate("pairwise", raw, targets, rng=make_rng(), resamples=100)
    assert found.temperature == pytest.approx(2.5, rel=0.1)
    assert found.bias == 0
    assert found.before.ece.value > 0.08
    assert found.after.ece.value < 0.03
    assert found.after.debiased_error < 0.02
    assert found.after.nll.value < found.before.nll.value
    assert found.after.brier.value < found.before.brier.value
    assert found.after.ece.low <= found.after.ece.value <= found.after.ece.high
    assert (found.pairs, found.folds, found.warning) == (4000, 5, "")


def test_the_reported_figures_are_not_those_of_the_pairs_that_were_fitted_on():
    raw, targets = make_gold(120, temperature=1.0)
    found = calibrate("pointwise", raw, targets, rng=make_rng(), resamples=10)
    fitted = fit(raw, targets, fit_bias=True)
    assert found.after.nll.value > nll(fitted(raw), targets).value()
    assert "fitted on 120 pairs" in found.warning


def test_pairs_of_one_prompt_stay_in_one_fold(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[set[float], set[float]]] = []
    prompts = np.repeat(np.arange(40), 5)
    raw, targets = make_gold(200)

    def spy(raw_N: Any, targets_N: Any, weights_N: Any, fold_N: Any, *, fit_bias: bool) -> Any:
        for fold in np.unique(fold_N):
            seen.append((set(prompts[fold_N == fold]), set(prompts[fold_N != fold])))
        return raw_N

    monkeypatch.setattr("solon.feedback.quality.calibration._out_of_sample", spy)
    calibrate("pairwise", raw, targets, rng=make_rng(), clusters_N=prompts, resamples=5)
    assert len(seen) == 5
    assert all(not inside & outside for inside, outside in seen)
    with pytest.raises(InputError, match="gather gold from more prompts"):
        calibrate("pairwise", raw, targets, rng=make_rng(), clusters_N=np.zeros(200), resamples=5)


def test_a_principle_gets_its_own_calibration_where_it_gains_by_it_and_has_the_pairs():
    sure, fair, few = make_gold(900, temperature=5.0, seed=1), make_gold(900, seed=2), make_gold(60, seed=3)
    raw, targets = (np.concatenate(side) for side in zip(sure, fair, few, strict=True))
    principles = ["sure"] * 900 + ["fair"] * 900 + ["few"] * 60
    found = calibrate_principles("pairwise", raw, targets, principles, rng=make_rng(), resamples=30)
    assert [one.principle_id for one in found] == ["", "fair", "sure"]
    assert found[1].temperature == pytest.approx(2.0, rel=0.2)
    assert found[2].temperature == pytest.approx(5.0, rel=0.2)
    alike = calibrate_principles(
        "pairwise", *make_gold(1200), ["one"] * 600 + ["other"] * 600, rng=make_rng(4), resamples=30
    )
    assert [one.principle_id for one in alike] == [""]


def test_a_bias_for_pairs_is_refused():
    record = make_calibration().model_dump()
    with pytest.raises(ValueError, match="a bias would favour the answer shown first"):
        Calibration.model_validate(record | {"bias": 0.1})


# -- book ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrations() -> list[Calibration]:
    task = make_calibration(temperature=2.0)
    return [
        task,
        task.model_copy(update={"principle_id": "kind", "temperature": 4.0}),
        make_calibration(task="pointwise", temperature=2.0, bias=0.5),
    ]


def make_book(calibrations: list[Calibration], *, identity: str = "judge-a", judge: str = "") -> CalibrationBook:
    return CalibrationBook(calibrations, identity=identity, judge=judge)


def test_a_principle_without_its_own_calibration_has_the_task_s(calibrations: list[Calibration]):
    book = make_book(calibrations)
    assert book.apply("pairwise", "kind", 8.0) == 2.0
    assert book.apply("pairwise", "brief", 8.0) == 4.0
    assert book.apply("pointwise", "kind", 8.0) == 3.5


def test_a_task_without_a_calibration_is_refused(calibrations: list[Calibration]):
    book = make_book(calibrations, judge="tiny")
    for refuse in (lambda: book.require("score"), lambda: book.apply("score", "kind", 1.0)):
        with pytest.raises(InputError, match="calibration of tiny is for pairwise, pointwise, expected one for score"):
            refuse()
    book.require("pairwise")


def test_without_a_calibration_margins_stay_as_they_are():
    book = CalibrationBook.empty()
    book.require("score")
    assert book.apply("score", "kind", 1.7) == 1.7


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["kind", "brief"]))
def test_calibrated_margins_of_a_pair_are_exactly_antisymmetric(
    calibrations: list[Calibration], raw: float, principle: str
):
    book = make_book(calibrations)
    assert book.apply("pairwise", principle, raw) == -book.apply("pairwise", principle, -raw)


def test_a_saved_book_comes_back_whole(calibrations: list[Calibration], tmp_path: Path):
    book = make_book(calibrations, judge="tiny")
    path = book.save(tmp_path / "new" / "book.json")
    again = CalibrationBook.load(path, identity="judge-a")
    assert again.calibrations == book.calibrations
    assert (again.identity, again.judge) == (book.identity, book.judge)
    assert [file.name for file in path.parent.iterdir()] == ["book.json"]


def test_a_calibration_of_another_judge_is_refused_by_both_names(calibrations: list[Calibration], tmp_path: Path):
    path = make_book(calibrations, judge="tiny").save(tmp_path / "book.json")
    with pytest.raises(InputError, match=r"made for judge-a \(tiny\), expected one for judge-b.*calibrate this judge"):
        CalibrationBook.load(path, identity="judge-b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(schema="other/v1"), "schema"),
        (lambda file: file.update(extra=1), "unknown key `extra`"),
        (lambda file: file.update(calibrations=[]), "calibrations"),
        (
            lambda file: file["calibrations"].append(file["calibrations"][0]),
            r"pairwise \(all principles\) occurs twice",
        ),
        (lambda file: file["calibrations"][0].update(temperature=0), "temperature"),
        (lambda file: file["calibrations"][0].update(bias=1), "would favour"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(
    calibrations: list[Calibration], tmp_path: Path, change: Any, message: str
):
    path = make_book(calibrations).save(tmp_path / "book.json")
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))
    with pytest.raises(InputError, match=message):
        CalibrationBook.load(path, identity="judge-a")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", "holds a list"), ("\0", "cannot be read")]
)
def test_a_file_that_is_no_book_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "book.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        CalibrationBook.load(path, identity="judge-a")
    with pytest.raises(InputError, match="does not exist"):
        CalibrationBook.load(tmp_path / "none.json", identity="judge-a")


def test_a_book_that_cannot_be_written_says_so_and_leaves_nothing(calibrations: list[Calibration], tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make_book(calibrations).save(tmp_path / "taken" / "book.json")
    (tmp_path / "book.json").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        make_book(calibrations).save(tmp_path / "book.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["book.json", "taken"]
