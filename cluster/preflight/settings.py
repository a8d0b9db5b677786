"""Checks settings against what they name: places for checkpoints, evaluators, rates, judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cluster.config.run_file import RunFile
from solon.errors import InputError, nearest
from solon.models.facts import model_folder
from solon.records import Prompt

READ_ONLY = ("http", "https", "data", "git", "github", "gist", "zip", "tar", "libarchive", "reference")
"""Places that fsspec reads but does not write."""
HIGH_RATE, HIGH_LORA_RATE, LOW_RATE = 1e-3, 1e-2, 1e-9
_PLACES, _SAMPLE = 16, 4096


def check_store(url: str) -> None:
    """The place for checkpoints must be writable. Raises InputError; opens no connection."""
    if not url:
        return
    import fsspec
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0] if "://" in url else "file"
    known = set(known_implementations) | set(fsspec.registry)
    if scheme not in known:
        raise InputError(
            f"checkpoint_url has the scheme {scheme!r}, expected one that fsspec knows{nearest(scheme, known)}, s3 or "
            "file say"
        )
    if scheme in READ_ONLY:
        raise InputError(f"checkpoint_url has the scheme {scheme!r}, which cannot be written; use s3, gs or file, say")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise InputError(f"checkpoint_url has the scheme {scheme!r}: {error}") from None


def check_programs_apply(evaluator: str, prompts: Sequence[Prompt]) -> None:
    """The evaluator's programs must understand these prompts. Raises InputError."""
    if evaluator == "english":
        from english.wishes import require_packages

        require_packages()
    strange = [prompt for prompt in prompts if not _understood(evaluator, prompt)]
    if 2 * len(strange) > len(prompts):
        example = strange[0].messages[-1].content[:60]
        reads = "the tiny language" if evaluator == "nursery" else "the English demo, with their tags"
        raise InputError(
            f"evaluate.evaluator = {evaluator!r} reads prompts of {reads}, {len(strange)} of {len(prompts)} in "
            f"evaluate.prompts are others ({example!r}); set evaluator = 'judge' and an audit_judge"
        )


def _understood(evaluator: str, prompt: Prompt) -> bool:
    if evaluator == "nursery":
        from nursery.reading import understand

        return understand(prompt.messages).kind != "other"
    from english.prompts import wishes_of

    return bool(wishes_of(prompt))


def remarks_on_settings(run: RunFile) -> list[str]:
    """Unusual settings, a sentence each."""
    learn = run.learn
    limit = HIGH_RATE if learn.lora is None else HIGH_LORA_RATE
    kind = "all weights" if learn.lora is None else "LoRA"
    found = []
    for key, rate in (("learning_rate", learn.learning_rate), ("critic_learning_rate", learn.critic_learning_rate)):
        most = 10 * limit if key.startswith("critic") else limit
        if rate > most:
            found.append(f"learn.{key} = {rate:g} is high for {kind}: above {most:g} models forget how to write")
        elif rate < LOW_RATE:
            found.append(f"learn.{key} = {rate:g} is lost in rounding: below {LOW_RATE:g} no weight moves")
    judges = {"judge": run.judge, "evaluate.audit_judge": run.evaluate.audit_judge, "watch.audit_judge": run.auditor}
    for role, judge in judges.items():
        if judge and is_same_model(judge, run.policy):
            found.append(f"{role} is the policy itself: it rewards what it likes to write; name another model")
            break
    return found


def is_same_model(one: str, other: str) -> bool:
    """Whether both are one directory or hub name, or copies of the same weights."""
    if one == other:
        return True
    first, second = model_folder(one), model_folder(other)
    return first is not None and second is not None and (first.samefile(second) or _sample(first) == _sample(second))


def _sample(folder: Path) -> str:
    """Sizes of the weights, and bytes sampled throughout them: quick to read, and different after any training."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(_PLACES):
                file.seek(size * place // _PLACES)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
