"""What the report and the live page say of a run, as plain values: `facts(store)`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from solon.events import EVENTS, Severity
from solon.feedback.quality.agreement import kappa
from solon.feedback.quality.intervals import Floats, Interval, Statistic, mean, wilson
from solon.files.overrides import flat_items
from solon.report.run_answers import Row, telling_words
from solon.report.store import RunStore
from solon.report.values import number

MEAN = "mean of the principles"
PROBABILITY = "1 / (1 + exp(-greatest(least(l.margin, 500), -500)))"
"""Of yes, or of the first answer, by a label `l`, in SQL."""
RESAMPLES = 10_000
SEED = 0
"""Of the bootstrap: a report says the same each time."""


def change_by_principle(pairs: Sequence[Row]) -> list[dict[str, Any]]:
    """For every principle, and for the mean of the principles, as in summary.json: held-out score before, after, and
    the change, each with its 95 % interval over the prompts (bootstrap, paired). The largest change first, the mean
    last."""
    names = sorted({name for row in pairs for name in row["scores_before"].keys() & row["scores_after"].keys()})
    if not names:
        return []
    before_PK, after_PK = (_scores(pairs, moment, names) for moment in ("scores_before", "scores_after"))
    found = [_change(name, before_PK[:, [k]], after_PK[:, [k]]) for k, name in enumerate(names)]
    found.sort(key=lambda row: -row["change"].value)
    return [*found, *([_change(MEAN, before_PK, after_PK)] if len(names) > 1 else [])]


def _scores(pairs: Sequence[Row], moment: str, names: Sequence[str]) -> Floats:
    """Of P prompts under K principles; NaN where a principle has no score both before and after."""
    both = [row["scores_before"].keys() & row["scores_after"].keys() for row in pairs]
    return np.array(
        [[row[moment][n] if n in known else np.nan for n in names] for row, known in zip(pairs, both, strict=True)]
    )


def _change(name: str, before_PK: Floats, after_PK: Floats) -> dict[str, Any]:
    known_P = np.isfinite(before_PK).any(axis=1)
    before, after = (_mean_of_means(values_PK[known_P]) for values_PK in (before_PK, after_PK))
    intervals = [_interval(one) for one in (before, after, after - before)]
    if before_PK.shape[1] == 1:  # resampling finds too little uncertainty in shares near 0 or 1
        for place, values_PK in enumerate((before_PK, after_PK)):
            values = values_PK[known_P, 0]
            if np.isin(values, (0.0, 1.0)).all():
                intervals[place] = wilson(float(values.mean()), len(values))
        intervals[2] = _never_certain(intervals[2])
    return {
        "name": name,
        "prompts": int(known_P.sum()),
        **dict(zip(("before", "after", "change"), intervals, strict=True)),
    }


def _never_certain(change: Interval) -> Interval:
    """Where every prompt changed alike, resampling finds no uncertainty: a share of 1 that is seen n times may be as
    low as 0.025 ^ (1 / n)."""
    if change.low != change.high or abs(change.value) not in (0.0, 1.0) or not change.pairs:
        return change
    room = 1 - 0.025 ** (1 / change.pairs)
    return replace(change, low=max(-1.0, change.value - room), high=min(1.0, change.value + room))


def _interval(statistic: Statistic, clusters: Sequence[Any] | None = None) -> Interval:
    return statistic.interval(np.random.default_rng(SEED), resamples=RESAMPLES, clusters_N=clusters)


def _mean_of_means(values_PK: Floats) -> Statistic:
    """The mean over principles of the mean over the prompts to which each applies."""
    known_PK = np.isfinite(values_PK)
    filled_PK = np.where(known_PK, values_PK, 0.0)

    def of_weights(weights_RP: Floats) -> Floats:
        with np.errstate(invalid="ignore"):  # a resample without any prompt of a principle: NaN, which is left out
            found: Floats = ((weights_RP @ filled_PK) / (weights_RP @ known_PK)).mean(axis=1)
        return found

    return Statistic(len(values_PK), of_weights)


def before_alone(store: RunStore) -> list[tuple[str, str]]:
    """Held-out scores before training, of a run that has none after it."""
    found: dict[str, list[float]] = {}
    for row in store.rows("SELECT scores FROM heldout WHERE moment = 'before'"):
        for name, value in json.loads(row["scores"]).items():
            found.setdefault(name, []).append(value)
    return [(name, f"{_interval(mean(values))}, {len(values)} prompts") for name, values in sorted(found.items())]


def rose_most(changes: Sequence[Mapping[str, Any]], pairs: Sequence[Row]) -> str:
    """Which principle rose most, and in what words it shows. Empty without held-out answers."""
    principles = [row for row in changes if row["name"] != MEAN]
    if not principles:
        return ""
    most = principles[0]
    change: Interval = most["change"]
    if change.value <= 0:
        return "No principle rose."
    why = _words_told(telling_words(pairs, most["name"]))
    certain = "" if change.low > 0 else ", which may be chance"
    if len(principles) > 1 and certain == "":
        second = principles[1]
        apart = _apart(pairs, most["name"], second["name"])
        if not apart.low > 0:
            certain = f", not distinguishable from {second['name']} ({second['change'].value:+.3f})"
    return (
        f"{most['name']} rose most: {most['before'].value:.3f} → {most['after'].value:.3f}, by {change.value:+.3f} "
        f"[{change.low:+.3f}, {change.high:+.3f}]{certain}.{why}"
    )


def _apart(pairs: Sequence[Row], one: str, other: str) -> Interval:
    """How much more one principle rose than another, over the same resampled prompts."""
    changes_PK = _scores(pairs, "scores_after", [one, other]) - _scores(pairs, "scores_before", [one, other])
    return _interval(_mean_of_means(changes_PK[:, [0]]) - _mean_of_means(changes_PK[:, [1]]))


def rose_in_training(store: RunStore) -> str:
    """The same where the held-out prompts were not answered after training: the judge's mean probability in the first
    and the last tenth of the steps. Empty for comparisons, which give a principle no level, and for under two steps."""
    rows = store.rows(
        "WITH g AS (SELECT ordinal, attempt, max(step) AS step FROM rollouts WHERE step IS NOT NULL GROUP BY ALL), "
        "b AS (SELECT min(step) AS low, max(step) AS high, greatest((max(step) - min(step)) / 10, 0.5) AS tenth "
        "FROM g) "
        f"SELECT l.principle_id AS principle, g.step < b.low + b.tenth AS is_first, avg({PROBABILITY}) AS p, "
        "count(*) AS n FROM labels l JOIN g USING (ordinal, attempt), b WHERE l.valid AND l.margin IS NOT NULL "
        "AND l.task != 'pairwise' AND b.high > b.low "
        "AND (g.step < b.low + b.tenth OR g.step > b.high - b.tenth) GROUP BY ALL"
    )
    found: dict[str, dict[bool, float]] = {}
    for row in rows:
        found.setdefault(row["principle"] or "", {})[row["is_first"]] = row["p"]
    both = {name: (p[True], p[False]) for name, p in found.items() if len(p) == 2}
    if not both:
        return ""
    name = max(both, key=lambda principle: both[principle][1] - both[principle][0])
    first, last = both[name]
    if last <= first:
        return "By the judge, no principle rose in training."
    pairs = _first_and_last(store, name)
    told = _words_told(telling_words(pairs, name))
    return (
        f"By the judge, {name} rose most in training: {first:.3f} → {last:.3f}, mean probability of yes in the first "
        f"and the last tenth of the steps.{told}"
    )


def _first_and_last(store: RunStore, principle: str) -> list[Row]:
    """Answers to which a principle applies from the first and the last tenth of the steps, in pairs as of held-out
    ones."""
    texts: dict[str, list[str]] = {}
    bounds = (
        "(SELECT min(step) AS low, max(step) AS high, greatest((max(step) - min(step)) / 10, 0.5) AS tenth "
        "FROM rollouts)"
    )
    for end, within in (("before", "r.step < b.low + b.tenth"), ("after", "r.step > b.high - b.tenth")):
        rows = store.rows(
            f'SELECT DISTINCT r.ordinal, r.attempt, r."index", r.step, r.text FROM {bounds} b, rollouts r JOIN '
            f"labels l ON "
            'l.ordinal = r.ordinal AND l.attempt = r.attempt AND list_contains(l.rollouts, r."index") '
            f"WHERE l.principle_id = ? AND r.step IS NOT NULL AND {within} ORDER BY r.step, r.ordinal LIMIT 300",
            [principle],
        )
        texts[end] = [row["text"] for row in rows]
    scores = {"scores_before": {principle: 0.0}, "scores_after": {principle: 0.0}}
    return [{"before": a, "after": b, **scores} for a, b in zip(texts["before"], texts["after"], strict=False)]


def _words_told(words: Sequence[tuple[str, float, float]]) -> str:
    told = "; ".join(f"“{word}” in {before:.0%} → {after:.0%}" for word, before, after in words)
    return f" Words that changed most in answers to these prompts, whatever the cause: {told} of them." if told else ""


def cost(store: RunStore, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what the run used."""
    labels = store.rows(
        "SELECT count(*) AS labels, sum(questions) AS questions, sum(cache_hits) AS hits, "
        "sum(prompt_tokens) AS prompt, sum(cached_tokens) AS cached, sum(output_tokens) AS output, sum(usd) AS usd "
        "FROM labels"
    )[0]
    rollouts = store.rows("SELECT count(*) AS answers, sum(tokens) AS tokens FROM rollouts")[0]
    questions, read, written = (int(labels[key] or 0) for key in ("questions", "prompt", "output"))
    hits, cached = _share(labels["hits"], questions), _share(labels["cached"], read)
    people = store.value("SELECT count(DISTINCT parent_label_id) FROM human") or 0
    lost = store.value("SELECT count(*) FROM events WHERE event = 'worker_lost'") or 0
    return [
        ("time of training", _duration(summary.get("wall_s"))),
        ("answers generated", f"{rollouts['answers']:,} with {int(rollouts['tokens'] or 0):,} tokens"),
        ("labels by AI", f"{labels['labels']:,}"),
        ("labels by people", f"{people:,}"),
        ("questions to the judge", f"{questions:,}, of which a cache answered {hits}"),
        ("tokens of the judge", f"{read:,} read ({cached} from its prefix cache), {written:,} written"),
        ("money", f"{labels['usd'] or 0:,.4f} US dollars, for endpoints with prices"),
        ("workers lost", f"{lost:,}"),
    ]


