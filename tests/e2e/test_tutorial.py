"""The tutorial's files and commands, in its order, from an empty folder."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT, environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(400)]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The name of a file (empty: a command) and its text, for each indented block."""
    for paragraph in re.finditer(r"(?:^`([\w.]+)`:\n\n)?((?:^(?: {4}.*)?\n)+)", text, re.MULTILINE):
        lines = [line[4:] for line in paragraph.group(2).splitlines()]
        if any(lines):
            yield paragraph.group(1) or "", "\n".join(lines).strip() + "\n"


def run(folder: Path, command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "solon"
    done = subprocess.run(
        solon_command(*arguments), cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    # A machine may lack what the doctor names; everything else succeeds.
    assert done.returncode in ((0, 1) if command == "solon doctor" else (0,)), f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def watched(folder: Path, command: str) -> str:
    """The first lines of a command that ends with Ctrl-C."""
    process = subprocess.Popen(
        solon_command(*shlex.split(command)[1:]), cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        said = next((line for line in process.stdout if "http://127.0.0.1:" in line), "")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
        return said
    finally:
        process.kill()


def test_every_file_and_command_of_the_tutorial_works_in_its_order(nursery: Any, tmp_path: Path):
    said = {}
    for name, text in blocks(TUTORIAL.read_text(encoding="utf-8")):
        if name:
            (tmp_path / name).write_text(text)
            continue
        for line in text.splitlines():
            said[line] = (watched if "solon watch" in line else run)(tmp_path, line)
    assert [line.split()[1] for line in said] == [
        "doctor", "check", "train", "doctor", "answers", "report", "watch", "train", "label", "init",
    ]  # fmt: skip
    summary = json.loads((tmp_path / "runs" / "first" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("completed", 16)
    adherence = summary["eval"]
    assert adherence["after"]["mean"] > adherence["before"]["mean"] + 0.1, adherence
    assert any("http://127.0.0.1:" in text for text in said.values())
    rows = [json.loads(line) for line in (tmp_path / "labels" / "preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all("gladly" in json.dumps(row["chosen"]) for row in rows)
    assert (tmp_path / "mine" / "run.toml").is_file()
