"""Cost of labels: tokens, seconds, money, and the wasted share. Computed from verdicts.

meter = CostMeter(CostConfig(accelerators=1, usd_per_accelerator_hour=2.5))
meter.add(verdicts)
rich.print(cost_table(meter.by_judge(wall_s=60.0)))
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from solon.verdicts import Status, Verdict

if TYPE_CHECKING:
    from rich.table import Table


class CostConfig(BaseModel):
    """`CostConfig(accelerators=1, usd_per_accelerator_hour=2.5)`"""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    accelerators: float = Field(0.0, ge=0)
    """Accelerators held for the judge, used or not; 0 for an endpoint."""
    usd_per_accelerator_hour: float = Field(0.0, ge=0)
    """Price of holding one for an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Total cost of the labels in a period. A quotient with divisor zero is None, never 0.

    For one judge, or for all together; `cost.to_dict()` for JSON.
    """

    labels: int
    """Verdicts, valid or not."""
    valid: int
    questions: int
    """Next-token questions behind them; a pair asked in both orders has two."""
    cache_hits: int
    """Questions answered by a cache, or by a concurrent identical question."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens served by the engine's prefix cache."""
    output_tokens: int
    wall_s: float
    accelerator_s: float
    """Seconds that accelerators were held."""
    usd_calls: float
    """Paid to endpoints."""
    usd_accelerators: float
    invalid: dict[str, int]
    """Labels without a number, by status."""
    escalated: int
    """Labels that a cascade escalated at least once."""
    swapped: int
    """Labels from both orders of a pair."""
    inconsistent: int
    """Labels from both orders whose orders favour different answers."""
    bits: float
    """Information in the valid labels: 1 - H(p) each, p the label's own probability."""

    @property
    def tokens_logical(self) -> int:
        """Prompt and output tokens, computed here or by an endpoint."""
        return self.prompt_tokens + self.output_tokens

    @property
    def tokens_computed(self) -> int:
        """Prompt and output tokens that took a forward pass."""
        return self.tokens_logical - self.cached_tokens

    @property
    def calls(self) -> int:
        """Questions that reached a judge."""
        return self.questions - self.cache_hits

    @property
    def usd(self) -> float:
        """Money for calls and for accelerators."""
        return self.usd_calls + self.usd_accelerators

    @property
    def prefix_hit_share(self) -> float | None:
        """Prompt tokens from the prefix cache, as a share; None: no prompt tokens."""
        return _over(self.cached_tokens, self.prompt_tokens)

    @property
    def cache_hit_share(self) -> float | None:
        """Questions that a cache answered, as a share; None: no questions."""
        return _over(self.cache_hits, self.questions)

    @property
    def calls_per_s(self) -> float | None:
        """Calls per second; None: no time has passed."""
        return _over(self.calls, self.wall_s)

    @property
    def labels_per_s(self) -> float | None:
        """Labels per second, valid or not; None: no time has passed."""
        return _over(self.labels, self.wall_s)

    @property
    def valid_labels_per_s(self) -> float | None:
        """The effective rate: debiased labels that may train, caches included."""
        return _over(self.valid, self.wall_s)

    @property
    def tokens_computed_per_label(self) -> float | None:
        """Tokens not saved by a cache, per label; None: no labels."""
        return _over(self.tokens_computed, self.labels)

    @property
    def accelerator_s_per_label(self) -> float | None:
        """Accelerator seconds per valid label; None: no valid labels."""
        return _over(self.accelerator_s, self.valid)

    @property
    def usd_per_1k_valid(self) -> float | None:
        """USD per thousand valid labels; None: no valid labels."""
        return _over(1000 * self.usd, self.valid)

    @property
    def usd_per_bit(self) -> float | None:
        """Price of information: near-ties are labels too, but carry little."""
        return _over(self.usd, self.bits)

    @property
    def invalid_share(self) -> float | None:
        """Labels without a number, as a share; None: no labels."""
        return _over(self.labels - self.valid, self.labels)

    @property
    def escalation_share(self) -> float | None:
        """Labels for which a cascade asked a further judge, as a share; None: no labels."""
        return _over(self.escalated, self.labels)

    @property
    def swap_share(self) -> float | None:
        """Labels asked in both orders, as a share; None: no labels."""
        return _over(self.swapped, self.labels)

    @property
    def inconsistent_share(self) -> float | None:
        """Labels whose two orders disagree, as a share of those asked in both; None: none were."""
        return _over(self.inconsistent, self.swapped)

    def to_dict(self) -> dict[str, Any]:
        """Counts and derived figures, for JSON."""
        counts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        derived = {name: getattr(self, name) for name, value in vars(Cost).items() if isinstance(value, property)}
        return {**counts, **derived, "invalid": dict(self.invalid)}


@dataclass(slots=True)
class _Sums:
    labels: int = 0
    questions: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    escalated: int = 0
    swapped: int = 0
    inconsistent: int = 0
    bits: float = 0.0
    by_status: Counter[Status] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.labels += 1
        self.by_status[verdict.status] += 1
        self.questions += verdict.questions
        self.cache_hits += verdict.cache_hits
        self.prompt_tokens += verdict.prompt_tokens
        self.cached_tokens += verdict.cached_tokens
        self.output_tokens += verdict.output_tokens
        self.usd += verdict.usd
        self.escalated += verdict.level > 0
        self.swapped += verdict.position_offset is not None
        self.inconsistent += verdict.consistent is False
        if verdict.margin is not None:
            self.bits += information(verdict.margin)


