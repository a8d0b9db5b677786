"""Places in which users start a command, one per row: it works, or it explains in one message what to do.

`tests/ray/test_places.py` tests the places of a cluster: there one start has dead proxies, an unknown locale, a home
that does not exist yet, a temporary folder with too long a path, and taken ports.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import NURSERY, ROOT, environment, solon_command
from tests.e2e.standin_runs import standin_command
from tests.unit.doctor.test_doctor import end, make_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CONSTITUTION = ROOT / "examples" / "assistant.yaml"
NOWHERE = "/proc/nowhere"
"""A folder that not even root can make."""
DEAD = "http://127.0.0.1:9"

DOCTOR = solon_command("doctor", "runs/past")
CHECK = solon_command("check", str(CONSTITUTION))
CHECK_RUN = solon_command("check", str(NURSERY))
TRAIN = standin_command("now", "--steps", "2")


@dataclass(frozen=True)
class Row:
    """A command in a place. An empty value unsets a variable; `shell` is the script, with the command as `"$@"`."""

    place: str
    command: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)
    shell: str = '"$@"'
    code: int = 0
    says: str = ""
    root: bool = False
    """Only root can create this place."""


ROWS = (
    Row("no HOME", CHECK_RUN, {"HOME": ""}),
    Row("a HOME that cannot be made", CHECK, {"HOME": NOWHERE, "XDG_CACHE_HOME": ""}),
    Row(
        "a HOME that cannot be made, for the nursery", CHECK_RUN, {"HOME": NOWHERE, "XDG_CACHE_HOME": ""},
        code=2, says=f"solon: {NOWHERE}/.cache/solon cannot be used: No such file or directory; set XDG_CACHE_HOME",
    ),
    Row(
        "a HOME that cannot be made, for Ray's token", TRAIN,
        {"HOME": NOWHERE, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""},
        code=2, says=f"solon: Ray's token {NOWHERE}/.ray/auth_token cannot be read or made: .*; set "
        "RAY_AUTH_TOKEN_PATH to a file of yours with a long random text, or RAY_AUTH_TOKEN to such a text",
    ),
    Row("the C locale", DOCTOR, {"LC_ALL": "C", "LANG": ""}),
    Row("the POSIX locale", DOCTOR, {"LC_ALL": "POSIX", "LANG": ""}),
    Row("a locale that is not there", DOCTOR, {"LC_ALL": "xx_YY.UTF-8"}),
    Row("output in ASCII", DOCTOR, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
    Row("a terminal of twenty columns", DOCTOR, {"COLUMNS": "20"}),
    Row("a terminal of one column", DOCTOR, {"COLUMNS": "1"}),
    Row("a terminal of no columns", CHECK, {"COLUMNS": "0", "LINES": "0"}),
    Row("a terminal without a type", CHECK, {"TERM": "dumb"}),
    Row("no standard input", CHECK, shell='"$@" <&-'),
    Row("no standard output", DOCTOR, shell='"$@" >&-'),
    Row("no standard streams", DOCTOR, shell='"$@" <&- >&- 2>&-'),
    Row("a reader that leaves", DOCTOR, shell='"$@" 2>&1 | true'),
    Row("a full device for the output", CHECK, shell='"$@" >/dev/full', code=1, says="the output could not be written"),
    Row("dead proxies", CHECK_RUN, {name: DEAD for name in ("http_proxy", "https_proxy", "all_proxy")}),  # noqa: C420
    Row("a TMPDIR that is not there", CHECK_RUN, {"TMPDIR": "/tmp/not/there"}),
    Row("a full TMPDIR", CHECK_RUN, {"TMPDIR": "full"},
        shell='mount -t tmpfs -o size=4k tmpfs full && { cat /dev/zero >full/zeros 2>/dev/null; "$@"; }', root=True),
    Row("a file-size limit of 1 MiB", CHECK, shell='ulimit -f 1024; "$@"'),
    Row(
        "little shared memory, twenty columns, a reader that leaves", TRAIN, {"COLUMNS": "20"},
        shell='mount -t tmpfs -o size=64m tmpfs /dev/shm && "$@" 2>&1 | head -n 1', root=True,
    ),
    Row(
        "no space for Ray's files", TRAIN, {"RAY_TMPDIR": "full"},
        shell='mount -t tmpfs -o size=1m tmpfs full && RAY_TMPDIR=$PWD/full "$@"', root=True,
        code=2, says="solon: RAY_TMPDIR is .*full, which .*; expected a short path with space",
    ),
    Row("another account", CHECK, {"HOME": "/", "XDG_CACHE_HOME": ""},
        shell='setpriv --reuid=65534 --regid=65534 --clear-groups "$@"', root=True),
)  # fmt: skip


def can_mount() -> bool:
    """Whether a place may have file systems of its own."""
    probe = ["unshare", "--mount", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ended run."""
    run = make_run(tmp_path_factory.mktemp("runs"))
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(end(run, "completed"), folder / "runs" / "past")
    (folder / "full").mkdir()
    return folder


@pytest.mark.parametrize("row", ROWS, ids=[row.place for row in ROWS])
def test_a_command_works_or_explains_in_one_message_what_to_do(nursery: Any, home: Path, row: Row):
    if row.root and not (os.geteuid() == 0 and can_mount()):
        pytest.skip("this place can be made by root alone, who may mount")
    if "setpriv" in row.shell and not _other_account_can_start_python():
        pytest.skip("another account cannot read this interpreter")
    variables = environment(**row.variables)
    variables = {name: value for name, value in variables.items() if value or name not in row.variables}
    shell = ["bash", "-o", "pipefail", "-c", row.shell, "bash", *row.command]
    done = subprocess.run(
        ["unshare", "--mount", *shell] if row.root else shell, cwd=home, env=variables, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, errors="replace", timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == row.code, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    if row.says:
        lines = [line for line in done.stderr.splitlines() if "setlocale" not in line]
        assert len(lines) == 1, lines
        assert re.search(row.says, lines[0]), lines[0]


def _other_account_can_start_python() -> bool:
    probe = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        sys.executable,
        "-c",
        f"open({str(CONSTITUTION)!r})",
    ]
    return bool(shutil.which("setpriv")) and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_a_run_whose_reader_left_is_complete(home: Path):
    """The row of little shared memory runs earlier."""
    summary = home / "runs" / "now" / "summary.json"
    if not summary.exists():
        pytest.skip("no run was started")
    assert json.loads(summary.read_text())["status"] == "completed"


def test_at_twenty_columns_no_table_column_shrinks_to_single_letters(home: Path):
    done = subprocess.run(
        DOCTOR, cwd=home, env=environment(COLUMNS="20"), capture_output=True, text=True, timeout=60, check=False
    )
    letters = [line for line in done.stdout.splitlines() if len(line.strip()) == 1]
    assert letters == []
