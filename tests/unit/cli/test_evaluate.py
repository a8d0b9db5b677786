"""`solon evaluate` and `solon revise` refuse what cannot work before an engine starts, and say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.side_by_side import policy_of
from solon.cli import evaluate
from solon.cli.evaluate import EvaluateRequest, run_evaluate, table_of
from solon.cli.revise import run_revise
from solon.errors import InputError, RunFailedError
from solon.evaluation.results import Answered, results
from solon.records import Message, Prompt

HI = (Message(role="user", content="hi"),)
CONSTITUTION = """
schema: solon.constitution/v1
id: mine
version: "1"
principles:
  - {id: short, pointwise_question: "Is the answer short?"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "bye"}\n')
    (tmp_path / "mine.yaml").write_text(CONSTITUTION)
    (tmp_path / "r.py").write_text("def f(messages, answer):\n    return 1\n")
    (tmp_path / "rewards.toml").write_text('[programs]\nshort = "r.py:f"\n')

    def never(*_: Any) -> Any:
        raise AssertionError("an engine was started")

    monkeypatch.setattr(evaluate, "_answers", never)
    monkeypatch.setattr(evaluate, "_check_policies", lambda *_: None)
    return tmp_path


def request(folder: Path, **changes: Any) -> EvaluateRequest:
    given = {"models": ["a", "b"], "prompts": str(folder / "prompts.jsonl"), "out": folder / "out"}
    return EvaluateRequest(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "expected --judge with --constitution, or --evaluator"),
        ({"judge": "rewards.toml"}, "expected --judge with --constitution, or --evaluator"),
        ({"evaluator": "nursry"}, "--evaluator nursry: expected one of english, nursery"),
        ({"evaluator": "nursery", "models": ["a", "a"]}, "expected different policies"),
        ({"judge": "rewards.toml", "constitution": "none.yaml"}, r"none\.yaml"),
        ({"judge": "rewards.toml", "constitution": "mine.yaml"}, "pairwise_question"),
        ({"judge": "none.toml", "constitution": "mine.yaml", "models": ["a"]}, r"none\.toml"),
        ({"evaluator": "nursery", "overrides": ["sampling.max_tokns=3"]}, "did you mean `max_tokens`"),
        ({"evaluator": "nursery", "overrides": ['feedback.jury.judges=["x"]']}, "expected one judge"),
        ({"evaluator": "nursery", "prompts": "none.jsonl"}, r"none\.jsonl"),
        ({"evaluator": "nursery", "out": "prompts.jsonl/out"}, "choose another directory"),
    ],
)
def test_mistakes_are_named_before_a_policy_answers(folder: Path, changes: dict[str, Any], message: str):
    for key in ("judge", "constitution"):
        if changes.get(key):
            changes[key] = str(folder / changes[key])
    if isinstance(changes.get("out"), str):
        changes["out"] = folder / changes["out"]
    with pytest.raises(InputError, match=message):
        run_evaluate(request(folder, **changes), as_json=True)


def test_a_run_stands_for_its_last_checkpoint_and_a_stage_for_its_model(tmp_path: Path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "LATEST").write_text("step-000040\n")
    (tmp_path / "stage" / "model").mkdir(parents=True)
    (tmp_path / "stage" / "model" / "config.json").write_text("{}")
    assert policy_of(str(tmp_path / "run")) == str(tmp_path / "run" / "checkpoints" / "step-000040" / "policy")
    assert policy_of(str(tmp_path / "stage")) == str(tmp_path / "stage" / "model")
    assert policy_of("org/model") == "org/model"


def test_the_result_compares_on_shared_prompts_and_is_valid_json(folder: Path):
    prompts = [Prompt(prompt_id=str(n), messages=HI) for n in range(3)]
    one = Answered("a", [["x y z"]] * 3, scores_P=[{"short": 1.0}, {"short": 0.0}, {}])
    two = Answered(
        "b", [[""], ["x y"], ["x"]], scores_P=[{"short": 1.0}, {"short": 1.0}, {}], margins_P=[1.0, None, -2.0]
    )
    found = results([one, two], prompts, samples=1, tie=0.1)
    second = found["policies"][1]
    assert second["change"]["short"]["value"] == 0.5
    assert second["change"]["short"]["pairs"] == 2
    assert (second["wins"]["wins"], second["wins"]["losses"]) == (1, 1)
    assert second["degenerate"]["empty"] == pytest.approx(1 / 3)
    assert json.loads(evaluate.json_text(found))["prompts"] == 3
    assert table_of(found).row_count > 5


def test_figures_of_prompts_by_tag_are_compared_with_the_first_policy_and_with_the_plain_prompts(folder: Path):
    tags = [("attack:none", "source:1"), ("attack:many_shot", "source:1"), ("attack:none", "source:2"), ("other",)]
    prompts = [Prompt(prompt_id=str(n), messages=HI, tags=one) for n, one in enumerate(tags)]
    scores = {"a": [1.0, 1.0, 1.0, 1.0], "b": [1.0, 0.0, 0.0, 1.0]}
    one, two = (Answered(name, [["x"]] * 4, scores_P=[{"p": v} for v in values]) for name, values in scores.items())
    two.answers_PS[1] = [""]
    found = results([one, two], prompts, samples=1, tie=0.1, by="attack")
    first, second = found["policies"]
    assert {tag: row["mean"]["value"] for tag, row in first["by"].items()} == {"attack:none": 1, "attack:many_shot": 1}
    shot = second["by"]["attack:many_shot"]
    assert (shot["mean"]["value"], shot["change"]["value"], shot["from_none"]["value"]) == (0.0, -1.0, -1.0)
    assert shot["degenerate"] == 1.0
    assert "from_none" not in second["by"]["attack:none"]
    assert first["mean"]["pairs"] == 3  # two prompts are from one source
    assert first["mean"]["low"] == pytest.approx(0.025 ** (1 / 3))
    evaluate._write_page(found, request(folder, evaluator="nursery", out=folder))
    assert "attack:many_shot" in (folder / "evaluation.html").read_text()
    assert table_of(found).row_count > 5


def test_policies_that_no_verdict_was_given_on_are_an_error():
    with pytest.raises(RunFailedError, match="no valid verdict on any answer of a"):
        evaluate.require_judged([Answered("a", [["x"]], scores_P=[{}])])


def test_a_tag_that_no_prompt_has_is_named(folder: Path):
    with pytest.raises(InputError, match=r"--by attack: no prompt has a tag `attack:"):
        run_evaluate(request(folder, evaluator="nursery", by="attack"), as_json=True)


def test_revisions_are_not_written_over_other_files(folder: Path):
    with pytest.raises(InputError, match="expected a new one; choose another"):
        run_revise(
            str(folder / "prompts.jsonl"), policy="a", constitution=str(folder / "mine.yaml"), out=folder,
            max_prompts=2, overrides=[], as_json=True,
        )  # fmt: skip
