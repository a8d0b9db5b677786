"""Solon's packages come from one folder, and nothing from the current one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ray_session import worker_path
from solon.errors import InputError
from solon.host import own_code
from solon.host.own_code import PACKAGES, found_packages, protect, shadow
from solon.host.submitted_job import in_any_copy, refuse_working_copy

ROOT = Path(__file__).parents[3]
COPY = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_8c1")


def start(folder: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONSAFEPATH", "SOLON_RUNS")}
    variables |= {"PYTHONPATH": str(ROOT), **extra}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=variables, capture_output=True, text=True, timeout=60
    )


def package(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise SystemExit('the other package ran')\n")


def test_every_package_of_the_distribution_is_protected_from_shadowing():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(PACKAGES) == folders - {"tests", "benchmarks", "scripts"}


@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "solon"])
def test_a_package_on_pythonpath_that_shadows_one_of_solons_is_refused_by_name(tmp_path: Path, name: str):
    package(tmp_path, name)
    done = start(tmp_path, "-P", "-m", "solon", "--version", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2
    assert done.stderr == (
        f"solon: the folder {tmp_path} holds `{name}/`, which shadows Solon's package {name} in {ROOT}; rename it, or "
        "take the folder out of PYTHONPATH\n"
    )
    assert not done.stdout


def test_a_module_shadows_too_and_a_folder_without_code_does_not(tmp_path: Path):
    (tmp_path / "actors").mkdir()
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    assert start(tmp_path, "-P", "-m", "solon", "--version", PYTHONPATH=path).returncode == 0
    (tmp_path / "cluster.py").touch()
    done = start(tmp_path, "-P", "-m", "solon", "--version", PYTHONPATH=path)
    assert "holds `cluster.py`, which shadows" in done.stderr


def test_in_a_submitted_folder_the_message_speaks_of_that_folder():
    found = {name: f"/site/{name}" for name in PACKAGES} | {"actors": f"{COPY}/actors"}
    said = shadow(found, home=Path("/site"))
    assert said.startswith(f"the submitted working directory (here {COPY}) holds `actors/`, which shadows")
    assert said.endswith("rename it there, or submit another folder")


def test_a_machine_of_the_cluster_is_named_and_its_packages_are_compared_with_each_other():
    found = {name: f"/site/{name}" for name in PACKAGES}
    assert not shadow(found)
    assert shadow(found | {"solon": "/home/solon"}, where="on the machine 10.0.0.7").startswith(
        "on the machine 10.0.0.7: the folder /home holds `solon/`, which shadows"
    )
    assert "Solon's package learners is missing in /site" in shadow(found | {"learners": ""})
    assert "is not installed there" in shadow(dict.fromkeys(PACKAGES, ""))


def test_here_all_packages_are_found_beside_solon_and_nothing_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{ROOT}")
    protect()
    assert found_packages() == {name: str(ROOT / name) for name in PACKAGES}
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONPATH"] == str(ROOT)  # an empty entry is the current folder
    monkeypatch.setenv("PYTHONPATH", "")
    protect()
    assert os.environ["PYTHONPATH"] == str(ROOT)  # as where it is a checkout that is not installed


def test_packages_behind_a_link_are_not_refused(tmp_path: Path):
    for name in PACKAGES:
        (tmp_path / name).symlink_to(ROOT / name)
    assert start(tmp_path, "-P", "-m", "solon", "--version", PYTHONPATH=str(tmp_path)).returncode == 0


def test_python_m_solon_imports_nothing_from_the_current_folder(tmp_path: Path):
    for name in ("typer", "pathlib", "json", "re", "__future__"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a trap ran')\n")
    package(tmp_path, "cluster")
    done = start(tmp_path, "-m", "solon", "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_python_m_solon_runs_from_a_checkout_that_is_not_installed(tmp_path: Path):
    (tmp_path / "solon").mkdir()
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "solon" / name).write_bytes((ROOT / "solon" / name).read_bytes())
    (tmp_path / "solon" / "cli").mkdir()
    (tmp_path / "solon" / "cli" / "main.py").write_text("def main(): print(__file__)\n")
    assert start(tmp_path, "-m", "solon").stdout == f"{tmp_path}/solon/cli/main.py\n"


def test_a_child_finds_the_same_solon_and_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package(tmp_path, "solon")
    monkeypatch.setenv("PYTHONPATH", "")
    command = own_code.module_command("solon", "--version")
    done = subprocess.run(command, cwd=tmp_path, env=own_code.child_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_installed_solon_adds_nothing_to_the_path_of_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert own_code.import_folders() == [str(ROOT)]
    monkeypatch.setattr(own_code.site, "getsitepackages", lambda: [str(ROOT)])
    assert own_code.import_folders() == []


def test_workers_of_a_submitted_job_look_where_the_job_itself_looks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert worker_path.job_config()._py_driver_sys_path[-1] == str(ROOT)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert worker_path.job_config()._py_driver_sys_path == []


def test_no_page_recommends_a_start_that_imports_from_the_current_folder():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md")]
    lines = [
        line for page in pages if page.name not in ("log.md", "security.md") for line in page.read_text().splitlines()
    ]
    risky = [line for line in lines if re.search(r"python3? -m (solon|nursery)", line)]
    # A folder that is submitted is code.
    assert all("ray job submit" in line for line in risky), risky


# -- the copy of a submitted folder ----------------------------------------------------------------------------------


def test_output_into_rays_copy_of_the_folder_is_refused_before_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / Path(*COPY.parts[1:])
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    (tmp_path / "link").symlink_to(copy)
    for path in (Path("runs"), copy / "labels", tmp_path / "link" / "runs"):
        with pytest.raises(InputError, match=r"Ray's copy of the submitted working directory, which is removed after"):
            refuse_working_copy(path, "--out")
    refuse_working_copy(tmp_path / "runs", "--out")


def test_a_path_in_rays_copy_of_a_folder_reads_the_same_in_every_copy():
    session = "/tmp/ray/session_{}/runtime_resources/working_dir_files/_ray_pkg_{}"
    settings = [{"run": {"calibration": session.format(n, n) + "/data/c.json", "panel": [session.format(n, n)], "n": 1}}
                for n in (1, 2)]  # fmt: skip
    first, second = map(in_any_copy, settings)
    assert first == second == {"run": {"calibration": "working_dir:data/c.json", "panel": ["working_dir:."], "n": 1}}
    assert in_any_copy("/data/c.json") == "/data/c.json"


@pytest.mark.parametrize(
    "command",
    [
        ("train", "run.toml"),
        ("label", "a.jsonl", "--judge", "m", "--constitution", "c.yaml", "--out", "labels"),
        ("judges", "compare", "m", "--pairs", "nursery", "--out", "report"),
        ("judges", "quantise", "m", "smaller"),
        ("judges", "calibrate", "m", "--pairs", "nursery", "--out", "c.json"),
        ("constitution", "import", "a.json", "--out", "c.yaml"),
    ],
)
def test_every_command_that_writes_says_where_its_results_must_go(tmp_path: Path, command: tuple[str, ...]):
    copy = tmp_path / Path(*COPY.parts[1:])
    copy.mkdir(parents=True)
    done = start(copy, "-P", "-m", "solon", *command)
    assert done.returncode == 2, done.stderr
    assert "removed after the job" in done.stderr
    assert len(done.stderr.splitlines()) == 1
