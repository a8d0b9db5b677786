"""Every kind of compressed copy in vLLM's own server: what pruning cuts out, and what the algorithms write."""

from __future__ import annotations

from pathlib import Path

import pytest

from compression.distil import DistillationConfig
from compression.export import export
from compression.live import LiveModel
from compression.pruning.plan import Pruning
from compression.pruning.prune import prune
from compression.served_check import check_in_vllm
from compression.units import uniform
from tests.models import make_model
from tests.unit.compression.test_workflow import make_pairs

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

PROMPTS = [pair.prompt for pair in make_pairs(4)]


@pytest.mark.parametrize(
    ("form", "algorithm"), [("fp8", "rtn"), ("w8a8", "smoothquant"), ("w4a16-g64", "awq"), ("w4a16-g64", "gptq")]
)
def test_vllm_serves_what_every_algorithm_writes(tmp_path: Path, form: str, algorithm: str):
    source = make_model(tmp_path / "model")
    units = LiveModel.load(source).units
    sequences = [[*pair.prompt, *pair.chosen] for pair in make_pairs(16)]
    export(source, tmp_path / "out", units, uniform(units, form), algorithm=algorithm, calibration=sequences)
    assert check_in_vllm(tmp_path / "out", PROMPTS, log=tmp_path / "vllm.log").prefill > 0


@pytest.mark.parametrize("form", ["keep", "w4a16-g64"])
def test_vllm_serves_a_model_without_some_of_its_channels_heads_and_layers(tmp_path: Path, form: str):
    source = make_model(tmp_path / "model")
    pruning = Pruning(channels=0.25, groups=0.5, layers=0.5)
    prune(source, tmp_path / "cut", make_pairs(16), pruning, DistillationConfig(epochs=1))
    units = LiveModel.load(tmp_path / "cut").units
    export(tmp_path / "cut", tmp_path / "out", units, uniform(units, form), is_changed=True, original=source)
    assert check_in_vllm(tmp_path / "out", PROMPTS, log=tmp_path / "vllm.log").prefill > 0
