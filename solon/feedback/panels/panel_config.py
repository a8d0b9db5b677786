"""Which further judges take part, in the settings of a run."""

from __future__ import annotations

from pydantic import Field

from solon.feedback.panels.cascade import CascadeConfig
from solon.feedback.panels.jury import JuryConfig


class CascadeSection(CascadeConfig):
    """`CascadeSection(judge="org/large-judge", threshold=0.4)`"""

    judge: str = ""
    """The judge that is asked where the first one is unsure; empty: no cascade."""
    threshold: float = Field(0.5, ge=0)
    """Bits of doubt up to which the first judge's verdict stands; `solon judges cascade` fits it on gold pairs."""
    calibration: str = ""
    """The second judge's calibration."""


class JurySection(JuryConfig):
    """`JurySection(judges=("org/second", "org/third"))`: the judge and these two."""

    judges: tuple[str, ...] = ()
    """Jurors besides the judge itself; none: no jury."""
