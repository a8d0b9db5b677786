"""Labels that a reward model needs when they are selected, compared with labels of random pairs.

    python benchmarks/selection.py [--quick] [--policy NAME] [--json PATH]

The nursery's policy generates two answers to each prompt; the oracles say which of them follows more principles (a tie
is p = 1/2). A reward model starts from the body of the nursery's judge and is retrained at every number of labels, with
the same recipe for both sides. One side labels random pairs. The other labels in rounds: the reward model of the last
round scores all unlabelled pairs, and the selection policy turns the scores into propensities. Accuracy is measured on
pairs about held-out prompts that both sides share. The curves are means over seeds, made monotone.

The reward model of a random half is then the proxy of doubly robust margins, against inverse propensity weighting.
"""

# N pairs, K proxies

from __future__ import annotations

import math
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray

from benchmarks._harness import Row, arguments, report
from benchmarks._labels import nursery
from learners.networks.posterior import margins_of_draws
from learners.networks.reward_model import PreferencePair, RewardModel, accuracy, embed, margins
from learners.objectives.reward_model import RewardModelConfig, fit
from nursery.grow import Nursery
from nursery.language import WordEncoder
from nursery.oracles import adherence
from nursery.prompts import draw
from nursery.sampling import sample
from solon.feedback.selection.estimators import Control, doubly_robust, fit_control
from solon.feedback.selection.policy import Bandit, Plan, SelectionConfig, plan, select
from solon.feedback.selection.worth import Signals

POLICIES = {
    "disagreement": SelectionConfig(policy="disagreement", disagreement="js", sharpness=2),
    "variance": SelectionConfig(policy="disagreement", disagreement="variance", sharpness=2),
    "uncertainty": SelectionConfig(policy="uncertainty", sharpness=2),
    "near_tie": SelectionConfig(policy="near_tie", near_tie_width=0.5),
    "diversity": SelectionConfig(policy="diversity", clusters=64),
    "bandit": SelectionConfig(
        policy="bandit", bandit_policies=("disagreement", "uncertainty", "diversity"), disagreement="js", clusters=64
    ),
}
FLOOR_SHARE = 0.1
"""No pair's propensity is below this share of the round's rate."""
RECIPE = RewardModelConfig(learning_rate=5e-4, head_learning_rate=3e-2, batch=16)
LEAST_EPOCHS = 4
HEADS = 16
AT_ONCE = 200
RATE, AUDITED, TURNS = 0.25, 200, 40
"""Of the doubly robust margins: share that is labelled, pairs that the control is fitted on, repetitions."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of the experiment."""

    pool: int
    held_out: int
    seeds: int
    least_steps: int
    """Every fit takes so many steps at least, and `LEAST_EPOCHS` passes, so that neither side is short of training."""
    random_labels: tuple[int, ...]
    selected_labels: tuple[int, ...]


FULL = Scale(2000, 1000, 3, 100, (320, 640), (80, 160, 240, 320, 480))
QUICK = Scale(400, 250, 2, 20, (40, 80), (30, 60))


@dataclass(frozen=True, slots=True)
class Written:
    """A pair of the policy's answers. `kept`: net number of principles that only the first answer follows."""

    pair: PreferencePair
    kept: int


@dataclass(frozen=True, slots=True)
class World:
    """State shared by all runs."""

    nursery: Nursery
    pool: tuple[Written, ...]
    held_out: tuple[Written, ...]
    scale: Scale

    @property
    def decided(self) -> list[PreferencePair]:
        return [one.pair for one in self.held_out if one.kept]


Curve = dict[int, float]
"""Accuracy by the number of labels."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both curves of one seed, and the effect of the half-trained proxy on doubly robust margins."""

    random: Curve
    selected: Curve
    robust_sd: float
    plain_sd: float
    correlation: float


def written(grown: Nursery, number: int, *, held_out: bool) -> tuple[Written, ...]:
    """Pairs of different answers, with gold. Equal answers are detected without a label."""
    from nursery.model import load

    policy, encoder, rng = load(grown.policy), WordEncoder(), random.Random(f"selection-{held_out}")
    found: list[Written] = []
    while len(found) < number:
        prompts = [draw(rng, held_out=held_out) for _ in range(AT_ONCE)]
        asked = [encoder.encode_chat(prompt.messages) for prompt in prompts]
        both = [
            sample(policy, asked, end_id=encoder.eos_token_id, pad_id=encoder.pad_id, seed=rng.randrange(2**31))
            for _ in range(2)
        ]
        for prompt, ids, first, second in zip(prompts, asked, *both, strict=True):
            if first == second:
                continue
            one, two = (sum(adherence(prompt, encoder.decode(answer)).values()) for answer in (first, second))
            p = 0.5 + 0.5 * np.sign(one - two)
            pair = PreferencePair(first=(*ids, *first), second=(*ids, *second), p=float(p))
            found.append(Written(pair, one - two))
    return tuple(found[:number])


