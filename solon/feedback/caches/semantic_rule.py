"""Whether two texts are so alike that a verdict on one may be used for the other. Decided by words, not by distance.

Judges compare near-identical answers to one prompt, and the one word in which they differ is often the label: an
embedding puts "it is safe" and "it is not safe" close together. So the rule compares the parts that carry the label:
numbers, negations, names, code, refusals, and the order of the common words.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

_NUMBER_TEXT = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half
    quarter third once twice thrice double triple first second last dozen both each every all some any most few many
    more less least fewer only
"""
_NEGATION_TEXT = """
    no not never none nobody nothing nowhere neither nor without cannot hardly scarcely barely unless except lack lacks
    lacking refuse refuses refused fail fails failed deny denies denied avoid avoids stop stops false wrong untrue
    incorrect unable unlike against but however although though
"""
_NUMBER_WORDS = frozenset(_NUMBER_TEXT.split())
_NEGATIONS = frozenset(_NEGATION_TEXT.split())
_COURTESIES = frozenset({"a", "an", "the", "please", "kindly", "well", "also", "just", "really", "indeed"})
"""Words that may be missing from one text. Any other word may be the label, as in "it raises" and "it lowers"."""
_REFUSALS = ("i cannot", "i can't", "i can not", "i won't", "i will not", "i am unable", "i'm unable", "as an ai",
             "i'm sorry", "i am sorry", "i refuse", "i must decline")  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,:/]\d+)*%?")
_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
MOST_CHARACTERS = 20_000
"""Longer texts are never compared."""


@dataclass(frozen=True, slots=True)
class Substance:
    """The parts of a text that must not differ, and its words in order."""

    numbers: tuple[str, ...]
    negations: tuple[str, ...]
    names: tuple[str, ...]
    code: tuple[str, ...]
    refusals: tuple[str, ...]
    words: tuple[str, ...]


@lru_cache(maxsize=8192)
def substance(text: str) -> Substance:
    """The substance of one answer."""
    text = text[:MOST_CHARACTERS]
    plain = _CODE.sub(" ", text)
    spelled = _WORD.findall(plain.replace("\u2019", "'"))
    words = tuple(word.lower() for word in spelled)
    return Substance(
        numbers=tuple(sorted([*_NUMBER.findall(plain), *(w for w in words if w in _NUMBER_WORDS)])),
        negations=tuple(sorted(w for w in words if w in _NEGATIONS or w.endswith("n't"))),
        names=tuple(sorted(_names(plain, spelled))),
        code=tuple(_CODE.findall(text)),
        refusals=tuple(marker for marker in _REFUSALS if marker in text.lower().replace("\u2019", "'")),
        words=words,
    )


def may_stand_for(one: str, other: str) -> bool:
    """Whether the two texts do not differ in a way that decides verdicts.

    They need the same numbers, negations, names, code and refusals; lengths within a tenth of each other; the common
    words in the same order (a dog that bites a man is no man that bites a dog); and only courtesies that one of them
    lacks.
    """
    if one == other:
        return True
    if max(len(one), len(other)) > MOST_CHARACTERS:
        return False
    a, b = substance(one), substance(other)
    if (a.numbers, a.negations, a.names, a.code, a.refusals) != (b.numbers, b.negations, b.names, b.code, b.refusals):
        return False
    if not a.words or not b.words or not 0.9 <= len(a.words) / len(b.words) <= 1 / 0.9:
        return False
    common = Counter(a.words) & Counter(b.words)
    only_one, only_other = Counter(a.words) - common, Counter(b.words) - common
    if not _COURTESIES.issuperset([*only_one, *only_other]):
        return False
    return _kept(a.words, common) == _kept(b.words, common)


def is_verifiable(text: str) -> bool:
    """Whether a prompt is about numbers or code, where one character decides."""
    return bool(_CODE.search(text) or re.search(r"\d|[=<>+*/^]{1,2}|\bdef\b|\bclass\b|;\s*$", text, re.MULTILINE))


def _names(plain: str, spelled: list[str]) -> list[str]:
    """Words with an initial capital that does not just open a sentence, or with an inner capital."""
    openers = set(re.findall(r"(?:^|[.!?:\n]\s*)([^\W_]+)", plain))
    return [w for w in spelled if w != "I" and not w.startswith("I'") and (
        any(c.isupper() for c in w[1:]) or (w[:1].isupper() and w not in openers)
    )]  # fmt: skip


def _kept(words: tuple[str, ...], common: Counter[str]) -> list[str]:
    """The common words in order, each as often as both texts have it."""
    left = Counter(common)
    kept = []
    for word in words:
        if left[word] > 0:
            left[word] -= 1
            kept.append(word)
    return kept
