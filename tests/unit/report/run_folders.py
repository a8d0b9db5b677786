"""Makes the files of a run, as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from solon.files.json_text import json_text
from solon.report.store import RunStore
from solon.runs.tables import arrow_table

PRINCIPLES = ("polite", "brief")


def make_run(path: Path, *, steps: int = 4, texts: Sequence[str] = (), status: str = "completed") -> Path:
    """A run of `steps` steps, each with two groups of two answers, whose texts are taken in turn from `texts`."""
    texts = texts or ("good day", "no", "gladly , it is red", "it is red")
    path.mkdir(parents=True, exist_ok=True)
    write(path / "config.json", {"policy": "p", "judge": "j", "prompts": "t", "constitution": "c", "steps": steps})
    end = {"cause": "all steps are trained", "evidence": None, "remedy": None, "resume": None}
    write(path / "summary.json", {"status": status, "steps": steps, "wall_s": 83.0, "end": end, "warnings": []})
    lines(path / "metrics.jsonl", [metrics(step) for step in range(steps)])
    lines(
        path / "events.jsonl",
        [
            {"time": 1.0, "event": "started", "config_hash": "0", "step": 0},
            {"time": 2.0, "event": "worker_lost", "worker": "judge-0", "cause": "killed"},
            {"time": 4.0, "event": "worker_recovered", "worker": "judge-0", "downtime_s": 2.0},
        ],
    )
    lines(path / "audits.jsonl", [audit(number, number % 3 == 0) for number in range(steps * 2)])
    for moment, score in (("before", 0.0), ("after", 1.0)):
        write(path / f"heldout-{moment}.json", [heldout(n, texts, moment, score) for n in range(6)])
    rollouts, labels = [], []
    for ordinal in range(steps * 2):
        for index in (0, 1):
            text = texts[(ordinal * 2 + index) % len(texts)]
            rollouts.append(rollout(ordinal, index, text, step=ordinal // 2))
            labels += [label(ordinal, index, principle, text) for principle in PRINCIPLES]
    part(path, "rollouts", rollouts)
    part(path, "labels", labels)
    return path


def metrics(step: int) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "step": step,
        "time": 10.0 + step,
        "batch/ordinals": [0],
        "learn/reward/mean": 0.1 * step,
        "learn/kl_reference/mean": 0.01 * step,
        "learn/entropy/mean": 1.0,
        "learn/response_length/mean": 9.0,
        "batch/staleness/max": 1,
        "batch/staleness/mean": 0.5,
        "overlap/busy/learn": 0.5,
        "learn/odd/mean": None,
    }


def rollout(ordinal: int, index: int, text: str, *, step: int, attempt: int = 0) -> dict[str, Any]:
    """A row of rollouts."""
    return {
        "ordinal": ordinal,
        "attempt": attempt,
        "index": index,
        "prompt_id": f"p{ordinal}",
        "prompt": json.dumps([{"role": "user", "content": f"which colour? {text}"}]),
        "tags": ["question"],
        "text": text,
        "thought": "",
        "is_cut": False,
        "shown": "",
        "token_ids": [1, 2],
        "logprobs": [-0.5, -0.5],
        "versions": [step],
        "version_tokens": [2],
        "finish_reason": "stop",
        "created_ns": ordinal,
        "reward": float(ordinal - index),
        "advantage": 0.5,
        "step": step,
    }


def label(ordinal: int, index: int, principle: str, detail: str = "") -> dict[str, Any]:
    """A row of labels."""
    return {
        "label_id": f"{ordinal}x{index}{principle}",
        "schema_version": 3,
        "created_ns": ordinal,
        "ordinal": ordinal,
        "attempt": 0,
        "task": "pointwise",
        "principle_id": principle,
        "question_id": "",
        "rollouts": [index],
        "status": "ok",
        "valid": True,
        "margin": 2.0 - index * 3,
        "raw_margin": 1.5,
        "consistent": None,
        "position_offset": None,
        "mass": 0.99,
        "reward": 1.0,
        "prompt_digests": ["d"],
        "prompt_tokens": 10,
        "cached_tokens": 5,
        "output_tokens": 1,
        "questions": 1,
        "cache_hits": 0,
        "judge": "j",
        "level": 0,
        "source": "judge",
        "propensity": 1.0,
        "usd": 0.0,
        "detail": detail,
        "run_id": "r",
        "judge_id": "j",
        "model": "m",
    }


def audit(number: int, agrees: bool) -> dict[str, Any]:
    """A line of audits.jsonl: the judge likes the answer, the auditor may not."""
    return {
        "time": 1.0,
        "ordinal": number,
        "attempt": 0,
        "index": 0,
        "reward": 1.0 + number,
        "gold": 1.0 if agrees else -1.0,
        "margins": {"polite": 2.0},
        "gold_margins": {"polite": 1.0 if agrees else -1.0},
    }


def heldout(number: int, texts: Sequence[str], moment: str, score: float) -> dict[str, Any]:
    """A row of heldout-*.json."""
    return {
        "prompt_id": f"h{number}",
        "prompt": [{"role": "user", "content": "hello"}],
        "tags": ["request"],
        "answer": f"{moment} {texts[number % len(texts)]}",
        "scores": {"polite": score, "brief": 1.0},
        "score": (1.0 + score) / 2,
        "labels": [],
    }


def opened(run: Path) -> RunStore:
    """The tables of a run, all read."""
    store = RunStore(run)
    store.refresh()
    return store


def write(path: Path, value: Any) -> None:
    """A JSON file."""
    path.write_text(json_text(value), encoding="utf-8", errors="replace")


def lines(path: Path, values: Sequence[Any]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(f"{json_text(value)}\n" for value in values), encoding="utf-8", errors="replace")


def part(path: Path, table: str, rows: Sequence[dict[str, Any]], number: int = 0) -> None:
    """A Parquet part."""
    (path / table).mkdir(exist_ok=True)
    pq.write_table(arrow_table(table, rows), path / table / f"part-{number:06d}.parquet")
