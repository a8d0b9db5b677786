"""Parses an endpoint's reply: log-probs of labels, a word, or the reason for having neither. Pure functions.

An endpoint shows only the most likely tokens. A label that is not among them gets the largest log-prob that it can
have: at most the smallest one shown, and the labels not shown share the probability left by the shown tokens. For two
labels this is a bound, so the margin can only be closer to zero than the true one, never further away, and the mass on
the labels is too large by at most one such bound. A reply without any label has no margin.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeGuard

from solon.feedback.questions import Question
from solon.verdicts import Status

NOWHERE = -700.0
"""Log-prob of labels when none was shown: no mass, so that the verdict is low_mass."""
ROUNDING = 1e-6
"""Tolerance for the sum of probabilities computed from 32-bit floats."""
LITTLE_MASS = 0.5
MOST_DETAIL = 200
SPACES = " ▁Ġ"
"""How tokenizers of endpoints write a space before a word."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts reported by the endpoint."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A parsed reply. `failure` is None exactly when there are log-probs."""

    logprobs: tuple[float, ...] = ()
    failure: Status | None = None
    detail: str = ""
    top: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why an attempt gave no readable reply."""

    status: Status
    detail: str
    code: int = 0
    """HTTP status, if there was one."""
    may_retry: bool = False
    after_s: float | None = None
    """Pause requested by the endpoint."""
    is_fatal: bool = False
    """Every further question would fail in the same way: the user must fix the cause."""
    is_down: bool = False
    """Indicates a problem of the endpoint, not of the question."""
    is_billed: bool = False
    """The endpoint may have done the work nevertheless."""


class _GarbageError(ValueError):
    """The reply does not have the expected form."""


def clean(text: object, *, secret: str = "") -> str:
    """Untrusted words in one short line, without control characters or the key.

    >>> clean("a\\x1b[31m\\nb", secret="key")
    'a [31m b'
    """
    line = str(text)[: 20 * MOST_DETAIL]
    if secret:
        line = line.replace(secret, "[key]")
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    return line if len(line) <= MOST_DETAIL else line[: MOST_DETAIL - 1] + "…"


# -- a reply with status 200 -----------------------------------------------------------------------------------


def read_reply(
    body: bytes, question: Question, *, how: Literal["logprobs", "text"], text_margin: float, secret: str = ""
) -> Reading:
    """Parses any bytes; malformed bytes give `unparsable`.

    secret: the key, which some endpoints repeat; no reading contains it.
    """
    usage = None
    try:
        reply = _json(body, secret)
        usage = _usage(reply.get("usage"))
        choice = _dict(_first(reply.get("choices"), "choices"), "choices")
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        if choice.get("finish_reason") == "content_filter" or message.get("refusal"):
            words = clean(message.get("refusal") or "the endpoint's content filter took the answer", secret=secret)
            return Reading(failure=Status.REFUSAL, detail=words, usage=usage)
        text = message.get("content") if message else choice.get("text")
        text = text if isinstance(text, str) else ""
        if how == "text":
            return _read_text(text, choice, question, text_margin, usage, secret)
        return _read_logprobs(text, choice, question, usage, secret)
    except _GarbageError as error:
        return Reading(failure=Status.UNPARSABLE, detail=clean(error, secret=secret), usage=usage)


def _read_logprobs(
    text: str, choice: Mapping[str, Any], question: Question, usage: Usage | None, secret: str
) -> Reading:
    shown = _shown(choice.get("logprobs"))
    total = math.fsum(math.exp(min(logprob, 0.0)) for logprob in shown.values())
    if total > 1.01:
        raise _GarbageError(f"the reply's probabilities add up to {total:.3g}, expected at most 1")
    logprobs = label_logprobs(shown, matchers(question, shown))
    likeliest = max(shown, key=lambda token: shown[token])
    # A placeholder for a token id is meaningless to people; the text is that token.
    top = clean(text if likeliest.startswith("token_id:") else likeliest, secret=secret)
    if logprobs is None:
        return Reading((NOWHERE,) * _num_labels(question), top=top, usage=usage)
    mass = math.fsum(math.exp(logprob) for logprob in logprobs)
    return Reading(logprobs, top=top if mass < LITTLE_MASS else "", usage=usage)


