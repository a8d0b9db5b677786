"""Imports constitutions of other tools.

Two forms are read. `hf`: critiques and revisions without names, as a JSON object `{"constitutions": [{"critic": …,
"revision": …}]}`, a list of such rows, or one row per line. `langchain`: `{name, critique_request, revision_request}`,
as a list or under their names, in YAML or JSON.

Neither form has questions that compare two answers, so these are derived by a fixed rule: the revision request is
quoted, and the judge is asked which answer would change less under it (`PAIRWISE`), or whether the answer could stay as
it is (`POINTWISE`). They work, but a purpose-written question works better, as a warning says.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from solon.constitution.constitution import SCHEMA, Constitution
from solon.constitution.file import MAX_CHARACTERS, format_yaml, parse_yaml
from solon.errors import InputError, short
from solon.files.prompts import is_text
from solon.files.text_file import read_text

Form = Literal["hf", "langchain"]
Kind = Literal["harmless", "helpful", "honest", "style", "safety"]

PAIRWISE = "Which answer would have to change less if its author were told: “{revision}”"
POINTWISE = "Could the answer stay as it is if its author were told: “{revision}”"
KEYS: dict[Form, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "hf": (("critic", "critique"), ("revision",)),
    "langchain": (("critique_request",), ("revision_request",)),
}
"""Names of (critique request, revision request) in each form."""
MAX_ID = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An imported constitution, with notes for people."""

    constitution: Constitution
    form: Form
    warnings: tuple[str, ...]

    def as_yaml(self) -> str:
        """The file that `Constitution.load` reads."""
        content = self.constitution.model_dump(by_alias=True, exclude_defaults=True)
        return format_yaml(content)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    critique: str
    revision: str


def import_constitution(
    source: str | Path, *, constitution_id: str = "", form: Form | Literal["auto"] = "auto", kind: Kind = "harmless"
) -> Imported:
    """Read a file of another form.

    constitution_id: by default derived from the file's name. kind: of all principles; the forms do not state it.
    Raises InputError for a file in neither form, or with a missing text.
    """
    path = Path(source)
    what = f"constitution {path}"
    raw = _read(path, what)
    found, warnings = _rows(raw, what)
    chosen = _form_of(found, what) if form == "auto" else form
    rows = [_row(value, name, number, chosen, what) for number, (name, value) in enumerate(found, start=1)]
    first: dict[tuple[str, str], _Row] = {}
    for row in rows:
        first.setdefault((row.critique, row.revision), row)
    unique = list(first.values())
    if len(unique) < len(rows):
        warnings.append(f"{len(rows) - len(unique)} principle(s) were duplicates and are kept once")
    warnings.append(
        "the pairwise and pointwise questions are derived from the revision requests; rewrite them in your own words, "
        "then add tests and run `solon check --judge`"
    )
    named = _ids([row.name or f"principle-{n:0{len(str(len(unique)))}d}" for n, row in enumerate(unique, start=1)])
    constitution = Constitution.model_validate(
        {
            "schema": SCHEMA,
            "id": constitution_id or _slug(path.stem),
            "version": "1.0.0",
            "description": f"Imported from {path.name} ({chosen} form). Its critique and revision requests are that "
            "file's; the pairwise and pointwise questions were derived from the revision requests.",
            "principles": [_principle(row, name, kind) for row, name in zip(unique, named, strict=True)],
        }
    )
    return Imported(constitution=constitution, form=chosen, warnings=tuple(warnings))


def _read(path: Path, what: str) -> Any:
    """JSON, one JSON value per line, or YAML, by the name of the file."""
    text = read_text(path, what="constitution", most=MAX_CHARACTERS)
    suffix = path.suffix.lower()
    if suffix not in (".json", ".jsonl", ".ndjson"):
        return parse_yaml(text, what=what)
    if suffix == ".json":
        return _json(text, what)
    return [_json(line, f"{what}, line {n}") for n, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{what} is not JSON: {said}; fix it, or name the file .yaml if it is YAML") from None


def _rows(raw: Any, what: str) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """(name, row) of every principle, and the omitted parts."""
    left_out: list[str] = []
    if isinstance(raw, dict):
        if "schema" in raw:
            raise InputError(f"{what} has a `schema`: it is Solon's own form already; use it as it is")
        raw, left_out = _list_in(raw)
    if not isinstance(raw, list) or not raw:
        got = "nothing" if raw in (None, [], {}) else f"a {type(raw).__name__}"
        raise InputError(f"{what} holds {got}, expected a list of principles with a critique and a revision each")
    rows = []
    for number, value in enumerate(raw, start=1):
        if not isinstance(value, dict):
            raise InputError(
                f"{what}: principle {number} is {short(value)}, expected {{critic, revision}} or "
                "{name, critique_request, revision_request}"
            )
        rows.append((value.get("name") or "", value))
    warnings = [f"left out: {', '.join(left_out)}"] if left_out else []
    return rows, warnings


def _list_in(raw: dict[Any, Any]) -> tuple[Any, list[str]]:
    """The list in an object, and the other keys. An object of named rows is a list of them."""
    for key in ("constitutions", "principles", "constitutional_principles"):
        if key in raw:
            return raw[key], [f"`{other}`" for other in raw if other != key]
    if raw and all(isinstance(value, dict) for value in raw.values()):
        return [{"name": name, **value} for name, value in raw.items()], []
    return [raw], []


def _form_of(rows: Sequence[tuple[str, dict[str, Any]]], what: str) -> Form:
    for form, (critiques, revisions) in KEYS.items():
        if all(any(key in row for key in critiques) and any(key in row for key in revisions) for _, row in rows):
            return form
    keys = sorted({str(key) for _, row in rows for key in row})
    raise InputError(
        f"{what} has rows with the keys {short(keys)}, expected in each {{critic, revision}} (hf) or "
        "{name, critique_request, revision_request} (langchain)"
    )


def _row(row: dict[str, Any], name: Any, number: int, form: Form, what: str) -> _Row:
    critiques, revisions = KEYS[form]
    texts = []
    for keys in (critiques, revisions):
        value = next((row[key] for key in keys if key in row), None)
        if not isinstance(value, str) or not value.strip() or not is_text(value):
            got = "nothing" if value is None else short(value)
            raise InputError(f"{what}: principle {number} has {got} as `{keys[0]}`, expected a text ({form} form)")
        texts.append(" ".join(value.split()))
    if not isinstance(name, str):
        raise InputError(f"{what}: principle {number} has {short(name)} as `name`, expected a text; put it in quotes")
    return _Row(name, *texts)


def _principle(row: _Row, name: str, kind: Kind) -> dict[str, Any]:
    return {
        "id": name,
        "kind": kind,
        "pairwise_question": PAIRWISE.format(revision=row.revision),
        "pointwise_question": POINTWISE.format(revision=row.revision),
        "critique_request": row.critique,
        "revision_request": row.revision,
    }


def _ids(names: Iterable[str]) -> list[str]:
    """A slug for every name; duplicates get a number."""
    found: dict[str, None] = {}
    last: dict[str, int] = {}
    for name in names:
        slug = base = _slug(name)
        number = last.get(base, 1)
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        last[base] = number
        found[slug] = None
    return list(found)


def _slug(name: str) -> str:
    """`Über-Helpful!` becomes `uber-helpful`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_ID].rstrip("-") or "principle"