def faults(store: RunStore) -> list[dict[str, Any]]:
    """Warnings and faults by kind: how often, first and last time, what they cost."""
    rows = store.rows(
        "SELECT event, severity, count(*) AS times, min(time) AS first, max(time) AS last, any_value(fields) AS fields "
        "FROM events WHERE severity != 'info' GROUP BY ALL ORDER BY severity, times DESC"
    )
    down = store.value(
        "SELECT sum(TRY_CAST(json_extract(fields, '$.downtime_s') AS DOUBLE)) FROM events "
        "WHERE event = 'worker_recovered'"
    )
    again = store.value(
        "SELECT sum(TRY_CAST(json_extract(fields, '$.steps') AS DOUBLE)) FROM events "
        "WHERE event = 'learner_trained_again'"
    )
    costs = {
        "worker_lost": f"{_duration(down)} without a worker" if down else "",
        "learner_trained_again": f"{again:.0f} steps trained again" if again else "",
    }
    for row in rows:
        kind = EVENTS.get(row["event"])
        row["meaning"] = kind.meaning if kind else ""
        row["cost"] = costs.get(row["event"], "")
        row["example"] = json.loads(row.pop("fields"))
    return rows


def pool_changes(store: RunStore) -> list[tuple[float | None, str, str, str]]:
    """Changes of the pools, the last 50: when, which worker or pool, what, and why."""
    rows = store.rows(
        "SELECT time, event, fields FROM events WHERE event IN ('resized', 'lane_joined', 'lane_left', "
        "'lane_not_added', 'worker_draining') ORDER BY time DESC LIMIT 50"
    )
    found = []
    for row in reversed(rows):
        fields = json.loads(row["fields"])
        what = row["event"].replace("_", " ")
        if row["event"] == "resized":
            what = f"{fields.get('before')} to {fields.get('after')} workers"
        why = str(fields.get("reason") or fields.get("cause") or "")
        found.append((row["time"], str(fields.get("pool") or fields.get("worker") or ""), what, why))
    return found


