"""Promises of the repository around the code: set-up, pins, make targets, the cluster file, sizes and docstrings."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def setup(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("setup")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def files() -> list[Path]:
    """The files that are, or would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of its files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def project() -> dict[str, Any]:
    import tomllib

    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


# --- pins -------------------------------------------------------------------------------------------------


def test_no_file_has_conflict_markers():
    marker = re.compile(r"^(<{7}|>{7}|\|{7})( |$)", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files()}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if marker.search(text)] == []


def test_every_constraint_is_a_plain_name_and_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][A-Za-z0-9.]*", line)]
    assert not wrong


def direct_requirements() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(text) for text in [*project()["dependencies"], *(one for extra in extras for one in extra)]]


def test_constraints_agree_with_the_project_file():
    pinned = pins()
    for requirement in direct_requirements():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {version}"


def closure(requirements: list[Requirement]) -> Iterator[str]:
    """Names of all packages that the requirements need on this machine, as far as installed."""
    from importlib.metadata import PackageNotFoundError, requires

    queue = [(canonicalize_name(one.name), extra) for one in requirements for extra in ("", *one.extras)]
    seen = set()
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        yield name
        for one in map(Requirement, needs):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(one.name), further) for further in ("", *one.extras)]


def test_constraints_pin_everything_that_solon_needs():
    missing = set(closure(direct_requirements())) - set(pins())
    assert not missing, f"not pinned in constraints.txt: {sorted(missing)}"


def test_no_file_names_a_package_registry():
    # In two halves, so that this file does not name them either.
    hosts = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "download.py" + "torch.org",
        "ana" + "conda.org",
        "npm" + "js.org",
        "npm" + "js.com",
    ]
    pattern = re.compile("|".join(map(re.escape, hosts)).encode())
    wrong = [str(path.relative_to(ROOT)) for path in files() if pattern.search(path.read_bytes())]
    assert not wrong


