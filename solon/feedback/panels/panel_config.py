"""The settings for further judges in a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from solon.feedback.panels.cascade import CascadeConfig
from solon.feedback.panels.jury import JuryConfig
from solon.files.marks import FilePath, ModelName, NamesModel


class CascadeSection(CascadeConfig):
    """`CascadeSection(judge="org/large-judge", threshold=0.4)`"""

    judge: ModelName = ""
    """The judge for items where the first one is unsure; empty: no cascade."""
    threshold: float = Field(0.5, ge=0)
    """Uncertainty in bits up to which the first judge's verdict is accepted; `solon judges cascade` fits it on gold
    pairs."""
    calibration: FilePath = ""
    """The second judge's calibration."""


class JurySection(JuryConfig):
    """`JurySection(judges=("org/second", "org/third"))`: the judge and these two."""

    judges: Annotated[tuple[str, ...], NamesModel()] = ()
    """Jurors in addition to the judge itself; none: no jury."""
