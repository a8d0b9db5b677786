"""Pools that follow the load on real actors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.standins.elastic_on_ray import changing_load

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


async def test_a_pool_of_engines_grows_when_they_become_slow_and_shrinks_when_they_are_fast_again(ray_cluster: Any):
    seen = await changing_load(steps=110, slow_from=10, slow_to=40)  # which checks that each group was trained once
    sizes = [size for _, size in seen.sizes]
    assert sizes[0] == sizes[-1] == 1
    assert max(sizes) >= 2
    told = [name for name, _ in seen.events]
    assert "lane_left" in told
    assert not {"group_lost", "worker_lost", "group_dropped"} & set(told)
    reasons = [fields["reason"] for name, fields in seen.events if name == "resized"]
    assert "needed" in reasons[0]
    assert "would do" in reasons[-1]
