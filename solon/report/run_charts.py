"""The charts of a run, from its tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.feedback.quality.intervals import Interval
from solon.feedback.quality.metrics import reliability
from solon.report import values as read
from solon.report.charts import HEIGHT, Chart, Curve, bars, curves, layout
from solon.report.figures import COLOURS, SYMBOLS, _error_bars, _shown
from solon.report.figures import reliability as reliability_figure
from solon.report.run_facts import PROBABILITY, audited_margins
from solon.report.store import RunStore
from solon.telemetry.overlap import LANES

TIMELINE_SPANS = 3000
"""Of the end of a run."""
TIMELINE_MARKS = 300
"""Of the time that these spans take."""
TRACE_BYTES = 2**20
"""Read of the end of a trace."""
LEAST_AUDITED = 30
"""Answers for a reliability diagram."""


def series(store: RunStore, name: str, label: str = "", *, marks: bool = False) -> Curve:
    """A metric over steps."""
    found = store.rows("SELECT step, value FROM metrics WHERE name = ? AND isfinite(value) ORDER BY step", [name])
    steps, values = [row["step"] for row in found], [row["value"] for row in found]
    return Curve(name=label or name, steps=steps, values=values, marks=marks)


def reward(store: RunStore, *, has_rows: bool = True) -> Chart | None:
    """Mean reward with its 95 % interval over the groups of a batch; without the answers' rows the mean alone."""
    from scipy.stats import t

    rows = has_rows and store.rows(
        "SELECT step, avg(mean) AS mean, stddev_samp(mean) / sqrt(count(*)) AS error, count(*) AS groups FROM "
        "(SELECT step, ordinal, attempt, avg(reward) AS mean FROM rollouts WHERE step IS NOT NULL AND isfinite(reward) "
        "GROUP BY ALL) GROUP BY step ORDER BY step"
    )
    if not rows:
        return curves("reward", "Reward", [series(store, "learn/reward/mean", "mean of the batch")], y="nats")
    half = [(row["error"] or 0.0) * float(t.ppf(0.975, max(1, row["groups"] - 1))) for row in rows]
    means = [row["mean"] for row in rows]
    curve = Curve(
        name="mean of the batch",
        steps=[row["step"] for row in rows],
        values=means,
        low=[m - h for m, h in zip(means, half, strict=True)],
        high=[m + h for m, h in zip(means, half, strict=True)],
    )
    gold = series(store, "watch/gold/mean", "audited, by the auditor", marks=True)
    return curves(
        "reward",
        "Reward",
        [curve, gold],
        y="nats",
        sentence=f"{_tenths(store, means)} The band is the 95 % interval of the mean over the groups of a batch.",
    )


