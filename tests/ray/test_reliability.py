"""Workers that die, hang, lie or starve, one fault at a time, on real actors. `World.check` has the invariants after
each fault: every group trained exactly once, bit by bit as recorded."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.judge import JudgeActor
from cluster.config.run_file import RunFile
from cluster.launch import Launcher
from cluster.pools.base import Role
from cluster.pools.learner import LearnerRole
from solon.constitution.constitution import Constitution
from solon.errors import RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.ledger.staleness import StalenessConfig
from solon.runs.directory import RunDirectory
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from tests.ray.world import QUICK, Fault, World, gone, is_alive
from tests.unit.endpoint_server import EndpointServer, answer, error, half, hang_up, never, raw
from tests.unit.run_files import CONSTITUTION

pytestmark = pytest.mark.ray


async def test_a_learner_killed_while_it_holds_a_batch_loses_and_doubles_nothing(ray_cluster):
    """A consumer dies holding a lease: the driver keeps the lease, and the next learner receives it again."""
    async with World(steps=5, learn_s=0.3) as world:
        world.begin()
        await world.until(lambda: len(world.watcher.batches) == 2 and world.count("leased"))
        await world.kill("learner")
        await world.ended()
        assert world.told("worker_lost")[0]["worker"] == "learner"
        assert world.told("learner_trained_again") == [{"steps": 2, "same_weights": True}]


async def test_a_learner_killed_while_the_loop_waits_for_a_batch_is_back_when_the_batch_is_ready(ray_cluster):
    """A consumer dies blocked in an empty queue: only the ledger holds the batch, so it goes to the next learner."""
    async with World(steps=3, generate_s=1.0) as world:
        world.begin()
        await world.until(lambda: world.count("generating") and not world.count("leased"))
        await world.kill("learner")
        await world.ended()
        assert [fields["worker"] for fields in world.told("worker_recovered")] == ["learner"]
        assert world.told("learner_trained_again") == []  # it had received nothing


async def test_groups_that_an_engine_made_before_it_was_killed_are_trained(ray_cluster):
    """A producer dies after returning: payloads belong to the driver, so they outlive it."""
    async with World(steps=4, engines=1, generate_s=0.02, label_s=0.4, tokens=40_000) as world:
        world.begin()
        await world.until(lambda: world.count("judging") + world.count("generated") >= 3)
        made = {report.ordinal for report in world.watcher.generations}
        await world.kill("rollout-0")
        await world.ended()
        assert not made & {fields["ordinal"] for fields in world.told("group_lost")}


async def test_groups_held_by_a_killed_engine_are_generated_again_and_its_late_report_is_refused(ray_cluster):
    """A producer dies mid-rollout: the same draw under the next attempt, which fences off its predecessor."""
    async with World(steps=4, engines=2, generate_s=0.4) as world:
        world.begin()
        await world.until(lambda: world.watcher.batches and any(o["holder"] == "rollout-0" for o in world.ledger.out()))
        mine = {o["ordinal"]: o["attempt"] for o in world.ledger.out() if o["holder"] == "rollout-0"}
        await world.kill("rollout-0")
        await world.until(lambda: {o["ordinal"] for o in world.told("group_lost")} & set(mine))
        lost = world.told("group_lost")[0]
        late = lost["ordinal"], lost["attempt"]
        assert not await world.ledger.commit_generation(*late, head=9, nbytes=1, payload=None)
        await world.ended()
        last = {report.ordinal: report.attempt for report in world.watcher.generations}
        # A group may be lost a second time, when the engine's successor has it before its first heartbeat.
        assert all(last[fields["ordinal"]] > fields["attempt"] for fields in world.told("group_lost"))


async def test_a_group_whose_engine_dies_after_the_report_and_before_the_payload_is_generated_again(ray_cluster):
    """A producer dies while returning: there is a report of a payload that does not exist."""
    faults = {"rollout-0": [Fault(dies_with_report=5)]}
    async with World(steps=4, faults=faults) as world:
        world.begin()
        await world.ended()
        assert 5 in {fields["ordinal"] for fields in world.told("group_lost")}


async def test_hanging_workers_are_replaced_and_their_late_results_change_nothing(ray_cluster):
    """Zombies: stopped for longer than a heartbeat may take, then continued."""
    names = ("learner", "rollout-0")
    patience = QUICK.model_copy(update={"beat_timeout_s": 1.0})
    async with World(steps=5, learn_s=0.3, generate_s=0.2, recovery=patience) as world:
        world.begin()
        await world.until(lambda: world.watcher.batches and world.count("leased") and world.count("generating"))
        zombies = [await world.pid(name) for name in names]
        for zombie in zombies:
            os.kill(zombie, signal.SIGSTOP)
        world.hold(lambda step: step == 4 and len(world.told("worker_recovered")) < 2)
        await world.until(lambda: len(world.told("worker_recovered")) == 2)
        for zombie in zombies:
            if is_alive(zombie):
                os.kill(zombie, signal.SIGCONT)
        await world.ended()
        assert {fields["worker"] for fields in world.told("worker_lost")} == set(names)
        for zombie in zombies:
            await gone(zombie)


async def test_a_slow_learner_holds_the_others_back_within_bounds_and_nothing_is_dropped(ray_cluster):
    """Number and bytes of waiting groups; the object store spills nothing to the disk."""
    target, batch, tokens = 1, 4, 100_000
    staleness = StalenessConfig(target_staleness=target, max_staleness=2)
    world = World(steps=8, batch=batch, generate_s=0.01, learn_s=0.4, tokens=tokens, staleness=staleness, judges=2)
    depths, sizes = [], []

    def look() -> bool:
        depths.append(world.count("held") - world.count("leased"))
        sizes.append(world.count("held_bytes"))
        return len(world.watcher.batches) == 7

    async with world:
        world.begin()
        await world.until(look)
        await world.ended()
        bound = (target + 1) * batch
        assert max(depths) <= bound
        assert max(sizes) <= (bound + batch) * (8 * tokens + 100)
        assert max(depths) == bound, "it was to be held back"
        assert world.told("group_lost") == []
        assert spilled_bytes() == 0


def spilled_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return int(reply.store_stats.spilled_bytes_total)


def poisoned(behaviours: list[Any]) -> Any:
    """Every third request fails, each time in another way."""
    turns, faults = itertools.count(), itertools.cycle(behaviours)
    sound = answer({"yes": 0.7, "no": 0.2})

    async def behave(seen: Any, write: Any) -> bool:
        fault = next(faults) if next(turns) % 3 == 2 else sound
        return bool(await fault(seen, write))

    return behave


async def test_a_slow_judge_with_garbage_replies_costs_only_the_groups_that_it_spoils(ray_cluster, tmp_path):
    """A slow, poisoned judge: retries are bounded, a question without an answer is no number, and the group is dropped
    with the cause (there is no quarantine file: labels.parquet keeps every invalid label with its status)."""
    nan = raw(b'{"choices": [{"message": {"content": "yes"}, "logprobs": {"content": [{"token": "yes", "logprob": NaN, '
              b'"top_logprobs": [{"token": "yes", "logprob": NaN}]}]}}]}')  # fmt: skip
    faults = [never, nan, raw(b"{'not': json"), hang_up, half, error(400), raw(b'{"choices": []}')]
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    constitution = Constitution.load(tmp_path / "constitution.yaml")
    with EndpointServer(poisoned(faults)) as server:
        source = EndpointFile.model_validate(
            {"endpoint": {"base_url": server.base_url, "model": "m", "timeout_s": 0.5, "max_retries": 0,
                          "breaker_failures": 1000}}
        )  # fmt: skip

        def make_judge(name: str) -> Any:
            return JudgeActor.options(num_cpus=0).remote(source, FeedbackConfig(), constitution, name=name)

        async with World(steps=5, make_judge=make_judge) as world:
            world.begin()
            await world.ended(dropped=None, exact=False)
        reasons = " ".join(fields["reason"] for fields in world.told("group_dropped"))
        assert all(status in reasons for status in ("timeout", "unparsable")), reasons
        valid = {report.ordinal for report in world.watcher.labels if report.num_valid}
        assert {ordinal for batch in world.watcher.batches for ordinal in batch} <= valid
        assert world.told("worker_lost") == []
        # Nothing is asked again: each question without a cached verdict is at most one request per group (one that
        # times out on a busy machine may not have been read).
        assert len(server.seen) <= sum(1 for report in world.watcher.labels if not report.cache_hits)


@ray.remote(num_cpus=0)
class BrokenJudge:
    """Has a bug."""

    async def start(self) -> None: ...

    async def heartbeat(self) -> float:
        return 0.0

    @ray.method(num_returns=2)
    async def label(self, group: Any) -> Any:
        raise ZeroDivisionError("no principle left")


async def test_a_judge_with_a_bug_ends_the_run_with_its_error(ray_cluster):
    """Not every fault is transient: an error of our own code is raised again, and not retried for ever."""
    async with World(steps=2, make_judge=lambda name: BrokenJudge.remote()) as world:
        world.begin()
        outcome = await world.failed()
        assert isinstance(outcome, ZeroDivisionError)
        assert str(outcome) == "no principle left"


@pytest.mark.parametrize("how", ["raises", pytest.param("dies", marks=pytest.mark.soak)])
async def test_an_engine_that_never_starts_again_ends_the_run_with_one_cause(ray_cluster, how):
    """A restart storm: bounded, and the message says how often and why."""
    faults = {"rollout-0": [Fault(), *[Fault(start=how)] * 50]}
    patience = QUICK.model_copy(update={"max_restarts": 2})
    async with World(steps=50, faults=faults, recovery=patience) as world:
        world.begin()
        await world.until(lambda: world.watcher.batches)
        await world.kill("rollout-0")
        outcome = await world.failed()
        assert isinstance(outcome, RunFailedError)
        assert "rollout-0 was replaced 2 times" in str(outcome)
        assert ("out of memory on the device" if how == "raises" else "died") in str(outcome)
        assert len(world.told("restart_failed")) == 2


async def test_an_engine_that_starts_at_the_second_try_is_no_reason_to_end_a_run(ray_cluster):
    """The process that is being ended may still hold its resources for a while."""
    faults = {"rollout-0": [Fault(), Fault(start="raises"), Fault(start="dies")]}
    async with World(steps=5, faults=faults) as world:
        world.begin()
        await world.until(lambda: world.watcher.batches)
        await world.kill("rollout-0")
        await world.ended()  # there is no other engine
        assert len(world.told("restart_failed")) == 2


async def test_an_actor_without_a_node_is_named_at_the_deadline(ray_cluster, tmp_path):
    """Infeasible resources: the cluster as a whole has enough, but another program holds it."""
    raw_run = {
        **{"policy": "a/b", "judge": "a/b", "prompts": "p", "constitution": "c"},
        **{"recovery": {"node_timeout_s": 3}, "learn": {"num_cpus": 2}},
        **{section: {"num_cpus": 0} for section in ("rollout", "judging")},
    }
    world = World(steps=1)
    run = RunFile.parse(raw_run, source="test")

    class Hogging(LearnerRole):
        def workers(self, pool: Any, context: Any) -> Any:
            world.learner.actor = LearnerHog.options(num_cpus=2).remote()
            return [world.learner]

    roles = {"rollout": Given(world.engines), "judge": Given(world.judges), "learner": Hogging()}

    hog = LearnerHog.options(num_cpus=1).remote()
    await hog.start.remote("")
    launcher = Launcher(run, constitution=None, run_name="starved", emit=print, roles=roles)  # type: ignore[arg-type]
    with pytest.raises(
        RunFailedError, match=r"no place for .*learner within recovery.node_timeout_s = 3 s; see with `ray status`"
    ):
        await launcher.launch(on_ready=lambda _: None)
    ray.kill(hog)


class Given(Role):
    """Workers that already exist."""

    def workers(self, pool: Any, context: Any) -> Any:
        return self._actor

    def supervised(self, workers: Any, context: Any) -> Any:
        raise AssertionError("they are not all started")


@ray.remote
class LearnerHog:
    """Needs resources that the cluster cannot spare."""

    def start(self, checkpoint: str) -> None: ...


async def test_an_engine_lost_during_a_weight_update_joins_again_with_the_current_weights(ray_cluster):
    """A peer dies in a weight transfer, before, after and during loading: where it stays silent the deadline fires, the
    others continue, and the next engine is gated."""
    faults = {"rollout-0": [Fault(dies_before_load=2), Fault(dies_after_load=4), Fault(hangs_in_load=6)]}
    async with World(steps=8, engines=2, faults=faults, publish_s=1.0) as world:
        watcher = world.watcher
        # One recovery after each fault, then one step, then the next.
        world.hold(lambda step: step in (3, 5, 7) and len(world.told("worker_recovered")) < (step - 1) / 2)
        world.begin()
        await world.ended()
    live = gate = 0
    for name, what in watcher.log:
        if name == "published":
            live = what
        elif name == "worker_recovered":  # from now on it generates with the weights that are live now, or newer
            gate = live
        elif name == "generated" and what.spans[0].worker == "rollout-0":
            assert what.head >= gate
    assert gate >= 6
    loaded = {
        version: [r.engine for r in receipts]
        for version, receipts in zip(watcher.versions, watcher.receipts, strict=True)
    }
    assert [version for version in range(1, 9) if "rollout-1" not in loaded[version]] == []
    assert {version for version in (2, 4, 6) if "rollout-0" in loaded[version]} == set()
    assert {"rollout-0", "rollout-1"} == set(loaded[8])
    assert [fields["worker"] for fields in world.told("worker_lost")] == ["rollout-0"] * 3
    assert any("did not take policy version 6 within 1 s" in fields["cause"] for fields in world.told("worker_lost"))


async def test_lines_of_a_run_are_strict_json_and_restarts_add_no_new_names(ray_cluster, tmp_path: Path):
    """The contract of metrics and events, with odd fields and after many restarts. Ray writes the workers' logs;
    Solon's messages about a run are in these files, and no logging with `extra` could lose a line."""
    directory = RunDirectory.create(tmp_path, "odd", default="odd")
    totals = RunTotals(staleness_bound=4, total_steps=8)
    recorder = Recorder(
        directory, totals, open_payload=lambda payload_ref: None, provenance={}, on_failure=lambda error: None
    )
    async with World(steps=8, engines=2) as world:
        watcher = world.watcher
        emit = watcher.event

        def both(name: str, **fields: Any) -> None:
            emit(name, **fields)
            recorder.event(name, **fields)

        watcher.event = both  # type: ignore[method-assign]
        world.ledger.listen(both)
        for guard in world.guards:
            guard.emit = both
        stepped = watcher.stepped

        def step(lease: Any, report: Any) -> None:
            stepped(lease, report)
            recorder.stepped(
                lease, replace(report, metrics={"learn/reward/mean": float("nan"), "learn/kl/mean": 1e308})
            )

        watcher.stepped = step  # type: ignore[method-assign]
        world.hold(lambda step: len(world.told("worker_recovered")) < min(step - 1, 3))
        world.begin()
        for times in range(1, 4):
            await world.until(lambda n=times: len(world.watcher.batches) > n)
            await world.kill("rollout-0")
            await world.until(lambda n=times: len(world.told("worker_recovered")) >= n)
        await world.ended()
    odd = {"nan": float("nan"), "inf": -float("inf"), "bytes": b"\xff", "path": tmp_path, "line": "a\nb\u2028c",
           "lone": "\ud800", "set": {1}, "deep": [{"x": float("nan"), 3: None}], "big": 2**80}  # fmt: skip
    recorder.event("stalled", still_s=float("inf"), waits=odd, tasks=b"\xff")
    recorder.close()
    directory.close()
    lines = {name: list(strict_lines(directory.path / name)) for name in ("metrics.jsonl", "events.jsonl")}
    assert len(lines["metrics.jsonl"]) == 8
    assert all(isinstance(line["step"], int) and line["learn/reward/mean"] is None for line in lines["metrics.jsonl"])
    assert all(isinstance(line["event"], str) and isinstance(line["time"], float) for line in lines["events.jsonl"])
    assert lines["events.jsonl"][-1]["event"] == "stalled"
    assert {line["worker"] for line in lines["events.jsonl"] if "worker" in line} <= {"rollout-0", "rollout-1"}


def strict_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line as any reader would parse it: no NaN, no infinity, no duplicate key, an object each."""

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    for line in path.read_bytes().split(b"\n")[:-1]:
        value = json.loads(line.decode("utf-8"), parse_constant=refuse)
        assert isinstance(value, dict)
        yield value
