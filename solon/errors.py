"""The two ways a run can fail, and the wording of error messages.

`InputError` means that the user's input must change (exit code 2); `RunFailedError` means that a run could not continue
(exit code 1). Any other exception is a bug in Solon and shows a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import Any

from solon.redaction import redacted

LONGEST = 1500
"""Most characters of a message."""


class InputError(ValueError):
    """The user's input cannot be used. The message says: got, expected, do this. Exit code 2.

    The message is one line of bounded length without secrets, however much of a file or of a library's error was put
    into it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class PromptRefusedError(ValueError):
    """A prompt cannot be used with this model (its chat template refuses it, for example). It is left out.

    The message is one line of bounded length without secrets.
    """

    cause: str = ""
    """The template's error, without the prompt."""

    def __init__(self, message: str, *, cause: str = "") -> None:
        super().__init__(one_line(message))
        self.cause = one_line(cause, longest=300)


def one_line(text: str, *, longest: int = LONGEST) -> str:
    """The text without line breaks and secrets; a long text is cut in the middle, since the remedy is at the end.

    It can always be encoded: an unpaired surrogate is escaped.

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
    """A run that started could not continue. Exit code 1. The message holds no secrets."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class AttestationError(RunFailedError):
    """An engine does not run the published weights."""


class WorkerLostError(RunFailedError):
    """A worker died or does not answer. Its work may be given to another."""


class WorkerLeftError(WorkerLostError):
    """A worker left its pool before it finished its work. This is no failure: another worker continues."""


class ForeignCodeError(WorkerLostError):
    """A worker could not import Solon's code on its machine."""


class CallLostError(WorkerLostError):
    """The answer to a call did not arrive. The worker may have done the work, and may be healthy."""


class EngineFailedError(WorkerLostError):
    """A worker's compute libraries failed: CUDA, vLLM, out of memory, non-finite numbers. The process is not used
    again; another may succeed."""


class PayloadLostError(RunFailedError):
    """A payload was lost with the machine that held it. It must be produced again."""


@contextmanager
def loading(what: str, *, remedy: str) -> Iterator[None]:
    """Turn a library's exceptions while it loads a model into InputError: they have no common class, and the model is
    the user's. Running out of memory is a RunFailedError.

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
    """A hint for a misspelt word, or an empty string.

    >>> nearest("max_stalenes", ["max_staleness", "seed"])
    ' (did you mean `max_staleness`?)'
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{match[0]}`?)" if match else ""


class _Repr(Repr):
    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(redacted(x), level)  # redact before cutting: half a secret would not be recognised


_repr = _Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxdict = 2, 60, 60, 3


def short(value: Any) -> str:
    """The value in one short line, however large it is.

    >>> short(["a"] * 100)
    "['a', 'a', 'a', 'a', 'a', 'a', ...]"
    """
    try:
        return _repr.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a huge {type(value).__name__}"


def first_cause(group: BaseExceptionGroup[Exception]) -> Exception:
    """The error to show to a person: the innermost first one of a task group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
