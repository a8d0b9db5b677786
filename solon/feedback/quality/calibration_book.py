"""The calibrations of one judge, in a file that cannot be used with another judge by mistake."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solon.errors import InputError
from solon.feedback.quality.calibration import Calibration
from solon.files.validation import describe_invalid
from solon.files.whole_file import write_whole
from solon.verdicts import Task

SCHEMA: Literal["solon.calibration/v1"] = "solon.calibration/v1"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal["solon.calibration/v1"] = Field(SCHEMA, alias="schema")
    identity: str = Field(min_length=1)
    judge: str = ""
    calibrations: tuple[Calibration, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_stands_once(self) -> Self:
        seen: set[tuple[str, str]] = set()
        for one in self.calibrations:
            if (one.task, one.principle_id) in seen:
                raise ValueError(f"{one.task} {one.principle_id or '(all principles)'} occurs twice; remove one")
            seen.add((one.task, one.principle_id))
        return self


class CalibrationBook:
    """`CalibrationBook.load("judge.calibration.json", identity=judge).apply("pairwise", "kind", 1.7)`

    identity: the scope of the calibrations (weights, arithmetic, template, constitution); any text that changes with
    them. judge: its name, for people. A book without calibrations changes nothing: `CalibrationBook.empty()`.
    """

    def __init__(self, calibrations: Sequence[Calibration], *, identity: str, judge: str = "") -> None:
        self.calibrations = tuple(calibrations)
        self.identity = identity
        self.judge = judge
        self._numbers: dict[tuple[str, str], tuple[float, float]] = {
            (one.task, one.principle_id): (one.temperature, one.bias) for one in self.calibrations
        }

    @classmethod
    def empty(cls) -> CalibrationBook:
        """For a judge that was never calibrated: raw margins are used unchanged."""
        return cls((), identity="")

    @classmethod
    def load(cls, path: str | Path, *, identity: str) -> CalibrationBook:
        """Read and check a file. Raises InputError when it was made for anything but `identity`."""
        path = Path(path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"calibration {path} does not exist; check the path or calibrate the judge") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"calibration {path} cannot be read: {error}; calibrate the judge again") from None
        if not isinstance(raw, dict):
            raise InputError(f"calibration {path} holds a {type(raw).__name__}, expected an object; check the path")
        try:
            file = _File.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"calibration {path}: {describe_invalid(_File, error)}") from None
        if file.identity != identity:
            named = f" ({file.judge})" if file.judge else ""
            raise InputError(
                f"calibration {path} was made for {file.identity}{named}, expected one for {identity}: other weights, "
                "quantisation, engine, template or constitution; calibrate this judge or choose its own file"
            )
        return cls(file.calibrations, identity=file.identity, judge=file.judge)

    def save(self, path: str | Path) -> Path:
        """Write the file atomically."""
        return write_whole(path, json.dumps(self._content(), indent=2, allow_nan=False) + "\n", what="calibration")

    def require(self, task: Task) -> None:
        """Raises InputError when this book cannot calibrate the task; called before a run."""
        if self._numbers and (task, "") not in self._numbers:
            known = sorted({one.task for one in self.calibrations if not one.principle_id})
            raise InputError(
                f"the calibration of {self.judge or self.identity} is for {', '.join(known) or 'single principles'}, "
                f"expected one for {task}; calibrate the judge on {task} gold too"
            )

    def apply(self, task: Task, principle_id: str, raw: float) -> float:
        """The calibrated margin, nats, by the principle's own calibration or the task's. Odd in `raw` for pairs."""
        if not self._numbers:
            return raw
        numbers = self._numbers.get((task, principle_id)) or self._numbers.get((task, ""))
        if numbers is None:
            self.require(task)
        assert numbers is not None
        temperature, bias = numbers
        return raw / temperature - bias

    def _content(self) -> dict[str, object]:
        file = _File(schema=SCHEMA, identity=self.identity, judge=self.judge, calibrations=self.calibrations)
        return file.model_dump(mode="json", by_alias=True)
