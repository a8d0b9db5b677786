"""`solon push`: a policy for the Hugging Face hub."""

from __future__ import annotations

import re
from typing import Any

import typer

from solon.cli.doctor import find_run
from solon.cli.terminal import visible
from solon.errors import InputError


def run_push(source: str, repo: str, *, dry_run: bool, private: bool, direct: bool, as_json: bool) -> dict[str, Any]:
    """Shows what is sent, and sends it unless `dry_run`. Raises InputError and RunFailedError."""
    from solon.hub.push import plan, send

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        raise InputError(f"got the repository {repo!r}, expected a name like org/model")
    found = plan(find_run(source))
    if not as_json:
        for one in found.files:
            typer.echo(f"{one.nbytes:>14,}  {one.sha256[:16]}  {visible(one.name)}")
        for name in found.left:
            typer.echo(f"{'stays':>14}  {'':16}  {visible(name)}")
        typer.echo(f"\nREADME.md:\n{visible(found.card)}")
    address = ""
    if not dry_run:
        address = send(
            found, repo, private=private, as_pull_request=not direct, message=f"Policy {found.policy.parent.name}"
        )
    if not as_json:
        typer.echo("nothing was sent" if dry_run else f"sent: {address}")
    return {
        "policy": str(found.policy),
        "repo": repo,
        "sent": not dry_run,
        "address": address,
        "files": [{"name": one.name, "bytes": one.nbytes, "sha256": one.sha256} for one in found.files],
        "left": list(found.left),
        "card": found.card,
    }
