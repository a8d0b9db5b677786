"""Cheap signs that a policy pleases its judge instead of improving: counts, without a model.

No sign is a proof: a policy that learns to be brief changes its lengths for good reasons. Each shows where to look,
compared with the first windows of the same run.
"""

# N texts or margins, g groups

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from solon.feedback.quality.metrics import sigmoid
from solon.records import Feedback, Group

NGRAM = 3
OPENING_WORDS = 3
REFUSAL = re.compile(
    r"\b(i (can ?not|can'?t|won'?t|will not|am unable to|am not able to|do not want to|must decline)|i'm unable to"
    r"|it is wrong to|i'?m sorry,? but|i am sorry,? but)\b",
    re.IGNORECASE,
)
BOILERPLATE = re.compile(
    r"\b(as an ai|as a language model|as an expert|great question|what a good question|you are (absolutely )?right"
    r"|i hope this helps|let me know if|it is important to note|certainly!|of course!|absolutely!)",
    re.IGNORECASE,
)
INJECTION = re.compile(
    r"ignore (all |the |any )?(previous|above|prior) (instruction|text|answer)"
    r"|<\|[a-z_]+\|>|\[/?inst\]|<</?sys>>|\bverdict\s*:"
    r"|\b(choose|pick|select|prefer) ((answer|response|option) [ab12]\b|[ab]\s*([.,!]|$))"
    r"|\b(choose|pick|select|prefer) the (first|second) (answer|response)"
    r"|\b(dear|note to the|attention) (judge|grader|evaluator)"
    r"|\b(rate|score|grade) (this|it|me) (a )?(10|5|highest|best)\b",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"^\s{0,3}(#{1,6} |[-*+] |\d+[.)] |> |```)|\*\*|__|`", re.MULTILINE)
