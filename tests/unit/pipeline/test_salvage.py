"""Another engine continues from the tokens of a lost one."""

from __future__ import annotations

import asyncio
import pickle
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from solon.engines.base import Completion, EngineConfig, Request
from solon.engines.fake import FakeEngine, FakeTokenizer, fake_weights
from solon.engines.runner import EngineRunner
from solon.errors import InputError, PromptRefusedError
from solon.files.prompts import prompt_id
from solon.ledger.ledger import Grant, Ledger, LedgerConfig
from solon.ledger.staleness import StalenessConfig
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.pipeline.salvage import joined, joined_segments
from solon.protocols import Assignment
from solon.records import Filters, Group, Salvage, Sampling
from solon.recovery.guard import RecoveryConfig
from tests.unit.fakes import make_prompt


class LongWinded(FakeEngine):
    """Ends an answer only when it has to."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(max_model_len=512, **settings)
        self._logprobs_VV[:, 0] = -30.0

    def load_weights(self, weights: Any) -> None:
        super().load_weights(weights)
        self._logprobs_VV[:, 0] = -30.0


def make_worker(*, step_s: float = 0.0, every_s: float = 0.02) -> tuple[RolloutWorker, list[LongWinded]]:
    built: list[LongWinded] = []

    def build(config: EngineConfig, *, name: str) -> LongWinded:
        built.append(LongWinded(name=name, step_s=step_s))
        return built[0]

    settings = RolloutSettings(sampling=Sampling(max_tokens=200), group_size=2, seed=5, salvage_every_s=every_s)
    config = EngineConfig(model="fake", max_model_len=512)
    return RolloutWorker(config, settings, name="rollout-0", build=build), built


async def first_salvage(worker: RolloutWorker, assignment: Assignment) -> Salvage:
    async for item in worker.generate([assignment]):
        assert isinstance(item, Salvage), "the group was finished before anything was told of it"
        return item
    raise AssertionError


async def whole_group(worker: RolloutWorker, assignment: Assignment) -> Group:
    async for item in worker.generate([assignment]):
        if not isinstance(item, Salvage):
            return item[1]
    raise AssertionError


async def test_a_prompt_that_leaves_no_room_is_refused_by_name_and_cut_only_when_asked_for():
    worker, _ = make_worker()
    await worker.start()
    prompt = make_prompt("the sky is blue " * 200)
    work = Assignment(grant=Grant(ordinal=0, attempt=0, version=0), prompt=prompt)
    try:
        with pytest.raises(InputError, match=rf"prompt {prompt.prompt_id} .* has 803 tokens, expected at most 312"):
            await whole_group(worker, work)
        worker._settings = replace(worker._settings, cuts_overlong=True)
        group = await whole_group(worker, work)
    finally:
        await worker.close()
    assert len(group.prompt_token_ids) == 312
    assert prompt.messages[0].content.endswith(group.prompt.messages[0].content)
    assert group.prompt.prompt_id == prompt_id(group.prompt.messages) != prompt.prompt_id


async def test_a_prompt_that_the_template_refuses_is_named():
    worker, built = make_worker()
    await worker.start()

    def refuse(messages: Any) -> Any:
        raise PromptRefusedError("roles must alternate")

    built[0].tokenizer.encode_chat = refuse  # type: ignore[method-assign]
    try:
        with pytest.raises(
            InputError, match=r"prompt .* is refused by the policy's chat template: roles must alternate"
        ):
            await worker.answer([make_prompt("a")], seed=0)
    finally:
        await worker.close()


async def test_another_engine_continues_with_the_tokens_log_probs_and_versions_of_the_lost_one():
    lost, _ = make_worker(step_s=0.002)
    await lost.start()
    salvage = await asyncio.wait_for(first_salvage(lost, Assignment(grant=Grant(3, 0, 0), prompt=make_prompt())), 20)
    await lost.close()
    assert salvage.num_tokens >= 64
    assert salvage.head == 0

    other, built = make_worker()
    await other.start()
    await other.load_weights(fake_weights(4))
    grant = Grant(3, 1, 0, 0, (salvage,))
    group = await asyncio.wait_for(whole_group(other, Assignment(grant=grant, prompt=make_prompt())), 20)
    await other.close()
    assert (group.ordinal, group.attempt, group.head, group.tail) == (3, 1, 0, 4)
    for begun, rollout in zip(joined([salvage], 2), group.rollouts, strict=True):
        assert begun is not None
        length = len(begun.token_ids)
        assert rollout.token_ids[:length].tolist() == begun.token_ids.tolist()
        assert rollout.logprobs[:length].tobytes() == begun.logprobs.tobytes()
        assert rollout.segments == ((0, length), (4, 200 - length))
        assert len(rollout.token_ids) == len(rollout.logprobs) == 200
        # The later tokens are the new engine's continuation of the whole text so far.
        table = built[0]._logprobs_VV
        after = [table[a] for a in rollout.token_ids[length - 1 : -1]]
        expected = [
            row[t] - np.log(np.exp(row).sum()) for row, t in zip(after, rollout.token_ids[length:], strict=True)
        ]
        np.testing.assert_allclose(rollout.logprobs[length:], expected, atol=1e-5)
    assert group.rollouts[0].text == FakeTokenizer().decode(group.rollouts[0].token_ids.tolist())


async def test_a_group_with_complete_answers_needs_no_generation_by_the_new_engine():
    worker, built = make_worker(every_s=0.0)
    await worker.start()
    whole = await whole_group(worker, Assignment(grant=Grant(3, 0, 0), prompt=make_prompt()))
    steps = built[0].steps
    parts = Salvage(
        ordinal=3,
        attempt=0,
        token_ids=np.concatenate([r.token_ids for r in whole.rollouts]),
        logprobs=np.concatenate([r.logprobs for r in whole.rollouts]),
        segments=tuple(r.segments for r in whole.rollouts),
        finish_reasons=tuple(r.finish_reason for r in whole.rollouts),
    )
    grant = Grant(3, 1, 0, 0, (parts,))
    again = await asyncio.wait_for(whole_group(worker, Assignment(grant=grant, prompt=make_prompt())), 20)
    await worker.close()
    assert built[0].steps == steps
    assert [r.token_ids.tolist() for r in again.rollouts] == [r.token_ids.tolist() for r in whole.rollouts]
    assert again.attempt == 1


async def test_short_answers_are_not_reported():
    worker, _ = make_worker(every_s=0.001)
    worker._settings = RolloutSettings(sampling=Sampling(max_tokens=16), group_size=2, seed=5, salvage_every_s=0.001)
    await worker.start()
    items = [item async for item in worker.generate([Assignment(grant=Grant(0, 0, 0), prompt=make_prompt())])]
    await worker.close()
    assert [isinstance(item, Salvage) for item in items] == [False]


class Laden(FakeEngine):
    """Every answer has `written` tokens when it is begun, and gains five at every step."""

    def __init__(self, *, written: int, name: str) -> None:
        super().__init__(max_model_len=100_000, name=name)
        self._written = written

    def add(self, request: Request) -> None:
        super().add(request)
        self._gain(self._active[request.request_id], self._written)

    def step(self) -> list[Any]:
        time.sleep(0.01)
        for running in self._active.values():
            self._gain(running, 5)
        return []

    def _gain(self, running: Any, count: int) -> None:
        running.tokens += [7] * count
        running.logprobs += [-1.0] * count
        running.versions += [self.version] * count


@pytest.mark.parametrize("written", [512, 2048])
async def test_reports_of_64_streams_and_256_answers_cost_the_engine_at_most_two_percent(written: int):
    engines: list[Laden] = []

    def build(config: EngineConfig, *, name: str) -> Laden:
        engines.append(Laden(written=written, name=name))
        return engines[0]

    settings = RolloutSettings(sampling=Sampling(max_tokens=90_000), group_size=4, seed=5, salvage_every_s=0.1)
    config = EngineConfig(model="fake", max_model_len=100_000)
    worker = RolloutWorker(config, settings, name="rollout-0", build=build)
    await worker._runner.ready()
    collect, looks = worker._runner._collect, []

    def timed(engine: Any) -> Any:
        start = time.thread_time()
        found = collect(engine)
        looks.append((time.thread_time() - start, sum(len(c.token_ids) for c in found)))
        return found

    worker._runner._collect = timed  # type: ignore[method-assign]
    parts: dict[int, list[Salvage]] = {ordinal: [] for ordinal in range(64)}
    enough = asyncio.Event()

    async def stream(ordinal: int) -> None:
        async for item in worker.generate([Assignment(grant=Grant(ordinal, 0, 0), prompt=make_prompt())]):
            assert isinstance(item, Salvage)
            parts[ordinal].append(item)
            if min(map(len, parts.values())) >= 4:
                enough.set()

    streams = [asyncio.ensure_future(stream(ordinal)) for ordinal in range(64)]
    async with asyncio.timeout(60):
        await enough.wait()
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    await worker.close()
    for told in parts.values():
        assert told[0].num_tokens >= 4 * written
        assert all(len(pickle.dumps(part)) < 8 * part.num_tokens + 1000 for part in told)
        answers = joined(told, 4)
        assert all(a is not None and len(a.token_ids) == len(a.logprobs) >= written + 15 for a in answers)
        assert sum(part.num_tokens for part in told) == sum(len(a.token_ids) for a in answers if a)
    # Between two looks 2 s pass in a run, in which a fast engine writes some 100 tokens of each answer.
    seconds = min(seconds for seconds, tokens in looks[1:] if tokens >= 256)
    assert seconds <= 0.02 * RecoveryConfig().salvage_every_s
    assert len(looks) < 64


async def test_an_answer_that_ended_is_reported_once_and_with_its_end():
    runner = EngineRunner(lambda: FakeEngine(step_s=0.005))
    await runner.ready()
    requests = [
        Request(request_id=f"r{n}", prompt_token_ids=(4, 5), max_tokens=n, filters=Filters(min_tokens=n))
        for n in (3, 60)
    ]
    (answers,) = runner.generate_each([requests])
    whole = asyncio.ensure_future(answers)  # type: ignore[arg-type]
    news: dict[str, list[Any]] = {"r3": [], "r60": []}
    while not whole.done():
        for new in await runner.news():
            news[new.request_id].append(new)
        await asyncio.sleep(0.02)
    await runner.close()
    short, long = whole.result()
    assert [n.finish_reason for n in news["r3"]][-1] == "length"
    assert [n.finish_reason for n in news["r3"]][:-1] == ["abort"] * (len(news["r3"]) - 1)
    assert [t for n in news["r3"] for t in n.token_ids.tolist()] == short.token_ids.tolist()
    told = [t for n in news["r60"] for t in n.token_ids.tolist()]
    assert len(told) >= 6
    assert told == long.token_ids[: len(told)].tolist()
    assert sum(count for n in news["r60"] for _, count in n.segments) == len(told)


def test_a_completion_without_its_first_tokens_keeps_the_versions_of_the_others():
    whole = Completion(
        request_id="r",
        token_ids=np.arange(5, dtype=np.int32),
        logprobs=np.zeros(5, np.float32),
        segments=((1, 2), (2, 3)),
        finish_reason="stop",
    )
    left = [((1, 2), (2, 3)), ((1, 1), (2, 3)), ((2, 3),), ((2, 2),), ((2, 1),), ()]
    assert [whole.after(known).segments for known in range(6)] == left
    assert whole.after(3).token_ids.tolist() == [3, 4]


def test_the_ledger_passes_a_salvage_on_with_its_group_until_it_is_too_old():
    def make() -> Ledger:
        return Ledger(LedgerConfig(batch_groups=1), StalenessConfig(target_staleness=3, max_staleness=2 + 1))

    for version, expected in ((2, ("so far", "and more")), (3, ())):
        ledger = make()
        ledger.reserve(1, now=0)
        assert ledger.keep(0, 0, head=0, salvage="so far")
        assert ledger.keep(0, 0, head=1, salvage="and more")
        assert ledger.requeue(0, 0, "killed")
        ledger.publish(version)
        (grant, *_) = ledger.reserve(1, now=0)
        assert grant.salvage == expected
        assert grant.version == (0 if expected else version)
        assert not ledger.keep(0, 0, head=0, salvage="late")


def test_a_group_that_failed_by_itself_starts_from_nothing():
    ledger = Ledger(LedgerConfig(), StalenessConfig())
    ledger.reserve(1, now=0)
    ledger.keep(0, 0, head=0, salvage="so far")
    ledger.fail(0, 0, "nonsense")
    (grant,) = ledger.reserve(1, now=0)
    assert grant.salvage == ()


def test_runs_of_one_version_are_joined():
    assert joined_segments(((0, 3),), ((0, 2), (1, 4))) == ((0, 5), (1, 4))
    assert joined_segments((), ((1, 4),)) == ((1, 4),)
