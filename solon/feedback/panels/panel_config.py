"""Which further judges take part, in the settings of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from solon.feedback.panels.cascade import CascadeConfig
from solon.feedback.panels.jury import JuryConfig
from solon.files.marks import FilePath, ModelName, NamesModel


class CascadeSection(CascadeConfig):
    """`CascadeSection(judge="org/large-judge", threshold=0.4)`"""

    judge: ModelName = ""
    """The judge that is asked where the first one is unsure; empty: no cascade."""
    threshold: float = Field(0.5, ge=0)
    """Bits of doubt up to which the first judge's verdict stands; `solon judges cascade` fits it on gold pairs."""
    calibration: FilePath = ""
    """The second judge's calibration."""


class JurySection(JuryConfig):
    """`JurySection(judges=("org/second", "org/third"))`: the judge and these two."""

    judges: Annotated[tuple[str, ...], NamesModel()] = ()
    """Jurors besides the judge itself; none: no jury."""
