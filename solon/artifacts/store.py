"""A folder of finished results, each under the digest of its key.

    store = Store(Path("runs/artifacts"))
    key = {"stage": "dpo", "settings": {...}, "inputs": {"policy": "3f2a..."}}
    with store.alone_with(key):
        if store.find(key) is None:
            with store.making(key) as making:
                train(save_to=making.folder / "model")

A result is built beside its place and renamed; its manifest, which names key, files and digests, is written last. So a
killed process leaves nothing that looks finished, and a file that was changed later is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solon.artifacts.digests import digest_of, files_of
from solon.errors import InputError
from solon.files.whole_file import write_whole
from solon.host.whole_directory import alone, new_directory

Key = Mapping[str, Any]
"""JSON; `stage` is the kind of the result and part of its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished result."""

    folder: Path
    digest: str
    """Of the names and contents of its files."""
    key: Key
    record: Mapping[str, Any]
    """What its stage reported; not part of the digest."""


@dataclass(slots=True)
class Making:
    """A result that is being made."""

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)


class Store:
    """Finished results by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: Key) -> Artifact | None:
        """The result of this key, its files compared with its manifest. Raises InputError when they differ."""
        place = self._place(key)
        manifest = _read(_manifest_of(place))
        if manifest is None or not place.is_dir():
            return None
        held, now = manifest["files"], files_of(place)
        if held != now:
            changed = sorted(name for name in held.keys() | now.keys() if held.get(name) != now.get(name))
            raise InputError(
                f"{place} has other files than when it was made ({', '.join(changed[:3])}), expected them unchanged; "
                "restore them, or remove the folder to make it again"
            )
        return Artifact(folder=place, digest=digest_of(held), key=manifest["key"], record=manifest["record"])

    @contextmanager
    def alone_with(self, key: Key) -> Iterator[None]:
        """Waits until no other process makes the result of this key; look for it again inside."""
        with alone(self._place(key)):
            yield

    @contextmanager
    def making(self, key: Key) -> Iterator[Making]:
        """A folder that becomes the result at the end of the block; until then an earlier one stays. Use it inside
        `alone_with`."""
        place = self._place(key)
        with new_directory(place, replace=True) as folder:
            making = Making(folder)
            yield making
            files = files_of(folder)
            _manifest_of(place).unlink(missing_ok=True)
        manifest = {"key": key, "files": files, "record": making.record}
        write_whole(_manifest_of(place), json.dumps(manifest, indent=1, sort_keys=True), what="manifest")

    def keys(self, stage: str) -> list[Key]:
        """Keys of the finished results of a kind, the newest first."""
        paths = sorted(self.root.glob(f"{stage}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [manifest["key"] for path in paths if (manifest := _read(path)) is not None]

    def _place(self, key: Key) -> Path:
        return self.root / f"{key['stage']}-{digest_of(key)[:16]}"


def first_difference(before: Key, now: Key) -> str:
    """The first field that differs, in dotted form, with both values; empty where the keys are equal.

    >>> first_difference({"settings": {"beta": 0.1}}, {"settings": {"beta": 0.2}})
    'settings.beta was 0.1, is 0.2'
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            was, now_is = (json.dumps(one.get(name))[:60] for one in (old, new))
            return f"{name} was {was}, is {now_is}"
    return ""


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value


def _manifest_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _read(path: Path) -> dict[str, Any] | None:
    """A manifest; None for a missing file and for one that is not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"key", "files", "record"} else None
