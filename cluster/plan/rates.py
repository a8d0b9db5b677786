"""How long each role needs for its work: measured here, or computed from the published rates of a device.

All rates are straight lines, which is what continuous batching gives: a decoding step costs `step_s` however few
answers it advances, and `token_s` more for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.config.run_file import RunFile
from solon.errors import InputError, one_line
from solon.models.digest import model_digest

COMPARED = ("rollout", "judging", "feedback", "learn")
"""Sections on which rates depend."""
FREE = frozenset({"num_actors", "num_cpus", "num_gpus", "labels", "num_ranks", "num_nodes", "max_running", "gives_way"})
"""Their keys that a plan may choose without another measurement."""


class Part(BaseModel):
    """A part of a rates file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RolloutRate(Part):
    """One engine. A step with c running answers takes `step_s + c * token_s`; prompts are included in `token_s`."""

    step_s: float = Field(ge=0)
    token_s: float = Field(ge=0)
    cores: float = Field(ge=0)
    """Cores busy while it works; 0: it computes on a device of its own."""

    def tokens_per_s(self, running: float) -> float:
        """Of all running answers together."""
        return running / (self.step_s + running * self.token_s)


class JudgeRate(Part):
    """One judge. n groups that it holds together take `call_s + n * group_s`."""

    call_s: float = Field(ge=0)
    group_s: float = Field(gt=0)
    cores: float = Field(ge=0)

    def groups_per_s(self, held: float) -> float:
        """With this many groups in it."""
        return held / (self.call_s + held * self.group_s)


class LearnerRate(Part):
    """The learner, with all its ranks. A step takes `step_s + token_s` for each generated token of the batch; the
    export of the new weights is included."""

    step_s: float = Field(ge=0)
    token_s: float = Field(ge=0)
    cores: float = Field(ge=0)
    export_s: float = Field(ge=0)
    """Of `step_s`: making the new weights available."""
    first_s: float = Field(0.0, ge=0)
    """What the first step of a process takes beyond that: its memory is allocated, its kernels are chosen."""
    least_s: float = Field(0.0, ge=0)
    """Of a step without its export, at least, however many ranks share it: every rank starts all operations."""

    def with_ranks(self, ranks: int, tokens: float) -> tuple[float, float]:
        """Seconds of a step, and of each token, where so many ranks share batches of about this many tokens."""
        faster = ranks_speed(ranks)
        step_s, token_s = (self.step_s - self.export_s) / faster, self.token_s / faster
        return self.export_s + max(step_s, self.least_s - token_s * tokens), token_s


class LoadRate(Part):
    """An engine takes new weights, canaries included."""

    load_s: float = Field(ge=0)
    cores: float = Field(ge=0)


class Point(Part):
    """One measurement, as it was made."""

    role: str
    amount: float
    """Groups generated or labelled together, or groups of a step."""
    tokens: int
    wall_s: float
    core_s: float