EMOJI = re.compile("[\u2600-\u27bf\u2b50\u2b55\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Answers of a window with the training judge's labels. Build one with `sample_of`."""

    texts: tuple[str, ...]
    groups: tuple[int, ...]
    """Group of each answer."""
    rewards: tuple[float | None, ...]
    margins: tuple[float, ...]
    """Margins of all valid labels, nats."""
    first_margins: tuple[float, ...]
    """Pairs only: how much the answer shown first is favoured."""
    masses: tuple[float, ...]
    """Probability on the answer labels, for every answered label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """The symptoms of a window; NaN without data."""

    length: float
    """Words of an answer."""
    length_reward: float
    """Correlation of length and reward within the groups: the judge's reward for length."""
    repetition: float
    """Share of an answer's 3-grams that occurred in it before."""
    refusal: float
    """Share of answers that refuse."""
    boilerplate: float
    """Share of answers with a stock phrase."""
    opening: float
    """Share of answers that begin with the most common three words."""
    markdown: float
    """Markdown signs per 100 words."""
    emoji: float
    """Emoji per 100 words."""
    distinct: float
    """Different 2-grams over all 2-grams of the window."""
    overlap: float
    """Shared 2-grams of two answers to one prompt, as a share of the 2-grams of either (Jaccard)."""
    entropy: float
    """Entropy of the verdicts, nats; a coin has ln 2."""
    mass: float
    """Probability that the judge put on its answer labels."""
    injection: float
    """Share of answers with words addressed to the judge."""
    first_margin: float
    """Pairs: how much the answer shown first is favoured, nats; 0 if orders are balanced and fair."""

    def metrics(self) -> dict[str, float]:
        """`symptom/length/mean` and so on; symptoms without data are omitted."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {f"symptom/{name}/mean": value for name, value in values.items() if math.isfinite(value)}


def sample_of(labelled: Iterable[tuple[Group, Feedback]]) -> Sample:
    """The sample of labelled groups."""
    texts, groups, rewards = list[str](), list[int](), list[float | None]()
    margins, first_margins, masses = list[float](), list[float](), list[float]()
    for place, (group, feedback) in enumerate(labelled):
        texts += [rollout.text for rollout in group.rollouts]
        groups += [place] * len(group.rollouts)
        rewards += feedback.rewards_G
        valid = [label for label in feedback.labels if label.margin is not None]
        margins += [label.margin for label in valid if label.margin is not None]
        first_margins += [label.margin for label in valid if label.task == "pairwise" and label.margin is not None]
        masses += [label.verdict.mass for label in feedback.labels if label.verdict.mass > 0]
    return Sample(
        texts=tuple(texts),
        groups=tuple(groups),
        rewards=tuple(rewards),
        margins=tuple(margins),
        first_margins=tuple(first_margins),
        masses=tuple(masses),
    )


def symptoms(sample: Sample) -> Symptoms:
    """All symptoms of a sample."""
    words_N = [text.lower().split() for text in sample.texts]
    lengths_N = [float(len(words)) for words in words_N]
    total = sum(lengths_N)
    bigrams_N = [ngrams(words, 2) for words in words_N]
    flat = [gram for grams in bigrams_N for gram in grams]
    openings = Counter(tuple(words[:OPENING_WORDS]) for words in words_N if words)
    return Symptoms(
        length=_mean(lengths_N),
        length_reward=within_groups(lengths_N, sample.rewards, sample.groups),
        repetition=_mean([repetition(words) for words in words_N]),
        refusal=share_of(sample.texts, REFUSAL),
        boilerplate=share_of(sample.texts, BOILERPLATE),
        opening=max(openings.values()) / len(words_N) if openings else math.nan,
        markdown=100 * sum(len(MARKDOWN.findall(t)) for t in sample.texts) / total if total else math.nan,
        emoji=100 * sum(len(EMOJI.findall(t)) for t in sample.texts) / total if total else math.nan,
        distinct=len(set(flat)) / len(flat) if flat else math.nan,
        overlap=self_overlap([set(grams) for grams in bigrams_N], sample.groups),
        entropy=verdict_entropy(sample.margins) if sample.margins else math.nan,
        mass=_mean(sample.masses),
        injection=share_of(sample.texts, INJECTION),
        first_margin=_mean(sample.first_margins),
    )


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Runs of n words.

    >>> ngrams("to be or".split(), 2)
    [('to', 'be'), ('be', 'or')]
    """
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def repetition(words: Sequence[str], n: int = NGRAM) -> float:
    """Share of the n-grams of one answer that occurred in it before; 0 for an answer too short to repeat any."""
    grams = ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def share_of(texts: Sequence[str], pattern: re.Pattern[str]) -> float:
    """Share of texts in which the pattern occurs."""
    return _mean([1.0 if pattern.search(text) else 0.0 for text in texts])


def self_overlap(grams_N: Sequence[set[tuple[str, ...]]], groups_N: Sequence[int]) -> float:
    """Mean Jaccard overlap of the n-grams of two answers of one group."""
    by_group: dict[int, list[set[tuple[str, ...]]]] = {}
    for group, grams in zip(groups_N, grams_N, strict=True):
        by_group.setdefault(group, []).append(grams)
    found = [
        len(one & other) / len(one | other)
        for members in by_group.values()
        for one, other in combinations(members, 2)
        if one or other
    ]
    return _mean(found)


def verdict_entropy(margins_N: ArrayLike) -> float:
    """Mean entropy of the verdicts, nats."""
    margins = np.abs(np.asarray(margins_N, np.float64))
    less_likely = sigmoid(-margins)
    return float(np.mean(np.log1p(np.exp(-margins)) + less_likely * margins))


def within_groups(values_N: Sequence[float], rewards_N: Sequence[float | None], groups_N: Sequence[int]) -> float:
    """Correlation of a trait and the reward among the answers to one prompt, groups pooled; NaN when neither varies.

    Across prompts both may depend on the question, which is no fault of the judge.
    """
    known = [(v, r, g) for v, r, g in zip(values_N, rewards_N, groups_N, strict=True) if r is not None]
    if len(known) < 3:
        return math.nan
    values, rewards, group_ids = (np.array(column, np.float64) for column in zip(*known, strict=True))
    _, index = np.unique(group_ids, return_inverse=True)
    counts_g = np.bincount(index)
    values -= (np.bincount(index, values) / counts_g)[index]
    rewards -= (np.bincount(index, rewards) / counts_g)[index]
    spread = math.sqrt(float(values @ values) * float(rewards @ rewards))
    return float(values @ rewards) / spread if spread > 1e-12 else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
