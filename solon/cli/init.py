"""`solon init`: a run file, a constitution and prompts to start from, for one's own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from solon.errors import InputError
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
        for key, value in values.items() if name == "run.toml" else ():
            text = text.replace(f"@{key}@", value)
        write_whole(folder / name, text, what="file")
    run_file = folder / "run.toml"
    following = [f"solon check {run_file}", f"solon train {run_file}"]
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
    """A TOML string; models in a directory are named by their whole path."""
    place = Path(text).expanduser()
    return json.dumps(str(place.absolute()) if place.is_dir() else text)
