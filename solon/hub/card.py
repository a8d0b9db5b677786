"""The model card of a policy: how it was trained, what came out, and what proves it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import solon
from solon.files.plain_text import visible
from solon.redaction import redacted
from solon.report.run_answers import heldout_pairs
from solon.report.run_facts import change_by_principle
from solon.report.store import RunStore

CERTIFICATE = "certificate.json"


def model_card(policy: Path, run: Path | None, *, base: str = "") -> str:
    """Markdown with the header that the hub reads. run: the directory of the run that trained it; None: not known.
    base: the model that it was made from, where that is a name on the hub."""
    config, summary = _object(run, "config.json"), _object(run, "summary.json")
    found = base or _hub_name(config.get("policy"))
    header = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [solon, rlaif]"]
    header += [f"base_model: {json.dumps(found)}"] if found else []
    lines = ["---", *header, "---", "", f"# {_plain(run.name if run else policy.name)}", ""]
    lines += [f"Made with Solon {solon.__version__}: reinforcement learning from AI feedback.", ""]
    lines += _training(config, summary)
    lines += _evaluation(run) if run else []
    lines += _certificate(policy)
    return "\n".join(lines).rstrip() + "\n"


def _training(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    if not config:
        return []
    feedback, learn, labels = _part(config, "feedback"), _part(config, "learn"), _part(summary, "labels")
    rows = {
        "started from": _name(config.get("policy")),
        "judge": _name(config.get("judge")),
        "method": learn.get("objective") or "ppo",
        "advantages": learn.get("advantages"),
        "feedback": feedback.get("task"),
        "steps": summary.get("steps", config.get("steps")),
        "AI labels": labels.get("total"),
        "seed": config.get("seed"),
        "constitution, sha256 of its content": config.get("constitution_hash"),
        "configuration, sha256": config.get("hash"),
    }
    table = [f"| {key} | {_plain(value)} |" for key, value in rows.items() if value not in (None, "")]
    return ["## Training", "", "| | |", "|---|---|", *table, ""]


def _evaluation(run: Path) -> list[str]:
    store = RunStore(run)
    try:
        store.refresh_small()
        rows = change_by_principle(heldout_pairs(store))
    finally:
        store.close()
    if not rows:
        return ["## Evaluation", "", "No held-out prompts were answered before and after training.", ""]
    table = [
        f"| {_plain(row['name'])} | {row['prompts']} | {row['before'].value:.3f} | {row['after']} | {row['change']} |"
        for row in rows
    ]
    head = ["| principle | prompts | before | after | change |", "|---|---|---|---|---|"]
    said = "Share of held-out answers that keep each principle, with 95 % intervals over prompts (bootstrap, paired)."
    return ["## Evaluation", "", said, "", *head, *table, ""]


def _certificate(policy: Path) -> list[str]:
    found = _object(policy, CERTIFICATE)
    if not found:
        return []
    text = json.dumps(found, indent=1, ensure_ascii=True)
    return ["## Certificate of the compression", "", "```json", redacted(text), "```", ""]


def _object(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None:
        return {}
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(value: object) -> str:
    """A model's name; of a path only its last part, which says nothing of the machine."""
    text = str(value or "")
    return _hub_name(text) or Path(text).name


def _hub_name(value: object) -> str:
    """`org/model`, else empty."""
    text = str(value or "")
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None
    return text if is_name and not Path(text).exists() else ""


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _plain(value: object) -> str:
    """A cell of a table: one line without markup."""
    text = html.escape(redacted(visible(str(value))), quote=False)
    return "".join(f"\\{c}" if c in "|[]`*_\\" else " " if c == "\n" else c for c in text)
