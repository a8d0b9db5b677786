"""Shortens conversations: whole turns first, oldest first; never a system message, never the last user's turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from solon.records import Message

Length = Callable[[Sequence[Message]], int]
"""Number of tokens of a conversation in the model's chat template."""


def fitted(messages: Sequence[Message], *, room: int, length: Length) -> tuple[Message, ...] | None:
    """The conversation within `room` tokens; None when its system messages and one character are already too long.

    The oldest turns are removed first, so that the rest begins with a user turn. If the last user turn alone is too
    long, its beginning is removed, since the end more often holds the question. Every candidate is measured by
    `length`, which may raise.

    >>> fitted([Message(role="user", content="abcdef")], room=3, length=lambda m: len(m[-1].content))
    (Message(role='user', content='def'),)
    """
    messages = tuple(messages)
    if length(messages) <= room:
        return messages
    starts = [n for n, message in enumerate(messages) if n and message.role == "user" and n < len(messages) - 1]
    candidates = [_from(messages, start) for start in starts]
    # A later start gives a shorter conversation: the first that fits is found by bisection.
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if length(candidates[middle]) <= room:
            high = middle
        else:
            low = middle + 1
    if low < len(candidates):
        return candidates[low]
    return _with_end(_from(messages, len(messages) - 1), room, length)


def _from(messages: tuple[Message, ...], start: int) -> tuple[Message, ...]:
    return (*(message for message in messages[:start] if message.role == "system"), *messages[start:])


def _with_end(messages: tuple[Message, ...], room: int, length: Length) -> tuple[Message, ...] | None:
    """The conversation with the longest end of the last turn's text that fits."""
    *before, last = messages

    def ending(characters: int) -> tuple[Message, ...]:
        return (*before, Message(role=last.role, content=last.content[-characters:].lstrip()))

    if length(messages) <= room:
        return messages
    # `most` characters are known to fit, `least_bad` are known not to fit.
    most, least_bad = 0, len(last.content)
    while least_bad - most > 1:
        middle = (most + least_bad) // 2
        if length(ending(middle)) <= room:
            most = middle
        else:
            least_bad = middle
    return ending(most) if most and ending(most)[-1].content.strip() else None
