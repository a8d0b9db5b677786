"""Looks for secrets in the tracked files and for known vulnerabilities in the pinned packages. Run by `make check`.

Either finding fails the check unless `scripts/scan_allowed.toml` lists it with a reason; an entry that is no longer
needed fails it as well, so that the list stays small. Without a network the vulnerability check is skipped with a
message and fails nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = "scripts/scan_allowed.toml"
BIN = Path(sys.executable).parent
AT_ONCE = 8
"""Questions to the index under way together: it is asked about one package at a time."""
ANSWER_S = 5
"""How long the index may take for one answer."""
TOTAL_S = 90
"""How long the index may take for all of them; they are kept for the next time."""
MOST_NAMED = 8
NOT_OURS = (
    "ArtifactoryDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "IPPublicDetector",
    "IbmCloudIamDetector",
    "IbmCosHmacDetector",
    "MailchimpDetector",
    "SoftlayerDetector",
    "SquareOAuthDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)
"""Services that Solon has nothing to do with; each costs half a second. Entropy finds their keys all the same."""


class ScanError(Exception):
    """The scan failed, or found something; the message says what to do."""


def run(tool: str, *arguments: str, root: Path, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """One of the tools that `make setup` installs."""
    command = [str(BIN / tool), *arguments]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=timeout_s)
    except FileNotFoundError:
        raise ScanError(f"{tool} is not installed; run `make setup`") from None


def tracked(root: Path) -> list[str]:
    """The files that are in the repository, less the list of what is allowed: it holds digests."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and name != ALLOWED and (root / name).is_file()]


def scan_secrets(root: Path, allowed: Sequence[dict[str, Any]]) -> str:
    """A summary line. Raises a ScanError that locates a suspected secret, never shows it."""
    names = tracked(root)
    # -n: findings are not verified against the service whose key they may be.
    skipped = [word for plugin in NOT_OURS for word in ("--disable-plugin", plugin)]
    done = run("detect-secrets", "-c", str(os.cpu_count() or 1), "scan", "-n", *skipped, *names, root=root)
    try:
        found = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        raise ScanError(f"detect-secrets failed: {done.stderr[-500:]}") from None
    reasons = {entry["sha1"]: entry["reason"] for entry in allowed}
    used = set()
    new = []
    for name, places in sorted(found.items()):
        for place in places:
            used.add(place["hashed_secret"])
            if place["hashed_secret"] not in reasons:
                new.append(f"  {name}:{place['line_number']}: {place['type']}, sha1 {place['hashed_secret']}")
    if new:
        raise ScanError(
            "these look like secrets:\n" + "\n".join(new) + "\nremove them, and change them where they are valid; if "
            f"one is none, add its sha1 to {ALLOWED} with the reason"
        )
    if unused := sorted(set(reasons) - used):
        raise ScanError(f"{ALLOWED} allows secrets that no longer exist: {', '.join(unused)}; remove the entries")
    return f"no secrets in {len(names)} files"


def audit(pins: Sequence[str], root: Path) -> list[dict[str, Any]] | None:
    """The index's record for each of some pins; None when it does not answer."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins) + "\n")
        file.flush()
        options = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json", f"--timeout={ANSWER_S}")
        try:
            done = run("pip-audit", "-r", file.name, *options, root=root, timeout_s=TOTAL_S)
        except subprocess.TimeoutExpired:
            return None
    try:
        records: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return None
    return records


def scan_vulnerabilities(root: Path, allowed: Sequence[dict[str, Any]], today: datetime.date) -> str:
    """A summary line. Raises ScanError for known vulnerabilities that are not allowed."""
    pins = (root / "constraints.txt").read_text(encoding="utf-8").split()
    # One package first: without a network the others need not be tried. A mirror may have packages alone; it then says
    # of each that it does not know it.
    records = audit(pins[:1], root)
    if records is None or not any("vulns" in record for record in records):
        return "vulnerabilities: skipped: index not reachable"
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda n: audit(pins[n::AT_ONCE], root), range(AT_ONCE)))
    if any(answer is None for answer in answers):
        return "vulnerabilities: skipped: index not reachable for all packages"
    records = [record for answer in answers for record in answer or ()]
    audited = [record for record in records if "vulns" in record]
    entries = {entry["id"]: entry for entry in allowed}
    used = set()
    known = []
    for record in audited:
        for found in record["vulns"]:
            names = {found["id"], *found.get("aliases", ())}
            used |= names
            entry = next((entries[name] for name in names if name in entries), None)
            if entry is None or entry["until"] < today:
                late = f", allowed until {entry['until']}" if entry else ""
                fixed = ", ".join(found.get("fix_versions", ())) or "none yet"
                known.append(f"  {record['name']} {record['version']}: {found['id']} (fixed in: {fixed}{late})")
    if known:
        raise ScanError(
            "known vulnerabilities in pinned packages:\n" + "\n".join(sorted(known)) + "\nraise the pin in "
            f"constraints.txt; if it does not concern Solon, add its id to {ALLOWED} with the reason and a date"
        )
    if unused := sorted(set(entries) - used):
        raise ScanError(f"{ALLOWED} allows vulnerabilities that no pin has: {', '.join(unused)}; remove the entries")
    unknown = sorted(record["name"] for record in records if "vulns" not in record)
    shown = ", ".join(unknown[:MOST_NAMED]) + (", …" if len(unknown) > MOST_NAMED else "")
    rest = f", {len(unknown)} not known to the index ({shown})" if unknown else ""
    return f"no known vulnerabilities in {len(audited)} packages{rest}"


def main(root: Path = ROOT) -> int:
    allowed = tomllib.loads((root / ALLOWED).read_text(encoding="utf-8"))
    today = datetime.datetime.now(tz=datetime.UTC).date()
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        scans = [
            pool.submit(scan_secrets, root, allowed.get("secret", ())),
            pool.submit(scan_vulnerabilities, root, allowed.get("vulnerability", ()), today),
        ]
        for scan in scans:
            try:
                print(f"scan: {scan.result()}")
            except ScanError as error:
                print(f"scan: {error}", file=sys.stderr)
                failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
