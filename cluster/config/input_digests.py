"""Digests of a run's inputs: prompts, policy, judges. A resumed run must have the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.config.run_file import RunFile
from solon.errors import InputError
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.judges.program_file import ProgramFile
from solon.models.digest import file_digest, model_digest
from solon.records import Prompt

Digests = Mapping[str, str]
"""By key of the run file; a model that is not on this machine has no digest."""
ASKED = ("base_url", "model", "api", "read", "text_margin", "text_tokens", "top_logprobs", "seed", "extra")
"""Fields of an endpoint that decide its answers; the others concern its address and price."""

WEIGHTS = "weights, configuration or tokenizer"


def input_digests(run: RunFile, prompts: Sequence[Prompt], heldout: Sequence[Prompt]) -> Digests:
    """Digests of all inputs of the run. Large weights are only sampled, so it takes milliseconds."""
    models = {
        "policy": run.policy,
        "rollout.base_model": run.rollout.base_model,
        "judge": run.judge,
        **{key: pool.model for key, pool in run.auditors.items()},
        **{f"feedback judge {n}": name for n, name in enumerate(run.feedback.panel, start=1)},
    }
    found = {key: digest for key, name in models.items() if name and (digest := source_digest(name))}
    if run.feedback.programs and (digest := source_digest(run.feedback.programs)):
        found["feedback programs"] = digest
    templates = {"rollout.chat_template": run.rollout.chat_template, "judging.chat_template": run.judging.chat_template}
    found |= {key: file_digest(Path(name)).hex()[:16] for key, name in templates.items() if name}
    found["prompts"] = prompts_digest(prompts)
    if heldout:
        found["evaluate.prompts"] = prompts_digest(heldout)
    return found


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Number and digest of prompts in their order, tags included: `"990 prompts, 5f0c…"`."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.prompt_id, prompt.tags]).encode())
    return f"{len(prompts):,} prompts, {digest.hexdigest()[:12]}"


def refuse_other_inputs(now: Digests, then: Mapping[str, object], *, place: Path, run: RunFile) -> None:
    """Raises InputError that names every input that changed; an input that one side does not know is not compared."""
    changed = [key for key in now if isinstance(then.get(key), str) and then[key] != now[key]]
    if not changed:
        return
    names = {
        "policy": run.policy,
        "rollout.base_model": run.rollout.base_model,
        "judge": run.judge,
        "prompts": run.prompts,
        "evaluate.prompts": run.evaluate.prompts,
        "rollout.chat_template": run.rollout.chat_template,
        "judging.chat_template": run.judging.chat_template,
    }
    shown = "; ".join(
        f"{key} {names.get(key, '')} was {then[key]}, is {now[key]}"
        if key.endswith("prompts")
        else f"{key} {names.get(key, '')} has other {'content' if 'template' in key else WEIGHTS}"
        for key in changed
    )
    raise InputError(
        f"--resume: {place} was begun with other inputs under the same names: {shown}; restore them, or start a run of "
        "another --name"
    )


def source_digest(name: str) -> str | None:
    """Identifies a model, or what a judge's file stands for; None when it is not on this machine."""
    if not EndpointFile.names(name):
        return model_digest(name)
    file = load_judge_file(name)
    if isinstance(file, ProgramFile):
        return file.digest
    endpoint = file.endpoint
    asked = {key: getattr(endpoint, key) for key in ASKED}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]
