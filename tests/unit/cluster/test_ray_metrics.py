"""The export of a run's figures through Ray: what is said when it fails, and its switch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

import cluster.ray_metrics as module
from cluster.config.pools import PoolSpec
from cluster.launch import WorkerPool, WorkerSet
from cluster.ray_metrics import SWITCH, RayMeter, Sampling, exports_for, is_on
from solon.errors import InputError
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.ledger import LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.telemetry.exports import METRICS, Moment, RunExports
from solon.telemetry.totals import RunTotals


class Recorded:
    """In place of Ray's metrics."""

    made: dict[str, Recorded]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert isinstance(tag_keys, tuple)
        self.tag_keys, self.records = tag_keys, list[tuple[float, dict[str, str]]]()
        self.made[name] = self

    def _record(self, value: float, tags: dict[str, str]) -> None:
        assert tags.keys() == set(self.tag_keys)
        self.records.append((value, tags))

    set = _record


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    monkeypatch.setattr(Recorded, "made", {}, raising=False)
    monkeypatch.setattr(module, "Counter", Recorded)
    monkeypatch.setattr(module, "Gauge", Recorded)
    return Recorded.made


def make_totals() -> RunTotals:
    return RunTotals(staleness_bound=2, total_steps=5)


def test_a_metric_is_made_once_with_the_run_among_its_labels(recorded: Mapping[str, Recorded]):
    said: list[str] = []
    meter = RayMeter("night", say=said.append)
    meter.add(METRICS["groups"], 0, {"stage": "trained"})
    meter.add(METRICS["groups"], 4, {"stage": "trained"})
    meter.set(METRICS["step"], 3, {})
    assert recorded["solon_groups"].records == [
        (0, {"run": "night", "stage": "trained"}),
        (4, {"run": "night", "stage": "trained"}),
    ]
    assert recorded["solon_step"].records == [(3, {"run": "night"})]
    assert said == []


def test_the_name_of_a_run_is_written_in_ascii_which_is_all_that_ray_takes(recorded: Mapping[str, Recorded]):
    RayMeter("nächte 2", say=lambda text: None).set(METRICS["step"], 3, {})
    assert recorded["solon_step"].records == [(3, {"run": "n%C3%A4chte 2"})]


def test_a_failure_is_said_once_and_ends_the_export_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        raise RuntimeError("Ray is not initialised")

    monkeypatch.setattr(module, "Gauge", failing)
    said: list[str] = []
    meter = RayMeter("night", say=said.append)
    for _ in range(5):
        meter.set(METRICS["step"], 1, {})
    assert said == [
        "warning: the run's metrics are no longer exported through Ray: RuntimeError: Ray is not initialised"
    ]
    assert len(calls) == 1


@pytest.mark.parametrize("value", ["", "yes", "2"])
def test_another_value_of_the_switch_than_0_and_1_is_refused(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv(SWITCH, value)
    with pytest.raises(InputError, match=f"{SWITCH} is .*expected 0 or 1"):
        is_on()


def test_figures_are_exported_unless_they_are_switched_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(SWITCH, raising=False)
    assert isinstance(exports_for("night", make_totals(), {}, say=print), RunExports)
    monkeypatch.setenv(SWITCH, "0")
    assert exports_for("night", make_totals(), {}, say=print) is None


def worker(state: str) -> Any:
    return SimpleNamespace(guard=SimpleNamespace(status=lambda: {"state": state}))


def test_a_sample_counts_the_workers_of_every_lane_and_none_of_the_audit():
    def pool(role: str, *states: str) -> WorkerPool:
        return WorkerPool(spec=PoolSpec(role=role), lanes=tuple(worker(state) for state in states), started=[])

    workers = WorkerSet(
        pools={
            "policy": pool("rollout", "up", "being replaced"),
            "judge": pool("judge", "up"),
            "learner": pool("learner", "given up"),
            "audit": pool("audit", "up"),
        }
    )
    taken: list[Moment] = []

    async def run() -> None:
        ledger = AsyncLedger(LedgerConfig(batch_groups=4), StalenessConfig())
        exports = cast(Any, SimpleNamespace(sample=taken.append))
        async with Sampling(exports, ledger=ledger, workers=workers, clock=lambda: 7.0, every_s=0.01):
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert len(taken) >= 3
    assert taken[0].workers == {"generate": ["up", "being replaced"], "label": ["up"], "learn": ["given up"]}
    assert taken[-1].groups["ready"] == 0
    assert taken[-1].batch_groups == 4


def test_a_run_without_export_takes_no_samples():
    async def run() -> None:
        async with Sampling(None, ledger=cast(Any, None), workers=WorkerSet(pools={}), clock=lambda: 0.0):
            await asyncio.sleep(0)

    asyncio.run(run())
