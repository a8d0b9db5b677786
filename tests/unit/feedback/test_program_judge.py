"""A person's functions as judges: values become verdicts, and whatever goes wrong is invalid, never a zero."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.assembly import host_judge
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.judges.program_file import TRUE, ProgramFile
from solon.feedback.judges.program_judge import MixedJudge, ProgramJudge
from solon.records import Message
from solon.verdicts import Status, Verdict

FUNCTIONS = """
import os, time
print("imported")

def length(messages, answer):
    print("called", len(messages))
    return len(answer)

def asks(messages, answer):
    return "?" in answer

def wild(messages, answer):
    if answer == "raise":
        raise KeyError("no such key")
    if answer == "text":
        return "good"
    if answer == "nan":
        return float("nan")
    if answer == "none":
        return None
    if answer == "sleep":
        time.sleep(60)
    if answer == "die":
        os._exit(3)
    if answer == "exit":
        raise SystemExit(2)
    return 1.5
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    path = tmp_path / "rewards.toml"
    path.write_text(
        'deadline_s = 1.5\n[programs]\nlength = "mine.py:length"\nasks = "mine.py:asks"\nwild = "mine.py:wild"\n'
    )
    return path


def constitution(*names: str) -> Constitution:
    return Constitution.model_validate(
        {
            "schema": "solon.constitution/v1",
            "id": "mine",
            "version": "1.0.0",
            "language": "en",
            "license": "Apache-2.0",
            "principles": [
                {"id": name, "pairwise_question": "Which?", "pointwise_question": "Is it?"} for name in names
            ],
        }
    )


def item(principle: str, *answers: str, polarity: int = 1) -> Item:
    return Item(
        task="pairwise" if len(answers) == 2 else "pointwise",
        conversation=(Message(role="user", content="hi"),),
        answers=answers,
        principle_id=principle,
        question="Is it?",
        polarity=polarity,
    )


def judged(rewards: Path, *items: Item) -> list[Verdict]:
    async def run() -> list[Verdict]:
        judge = ProgramJudge(ProgramFile.load(rewards), constitution("length", "asks", "wild"), name="programs")
        identity = await judge.start()
        assert (identity.engine, identity.model) == ("python", "programs")
        try:
            return await judge.judge(items)
        finally:
            await judge.close()
            assert len(judge.drain_spans()) == 1

    return asyncio.run(run())


def test_numbers_are_margins_and_truth_values_are_sure_ones(rewards: Path):
    found = judged(
        rewards, item("length", "four"), item("asks", "why?"), item("asks", "no"), item("length", "four", "seventy"),
        item("length", "four", polarity=-1),
    )  # fmt: skip
    assert [verdict.margin for verdict in found] == [4.0, TRUE, -TRUE, -3.0, -4.0]
    assert all(verdict.status is Status.OK and verdict.judge == "programs" for verdict in found)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ("raise", Status.ENGINE_ERROR, "raised KeyError: 'no such key'"),
        ("text", Status.UNPARSABLE, "returned 'good', expected a number"),
        ("nan", Status.UNPARSABLE, "returned nan, expected a number"),
        ("none", Status.UNPARSABLE, "returned None, expected a number"),
        ("sleep", Status.TIMEOUT, "took longer than 1.5 s"),
        ("die", Status.ENGINE_ERROR, "ended with code 3"),
        ("exit", Status.ENGINE_ERROR, "raised SystemExit: 2"),
    ],
)
def test_what_goes_wrong_is_an_invalid_verdict_and_the_next_call_works(
    rewards: Path, answer: str, status: Status, said: str
):
    bad, good = judged(rewards, item("wild", answer), item("wild", "fine"))
    assert (bad.status, bad.margin) == (status, None)
    assert said in bad.detail
    assert (good.status, good.margin) == (Status.OK, 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[programs]\n", "programs"),
        ('[programs]\nx = "mine.py"\n', "expected `file.py:function`"),
        ('[programs]\nx = "other.py:f"\n', "there is no file .*other.py"),
        ('[programs]\nx = "mine.py:lenght"\n', "defines no 'lenght'.*did you mean `length`"),
        ('[programs]\nx = "broken.py:f"\n', "is not Python"),
        ('deadline_s = 0\n[programs]\nx = "mine.py:length"\n', "deadline_s"),
        ('dead = 1\n[programs]\nx = "mine.py:length"\n', "dead"),
    ],
)
def test_mistakes_in_the_file_are_named_before_anything_runs(rewards: Path, text: str, message: str):
    (rewards.parent / "broken.py").write_text("def f(:\n")
    rewards.write_text(text)
    with pytest.raises(InputError, match=message):
        load_judge_file(rewards)


