"""The exact cache: once per question, across callers, failures, restarts and kills."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solon.errors import InputError, RunFailedError
from solon.feedback.caches.cache import CacheConfig, ExactCache, open_cache
from solon.feedback.caches.store import SqliteStore, decode, encode
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.questions import Answer, Question
from solon.verdicts import Status
from tests.unit.judges import SlowJudge, answer_to, question


def make_cache(judge: SlowJudge, *, entries: int = 100, digest: str = "judge") -> ExactCache:
    return ExactCache(judge.ask, judge_digest=digest, entries=entries)


async def test_the_same_question_is_asked_once_and_then_costs_nothing():
    judge = SlowJudge()
    cache = make_cache(judge)
    first = await cache.ask([question(1), question(2), question(1)])
    again = await cache.ask([question(2), question(1)])
    assert judge.batches == [[question(1), question(2)]]
    assert [a.cache_hit for a in first] == [False, False, True]
    assert [a.prompt_tokens for a in first] == [3, 3, 0]
    assert [(a.logprobs[0], a.cache_hit, a.prompt_tokens) for a in again] == [(-2.0, True, 0), (-1.0, True, 0)]


async def test_a_question_in_flight_is_awaited():
    judge = SlowJudge(delay_s=0.01)
    cache = make_cache(judge)
    results = await asyncio.gather(*(cache.ask([question(1), question(2 + n)]) for n in range(4)))
    assert Counter(q for batch in judge.batches for q in batch)[question(1)] == 1
    assert sum(answers[0].cache_hit for answers in results) == 3
    assert all(answers[0].logprobs == (-1.0, -1.0) for answers in results)


async def test_a_failure_reaches_all_waiters_as_it_was_and_is_not_kept(lost_errors: Any):
    lost_errors()
    judge = SlowJudge(delay_s=0.005, fail=lambda batch: RunFailedError("the engine died") if batch == 0 else None)
    cache = make_cache(judge)
    results = await asyncio.gather(*(cache.ask([question(1)]) for _ in range(3)), return_exceptions=True)
    assert [str(r) for r in results] == ["the engine died"] * 3
    assert all(isinstance(r, RunFailedError) for r in results)
    assert await cache.ask([question(1)]) == [answer_to(question(1))]
    assert len(judge.batches) == 2


async def test_a_failure_without_other_waiters_is_no_lost_error(lost_errors: Any):
    lost_errors()
    cache = make_cache(SlowJudge(fail=lambda _: RunFailedError("died")))
    with pytest.raises(RunFailedError):
        await cache.ask([question(1)])


async def test_the_cancelled_first_caller_does_not_fail_the_second(lost_errors: Any):
    lost_errors()
    judge = SlowJudge(delay_s=0.02)
    cache = make_cache(judge)
    gone = asyncio.ensure_future(cache.ask([question(1)]))
    await asyncio.sleep(0.002)
    stays = asyncio.ensure_future(cache.ask([question(1)]))
    await asyncio.sleep(0.002)
    gone.cancel()
    assert [a.logprobs for a in await asyncio.wait_for(stays, 1)] == [(-1.0, -1.0)]
    assert gone.cancelled()
    assert (await cache.ask([question(1)]))[0].cache_hit
    assert len(judge.batches) == 1


async def test_a_cancelled_waiter_does_not_fail_the_first_caller(lost_errors: Any):
    lost_errors()
    judge = SlowJudge(delay_s=0.02)
    cache = make_cache(judge)
    first, gone = (asyncio.ensure_future(cache.ask([question(1)])) for _ in range(2))
    await asyncio.sleep(0.002)
    gone.cancel()
    assert [a.logprobs for a in await first] == [(-1.0, -1.0)]


async def test_a_failure_after_its_caller_was_cancelled_is_no_lost_error(lost_errors: Any):
    lost_errors()
    judge = SlowJudge(delay_s=0.01, fail=lambda batch: RunFailedError("died") if batch == 0 else None)
    cache = make_cache(judge)
    gone = asyncio.ensure_future(cache.ask([question(1)]))
    await asyncio.sleep(0.002)
    gone.cancel()
    await asyncio.sleep(0.02)
    del gone
    assert not (await cache.ask([question(1)]))[0].cache_hit


async def test_the_oldest_unused_verdict_leaves_first_and_no_batch_is_too_large():
    judge = SlowJudge()
    cache = make_cache(judge, entries=2)
    assert await cache.ask([question(n) for n in range(5)]) == [answer_to(question(n)) for n in range(5)]
    await cache.ask([question(3)])
    await cache.ask([question(7)])
    assert (await cache.ask([question(3)]))[0].cache_hit
    assert not (await cache.ask([question(4)]))[0].cache_hit


async def test_no_entries_turn_the_cache_off():
    judge = SlowJudge()
    cache = make_cache(judge, entries=0)
    for _ in range(2):
        assert not (await cache.ask([question(1)]))[0].cache_hit
    assert len(judge.batches) == 2


async def test_a_verdict_that_is_no_number_is_not_kept():
    async def broken(questions: Sequence[Question]) -> list[Answer]:
        return [Answer((math.nan, -1.0)) for _ in questions]

    cache = ExactCache(broken, judge_digest="j", entries=9)
    for _ in range(2):
        assert not (await cache.ask([question(1)]))[0].cache_hit


def test_the_key_depends_on_judge_labels_tokens_and_text_and_on_nothing_else():
    base = Question((1, 2, 3), (4, 5))
    others = [
        Question((1, 2), (4, 5)),
        Question((1, 2, 3), (5, 4)),
        Question((5, 1, 2, 3), (4, 5)),
        Question((1, 2, 3, 4), (5,)),
        Question((), (), text="a", labels=("A", "B")),
        Question((), (), text="b", labels=("A", "B")),
        Question((), (), text="a", labels=("B", "A")),
    ]
    keys = {make_cache(SlowJudge(), digest=digest).key(q) for digest in ("a", "b") for q in (base, *others)}
    assert len(keys) == 2 * (1 + len(others))
    assert make_cache(SlowJudge(), digest="a").key(base) == make_cache(SlowJudge(), digest="a", entries=7).key(base)


IDENTITY = {
    "judge_id": "judge-0", "model": "m", "weights_digest": "w", "quantization": "none", "engine": "vllm",
    "engine_version": "1", "dtype": "float32", "tokenizer_digest": "t", "template_id": "x", "constitution_id": "c",
    "constitution_hash": "h", "critique_tokens": 0, "thought_tokens": 0,
}  # fmt: skip
DECIDES = ("weights_digest", "quantization", "engine", "engine_version", "dtype", "tokenizer_digest", "critique_tokens",
           "thought_tokens")  # fmt: skip


@pytest.mark.parametrize("field", IDENTITY)
def test_settings_that_decide_a_raw_verdict_change_the_judges_digest_and_settings_visible_in_tokens_do_not(field: str):
    changed = {**IDENTITY, field: 5 if field.endswith("_tokens") else "other"}
    before, after = JudgeIdentity(**IDENTITY), JudgeIdentity(**changed)
    assert (before.digest != after.digest) is (field in DECIDES)
    calibrated = (*DECIDES, "template_id", "constitution_hash")
    assert (before.calibrated_for != after.calibrated_for) is (field in calibrated)


# -- the store -------------------------------------------------------------------------------------------------


async def test_a_finished_stage_asks_nothing_when_it_is_run_again(tmp_path: Path):
    config = CacheConfig(path=str(tmp_path / "v.sqlite"))
    first, second = SlowJudge(), SlowJudge()
    asked = [question(n) for n in range(3000)]
    cache = open_cache(first.ask, config, judge_digest="j")
    before = await cache.ask(asked)
    await cache.close()
    cache = open_cache(second.ask, config, judge_digest="j")
    after = await cache.ask(asked)
    await cache.close()
    assert second.batches == []
    assert [a.logprobs for a in after] == [a.logprobs for a in before]
    assert all(a.source == "exact_cache" for a in after)
    assert cache.counts["store"] == 3000


async def test_judges_share_a_file_and_not_their_verdicts(tmp_path: Path):
    config = CacheConfig(path=str(tmp_path / "v.sqlite"))
    judges = [SlowJudge(), SlowJudge()]
    caches = [open_cache(j.ask, config, judge_digest=name) for j, name in zip(judges, "ab", strict=True)]
    for cache in caches:
        await cache.ask([question(1)])
        await cache.close()
    assert [len(j.batches) for j in judges] == [1, 1]


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False), max_size=9), WORDS, WORDS)
def test_a_cached_answer_is_restored_to_the_last_bit(logprobs: list[float], detail: str, top: str):
    answer = decode(encode(Answer(tuple(logprobs), prompt_tokens=7, usd=0.1, detail=detail, top=top)))
    assert answer == Answer(tuple(logprobs), source="exact_cache", detail=detail, top=top)


async def test_a_refusal_is_still_one_after_a_restart(tmp_path: Path):
    async def refuses(questions: Sequence[Question]) -> list[Answer]:
        return [Answer((-9.0, -9.0), top="Sorry") for _ in questions]

    tops = []
    for _ in range(2):
        cache = open_cache(refuses, CacheConfig(path=str(tmp_path / "v.sqlite")), judge_digest="j")
        tops += [(answer.top, answer.cache_hit) for answer in await cache.ask([question(1)])]
        await cache.close()
    assert tops == [("Sorry", False), ("Sorry", True)]


@given(st.binary(max_size=40))
def test_bytes_that_are_no_answer_are_a_miss(value: bytes):
    decode(value)


async def test_failures_are_not_kept_but_an_unparsable_answer_is_for_a_while(tmp_path: Path):
    for failure, expected in ((Status.TIMEOUT, 2), (Status.TRANSPORT_ERROR, 2), (Status.UNPARSABLE, 1)):
        asked: list[Question] = []

        async def fails(questions: Sequence[Question], failure: Status = failure, seen: Any = asked) -> list[Answer]:
            seen += questions
            return [Answer((), failure=failure) for _ in questions]

        for _ in range(2):
            cache = open_cache(fails, CacheConfig(path=str(tmp_path / f"{failure}.sqlite")), judge_digest="j")
            (answer,) = await cache.ask([question(1)])
            assert answer.failure is failure
            await cache.close()
        assert len(asked) == expected
    store = SqliteStore(tmp_path / "short.sqlite", entries=9, unparsable_s=-1.0)
    await store.put_many({b"k": Answer((), failure=Status.UNPARSABLE)})
    assert await store.get_many([b"k"]) == {}
    await store.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 99, b"SQLite format 3\0" + b"x" * 200])
def test_a_broken_file_is_named_and_not_overwritten(tmp_path: Path, content: bytes):
    path = tmp_path / "v.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"v\.sqlite cannot be used.*remove it"):
        SqliteStore(path, entries=9)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_left_alone(tmp_path: Path):
    path = tmp_path / "v.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE accounts (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(InputError, match="accounts"):
        SqliteStore(path, entries=9)
    assert path.read_bytes() == before


async def test_verdicts_in_another_format_are_refused(tmp_path: Path):
    path = tmp_path / "v.sqlite"
    await SqliteStore(path, entries=9).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version=1")
    with pytest.raises(InputError, match="format 1, expected 2"):
        SqliteStore(path, entries=9)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"unable to open.*name another path"):
        SqliteStore(tmp_path, entries=9)


async def test_a_file_that_was_cut_short_is_refused_at_once(tmp_path: Path):
    path = tmp_path / "v.sqlite"
    store = SqliteStore(path, entries=10**6)
    await store.put_many({f"key-{n:060}".encode(): Answer((-1.0,)) for n in range(5000)})
    await store.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"malformed.*if it is broken, remove it"):
        SqliteStore(path, entries=9)


def test_many_may_open_a_new_file_at_the_same_moment(tmp_path: Path):
    def open_one(start: threading.Barrier, path: Path) -> None:
        start.wait()
        asyncio.run(SqliteStore(path, entries=9).close())

    with ThreadPoolExecutor(6) as openers:
        for number in range(15):
            start = threading.Barrier(6)
            opened = [openers.submit(open_one, start, tmp_path / f"{number}.sqlite") for _ in range(6)]
            for one in opened:
                one.result()


async def test_a_full_file_evicts_the_oldest_verdicts(tmp_path: Path):
    store = SqliteStore(tmp_path / "v.sqlite", entries=100)
    for start in range(0, 5000, 500):
        await store.put_many({bytes([n // 256, n % 256]): Answer((-1.0,)) for n in range(start, start + 500)})
    assert await store.get_many([b"\0\0"]) == {}
    assert len(await store.get_many([bytes([4999 // 256, 4999 % 256])])) == 1
    assert store.evicted == 4900
    await store.close()


async def test_short_runs_that_share_a_file_do_not_outgrow_it(tmp_path: Path):
    for start in range(0, 50, 5):
        store = SqliteStore(tmp_path / "v.sqlite", entries=7)
        await store.put_many({bytes([n]): Answer((-1.0,)) for n in range(start, start + 5)})
        await store.close()
    store = SqliteStore(tmp_path / "v.sqlite", entries=7)
    assert sorted(await store.get_many([bytes([n]) for n in range(50)])) == [bytes([n]) for n in range(43, 50)]
    await store.close()


async def test_a_full_disk_is_reported_and_stored_verdicts_stay(tmp_path: Path):
    store = SqliteStore(tmp_path / "v.sqlite", entries=10**6)
    await store.put_many({b"early": Answer((-1.0,))})
    # SQLite's error for a full disk, without filling one.
    await store._run(lambda pages: store._connection.execute(f"PRAGMA max_page_count={pages}"), 8)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        await store.put_many({f"{n:099}".encode(): Answer((-1.0,)) for n in range(2000)})
    assert list(await store.get_many([b"early", b"0" * 99])) == [b"early"]
    await store._run(lambda pages: store._connection.execute(f"PRAGMA max_page_count={pages}"), 10**6)
    await store.put_many({b"late": Answer((-1.0,))})
    assert list(await store.get_many([b"late"])) == [b"late"]
    await store.close()


async def test_a_store_that_fails_costs_no_verdict(caplog: pytest.LogCaptureFixture):
    class Full:
        async def get_many(self, keys: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        async def put_many(self, answers: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        async def close(self) -> None: ...

    cache = ExactCache(SlowJudge().ask, judge_digest="j", entries=9, store=Full())
    for n in range(3):
        assert (await cache.ask([question(n)]))[0].logprobs == answer_to(question(n)).logprobs
    await cache.close()
    assert len([r for r in caplog.records if "store of verdicts fails" in r.getMessage()]) == 1


WRITER = """
import asyncio, sys
from solon.feedback.questions import Answer
from solon.feedback.caches.store import SqliteStore
async def main(path, name):
    store = SqliteStore(path, entries=10**6)
    for n in range(10**6):
        await store.put_many({f"{name}-{n}-{i}".encode(): Answer((-1.0, -2.0)) for i in range(10)})
        print(n, flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


def test_writers_that_are_killed_at_any_moment_leave_a_good_file(tmp_path: Path):
    path = tmp_path / "v.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    written = []
    for writer in writers:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(30)]
        writer.kill()
        lines += writer.stdout.read().split("\n")
        writer.wait()
        writer.stdout.close()
        written.append(max(int(line) for line in lines if line.strip().isdigit()))

    async def found(keys: list[bytes]) -> int:
        store = SqliteStore(path, entries=10**6)
        answers = await store.get_many(keys)
        await store.close()
        return len(answers)

    for name, last in zip("ab", written, strict=True):
        keys = [f"{name}-{n}-{i}".encode() for n in range(last + 1) for i in range(10)]
        assert asyncio.run(found(keys)) == len(keys)
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_hits_that_are_asked_again_show_how_often_the_engine_changes_its_mind(tmp_path: Path):
    answers = iter([(-0.1, -2.0), (-0.1, -2.0), (-2.0, -0.1), (-2.0, -0.1)])

    async def fickle(questions: Sequence[Question]) -> list[Answer]:
        return [Answer(next(answers)) for _ in questions]

    config = CacheConfig(path=str(tmp_path / "v.sqlite"), shadow=1.0)
    cache = open_cache(fickle, config, judge_digest="j")
    for number in range(3):
        (answer,) = await cache.ask([question(1)])
        assert answer.logprobs == (-0.1, -2.0)
        await asyncio.gather(*cache._shadowing)
        assert cache.counts["shadowed"] == number
    assert (cache.counts["shadowed"], cache.counts["flipped"]) == (2, 1)
    await cache.close()
    cache = open_cache(fickle, config, judge_digest="j")
    assert (await cache.ask([question(1)]))[0].logprobs == (-0.1, -2.0)
    await asyncio.gather(*cache._shadowing)
    assert (cache.counts["shadowed"], cache.counts["flipped"]) == (1, 1)
    await cache.close()