def fault_count(store: RunStore) -> int:
    """Events that report a failure."""
    return int(store.value("SELECT count(*) FROM events WHERE severity = ?", [Severity.FAULT.value]) or 0)


def judge_quality(store: RunStore) -> list[dict[str, Any]]:
    """Figures of the judge by principle: labels, valid ones, certainty, agreement of both orders, position bias."""
    return store.rows(
        "SELECT principle_id AS principle, any_value(task) AS task, count(*) AS labels, avg(valid::INT) AS valid, "
        "avg(abs(margin)) AS certainty, avg(margin) AS margin, avg(consistent::INT) AS consistent, "
        "avg(position_offset) AS position, sum(cache_hits) / greatest(sum(questions), 1) AS cached "
        "FROM labels WHERE task IS NOT NULL GROUP BY principle_id ORDER BY principle_id"
    )


def agreement(store: RunStore) -> list[dict[str, Any]]:
    """Judge against auditor, by principle, on audited answers that were judged one by one."""
    found: dict[str, list[tuple[float, float]]] = {}
    prompts: dict[str, list[str]] = {}
    for row in _audited(store):
        margins, gold = json.loads(row["margins"]), json.loads(row["gold_margins"])
        for name in margins.keys() & gold.keys():
            found.setdefault(name, []).append((margins[name], gold[name]))
            prompts.setdefault(name, []).append(row["prompt"])
    rows = []
    for name, pairs in sorted(found.items()):
        sides = [[float(margin > 0) for margin in column] for column in zip(*pairs, strict=True)]
        same = _interval(mean([float(one == other) for one, other in zip(*sides, strict=True)]), prompts[name])
        beyond = _interval(kappa(*sides), prompts[name])
        liked = [gold for margin, gold in pairs if margin > 0]
        refused = [gold for margin, gold in pairs if margin <= 0]
        wrong = {"wrong": sum(gold <= 0 for gold in liked), "missed": sum(gold > 0 for gold in refused)}
        counts = {"answers": len(pairs), "liked": len(liked), "refused": len(refused)}
        rows.append({"principle": name, "agreement": same, "kappa": beyond, **counts, **wrong})
    # Agreement of a judge that always gives one answer is high where that answer is common: kappa first.
    return sorted(
        rows, key=lambda row: (row["kappa"].value if math.isfinite(row["kappa"].value) else 1.0, row["principle"])
    )


