"""Judges with injected failures at a known rate, to test that a failed call is never mistaken for an opinion.

    judge = FaultyJudge(honest, {"timeout": 0.02, "nan": 0.01}, seed=7)
    ask = FaultyAsk(engine, {"transport_error": 0.05, "low_mass": 0.05}, seed=7)

`FaultyJudge` wraps a judge, `FaultyAsk` an `Ask`; both fail on some items of a call and leave the others unchanged. The
same seed and calls give the same faults, whatever runs concurrently; an item that is asked again may succeed. Biases,
which are wrong opinions and not failures, are in `solon.feedback.trials.biased`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

from solon.errors import nearest
from solon.feedback.interfaces import Item, Judge
from solon.feedback.panels.cascade import summed_costs
from solon.feedback.questions import Answer, Ask, Question, question_digest
from solon.verdicts import Status, Verdict

Fault = Literal["timeout", "transport_error", "garbage", "nan", "low_mass", "refusal"]
"""The call was late or lost; or its reply is not an answer, not a number, has little mass on the labels, or is a
refusal."""
FAULTS: tuple[Fault, ...] = get_args(Fault)
_LOST: dict[str, Status] = {"timeout": Status.TIMEOUT, "transport_error": Status.TRANSPORT_ERROR}
"""The judge was not reached: it is not asked and costs nothing. All other faults happen after a paid call."""
_SPOILT: dict[str, Status] = {
    "garbage": Status.UNPARSABLE,
    "low_mass": Status.LOW_MASS,
    "refusal": Status.REFUSAL,
}
LEFT = 1e-3
"""Remaining probability of the labels after `low_mass` and `refusal`."""


class FaultPlan:
    """Which call fails in which way. Faults exclude each other, so the sum of their rates is at most 1."""

    def __init__(self, rates: Mapping[Fault, float], *, seed: int = 0) -> None:
        for fault, rate in rates.items():
            if fault not in FAULTS:
                raise ValueError(f"fault: got {fault!r}, expected one of {', '.join(FAULTS)}{nearest(fault, FAULTS)}")
            if not 0 <= rate <= 1:
                raise ValueError(f"rate of {fault}: got {rate}, expected a share from 0 to 1")
        if sum(rates.values()) > 1 + 1e-9:
            raise ValueError(f"rates: got {sum(rates.values()):g} together, expected 1 at most")
        self.injected: Counter[Fault] = Counter()
        """Count of each injected fault."""
        self._rates = dict(rates)
        self._seed = seed
        self._asked: Counter[str] = Counter()

    def draw(self, digest: str) -> Fault | None:
        """The fault of this call about this item, if any. Each further call about it is another draw."""
        turn = self._asked[digest]
        self._asked[digest] += 1
        left = uniform(f"{self._seed}:{turn}:{digest}")
        for fault, rate in self._rates.items():
            if left < rate:
                self.injected[fault] += 1
                return fault
            left -= rate
        return None


class FaultyJudge:
    """Implements `Judge` around another one. `nan` gives a valid verdict with a margin of NaN, as a judge with
    overflowing weights does; the other faults give verdicts without a margin."""

    def __init__(self, judge: Judge, rates: Mapping[Fault, float], *, seed: int = 0) -> None:
        self.name = judge.name
        self.faults = FaultPlan(rates, seed=seed)
        self._judge = judge

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`; the plan selects the failing items."""
        struck = [self.faults.draw(item_digest(item)) for item in items]
        reached = [item for item, fault in zip(items, struck, strict=True) if fault not in _LOST]
        verdicts = iter(await self._judge.judge(reached) if reached else [])
        return [self._lost(fault) if fault in _LOST else spoil(next(verdicts), fault) for fault in struck]

    def _lost(self, fault: Fault | None) -> Verdict:
        assert fault is not None
        return Verdict(status=_LOST[fault], margin=None, judge=self.name, detail=_detail(fault))


class FaultyAsk:
    """An `Ask` around another one. `garbage` gives invalid log-probs above zero; `refusal`: the word of a refusal."""

    def __init__(self, ask: Ask, rates: Mapping[Fault, float], *, seed: int = 0, refusal: str = "Sorry") -> None:
        self.faults = FaultPlan(rates, seed=seed)
        self._ask = ask
        self._refusal = refusal

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions."""
        struck = [self.faults.draw(question_digest(question)) for question in questions]
        reached = [question for question, fault in zip(questions, struck, strict=True) if fault not in _LOST]
        answers = iter(await self._ask(reached) if reached else [])
        return [
            Answer((), failure=_LOST[fault], detail=_detail(fault))
            if fault is not None and fault in _LOST
            else self._spoil(next(answers), fault)
            for fault in struck
        ]

    def _spoil(self, answer: Answer, fault: Fault | None) -> Answer:
        if fault is None or answer.failure is not None:
            return answer
        if fault == "nan":
            logprobs = [math.nan for _ in answer.logprobs]
        elif fault == "garbage":
            logprobs = [1.0 + place for place, _ in enumerate(answer.logprobs)]
        else:
            logprobs = [logprob + math.log(LEFT) for logprob in answer.logprobs]
        top = self._refusal if fault == "refusal" else answer.top
        return replace(answer, logprobs=tuple(logprobs), top=top)


def spoil(verdict: Verdict, fault: Fault | None) -> Verdict:
    """The verdict after the fault, with the same costs. An invalid verdict stays unchanged."""
    if fault is None or not verdict.status.valid:
        return verdict
    if fault == "nan":
        return replace(verdict, margin=math.nan, raw_margin=math.nan)
    return Verdict(
        status=_SPOILT[fault],
        margin=None,
        mass=LEFT * verdict.mass if fault in ("low_mass", "refusal") else 0.0,
        judge=verdict.judge,
        level=verdict.level,
        source=verdict.source,
        detail=_detail(fault),
        **summed_costs([verdict]),
    )


def item_digest(item: Item) -> str:
    """sha256 of all fields of an item."""
    said = [text for message in item.conversation for text in (message.role, message.content)]
    asked = (item.task, item.principle_id, item.question, str(item.polarity), str(item.scale))
    whole = "\0".join((*asked, *said, "\1", *item.answers))
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def uniform(text: str) -> float:
    """A number in [0, 1) determined by the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _detail(fault: Fault) -> str:
    return f"injected fault: {fault}"
