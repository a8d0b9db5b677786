"""A folder that one process uses at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from solon.errors import InputError
from solon.host.directory_lock import held, require_unused

HOLDER = """
import sys, time
from pathlib import Path
from solon.host.directory_lock import held
with held(Path(sys.argv[1]), user="another one", remedy="wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def use(folder: Path) -> None:
    with held(folder, user="another one", remedy="wait"):
        pass


def test_a_folder_in_use_is_refused_with_the_number_of_its_process_and_is_free_when_that_is_killed(tmp_path: Path):
    folder = tmp_path / "work"
    require_unused(folder, user="another one", remedy="wait")
    assert not folder.exists()
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        words = rf"another one is using .*work \(process {child.pid}\); wait"
        with pytest.raises(InputError, match=words):
            require_unused(folder, user="another one", remedy="wait")
        with pytest.raises(InputError, match=words):
            use(folder)
    finally:
        child.kill()
        child.communicate()
    require_unused(folder, user="another one", remedy="wait")
    use(folder)


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made: Not a directory"):
        use(tmp_path / "file" / "work")
