"""`solon init`: a run file, a constitution and prompts to start from, for one's own model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import typer

from solon.errors import InputError, short
from solon.files.whole_file import write_whole

TEMPLATES = Path(__file__).parent / "scaffold"
FILES = ("run.toml", "constitution.yaml", "prompts.jsonl", "heldout.jsonl")
ON_CPU = {
    "rollout": "num_cpus = 0.5",
    "judging": "num_cpus = 0.5",
    "learn": "max_tokens_per_microbatch = 2048   # bounds memory, changes nothing else\nnum_cpus = 0.5",
}
ON_GPU = {
    "rollout": "num_gpus = 0.25                # a share of the device for Ray; `solon check` adds up the memory\n"
    "kv_cache_gib = 2.0\nenforce_eager = false",
    "judging": "num_gpus = 0.5\nkv_cache_gib = 3.0\nenforce_eager = false",
    "learn": "gradient_checkpointing = true\nnum_gpus = 0.25",
}


def run_init(folder: Path, *, policy: str, judge: str, audit_judge: str, as_json: bool) -> dict[str, Any]:
    """Writes the files and prints what to do next. Raises InputError when one of them exists: nothing is replaced."""
    from cluster.config.fitting import machine_gpus

    folder = folder.expanduser()
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise InputError(
            f"{folder} has {', '.join(there)} already, and nothing is replaced; name another folder: solon init FOLDER"
        )
    on_gpu = machine_gpus() > 0
    values = {key: f"{text}\n" for key, text in (ON_GPU if on_gpu else ON_CPU).items()}
    values |= {"policy": _quoted(policy), "judge": _quoted(judge or policy), "audit": _audit(audit_judge)}
    for name in FILES:
        text = (TEMPLATES / name).read_text(encoding="utf-8")
        if name == "run.toml":
            text = re.sub("@([a-z]+)@", lambda found: values[found.group(1)], text)
        write_whole(folder / name, text, what="file")
    run_file = folder / "run.toml"
    place = shlex.quote(str(run_file))
    following = [f"solon check {place}", f"solon train {place}"]
    if not as_json:
        typer.echo(f"wrote {', '.join(FILES)} in {folder}, for {'a GPU' if on_gpu else 'a CPU'}")
        if not judge:
            typer.echo(f"the policy judges itself; name a better judge in {run_file}")
        typer.echo("next: put your own prompts into prompts.jsonl and your principles into constitution.yaml, then")
        for command in following:
            typer.echo(f"  {command}")
    return {"files": [str(folder / name) for name in FILES], "on_gpu": on_gpu, "next": following}


def _audit(judge: str) -> str:
    """The sections of the second judge, in comments where none is named."""
    name = _quoted(judge or "another/model")
    lines = (
        "[evaluate]", 'prompts = "heldout.jsonl"', 'evaluator = "judge"', f"audit_judge = {name}", "",
        "[watch]", f"audit_judge = {name}", "audit_share = 0.1",
    )  # fmt: skip
    return "".join(f"{line}\n" if judge else f"# {line}".rstrip() + "\n" for line in lines)


def _quoted(text: str) -> str:
    """A TOML string; models in a directory or file are named by their whole path. Raises InputError for a path where
    there is nothing."""
    try:
        place = Path(text).expanduser()
        is_there = bool(text) and place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{short(text)} is neither a path nor a model name: {error}") from None
    if not text or (not is_there and (text.startswith(("/", ".", "~", "http")) or text.endswith(".gguf"))):
        raise InputError(f"there is no model at {short(text)}, expected a directory, a .gguf file or a hub name")
    name = str(place.absolute()) if is_there else text
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007f")
