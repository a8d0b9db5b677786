"""The documentation site: its reference is made from the code, and every page has its place."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.unit.house.test_layers import ORDERS

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    sys.modules.pop("reference_pages", None)
    import reference_pages

    return reference_pages


def test_the_reference_matches_the_code(reference: Any):
    stale = [str(path.relative_to(ROOT)) for path, make in reference.PAGES.items() if path.read_text() != make()]
    assert not stale, f"{stale}: run `python scripts/reference_pages.py`"


def test_a_key_is_described_with_its_type_bounds_default_and_the_text_below_it(reference: Any):
    class Section(BaseModel):
        """A section."""

        model_config = ConfigDict(extra="forbid")
        share: float = Field(0.5, gt=0, le=1)
        """How much: all | none."""

    class File(BaseModel):
        """A file."""

        section: Section = Section()

    docs = {"share": "How much: all | none."}
    reference.attribute_docs = lambda model: docs if model is Section else {}
    lines = list(reference._section(File, ""))
    assert lines[0] == "## `[section]`\n"
    assert "| `share` | number, > 0, <= 1 | `0.5` | How much: all \\| none. |" in lines[2]


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page():
    listed = list(pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert len(listed) == len(set(listed))
    own = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(listed) == {page for page in own if not page.startswith("decisions/0")}


def test_the_architecture_page_names_every_room_and_lists_them_in_their_order():
    page = (DOCS / "architecture.md").read_text()
    walk = page[page.index("## One prompt") : page.index("| stage | takes")]
    rooms = [f"{package}/{name}/" for package in ("solon", "cluster", "learners") for name in ORDERS[package]]
    missing = [room for room in rooms if (ROOT / room).is_dir() and room not in walk]
    assert not missing, f"not on the walk from file to gradient: {missing}"
    for package, order in ORDERS.items():
        folder = ROOT / package.replace(".", "/")
        names = ", ".join(f"`{name}/`" if (folder / name).is_dir() else f"`{name}`" for name in order)
        assert f"| `{package}` | {names} |" in page


def test_the_walk_through_the_rooms_returns_to_none_of_them_more_than_twice():
    page = (DOCS / "architecture.md").read_text()
    walk = page[page.index("## One prompt") : page.index("| stage | takes")]
    visits = [f"{package}/{room}" for package, room in re.findall(r"`(solon|cluster|learners)/(\w+)/", walk)]
    entered = [room for room, before in zip(visits, ["", *visits], strict=False) if room != before]
    assert max(entered.count(room) for room in entered) <= 3
