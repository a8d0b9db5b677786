"""A cheap judge for all items, the real one for some: rewards that are right on average.

    items ──▶ proxy ──▶ propensities ──▶ drawn? ──▶ judge ──▶ corrected margin
                                            └── not drawn ──▶ the proxy's margin, put on the judge's scale

The margin of an item is f + (drawn / propensity) * (judge - f), where f is the proxy's prediction. Its mean over the
draws is the judge's margin, clipped to `margin_clip`, however bad the proxy is (doubly robust); a good proxy only
reduces the variance. Corrections are not clipped, which would bias them: f and the judge's margin lie within c =
`margin_clip` and no propensity is below `floor`, so a corrected margin lies within c (2 / floor - 1), with a standard
deviation of at most 2 c sqrt(1 / floor - 1). So it is right as a reward, but wrong as the label of a single pair: for a
data set, select rows and keep their weights.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import model_validator

from solon.feedback.interfaces import Item, Judge
from solon.feedback.panels.cascade import summed_costs
from solon.feedback.selection.estimators import Control, doubly_robust, fit_control
from solon.feedback.selection.policy import SelectionConfig, plan, select
from solon.feedback.selection.worth import Signals
from solon.files.marks import ModelName
from solon.verdicts import Status, Verdict

STREAMING = ("random", "uncertainty", "near_tie")
"""Policies that need only the proxy's margin."""
FEW = 50
"""With fewer judged items the proxy's margin is used unchanged."""
REMEMBERED = 4000


class SelectionSection(SelectionConfig):
    """`SelectionSection(proxy="org/small-judge", policy="near_tie", rate=0.25)`"""

    proxy: ModelName = ""
    """A cheap judge for every item; empty: the judge itself labels every item."""

    @model_validator(mode="after")
    def _can_stream(self) -> SelectionSection:
        if self.proxy and self.policy not in STREAMING:
            raise ValueError(
                f"select.policy = {self.policy!r} needs more than one margin, expected one of {', '.join(STREAMING)}"
            )
        return self


class SelectiveJudge:
    """Implements `Judge`. Never use it for gold, calibration or audits: those are not selected.

    clip: margins of both judges are clipped to this many nats before they are compared.
    """

    def __init__(self, judge: Judge, proxy: Judge, config: SelectionConfig, *, clip: float, seed: int = 0) -> None:
        self.name = judge.name
        self._judge = judge
        self._proxy = proxy
        self._config = config
        self._clip = clip
        self._seed = seed
        self._turn = 0
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=REMEMBERED)
        """(proxy, judge, propensity) of items that both judged."""
        self.asked = self.selected = 0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        said = await self._proxy.judge(items)
        known = [index for index, verdict in enumerate(said) if verdict.margin is not None]
        margins = np.array([self._clipped(said[index]) for index in known])
        control = self._control()
        propensity = np.ones(len(items))
        drawn = np.ones(len(items), bool)  # without a proxy verdict there is no basis for selection: ask the judge
        if known:
            chances = plan(Signals(num=len(known), margins_KN=margins[None]), self._config).propensities_N
            self._turn += 1
            ids = [f"{index}:{_item_id(items[index])}" for index in known]
            for index, selection in zip(
                known, select(ids, chances, self._config, seed=self._seed, turn=self._turn), strict=True
            ):
                propensity[index], drawn[index] = selection.propensity, selection.selected
        judged = dict(
            zip(np.flatnonzero(drawn), await self._judge.judge([items[i] for i in np.flatnonzero(drawn)]), strict=True)
        )
        self.asked += len(items)
        self.selected += len(judged)
        return [
            self._combined(said[index], judged.get(index), float(propensity[index]), control)
            for index in range(len(items))
        ]

    def _combined(self, proxy: Verdict, judged: Verdict | None, propensity: float, control: Control) -> Verdict:
        if proxy.margin is None:
            assert judged is not None
            return replace(judged, **summed_costs([proxy, judged]))
        if judged is not None and judged.margin is None:
            # The label was selected and failed: the proxy's number would hide that failures are not random.
            return replace(judged, propensity=propensity, **summed_costs([proxy, judged]))
        margin, label = self._clipped(proxy), np.nan if judged is None else self._clipped(judged)
        if judged is not None:
            self._seen.append((margin, label, propensity))
        # No label lies outside the clip, so no prediction needs to: this bounds the corrections.
        guess = np.clip(control([margin]), -self._clip, self._clip)
        (corrected,) = doubly_robust(guess, [label], [propensity]).rewards_N
        said = proxy if judged is None else judged
        status = Status.OK if corrected else Status.TIE
        costs = summed_costs([proxy] if judged is None else [proxy, judged])
        source = "proxy" if judged is None else judged.source
        return replace(said, status=status, margin=float(corrected), source=source, propensity=propensity, **costs)

    def _control(self) -> Control:
        """Fitted on items before this call, so that it does not depend on the items that it corrects."""
        if len(self._seen) < FEW:
            return Control()
        proxies, labels, propensities = np.array(self._seen).T
        return fit_control(proxies, labels, propensities, weights_M=1 / propensities)

    def _clipped(self, verdict: Verdict) -> float:
        assert verdict.margin is not None
        return max(-self._clip, min(self._clip, verdict.margin))


def reward_clip(margin_clip: float, select: SelectionSection) -> float:
    """Largest possible margin, nats. With a proxy it exceeds `margin_clip`: clipping corrected margins like raw ones
    would bias them again."""
    return margin_clip * (2 / select.floor - 1) if select.proxy else margin_clip


def _item_id(item: Item) -> str:
    said = "\0".join((item.question, *(m.content for m in item.conversation), *item.answers))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
