"""An engine of two ranks, each on a device of its own, against an engine of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from solon.engines.base import EngineConfig
from solon.engines.runner import load_and_report
from tests.engine_ranks import engine_of_ranks
from tests.gpu.engines import (
    DEVICE,
    answers_of,
    apart,
    engine_of,
    finish,
    mean_gap,
    requests_of,
    weights_in,
    write_model,
)

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: each rank has one of its own"),
]

GREEDY = requests_of(6, temperature=0.0)
OPTIONS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "max_running": 8, "kv_cache_gib": 0.5}


def divided(models: list[str], eager: bool) -> dict[str, Any]:
    weights = weights_in(models[1], 1)
    config = EngineConfig(
        model=models[0], device=DEVICE, reloads=True, tensor_parallel=2, enforce_eager=eager, **OPTIONS
    )
    with engine_of_ranks(config, weights=[[weights]]) as (engine, _):
        before = answers_of(finish(engine, GREEDY))
        check = load_and_report(engine, weights).check
        return {"answers": [before, answers_of(finish(engine, GREEDY))], "check": check}


def whole(models: list[str]) -> list[Any]:
    engine = engine_of(models[0], **OPTIONS)
    before = answers_of(finish(engine, GREEDY))
    load_and_report(engine, weights_in(models[1], 1))
    found = [before, answers_of(finish(engine, GREEDY))]
    engine.close()
    return found


@pytest.mark.parametrize("eager", [True, False])
def test_tokens_log_probs_and_attestation_are_those_of_one_device(eager: bool, tmp_path: Path):
    models = [write_model(tmp_path / str(seed), seed=seed, tied=False, dtype="float32") for seed in range(2)]
    two, one = apart(divided, models, eager), apart(whole, models)
    for ours, theirs in zip(two["answers"], one, strict=True):
        assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
        assert mean_gap([row for _, row in ours], [row for _, row in theirs]) < 1e-3
    assert two["check"].compared
    assert two["check"].stale == ()