async def test_a_hit_neither_waits_for_its_check_nor_fails_with_it(lost_errors: Any):
    lost_errors()
    judge = SlowJudge(fail=lambda batch: RunFailedError("died") if batch else None)
    cache = ExactCache(judge.ask, judge_digest="j", entries=9, shadow=1.0)
    await cache.ask([question(1)])
    judge.delay_s = 30.0
    assert (await asyncio.wait_for(cache.ask([question(1)]), 1))[0].cache_hit
    judge.delay_s = 0.0
    assert (await cache.ask([question(1)]))[0].cache_hit
    await asyncio.sleep(0.01)
    assert (cache.counts["shadowed"], cache.counts["shadow_failures"]) == (0, 1)
    await asyncio.wait_for(cache.close(), 1)


async def test_counts_show_the_source_of_answers(tmp_path: Path):
    config = CacheConfig(entries=2, path=str(tmp_path / "v.sqlite"))
    cache = open_cache(SlowJudge().ask, config, judge_digest="j")
    await cache.ask([question(n) for n in (1, 2, 3, 3)])
    await cache.ask([question(3)])
    await cache.ask([question(1)])
    await cache.close()
    assert cache.counts == {"asked": 3, "joined": 1, "memory": 1, "store": 1, "evicted": 2, "stored": 3}


