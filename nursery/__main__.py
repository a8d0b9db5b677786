"""`python -m nursery`: grow the nursery and print what was measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nursery.grow import Nursery, grow, grow_large_judge
from nursery.oracles import PRINCIPLES

JUDGES: tuple[str, ...] = ("judge_fp", "judge", "audit_judge")


def main() -> None:
    """Grow, or find what is grown, and print the numbers."""
    parser = argparse.ArgumentParser(prog="nursery", description="Grow the tiny models, or find them in the cache.")
    parser.add_argument("--cache", type=Path, default=None, help="where to keep it (default: the user's cache)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="the large judge as well, which takes minutes more")
    arguments = parser.parse_args()
    nursery = grow(arguments.cache, seed=arguments.seed)
    report, judges = nursery.report, JUDGES
    if arguments.large:
        report = {**report, "large_judge": grow_large_judge(nursery, seed=arguments.seed)}
        judges = (*JUDGES, "large_judge")
    console = Console()
    console.print(f"grown in {nursery.report['seconds']:.0f} s: {nursery.policy.parent}", soft_wrap=True)
    console.print(_policy_table(nursery))
    console.print(_judge_table(report, judges))


def _policy_table(nursery: Nursery) -> Table:
    table = Table("principle", "kept by the policy", title="The policy before training, held-out prompts")
    for name in (*PRINCIPLES, "mean"):
        table.add_row(name, f"{nursery.report['policy'][name]:.1%}")
    return table


def _judge_table(report: dict[str, Any], judges: Sequence[str]) -> Table:
    table = Table("principle", *judges, title="Agreement with the oracles: held-out | answers of the policy")
    for task in ("pointwise", "pairwise"):
        for name in PRINCIPLES:
            cells = [_cell(report[judge], f"{task}/{name}") for judge in judges]
            table.add_row(f"{task} {name}", *cells)
    return table


def _cell(report: dict[str, Any], key: str) -> str:
    shown = (report[source].get(key) for source in ("held_out", "policy_answers"))
    return " | ".join("–" if share is None else f"{share:.1%}" for share in shown)


if __name__ == "__main__":
    main()
