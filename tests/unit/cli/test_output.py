"""Destinations of output: a reader that leaves, a full device, a closed descriptor, an encoding without letters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = (
    "import sys, typer\n"
    "from solon.cli import main\n"
    "app = typer.Typer()\n"
    "@app.command()\n"
    "def talk() -> None:\n"
    "    for _ in range(3):\n"
    "        print('\\u2581 said ' * 20000, flush=True)\n"
    "        print('\\u2581 complained ' * 20000, file=sys.stderr, flush=True)\n"
    "    open('done', 'x').close()\n"
    "main.app = app\n"
    "sys.argv = ['solon']\n"
    "main.main()\n"
)
"""A command that talks at length, then leaves a file."""


def run_in_shell(folder: Path, redirection: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The command above, with this behind it."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirection}', sys.executable, COMMAND],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **variables}, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "redirection",
    ["| head -c 1", "2>&1 | head -c 1", ">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-", "| true", "2>/dev/full"],
)
def test_a_command_completes_although_no_one_reads_its_output(tmp_path: Path, redirection: str):
    done = run_in_shell(tmp_path, redirection)
    assert (tmp_path / "done").exists(), done.stderr[-2000:]
    if redirection != "2>/dev/full":
        assert done.returncode == 0, done.stderr[-2000:]
    assert b"Traceback" not in done.stderr


def test_output_refused_by_a_full_disk_is_a_failure_at_the_end(tmp_path: Path):
    done = run_in_shell(tmp_path, ">/dev/full")
    assert (tmp_path / "done").exists()
    assert done.returncode == 1
    assert b"solon: the output could not be written: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "xx_YY"}],
)
def test_characters_that_the_encoding_lacks_are_replaced(tmp_path: Path, variables: dict[str, str]):
    done = run_in_shell(tmp_path, "", **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    expected: Sequence[bytes] = [b"? said", "\u2581 said".encode()]
    assert any(done.stdout.startswith(one) for one in expected)


def test_a_file_that_is_opened_does_not_get_the_number_of_a_closed_stream(tmp_path: Path):
    code = (
        "from solon.cli.output import settle_streams\n"
        "settle_streams()\n"
        "file = open('journal', 'w')\n"
        "assert file.fileno() > 2\n"
        "import os; os.write(1, b'what a library prints')\n"
        "os.write(2, b'what a library prints')\n"
    )
    shell = ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code]
    assert subprocess.run(shell, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    assert (tmp_path / "journal").read_text() == ""
