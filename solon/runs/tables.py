"""Rows of `rollouts/*.parquet` and `labels/*.parquet`, and the types of their columns."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from solon.records import Feedback, Group, Label

LABEL_SCHEMA = 3

# Named, not inferred: a part in which every margin is null must read together with all others.
TYPES: dict[str, dict[str, str]] = {
    "rollouts": {
        "ordinal": "int64",
        "attempt": "int64",
        "index": "int64",
        "prompt_id": "string",
        "prompt": "string",
        "tags": "list<string>",
        "text": "string",
        "token_ids": "list<int32>",
        "logprobs": "list<float32>",
        "versions": "list<int32>",
        "version_tokens": "list<int32>",
        "finish_reason": "string",
        "thought": "string",
        "is_cut": "bool",
        "created_ns": "int64",
        "reward": "float64",
        "advantage": "float64",
        "step": "int64",
    },
    "labels": {
        "label_id": "string",
        "schema_version": "int64",
        "created_ns": "int64",
        "ordinal": "int64",
        "attempt": "int64",
        "task": "string",
        "principle_id": "string",
        "question_id": "string",
        "rollouts": "list<int32>",
        "status": "string",
        "valid": "bool",
        "margin": "float64",
        "raw_margin": "float64",
        "consistent": "bool",
        "position_offset": "float64",
        "mass": "float64",
        "reward": "float64",
        "prompt_digests": "list<string>",
        "prompt_tokens": "int64",
        "cached_tokens": "int64",
        "output_tokens": "int64",
        "questions": "int64",
        "cache_hits": "int64",
        "judge": "string",
        "level": "int64",
        "source": "string",
        "propensity": "float64",
        "usd": "float64",
        "detail": "string",
        "critique_tokens": "int64",
        "thought_tokens": "int64",
        "weight": "float64",
    },
}
TYPES["held"] = TYPES["rollouts"] | {"prompt_token_ids": "list<int32>"}
"""Columns by table; other columns of a row (provenance) are text."""


def arrow_table(table: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a `pyarrow.Table` with the same types in every part."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=arrow_schema(table, list(rows[0])))


def arrow_schema(table: str, columns: Sequence[str]) -> Any:
    """The `pyarrow.Schema` of these columns of a table, each once."""
    import pyarrow as pa

    def arrow_type(name: str) -> Any:
        inner = name.removeprefix("list<").removesuffix(">")
        return pa.list_(pa.type_for_alias(inner)) if inner != name else pa.type_for_alias(name)

    types = TYPES[table]
    return pa.schema([(column, arrow_type(types.get(column, "string"))) for column in dict.fromkeys(columns)])


def rollout_rows(group: Group) -> list[dict[str, Any]]:
    """One row per answer, token ids and log-probs as the engine gave them."""
    messages = json.dumps([{"role": m.role, "content": m.content} for m in group.prompt.messages])
    return [
        {
            "ordinal": group.ordinal,
            "attempt": group.attempt,
            "index": index,
            "prompt_id": group.prompt.prompt_id,
            "prompt": messages,
            "tags": list(group.prompt.tags),
            "text": rollout.text,
            "thought": rollout.thought,
            "is_cut": rollout.is_cut,
            "shown": json.dumps([{"role": m.role, "content": m.content} for m in group.shown]) if group.shown else "",
            "token_ids": rollout.token_ids.tolist(),
            "logprobs": rollout.logprobs.tolist(),
            "versions": [version for version, _ in rollout.segments],
            "version_tokens": [count for _, count in rollout.segments],
            "finish_reason": rollout.finish_reason,
            "created_ns": time.time_ns(),
        }
        for index, rollout in enumerate(group.rollouts)
    ]


def label_id(run_id: str, subject: str, label: Label) -> str:
    """The id of a label: 26 hexadecimal digits, the same for the same run, subject, rollouts and question.

    subject: the labelled item, a row of a data set or one attempt at a group."""
    parts = (run_id, subject, label.task, label.principle_id, label.question_id, *label.rollouts)
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()[:26]


def label_rows(feedback: Feedback, provenance: Mapping[str, Any], *, subject: str = "") -> list[dict[str, Any]]:
    """One row per label. `margin` is null unless the label is valid; `reward` is that of the first rollout.

    subject: replaces ordinal and attempt in `label_id`.
    """
    rows = []
    subject = subject or f"{feedback.ordinal}:{feedback.attempt}"
    run_id = str(provenance.get("run_id", ""))
    for label in feedback.labels:
        verdict = label.verdict
        rows.append(
            {
                "label_id": label_id(run_id, subject, label),
                "schema_version": LABEL_SCHEMA,
                "created_ns": time.time_ns(),
                "ordinal": feedback.ordinal,
                "attempt": feedback.attempt,
                "task": label.task,
                "principle_id": label.principle_id,
                "question_id": label.question_id,
                "rollouts": list(label.rollouts),
                "status": str(verdict.status),
                "valid": verdict.status.valid,
                "margin": verdict.margin,
                "raw_margin": verdict.raw_margin,
                "consistent": verdict.consistent,
                "position_offset": verdict.position_offset,
                "mass": verdict.mass,
                "reward": feedback.rewards_G[label.rollouts[0]],
                "prompt_digests": list(verdict.prompt_digests),
                "prompt_tokens": verdict.prompt_tokens,
                "cached_tokens": verdict.cached_tokens,
                "output_tokens": verdict.output_tokens,
                "questions": verdict.questions,
                "cache_hits": verdict.cache_hits,
                "judge": verdict.judge,
                "level": verdict.level,
                "source": verdict.source,
                "propensity": verdict.propensity,
                "usd": verdict.usd,
                "detail": verdict.detail,
                **provenance,
            }
        )
    return rows


def audit_rows(group: Group, rollouts: Sequence[int], proxy: Feedback, gold: Feedback) -> list[dict[str, Any]]:
    """One row per audited rollout, for `audits.jsonl`. gold: feedback on these rollouts alone, in this order."""
    return [
        {
            "time": time.time(),
            "ordinal": group.ordinal,
            "attempt": group.attempt,
            "index": index,
            "reward": proxy.rewards_G[index],
            "gold": gold.rewards_G[place],
            "margins": _margins(proxy, index),
            "gold_margins": _margins(gold, place),
        }
        for place, index in enumerate(rollouts)
    ]


def _margins(feedback: Feedback, index: int) -> dict[str, float]:
    """Valid margins of the labels about this rollout alone, by principle; the mean of several questions."""
    found: dict[str, list[float]] = {}
    for label in feedback.labels:
        if tuple(label.rollouts) == (index,) and label.verdict.margin is not None:
            found.setdefault(label.principle_id, []).append(label.verdict.margin)
    return {principle: sum(margins) / len(margins) for principle, margins in found.items()}
