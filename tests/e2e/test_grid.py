"""PPO on the grid of a format, as a user starts it: engines sample from the weights that `solon compress` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compression.export import export
from compression.live import LiveModel, load_model
from compression.units import uniform
from tests.e2e.conftest import run_solon

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

GRID = "w4a16-g64"


def test_a_run_on_a_grid_is_attested_and_its_policy_is_compressed_without_a_change(nursery: Any, tmp_path: Path):
    run = run_solon(tmp_path, "demo", "--set", "steps=4", "--set", f"learn.grid={GRID}")
    assert run.returncode == 0, run.output[-3000:]
    weights = run.summary["weights"]
    assert weights["attested"] == weights["published"] == 4
    assert 0 < weights["max_logprob_gap"] < 2e-3
    # The policy of the rollouts is the policy that is trained: rounding is no difference between them.
    fresh = [line["learn/mismatch_gap/max"] for line in run.metrics if line["batch/staleness/max"] == 0]
    assert fresh
    assert max(fresh) < 1e-3
    policy = sorted((run.directory / "checkpoints").glob("*/policy"))[-1]
    live = LiveModel.load(policy)
    export(policy, tmp_path / "small", live.units, uniform(live.units, GRID))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "small")(ids).logits, live.model(ids).logits)
