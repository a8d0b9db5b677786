"""Knowledge flows one way: solon ◀ learners, compression, nursery, english ◀ actors, serve_apps ◀ cluster."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

RANK = {
    "solon": 0,
    "learners": 1,
    "compression": 1,
    "nursery": 1,
    "english": 1,
    "actors": 2,
    "serve_apps": 2,
    "cluster": 3,
}
ORDERS = {
    "solon": (
        "redaction",
        "errors",
        "events",
        "clock",
        "verdicts",
        "client",
        "tracking",
        "records",
        "host",
        "files",
        "models",
        "artifacts",
        "ledger",
        "protocols",
        "constitution",
        "runs",
        "checkpoints",
        "engines",
        "pipeline",
        "feedback",
        "evaluation",
        "revision",
        "loop",
        "telemetry",
        "recovery",
        "simulation",
        "elasticity",
        "doctor",
        "report",
        "hub",
        "cli",
    ),
    "solon.feedback": (
        "questions",
        "interfaces",
        "prompting",
        "spending",
        "quality",
        "selection",
        "caches",
        "panels",
        "config",
        "endpoint",
        "judges",
        "pairwise",
        "reward",
        "labeler",
        "worker",
        "labelling",
        "trials",
        "watching",
    ),
    "learners": (
        "core",
        "networks",
        "policy_gradient",
        "direct",
        "data",
        "objectives",
        "offline",
        "rewarding",
        "distilling",
        "drift",
        "supervised",
        "config",
        "memory",
        "build",
    ),
    "compression": (
        "loading",
        "units",
        "algorithms",
        "llm_compressor",
        "written",
        "pairs",
        "flips",
        "live",
        "distil",
        "pruning",
        "repair",
        "gate",
        "roles",
        "quantise",
        "judge_prompts",
        "gguf",
        "export",
        "sensitivity",
        "screen",
        "target",
        "assignment",
        "judged",
        "served_check",
        "reading",
        "request",
        "original",
        "settings",
        "start",
        "candidates",
        "results",
        "workflow",
    ),
    "serve_apps": (
        "config",
        "keys",
        "admission",
        "records",
        "web",
        "text_server",
        "versions",
        "policy_config",
        "policy_service",
        "events",
        "forwarding",
        "policy_http",
        "writer",
        "service",
        "http",
        "replica",
        "feedback",
        "policy",
        "watch",
    ),
    "cluster": (
        "signals",
        "evaluate",
        "side_by_side",
        "final_summary",
        "saving",
        "watchdog",
        "lanes",
        "config",
        "report",
        "rewind",
        "pools",
        "preflight",
        "placement",
        "ray_session",
        "sweeps",
        "launch",
        "start",
        "view",
        "ray_metrics",
        "session",
        "elasticity",
        "audit",
        "summary",
        "driver",
        "stages",
        "pipeline_file",
        "train",
        "plan",
        "align",
        "submission",
    ),
}
"""The rooms of a package and the modules beside them, lowest first: each may import those before it."""
HEAVY = {"torch", "vllm", "transformers", "peft", "accelerate", "llmcompressor", "trl"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: `Import(name="torch", line=7, deferred=True)` is made when a function runs."""

    name: str
    line: int
    deferred: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def imports(tree: ast.AST, module: str, *, deferred: bool = False) -> Iterator[Import]:
    """Every import below a node, except imports for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name=alias.name, line=node.lineno, deferred=deferred)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            yield Import(name=".".join([*base, node.module or ""]), line=node.lineno, deferred=deferred)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(other, module, deferred=deferred)
        else:
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, module, deferred=deferred or in_function)


def module_of(path: Path) -> str:
    """`solon/engines/base.py` is `solon.engines.base`, a package is its `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def sources(*packages: str) -> Iterator[tuple[str, Path, ast.Module]]:
    for package in packages or RANK:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield module_of(path), path.relative_to(ROOT), parsed(path)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def is_command_line(module: str) -> bool:
    """The command line composes the layers, so it may know them, when a command runs."""
    return module.startswith("solon.cli.")


def importable(module: str) -> str:
    return module.removesuffix(".__init__")


SOLON = [importable(module) for module, _, _ in sources("solon")]


def run_python(code: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_reader_of_imports_sees_deferred_relative_and_type_only_ones():
    tree = ast.parse(
        "import a.b\n"
        "from . import c\n"
        "from ..d import e\n"
        "if TYPE_CHECKING:\n    import f\n"
        "class K:\n    import g\n    def m(self):\n        import h\n"
        "try:\n    import i\nexcept ImportError:\n    pass\n"
    )
    found = {(one.name, one.deferred) for one in imports(tree, "pkg.sub.mod")}
    assert found == {("a.b", False), ("pkg.sub.", False), ("pkg.d", False), ("g", False), ("h", True), ("i", False)}


def test_no_layer_imports_a_layer_above_it():
    wrong = [
        f"{path}:{one.line} imports {one.name}"
        for module, path, tree in sources()
        for one in imports(tree, module)
        if RANK.get(one.package, -1) > RANK[module.partition(".")[0]] and not (is_command_line(module) and one.deferred)
    ]
    assert not wrong, "\n".join(wrong)


def rooms_imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Lines that import from a package, and the room each reaches; imports for types alone count as well."""
    depth = package.count(".") + 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith(f"{package}."):
                yield node.lineno, name.split(".")[depth]


def violations(package: str, modules: Iterable[tuple[str, Path, ast.Module]]) -> list[str]:
    """Rooms without a place in the order, and imports that run upwards."""
    order, depth = ORDERS[package], package.count(".") + 1
    found = []
    for module, path, tree in modules:
        if not module.startswith(f"{package}.") or module in {f"{package}.__init__", f"{package}.__main__"}:
            continue
        room = module.split(".")[depth]
        if room not in order:
            found.append(f"{path}: {room} has no place in the order of {package}; add it to ORDERS in this file")
            continue
        for line, other in rooms_imported(tree, package):
            if other in order and order.index(other) > order.index(room):
                found.append(f"{path}:{line} imports {other}, which comes after {room}")
    return found


def test_the_reader_of_rooms_sees_every_way_to_import_one():
    tree = ast.parse(
        "import solon.feedback.caches.store\n"
        "from solon.feedback import config, panels\n"
        "if TYPE_CHECKING:\n    from solon.feedback.judges.local import LocalJudge\n"
        "def f():\n    from solon.feedback.worker import JudgeWorker\n"
        "import solon.records\n"
    )
    assert {room for _, room in rooms_imported(tree, "solon.feedback")} == {
        "caches", "config", "panels", "judges", "worker",
    }  # fmt: skip
    assert {room for _, room in rooms_imported(tree, "solon")} == {"feedback", "records"}


@pytest.mark.parametrize("package", ORDERS)
def test_no_room_imports_a_room_above_it(package: str):
    wrong = violations(package, sources(package.partition(".")[0]))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ORDERS)
def test_every_entry_of_the_order_is_a_room_or_a_module(package: str):
    folder = ROOT / package.replace(".", "/")
    assert [
        name for name in ORDERS[package] if not (folder / name).is_dir() and not (folder / f"{name}.py").exists()
    ] == []


def test_a_room_without_a_place_and_an_import_upwards_are_both_found():
    tree = ast.parse("from solon.doctor.facts import read\n")
    new = violations("solon", [("solon.attic.boxes", Path("solon/attic/boxes.py"), tree)])
    assert new == ["solon/attic/boxes.py: attic has no place in the order of solon; add it to ORDERS in this file"]
    upwards = violations("solon", [("solon.files.rows", Path("solon/files/rows.py"), tree)])
    assert upwards == ["solon/files/rows.py:1 imports doctor, which comes after files"]
    assert not violations("solon", [("solon.cli.doctor", Path("solon/cli/doctor.py"), tree)])


def test_every_room_documents_its_contents():
    bare = [
        str(path.relative_to(ROOT))
        for package in ("solon", "learners", "cluster")
        for path in sorted((ROOT / package).glob("*/__init__.py"))
        if len((ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()) < 3
    ]
    assert not bare, f"no docstring of what lives here, where to start, what it may know: {bare}"


@pytest.mark.parametrize("package", [name for name, rank in RANK.items() if rank < 2])
def test_ray_is_unknown_below_the_actors(package: str):
    wrong = [
        f"{path}:{one.line} imports {one.name}"
        for module, path, tree in sources(package)
        for one in imports(tree, module)
        if one.package == "ray" and not (is_command_line(module) and one.deferred)
    ]
    assert not wrong, "\n".join(wrong)


def test_solon_imports_heavy_libraries_only_in_engines_when_one_is_built():
    wrong = [
        f"{path}:{one.line} imports {one.name}"
        for module, path, tree in sources("solon")
        for one in imports(tree, module)
        if one.package in HEAVY
        and not (one.deferred and (module.startswith("solon.engines.") or is_command_line(module)))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_cluster_calls_ray_init():
    wrong = [
        f"{path}:{node.lineno}"
        for module, path, tree in sources()
        if not module.startswith("cluster.")
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.init")
        or (isinstance(node, ast.ImportFrom) and node.module == "ray" and "init" in {a.name for a in node.names})
    ]
    assert not wrong, f"ray.init outside cluster/: {wrong}"


def changes_environment(tree: ast.AST) -> Iterator[int]:
    """Lines that change os.environ when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Assign | ast.Delete | ast.AugAssign):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            if any(ast.unparse(target).startswith("os.environ") for target in targets):
                yield node.lineno
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            changing = ("setdefault", "update", "pop", "clear", "popitem")
            if called == "os.putenv" or called in {f"os.environ.{method}" for method in changing}:
                yield node.lineno
        yield from changes_environment(node)


def test_the_reader_of_environment_changes_sees_them_at_import_only():
    tree = ast.parse(
        'import os\nos.environ["A"] = "1"\nos.environ.setdefault("B", "2")\nx = os.environ.get("C")\n'
        'def f():\n    os.environ["D"] = "3"\n'
    )
    assert list(changes_environment(tree)) == [2, 3]


def test_no_module_changes_the_environment_when_imported():
    wrong = [f"{path}:{line}" for _, path, tree in sources() for line in changes_environment(tree)]
    assert not wrong, "\n".join(wrong)


def test_importing_all_of_solon_changes_nothing_and_loads_nothing_heavy():
    seen = json.loads(
        run_python(
            "import importlib, json, os, sys\n"
            "before = dict(os.environ)\n"
            f"for name in {SOLON!r}:\n    importlib.import_module(name)\n"
            f"loaded = sorted({HEAVY | {'ray'}!r} & set(sys.modules))\n"
            "print(json.dumps({'same': before == dict(os.environ), 'loaded': loaded}))"
        )
    )
    assert seen == {"same": True, "loaded": []}


def test_the_command_line_is_imported_within_a_second():
    # The best of three, as the first may write bytecode and any may share the machine.
    seconds = min(
        float(
            run_python(
                "import time; start = time.perf_counter(); import solon.cli.main; print(time.perf_counter() - start)"
            )
        )
        for _ in range(3)
    )
    assert seconds < 1
