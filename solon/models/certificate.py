"""The certificate of a compressed model: what compression did to its alignment, and whether it passed.

    certificate = read_certificate(Path("model"))    # raises InputError unless it is whole and about these weights
    certificate["verdict"]

`compression.json` marks a model that Solon compressed; `certificate.json` lies beside it. A certificate carries a
digest of its own content and the digest of the weights, so that one that was edited, or copied to other weights, is
none. The digest is no signature: it finds mistakes, not forgers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solon.errors import InputError

RECORD = "compression.json"
CERTIFICATE = "certificate.json"
SCHEMA = "solon.certificate/v1"
ACCEPTED = "accept"
UNCOVERED = (CERTIFICATE, "report.json", "report.html")
"""Files that the certificate says nothing about."""
_DIGEST = "digest"


def write_certificate(model: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Add schema and digests, and write it beside the weights."""
    whole = {"schema": SCHEMA, "files": digest_of_files(model), **content}
    whole[_DIGEST] = _digest(whole)
    (model / CERTIFICATE).write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return whole


def read_certificate(model: Path) -> dict[str, Any]:
    """Raises InputError when it is missing, damaged, edited, or about other weights."""
    path = model / CERTIFICATE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{model} has no {CERTIFICATE}; compress it again with `solon compress`") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{path} is not a certificate of {SCHEMA}; compress the model again with `solon compress`")
    if found.get(_DIGEST) != _digest(found):
        raise InputError(f"{path} was edited, so it proves nothing; compress the model again with `solon compress`")
    if not all(isinstance(found.get(name), str) for name in ("files", "role", "verdict")):
        raise InputError(f"{path} lacks files, role or verdict; compress the model again with `solon compress`")
    if found["files"] != digest_of_files(model):
        raise InputError(
            f"{path} is about other files than those beside it; compress the model again with `solon compress`"
        )
    return found


def require_certified(model: Path, *, where: str, allow: str, role: str = "policy", others: Sequence[str] = ()) -> None:
    """Raises InputError for a model that Solon compressed and whose certificate does not say `accept` for this role.

    allow: the setting that lets it pass, for the message. others: further roles that are enough. Other models pass:
    nothing is known about them.
    """
    if not (model / RECORD).is_file():
        return
    try:
        found = read_certificate(model)
    except InputError as error:
        raise InputError(f"{where}: {error}, or set {allow}") from None
    verdict = found["verdict"]
    roles = (role, *others)
    if found["role"] not in roles:
        raise InputError(
            f"{where}: {model} was certified as a {found['role']}, expected a {' or '.join(roles)}: compress the "
            f"original with `solon compress --role {role}`, or set {allow}"
        )
    if verdict != ACCEPTED:
        raise InputError(
            f"{where}: {model} was compressed and its alignment was not kept (verdict {verdict!r}); use the "
            f"model it was "
            f"made from, or set {allow}"
        )


def digest_of_files(model: Path) -> str:
    """Over names and bytes of all files but the certificate and the reports: configuration, tokenizer and templates
    decide what a model says as weights do."""
    whole = hashlib.sha256()
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        name = str(file.relative_to(model))
        if name in UNCOVERED:
            continue
        whole.update(name.encode())
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
