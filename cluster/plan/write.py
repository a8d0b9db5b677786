"""Writes a planned run file: what the user set, with the split, and a comment that says where it comes from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config.run_file import RunFile, places
from cluster.plan.planner import Plan
from cluster.plan.rates import Rates
from solon.errors import InputError, one_line
from solon.files.marks import rewrite
from solon.files.toml_file import read_toml

CHOSEN = {
    "rollout": ("num_actors", "num_gpus", "tensor_parallel", "max_running", "kv_cache_gib"),
    "judging": ("num_actors", "num_gpus", "tensor_parallel", "kv_cache_gib"),
    "learn": ("num_ranks", "num_gpus"),
    "staleness": ("target_staleness", "max_staleness"),
}
"""Keys that a plan sets, by section."""


def require_new(path: Path, out: Path, *, force: bool) -> None:
    """Raises InputError where a file would be lost: out exists and force was not asked for, or it is the run file."""
    if not out.parent.is_dir():
        raise InputError(f"--write {out}: there is no folder {out.parent}; make it")
    if not out.exists():
        return
    if path.exists() and out.samefile(path):
        raise InputError(f"--write {out} is the run file that is planned, expected another name: its comments would go")
    if out.is_dir() or not force:
        raise InputError(
            f"--write {out} exists, expected a new file; choose another name, or add --force to replace a file"
        )


def planned_file(path: Path, overrides: list[str], plan: Plan, *, folder: Path) -> str:
    """The text of the file. Paths below its folder are relative to it, so that the folder can be uploaded; others are
    absolute.

    Raises InputError for a pipeline file, whose pools have other keys."""
    raw = read_toml(path, what="run file")
    if "pools" in raw:
        raise InputError(
            f"{path} is a pipeline file, expected a run file for --write: its pools are set by hand; the plan above "
            "says to what"
        )
    RunFile.resolve(raw, path.parent)
    for override in overrides:
        RunFile.override(raw, override)
    for section, keys in CHOSEN.items():
        settings = getattr(plan.run, section)
        for key in keys:
            value = getattr(settings, key)
            before = raw.get(section, {}).get(key)
            if value is not None and (before is not None or value != type(settings).model_fields[key].default):
                raw.setdefault(section, {})[key] = value
    RunFile.parse(raw, source=f"planned from {path}")
    for place in places(RunFile):
        rewrite(raw, place, lambda _, value: _below(value, folder))
    return heading(path, plan) + toml_text(raw)


def _below(value: Any, folder: Path) -> Any:
    """A path relative to the folder where it lies below it; anything else as it is."""
    if isinstance(value, list):
        return [_below(item, folder) for item in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    found, base = Path(value).resolve(), folder.resolve()
    return found.relative_to(base).as_posix() if found.is_relative_to(base) else value


def heading(path: Path, plan: Plan) -> str:
    """Where the figures come from, as comments."""
    best = plan.best
    lines = [
        f"Planned by solon plan from {path.name} on {time.strftime('%Y-%m-%d')}, with {described(plan.rates)}.",
        f"Engines : judges : learner ranks = {best.split}.",
        f"Predicted: {best.groups_per_s:.3g} groups/s, {LANES[best.binds]} binds, mean staleness "
        f"{best.staleness_mean:.2f}.",
        *(f"{one_line(reason)}." for reason in plan.divided),
    ]
    return "".join(f"# {line}\n" for line in lines) + "\n"


LANES = {
    "generate": "generation",
    "label": "labelling",
    "learn": "learning",
    "none": "nothing",
    "admission": "admission",
}


def described(rates: Rates) -> str:
    """Whose rates they are, in words."""
    if rates.source == "measured":
        return f"rates measured on {rates.date} ({rates.machine})"
    return f"published rates of the {rates.machine}"


def toml_text(raw: Mapping[str, Any], place: str = "") -> str:
    """A parsed TOML document as text: plain values first, then its tables."""
    plain = {key: value for key, value in raw.items() if not _is_table(value)}
    text = "".join(f"{_key(key)} = {_value(value)}\n" for key, value in plain.items())
    for key, value in raw.items():
        if not _is_table(value):
            continue
        name = f"{place}.{_key(key)}" if place else _key(key)
        for table in value if isinstance(value, list) else [value]:
            brackets = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            text += f"\n{brackets}\n{toml_text(table, name)}"
    return text


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, float):
        return repr(value)
    return str(value)