def trained(world: World, labelled: Sequence[PreferencePair], seed: int) -> RewardModel:
    """A reward model with fresh weights."""
    model = RewardModel.load(world.nursery.judge_fp, pad_id=WordEncoder().pad_id, device="cpu", seed=seed)
    epochs = max(LEAST_EPOCHS, math.ceil(world.scale.least_steps * RECIPE.batch / len(labelled)))
    fit(model, labelled, RECIPE.model_copy(update={"epochs": epochs, "seed": seed}))
    return model


def signals(
    model: RewardModel,
    labelled: Sequence[PreferencePair],
    pairs: Sequence[PreferencePair],
    config: SelectionConfig,
) -> Signals:
    """The reward model's predictions for unlabelled pairs."""
    known = Signals(num=len(pairs), margins_KN=margins_of_draws(model, labelled, pairs, draws=HEADS))
    if config.policy not in ("diversity", "bandit"):
        return known
    first, second = np.split(embed(model, [*(p.first for p in pairs), *(p.second for p in pairs)]), 2)
    return replace(known, embeddings_NH=first - second)


def selected_curve(world: World, config: SelectionConfig, seed: int) -> Curve:
    """Rounds of labels, each selected by the reward model of the one before."""
    order = np.random.default_rng(seed).permutation(len(world.pool)).tolist()
    budgets, curve, bandit = world.scale.selected_labels, Curve(), None
    labelled, left = order[: budgets[0]], order[budgets[0] :]
    for turn, budget in enumerate((*budgets[1:], 0)):
        known = [world.pool[i].pair for i in labelled]
        model = trained(world, known, seed)
        curve[len(labelled)] = accuracy(model, world.decided).value
        if not budget:
            break
        rate = (budget - len(labelled)) / len(left)
        round_config = config.model_copy(update={"rate": rate, "floor": FLOOR_SHARE * rate})
        seen = signals(model, known, [world.pool[i].pair for i in left], config)
        made = plan(seen, round_config, bandit)
        drawn = select([str(i) for i in left], made.propensities_N, round_config, seed=seed, turn=turn)
        chosen = np.array([selection.selected for selection in drawn])
        if config.policy == "bandit":
            bandit = learned(bandit, made, chosen, seen, [world.pool[i].pair.p for i in left], config)
        labelled = labelled + [i for i, c in zip(left, chosen, strict=True) if c]
        left = [i for i, c in zip(left, chosen, strict=True) if not c]
    return curve


def learned(
    bandit: Bandit | None,
    made: Plan,
    chosen_N: NDArray[np.bool_],
    seen: Signals,
    labels_N: Sequence[float],
    config: SelectionConfig,
) -> Bandit:
    assert seen.margins_KN is not None
    said_N = 1 / (1 + np.exp(-seen.margins_KN[0]))
    surprises_N = np.where(chosen_N, np.abs(np.array(labels_N) - said_N), np.nan)
    start = bandit or Bandit((0.0,) * len(config.bandit_policies))
    return start.learned(made, chosen_N, surprises_N, rate=config.bandit_rate)


def run_seed(world: World, config: SelectionConfig, seed: int) -> Outcome:
    """Both sides, and the doubly robust margins of the random side's second model."""
    import torch

    torch.set_num_threads(1)
    order = np.random.default_rng(seed).permutation(len(world.pool)).tolist()
    budgets, curve = world.scale.random_labels, Curve()
    sds = (math.nan, math.nan, math.nan)
    for place, budget in enumerate(budgets):
        model = trained(world, [world.pool[i].pair for i in order[:budget]], seed)
        curve[budget] = accuracy(model, world.decided).value
        if place == len(budgets) - 2:
            sds = scatter(model, world.held_out, seed)
    return Outcome(curve, selected_curve(world, config, seed), *sds)


