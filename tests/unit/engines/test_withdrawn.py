"""The order in which requests leave vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from solon.engines.queue import Queue
from solon.engines.vllm import VllmEngine


@pytest.mark.parametrize(("ranks", "expected"), [(1, [["c", "a", "b"]]), (2, [["c"], ["a"], ["b"]])])
def test_ranks_free_the_blocks_of_aborted_requests_one_after_another_in_the_order_of_the_call(
    ranks: int, expected: list[list[str]]
):
    calls: list[list[str]] = []
    engine: Any = object.__new__(VllmEngine)
    engine.name, engine._ranks, engine._finished = "rollout-0", SimpleNamespace(size=ranks), []
    engine._client = SimpleNamespace(abort_requests=lambda ids: calls.append(list(ids)))
    engine._queue, engine._running = Queue(4), dict.fromkeys("abcd")
    for request_id in "abcd":
        engine._queue.add(request_id)
    engine._queue.let_in()
    engine.abort(["c", "a", "b"])
    assert calls == expected
    assert list(engine._running) == ["d"]
