"""A run whose lanes compute on the same cores, or on one device, under a virtual clock.

Each lane asks for the cores that it used alone. While all together ask for more than there are, each runs slower in
proportion; lanes that give way get what the others leave. Where several cores are busy, each is slower by `crowding`,
as measured. Admission and leases are the ledger's own functions (`solon.ledger.staleness`).

`solon.simulation` simulates runs in which every worker has a device of its own; there, lanes do not slow each other.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from solon.ledger.staleness import StalenessConfig, choose

LANES = ("generate", "label", "learn")
NEVER = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the lanes share."""

    cores: float
    """1: one device, on which service times add."""
    crowding: float = 1.0
    """Speed of a core while all cores are busy, 1 where they do not disturb each other."""
    lanes: frozenset[str] = frozenset({*LANES, "load", "driver"})
    """Those that share it; others have devices of their own."""

    def speeds(self, first: float, rest: float) -> tuple[float, float]:
        """Of lanes that go first and of lanes that give way, from the cores that they ask for; 1: as alone."""
        asked = first + rest
        if asked <= 0:
            return 1.0, 1.0
        busy = min(asked, self.cores)
        crowd = 1.0 if self.cores <= 1 else 1 - (1 - self.crowding) * max(0.0, busy - 1) / (self.cores - 1)
        if not first or not rest:
            speed = crowd * min(1.0, self.cores / asked)
            return speed, speed
        ahead = min(1.0, self.cores / first)
        # The scheduler leaves those behind a little even where nothing is left.
        behind = min(1.0, max(LEFT_OVER, self.cores - first * ahead) / rest)
        return crowd * ahead, crowd * behind


