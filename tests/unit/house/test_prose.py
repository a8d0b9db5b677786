"""Product code, test names and documentation are written in plain English: some phrases must not come back.

Text that judges or policies read is data, not prose, and is left out: prompts, the semantic cache's rule, the nursery.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.unit.house.test_house import ROOT

PHRASES = {
    r"nobody": "`no one`, or name the process or user that is missing",
    r"somebody": "`another process`, `a user`, or a name",
    r"whoever": "the process or user itself, or `any`",
    r"anew": "`again`",
    r"in hand": "`held`, `checked out` or `current`",
    r"(go|goes|gone|going) on": "`continue`, `resume` or `happen`",
    r"mend(s|ed|ing)?": "`fix` or `correct`",
    r"signs? of life": "`heartbeat`",
    r"(come|comes|came) to nothing": "`is dropped` or `fails`",
    r"told of": "`reported`",
}
"""A phrase, and what to write in its place."""
PACKAGES = ("solon", "actors", "learners", "serve_apps", "cluster", "compression", "english", "benchmarks", "scripts")
DATA = ("solon/feedback/prompting", "solon/feedback/caches/semantic_rule.py")
"""Paths with text that judges or policies read."""
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
RECORD = "docs/log.md"
"""A record of past work: it keeps its words."""


def found_in(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, phrase, advice) of each phrase in a text; a phrase may be wrapped, also in a comment."""
    for pattern, advice in PHRASES.items():
        words = pattern.replace(" ", r"[\s#]+")
        for match in re.finditer(rf"(?<![\w-])(?:{words})(?![\w-])", text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].replace("#", " ").split()), advice


def prose_of(code: str) -> str:
    """Comments and strings of a module, each on its own lines; everything else is blank."""
    lines = [""] * (code.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        # Formatted strings are tokens of their own from Python 3.12 on.
        if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for offset, text in enumerate(token.string.split("\n")):
                lines[token.start[0] - 1 + offset] += f"{text} ; "
    return re.sub(r" ; (?=\n)", "", "\n".join(lines))


def names_of(code: str) -> str:
    """Names of test functions in words, each on its own line."""
    return re.sub(
        r"^(?!\s*(?:async )?def test_).*$|_", lambda match: " " if match[0] == "_" else "", code, flags=re.MULTILINE
    )


def complaints(path: Path, text: str) -> list[str]:
    place = path.relative_to(ROOT)
    return [f"{place}:{line}: `{phrase}`; write {advice}" for line, phrase, advice in found_in(text)]


def test_comments_docstrings_and_messages_are_plain_english():
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(modules) > 200
    ours = [path for path in modules if not path.relative_to(ROOT).as_posix().startswith(DATA)]
    found = [line for path in ours for line in complaints(path, prose_of(path.read_text("utf-8")))]
    assert not found, "\n".join(found)


def test_names_of_tests_are_plain_english():
    paths = sorted((ROOT / "tests").rglob("*.py"))
    found = [line for path in paths for line in complaints(path, names_of(path.read_text("utf-8")))]
    assert not found, "\n".join(found)


def test_documentation_is_plain_english():
    pages = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
    ours = [path for path in pages if path != ROOT / RECORD]
    found = [line for path in ours for line in complaints(path, path.read_text("utf-8"))]
    assert not found, "\n".join(found)


def test_a_phrase_is_found_in_comments_strings_and_names_with_its_line_and_advice():
    code = 'x = 1  # a run that goes\n# on\ny = f"ask {x} nobody"\n"""It is begun\nanew."""\n'
    code += "def test_a_run_goes_on(): ...\n"
    assert [(line, phrase) for line, phrase, _ in sorted(found_in(prose_of(code)))] == [
        (1, "goes on"),
        (3, "nobody"),
        (5, "anew"),
    ]
    assert [(line, phrase) for line, phrase, _ in found_in(names_of(code))] == [(6, "goes on")]
    assert complaints(ROOT / "docs" / "x.md", "one\nwhoever comes")[0].startswith("docs/x.md:2: `whoever`; write the")
    assert not list(found_in("recommend, hand in hand-made, going only, nobody-of-this-name"))
