"""New weights under CUDA graphs: the engine then is one that was started with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from solon.engines.runner import load_and_report
from tests.gpu.engines import answers_of, apart, engine_of, finish, requests_of, weights_in, write_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GREEDY = requests_of(6, temperature=0.0)


def fresh(model: str) -> Any:
    """What an engine of these weights answers."""
    engine = engine_of(model, enforce_eager=False)
    found = answers_of(finish(engine, GREEDY))
    engine.close()
    return found


def reloaded(models: list[str]) -> dict[str, Any]:
    """An engine of the first model that takes the weights of the others, one after the other, and loses some."""
    from solon.engines.vllm_weights import live_model

    engine: Any = engine_of(models[0], enforce_eager=False)
    network = live_model(engine._core)
    before = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    found: dict[str, Any] = {"answers": [answers_of(finish(engine, GREEDY))], "checks": []}
    for version, model in enumerate(models[1:], start=1):
        weights = weights_in(model, version)
        found["checks"].append(load_and_report(engine, weights).check)
        found["answers"].append(answers_of(finish(engine, GREEDY)))
    found["moved"] = [name for name, place in before.items() if network.get_parameter(name).data_ptr() != place]
    spoilt = {}
    for name, parameter in network.named_parameters():
        if not parameter.numel():
            continue
        first = parameter.data.view(-1)[:1]
        kept = first.clone()
        first.add_(0.5)
        spoilt[name] = engine.check_weights(weights).stale
        first.copy_(kept)
    found["spoilt"] = spoilt
    found["last"] = engine.check_weights(weights).stale
    engine.close()
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_and_log_probs_are_those_of_a_fresh_engine_and_a_changed_element_is_found(tied: bool, tmp_path: Path):
    models = [write_model(tmp_path / str(seed), seed=seed, tied=tied) for seed in range(3)]
    found = apart(reloaded, models)
    ours, theirs = found["answers"][2], apart(fresh, models[2])
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
    for (_, logprobs), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(other), atol=1e-3, rtol=0)
    assert found["answers"][0] != found["answers"][1] != found["answers"][2]
    assert found["moved"] == []  # graphs compute with these addresses
    for check in found["checks"]:
        assert check.compared
        assert not (check.stale)
        assert not (check.unknown)
    # A tied head is its embedding: one tensor, found under either name.
    assert all(stale for stale in found["spoilt"].values())
    assert len(found["spoilt"]) >= 3 * 6
    assert found["last"] == ()
