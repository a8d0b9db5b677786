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
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from solon.engines.base import EngineOptions
from solon.engines.sampling import SamplingOptions
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.files.marks import FilePath, ModelName, NamesFile, NamesModel, mapped
from solon.files.overrides import parse_override, put
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid
from solon.models.given_names import is_given_name
from solon.redaction import places_of_secrets


def named(sections: dict[str, Any]) -> dict[str, Any]:
    """The sections, whose names clients write. Raises ValueError."""
    if bad := next((name for name in sections if not re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name)), ""):
        raise ValueError(f"got the name {bad[:60]!r}, expected at most 60 letters, digits, `.`, `_` and `-`")
    return sections


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


class WriterSection(BaseModel):
    """A model that writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = Field(min_length=1)
    """A directory or a hub name."""
    constitution: FilePath = ""
    """Its principles have the requests for critiques and revisions; empty: it only chats."""
    engine: EngineOptions = EngineOptions()
    sampling: SamplingOptions = SamplingOptions()
    """Of critiques and revisions."""
    allow_uncertified: bool = False
    """Use a compressed model without the certificate of its compression."""


class ServiceBase(BaseModel):
    """What the files of all services share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Address that it listens on. Any other than a loopback address needs `keys`."""
    port: int = Field(8100, ge=0, le=65535)
    """0: a free one."""
    keys: FilePath = ""
    """File of hashed keys (`solon serve key`); empty: every caller on this machine may ask."""
    max_body_mib: float = Field(16.0, gt=0, le=1024)
    """Largest request."""

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not self.keys and not _is_loopback(self.host):
            raise ValueError(f"host is {self.host}, and without keys anybody could ask; set keys, or host to 127.0.0.1")
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
        model = mapped(file, NamesModel, lambda value: _beside(path.parent, value, must_exist=True))
        return mapped(model, NamesFile, lambda value: _beside(path.parent, value))


class ServiceFile(ServiceBase):
    """`ServiceFile.load("feedback.toml")`"""

    max_items: int = Field(512, ge=1, le=100_000)
    """Most items of one request."""
    max_waiting: int = Field(4096, ge=1, le=10_000_000)
    """Most items that wait for verdicts; requests beyond it get 429."""
    records: FilePath = ""
    """Folder of label records; empty: none are kept."""
    judges: Annotated[dict[str, JudgeSection], AfterValidator(named)] = Field(default_factory=dict)
    """They score and compare."""
    writers: Annotated[dict[str, WriterSection], AfterValidator(named)] = Field(default_factory=dict)
    """They write critiques, revisions and answers."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if both := next((name for name in self.judges if name in self.writers), ""):
            raise ValueError(f"{both!r} is a judge and a writer, expected different names")
        if not self.judges and not self.writers:
            raise ValueError("there is no judge and no writer, expected one; add a section [judges.default]")
        if self.max_items > self.max_waiting:
            raise ValueError(f"max_items is {self.max_items}, expected at most max_waiting ({self.max_waiting})")
        return self


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


def as_mapping(file: ServiceBase) -> Mapping[str, Any]:
    """The settings as plain values, for another process."""
    found: dict[str, Any] = file.model_dump(mode="json")
    return found
