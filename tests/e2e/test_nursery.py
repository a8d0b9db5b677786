"""The nursery's own processes, started as a user starts them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nursery.grow import grow_large_judge

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_the_large_judge_is_grown_beside_the_others_and_measured(nursery: Any, tmp_path: Path):
    barely = replace(nursery, large_judge=tmp_path / "large_judge")
    report = grow_large_judge(barely, progress=False, effort=0.01)
    config = json.loads((barely.large_judge / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (2, 384)
    assert {path.name for path in barely.large_judge.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert report["held_out"].keys() == nursery.report["judge_fp"]["held_out"].keys()
    assert {path.name for path in tmp_path.iterdir()} == {"large_judge", "large_judge.lock"}
