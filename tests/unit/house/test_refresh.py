"""Rows of benchmarks on the performance page."""

from __future__ import annotations

import pytest

from benchmarks._refresh import refresh

RECORD = {
    "name": "ledger", "date": "2026-01-02", "commit": "abc", "machine": "m",
    "rows": [{"metric": "rate", "ours": 1234.5, "reference": None, "ratio": None, "goal": ">= 2000", "met": False}],
}  # fmt: skip


def test_rows_replace_those_between_the_marks_and_a_missed_goal_says_so():
    page = "a\n<!-- rows: ledger -->\nold\n<!-- /rows -->\nb\n<!-- rows: other -->\nkept\n<!-- /rows -->\n"
    found = refresh(page, RECORD)
    assert "| rate | 1,234 |  |  | >= 2000 | **NO** |" in found
    assert "old" not in found
    assert "kept" in found
    assert refresh(found, RECORD) == found


def test_a_page_without_a_place_for_the_rows_is_refused():
    with pytest.raises(ValueError, match="rows: ledger"):
        refresh("nothing here", RECORD)
