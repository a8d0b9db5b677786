"""Which steps moved the policy, why the others did not, and the remedy. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from solon.records import StepReport

NEARLY_ALL = 0.9
"""A batch is reported when at least this share of its answers was cut at the length limit."""
MASKS = {
    "learn/truncated/share": "cut at the length limit",
    "learn/too_old/share": "older than learn.max_token_staleness",
    "learn/outside_set/share": "outside the set that the learner would sample from",
    "learn/outlier/share": "with an importance ratio out of bounds",
}
"""Metrics that explain masked tokens."""


class Movement:
    """Receives every committed step; produces warnings for the user. Continues across a resume."""

    def __init__(self, *, max_tokens: int | None = None, truncated: str = "keep") -> None:
        """max_tokens, truncated: `rollout.max_tokens` and `learn.truncated` of the run."""
        self._limit = "rollout.max_tokens" if max_tokens is None else f"rollout.max_tokens = {max_tokens}"
        self._truncated = truncated
        self.steps = self.moved = self.cut_steps = 0
        self._still: Counter[str] = Counter()
        """Steps that moved nothing, by kind of cause, in the latest words."""
        self.cause = ""
        """Why the latest step moved nothing; empty: it moved the policy."""
        self.cut = ""
        """A warning that nearly all answers of the latest step were cut; empty otherwise, or where `cause` says so."""
        self._last_cut = ""

    def add(self, report: StepReport) -> None:
        """One more committed step."""
        self.steps += 1
        self.moved += report.moved
        self.cause = "" if report.moved else self._cause(report.metrics)
        self.cut = self._cut(report.metrics) if report.moved else ""
        if self.cause:
            self._still[self.cause] += 1
        if self.cut:
            self.cut_steps += 1
            self._last_cut = self.cut

    def state(self) -> dict[str, Any]:
        """As JSON: a resumed run continues from it."""
        return {
            "steps": self.steps,
            "moved": self.moved,
            "still": dict(self._still),
            "cut_steps": self.cut_steps,
            "last_cut": self._last_cut,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.steps, self.moved, self.cut_steps = state["steps"], state["moved"], state["cut_steps"]
        self._still, self._last_cut = Counter(state["still"]), state["last_cut"]

    @property
    def trained_nothing(self) -> bool:
        """Steps were committed, and the policy is unchanged."""
        return self.steps > 0 and self.moved == 0

    def verdict(self) -> list[str]:
        """The verdict at the end of a run. Empty: every step moved the policy, on answers that ended."""
        said = []
        if self.moved < self.steps:
            cause = self._still.most_common(1)[0][0]
            whole = (
                f"none of {self.steps} steps moved the policy"
                if self.moved == 0
                else f"{self.moved} of {self.steps} steps moved the policy, the others did not"
            )
            said.append(f"{whole}: {cause}")
        if self._last_cut:
            said.append(
                f"in {self.cut_steps} of {self.steps} steps nearly all answers were cut; last: {self._last_cut}"
            )
        return said

    def _cause(self, metrics: Mapping[str, float]) -> str:
        cut, masked = metrics.get("learn/truncated/share", 0.0), metrics.get("learn/masked/share", 0.0)
        if self._truncated == "mask" and cut >= 0.5:
            rest = "" if cut >= 1 else ", and the rest says nothing"
            return (
                f"{self._cut_answers(metrics)} and learn.truncated = 'mask' leaves them out{rest}; "
                "raise rollout.max_tokens, or set learn.truncated = 'keep'"
            )
        if masked >= 1:
            shares = [(metrics.get(key, 0.0), words) for key, words in MASKS.items()]
            if self._truncated != "mask":
                shares = shares[1:]
            share, words = max(shares)
            most = f", {share:.0%} of them because they are {words}" if share > 0 else ""
            return f"every token is masked{most}; the shares beside learn/masked/share in metrics.jsonl say why"
        if metrics.get("learn/reward_in_group/std") == 0:
            return (
                "the answers to one prompt all have the same reward; take a judge or a constitution that tells them "
                "apart, or raise rollout.group_size or rollout.temperature"
            )
        return "every gradient was exactly 0; look at learn/advantage_abs/mean and learn/masked/share in metrics.jsonl"

    def _cut(self, metrics: Mapping[str, float]) -> str:
        if metrics.get("learn/truncated/share", 0.0) < NEARLY_ALL:
            return ""
        return f"{self._cut_answers(metrics)}, so the judge reads answers without an end; raise rollout.max_tokens"

    def _cut_answers(self, metrics: Mapping[str, float]) -> str:
        share, total = metrics["learn/truncated/share"], round(metrics.get("learn/rollouts/sum", 0))
        if not total:
            return f"{share:.0%} of the answers were cut at {self._limit}"
        who = f"all {total}" if share >= 1 else f"{round(share * total)} of {total}"
        return f"{who} answers were cut at {self._limit}"
