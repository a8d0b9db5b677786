"""The last lines of a run: held-out scores and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from solon.cli.terminal import visible
from solon.doctor.ending import Ending


def end_table(summary: dict[str, Any]) -> Table:
    """Held-out scores, a column per evaluation, and the change from the first to the last."""
    scores = {name: found for name, found in summary["eval"].items() if found}
    table = Table(title="held-out adherence", title_justify="left")
    for column in ("principle", *map(visible, scores), "change"):
        table.add_column(column, justify="left" if column == "principle" else "right")
    names = dict.fromkeys(name for found in scores.values() for name in found)
    for name in [*(n for n in names if n != "mean"), *(["mean"] if "mean" in names else [])]:
        values = [found.get(name) for found in scores.values()]
        first, last = values[0], values[-1]
        change = last - first if len(values) > 1 and first is not None and last is not None else None
        table.add_row(
            Text(visible(name), style="bold" if name == "mean" else ""),
            *("-" if value is None else f"{value:.3f}" for value in values),
            Text(f"{change:+.3f}", style="green" if change >= 0 else "red") if change is not None else "-",
        )
    return table


def end_lines(summary: dict[str, Any], directory: Path) -> Text:
    """The rest of the summary in a few lines, ending with why a run was stopped and how to resume it. For a failed run
    the cause follows on stderr."""
    lines = [
        f"{summary['status']} after {_steps(summary)} in {summary['wall_s']:.0f} s",
        *(_figures(summary) if summary["steps"] else ()),
        *(f"warning: {text}" for text in summary.get("warnings", ())),
        f"not written: {summary['unwritten']}" if "unwritten" in summary else f"written to {directory}/summary.json",
        *([f"report: {directory}/report.html, for a browser"] if (directory / "report.html").is_file() else []),
    ]
    if summary["status"] == "stopped" and (end := summary.get("end")):
        lines += Ending(**{key: text or "" for key, text in end.items()}).lines()
    return Text(visible("\n".join(lines)))


def _figures(summary: dict[str, Any]) -> list[str]:
    """Lines for a run that has trained something."""
    overlap, weights, labels = summary["overlap"], summary["weights"], summary["labels"]
    shares = ", ".join(f"{lane} {share:.0%}" for lane, share in overlap["busy"].items())
    return [
        _reward(summary),
        f"staleness at most {summary['staleness']['max']} (bound {summary['staleness']['bound']})",
        f"busy {shares}; overlap efficiency {overlap['efficiency']:.2f}, {overlap['binding_stage']} binds",
        f"{labels['total']} labels, {labels['invalid']} invalid, {labels['cache_hits']} answered by the cache; "
        f"{summary['throughput']['rollouts_per_s']} rollouts/s",
        f"{weights['published']} policy versions published, {weights['attested']} attested"
        + (f", largest canary gap {weights['max_logprob_gap']:.1e} nats" if weights["published"] else ""),
    ]


def _reward(summary: dict[str, Any]) -> str:
    """How the reward moved; for rewards relative to the group, their spread."""
    reward = summary["reward"]
    if not reward["relative"]:
        if summary["steps"] and not summary["steps_moved"]:
            return f"reward {_number(reward['last'])}, of the policy as it was"
        return f"reward {_number(reward['first'])} -> {_number(reward['last'])}"
    told = (
        "the held-out scores above say what was learned"
        if summary["eval"]["before"]
        else "set evaluate.prompts, or [watch], to see what is learned"
    )
    first, last = (_number(reward["spread"][when]).lstrip("+") for when in ("first", "last"))
    return (
        "rewards compare the answers to one prompt, so their mean is always about 0; their spread in a group went "
        f"{first} -> {last} nats; {told}"
    )


def _steps(summary: dict[str, Any]) -> str:
    steps, moved = summary["steps"], summary["steps_moved"]
    return f"{steps} steps" + ("" if moved == steps else f", {moved or 'none'} of which moved the policy,")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