class CostMeter:
    """Adds up verdicts by judge. `meter.add(verdicts)`, then `meter.cost(wall_s=seconds)`."""

    def __init__(self, config: CostConfig | None = None) -> None:
        self._config = config or CostConfig()
        self._judges: dict[str, _Sums] = {}
        self._all = _Sums()

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Count verdicts."""
        for verdict in verdicts:
            self._all.add(verdict)
            self._judges.setdefault(verdict.judge, _Sums()).add(verdict)

    def cost(self, *, wall_s: float) -> Cost:
        """Cost of all judges over `wall_s` seconds."""
        return self._cost(self._all, wall_s, share=1.0)

    def by_judge(self, *, wall_s: float) -> dict[str, Cost]:
        """Cost of each judge. Accelerator time is divided by computed tokens, equally if there were none."""
        computed = {name: s.prompt_tokens + s.output_tokens - s.cached_tokens for name, s in self._judges.items()}
        total = sum(computed.values())
        return {
            name: self._cost(sums, wall_s, share=computed[name] / total if total else 1 / len(self._judges))
            for name, sums in self._judges.items()
        }

    def _cost(self, sums: _Sums, wall_s: float, *, share: float) -> Cost:
        held_s = self._config.accelerators * wall_s * share
        invalid = {str(s): n for s, n in sorted(sums.by_status.items()) if not s.valid}
        return Cost(
            labels=sums.labels,
            valid=sums.labels - sum(invalid.values()),
            questions=sums.questions,
            cache_hits=sums.cache_hits,
            prompt_tokens=sums.prompt_tokens,
            cached_tokens=sums.cached_tokens,
            output_tokens=sums.output_tokens,
            wall_s=wall_s,
            accelerator_s=held_s,
            usd_calls=sums.usd,
            usd_accelerators=held_s / 3600 * self._config.usd_per_accelerator_hour,
            invalid=invalid,
            escalated=sums.escalated,
            swapped=sums.swapped,
            inconsistent=sums.inconsistent,
            bits=sums.bits,
        )


@dataclass(slots=True)
class CallMeter:
    """Totals of calls to an endpoint, below the level of verdicts."""

    questions: int = 0
    attempts: int = 0
    """HTTP requests, retries included."""
    retries: int = 0
    estimated: int = 0
    """Answers with estimated token counts: the endpoint gave none."""
    seconds: float = 0.0
    """Sum of the durations of all requests."""
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, by status."""

    def to_dict(self) -> dict[str, Any]:
        """Counts for JSON."""
        return {**dataclasses.asdict(self), "failures": dict(self.failures)}


def information(margin: float) -> float:
    """Bits in a label with these log-odds: 1 - H(p).

    >>> information(0.0), round(information(100.0), 6)
    (0.0, 1.0)
    """
    odds = math.exp(-min(abs(margin), 700.0))
    rare = odds / (1 + odds)
    if rare == 0.0:
        return 1.0
    return 1 + rare * math.log2(rare) + (1 - rare) * math.log1p(-rare) / math.log(2)


def cost_table(costs: Mapping[str, Cost]) -> Table:
    """One column per judge, ready for `rich.print`."""
    from rich.table import Table

    table = Table(title="what labels cost")
    table.add_column("")
    for name in costs:
        table.add_column(name or "judge", justify="right")
    for title, show in _ROWS.items():
        table.add_row(title, *(show(cost) for cost in costs.values()))
    for status in sorted({status for cost in costs.values() for status in cost.invalid}):
        table.add_row(f"invalid: {status}", *(str(cost.invalid.get(status, 0)) for cost in costs.values()))
    return table


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


_ROWS: dict[str, Callable[[Cost], str]] = {
    "labels": lambda c: f"{c.labels}",
    "valid": lambda c: f"{c.valid}",
    "questions": lambda c: f"{c.questions}",
    "tokens, logical": lambda c: f"{c.tokens_logical}",
    "tokens, computed": lambda c: f"{c.tokens_computed}",
    "computed tokens per label": lambda c: _number(c.tokens_computed_per_label),
    "prefix cache hits": lambda c: _share(c.prefix_hit_share),
    "verdict cache hits": lambda c: _share(c.cache_hit_share),
    "labels/s": lambda c: _number(c.labels_per_s),
    "effective valid labels/s": lambda c: _number(c.valid_labels_per_s),
    "accelerator seconds per label": lambda c: _number(c.accelerator_s_per_label),
    "USD": lambda c: _number(c.usd),
    "USD per 1k valid labels": lambda c: _number(c.usd_per_1k_valid),
    "USD per bit": lambda c: _number(c.usd_per_bit),
    "asked in both orders": lambda c: _share(c.swap_share),
    "orders that disagree": lambda c: _share(c.inconsistent_share),
    "escalated": lambda c: _share(c.escalation_share),
    "invalid": lambda c: _share(c.invalid_share),
}
