"""`solon revise`: a policy answers prompts, criticises its answers by a constitution, and revises them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solon.cli.names import resolver
from solon.constitution.constitution import Constitution
from solon.errors import InputError, RunFailedError
from solon.feedback.labelling.dataset import first_rows
from solon.files.overrides import settings_from
from solon.host.whole_directory import new_directory
from solon.revision.running import ReviseSettings, run_chains
from solon.revision.writing import write_chains


def run_revise(
    prompts: str,
    *,
    policy: str,
    constitution: str,
    out: Path,
    max_prompts: int,
    overrides: Sequence[str],
    as_json: bool,
) -> dict[str, Any]:
    """Writes demonstrations, preferences and transcripts into `out`. Raises InputError before an engine starts where
    possible."""
    from cluster.preflight.checks import check_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} exists and is not an empty folder, expected a new one; choose another")
    settings = settings_from(ReviseSettings, {}, overrides)
    path = resolver([prompts, policy, constitution], progress=not as_json)
    rules = Constitution.load(path(constitution))
    rows = first_rows(path(prompts), max_prompts, read=settings.data)
    model = path(policy)
    trusted = settings.engine.trust_remote_code
    check_model(model, role="policy", opt_in="engine", trusted=trusted, certified_as=("critic",))
    try:
        with new_directory(out) as folder:
            chains = asyncio.run(run_chains(model, [row.prompt for row in rows], rules, settings))
            if all(chain.is_cut for chain in chains):
                raise RunFailedError(
                    f"every conversation became longer than engine.max_model_len = {settings.engine.max_model_len}; "
                    "raise it, or lower sampling.max_tokens"
                )
            summary = write_chains(folder, chains)
            (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    except OSError as error:
        raise RunFailedError(f"--out {out} cannot be written: {error}; free space or choose another folder") from error
    if not as_json:
        print(", ".join(f"{key} {value:.3g}" for key, value in summary.items()))
        print(f"written to {out}: demonstrations.jsonl, preferences.jsonl, transcripts.jsonl")
    return summary
