"""The runner: one engine thread, many asyncio callers."""

import asyncio
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from solon.engines.base import Completion, Engine, Request
from solon.engines.chunks import named_tensors, packed
from solon.engines.failures import RAISED_BY_LIBRARIES, computing
from solon.engines.fake import FakeEngine, fake_weights
from solon.engines.progress import run_length
from solon.engines.runner import EngineRunner
from solon.errors import AttestationError, EngineFailedError, InputError, RunFailedError


def make_requests(count: int, *, max_tokens: int = 8, temperature: float = 1.0) -> list[Request]:
    return [
        Request(
            request_id=f"r{i}",
            prompt_token_ids=(4, 5, 6),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=i,
        )
        for i in range(count)
    ]


class NeverStops(FakeEngine):
    """A fake whose answers run to their last token."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.tokenizer.eos_token_id = -1
        self.under_way = threading.Event()

    def step(self) -> list[Completion]:
        if self.steps == 5:
            self.under_way.set()
        return super().step()


async def started(engine: Engine) -> EngineRunner:
    runner = EngineRunner(lambda: engine, name=engine.name)
    await runner.ready()
    return runner


async def test_completions_come_back_in_the_order_of_the_requests():
    runner = await started(FakeEngine())
    completions = await runner.generate(make_requests(20))
    assert [c.request_id for c in completions] == [f"r{i}" for i in range(20)]
    assert all(len(c.token_ids) == len(c.logprobs) for c in completions)
    await runner.close()


async def test_callers_with_the_same_request_ids_are_decoded_together_and_kept_apart():
    engine = NeverStops(step_s=0.005)
    runner = await started(engine)
    first, second = await asyncio.gather(
        runner.generate(make_requests(3, max_tokens=20)), runner.generate(make_requests(3, max_tokens=20))
    )
    assert engine.steps < 30  # 40 steps if one had waited for the other
    assert [c.token_ids.tolist() for c in first] == [c.token_ids.tolist() for c in second]
    await runner.close()


async def test_requests_of_one_call_are_all_added_before_the_first_step():
    engine = NeverStops()
    runner = await started(engine)
    await runner.generate(make_requests(100, max_tokens=5))
    assert engine.steps == 5
    await runner.close()


async def test_logprobs_are_those_of_the_sampling_distribution_at_temperature_one():
    runner = await started(FakeEngine())
    (completion,) = await runner.generate(make_requests(1))
    (again,) = await runner.sequence_logprobs([[4, 5, 6, *completion.token_ids.tolist()]])
    assert again[2:] == pytest.approx(completion.logprobs.tolist(), abs=1e-6)
    await runner.close()


async def test_score_returns_the_logprobs_of_the_labels():
    runner = await started(FakeEngine())
    verdicts = await runner.score([(4, 5), (4, 6)], (8, 9))
    (expected,) = await runner.sequence_logprobs([(4, 5, 8)])
    assert verdicts[0].label_logprobs[0] == pytest.approx(expected[1])
    assert sum(np.exp(verdicts[0].label_logprobs)) <= 1
    await runner.close()


async def test_an_update_in_flight_loses_no_token_and_stamps_two_segments():
    engine = NeverStops(step_s=0.005)
    runner = await started(engine)
    generating = asyncio.create_task(runner.generate(make_requests(4, max_tokens=200)))
    await asyncio.to_thread(engine.under_way.wait)
    weights = fake_weights(3)
    receipt = await runner.load_weights(weights)
    assert receipt.version == runner.version == 3
    assert receipt.canary_logprobs == weights.canary_logprobs
    for completion in await generating:
        (old, before), (new, after) = completion.segments
        assert (old, new) == (0, 3)
        assert before + after == 200
    await runner.close()


async def test_a_payload_that_changed_in_transit_is_refused():
    runner = await started(FakeEngine())
    with pytest.raises(AttestationError, match="changed on its way"):
        await runner.load_weights(replace(fake_weights(1), fingerprint="0" * 64))
    assert not runner.alive


async def test_a_request_that_is_too_long_fails_its_own_call_only():
    runner = await started(FakeEngine(max_model_len=32))
    good = asyncio.create_task(runner.generate(make_requests(5)))
    with pytest.raises(InputError, match="max_model_len"):
        await runner.generate([*make_requests(3), *make_requests(1, max_tokens=64)])
    assert len(await good) == 5
    assert runner.alive
    await runner.close()


async def test_an_exception_in_the_engine_fails_every_caller_and_kills_the_runner():
    engine = NeverStops(step_s=0.01)
    runner = await started(engine)
    calls = [asyncio.create_task(runner.generate(make_requests(2, max_tokens=50))) for _ in range(3)]
    await asyncio.sleep(0.03)
    engine.fail_next = MemoryError("out of blocks")
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, MemoryError) for result in results)
    with pytest.raises(RunFailedError, match="out of blocks"):
        await runner.generate(make_requests(1))
    assert engine.closed


async def test_a_failed_build_fails_every_waiting_caller_with_its_own_error():
    def build() -> Engine:
        raise InputError("no such model")

    runner = EngineRunner(build)
    with pytest.raises(InputError, match="no such model"):
        await runner.ready()
    with pytest.raises(InputError, match="no such model"):
        await runner.generate(make_requests(1))


async def test_a_cancelled_caller_leaves_no_request_behind():
    engine = NeverStops(step_s=0.01)
    runner = await started(engine)
    call = asyncio.create_task(runner.generate(make_requests(2, max_tokens=200)))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await runner.sequence_logprobs([(4, 5)])  # goes through the thread, so the abort is done
    await asyncio.sleep(0.03)
    assert not engine.has_work()
    await runner.close()


async def test_close_fails_callers_that_still_wait():
    runner = await started(NeverStops(step_s=0.01))
    call = asyncio.create_task(runner.generate(make_requests(1, max_tokens=200)))
    await asyncio.sleep(0.03)
    await runner.close()
    with pytest.raises(RunFailedError, match="closed"):
        await call


async def test_busy_spans_cover_the_work_and_not_the_pause():
    runner = await started(NeverStops(step_s=0.01))
    start = time.time()
    await runner.generate(make_requests(1, max_tokens=8))
    await asyncio.sleep(0.05)
    pause = time.time()
    await asyncio.sleep(0.05)
    await runner.generate(make_requests(1, max_tokens=8))
    spans = runner.drain_spans()
    assert all(start <= begin < end <= time.time() for begin, end in spans)
    assert not any(begin <= pause <= end for begin, end in spans)
    assert sum(end - begin for begin, end in spans) >= 0.15
    assert 2 <= len(spans) < 16  # successive steps are one span
    assert runner.drain_spans() == []
    await runner.close()


async def test_an_idle_runner_sleeps():
    engine = FakeEngine()
    runner = await started(engine)
    before = time.process_time()
    await asyncio.sleep(0.2)
    assert time.process_time() - before < 0.05
    assert engine.steps == 0
    await runner.close()


def test_versions_become_segments():
    assert run_length([1, 1, 2, 2, 2]) == ((1, 2), (2, 3))
    assert run_length([]) == ()


def test_a_read_only_payload_is_read_without_a_copy():
    torch = pytest.importorskip("torch")

    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    weights = packed(1, tensors.items())
    read = dict(named_tensors(weights))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    places = {data.ctypes.data for chunk in weights.chunks for data in chunk}
    assert {tensor.data_ptr() for tensor in read.values()} == places
    assert not any(data.flags.writeable for chunk in weights.chunks for data in chunk)


class GivesNothing(FakeEngine):
    """Its second step gives log-probs that are no numbers."""

    wrong = float("nan")

    def step(self) -> list[Completion]:
        finished = super().step()
        return [replace(c, logprobs=np.full_like(c.logprobs, self.wrong)) for c in finished]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
async def test_log_probs_that_are_no_numbers_are_a_failure_of_the_engine(wrong: float):
    engine = GivesNothing()
    engine.wrong = wrong
    runner = await started(engine)
    with pytest.raises(EngineFailedError, match=r"log-probs that are not finite.*learn.learning_rate"):
        await runner.generate(make_requests(3))
    assert not runner.alive  # it is not used again
    with pytest.raises(EngineFailedError, match="is gone"):
        await runner.generate(make_requests(1))
    await runner.close()


async def test_canaries_that_are_no_numbers_are_a_failure_of_the_engine():
    class Broken(FakeEngine):
        def sequence_logprobs(self, sequences: object) -> list[list[float]]:
            return [[-1.0, float("nan")]]

    runner = await started(Broken())
    with pytest.raises(EngineFailedError, match="not finite on the attestation's sequences"):
        await runner.load_weights(fake_weights(1))
    await runner.close()


async def test_an_engine_that_failed_and_cannot_close_blocks_no_caller():
    class Stuck(FakeEngine):
        may_close = threading.Event()

        def step(self) -> list[Completion]:
            raise EngineFailedError("the device does not answer")

        def close(self) -> None:
            self.may_close.wait(20)

    engine = Stuck()
    runner = await started(engine)
    with pytest.raises(EngineFailedError, match="does not answer"):
        await asyncio.wait_for(runner.generate(make_requests(1)), 5)
    engine.may_close.set()
    await runner.close()


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("raised", "kinds", "expected"),
    [
        (ValueError("assertion of the scheduler"), (Exception,), EngineFailedError),
        (RuntimeError("CUDA error: device-side assert"), RAISED_BY_LIBRARIES, EngineFailedError),
        (OutOfMemoryError("tried to allocate 2 GiB"), RAISED_BY_LIBRARIES, EngineFailedError),
        (MemoryError(), RAISED_BY_LIBRARIES, EngineFailedError),
        (TypeError("our own bug"), RAISED_BY_LIBRARIES, TypeError),
        (NotImplementedError("our own gap"), RAISED_BY_LIBRARIES, NotImplementedError),
        (InputError("a bad prompt"), (Exception,), InputError),
        (AttestationError("stale weights"), (Exception,), AttestationError),
        (RunFailedError("the loss is not finite"), RAISED_BY_LIBRARIES, RunFailedError),
    ],
)
def test_only_errors_of_libraries_are_failures_of_the_engine(raised, kinds, expected):
    with pytest.raises(expected) as caught, computing("engine rollout-0", "decoding", kinds=kinds):
        raise raised
    assert isinstance(caught.value, EngineFailedError) is (expected is EngineFailedError)
    if isinstance(raised, OutOfMemoryError | MemoryError):
        assert "lower max_running" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # it travels to the driver


async def test_the_largest_use_of_the_cache_since_the_last_report_is_known_where_the_engine_says_it():
    class Says(FakeEngine):
        @property
        def cache_use(self) -> float:
            return 0.75 if self.steps == 2 else 0.0  # an engine without requests has an empty cache

    for engine, expected in ((Says(), 0.75), (FakeEngine(), None)):
        runner = await started(engine)
        assert runner.drain_cache_use() is None
        await runner.generate(make_requests(1))
        assert runner.drain_cache_use() == expected
        assert runner.drain_cache_use() is None
        await runner.close()