class Rates(Part):
    """`Rates.load("rates.json")`"""

    source: Literal["measured", "published"]
    device: str
    """`cpu`: all lanes share `cores`. Otherwise the type of the devices, of which every worker has one."""
    cores: float = Field(ge=0)
    """Cores of the machine; used where the device is `cpu`."""
    machine: str
    """Where it was measured, or where the figures were published."""
    date: str
    versions: dict[str, str]
    policy: str
    """The model's name, for people."""
    judge: str
    models: dict[str, str]
    """Digest of the files of each role's model; empty: not known."""
    settings: dict[str, dict[str, object]]
    """The sections of the run file with which this was found."""
    rollout: RolloutRate
    judging: JudgeRate
    learn: LearnerRate
    publish: LoadRate
    driver_s: float = Field(ge=0)
    """Core-seconds of driver and Ray for each answer."""
    crowding: float = Field(1.0, gt=0, le=1)
    """Speed of a core while all are busy, against alone: caches and memory are shared as well."""
    answer_tokens: tuple[int, ...] = Field(min_length=1)
    """Lengths of answers of the policy as it is."""
    prompt_tokens: float = Field(ge=0)
    """Mean."""
    memory: dict[str, int] = Field(default_factory=dict)
    """Peak bytes of the process of each role."""
    points: tuple[Point, ...] = ()
    assumptions: tuple[str, ...] = ()
    """Of published rates: shares of the peak that were assumed, and the like."""

    @cached_property
    def mean_answer(self) -> float:
        """Tokens."""
        return sum(self.answer_tokens) / len(self.answer_tokens)

    @property
    def share_cores(self) -> bool:
        """Whether all lanes compute on the same cores."""
        return self.device == "cpu"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises InputError for a file that is not one of `solon measure`."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"rates file {path} cannot be read: {error}; write one with solon measure RUN.toml --out {path}"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise InputError(
                f"rates file {path}: {place}: {one_line(str(first['msg']))}; write it again with solon measure "
                f"RUN.toml --out {path}"
            ) from None

    def require_models(self, run: RunFile, path: str | Path) -> None:
        """Raises InputError when the file is about other models than the run's."""
        for role, name, digest in ((r, n, self.models.get(r, "")) for r, n in models_of(run).items()):
            now = digest_of(name)
            if digest and now and digest != now:
                known = {"policy": self.policy, "judge": self.judge}[role]
                raise InputError(
                    f"rates file {path} was measured with the {role} {known}, the run file has {name}, which has other "
                    f"files; measure again: solon measure RUN.toml --out {path}"
                )

    def for_ranks(self, run: RunFile) -> Self:
        """The same with engines of as many devices as this run's: `ranks_speed` of them, which `remarks` says."""
        memory = dict(self.memory)
        changed: dict[str, object] = {"memory": memory}
        for name, then, now in self._ranks(run):
            faster = ranks_speed(now) / ranks_speed(then)
            part: RolloutRate | JudgeRate = getattr(self, name)
            scaled = {key: value / faster for key, value in part.model_dump().items() if key.endswith("_s")}
            changed[name] = part.model_copy(update=scaled | {"cores": part.cores * now / then})
            # A rank of another number of ranks does not hold what was measured.
            memory.pop({"rollout": "rollout", "judging": "judge"}[name], None)
        return self.model_copy(update=changed)

    def _ranks(self, run: RunFile) -> list[tuple[str, int, int]]:
        """(section, devices of an engine when rates were found, now), where they differ."""
        found = []
        for name in ("rollout", "judging"):
            then, now = self.settings.get(name, {}).get("tensor_parallel", 1), getattr(run, name).tensor_parallel
            if not isinstance(then, int) or then < 1:
                raise InputError(
                    f"rates file: settings.{name}.tensor_parallel = {then!r}, expected a number of devices; write it "
                    "again with solon measure RUN.toml"
                )
            if then != now:
                found.append((name, then, now))
        return found

    def remarks(self, run: RunFile) -> list[str]:
        """Settings that differ from those of the measurement, a sentence each."""
        found = [
            f"{name}.tensor_parallel was {then} when rates were measured, is {now} now: {ranks_speed(now):g} times the "
            f"speed of one device is an assumption, {ranks_speed(then):g} before"
            for name, then, now in self._ranks(run)
        ]
        for section, now in settings_of(run).items():
            then = self.settings.get(section, {})
            found += [
                f"{section}.{key} was {then[key]!r} when rates were measured, is {value!r} now"
                for key, value in now.items()
                if key in then and then[key] != value and key != "tensor_parallel"
            ]
        return found


def models_of(run: RunFile) -> Mapping[str, str]:
    """Models whose work is timed, by role."""
    return {"policy": run.policy, "judge": run.judge}


def digest_of(model: str) -> str:
    """Empty: the model is not on this machine."""
    return model_digest(model) or ""


def settings_of(run: RunFile) -> dict[str, dict[str, object]]:
    """What a rate depends on, as JSON has it."""
    whole = run.model_dump(mode="json")
    return {s: {key: value for key, value in whole[s].items() if key not in FREE} for s in COMPARED}


RANKS_SHARE = 0.85
"""Of a rank's speed, that is left where several gather their weights from each other: an assumption."""


def ranks_speed(ranks: int) -> float:
    """Of several ranks, against one."""
    return 1.0 if ranks == 1 else RANKS_SHARE * ranks


def line(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The numbers a, b >= 0 that bring a * x + b * y closest to z, relative to z, over (x, y, z)."""
    import numpy as np

    weights = np.array([1 / max(z, 1e-9) for _, _, z in points])
    table = np.array([(x, y) for x, y, _ in points]) * weights[:, None]
    ones = np.ones(len(points))
    both = np.linalg.lstsq(table, ones, rcond=None)[0]
    if (both >= 0).all():
        return float(both[0]), float(both[1])
    # One of the two explains nothing: fit the other alone, and keep the better fit.
    alone = [float(max(0.0, column @ ones / max(column @ column, 1e-30))) for column in table.T]
    misfit = [float(np.sum((ones - alone[i] * table[:, i]) ** 2)) for i in (0, 1)]
    return (alone[0], 0.0) if misfit[0] < misfit[1] else (0.0, alone[1])