def audited_margins(store: RunStore) -> tuple[list[float], list[float], list[str]]:
    """The judge's margins, 1 where the auditor says yes, and the prompts: for the reliability diagram."""
    margins, targets, prompts = [], [], []
    for row in _audited(store):
        judge, gold = json.loads(row["margins"]), json.loads(row["gold_margins"])
        for name in judge.keys() & gold.keys():
            margins.append(judge[name])
            targets.append(float(gold[name] > 0))
            prompts.append(row["prompt"])
    return margins, targets, prompts


def _audited(store: RunStore) -> list[dict[str, Any]]:
    """Audits with the prompt of each, or its group where the answers are not read."""
    return store.rows(
        "SELECT a.margins, a.gold_margins, coalesce(any_value(r.prompt_id), a.ordinal::VARCHAR) AS prompt FROM "
        "audits a "
        'LEFT JOIN rollouts r USING (ordinal, attempt) GROUP BY a.ordinal, a.attempt, a."index", a.margins, '
        'a.gold_margins ORDER BY a.ordinal, a.attempt, a."index"'
    )


def changed_settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value, default: of every setting that differs from its default. defaults: flat, by dotted key."""
    rows = []
    for key, value in flat_items(config):
        if key in defaults and defaults[key] != value:
            rows.append((key, _json(value), _json(defaults[key])))
        elif key not in defaults and key.split(".")[0] not in RECORDED and value not in (None, "", [], {}):
            rows.append((key, _json(value), "none"))
    return rows


RECORDED = ("hash", "constitution_hash", "inputs", "solon", "started", "origin")
"""Keys of config.json that are no settings."""


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} …"


def _share(part: float | None, whole: float | None) -> str:
    return f"{(part or 0) / whole:.0%}" if whole else "none"


def _duration(seconds: object) -> str:
    seconds = number(seconds)
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s"
