"""`docs/models.md` matches the matrix in tests/e2e/models."""

from __future__ import annotations

from tests.e2e.models.page import KNOWN_AS, PAGE, columns_of, render, rows_of, setting
from tests.e2e.models.refusals import MATRIX, REFUSALS, refusal_of
from tests.e2e.models.stages import STAGES


def test_the_page_lists_exactly_the_architectures_and_columns_of_the_matrix():
    text = PAGE.read_text(encoding="utf-8")
    assert rows_of(text) == list(MATRIX) == list(KNOWN_AS)
    assert columns_of(text) == [stage.title for stage in STAGES]


def test_every_cell_of_the_page_matches_the_matrix():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name, line in zip(MATRIX, lines, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
        for stage, cell in zip(STAGES, cells, strict=True):
            if refusal_of(name, stage.name) is None:
                assert float(cell) <= stage.bound, f"{name}: {stage.name}"
            else:
                assert cell.startswith("refused ("), f"{name}: {stage.name}"


def test_every_refusal_is_on_the_page_with_its_reason_and_covers_a_cell():
    text = PAGE.read_text(encoding="utf-8")
    for refusal in REFUSALS:
        assert refusal.reason in text
        assert any(refusal_of(name, stage.name) is refusal for name in refusal.names for stage in STAGES)


def test_a_value_beyond_its_bound_is_shown_as_one():
    cells = {stage.name: {"value": 1e-7, "holds": True} for stage in STAGES}
    broken = cells | {STAGES[0].name: {"value": 0.5, "holds": False}}
    page = render({**setting(), "cells": dict.fromkeys(MATRIX, cells) | {MATRIX[0]: broken}})
    assert page.count("**5.0e-01**") == 1
