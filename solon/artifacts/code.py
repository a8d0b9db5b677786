"""Digest of the code that a module runs: its own source and that of all project modules that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from solon.artifacts.digests import digest_of, file_digest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("solon", "learners", "compression", "nursery", "english", "actors", "serve_apps", "cluster")


def code_digest(*modules: str) -> str:
    """Digest of the sources of these modules and of the project modules that they import, at the top or in functions.

    Modules that are found by name at run time are not seen: name them here too.
    """
    return digest_of({name: _source_digest(path) for name, path in sorted(_closure(modules).items())})


def _closure(modules: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is None or name in found:
            continue
        found[name] = path
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [*parents, *_imports(path)]
    return found


@lru_cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_names(ast.parse(path.read_text(encoding="utf-8"))))


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            # `from package import module`
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@lru_cache
def _source_digest(path: Path) -> str:
    return file_digest(path)


@lru_cache
def _path_of(name: str) -> Path | None:
    if name.partition(".")[0] not in PACKAGES:
        return None
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