def started(judge: Any) -> None:
    async def run() -> None:
        try:
            await judge.start()
        finally:
            await judge.close()

    asyncio.run(run())


def test_a_program_without_a_principle_and_a_principle_without_a_program_are_refused(rewards: Path):
    file = ProgramFile.load(rewards)
    with pytest.raises(InputError, match=r"programs.length is no principle.*did you mean `lengths`"):
        started(ProgramJudge(file, constitution("asks", "wild", "lengths"), name="p"))
    with pytest.raises(InputError, match="the principle 'kind' has no program"):
        started(ProgramJudge(file, constitution("asks", "wild", "length", "kind"), name="p"))


def test_files_that_cannot_be_imported_end_with_the_cause(rewards: Path):
    (rewards.parent / "mine.py").write_text(FUNCTIONS + "\nimport no_such_module\n")
    file = ProgramFile.load(rewards)
    with pytest.raises(InputError, match=r"cannot be imported: ModuleNotFoundError.*no_such_module"):
        started(ProgramJudge(file, constitution("asks", "wild", "length"), name="p"))


def test_an_edited_program_is_another_judge(rewards: Path):
    before = ProgramFile.load(rewards).digest
    assert ProgramFile.load(rewards).digest == before
    (rewards.parent / "mine.py").write_text(FUNCTIONS + "\n# edited\n")
    assert ProgramFile.load(rewards).digest != before


def test_a_call_that_is_cancelled_leaves_no_reply_for_the_next_one(rewards: Path):
    async def run() -> list[Verdict]:
        judge = ProgramJudge(ProgramFile.load(rewards), constitution("length", "asks", "wild"), name="programs")
        await judge.start()
        try:
            task = asyncio.ensure_future(judge.judge([item("wild", "sleep")]))
            await asyncio.sleep(0.3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return await judge.judge([item("length", "four"), item("length", "fives")])
        finally:
            await judge.close()

    assert [verdict.margin for verdict in asyncio.run(run())] == [4.0, 5.0]


def test_truth_values_of_numpy_and_dataclasses_work_and_coroutines_are_refused(rewards: Path):
    (rewards.parent / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport numpy as np\n"
        "@dataclass\nclass Row:\n    n: int\n"
        "def length(messages, answer):\n    return np.bool_(len(answer) > Row(3).n)\n"
        "def asks(messages, answer):\n    return np.float32(0.5)\n"
        "def wild(messages, answer):\n    return np.array([True, False]).all()\n"
        "async def later(messages, answer):\n    return 1\n"
    )
    found = judged(rewards, item("length", "four"), item("length", "no"), item("asks", "x"), item("wild", "x"))
    assert [verdict.margin for verdict in found] == [TRUE, -TRUE, 0.5, -TRUE]
    rewards.write_text('[programs]\nlater = "mine.py:later"\n')
    with pytest.raises(InputError, match="is an `async def`"):
        load_judge_file(rewards)


class Always:
    """A judge that always says the same."""

    name = "model"

    async def start(self) -> str:
        return "identity"

    async def judge(self, items: list[Item]) -> list[Verdict]:
        return [Verdict(status=Status.OK, margin=0.25, judge=self.name) for _ in items]

    def drain_spans(self) -> list[tuple[float, float]]:
        return []

    async def close(self) -> None: ...


def test_programs_decide_their_principles_and_the_judge_the_others(rewards: Path):
    async def run() -> list[Verdict]:
        programs = ProgramJudge(
            ProgramFile.load(rewards), constitution("length", "asks", "wild", "kind"), name="programs", alone=False
        )
        judge = MixedJudge(Always(), programs)
        assert await judge.start() == "identity"  # type: ignore[comparison-overlap]
        try:
            return await judge.judge([item("kind", "a"), item("length", "abc"), item("kind", "b"), item("asks", "?")])
        finally:
            await judge.close()

    found = asyncio.run(run())
    assert [(verdict.judge, verdict.margin) for verdict in found] == [
        ("model", 0.25), ("programs", 3.0), ("model", 0.25), ("programs", TRUE),
    ]  # fmt: skip


def test_the_settings_name_the_file_of_programs(rewards: Path):
    rules = constitution("length", "asks", "wild", "kind")
    found = host_judge(EngineConfig(model="models/judge"), FeedbackConfig(programs=str(rewards)), rules, name="judge")
    assert isinstance(found, MixedJudge)
    assert isinstance(host_judge(load_judge_file(rewards), FeedbackConfig(), rules, name="judge"), ProgramJudge)