LEFT_OVER = 0.02
"""Cores that lanes which give way get at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A run, and what each of its lanes takes alone, seconds and cores."""

    engines: int
    judges: int
    slots: int
    """Answers that an engine decodes together."""
    held: int
    """Groups that a judge holds together."""
    group_size: int
    batch_groups: int
    staleness: StalenessConfig
    lockstep: bool
    steps: int
    lengths: Sequence[int]
    """Of answers, to draw from."""
    decode: tuple[float, float]
    """Seconds of a decoding step, and more for each answer in it."""
    label: tuple[float, float]
    """Seconds of a call, and of each group."""
    learn: tuple[float, float]
    """Seconds of a step, and of each of its tokens."""
    load_s: float
    first_s: float
    """What the first step takes beyond the others."""
    driver_s: float
    """Core-seconds of driver and Ray for an answer."""
    cores: dict[str, float]
    """That `generate`, `label`, `learn` and `load` use alone."""
    gives_way: frozenset[str] = frozenset()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of it."""

    wall_s: float
    groups_per_s: float
    tokens_per_s: float
    busy: dict[str, float]
    utilisation: dict[str, float]
    """Work of a lane as a share of what its workers do alone with all their places taken."""
    efficiency: float
    binding: str
    staleness_mean: float
    staleness_p50: int
    staleness_max: int


@dataclass(slots=True)
class _Engine:
    """Answers advance together: all that run have decoded `tokens` since the start of the run."""

    tokens: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)
    """(value of `tokens` at which it ends, ordinal), a heap."""
    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    """(length, ordinal)."""
    groups: int = 0
    loading_s: float = 0.0
    """Left of taking new weights."""


@dataclass(slots=True)
class _Judge:
    queue: deque[int] = field(default_factory=deque)
    left_s: float = 0.0


class SharedRun:
    """`SharedRun(work, machine).outcome()`"""

    def __init__(self, work: Work, machine: Machine) -> None:
        self._work, self._machine = work, machine
        self._random = random.Random(work.seed)
        self._engines = [_Engine() for _ in range(work.engines)]
        self._judges = [_Judge() for _ in range(work.judges)]
        self._now = self._learn_s = self._driver_s = 0.0
        self._head: dict[int, int] = {}
        self._missing: Counter[int] = Counter()
        """Unfinished answers of a group."""
        self._tokens: Counter[int] = Counter()
        self._generated: deque[int] = deque()
        self._labelled: set[int] = set()
        self._unfinished: set[int] = set()
        self._training: list[int] = []
        self._leased: list[int] = []
        self._version = self._step = self._next = 0
        """Live version; steps committed; groups admitted."""
        self._versions: deque[int] = deque()
        """Trained, not yet live."""
        self._loading: int | None = None
        self._busy: dict[str, float] = defaultdict(float)
        self._staleness: list[int] = []

    def outcome(self) -> Outcome:
        """Runs all steps."""
        work = self._work
        while self._version < work.steps:
            self._start_work()
            self._advance()
        wall_s = max(self._now, 1e-12)
        workers = {"generate": work.engines, "label": work.judges, "learn": 1}
        busy = {lane: self._busy[lane] / workers[lane] / wall_s for lane in LANES}
        binding = max(busy, key=lambda lane: busy[lane])
        return Outcome(
            wall_s=wall_s,
            groups_per_s=work.steps * work.batch_groups / wall_s,
            tokens_per_s=self._tokens.total() / wall_s,
            busy=busy,
            utilisation=self._utilisation(wall_s) | {"learn": busy["learn"]},
            efficiency=busy[binding],
            binding=binding,
            staleness_mean=statistics.fmean(self._staleness),
            staleness_p50=int(statistics.median_low(self._staleness)),
            staleness_max=max(self._staleness),
        )

    def _utilisation(self, wall_s: float) -> dict[str, float]:
        work = self._work
        decoded = work.slots / max(1e-12, work.decode[0] + work.slots * work.decode[1])
        labelled = work.held / max(1e-12, work.label[0] + work.held * work.label[1])
        return {
            "generate": self._tokens.total() / (work.engines * decoded * wall_s),
            "label": work.steps * work.batch_groups / (work.judges * labelled * wall_s),
        }

    # -- what can begin now

    def _start_work(self) -> None:
        self._load()
        self._admit()
        self._fill_judges()
        self._lease()
        for engine in self._engines:
            while engine.waiting and len(engine.running) < self._work.slots:
                length, ordinal = engine.waiting.popleft()
                heapq.heappush(engine.running, (engine.tokens + length, ordinal))

    def _admit(self) -> None:
        work = self._work
        unpublished = len(self._training) + len(self._leased) + work.batch_groups * len(self._versions)
        uncommitted = len(self._unfinished)
        credits = work.staleness.credits(
            batch_groups=work.batch_groups, uncommitted=uncommitted, unpublished=unpublished
        )
        credits = min(credits, work.steps * work.batch_groups - self._next)
        share = -(-credits // max(1, len(self._engines)))
        places = max(2, 2 * work.slots // work.group_size)
        for engine in self._engines:
            for _ in range(min(share, credits, places - engine.groups)):
                self._begin(engine)
                credits -= 1

    def _begin(self, engine: _Engine) -> None:
        ordinal, self._next = self._next, self._next + 1
        self._head[ordinal] = self._version
        self._missing[ordinal] = self._work.group_size
        self._unfinished.add(ordinal)
        engine.groups += 1
        for _ in range(self._work.group_size):
            length = self._random.choice(self._work.lengths)
            self._tokens[ordinal] += length
            engine.waiting.append((length, ordinal))

    def _fill_judges(self) -> None:
        work = self._work
        if work.lockstep and len(self._generated) < work.batch_groups and not any(j.queue for j in self._judges):
            return
        for judge in sorted(self._judges, key=lambda one: len(one.queue)):
            while self._generated and len(judge.queue) < work.held:
                if not judge.queue:
                    judge.left_s = work.label[0] + work.label[1]
                judge.queue.append(self._generated.popleft())

    def _lease(self) -> None:
        """The next batch is leased while the present one is trained."""
        work = self._work
        step = self._step + bool(self._training)
        if not self._leased and step < work.steps:
            deadline = work.staleness.deadline
            ready = sorted((deadline(self._head[ordinal]), ordinal) for ordinal in self._labelled)
            unfinished = Counter(deadline(self._head[o]) for o in self._unfinished if o not in self._labelled)
            chosen = choose(ready, unfinished, step=step, batch_groups=work.batch_groups)
            if chosen is not None:
                self._leased = list(chosen)
                self._labelled -= set(chosen)
                self._unfinished -= set(chosen)
                self._staleness += [step - self._head[ordinal] for ordinal in chosen]
        # One version may wait for the engines; a second one holds the learner.
        if not self._training and self._leased and len(self._versions) - (self._loading is not None) < 2:
            self._training, self._leased = self._leased, []
            tokens = sum(self._tokens[ordinal] for ordinal in self._training)
            self._learn_s = work.learn[0] + work.learn[1] * tokens + (0.0 if self._step else work.first_s)

    def _load(self) -> None:
        if self._loading is None and self._versions:
            self._loading = self._versions[0]
            for engine in self._engines:
                engine.loading_s = max(self._work.load_s, 1e-12)

    # -- time passes until something ends

    def _advance(self) -> None:
        speeds = self._speeds()
        ends = [*self._ends(speeds)]
        passed = min(ends, default=NEVER)
        if passed == NEVER:
            raise ValueError("no lane has work, and steps are left")
        self._now += passed
        for engine in self._engines:
            self._advance_engine(engine, passed, speeds)
        for judge in self._judges:
            self._advance_judge(judge, passed, speeds["label"])
        if self._training:
            self._busy["learn"] += passed
            self._learn_s -= passed * speeds["learn"]
            if self._learn_s <= 1e-12:
                self._training = []
                self._step += 1
                self._versions.append(self._step)
        self._driver_s = max(0.0, self._driver_s - passed * speeds["driver"])
        if self._loading is not None and all(engine.loading_s <= 0 for engine in self._engines):
            self._version, self._loading = self._versions.popleft(), None

    def _ends(self, speeds: dict[str, float]) -> list[float]:
        found = [engine.loading_s / speeds["load"] for engine in self._engines if engine.loading_s > 0]
        for engine in self._engines:
            if engine.running and engine.loading_s <= 0:
                found.append((engine.running[0][0] - engine.tokens) * self._step_s(engine) / speeds["generate"])
        found += [judge.left_s / speeds["label"] for judge in self._judges if judge.queue]
        if self._training:
            found.append(self._learn_s / speeds["learn"])
        if self._driver_s > 0:
            found.append(self._driver_s / speeds["driver"])
        return found

    def _speeds(self) -> dict[str, float]:
        cores = self._work.cores
        loading = sum(engine.loading_s > 0 for engine in self._engines)
        decoding = sum(bool(engine.running) and engine.loading_s <= 0 for engine in self._engines)
        asked = {
            "generate": cores["generate"] * decoding,
            "label": cores["label"] * sum(bool(judge.queue) for judge in self._judges),
            "learn": cores["learn"] * bool(self._training),
            "load": cores["load"] * loading,
            "driver": 1.0 * (self._driver_s > 0),
        }
        back = self._work.gives_way
        here = {lane: need for lane, need in asked.items() if lane in self._machine.lanes}
        rest = sum(need for lane, need in here.items() if lane in back)
        ahead, behind = self._machine.speeds(sum(here.values()) - rest, rest)
        return {lane: 1.0 if lane not in here else behind if lane in back else ahead for lane in asked}

    def _step_s(self, engine: _Engine) -> float:
        return max(1e-12, self._work.decode[0] + self._work.decode[1] * len(engine.running))

    def _advance_engine(self, engine: _Engine, passed: float, speeds: dict[str, float]) -> None:
        if engine.loading_s > 0:
            engine.loading_s -= passed * speeds["load"]
            engine.loading_s = 0.0 if engine.loading_s <= 1e-12 else engine.loading_s
            return
        if not engine.running:
            return
        self._busy["generate"] += passed
        engine.tokens += passed * speeds["generate"] / self._step_s(engine)
        while engine.running and engine.running[0][0] <= engine.tokens + 1e-9:
            ordinal = heapq.heappop(engine.running)[1]
            self._missing[ordinal] -= 1
            if not self._missing[ordinal]:
                engine.groups -= 1
                self._generated.append(ordinal)
                self._driver_s += self._work.driver_s * self._work.group_size

    def _advance_judge(self, judge: _Judge, passed: float, speed: float) -> None:
        if not judge.queue:
            return
        self._busy["label"] += passed
        judge.left_s -= passed * speed
        if judge.left_s <= 1e-12:
            self._labelled.add(judge.queue.popleft())
            judge.left_s = self._work.label[1]
