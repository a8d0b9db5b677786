"""A judge on top of anything that answers next-token questions: an engine behind the caches, or an endpoint.

    item ──lay out──▶ question(s) ──ask──▶ log-probs ──read, debias, calibrate──▶ verdict

A pair is asked in both orders, or in one if the other could not change the verdict (`solon.feedback.prompting.swap`). A
question whose answer put little probability on the labels is asked once more with a reminder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.judges.verdicts import Reading, mass, read_bool, read_one_order, read_pair, read_score, turned
from solon.feedback.prompting.prompts import Layout
from solon.feedback.prompting.swap import PositionBias, is_audited, pair_digest, shown_swapped
from solon.feedback.prompting.templates import JudgeTemplate
from solon.feedback.questions import Answer, Ask, Question, question_digest
from solon.verdicts import Status, Task, Verdict

CalibrateTask = Callable[[Task, str, float], float]
"""(task, principle, raw margin) -> calibrated margin."""


class Prompts(Protocol):
    """Lays out questions: token ids for an engine, text for an endpoint."""

    @property
    def template(self) -> JudgeTemplate:
        """The template of the questions."""
        ...

    def lay(
        self, item: Item, *, swapped: bool = False, reminded: bool = False, max_tokens: int | None = None
    ) -> Layout | None:
        """The question of an item; None: it does not fit."""
        ...


@dataclass(slots=True)
class _Case:
    """An item and its answers so far. `orders`: answer by whether the two texts were shown swapped."""

    item: Item
    swapped: bool = False
    orders: dict[bool, Answer] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)
    costs: list[Answer] = field(default_factory=list)
    verdict: Verdict | None = None
    is_cut: bool = False


class EngineJudge:
    """Implements `Judge`.

    ask: answers questions, caches included. max_prompt_tokens: the texts of longer questions are cut, and the question
    is `truncated` if that does not help. calibrate: from raw margins to calibrated ones; none: divide by
    `config.temperature`.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        name: str,
        prompts: Prompts,
        config: FeedbackConfig,
        max_prompt_tokens: int,
        calibrate: CalibrateTask | None = None,
    ) -> None:
        self._ask = ask
        self.name = name
        self._prompts = prompts
        self._config = config
        self._max_prompt_tokens = max_prompt_tokens
        self._calibrate = calibrate
        self.bias = PositionBias(config.swap)

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        cases = [_Case(item, swapped=item.task == "pairwise" and shown_swapped(item)) for item in items]
        twice, once = self._split([case for case in cases if case.item.task == "pairwise"])
        # The two orders of a pair are sent next to each other: they share the conversation's prefix.
        await self._put(
            [(case, case.swapped) for case in cases if case.item.task != "pairwise"]
            + [(case, order) for case in twice for order in (case.swapped, not case.swapped)]
        )
        self._learn(twice)
        await self._put([(case, case.swapped) for case in once])
        # Pairs asked again because they are close are not representative of the offset: nothing is learned from them.
        again = [case for case in once if self._needs_other_order(case)]
        await self._put([(case, not case.swapped) for case in again])
        self.bias.asked += len(twice) + len(once)
        self.bias.asked_twice += len(twice) + len(again)
        return [self._conclude(case) for case in cases]

    def _split(self, pairs: Sequence[_Case]) -> tuple[list[_Case], list[_Case]]:
        """Pairs asked in both orders immediately, and pairs whose first order decides about the second."""
        if self._config.swap.orders == "both":
            return list(pairs), []
        twice: list[_Case] = []
        once: list[_Case] = []
        expected: Counter[tuple[str, int]] = Counter()
        decided: dict[bytes, bool] = {}
        for case in pairs:
            # (x, y) and (y, x) are one pair: a decision for one holds for the other.
            pair = pair_digest(case.item)
            if pair not in decided:
                kind = self.bias.kind(case.item, swapped=case.swapped)
                is_unknown = not self.bias.is_known(kind) and expected[kind] < self._config.swap.warmup
                # Two equal answers tie: both orders are one question, and the offset cancels.
                are_equal = case.item.answers[0] == case.item.answers[1]
                decided[pair] = is_unknown or are_equal or is_audited(case.item, self._config.swap.audit)
                expected[kind] += decided[pair]
            (twice if decided[pair] else once).append(case)
        return twice, once

    def _learn(self, twice: Sequence[_Case]) -> None:
        for case in twice:
            if len(case.orders) == 2 and not any(answer.failure for answer in case.orders.values()):
                reading = self._read_pair(case)
                if reading.status.valid and reading.position_offset is not None:
                    self.bias.learn(self.bias.kind(case.item, swapped=case.swapped), reading.position_offset)

    def _needs_other_order(self, case: _Case) -> bool:
        answer = case.orders.get(case.swapped)
        if answer is None or answer.failure is not None:
            return False
        kind = self.bias.kind(case.item, swapped=case.swapped)
        if not self.bias.is_known(kind):
            return True
        raw = answer.logprobs[0] - answer.logprobs[1] - self.bias.offset(kind)
        return self.bias.is_close(kind, raw)

    async def _put(self, wanted: Sequence[tuple[_Case, bool]]) -> None:
        """Ask these orders of these cases; weak answers once more with a reminder."""
        weak = await self._put_once(wanted, reminded=False)
        if weak and self._prompts.template.reminder:
            await self._put_once(weak, reminded=True)

    async def _put_once(self, wanted: Sequence[tuple[_Case, bool]], *, reminded: bool) -> list[tuple[_Case, bool]]:
        asked: list[tuple[_Case, bool, Question]] = []
        for case, swapped in wanted:
            if case.verdict is not None:
                continue
            laid = self._prompts.lay(case.item, swapped=swapped, reminded=reminded, max_tokens=self._max_prompt_tokens)
            if laid is None:
                case.verdict = Verdict(
                    status=Status.TRUNCATED, margin=None, judge=self.name, detail="too long for the judge"
                )
            else:
                case.is_cut |= laid.is_cut
                asked.append((case, swapped, laid.question))
        questions = [question for *_, question in asked]
        answers = await self._ask(questions) if questions else []
        assert len(answers) == len(questions), f"{len(answers)} answers to {len(questions)} questions"
        weak = []
        for (case, swapped, _), question, answer in zip(asked, questions, answers, strict=True):
            case.orders[swapped] = answer
            case.costs.append(answer)
            case.digests.append(question_digest(question))
            if answer.failure is None and mass(answer.logprobs) < self._config.min_mass:
                weak.append((case, swapped))
        return weak

    def _conclude(self, case: _Case) -> Verdict:
        costs = {
            "judge": self.name,
            "questions": len(case.costs),
            "prompt_tokens": sum(a.prompt_tokens for a in case.costs),
            "cached_tokens": sum(a.cached_tokens for a in case.costs),
            "output_tokens": sum(a.output_tokens for a in case.costs),
            "cache_hits": sum(a.cache_hit for a in case.costs),
            "usd": sum(a.usd for a in case.costs),
            "prompt_digests": tuple(case.digests),
        }
        if case.verdict is not None:
            return replace(case.verdict, **costs)  # type: ignore[arg-type]
        failed = next((a for a in case.orders.values() if a.failure is not None), None)
        if failed is not None:
            assert failed.failure is not None
            return Verdict(status=failed.failure, margin=None, detail=failed.detail, **costs)  # type: ignore[arg-type]
        reading = self._read(case)
        status = reading.status
        if status is Status.LOW_MASS and any(a.top in self._prompts.template.refusals for a in case.costs):
            status = Status.REFUSAL
        sources = {answer.source for answer in case.orders.values()}
        return Verdict(
            status=status,
            margin=reading.margin,
            raw_margin=reading.raw,
            position_offset=reading.position_offset,
            consistent=reading.consistent,
            mass=reading.mass,
            source=sources.pop() if len(sources) == 1 else "judge",
            detail="; ".join(_remarks(case)),
            **costs,  # type: ignore[arg-type]
        )

    def _read(self, case: _Case) -> Reading:
        item = case.item
        if item.task == "pairwise":
            reading = self._read_pair(case)
        elif item.task == "score":
            reading = read_score(case.orders[False].logprobs, self._config, self._calibration(item))
        else:
            reading = read_bool(case.orders[False].logprobs, self._config, self._calibration(item))
        return turned(reading) if item.polarity < 0 else reading

    def _read_pair(self, case: _Case) -> Reading:
        """Read the verdict on the first answer, in either order."""
        calibrate = self._calibration(case.item)
        if len(case.orders) == 2:
            shown, other = case.orders[case.swapped], case.orders[not case.swapped]
            reading = read_pair(shown.logprobs, other.logprobs, self._config, calibrate)
        else:
            offset = self.bias.offset(self.bias.kind(case.item, swapped=case.swapped))
            reading = read_one_order(case.orders[case.swapped].logprobs, offset, self._config, calibrate)
        return turned(reading) if case.swapped else reading

    def _calibration(self, item: Item) -> Callable[[float], float] | None:
        if self._calibrate is None:
            return None
        calibrate = self._calibrate
        return lambda raw: calibrate(item.task, item.principle_id, raw)


def _remarks(case: _Case) -> list[str]:
    cut = ["a text was cut"] if case.is_cut else []
    return cut + [answer.detail for answer in case.orders.values() if answer.detail]
