"""`solon answers`: before and after, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from solon.cli.answers import answers_table, before_and_after, has_both
from solon.errors import InputError


def row(number: int, answer: str, *, kept: bool) -> dict[str, Any]:
    return {
        "prompt_id": f"p{number}",
        "prompt": [{"role": "user", "content": f"question {number}"}],
        "answer": answer,
        "scores": {"brief": float(kept), "plain": 1.0},
    }


def write(directory: Path, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Path:
    (directory / "heldout-before.json").write_text(json.dumps(before))
    (directory / "heldout-after.json").write_text(json.dumps(after))
    return directory


def shown(directory: Path, number: int = 5) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: PTH123, SIM115
    console.print(answers_table(directory, number))
    return console.export_text()


def test_prompts_are_paired_by_id_with_what_each_answer_kept_and_missed(tmp_path: Path):
    write(
        tmp_path,
        [row(1, "long", kept=False), row(2, "x", kept=True)],
        [row(2, "y", kept=True), row(1, "ok", kept=True)],
    )
    assert has_both(tmp_path)
    assert [(a.answer, b.answer) for a, b in before_and_after(tmp_path)] == [("long", "ok"), ("x", "y")]
    text = shown(tmp_path)
    assert "-brief, +plain" in text
    assert "+brief, +plain" in text
    assert text.index("question 1") < text.index("question 2")


def test_the_prompts_shown_are_spread_over_the_file(tmp_path: Path):
    rows = [row(number, f"answer {number}", kept=True) for number in range(100)]
    text = shown(write(tmp_path, rows, rows), number=4)
    assert [f"question {number}" in text for number in (0, 25, 50, 75)] == [True] * 4
    assert "question 99" not in text


def test_text_of_models_cannot_steer_the_terminal(tmp_path: Path):
    rows = [row(1, "\x1b[2J[red]boo[/red]", kept=True)]
    text = shown(write(tmp_path, rows, rows))
    assert "\x1b" not in text
    assert "[red]boo[/red]" in text


def test_a_run_without_both_evaluations_is_refused_with_a_remedy(tmp_path: Path):
    assert not has_both(tmp_path)
    with pytest.raises(InputError, match=r"has no heldout-before.json.*evaluate.prompts"):
        before_and_after(tmp_path)
    with pytest.raises(InputError, match="there is no run directory"):
        before_and_after(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "Invalid JSON"),
        ("{}", "the whole file"),
        ("null", "the whole file"),
        ("[]", "the whole file"),
        ("[1]", "0"),
        ('[{"prompt_id": "p1"}]', "0.prompt"),
        ('[{"prompt_id": "p1", "prompt": [], "answer": "x", "scores": {}}]', "0.prompt"),
    ],
)
def test_a_damaged_file_is_named_with_the_place_of_the_damage(tmp_path: Path, content: str, place: str):
    write(tmp_path, [row(1, "x", kept=True)], [])
    (tmp_path / "heldout-after.json").write_text(content)
    with pytest.raises(InputError, match=r"heldout-after\.json cannot be read") as error:
        before_and_after(tmp_path)
    assert place in str(error.value)


def test_evaluations_of_different_prompts_are_refused(tmp_path: Path):
    write(tmp_path, [row(1, "x", kept=True)], [row(2, "y", kept=True)])
    with pytest.raises(InputError, match="share no prompt"):
        before_and_after(tmp_path)
