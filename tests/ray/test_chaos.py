"""A small campaign of the chaos harness, in every test run."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.__main__ import standin_subject
from tests.chaos.campaign import Campaign
from tests.chaos.cluster_of_our_own import ray_head


def test_a_dozen_faults_of_all_kinds_lose_nothing_and_double_nothing(tmp_path: Path):
    with ray_head(num_cpus=8) as head:
        campaign = Campaign(head, tmp_path, standin_subject(steps=40, target=1), seed=3, say=print)
        result = campaign.run(faults=12, each=12)
    assert result.complaints == []
    assert result.injected.total() == 12
    assert result.summaries[0]["faults"]["injected"] == 12