def test_there_is_no_lock_file():
    locks = {"uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "package-lock.json", "yarn.lock"}
    assert not [path for path in files() if path.name in locks or path.suffix == ".lock"]


# --- set-up -----------------------------------------------------------------------------------------------


def test_setup_uses_only_the_standard_library():
    tree = ast.parse((ROOT / "scripts" / "setup.py").read_text())
    found = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert found <= sys.stdlib_module_names


def make_tree(root: Path, *, project: str = 'name = "x"', ruff: str = "line-length = 1", pin: str = "a==1\n") -> Path:
    root.mkdir()
    (root / "pyproject.toml").write_text(
        f"[build-system]\nrequires = []\n[project]\n{project}\n[tool.setuptools]\n[tool.ruff]\n{ruff}\n"
    )
    (root / "constraints.txt").write_text(pin)
    (root / "overrides.txt").write_text("")
    return root


def test_setup_runs_again_when_pins_requirements_or_the_accelerator_change(setup: ModuleType, tmp_path: Path):
    venv = tmp_path / ".venv"
    before = setup.fingerprint(make_tree(tmp_path / "a"), venv, "cpu")
    assert setup.fingerprint(make_tree(tmp_path / "b", pin="a==2\n"), venv, "cpu") != before
    assert setup.fingerprint(make_tree(tmp_path / "c", project='name = "y"'), venv, "cpu") != before
    assert setup.fingerprint(tmp_path / "a", venv, "gpu") != before
    assert setup.fingerprint(tmp_path / "a", tmp_path / "moved", "cpu") != before


def test_setup_does_not_run_again_for_a_linter_setting(setup: ModuleType, tmp_path: Path):
    venv = tmp_path / ".venv"
    before = setup.fingerprint(make_tree(tmp_path / "a"), venv, "cpu")
    assert setup.fingerprint(make_tree(tmp_path / "b", ruff="line-length = 2"), venv, "cpu") == before


def test_an_interrupted_setup_does_not_count_as_finished(setup: ModuleType, tmp_path: Path):
    stamp = tmp_path / "stamp"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert not setup.is_ready(tmp_path, stamp, "wanted")
    stamp.write_text("wanted")
    assert setup.is_ready(tmp_path, stamp, "wanted")
    assert not setup.is_ready(tmp_path, stamp, "something else")


def test_setup_reads_pip_settings_and_the_environment_wins(setup: ModuleType):
    listing = ":env:.find-links='/env'\nglobal.find-links='/etc'\nglobal.cert='/ca.pem'\nuser.odd=1\n"
    assert setup.pip_settings(listing) == {"find-links": "/env", "cert": "/ca.pem"}
    assert setup.pip_settings("") == {}


def test_uv_receives_pips_settings_of_indexes_and_trust(setup: ModuleType):
    pip = {"find-links": "/one /two", "index-url": "mirror", "cert": "/ca.pem", "extra-index-url": "other"}
    assert setup.uv_environment({}, pip) == {
        "UV_FIND_LINKS": "/one,/two",
        "UV_DEFAULT_INDEX": "mirror",
        "SSL_CERT_FILE": "/ca.pem",
    }


def test_uv_settings_win_over_pip_settings(setup: ModuleType):
    own = {"UV_FIND_LINKS": "/mine", "UV_INDEX_URL": "mine", "SSL_CERT_FILE": "/mine.pem"}
    assert setup.uv_environment(own, {"find-links": "/a", "index-url": "b", "cert": "/c"}) == own


@pytest.mark.parametrize(
    ("kind", "reachable", "links", "options", "keeps_links"),
    [
        ("cpu", {"--no-index"}, "/wheels", [], True),
        ("cpu", {"--torch-backend"}, "/wheels", ["--torch-backend", "cpu"], True),
        ("cpu", {"--torch-backend"}, None, ["--torch-backend", "cpu"], False),
        ("cpu", set(), None, [], False),
        ("gpu", {"--no-index"}, "/cpu-wheels", [], False),
        ("gpu", set(), "/cuda-wheels", [], True),
    ],
)
def test_each_machine_gets_its_build_of_torch(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    reachable: set[str],
    links: str | None,
    options: list[str],
    keeps_links: bool,
):
    monkeypatch.setattr(setup, "finds_cpu_torch", lambda uv, env, version, how: bool(reachable & set(how)))
    env = {"UV_FIND_LINKS": links} if links else {}
    chosen, _ = setup.torch_options(["uv"], env, kind, "2.13.0")
    assert (chosen, "UV_FIND_LINKS" in env) == (options, keeps_links)


def test_without_a_reachable_cpu_build_setup_states_the_cost(setup: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(setup, "finds_cpu_torch", lambda *_: False)
    _, sentence = setup.torch_options(["uv"], {}, "cpu", "2.13.0")
    assert "several GB" in sentence
    assert "PIP_FIND_LINKS" in sentence


def test_an_unsupported_python_is_told_what_to_install(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 18))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(setup.SetupError, match=r"expected 3\.11 or 3\.12"):
        setup.supported_python()


def test_a_command_that_fails_is_shown_in_full(setup: ModuleType, capsys: pytest.CaptureFixture[str]):
    command = [sys.executable, "-c", "print('noise'); print('Resolved 3 packages'); raise SystemExit(4)"]
    with pytest.raises(setup.SetupError, match=r"exit code 4[\s\S]*noise"):
        setup.run_quietly(command, dict(os.environ), "it")
    assert capsys.readouterr().out.strip() == "Resolved 3 packages"


# --- make and CI ------------------------------------------------------------------------------------------


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in shown.splitlines()} == set(phony[1].split())


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("check", 1), ("test", 1)])
def test_ci_runs_check_and_test_and_fails_with_either(tmp_path: Path, failing: str, code: int):
    fake = tmp_path / "make"
    said = ["make $* CI=$CI", "FAILED tests/a.py::b - why", "== 1 failed, 2 passed in 3 s =="]
    script = ["#!/bin/sh", *(f'echo "{line}"' for line in said), 'read -r line && echo "stdin: $line"']
    fake.write_text("\n".join([*script, f'[ "$1" != "{failing}" ] || exit 2', ""]))
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([ROOT / ".ci" / "run"], env=env, input="typed\n", capture_output=True, text=True, check=False)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check CI=true", "make test CI=true"]
    assert lines[-2:] == said[1:]
    assert "stdin: typed" not in lines


# --- the cluster ------------------------------------------------------------------------------------------


def test_the_cluster_file_is_valid_for_ray(cluster: dict[str, Any]):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_a_misspelt_key_in_the_cluster_file_is_detected(cluster: dict[str, Any]):
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        validate_config(prepare_config({**cluster, "idle_timeout_minuts": 5}))