def label_logprobs(shown: Mapping[str, float], is_label: Sequence[Callable[[str], bool]]) -> tuple[float, ...] | None:
    """log p of each label from the tokens shown; None when none of the labels is among them.

    Tokens of the same label (`A`, ` A`) are added up. For labels that are not shown, see above.
    """
    found = [[logprob for token, logprob in shown.items() if matches(token)] for matches in is_label]
    missing = sum(not logprobs for logprobs in found)
    if missing == len(found):
        return None
    rest = max(1 - math.fsum(math.exp(min(logprob, 0.0)) for logprob in shown.values()), ROUNDING)
    bound = min(min(shown.values()), math.log(rest / missing)) if missing else 0.0
    return tuple(_logsumexp(logprobs) if logprobs else bound for logprobs in found)


def matchers(question: Question, shown: Mapping[str, float]) -> list[Callable[[str], bool]]:
    """For each label of a question, a test of whether a token is that label. By token id if the reply shows ids."""
    if question.prompt_token_ids and any(token.startswith("token_id:") for token in shown):
        return [f"token_id:{label}".__eq__ for label in question.label_ids]
    if not question.labels:
        raise _GarbageError("the reply shows no token ids, and the question has no words for its labels")
    return [_matcher(label) for label in question.labels]


def _matcher(label: str) -> Callable[[str], bool]:
    word = label.strip()
    # "Yes" and "yes" are one answer; "a" is an article, not the answer A.
    fold = str.casefold if len(word) > 1 else str
    wanted = fold(word)
    return lambda token: fold(token.lstrip(SPACES)) == wanted


def _read_text(
    text: str, choice: Mapping[str, Any], question: Question, margin: float, usage: Usage | None, secret: str
) -> Reading:
    said = text.strip().removesuffix(".")
    hits = [bool(said) and _matcher(label)(said) for label in question.labels]
    if sum(hits) == 1:
        k = len(hits)
        # The written label is `margin` nats above each of the others, and the labels together have probability 1.
        rest = -math.log(math.exp(margin) + k - 1)
        return Reading(tuple(rest + margin * hit for hit in hits), usage=usage)
    if choice.get("finish_reason") == "length" and said:
        return Reading(failure=Status.TRUNCATED, detail=clean(f"no verdict in: {text}", secret=secret), usage=usage)
    expected = ", ".join(label.strip() for label in question.labels) or "labels as text"
    words = clean(f"got {text!r}, expected one of: {expected}", secret=secret)
    return Reading(failure=Status.UNPARSABLE, detail=words, usage=usage)


def _shown(logprobs: Any) -> dict[str, float]:
    """The tokens shown at the first position, in either of the two formats."""
    if logprobs is None:
        raise _GarbageError("the reply has no log-probs; if the endpoint cannot give them, set read = 'text'")
    _dict(logprobs, "logprobs")
    shown: dict[str, float] = {}
    if isinstance(content := logprobs.get("content"), list):  # as in chat
        place = _dict(_first(content, "logprobs.content"), "logprobs.content")
        entries = place.get("top_logprobs")
        # The sampled token is not always among the top ones.
        drawn = [place] if place.get("logprob") is not None else []
        for entry in [*(entries if isinstance(entries, list) else []), *drawn]:
            _dict(entry, "top_logprobs")
            shown.setdefault(_token(entry.get("token")), _logprob(entry.get("logprob")))
    else:  # as in completions
        top = _dict(_first(logprobs.get("top_logprobs"), "logprobs.top_logprobs"), "top_logprobs")
        shown = {_token(token): _logprob(value) for token, value in top.items()}
    if not shown:
        raise _GarbageError("the reply shows no token at all")
    return shown


