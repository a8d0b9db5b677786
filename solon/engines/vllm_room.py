"""The room in vLLM's key-value cache: how much is in use, and making some for the few short sequences that attest
new weights.

A sequence without cache blocks waits until an answer ends, and delays the publication. vLLM's own remedy for a full
cache, preempting the youngest request and recomputing it later, is applied here explicitly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

ATTEST_PLACES = 4
"""Sequences computed in addition to `max_running` answers: the number that a learner sends to attest one version."""


def make_room(core: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Preempts the youngest requests of the engine core `core` until the sequences fit in its next step."""
    scheduler: Any = core.scheduler
    groups = len(scheduler.kv_cache_config.kv_cache_groups)
    blocks = sum(-(-(len(sequence) + 1) // scheduler.block_size) for sequence in sequences)
    pool = scheduler.kv_cache_manager.block_pool
    # Running requests come first, and each may need another block.
    while scheduler.running and pool.get_num_free_blocks() < groups * (blocks + len(scheduler.running)):
        youngest = max(scheduler.running, key=lambda request: (request.priority, request.arrival_time))
        scheduler.running.remove(youngest)
        scheduler._preempt_request(youngest, time.monotonic())
        # It may be resumed in the next step, which must treat it as preempted.
        scheduler.prev_step_scheduled_req_ids.discard(youngest.request_id)


def cache_usage(core: Any) -> float:
    """Share of the key-value cache of the engine core `core` that requests use, 0 to 1."""
    usage: float = core.scheduler.kv_cache_manager.usage
    return usage


def preemptions(core: Any) -> int:
    """How often the requests that the engine core holds were preempted so far."""
    return sum(request.num_preemptions for request in core.scheduler.requests.values())
