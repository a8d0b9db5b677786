"""The two ways a run can end badly, and how a message to a person is worded.

`InputError` is the user's to mend (exit code 2); `RunFailedError` is a run that could not go on (exit
code 1). Anything else that escapes is a bug in Solon and shows a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import Any

from solon.redaction import redacted

LONGEST = 1500
"""Characters of a message at most."""


class InputError(ValueError):
    """What the user handed in cannot be used. The message says: got, expected, do this. Exit code 2.

    It is one line of bounded length without secrets, however much of a file, or of a library's complaint, was put into
    it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class PromptRefusedError(ValueError):
    """A prompt cannot be used with this model, its chat template refuses it, say. Others can: this one is left out.

    The message is one line of bounded length without secrets.
    """

    cause: str = ""
    """What the template said, without the prompt it said it of."""

    def __init__(self, message: str, *, cause: str = "") -> None:
        super().__init__(one_line(message))
        self.cause = one_line(cause, longest=300)


def one_line(text: str, *, longest: int = LONGEST) -> str:
    """The text without line breaks and secrets; of a long one the beginning and the end, where the remedy stands.

    It can always be written: half a character is spelt out.

    >>> one_line("page header:\\n  bad\\n"), one_line("x" * 90, longest=12)
    ('page header: bad', 'xxxxxx … xxx')
    """
    most = 4 * longest
    shown = text if len(text) <= 2 * most else f"{text[:most]} {text[-most:]}"
    line = " ".join(stripped for part in redacted(shown).splitlines() if (stripped := part.strip()))
    line = line.encode("utf-8", "backslashreplace").decode()
    if len(line) <= longest:
        return line
    end = longest // 4
    return f"{line[: longest - end - 3]} … {line[-end:]}"


class RunFailedError(RuntimeError):
    """A run that started could not go on. Exit code 1. The message holds no secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class AttestationError(RunFailedError):
    """An engine does not run the weights it was sent."""


class WorkerLostError(RunFailedError):
    """A worker died, or does not answer. What it held may be given to another."""


class WorkerLeftError(WorkerLostError):
    """A worker left its pool before it had finished what it held. Nothing went wrong: another one continues."""


class ForeignCodeError(WorkerLostError):
    """A worker could not import Solon's code on its machine."""


class CallLostError(WorkerLostError):
    """The answer to a call did not arrive. The worker may have done what it was asked, and may be well."""


class EngineFailedError(WorkerLostError):
    """The libraries that a worker computes with failed: CUDA, vLLM, memory that was too small, numbers that are none.
    The process is not used again; another may do better."""


class PayloadLostError(RunFailedError):
    """What a worker made is gone with the machine that kept it. It must be made again."""


@contextmanager
def loading(what: str, *, remedy: str) -> Iterator[None]:
    """What a library raises while it loads a model becomes an InputError: it has no common class, and the model is the
    user's. What the memory does not hold is a RunFailedError.

        with loading("the policy '/models/policy'", remedy="check its config.json"):
            ...
    """
    try:
        yield
    except (InputError, RunFailedError):
        raise
    except Exception as error:
        kind = type(error).__name__
        if isinstance(error, MemoryError) or "OutOfMemory" in kind:
            raise RunFailedError(f"{what} does not fit into memory: {one_line(str(error), longest=500)}") from error
        raise InputError(f"{what} cannot be loaded ({kind}: {error}); {remedy}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a misspelt word, or nothing.

    >>> nearest("max_stalenes", ["max_staleness", "seed"])
    ' (did you mean `max_staleness`?)'
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{match[0]}`?)" if match else ""


class _Repr(Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(redacted(x), level)  # before it is cut: half a secret would not be known as one


_repr = _Repr()
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
