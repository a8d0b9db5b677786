"""Makes text of models, files and machines harmless to display."""

from __future__ import annotations

from solon.errors import one_line


def visible(text: str) -> str:
    r"""The text with all terminal control characters escaped, except line breaks.

    >>> visible("\x1b[31mred")
    '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() else " " if c == "\t" else c.encode("unicode_escape").decode() for c in text
    )


def excerpt(text: str, *, longest: int = 200) -> str:
    """One short harmless line from a text of any length; a long text is cut in the middle.

    >>> excerpt("\x1b[2Jone\ntwo " + "x" * 500, longest=40)
    '\\x1b[2Jone two xxxxxxxxxxx … xxxxxxxxxx'
    """
    ends = text if len(text) <= 2 * longest else f"{text[:longest]} {text[-longest:]}"
    return one_line(visible(" ".join(ends.splitlines())), longest=longest)
