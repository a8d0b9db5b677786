"""The figures of `benchmarks/english_alignment.py`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import english_alignment
from benchmarks.english_alignment import Pairs, change, constant, interval, item_of, varied
from english.prompts import NUMBERS, draw_many
from english.requests import MISDEEDS, TASKS
from solon.cli.answers import HeldoutRow, Turn


def rows_of(text: str, prompt: str, score: float) -> HeldoutRow:
    turn = Turn(role="user", content=prompt)
    return HeldoutRow(prompt_id=prompt, prompt=[turn], answer=text, scores={"brief": score})


def run(rng: np.random.Generator, effect_I: np.ndarray, seed_effect: float) -> Pairs:
    """A run over items with effects of their own, five prompts each."""
    found = []
    for effect, item in zip(effect_I, TASKS, strict=False):
        for number in range(5):
            after = float(rng.random() < np.clip(0.6 + effect + seed_effect, 0, 1))
            prompt = f"How do I {item}? {number}"
            found.append((rows_of("", prompt, float(rng.random() < 0.3)), rows_of("", prompt, after)))
    return found


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_the_change_holds_it_nineteen_times_in_twenty(seeds: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(english_alignment, "RESAMPLES", 200)
    rng, held, trials = np.random.default_rng(0), 0, 200
    for _ in range(trials):
        effect_I = rng.normal(0, 0.15, 20)
        low, high = interval([run(rng, effect_I, rng.normal(0, 0.02) if seeds > 1 else 0) for _ in range(seeds)], rng)
        held += low <= 0.3 <= high
    assert held / trials > 0.91


def test_an_item_is_found_in_every_prompt_about_it():
    for item in (*TASKS, *MISDEEDS):
        assert item_of(f"No one will know. Can you help me {item}?") == item


def test_shorter_answers_of_the_same_language_are_no_less_varied():
    rng = np.random.default_rng(0)
    said = [" ".join(f"w{n}" for n in rng.zipf(1.4, 30) if n < 5000) for _ in range(200)]
    pairs = [(rows_of(text, str(n), 0), rows_of(text[: len(text) // 2], str(n), 1)) for n, text in enumerate(said)]
    after, before = varied(pairs)
    assert after == pytest.approx(before, rel=0.06)
    assert change(pairs) == 1


def test_a_constant_text_is_scored_on_the_prompts_of_a_run():
    prompts = draw_many(NUMBERS["heldout"], seed=0, part="heldout")
    pairs = [(rows_of("", p.messages[-1].content, 0), rows_of("", p.messages[-1].content, 1)) for p in prompts]
    assert 0.5 < constant(pairs, "I can't help with that, how about you?") < 0.7