def scatter(model: RewardModel, held_out: Sequence[Written], seed: int) -> tuple[float, float, float]:
    """Deviation of a margin from its label, doubly robust and by inverse propensity weighting alone, and how the proxy
    correlates with labels. The label is the number of principles kept more, less its mean over audited pairs."""
    proxies, labels = margins(model, [one.pair for one in held_out]), np.array([float(one.kept) for one in held_out])
    audited, rest = slice(0, min(AUDITED, len(labels) // 2)), slice(min(AUDITED, len(labels) // 2), None)
    labels = labels - labels[audited].mean()
    control = fit_control(proxies[audited], labels[audited], np.full(len(labels[audited]), RATE))
    ids, wanted = [str(i) for i in range(len(labels[rest]))], np.full(len(labels[rest]), RATE)
    errors: dict[Control, list[NDArray[np.float64]]] = {control: [], Control(0.0): []}
    for turn in range(TURNS):
        drawn = select(ids, wanted, SelectionConfig(rate=RATE), seed=seed, turn=turn)
        seen = np.where([selection.selected for selection in drawn], labels[rest], np.nan)
        for one, found in errors.items():
            found.append(doubly_robust(proxies[rest], seen, wanted, one, clip=math.inf).rewards_N - labels[rest])
    robust, plain = (float(np.concatenate(found).std()) for found in errors.values())
    return robust, plain, float(np.corrcoef(proxies[rest], labels[rest])[0, 1])


def monotone(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The nearest non-decreasing curve (pool adjacent violators): the first crossing of a noisy curve is biased."""
    blocks: list[list[float]] = []
    for _, value in curve:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value_b, size_b = blocks.pop()
            value_a, size_a = blocks.pop()
            blocks.append([(value_a * size_a + value_b * size_b) / (size_a + size_b), size_a + size_b])
    values = [value for value, size in blocks for _ in range(int(size))]
    return [(labels, value) for (labels, _), value in zip(curve, values, strict=True)]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Round by round: the number of selected labels varies a little from seed to seed."""
    rounds = zip(*(sorted(curve.items()) for curve in curves), strict=True)
    return monotone([tuple(np.mean(points, axis=0).tolist()) for points in rounds])


def labels_needed(curve: Sequence[tuple[float, float]], wanted: float) -> float:
    """By linear interpolation; infinite when the curve does not reach it."""
    before = curve[0]
    for at in curve:
        if at[1] >= wanted:
            rise = at[1] - before[1]
            return at[0] if rise <= 0 else before[0] + (at[0] - before[0]) * (wanted - before[1]) / rise
        before = at
    return math.inf


def share_needed(outcomes: Sequence[Outcome]) -> float:
    """Selected labels for the accuracy of all random ones, as a share of these; 1 when they do not reach it."""
    chance, chosen = mean_curve([o.random for o in outcomes]), mean_curve([o.selected for o in outcomes])
    labels, wanted = chance[-1]
    return min(1.0, labels_needed(chosen, wanted) / labels)


def rows(outcomes: Sequence[Outcome], name: str) -> list[Row]:
    chance, chosen = mean_curve([o.random for o in outcomes]), mean_curve([o.selected for o in outcomes])
    most = int(chance[-1][0])
    rng = np.random.default_rng(0)
    resampled = [share_needed([outcomes[i] for i in rng.integers(0, len(outcomes), len(outcomes))]) for _ in range(500)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    found = [
        Row(f"{name}: selected labels over {most} random ones, same accuracy", share_needed(outcomes), None, "<= 0.5")
    ]
    found += [
        Row(f"{name}: the same, low end over {len(outcomes)} seeds", float(low)),
        Row(f"{name}: the same, high end over {len(outcomes)} seeds", float(high)),
    ]
    found += [Row(f"random: error at {labels:.0f} labels, %", 100 * (1 - value)) for labels, value in chance]
    found += [Row(f"{name}: error at {labels:.0f} labels, %", 100 * (1 - value)) for labels, value in chosen]
    robust, plain, correlation = (
        float(np.mean([getattr(o, field) for o in outcomes])) for field in ("robust_sd", "plain_sd", "correlation")
    )
    return [
        *found,
        Row(f"SD of a doubly robust margin, {RATE:.0%} labelled (reference: weighting alone)", robust, plain),
        Row("correlation of its proxy, a reward model, with gold", correlation),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--policy", choices=[*POLICIES], default="disagreement", help="selection policy")
    options = parser.parse_args()
    scale = QUICK if options.quick else FULL
    grown = nursery()
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as workers:
        wanted = [
            workers.submit(written, grown, number, held_out=held_out)
            for number, held_out in ((scale.pool, False), (scale.held_out, True))
        ]
        world = World(grown, *(job.result() for job in wanted), scale)
        seeds = range(scale.seeds)
        outcomes = list(workers.map(run_seed, repeat(world), repeat(POLICIES[options.policy]), seeds))
    report("selection", rows(outcomes, options.policy), options.json)


if __name__ == "__main__":
    main()
