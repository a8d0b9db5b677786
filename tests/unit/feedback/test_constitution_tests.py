from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from solon.cli.main import main
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.trials import constitution_tests
from solon.verdicts import Status, Task, Verdict
from tests.unit.run_files import make_model, make_run

TEXT = """\
schema: solon.constitution/v1
id: core
version: "1"
principles:
  - id: kind
    weight: 3
    pairwise_question: which is kinder
    pointwise_question: is it kind
    predicates:
      - {id: greets, question: does it greet}
      - {id: insults, question: does it insult, polarity: -1}
    score_anchors: {1: rude, 2: cold, 3: kind}
  - id: brief
    applies_if: {tags_none: [long]}
    pairwise_question: which is briefer
    pointwise_question: is it brief
    predicates: [{id: rambles, question: does it ramble, polarity: -1}]
    score_anchors: {1: long, 2: brief}
tests:
  - {prompt: hi, a: "2", b: "-1", expect: a, principle: kind}
  - {prompt: hi, a: "-4", b: "0", expect: b}
  - {prompt: hi, a: "1.02", b: "1", expect: tie, tags: [long]}
"""


@dataclass
class NumberJudge:
    """Takes every answer at its word: the text is its margin, and of two the difference."""

    name: str = "number"
    broken: frozenset[str] = frozenset()
    """Answers that it has no opinion on."""
    items: list[Item] = field(default_factory=list)
    closed: bool = False

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.items += items
        return [self._verdict(item) for item in items]

    def _verdict(self, item: Item) -> Verdict:
        if self.broken & set(item.answers):
            return Verdict(status=Status.LOW_MASS, margin=None, detail="said maybe")
        numbers = [float(answer) for answer in item.answers]
        return Verdict(status=Status.OK, margin=numbers[0] - sum(numbers[1:]))

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.closed = True


def constitution(text: str = TEXT) -> Constitution:
    return Constitution.parse(text)


async def results(task: Task = "pairwise", text: str = TEXT, **judge: Any) -> list[constitution_tests.TestResult]:
    return await constitution_tests.run(constitution(text), NumberJudge(**judge), task)


async def test_a_pairwise_test_is_decided_by_the_margin_of_a_over_b():
    found = await results()
    assert [(r.number, r.principles, r.got, r.margin, r.passed) for r in found] == [
        (0, ("kind",), "a", 3.0, True),
        (1, ("kind", "brief"), "b", -3.0, True),  # both principles, each clipped to 3 nats
        (2, ("kind",), "tie", pytest.approx(0.02), True),
    ]


@pytest.mark.parametrize("task", ["pointwise", "predicate", "score"])
async def test_other_tasks_compare_the_verdicts_on_each_answer(task: Task):
    found = await results(task)
    # Of -4 and 0, the first is clipped to -3 before two principles are averaged; a single one is not clipped.
    assert [(r.got, r.margin) for r in found] == [("a", 3.0), ("b", -3.0), ("tie", pytest.approx(0.02))]


async def test_a_test_of_one_principle_asks_about_that_one_alone():
    judge = NumberJudge()
    await constitution_tests.run(constitution(), judge, "pairwise")
    assert [(i.principle_id, i.question, i.answers) for i in judge.items] == [
        ("kind", "which is kinder", ("2", "-1")),
        ("kind", "which is kinder", ("-4", "0")),
        ("brief", "which is briefer", ("-4", "0")),
        ("kind", "which is kinder", ("1.02", "1")),
    ]


async def test_all_facts_of_a_principle_are_asked_with_their_polarity_and_all_marks_with_their_scale():
    judge = NumberJudge()
    await constitution_tests.run(constitution(), judge, "predicate")
    assert [(i.question, i.polarity, i.answers) for i in judge.items[:4]] == [
        ("does it greet", 1, ("2",)),
        ("does it greet", 1, ("-1",)),
        ("does it insult", -1, ("2",)),
        ("does it insult", -1, ("-1",)),
    ]
    judge = NumberJudge()
    await constitution_tests.run(constitution(), judge, "score")
    assert [i.scale for i in judge.items[:4]] == [3, 3, 3, 3]


async def test_a_failed_verdict_is_no_pass_and_no_number():
    found = await results(broken=frozenset({"0"}))
    assert (found[1].got, found[1].margin, found[1].passed) == ("invalid", None, False)
    assert found[1].detail == "low_mass: said maybe"
    assert found[0].passed


async def test_a_wrong_answer_fails_the_test():
    found = await results(text=TEXT.replace("expect: b", "expect: a"))
    assert [r.passed for r in found] == [True, False, True]
    assert found[1].as_row() == {
        "number": 1,
        "principles": ("kind", "brief"),
        "prompt": "hi",
        "expected": "a",
        "got": "b",
        "margin": -3.0,
        "detail": "",
        "passed": False,
    }


@pytest.mark.parametrize(("band", "got"), [("0.01", "a"), ("0.5", "tie")])
async def test_the_tie_band_is_the_constitutions(band: str, got: str):
    found = await results(text=f"{TEXT}aggregation: {{tie_band: {band}}}\n")
    assert found[2].got == got


