"""Room in vLLM's key-value cache for the few short sequences that attest new weights.

A sequence that waits for the cache waits until an answer ends, and a publication with it. vLLM's own remedy for a
full cache, to preempt the youngest request and compute it again later, is applied by hand here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

ATTEST_PLACES = 4
"""Sequences that are computed beside `max_running` answers: as many as a learner sends to attest one version."""


def make_room(core: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Preempts the youngest requests of `core`, the engine core, until the sequences fit in its next step."""
    scheduler: Any = core.scheduler
    groups = len(scheduler.kv_cache_config.kv_cache_groups)
    blocks = sum(-(-(len(sequence) + 1) // scheduler.block_size) for sequence in sequences)
    pool = scheduler.kv_cache_manager.block_pool
    # The running requests are served first, and each may need another block.
    while scheduler.running and pool.get_num_free_blocks() < groups * (blocks + len(scheduler.running)):
        youngest = max(scheduler.running, key=lambda request: (request.priority, request.arrival_time))
        scheduler.running.remove(youngest)
        scheduler._preempt_request(youngest, time.monotonic())
        # It may be resumed in the very next step, which must not take it for one that was never away.
        scheduler.prev_step_scheduled_req_ids.discard(youngest.request_id)
