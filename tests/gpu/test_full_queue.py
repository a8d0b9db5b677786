"""A publication while twice as many requests wait as are decoded together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solon.engines.runner import load_and_report
from solon.records import Filters
from tests.gpu.engines import apart, engine_of, finish, mean_gap, recomputed, requests_of, weights_in, write_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RUNNING, STEPS, LENGTH = 8, 20, 120
MOST_STEPS = 4
"""Steps of an answer for which a publication may stop the others."""
REQUESTS = [
    request
    for name in "abc"
    for request in requests_of(RUNNING, max_tokens=LENGTH, filters=Filters(min_tokens=LENGTH), name=name)
]


def published(models: list[str]) -> dict[str, Any]:
    engine: Any = engine_of(models[0], max_running=RUNNING, enforce_eager=False)
    weights = weights_in(models[1], 1)
    for request in REQUESTS:
        engine.add(request)
    for _ in range(STEPS):
        engine.step()
    before = {one.request_id: len(one.token_ids) for one in engine.unfinished()}
    receipt = load_and_report(engine, weights)
    after = {one.request_id: len(one.token_ids) for one in engine.unfinished()}
    done = {one.request_id: one for one in finish(engine)}
    engine.close()
    return {"before": before, "after": after, "done": done, "receipt": receipt}


def test_the_pause_is_a_few_steps_and_what_waited_is_computed_with_the_new_weights_alone(tmp_path: Path):
    models = [write_model(tmp_path / str(seed), seed=seed) for seed in range(2)]
    found = apart(published, models)
    assert len(found["before"]) == len(found["after"]) == RUNNING
    assert found["receipt"].check.stale == ()
    for name, tokens in found["before"].items():
        assert found["after"][name] - tokens <= MOST_STEPS
    begun = set(found["before"])
    done = [found["done"][request.request_id] for request in REQUESTS]
    assert {len(one.segments) for one in done if one.request_id in begun} == {2}
    waited = [(r, one) for r, one in zip(REQUESTS, done, strict=True) if r.request_id not in begun]
    assert len(waited) == 2 * RUNNING
    assert {one.segments for _, one in waited} == {((1, LENGTH),)}
    # Its prompts are those of the first: what they had cached under the old weights must not be found again.
    rows = recomputed(models[1], [[*request.prompt_token_ids, *one.token_ids.tolist()] for request, one in waited])
    assert mean_gap([one.logprobs for _, one in waited], [row[-LENGTH:] for row in rows]) <= 0.05
