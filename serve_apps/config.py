"""The settings file of the feedback service.

port = 8100

[judges.default]
model = "org/judge"
constitution = "assistant.yaml"
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from solon.engines.base import EngineOptions
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.files.marks import FilePath, ModelName
from solon.files.overrides import parse_override, put
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid
from solon.models.given_names import is_given_name
from solon.redaction import places_of_secrets


class JudgeSection(BaseModel):
    """One judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = Field(min_length=1)
    """A directory, a hub name, or the `.toml` of an endpoint or of programs."""
    constitution: FilePath = Field(min_length=1)
    judging: EngineOptions = EngineOptions()
    feedback: FeedbackConfig = FeedbackConfig()

    @model_validator(mode="after")
    def _is_one_judge(self) -> Self:
        if self.feedback.panel:
            raise ValueError("feedback names further judges, expected one judge; give each a section of its own")
        return self


class ServiceFile(BaseModel):
    """`ServiceFile.load("feedback.toml")`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Address that it listens on. Any other than a loopback address needs `keys`."""
    port: int = Field(8100, ge=0, le=65535)
    """0: a free one."""
    keys: FilePath = ""
    """File of hashed keys (`solon serve key`); empty: every caller on this machine may ask."""
    max_items: int = Field(512, ge=1, le=100_000)
    """Most items of one request."""
    max_waiting: int = Field(4096, ge=1, le=10_000_000)
    """Most items that wait for verdicts; requests beyond it get 429."""
    max_body_mib: float = Field(16.0, gt=0, le=1024)
    """Largest request."""
    records: FilePath = ""
    """Folder of label records; empty: none are kept."""
    judges: dict[str, JudgeSection] = Field(min_length=1)

    @field_validator("judges")
    @classmethod
    def _are_named(cls, judges: dict[str, JudgeSection]) -> dict[str, JudgeSection]:
        if bad := next((name for name in judges if not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name)), ""):
            raise ValueError(f"got the judge {bad[:60]!r}, expected at most 60 letters, digits, `.`, `_` and `-`")
        return judges

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not self.keys and not _is_loopback(self.host):
            raise ValueError(f"host is {self.host}, and without keys anybody could ask; set keys, or host to 127.0.0.1")
        if self.max_items > self.max_waiting:
            raise ValueError(f"max_items is {self.max_items}, expected at most max_waiting ({self.max_waiting})")
        return self

    @classmethod
    def load(cls, path: str | Path, *, overrides: Sequence[str] = ()) -> Self:
        """Read, override and check; paths stand beside the file. Raises InputError."""
        path = Path(path)
        raw = read_toml(path, what="service file")
        for override in overrides:
            key, value, _ = parse_override(override)
            put(raw, key, value, override)
        for place in places_of_secrets(raw):
            raise InputError(
                f"service file {path}: {place} holds what looks like a secret (it is not shown), expected none; put it "
                "into an environment variable or a file of its own"
            )
        try:
            file = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"service file {path}: {describe_invalid(cls, error)}") from None
        beside = {name: _beside(path.parent, getattr(file, name)) for name in ("keys", "records")}
        judges = {
            name: judge.model_copy(
                update={
                    "model": _beside(path.parent, judge.model, must_exist=True),
                    "constitution": _beside(path.parent, judge.constitution),
                }
            )
            for name, judge in file.judges.items()
        }
        return file.model_copy(update={**beside, "judges": judges})


def _beside(folder: Path, value: str, *, must_exist: bool = False) -> str:
    """A path from the file's folder; names stay, and with `must_exist` so does what is no path there."""
    if not value or is_given_name(value):
        return value
    path = (folder / Path(value).expanduser()).absolute()
    return str(path) if path.exists() or not must_exist else value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def as_mapping(file: ServiceFile) -> Mapping[str, Any]:
    """The settings as plain values, for another process."""
    found: dict[str, Any] = file.model_dump(mode="json")
    return found