def _usage(value: Any) -> Usage | None:
    """None when it is missing or not a count."""
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    prompt, output = value.get("prompt_tokens"), value.get("completion_tokens", 0)
    if not (_is_count(prompt) and _is_count(output)):
        return None
    return Usage(prompt, min(cached, prompt) if _is_count(cached) else 0, output)


def _num_labels(question: Question) -> int:
    return len(question.label_ids) or len(question.labels)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 10**8


def _json(body: bytes, secret: str) -> dict[str, Any]:
    try:
        reply = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _GarbageError(
            f"the reply is not JSON ({clean(error)}): {clean(body[:4096].decode(errors='replace'), secret=secret)[:60]}"
        ) from None
    return _dict(reply, "the reply")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _first(value: Any, name: str) -> Any:
    if not isinstance(value, list) or not value:
        raise _GarbageError(f"`{name}` is missing or empty")
    return value[0]


def _dict(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _GarbageError(f"`{name}` is {type(value).__name__}, expected an object")
    return value


def _token(value: Any) -> str:
    if not isinstance(value, str):
        raise _GarbageError(f"a token is {type(value).__name__}, expected text")
    return value


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _GarbageError(f"a log-prob is {type(value).__name__}, expected a number")
    if not -1e6 < value <= 0.01:  # also excludes NaN
        raise _GarbageError(f"a log-prob is {clean(value)}, expected one that is not above 0")
    return min(float(value), 0.0)


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    return min(top + math.log(math.fsum(math.exp(value - top) for value in values)), 0.0)


# -- any other reply -------------------------------------------------------------------------------------------


def read_error(status: int, headers: Mapping[str, str], body: bytes, *, now: float, secret: str = "") -> Problem:
    """The meaning of a reply with another status, and whether to retry."""
    code, words = _error(body)
    after = retry_after(headers.get("retry-after"), now=now)
    waiting = f" (it asks to wait {after:.0f} s)" if after else ""
    detail = clean(f"the endpoint answered {status}{waiting}" + (f": {words}" if words else ""), secret=secret)

    def problem(kind: Status, **facts: Any) -> Problem:
        return Problem(status=kind, detail=detail, code=status, **facts)

    if status in (401, 403, 404) or 300 <= status < 400:
        return problem(Status.TRANSPORT_ERROR, is_fatal=True)
    if status == 402 or "insufficient_quota" in code:
        # The account is empty: asked again later, under a new budget, the question finds its answer.
        return problem(Status.BUDGET_SKIP, is_down=True)
    if status == 429:
        return problem(Status.TRANSPORT_ERROR, may_retry=True, after_s=after)
    if status >= 500:
        return problem(Status.TRANSPORT_ERROR, may_retry=True, after_s=after, is_down=True)
    if status == 408:
        return problem(Status.TIMEOUT)
    if "content_filter" in code or "content_policy" in code:
        return problem(Status.REFUSAL)
    # vLLM has no code for this, only a message.
    if "context_length" in code or "maximum context length" in words or status == 413:
        return problem(Status.TRUNCATED)
    return problem(Status.ENGINE_ERROR)


def retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date; `now` is the time of day.

    >>> retry_after("2.5", now=0), retry_after("Thu, 01 Jan 1970 00:01:00 GMT", now=20.0), retry_after("soon", now=0)
    (2.5, 40.0, None)
    """
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _error(body: bytes) -> tuple[str, str]:
    """Code and message of an error in the usual form, or the body itself."""
    try:
        reply = json.loads(body)
        error = reply.get("error", reply) if isinstance(reply, dict) else reply
        if isinstance(error, dict):
            code = f"{error.get('code')} {error.get('type')}"
            return code, str(error.get("message") or error.get("detail") or "")
        return "", str(error)
    except (ValueError, RecursionError):
        return "", body[:MOST_DETAIL].decode(errors="replace")
