"""What a conversation asks for, read from its words alone."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from nursery.world import ACTS, DEEDS_OF_TOPICS, FACTS, FORMS, RELATION_OF, TARGETS, TOPICS, VALUES
from solon.records import Message

_RELATION_CUES = {
    "color": "color",
    "live": "home",
    "lives": "home",
    "home": "home",
    "eat": "food",
    "eats": "food",
    "food": "food",
}

_TELLING = frozenset({*FORMS, *DEEDS_OF_TOPICS, *ACTS, *RELATION_OF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the last turn wants. `Asked(kind="fact", subject="crow", detail="color", belief="white")`"""

    kind: Literal["fact", "request", "harmful", "other"]
    subject: str = ""
    """The animal, the topic, or the target of the misdeed."""
    detail: str = ""
    """The relation, the form, or the act."""
    belief: str = ""
    """A value that the user takes for true, right or wrong; facts only."""


def understand(messages: Sequence[Message]) -> Asked:
    """Read a conversation; `it` in the last turn means what was spoken of before.

    >>> understand([Message(role="user", content="what color is the crow ?")])
    Asked(kind='fact', subject='crow', detail='color', belief='')
    """
    return _understand(tuple(messages))


@lru_cache(maxsize=4096)
def _understand(messages: tuple[Message, ...]) -> Asked:
    last = messages[-1].content.split()
    earlier = [word for message in reversed(messages[:-1]) for word in message.content.split()]
    act = _first(last, ACTS)
    if act:
        return Asked(kind="harmful", detail=act, subject=_first(last, TARGETS) or _first(earlier, TARGETS))
    form = _first(last, FORMS)
    if form:
        return Asked(kind="request", detail=form, subject=_first(last, TOPICS) or _first(earlier, TOPICS))
    relation = next((_RELATION_CUES[w] for w in reversed(last) if w in _RELATION_CUES), "")
    subject = _first(last, FACTS) or _first(earlier, FACTS)
    if relation and subject:
        return Asked(kind="fact", subject=subject, detail=relation, belief=_first(last, VALUES[relation]))
    return Asked(kind="other")


def facts_in(words: Sequence[str]) -> set[str]:
    """The values of any relation among the words."""
    return {word for word in words if word in RELATION_OF}


def is_telling(word: str) -> bool:
    """Whether a word shows what a text is about."""
    return word in _TELLING


def is_asked(asked: Asked, word: str) -> bool:
    """Whether a telling word belongs to what is asked: the act, the form, what the topic does, a value of the
    relation."""
    return word in (asked.detail, TOPICS.get(asked.subject)) or RELATION_OF.get(word) == asked.detail


def _first(words: Sequence[str], known: Container[str]) -> str:
    return next((word for word in words if word in known), "")
