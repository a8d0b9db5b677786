"""Findings of `make check` about secrets in files and vulnerabilities in packages. The tools are stand-ins here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAST, FUTURE = "2020-01-01", "2999-01-01"


@pytest.fixture
def scan(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("scan")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with three pins and nothing allowed."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "scan_allowed.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("alpha==1.0\nbeta==2.0\ngamma==3.0\n")
    (tmp_path / "key.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def tools(scan: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tools(secrets={...}, vulns={...})`: the findings of the two tools. vulns None: there is no network."""

    def install(secrets: dict[str, Any] | None = None, vulns: dict[str, Any] | None = None, known: str = "abg") -> None:
        folder = tmp_path / ".tools"
        folder.mkdir(exist_ok=True)
        found = json.dumps({"results": secrets or {}})
        write(folder / "detect-secrets", f"print({found!r})")
        records = (
            "import json\npins = open(sys.argv[sys.argv.index('-r') + 1]).read().split()\n"
            f"vulns, known = {vulns!r}, {known!r}\n"
            "if vulns is None: sys.exit('ConnectionError: no network')\n"
            "rows = [dict(zip(('name', 'version'), pin.split('=='))) for pin in pins]\n"
            "for row in rows:\n"
            "    if row['name'][0] in known: row['vulns'] = vulns.get(row['name'], [])\n"
            "    else: row['skip_reason'] = 'not found'\n"
            "print(json.dumps({'dependencies': rows}))"
        )
        write(folder / "pip-audit", records)
        monkeypatch.setattr(scan, "BIN", folder)

    def write(path: Path, code: str) -> None:
        path.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
        path.chmod(0o755)

    return install


def allow(tree: Path, text: str) -> None:
    (tree / "scripts" / "scan_allowed.toml").write_text(text)


def place(sha1: str = "abc", line: int = 7) -> dict[str, Any]:
    return {"type": "AWS Access Key", "hashed_secret": sha1, "line_number": line}


HOLE = {"id": "CVE-1", "aliases": ["GHSA-1"], "fix_versions": ["2.1"]}


def test_a_clean_tree_passes_and_reports_the_scanned_files(scan: ModuleType, tree: Path, tools: Any, capsys: Any):
    tools(vulns={})
    assert scan.main(tree) == 0
    said = capsys.readouterr().out
    assert "scan: no secrets in 2 files" in said
    assert "scan: no known vulnerabilities in 3 packages" in said


def test_a_secret_fails_the_check_and_is_not_shown(scan: ModuleType, tree: Path, tools: Any, capsys: Any):
    tools(secrets={"key.py": [place()]}, vulns={})
    assert scan.main(tree) == 1
    assert "key.py:7: AWS Access Key, sha1 abc" in capsys.readouterr().err
    allow(tree, '[[secret]]\nsha1 = "abc"\nreason = "made up"\n')
    assert scan.main(tree) == 0


def test_an_allowed_entry_that_no_longer_exists_fails_the_check(scan: ModuleType, tree: Path, tools: Any, capsys: Any):
    tools(vulns={})
    allow(tree, '[[secret]]\nsha1 = "abc"\nreason = "made up"\n')
    assert scan.main(tree) == 1
    allow(tree, f'[[vulnerability]]\nid = "CVE-1"\nuntil = {FUTURE}\nreason = "r"\n')
    assert scan.main(tree) == 1
    said = capsys.readouterr().err
    assert "secrets that no longer exist: abc" in said
    assert "vulnerabilities that no pin has: CVE-1" in said


@pytest.mark.parametrize("name", ["CVE-1", "GHSA-1"])
def test_a_known_vulnerability_fails_the_check_unless_it_is_allowed_for_now(
    scan: ModuleType, tree: Path, tools: Any, capsys: Any, name: str
):
    tools(vulns={"beta": [HOLE]})
    assert scan.main(tree) == 1
    assert "beta 2.0: CVE-1 (fixed in: 2.1)" in capsys.readouterr().err
    allow(tree, f'[[vulnerability]]\nid = "{name}"\nuntil = {FUTURE}\nreason = "r"\n')
    assert scan.main(tree) == 0
    allow(tree, f'[[vulnerability]]\nid = "{name}"\nuntil = {PAST}\nreason = "r"\n')
    assert scan.main(tree) == 1
    assert f"allowed until {PAST}" in capsys.readouterr().err


def test_without_a_network_the_scan_reports_that_it_asked_nothing(
    scan: ModuleType, tree: Path, tools: Any, capsys: Any
):
    tools(vulns=None)
    assert scan.main(tree) == 0
    assert "vulnerabilities: skipped: index not reachable" in capsys.readouterr().out
    tools(vulns={}, known="")  # a mirror that has packages and knows nothing about them
    assert scan.main(tree) == 0
    assert "vulnerabilities: skipped: index not reachable" in capsys.readouterr().out


def test_packages_that_the_index_does_not_know_are_named(scan: ModuleType, tree: Path, tools: Any, capsys: Any):
    tools(vulns={}, known="ag")
    assert scan.main(tree) == 0
    assert "in 2 packages, 1 not known to the index (beta)" in capsys.readouterr().out


def test_a_tool_that_is_missing_or_breaks_fails_the_check(
    scan: ModuleType, tree: Path, tools: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    tools(vulns={})
    (scan.BIN / "detect-secrets").write_text(f"#!{sys.executable}\nraise SystemExit('broken')\n")
    assert scan.main(tree) == 1
    assert "detect-secrets failed: broken" in capsys.readouterr().err
    monkeypatch.setattr(scan, "BIN", tree / "nowhere")
    assert scan.main(tree) == 1
    assert "detect-secrets is not installed; run `make setup`" in capsys.readouterr().err


def test_every_entry_of_the_real_list_has_a_reason_and_a_vulnerability_an_end():
    import datetime
    import tomllib

    allowed = tomllib.loads((ROOT / "scripts" / "scan_allowed.toml").read_text())
    assert set(allowed) <= {"secret", "vulnerability"}
    for entry in (*allowed.get("secret", ()), *allowed.get("vulnerability", ())):
        assert entry["reason"].strip()
    assert all(isinstance(entry["until"], datetime.date) for entry in allowed.get("vulnerability", ()))