def test_only_what_can_be_lost_runs_on_spot_nodes(cluster: dict[str, Any]):
    markets = {}
    for name, node in cluster["available_node_types"].items():
        asked = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert node["labels"]["ray.io/market-type"] == asked, f"{name}: label and request disagree"
        assert node["labels"]["solon.io/pool"] == name
        markets[name] = asked
    assert markets == {"head": "on-demand", "learner": "on-demand", "rollout": "spot", "judge": "spot"}


def test_the_head_runs_no_user_work(cluster: dict[str, Any]):
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"] == {"CPU": 0}


def test_the_cluster_can_grow_to_the_sum_of_its_pools(cluster: dict[str, Any]):
    assert cluster["max_workers"] == sum(node["max_workers"] for node in cluster["available_node_types"].values())


def test_every_node_of_the_cluster_asks_for_the_token(cluster: dict[str, Any]):
    (token,) = cluster["file_mounts"]
    for role in ("head", "worker"):
        (start,) = [line for line in cluster[f"{role}_start_ray_commands"] if "ray start" in line]
        assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token};" in start
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][1]


def test_only_the_code_is_shipped_to_a_cluster(tmp_path: Path):
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    excludes = get_excludes_from_ignore_files(tmp_path, include_gitignore=False)

    def shipped(name: str) -> bool:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return not any(exclude(path) for exclude in excludes)

    stays = [
        ".venv/bin/python",
        ".git/config",
        "runs/a/x.parquet",
        "solon/__pycache__/a.pyc",
        ".mypy_cache/b",
        "tests/t.py",
    ]
    goes = [
        "solon/loop.py",
        "solon/runs/kept.py",
        "cluster/launch.py",
        "nursery/world.yaml",
        "examples/a.toml",
        "pyproject.toml",
    ]
    assert [name for name in stays if shipped(name)] == []
    assert [name for name in goes if not shipped(name)] == []


# --- sizes and docstrings -----------------------------------------------------------------------------------

PRODUCT = ("solon", "actors", "learners", "cluster", "compression")


@dataclass(frozen=True)
class Definition:
    """A class or a function of the product."""

    place: str
    is_class: bool
    is_public: bool
    """Named without an underscore, and so are all classes around it; functions inside functions are not public."""
    lines: int
    is_documented: bool


def definitions(node: ast.AST, place: str, *, is_public: bool = True) -> Iterator[Definition]:
    """Every class and function below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            is_class, name = isinstance(child, ast.ClassDef), f"{place}:{child.name}"
            shown = is_public and not child.name.startswith("_")
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Definition(name, is_class, shown, lines, bool(ast.get_docstring(child)))
            yield from definitions(child, name, is_public=shown and is_class)
        else:
            yield from definitions(child, place, is_public=is_public)


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    paths = [path for package in PRODUCT for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def defined(modules: dict[str, str]) -> list[Definition]:
    return [one for name, text in modules.items() for one in definitions(ast.parse(text), name)]


def test_the_reader_of_definitions_knows_what_is_public_and_documented():
    tree = ast.parse(
        "class A:\n"
        "    '''a'''\n"
        "    def b(self): ...\n"
        "    def _c(self):\n"
        "        def d():\n"
        "            '''d'''\n"
        "class _E:\n"
        "    def f(self): ...\n"
    )
    found = {
        one.place: (one.is_class, one.is_public, one.is_documented, one.lines) for one in definitions(tree, "m.py")
    }
    assert found == {
        "m.py:A": (True, True, True, 6),
        "m.py:A:b": (False, True, False, 1),
        "m.py:A:_c": (False, False, False, 3),
        "m.py:A:_c:d": (False, False, True, 2),
        "m.py:_E": (True, False, False, 2),
        "m.py:_E:f": (False, False, False, 1),
    }


def test_modules_are_short(modules: dict[str, str]):
    lines = {name: len(text.splitlines()) for name, text in modules.items()}
    assert statistics.median(lines.values()) <= 130
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_functions_are_short(defined: list[Definition]):
    lines = {one.place: one.lines for one in defined if not one.is_class}
    assert statistics.quantiles(lines.values(), n=10)[-1] <= 25
    assert {name: count for name, count in lines.items() if count > 60} == {}


def test_public_classes_and_nine_of_ten_public_functions_are_documented(defined: list[Definition]):
    public = [one for one in defined if one.is_public]
    assert [one.place for one in public if one.is_class and not one.is_documented] == []
    functions = [one for one in public if not one.is_class]
    bare = [one.place for one in functions if not one.is_documented]
    assert len(bare) <= 0.1 * len(functions), f"{len(bare)} of {len(functions)} have no docstring: {bare}"