def _tenths(store: RunStore, means: Sequence[float]) -> str:
    found = store.object("summary.json").get("reward")
    if isinstance(found, Mapping) and found.get("relative"):
        return "Rewards compare answers of one prompt, so their mean says nothing about progress."
    size = max(1, len(means) // 10)
    first, last = (sum(part) / size for part in (means[:size], means[-size:]))
    return (
        f"The judge's reward went from {first:.2f} to {last:.2f} nats, means of the first and the last tenth "
        f"of the steps."
    )


def heldout(changes: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Held-out scores before and after, by principle, with intervals."""
    import plotly.graph_objects as go

    if not changes:
        return None
    figure = go.Figure(layout=layout("share of answers", ""))
    for number, moment in enumerate(("before", "after")):
        colour = COLOURS[number]
        found: list[Interval] = [row[moment] for row in changes]
        figure.add_trace(
            go.Scatter(
                y=[n + 0.12 * (1 if number else -1) for n in range(len(changes))],
                x=[round(one.value, 4) for one in found],
                error_x=_error_bars(found, colour),
                mode="markers",
                name=moment,
                marker={"size": 10, "color": colour, "symbol": SYMBOLS[number]},
            )
        )
    names = [_shown(row["name"]) for row in changes]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5])
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_layout(height=max(HEIGHT * 2 // 3, 110 + 42 * len(names)))
    rows = [[r["name"], f"{r['prompts']:,}", str(r["before"]), str(r["after"]), _signed(r["change"])] for r in changes]
    whole = changes[-1]
    return Chart(
        name="heldout",
        title="Held-out prompts, before and after",
        sentence=f"{whole['name']}: {whole['before'].value:.3f} before, {whole['after'].value:.3f} after, change "
        f"{_signed(whole['change'])}. Intervals are 95 % over the prompts; those of the change are paired.",
        figure=figure,
        columns=["principle", "prompts", "before", "after", "change"],
        rows=rows,
    )


def principles(store: RunStore) -> Chart | None:
    """The judge's mean probability by principle over the steps, where answers are judged one by one."""
    rows = store.rows(
        f"SELECT l.principle_id AS principle, g.step AS step, avg({PROBABILITY}) AS p FROM labels l JOIN "
        "(SELECT ordinal, attempt, max(step) AS step FROM rollouts WHERE step IS NOT NULL GROUP BY ALL) g "
        "USING (ordinal, attempt) WHERE l.valid AND l.margin IS NOT NULL AND l.task != 'pairwise' GROUP BY ALL "
        "ORDER BY principle, step"
    )
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        steps, values = found.setdefault(row["principle"] or "", ([], []))
        steps.append(row["step"])
        values.append(row["p"])
    drawn = [Curve(name=name, steps=steps, values=values) for name, (steps, values) in found.items()]
    return curves("principles", "Principles in training, by the judge", drawn, y="probability of yes")


def gold(store: RunStore) -> Chart | None:
    """The judge and the auditor on the same answers, and their agreement."""
    names = {"watch/agreement/mean": "pairs ordered alike", "watch/correlation/mean": "correlation"}
    drawn = [series(store, name, label, marks=True) for name, label in names.items()]
    return curves("agreement", "Agreement of judge and auditor", drawn, y="")


def gold_principles(store: RunStore) -> Chart | None:
    """Share of audited answers that keep each principle, by the auditor."""
    names = [
        row["name"]
        for row in store.rows(
            "SELECT DISTINCT name FROM metrics WHERE name LIKE 'watch/gold\\_%/share' ESCAPE '\\' ORDER BY name"
        )
    ]
    drawn = [series(store, name, name[len("watch/gold_") : -len("/share")], marks=True) for name in names]
    return curves("auditor", "Principles in training, by the auditor", drawn, y="share of audited answers", share=True)


def staleness(store: RunStore) -> Chart | None:
    """Steps between writing and training."""
    names = {
        "batch/staleness/max": "largest of the batch",
        "batch/staleness/mean": "mean over groups of their oldest version",
    }
    drawn = [series(store, n, label) for n, label in names.items()]
    told = None
    if drawn[0].values:
        most = max(drawn[0].values)
        times, steps = drawn[0].values.count(most), len(drawn[0].values)
        told = f"At most {most:g}, in {times:,} of {steps:,} steps."
    return curves("staleness", "Staleness", drawn, y="steps", zero=True, sentence=told)


def lanes(store: RunStore) -> Chart | None:
    """Busy share of the lanes, up to each step."""
    drawn = [series(store, f"overlap/busy/{lane}", lane) for lane in LANES]
    return curves("lanes", "Lanes: busy share of the time so far", drawn, y="", share=True)


def timeline(path: Path) -> Chart | None:
    """What every worker did in the last seconds of the trace."""
    import plotly.graph_objects as go

    spans = list(_spans(path / "trace.json"))[-TIMELINE_SPANS:]
    if not spans:
        return None
    start = min(span["ts"] for span in spans)
    workers = sorted({span["worker"] for span in spans})
    figure = go.Figure(layout=layout("seconds", ""))
    kinds = [lane for lane in (*LANES, "publish") if any(span["cat"] == lane for span in spans)]
    rows = []
    for number, lane in enumerate(kinds):
        xs: list[float | None] = []
        ys: list[str | None] = []
        total: dict[str, float] = {}
        for span in (one for one in spans if one["cat"] == lane):
            begin, seconds = (span["ts"] - start) / 1e6, span["dur"] / 1e6
            xs += [round(begin, 3), round(begin + seconds, 3), None]
            ys += [_shown(span["worker"]), _shown(span["worker"]), None]
            total[span["worker"]] = total.get(span["worker"], 0.0) + seconds
        colour = COLOURS[number % len(COLOURS)]
        figure.add_trace(go.Scatter(x=xs, y=ys, mode="lines", line={"width": 14, "color": colour}, name=lane))
        rows += [[lane, worker, f"{seconds:.1f}"] for worker, seconds in sorted(total.items())]
    end = max(span["ts"] + span["dur"] for span in spans)
    marks = [mark for mark in _marks(path / "trace.json") if start <= mark["ts"] <= end][-TIMELINE_MARKS:]
    if marks:
        figure.add_trace(
            go.Scatter(
                x=[round((mark["ts"] - start) / 1e6, 3) for mark in marks],
                y=[_shown(mark["worker"]) for mark in marks],
                text=[_shown(mark["name"]) for mark in marks],
                mode="markers",
                marker={"size": 11, "symbol": "diamond", "color": COLOURS[len(kinds) % len(COLOURS)]},
                name="events",
            )
        )
        rows += [["event", mark["worker"], f"{mark['name']} at {(mark['ts'] - start) / 1e6:.1f}"] for mark in marks]
    figure.update_layout(height=110 + 34 * len({*workers, *(mark["worker"] for mark in marks)}))
    return Chart(
        name="timeline",
        title="Timeline of the workers",
        sentence=f"The last {(end - start) / 1e6:.0f} seconds: what every worker did, by lane"
        + (", and resizes, faults and losses as diamonds." if marks else "."),
        figure=figure,
        columns=["lane", "worker", "seconds"],
        rows=rows,
    )


def caches(store: RunStore) -> Chart | None:
    """Share of questions and tokens that caches saved, and labels without a number."""
    names = {
        "label/cache_hit/share": "questions answered by the cache",
        "label/prefix_hit/share": "judge tokens from the prefix cache",
        "label/invalid/share": "labels without a number",
    }
    drawn = [series(store, name, label) for name, label in names.items()]
    return curves("caches", "What the caches saved since the start", drawn, y="", share=True)


def position(store: RunStore) -> Chart | None:
    """How much the answer shown first is favoured, by principle; comparisons only."""
    rows = store.rows(
        "SELECT principle_id AS principle, avg(position_offset) AS offset, avg(consistent::INT) AS same FROM labels "
        "WHERE position_offset IS NOT NULL GROUP BY ALL ORDER BY abs(avg(position_offset)) DESC"
    )
    worst = rows[0] if rows else None
    return bars(
        "position",
        "Position bias of the judge",
        [row["principle"] or "" for row in rows],
        {"nats in favour of the first": [row["offset"] for row in rows]},
        x="nats",
        sentence=f"Largest under {worst['principle']}: {worst['offset']:+.2f} nats for the answer shown first; both "
        f"orders favour the same answer in {worst['same'] or 0:.0%}."
        if worst
        else "",
    )


def calibration(store: RunStore) -> Chart | None:
    """The judge's probabilities against the auditor's verdicts."""
    margins, targets, prompts = audited_margins(store)
    if len(margins) < LEAST_AUDITED:
        return None
    bins = reliability(margins, targets, folded=False, clusters_N=prompts)
    figure = reliability_figure({"judge": bins}, folded=False)
    figure.update_layout(layout("probability the judge gives", "share that the auditor confirms"))
    rows = [[f"{one.claimed:.3f}", str(one.true), f"{one.mass:.1%}"] for one in bins]
    worst = max(bins, key=lambda one: abs(one.claimed - one.true.value) * one.mass)
    error = sum(abs(one.claimed - one.true.value) * one.mass for one in bins)
    told = (
        f"Expected calibration error {error:.3f}. Furthest off: where the judge claims {worst.claimed:.0%}, the "
        f"auditor says "
        f"yes in {worst.true.value:.0%}."
    )
    return Chart(
        name="calibration",
        title="Reliability of the judge",
        sentence=f"{told} Below the diagonal it says yes too surely, above it no.",
        figure=figure,
        columns=["claimed", "confirmed", "share of labels"],
        rows=rows,
    )


def drift(store: RunStore) -> dict[str, Callable[[], Chart | None]]:
    """How far the policy is from its start, and what changes in its answers."""
    one, per_token = series, "nats per token"
    entropy = "learn/entropy/mean"
    apart = {"learn/reference_log_ratio/mean": "mean log-ratio", "learn/kl_reference/mean": "k3 estimate"}
    lengths = {"learn/response_length/mean": "mean", "learn/response_length/max": "longest"}
    weights = {"learn/ess/mean": "effective sample share", "learn/importance_clipped/share": "tokens clipped"}
    return {
        "kl": lambda: curves(
            "kl",
            "Distance to the reference: two estimates of the KL divergence (one token may dominate k3)",
            [one(store, n, told) for n, told in apart.items()],
            y=per_token,
        ),
        "entropy": lambda: curves("entropy", "Entropy of the policy", [one(store, entropy, "entropy")], y=per_token),
        "length": lambda: curves(
            "length",
            "Length of the answers",
            [one(store, n, told) for n, told in lengths.items()],
            y="tokens",
            zero=True,
        ),
        "importance": lambda: _importance([one(store, n, told) for n, told in weights.items()]),
    }


def _importance(drawn: Sequence[Curve]) -> Chart | None:
    """None where nothing is corrected: a sample share of exactly 1 at every step says nothing about staleness."""
    if drawn[0].values and all(value == 1 for value in drawn[0].values):
        return None
    return curves("importance", "Importance correction", drawn, y="", share=True)


def _spans(path: Path) -> Iterator[dict[str, Any]]:
    """Spans of a trace with their workers; none where it cannot be read."""
    names: dict[str, str] = {}
    for event in _events(path):
        if event.get("ph") == "M" and event.get("name") == "thread_name":
            arguments = event.get("args")
            names[str(event.get("tid"))] = str(arguments.get("name", "")) if isinstance(arguments, dict) else ""
        elif event.get("ph") == "X" and None not in (
            start := read.number(event.get("ts")),
            length := read.number(event.get("dur")),
        ):
            worker, lane = names.get(str(event.get("tid")), "?"), str(event.get("cat", ""))
            yield {"ts": start, "dur": length, "worker": worker, "cat": lane}


def _marks(path: Path) -> Iterator[dict[str, Any]]:
    """Resizes, faults and the like of a trace, with the worker that they concern or `run`; publications are spans."""
    names: dict[str, str] = {}
    for event in _events(path):
        if event.get("ph") == "M" and event.get("name") == "thread_name" and isinstance(event.get("args"), dict):
            names[str(event.get("tid"))] = str(event["args"].get("name", ""))
        elif event.get("ph") == "i" and (moment := read.number(event.get("ts"))) is not None:
            name = str(event.get("name", ""))
            if not name.endswith(" attested"):
                yield {"ts": moment, "worker": names.get(str(event.get("tid")), "run"), "name": name}


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of the end of a trace, which a running process has not closed yet."""
    try:
        with path.open("rb") as file:
            names = [line for line in file if b"thread_name" in line] if path.stat().st_size > TRACE_BYTES else []
            file.seek(max(0, path.stat().st_size - TRACE_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in (*names, *lines):
        try:
            found = json.loads(line.strip().rstrip(b","))
        except (ValueError, RecursionError):
            continue  # the brackets, and a line that was cut
        if isinstance(found, dict):
            yield found


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
