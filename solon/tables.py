"""Rows of `rollouts/*.parquet` and `labels/*.parquet`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from solon.records import Feedback, Group

LABEL_SCHEMA = 1


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
            "token_ids": rollout.token_ids.tolist(),
            "logprobs": rollout.logprobs.tolist(),
            "versions": [version for version, _ in rollout.segments],
            "version_tokens": [count for _, count in rollout.segments],
            "finish_reason": rollout.finish_reason,
            "created_ns": time.time_ns(),
        }
        for index, rollout in enumerate(group.rollouts)
    ]


def label_rows(feedback: Feedback, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per label. `margin` is null unless the label is valid; `reward` is that of the first rollout."""
    rows = []
    for label in feedback.labels:
        subject = f"{feedback.ordinal}:{feedback.attempt}:{label.task}:{label.principle_id}:{label.rollouts}"
        run_id = provenance.get("run_id", "")
        rows.append(
            {
                "label_id": hashlib.sha256(f"{run_id}:{subject}".encode()).hexdigest()[:26],
                "schema_version": LABEL_SCHEMA,
                "created_ns": time.time_ns(),
                "ordinal": feedback.ordinal,
                "attempt": feedback.attempt,
                "task": label.task,
                "principle_id": label.principle_id,
                "rollouts": list(label.rollouts),
                "status": str(label.status),
                "valid": label.status.valid,
                "margin": label.margin,
                "position_offset": label.position_offset,
                "mass": label.mass,
                "reward": feedback.rewards_G[label.rollouts[0]],
                "prompt_digests": list(label.prompt_digests),
                "prompt_tokens": label.prompt_tokens,
                "cached_tokens": label.cached_tokens,
                "questions": label.questions,
                "cache_hits": label.cache_hits,
                **provenance,
            }
        )
    return rows
