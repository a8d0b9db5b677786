"""The conservation law of a run, from its files alone: every group that was admitted is trained once, dropped once with
a reason, or still held. Pure: lines of `events.jsonl` and `metrics.jsonl` in, an account out.

A line of `metrics.jsonl` commits the groups of its step; a `group_dropped` event drops one. A `resumed` event
{step, admitted, held} revokes, at its moment, the work of the previous process since the checkpoint: every commit of a
step from `step` on, and every drop of a group that is in `held` or was not admitted yet (its number is `admitted` or
higher). Those groups are generated again under the same numbers, so none of them may count twice.

Where lines were cut or edited, a checkpoint vouches for the groups before it: its ledger balances, so each of them was
trained or dropped once, although no line says which. A `resumed` event with `unlisted` states this for its checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_GROUPS = 10**8
"""Larger numbers are of damaged files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where every group of a run is. `account.is_balanced` when the law holds."""

    admitted: int
    committed: Mapping[int, int]
    """Step by ordinal, of the commits that count."""
    dropped: Mapping[int, str]
    """Reason by ordinal, of the drops that count."""
    held: frozenset[int]
    """Admitted, neither committed nor dropped, and held by the run or its checkpoint."""
    lost: frozenset[int]
    """Admitted, neither committed nor dropped, and held by no one."""
    doubled: frozenset[int]
    """Committed or dropped more than once."""
    unlisted: frozenset[int] = frozenset()
    """Trained or dropped according to a checkpoint; their lines are gone."""

    @property
    def is_balanced(self) -> bool:
        """Whether no group is lost and none is counted twice."""
        return not self.lost and not self.doubled

    @property
    def reasons(self) -> dict[str, int]:
        """How many groups were dropped for each reason, the most frequent first."""
        return dict(Counter(self.dropped.values()).most_common())


def account(
    events: Iterable[Mapping[str, Any]],
    metrics: Iterable[Mapping[str, Any]],
    *,
    admitted: int | None = None,
    held: Collection[int] | None = None,
    vouched: Collection[int] = (),
) -> Account:
    """The account of a run at the end of these lines.

    admitted: how many groups there were; None: those on record. held: the groups that are still held, none at the end
    of a completed run; None: not known, then none counts as lost. vouched: groups that a checkpoint reports as trained
    or dropped, where lines are damaged. Raises KeyError, TypeError, ValueError for lines that no run writes.
    """
    trained: list[tuple[int, list[int]]] = []  # (step, its groups), steps ascending
    dropped: dict[int, list[str]] = {}
    known, trusted = 0, set(vouched)
    for line in _in_order(events, metrics):
        name = line.get("event")
        if name is None:
            # One process commits steps in order: a repeated step replaces the earlier one and all after it.
            _take_back(trained, int(line["step"]))
            trained.append((int(line["step"]), [int(ordinal) for ordinal in line["batch/ordinals"]]))
            known = max(known, *(ordinal + 1 for ordinal in trained[-1][1]), 0)
        elif name == "group_dropped":
            dropped.setdefault(int(line["ordinal"]), []).append(str(line["reason"]))
            known = max(known, int(line["ordinal"]) + 1)
        elif name == "resumed":
            _take_back(trained, int(line["step"]))
            known, again = min(int(line["admitted"]), MOST_GROUPS + 1), {int(ordinal) for ordinal in line["held"]}
            for ordinal in [o for o in dropped if o in again or o >= known]:
                del dropped[ordinal]
            before_checkout = set(range(known)) - again
            trusted = trusted & before_checkout | (before_checkout if line.get("unlisted") else set())
    committed = {ordinal: step for step, ordinals in trained for ordinal in ordinals}
    times = Counter(ordinal for _, ordinals in trained for ordinal in ordinals)
    times.update({ordinal: len(reasons) for ordinal, reasons in dropped.items()})
    unlisted = frozenset(trusted - times.keys())
    for ordinal in trusted:  # once, whatever remains of its lines
        times[ordinal] = 1
    # A group that was trained or dropped and is still held would count twice.
    times.update({ordinal for ordinal in held or () if ordinal in times})
    admitted = max(known, admitted or 0, *(ordinal + 1 for ordinal in trusted))
    if admitted > MOST_GROUPS:
        raise ValueError(f"got {admitted} groups, expected at most {MOST_GROUPS}")
    rest = frozenset(range(admitted)) - times.keys()
    kept = rest if held is None else rest & frozenset(held)
    return Account(
        admitted=admitted,
        committed=committed,
        dropped={ordinal: reasons[-1] for ordinal, reasons in dropped.items()},
        held=kept,
        lost=rest - kept,
        doubled=frozenset(ordinal for ordinal, count in times.items() if count > 1),
        unlisted=unlisted,
    )


def _take_back(trained: list[tuple[int, list[int]]], step: int) -> None:
    """Revoke the commits of this step and of all after it."""
    while trained and trained[-1][0] >= step:
        trained.pop()


def _in_order(events: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Both files merged by time; lines of one file keep their order, whatever their clock says."""
    left, right = iter(events), iter(metrics)
    event, line = next(left, None), next(right, None)
    while event is not None or line is not None:
        if line is None or (event is not None and float(event["time"]) <= float(line["time"])):
            assert event is not None
            yield event
            event = next(left, None)
        else:
            yield line
            line = next(right, None)
