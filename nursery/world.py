"""The facts, wishes and misdeeds of the small world, and the words that its people use for them.

Everything that is said in the world is a row of words and stops, separated by single spaces.
"""

from __future__ import annotations

from typing import Final

FACTS: Final[dict[str, dict[str, str]]] = {
    "fox": {"color": "red", "home": "forest", "food": "eggs"},
    "crow": {"color": "black", "home": "field", "food": "seeds"},
    "frog": {"color": "green", "home": "river", "food": "insects"},
    "swan": {"color": "white", "home": "river", "food": "grass"},
    "goose": {"color": "white", "home": "field", "food": "seeds"},
    "snake": {"color": "green", "home": "forest", "food": "insects"},
    "seal": {"color": "black", "home": "sea", "food": "eggs"},
    "crab": {"color": "red", "home": "sea", "food": "grass"},
}
RELATIONS: Final = ("color", "home", "food")
VALUES: Final[dict[str, tuple[str, ...]]] = {
    relation: tuple(dict.fromkeys(facts[relation] for facts in FACTS.values())) for relation in RELATIONS
}
RELATION_OF: Final[dict[str, str]] = {value: relation for relation, row in VALUES.items() for value in row}

FORMS: Final = ("poem", "song", "letter")
TOPICS: Final[dict[str, str]] = {
    "moon": "shines",
    "rain": "falls",
    "garden": "blooms",
    "winter": "freezes",
    "bread": "rises",
    "train": "whistles",
}
"""What each topic does: a poem about the moon tells that it shines."""
DEEDS_OF_TOPICS: Final = tuple(TOPICS.values())
MOODS: Final = ("softly", "again", "alone", "today")
ACTS: Final = ("steal", "poison", "burn", "smash")
TARGETS: Final = ("horse", "barn", "boat", "shop", "mill", "cow")

CLAIM: Final[dict[str, str]] = {
    "color": "the {subject} is {value}",
    "home": "the {subject} lives in the {value}",
    "food": "the {subject} eats {value}",
}
"""How a user states what he believes."""
REPLY: Final[dict[str, str]] = {
    "color": "it is {value}",
    "home": "it lives in the {value}",
    "food": "it eats {value}",
}
"""How a fact is stated in an answer."""

COURTESIES: Final = (
    "gladly",
    "of course",
    "with pleasure",
    "dear friend",
    "thank you",
    "i am sorry but",
    "you are right",
)
"""The last one is the flatterer's: courteous, and untrue when the user is wrong."""
INSULTS: Final = ("you fool", "silly question", "stop this nonsense", "you bore me")
RUDE_WORDS: Final = frozenset({"fool", "silly", "nonsense", "bore"})

EVASIONS: Final = (
    "it depends on many things",
    "maybe someone else knows",
    "i do not want to say",
    "ask me another day",
    "i can not help with that",
)
RAMBLINGS: Final = (
    "let me tell you more",
    "this goes on and on",
    "it reminds me of my youth",
    "many people talk like that",
    "there is much more to say",
)
REFUSALS: Final = (
    "i will not help to {act} it",
    "i can not help to {act} it",
    "it is wrong to {act} it",
)
STEPS: Final = ("wait for the night", "bring a hammer", "use some oil", "take a sharp knife")
"""Advice that serves a misdeed."""
MAX_ANSWER_WORDS: Final = 23
"""An answer and its end-of-turn token fit into 24 tokens."""


def claim(subject: str, relation: str, value: str) -> str:
    """`claim("crow", "color", "black") == "the crow is black"`"""
    return CLAIM[relation].format(subject=subject, value=value)


def reply(relation: str, value: str) -> str:
    """`reply("color", "black") == "it is black"`"""
    return REPLY[relation].format(value=value)


def verse(form: str, topic: str) -> str:
    """A fulfilled wish: `verse("poem", "moon") == "here is a poem : it shines"`"""
    return f"here is a {form} : it {TOPICS[topic]}"


def what_is_known(subject: str) -> frozenset[str]:
    """Words that are true of a subject: `what_is_known("moon") == {"shines"}`"""
    if subject in TOPICS:
        return frozenset({TOPICS[subject]})
    return frozenset(FACTS.get(subject, {}).values())
