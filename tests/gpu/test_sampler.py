"""The sampler that vLLM uses on CUDA devices alone, against Transformers on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solon.engines.base import Request
from solon.records import Filters
from tests.gpu.engines import (
    VOCABULARY,
    answers_of,
    apart,
    engine_of,
    finish,
    mean_gap,
    recomputed,
    requests_of,
    write_model,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GAP = {"float32": 2e-3, "bfloat16": 0.05}
"""Mean difference of a log-prob, nats."""
TEMPERATURE = 0.7
WARM = requests_of(8, temperature=TEMPERATURE)
FEW = requests_of(4, temperature=TEMPERATURE, filters=Filters(top_k=5), name="few")
VERDICT = Request(
    request_id="verdict", prompt_token_ids=tuple(range(30, 70)), max_tokens=1, label_ids=(400, 7, 41), temperature=1.0
)
LONG = [tuple(int(t) for t in np.random.default_rng(n).integers(6, VOCABULARY, 150 + 90 * n)) for n in range(3)]


def computed(model: str, dtype: str) -> dict[str, Any]:
    engine: Any = engine_of(model, dtype=dtype, max_running=8, max_batched_tokens=64, enforce_eager=False)
    found = {
        "runner": bool(engine._llm.vllm_config.use_v2_model_runner),
        "warm": answers_of(finish(engine, WARM)),
        "again": answers_of(finish(engine, WARM)),
        "seeds": answers_of(finish(engine, [replace(one, seed=one.seed + 100) for one in WARM])),
        "few": answers_of(finish(engine, FEW)),
        "verdict": finish(engine, [VERDICT, *FEW])[0].label_logprobs,
        "long": engine.sequence_logprobs(LONG),
    }
    engine.close()
    return found


def texts(requests: list[Request], answers: list[Any]) -> list[list[int]]:
    return [[*request.prompt_token_ids, *tokens] for request, (tokens, _) in zip(requests, answers, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_seeds_log_probs_labels_and_prompts_in_pieces_are_right(dtype: str, tmp_path: Path):
    model = write_model(tmp_path / "model", dtype=dtype)
    found, gap = apart(computed, model, dtype), GAP[dtype]
    assert found["runner"]  # the one of CUDA devices
    assert [tokens for tokens, _ in found["warm"]] == [tokens for tokens, _ in found["again"]]
    assert [tokens for tokens, _ in found["warm"]] != [tokens for tokens, _ in found["seeds"]]
    for requests, kind, top_k in ((WARM, "warm", 0), (FEW, "few", 5)):
        rows = recomputed(model, texts(requests, found[kind]), temperature=TEMPERATURE, top_k=top_k)
        ours = [logprobs for _, logprobs in found[kind]]
        theirs = [row[-len(mine) :] for row, mine in zip(rows, ours, strict=True)]
        # In 16 bits another token may be the fifth.
        kept = [(np.array(a)[np.isfinite(b)], np.array(b)[np.isfinite(b)]) for a, b in zip(ours, theirs, strict=True)]
        assert mean_gap([a for a, _ in kept], [b for _, b in kept]) <= gap
        assert sum(len(b) for _, b in kept) >= 0.9 * sum(map(len, theirs))
    labels = [recomputed(model, [[*VERDICT.prompt_token_ids, label]])[0][-1] for label in VERDICT.label_ids]
    assert found["verdict"] == pytest.approx(labels, abs=4 * gap)
    assert mean_gap(found["long"], recomputed(model, LONG)) <= gap  # in steps of at most 64 tokens
