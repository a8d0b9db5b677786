"""An engine of two ranks in a whole run: every version is attested on both, and a lost rank costs no group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from tests.e2e.conftest import Run
from tests.e2e.standin_runs import audit
from tests.e2e.test_engines import VOCAB, finish, make_requests
from tests.e2e.test_run import end, start, wait_for_step
from tests.e2e.test_survival import worker_of
from tests.engine_ranks import engine_of_ranks
from tests.unit.learner_builders import write_llama

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(900)]

TWO_RANKS = ("--set", "rollout.tensor_parallel=2", "--set", "rollout.num_cpus=0.5")


def test_two_ranks_give_the_tokens_and_log_probs_of_one_engine(tmp_path: Path):
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = write_llama(tmp_path / "llama", **sizes, vocab_size=VOCAB, max_position_embeddings=128)
    config = EngineConfig(model=model, dtype="float32", max_model_len=128, kv_cache_gib=0.1)
    requests = make_requests(6, max_tokens=12, temperature=0.0)
    with engine_of_ranks(config.model_copy(update={"tensor_parallel": 2})) as (divided, _):
        two = finish(divided, requests)
    alone = build_engine(config, name="policy-1")
    one = finish(alone, requests)
    alone.close()
    assert [list(done.token_ids) for done in two] == [list(done.token_ids) for done in one]
    for mine, theirs in zip(two, one, strict=True):
        assert list(mine.logprobs) == pytest.approx(list(theirs.logprobs), abs=1e-4)


def test_a_killed_rank_is_replaced_with_its_engine_and_no_group_is_lost(nursery: Any, tmp_path: Path):
    child = start(tmp_path, "run", *TWO_RANKS, "--steps", "14")
    try:
        wait_for_step(child, tmp_path / "runs" / "run", 3)
        worker_of(child, "FollowerShell").kill()
        output, _ = child.communicate(timeout=400)
    finally:
        end(child)
    run = Run(child.returncode, output or "", tmp_path / "runs" / "run")
    assert run.returncode == 0, run.output[-3000:]
    assert run.summary["status"] == "completed"
    assert run.summary["weights"]["attested"] == run.summary["weights"]["published"] == 14
    assert 0 < run.summary["weights"]["max_logprob_gap"] < 2e-3
    assert [event["worker"] for event in run.events if event["event"] == "worker_recovered"] == ["rollout-0"]
    assert audit(run.directory).is_balanced
    assert json.loads((run.directory / "config.json").read_text())["rollout"]["tensor_parallel"] == 2