async def test_the_aggregation_is_the_constitutions():
    # kind 1 and brief -2 for the first answer: 3:1 weighted, the worst one, and half the way between them.
    class Divided(NumberJudge):
        def _verdict(self, item: Item) -> Verdict:
            return Verdict(status=Status.OK, margin=1.0 if item.principle_id == "kind" else -2.0)

    async def margin(task: Task, method: str) -> float | None:
        text = f"{TEXT}aggregation: {{method: {method}}}\n"
        return (await constitution_tests.run(constitution(text), Divided(), task))[1].margin

    assert await margin("pairwise", "weighted") == 0.25
    assert await margin("pairwise", "mean") == -0.5
    assert await margin("pairwise", "min") == -0.5
    assert await margin("pointwise", "min") == 0


async def test_no_tests_need_no_judge():
    judge = NumberJudge()
    assert await constitution_tests.run(constitution(TEXT[: TEXT.index("tests")]), judge) == []
    assert judge.items == []


async def test_a_principle_that_cannot_be_asked_is_named():
    with pytest.raises(InputError, match="brief has no score_anchors"):
        await results("score", TEXT.replace("    score_anchors: {1: long, 2: brief}\n", ""))


# -- on the command line ----------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["solon", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, NumberJudge]]:
    """(source, feedback, judge) of every judge that was opened, none of which is a model."""
    found: list[tuple[Any, Any, NumberJudge]] = []

    def host_judge(source: Any, feedback: Any, *_: Any, **__: Any) -> NumberJudge:
        found.append((source, feedback, NumberJudge()))
        return found[-1][2]

    monkeypatch.setattr("solon.feedback.judges.assembly.host_judge", host_judge)
    monkeypatch.setattr("solon.feedback.prompting.secret.nonce_secret", lambda: b"x")
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "core.yaml"
    path.write_text(TEXT)
    return path


def test_check_of_a_constitution_names_gaps_and_opens_no_judge(
    file: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert call(monkeypatch, "check", file) == 0
    out = capsys.readouterr().out
    assert "warning: no critique_request: kind, brief" in out
    assert f"good. 2 principles of 'core' 1, 3 tests, hash {constitution().hash}." in out
    assert opened == []


def test_check_runs_the_tests_against_a_judge_and_shows_them(
    file: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = make_model(file.parent / "judge")
    options = ["--set", "feedback.template=compact", "--set", "judging.threads=2"]
    assert call(monkeypatch, "check", file, "--judge", model, *options) == 0
    out = capsys.readouterr().out
    assert "3 of 3 tests passed." in out
    rows = [line.split() for line in out.splitlines() if " pass" in line]
    assert rows[1] == ["1", "all", "2", "b", "b", "-3.00", "pass", "hi"]
    ((engine, feedback, judge),) = opened
    assert (engine.model, engine.threads) == (str(model), 2)
    assert (feedback.task, feedback.template) == ("pairwise", "compact")
    assert judge.closed


def test_a_test_that_fails_ends_with_1_and_json_says_which(
    file: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file.write_text(TEXT.replace("expect: b", "expect: tie"))
    model = make_model(file.parent / "judge")
    assert call(monkeypatch, "check", file, "--judge", model, "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["tests"] | {"results": 0} == {
        "judge": str(model),
        "task": "pairwise",
        "total": 3,
        "failed": 1,
        "results": 0,
    }
    assert [row["passed"] for row in result["tests"]["results"]] == [True, False, True]


def test_a_run_file_asks_its_own_judge_in_its_own_way(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path, '[feedback]\ntask = "pointwise"\n[judging]\nmax_model_len = 333')
    (tmp_path / "constitution.yaml").write_text(TEXT)
    assert call(monkeypatch, "check", run, "--tests") == 0
    assert "pointwise" in capsys.readouterr().out
    ((engine, feedback, _),) = opened
    assert (engine.model, engine.max_model_len, feedback.task) == (str(tmp_path / "judge"), 333, "pointwise")


def test_a_run_files_tests_may_be_put_to_another_judge(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path)
    (tmp_path / "constitution.yaml").write_text(TEXT)
    other = make_model(tmp_path / "other")
    assert call(monkeypatch, "check", run, "--judge", other) == 0
    assert opened[0][0].model == str(other)


def test_an_endpoint_is_asked_where_a_file_describes_one(
    file: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    endpoint = file.with_name("big.toml")
    endpoint.write_text('[endpoint]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "big-judge"\n')
    assert call(monkeypatch, "check", file, "--judge", endpoint) == 0
    assert "asking big-judge, pairwise" in capsys.readouterr().out
    assert opened[0][0].endpoint.model == "big-judge"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tests"], "needs a judge to ask, got none; name one with --judge MODEL"),
        (["--judge", "nowhere/at/all"], "judge model nowhere/at/all does not exist"),
        (["--set", "feedback.tsak=score"], "unknown key `feedback.tsak` (did you mean `task`?)"),
        (["--judge", "nursery:jugde"], "(did you mean `judge`?)"),
    ],
)
def test_a_wrong_check_of_a_constitution_ends_with_2(
    arguments: list[str],
    words: str,
    file: Path,
    opened: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert call(monkeypatch, "check", file, *arguments) == 2
    assert words in capsys.readouterr().err
    assert opened == []


def test_a_constitution_without_tests_cannot_be_tested(
    file: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file.write_text(TEXT[: TEXT.index("tests")])
    assert call(monkeypatch, "check", file, "--judge", make_model(file.parent / "judge")) == 2
    assert "has no tests to run; add `tests`" in capsys.readouterr().err
    assert opened == []
