"""The base of every stage of an alignment: what it takes, what it makes, and its work."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from cluster.config.sections import Section
from solon.errors import RunFailedError
from solon.files.marks import NamesFile, NamesModel, values

if TYPE_CHECKING:
    from cluster.align.file import AlignFile

PRODUCTS: Mapping[str, str] = {
    "policy": "model",
    "reward_model": "model",
    "preferences": "preferences.jsonl",
    "ratings": "ratings.jsonl",
    "demonstrations": "demonstrations.jsonl",
    "scores": "scores.json",
    "drift": "drift.json",
}
"""The path of each product within the folder of the stage that makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An input of a stage. `Source(role="policy", stage="sft")`, or `Source(role="policy", path="models/base")`"""

    role: str
    """One of `PRODUCTS`, or `prompts`, `judge`, `constitution`, `data`."""
    stage: str = ""
    """The stage that makes it; empty: it is a file or model of the user."""
    path: str = ""
    product: str = ""
    """What it is of the stage's results, one of `PRODUCTS`."""


@dataclass(slots=True, kw_only=True)
class Job:
    """One stage that is being made."""

    out: Path
    """The folder to fill: only products and what people read; no times and no paths, so that equal work has equal
    digests."""
    scratch: Path
    """Removed when the stage ends."""
    kept: Path
    """Kept when the stage is interrupted, for a stage that can resume, and afterwards as its records."""
    inputs: Mapping[str, str]
    """Paths, by role."""
    file: AlignFile
    run: Callable[[Sequence[str]], None]
    """Run a command to its end, its output in the stage's log. Raises RunFailedError, and InputError for code 2."""
    work: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """Call `module:function` with a mapping in a process of its own; returns its report."""
    report: dict[str, Any] = field(default_factory=dict)
    """For people; not part of the result's digest."""


def require_completed(summary: Mapping[str, Any], what: str) -> None:
    """Raises RunFailedError when a command ended before its work did: a part of it must not pass for the whole."""
    if summary.get("status") != "completed":
        cause = summary.get("failure") or summary.get("budget") or summary.get("stopped_by") or "it was asked to stop"
        raise RunFailedError(f"the {what} ended early ({cause}); start again to continue it")


class AlignStage(Section):
    """A section `[[stages]]` of an alignment file. A new kind of stage is one new file in `cluster/align/stages/`."""

    kind: ClassVar[str] = ""
    """The value of `type`."""
    version: ClassVar[int] = 1
    """Raised when the stage does something else although no source file of it changed."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Fields that name inputs; each is called as its role."""
    more_inputs: ClassVar[tuple[str, ...]] = ()
    """Fields that name several inputs of a kind; `takes` has them."""
    makes: ClassVar[tuple[str, ...]] = ()
    """Of `PRODUCTS`."""
    code: ClassVar[tuple[str, ...]] = ()
    """See `modules`."""

    type: str
    name: str = ""
    """Distinguishes stages of one type, and is what later stages call it; empty: the type."""

    @field_validator("name")
    @classmethod
    def _is_part_of_a_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{0,60}", name):
            raise ValueError("expected at most 60 letters, digits, `-` and `_`: it is part of the name of a folder")
        return name

    def takes(self, file: AlignFile, earlier: Sequence[AlignStage]) -> Mapping[str, str]:
        """Inputs by role: the name of a stage, a path or model name, or empty for the latest stage that makes it, or
        else the key of the file. A role may have a number behind a point, `policy.2`: it is another one of its kind."""
        return {role: getattr(self, role) for role in self.inputs}

    def settings(self, file: AlignFile) -> dict[str, Any]:
        """All settings that the result depends on, as JSON: by default the stage's own."""
        return self.model_dump(mode="json", exclude={"type", "name", *self.inputs})

    def call(self, job: Job, function: str) -> None:
        """Let a function of the stage's module work in a process of its own, and keep its report. It is given paths of
        inputs by role, the settings, `seed`, `out` and `scratch`."""
        given = {**job.inputs, **self.settings(job.file), "seed": job.file.seed, "data": job.file.data.model_dump()}
        given |= {"out": str(job.out), "scratch": str(job.scratch)}
        job.report |= job.work(f"{type(self).__module__}:{function}", given)

    def further(self, file: AlignFile) -> Mapping[str, str]:
        """Other models and files that the settings name, by key: their content is part of what the result depends
        on."""
        others = self.model_copy(update=dict.fromkeys((*self.inputs, *self.more_inputs), ""))
        named = [*values(others, NamesModel), *values(others, NamesFile)]
        return {f"settings.{number}": one for number, one in enumerate(one for one in named if one)}

    def modules(self) -> Sequence[str]:
        """Modules that do the work: results are made again when they or what they import changes."""
        return self.code

    @abstractmethod
    def make(self, job: Job) -> None:
        """Fill `job.out`. Raises RunFailedError, InputError."""
