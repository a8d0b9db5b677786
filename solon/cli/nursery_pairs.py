"""Pairs with gold verdicts from the nursery's oracles: answers of the policy, and answers of every quality."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from solon.feedback.trials.gold import GoldPair, gold_pair

if TYPE_CHECKING:
    from nursery.grow import Nursery

NUM_PROMPTS = 400
MOST_ROUNDS = 25


def nursery_gold(grown: Nursery, number: int, *, held_out: bool = True, seed: int = 0) -> tuple[GoldPair, ...]:
    """`number` different pairs that the oracles decide, each under one principle; subsets `policy` and `drawn`.

    held_out: about prompts that no model was trained on. Half of the answers are sampled from the policy, half are
    drawn or spoilt. Imports torch. Returns fewer when the small world has no more.
    """
    from nursery.lessons import Mix, draw_any
    from nursery.model import load
    from nursery.oracles import adherence
    from nursery.prompts import draw_many
    from nursery.sampling import sample_texts
    from solon.constitution.constitution import Constitution

    principles = {p.id: p for p in Constitution.load(grown.constitution).principles}
    policy, rng = load(grown.policy), random.Random(f"gold-{seed}-{held_out}")
    prompts = draw_many(min(NUM_PROMPTS, number), seed=seed, held_out=held_out)
    found: dict[tuple[str, tuple[str, ...], str], GoldPair] = {}
    for turn in range(MOST_ROUNDS):
        written = [sample_texts(policy, prompts, seed=2 * (seed + turn) + 1000 + i) for i in (0, 1)]
        for prompt, *by_policy in zip(prompts, *written, strict=True):
            drawn = [draw_any(rng, prompt, Mix()) for _ in (0, 1)]
            for subset, (first, second) in (("policy", by_policy), ("drawn", drawn)):
                kept, other = adherence(prompt, first), adherence(prompt, second)
                for name in [name for name in kept if kept[name] != other[name]]:
                    pair = gold_pair(
                        prompt,
                        first,
                        second,
                        target=float(kept[name]),
                        principles=[principles[name]],
                        subset=subset,
                    )
                    found.setdefault((prompt.prompt_id, pair.items[0].answers, name), pair)
        if len(found) >= number:
            break
    return tuple(rng.sample(list(found.values()), min(number, len(found))))
