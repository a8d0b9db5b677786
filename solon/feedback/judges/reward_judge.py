"""A reward model as a judge: its number for a whole answer is the margin, whatever the principle.

    centred_m = r_m - shifts[m]                                     for each member m of an ensemble
    value     = mean(centred_m) - pessimism * stdev(centred_m)
    margin of an answer    = value * scale
    margin between answers = (value_first - value_second) * scale

`shifts`, `scale` and `pessimism` are in the model's config.json, under `CENTRE`, where the stage that made it has
measured them: after them the mean answer has a margin of 0, and margins are nats. Rewards have no zero of their own, so
members are centred before their disagreement is taken. The further members are in folders `member-1`, `member-2`, ...
Other reward models have one member, no shift and a scale of 1.

A answers, M members.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import model_settings
from solon.engines.scoring import ScoringEngine, build_scoring_engine
from solon.engines.turns import encode_turn
from solon.errors import InputError, PromptRefusedError, short
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.identity import JudgeIdentity, identify
from solon.records import Message
from solon.verdicts import Status, Verdict

CENTRE = "solon_reward"
"""Key of config.json."""
TASKS = ("pointwise", "pairwise")
T = TypeVar("T")
Answer = tuple[tuple[Message, ...], str]


@dataclass(frozen=True, slots=True)
class Scored:
    """The rewards of an answer, and the number of tokens read for them."""

    rewards_M: tuple[float, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """From rewards to margins."""

    shifts: tuple[float, ...] = (0.0,)
    """Of the members."""
    scale: float = 1.0
    pessimism: float = 0.0

    @property
    def members(self) -> int:
        """Models of the ensemble."""
        return len(self.shifts)

    def value(self, rewards_M: Sequence[float]) -> float:
        """Of an answer, before the scale."""
        centred_M = [reward - shift for reward, shift in zip(rewards_M, self.shifts, strict=True)]
        apart = statistics.stdev(centred_M) if self.pessimism else 0.0
        return statistics.fmean(centred_M) - self.pessimism * apart

    def raw(self, rewards_AM: Sequence[Sequence[float]]) -> float:
        """The margin of one answer or between two, before the scale."""
        values = [self.value(rewards_M) for rewards_M in rewards_AM]
        return values[0] - values[1] if len(values) == 2 else values[0]


def member_folder(number: int) -> str:
    """Of a further model of an ensemble, within the folder of the first."""
    return f"member-{number}"


class RewardJudge:
    """Implements `HostedJudge`. Nothing is cached: a reward is one forward pass."""

    def __init__(
        self, engine: EngineConfig, feedback: FeedbackConfig, constitution: Constitution, *, name: str
    ) -> None:
        self.name = name
        self._config, self._feedback, self._constitution = engine, feedback, constitution
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="solon-scoring")
        self._engines: list[ScoringEngine] = []
        self._waiting: list[tuple[list[Answer], asyncio.Future[list[Verdict | Scored]]]] = []
        self._serving: asyncio.Task[None] | None = None
        self._spans: list[tuple[float, float]] = []

    async def start(self) -> JudgeIdentity:
        """Load the model. Raises InputError, also for a task other than `pointwise` and `pairwise`."""
        if self._feedback.task not in TASKS:
            raise InputError(
                f"feedback.task = {self._feedback.task!r} with the reward model {self._config.model!r}, expected "
                f"{' or '.join(TASKS)}: it has one number for a whole answer; change the task"
            )
        if given := next((n for n in ("critique_tokens", "thought_tokens") if getattr(self._feedback, n)), ""):
            raise InputError(
                f"feedback.{given} with the reward model {self._config.model!r}, expected 0: it writes no text; "
                "remove the key"
            )
        if self._feedback.calibration:
            raise InputError(
                f"feedback.calibration with the reward model {self._config.model!r}, expected none: its scale is in "
                "its config.json; remove the key"
            )
        self._centre = centre_of(model_settings(self._config), self._config.model)
        require_backend(self._centre, self._config.backend, self._config.model)
        for number in range(self._centre.members):
            folder = str(Path(self._config.model) / member_folder(number)) if number else self._config.model
            one = self._config.model_copy(update={"model": folder})
            self._engines.append(await self._in_thread(partial(build_scoring_engine, one, name=self.name)))
        return identify(
            self._config,
            name=self.name,
            dtype=self._engines[0].dtype,
            tokenizer_digest=self._engines[0].tokenizer.digest,
            template_id="none",
            constitution_id=self._constitution.id,
            constitution_hash=self._constitution.hash,
        )

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in order. Principles that ask about one answer share its reward; concurrent callers share
        batches."""
        answers = list(dict.fromkeys((item.conversation, answer) for item in items for answer in item.answers))
        future: asyncio.Future[list[Verdict | Scored]] = asyncio.get_running_loop().create_future()
        self._waiting.append((answers, future))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        found = dict(zip(answers, await future, strict=True))
        return [self._verdict([found[item.conversation, answer] for answer in item.answers]) for item in items]

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """The same."""
        return await self.judge(items)

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of forward passes since the last call."""
        spans, self._spans = self._spans, []
        return spans

    async def close(self) -> None:
        """Free the model."""
        for engine in self._engines:
            await self._in_thread(engine.close)
        self._engines = []
        self._thread.shutdown(wait=False)

    async def _serve(self) -> None:
        """Score what is waiting, all callers together, until nothing is."""
        while self._waiting:
            calls, self._waiting = self._waiting, []
            answers = [answer for some, _ in calls for answer in some]
            try:
                scored = iter(await self._in_thread(partial(self._score, answers)))
            except Exception as error:
                for _, future in calls:
                    if not future.done():
                        future.set_exception(error)
                continue
            for some, future in calls:
                part = [next(scored) for _ in some]
                if not future.done():
                    future.set_result(part)

    def _score(self, answers: Sequence[Answer]) -> list[Verdict | Scored]:
        """In the engine's thread."""
        started = time.time()
        laid = [self._ids(answer) for answer in answers]
        usable = [ids for ids in laid if isinstance(ids, tuple)]
        rewards = iter(zip(*(engine.score(usable) for engine in self._engines), strict=True) if usable else ())
        self._spans.append((started, time.time()))
        return [Scored(next(rewards), len(ids) * len(self._engines)) if isinstance(ids, tuple) else ids for ids in laid]

    def _ids(self, answer: Answer) -> tuple[int, ...] | Verdict:
        """The whole conversation, or why it has no reward."""
        engine = self._engines[0]
        messages, text = answer
        try:
            prompt, ids = encode_turn(engine.tokenizer, messages, text)
        except PromptRefusedError as error:
            return self._invalid(Status.ENGINE_ERROR, f"its chat template refuses the conversation: {error}")
        if len(prompt) + len(ids) > engine.max_tokens:
            return self._invalid(Status.TRUNCATED, "too long for the reward model")
        return (*prompt, *ids)

    def _verdict(self, scored: Sequence[Verdict | Scored]) -> Verdict:
        tokens, rewards_AM = 0, []
        for one in scored:
            if isinstance(one, Verdict):
                return one
            tokens += one.tokens
            rewards_AM.append(one.rewards_M)
        raw = self._centre.raw(rewards_AM)
        if not math.isfinite(raw):
            return self._invalid(Status.ABSTAIN, f"a reward of {raw}")
        margin = raw * self._centre.scale
        return Verdict(
            status=Status.TIE if abs(margin) < self._feedback.tie_band else Status.OK,
            margin=margin,
            raw_margin=raw,
            mass=1.0,
            judge=self.name,
            questions=len(rewards_AM),
            prompt_tokens=tokens,
        )

    def _invalid(self, status: Status, detail: str) -> Verdict:
        return Verdict(status=status, margin=None, judge=self.name, questions=1, detail=detail)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def centre_of(settings: Mapping[str, Any], model: str) -> Centre:
    """As a model's config.json has it. Raises InputError when it is no centre."""
    found = settings.get(CENTRE)
    try:
        given = dict(found or {})
        centre = Centre(**given | {"shifts": tuple(map(float, given.get("shifts", (0.0,))))})
        numbers = (*centre.shifts, centre.scale, centre.pessimism)
        is_sound = all(map(math.isfinite, numbers)) and centre.scale > 0 and centre.pessimism >= 0
        if is_sound and centre.members >= (2 if centre.pessimism else 1):
            return centre
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"config.json of the reward model {model!r} has {CENTRE} = {short(repr(found))}, expected a list of finite "
        "shifts, one for each member (two or more with pessimism), and a scale above 0; correct or remove it"
    )


def require_backend(centre: Centre, backend: str, model: str) -> None:
    """Raises InputError for an ensemble on vLLM: a process has room for one of its engines."""
    if centre.members > 1 and backend == "vllm":
        raise InputError(
            f"the reward model {model!r} has {centre.members} members, and the backend is vllm, expected "
            "'transformers': several models share a process; set judging.backend = \"transformers\""
        )
