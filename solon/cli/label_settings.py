"""The settings of `solon label`, and the record that binds a directory to one judge and one constitution."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError, short
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import Source
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.program_file import ProgramFile
from solon.feedback.labelling.row_selection import RowSelection
from solon.files.data_config import ReadConfig
from solon.files.overrides import flat_items, settings_from
from solon.redaction import places_of_secrets
from solon.runs.directory import RunDirectory


class WriteOptions(SamplingOptions):
    """How a policy generates missing answers."""

    answers: int = Field(2, ge=1)
    """Answers per prompt."""
    engine: EngineOptions = EngineOptions()


class LabelSettings(BaseModel):
    """Every setting that `--set` can change: `--set feedback.swap.orders=both`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feedback: FeedbackConfig = FeedbackConfig(task="pairwise")
    judging: EngineOptions = EngineOptions()
    write: WriteOptions = WriteOptions()
    data: ReadConfig = ReadConfig()
    """The columns and the split of the file to read."""
    select: RowSelection = RowSelection()
    """The rows to label; all by default."""
    seed: int = Field(0, ge=0, lt=2**31)

    @classmethod
    def of(cls, overrides: Sequence[str]) -> LabelSettings:
        """Defaults with overrides. Raises InputError."""
        settings = settings_from(cls, {"feedback": {"task": "pairwise"}}, overrides)
        if settings.feedback.select.proxy:
            raise InputError(
                "--set feedback.select.proxy corrects rewards, not labels of single pairs; to label a part of the rows "
                "set select.proxy, select.policy and select.rate"
            )
        return settings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelRequest:
    """The arguments of the command line."""

    source: Path
    judge: str
    constitution: str
    out: Path
    policy: str = ""
    max_labels: int | None = None
    max_usd: float | None = None
    overrides: Sequence[str] = ()


def refuse_secrets(request: LabelRequest, settings: LabelSettings) -> None:
    """The record beside the labels must hold no secret. Raises InputError that does not show it."""
    given = {"--judge": request.judge, "--policy": request.policy, "--set": settings.model_dump(mode="json")}
    for place in places_of_secrets(given):
        raise InputError(
            f"{place} holds what looks like a secret (it is not shown), expected none on the command line; put it into "
            "an environment variable or a file of its own"
        )


def model_name(source: Source) -> str:
    """The name for messages and for the record."""
    if isinstance(source, EndpointFile):
        return f"{source.endpoint.model} at {source.endpoint.base_url}"
    if isinstance(source, ProgramFile):
        return f"programs {source.digest}"
    return source.model


def require_same(
    directory: RunDirectory,
    request: LabelRequest,
    settings: LabelSettings,
    constitution: Constitution,
    judge: Source,
) -> None:
    """A directory holds the labels of one judge under one constitution. Raises InputError when it holds others."""
    now = {
        "judge": model_name(judge),
        "constitution": constitution.id,
        "constitution_hash": constitution.hash,
        "policy": request.policy,
        "settings": json.loads(settings.model_dump_json()),
    }
    path = directory.path / "config.json"
    if not path.exists():
        directory.write_json("config.json", now)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; choose another --out") from None
    if changed := _differences(before if isinstance(before, dict) else {}, now):
        raise InputError(
            f"{directory.path} holds labels made in another way: {'; '.join(changed[:4])}; set them back, or choose "
            "another --out"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences, a phrase each; a setting that `before` did not know had its default."""
    default = {"settings": LabelSettings().model_dump(mode="json")}
    old, new, since = (dict(flat_items(one)) for one in (before, now, default))
    return [
        f"{key.removeprefix('settings.')} was {short(was)}, is {short(new.get(key))}"
        for key in dict.fromkeys((*new, *old))
        if (was := old.get(key, since.get(key))) != new.get(key)
    ]
