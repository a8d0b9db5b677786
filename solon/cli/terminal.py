"""Text from files, models and machines on its way to a terminal."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""The text with everything that a terminal would obey written out; only line breaks stay.

    >>> visible("\x1b[31mred")
    '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() else " " if c == "\t" else c.encode("unicode_escape").decode() for c in text
    )
