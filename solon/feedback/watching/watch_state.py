"""The state of a watch in a checkpoint: a resumed run is compared with the start of the run, not with the moment of its
resumption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from solon.errors import InputError
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.audit import Audited
from solon.feedback.watching.drift import Window
from solon.feedback.watching.principles import PrincipleState
from solon.feedback.watching.symptoms import Sample, Symptoms


class SymptomState(BaseModel):
    """Reference of the symptoms."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    first: tuple[Sample, ...] = ()
    """Finished windows while there is no reference yet."""
    reference: Symptoms | None = None
    margins: tuple[float, ...] = ()
    """Margins of the reference."""
    changed: frozenset[str] = frozenset()


class WatchState(BaseModel):
    """All finished windows; answers of an unfinished window of symptoms are not stored."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    windows: tuple[Window, ...] = ()
    audited: tuple[Audited, ...] = ()
    asked: int = 0
    missing: int = 0
    kl: tuple[tuple[int, float], ...] = ()
    symptoms: SymptomState = SymptomState()
    symptoms_due: int = 0
    raised: frozenset[str] = frozenset()
    principles: PrincipleState = PrincipleState()
    closes: tuple[int, ...] = ()
    """Steps at which the last windows of symptoms ended."""
    canary_held: int = 0
    """Step of the last reading of the canary pairs that equalled the first."""
    past: tuple[Window, ...] = ()
    """Windows of another judge, from before the run was resumed with this one; gold's rewards stay valid."""
    alarms: tuple[Alarm, ...] = ()
    """All alarms of the run."""
    canary: tuple[float | None, ...] | None = None
    """The first reading of the canary pairs."""

    def for_another_judge(self) -> WatchState:
        """The state under another judge: gold's rewards stay, all else starts again."""
        return WatchState(
            past=self.past + self.windows,
            principles=self.principles,
            alarms=self.alarms,
            symptoms_due=self.symptoms_due,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values; NaN and infinities become text, since JSON has no numbers for them."""
        found: dict[str, Any] = json.loads(self.model_dump_json())
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises InputError when another version of Solon wrote it."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"the checkpoint's state of the watch cannot be read: {place}: {first['msg']}; resume with the version "
                "of Solon that wrote it, or start a run of another --name"
            ) from None