async def test_an_answer_after_the_cache_was_closed_is_given_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    judge = SlowJudge(delay_s=0.02)
    cache = open_cache(judge.ask, CacheConfig(path=str(tmp_path / "v.sqlite")), judge_digest="j")
    late = asyncio.ensure_future(cache.ask([question(1)]))
    await asyncio.sleep(0.01)
    await cache.close()
    assert (await late)[0].logprobs == (-1.0, -1.0)
    assert caplog.records == []


# -- Redis -----------------------------------------------------------------------------------------------------


class TinyRedis:
    """Enough of Redis for a cache, on a free port of this machine."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://:secret-word@127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._clients:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = []
                for _ in range(count):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(self._reply(words))
                await writer.drain()
        writer.close()

    def _reply(self, words: list[bytes]) -> bytes:
        match words[0].upper():
            case b"HELLO":
                return b"-ERR unknown command\r\n"
            case b"SET":
                self.values[words[1]] = words[2]
                return b"+OK\r\n"
            case b"MGET":
                found = [self.values.get(key) for key in words[1:]]
                body = b"".join(b"$-1\r\n" if v is None else b"$%d\r\n%s\r\n" % (len(v), v) for v in found)
                return b"*%d\r\n%s" % (len(found), body)
        return b"+OK\r\n"


async def test_verdicts_are_shared_through_redis_and_its_loss_costs_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("redis", reason="the package redis is an extra")
    server = TinyRedis()
    monkeypatch.setenv("VERDICTS", await server.start())
    config = CacheConfig(redis_env="VERDICTS")
    first, second, third = SlowJudge(), SlowJudge(), SlowJudge()
    for judge in (first, second):
        cache = open_cache(judge.ask, config, judge_digest="j")
        assert [a.logprobs for a in await cache.ask([question(1), question(2)])] == [(-1.0, -1.0), (-2.0, -1.0)]
        await cache.close()
    assert (len(first.batches), second.batches) == (1, [])
    await server.stop()
    cache = open_cache(third.ask, config, judge_digest="j")
    assert (await cache.ask([question(1)]))[0].logprobs == (-1.0, -1.0)
    await cache.ask([question(2)])
    await cache.close()
    warnings = [r.getMessage() for r in caplog.records if "does not answer" in r.getMessage()]
    assert len(warnings) == 1
    assert "secret-word" not in warnings[0]
    assert "secret-word" not in config.model_dump_json()


def test_two_stores_at_once_are_refused():
    with pytest.raises(ValueError, match="expected one store"):
        CacheConfig(path="a", redis_env="B")


def test_an_address_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VERDICTS", raising=False)
    with pytest.raises(InputError, match="VERDICTS, which is not set"):
        open_cache(SlowJudge().ask, CacheConfig(redis_env="VERDICTS"), judge_digest="j")


async def test_an_unreachable_redis_is_retried_ever_more_rarely_and_used_again_when_it_returns(
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("redis", reason="the package redis is an extra")
    from solon.feedback.caches import redis_store

    now = [0.0]
    monkeypatch.setattr(redis_store.time, "monotonic", lambda: now[0])
    server = TinyRedis()
    store = redis_store.RedisStore(await server.start())
    works, client = store._client.mget, store._client

    async def gone(keys: Any) -> Any:
        raise ConnectionError

    client.mget = gone
    waits = []
    for _ in range(8):
        assert await store.get_many([b"k"]) == {}
        waits.append(store._silent_until - now[0])
        now[0] = store._silent_until
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    client.mget = works
    await store.put_many({b"k": Answer((-1.0,))})
    assert list(await store.get_many([b"k"])) == [b"k"]
    client.mget = gone
    await store.get_many([b"k"])
    assert store._silent_until - now[0] == 1
    await store.close()
    await server.stop()
