"""The settings file of the policy service.

port = 8200

[policies.policy]
model = "runs/mine"
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from serve_apps.config import ServiceBase, named
from solon.engines.base import EngineOptions
from solon.files.marks import ModelName

VERSION_MARK = "@"
"""Between the name of a policy and a version: `policy@step-000020`."""


class PolicySection(BaseModel):
    """One policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelName = Field(min_length=1)
    """A run directory (its newest checkpoint), a directory of a model or stage, or a hub name."""
    engine: EngineOptions = EngineOptions()
    follow: bool = True
    """Of a run that trains: serve every newer checkpoint as soon as it is written."""
    swap: Literal["reload", "beside"] = "reload"
    """`reload`: the answers in flight end, then the server loads the next version; new requests wait meanwhile.
    `beside`: the next version is started while this one answers: nothing waits, and it takes the memory of two."""
    allow_uncertified: bool = False
    """Serve a compressed model without the certificate of its compression."""


class Arms(BaseModel):
    """A name whose callers are divided among policies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arms: dict[str, float] = Field(min_length=2)
    """Shares by policy; they are divided by their sum."""

    @field_validator("arms")
    @classmethod
    def _are_shares(cls, arms: dict[str, float]) -> dict[str, float]:
        if bad := next((name for name, share in arms.items() if not 0 < share < 1e9), ""):
            raise ValueError(f"the share of {bad!r} is {arms[bad]}, expected a number above 0")
        return arms


class PolicyFile(ServiceBase):
    """`PolicyFile.load("policy.toml")`"""

    port: int = Field(8200, ge=0, le=65535)
    """0: a free one."""
    max_waiting: int = Field(256, ge=1, le=1_000_000)
    """Most requests in flight; those beyond it get 429."""
    policies: Annotated[dict[str, PolicySection], AfterValidator(named)] = Field(min_length=1)
    compare: Annotated[dict[str, Arms], AfterValidator(named)] = Field(default_factory=dict)
    """A/B comparisons by name."""

    @model_validator(mode="after")
    def _arms_are_policies(self) -> Self:
        for name, section in self.compare.items():
            if name in self.policies:
                raise ValueError(f"{name!r} is a policy and a comparison, expected different names")
            if bad := next((arm for arm in section.arms if arm not in self.policies), ""):
                known = ", ".join(self.policies)
                raise ValueError(f"compare.{name} has the arm {bad!r}, expected one of the policies {known}")
        return self
