"""The two ways a run can end badly, and how a message to a person is worded.

`InputError` is the user's to mend (exit code 2); `RunFailedError` is a run that could not go on (exit
code 1). Anything else that escapes is a bug in Solon and shows a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from reprlib import Repr
from typing import Any


class InputError(ValueError):
    """What the user handed in cannot be used. The message says: got, expected, do this. Exit code 2."""


class RunFailedError(RuntimeError):
    """A run that started could not go on. Exit code 1."""


class AttestationError(RunFailedError):
    """An engine does not run the weights it was sent."""


class WorkerLostError(RunFailedError):
    """A worker died, or does not answer. What it held may be given to another."""


class PayloadLostError(RunFailedError):
    """What a worker made is gone with the machine that kept it. It must be made again."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word, or nothing.

    >>> nearest("max_stalenes", ["max_staleness", "seed"])
    ' (did you mean `max_staleness`?)'
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{match[0]}`?)" if match else ""


_repr = Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxdict = 2, 60, 60, 3


def short(value: Any) -> str:
    """What was got, in a line that fits a message however large the value is.

    >>> short(["a"] * 100)
    "['a', 'a', 'a', 'a', 'a', 'a', ...]"
    """
    try:
        return _repr.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a huge {type(value).__name__}"


def first_cause(group: BaseExceptionGroup[Exception]) -> Exception:
    """The error that a person should see: the innermost first one of a task group's."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
