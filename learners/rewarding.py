"""Reward models for use as judges: an ensemble taught by pairs, its centre and scale, and how good it is.

`solon.feedback.judges.reward_judge` says how rewards become margins. Shifts are mean rewards of the policy's answers
that taught the members, so that a typical answer has a margin of 0. The scale is one over the temperature that fits
held-out pairs (Guo et al. 2017): after it margins are log-odds.

N pairs, M members.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learners.core.processes import device_of_ranks, run_on_ranks
from learners.core.ranks import ALONE, Ranks
from learners.core.written import write_networks
from learners.networks.reward_model import PreferencePair, RewardModel, score
from learners.objectives.reward_model import FitReport, RewardModelConfig, fit
from solon.engines.model_files import copy_companions
from solon.errors import InputError
from solon.feedback.judges.reward_judge import CENTRE, Centre, member_folder
from solon.feedback.quality.calibration import fit as fit_temperature
from solon.feedback.quality.intervals import Interval, mean
from solon.feedback.quality.metrics import ece, nll

FEWEST_OF_A_SUBSET = 10
"""Held-out pairs of a tag whose accuracy is reported."""
FOLDS = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heldout:
    """A pair that taught nothing, its prompt and its tags."""

    pair: PreferencePair
    prompt: str
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """How the models of one judge are made."""

    members: int
    pad_id: int
    pessimism: float = 0.0
    num_ranks: int = 1
    """Processes that train together, each with a part of every member."""
    threads: int = 1
    """CPU threads of one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """What was learned, and how good it is."""

    reports: Sequence[FitReport]
    """Of every member."""
    centre: Centre
    figures: Mapping[str, Any]
    """Of `examine`."""


def teach_and_save(
    model: str,
    pairs: Sequence[PreferencePair],
    heldout: Sequence[Heldout],
    config: RewardModelConfig,
    ensemble: Ensemble,
    *,
    save_to: Path,
) -> Taught:
    """From a language model to the directory of a judge, with the tokenizer, in this process or on several ranks.
    Raises InputError, RunFailedError."""
    arguments = (model, pairs, heldout, config, ensemble, save_to)
    if ensemble.num_ranks == 1:
        return _teach_and_save(ALONE, *arguments)
    device = device_of_ranks(ensemble.num_ranks, "auto", model)
    found: Taught = run_on_ranks(
        ensemble.num_ranks, _teach_and_save, *arguments, device=device, threads=ensemble.threads
    )[0]
    return found


def _teach_and_save(
    ranks: Ranks,
    model: str,
    pairs: Sequence[PreferencePair],
    heldout: Sequence[Heldout],
    config: RewardModelConfig,
    ensemble: Ensemble,
    out: Path,
) -> Taught:
    torch.set_num_threads(ensemble.threads)
    members, reports = teach(model, pairs, config, members=ensemble.members, pad_id=ensemble.pad_id, ranks=ranks)
    centre, figures = examine(members, heldout, centred(members, pairs, pessimism=ensemble.pessimism))
    save(members, centre, out, source=Path(model))
    return Taught(reports=reports, centre=centre, figures=figures)


def teach(
    model: str,
    pairs: Sequence[PreferencePair],
    config: RewardModelConfig,
    *,
    members: int,
    pad_id: int,
    ranks: Ranks = ALONE,
) -> tuple[list[RewardModel], list[FitReport]]:
    """Members with heads of different seeds, each on all pairs in an order of its own. Raises InputError,
    RunFailedError."""
    taught, reports = [], []
    for member in range(members):
        one = RewardModel.load(model, pad_id=pad_id, seed=config.seed + member, ranks=ranks)
        reports.append(fit(one, pairs, config.model_copy(update={"seed": config.seed + member})))
        taught.append(one)
    return taught, reports


def centred(members: Sequence[RewardModel], pairs: Sequence[PreferencePair], *, pessimism: float) -> Centre:
    """The centre, its scale still 1: the mean value of the answers of these pairs is 0. Raises InputError for pessimism
    with one member."""
    if len(members) < 2 and pessimism:
        raise InputError(f"pessimism = {pessimism:g} with one member, expected several: they have no disagreement")
    answers = list(dict.fromkeys(ids for pair in pairs for ids in (pair.first, pair.second)))
    rewards_MS = np.stack([score(one, answers) for one in members])
    centre = Centre(shifts=tuple(rewards_MS.mean(1).tolist()), pessimism=pessimism)
    rest = float(np.mean([centre.value(rewards_M) for rewards_M in rewards_MS.T.tolist()]))
    return dataclasses.replace(centre, shifts=tuple(shift + rest for shift in centre.shifts))


def margins_of(
    members: Sequence[RewardModel], pairs: Sequence[PreferencePair], centre: Centre
) -> tuple[Floats, Floats]:
    """Margins of every member, [M, N], and those of the ensemble, [N]: all before the scale."""
    first_MN, second_MN = (
        np.stack([score(one, [getattr(pair, side) for pair in pairs]) for one in members])
        for side in ("first", "second")
    )
    ensemble = [centre.raw(both) for both in zip(first_MN.T.tolist(), second_MN.T.tolist(), strict=True)]
    return first_MN - second_MN, np.array(ensemble)


def scale_of(margins_N: Floats, pairs: Sequence[PreferencePair]) -> float | None:
    """One over the temperature that fits the pairs; None where there are too few, or margins say nothing of them."""
    try:
        found = fit_temperature(margins_N, [one.p for one in pairs], [one.weight for one in pairs], fit_bias=False)
    except InputError:
        return None
    return None if found.bound == "flat" else 1 / found.temperature


def examine(
    members: Sequence[RewardModel], heldout: Sequence[Heldout], centre: Centre
) -> tuple[Centre, dict[str, Any]]:
    """The centre with its scale, and figures about decided held-out pairs: agreement, over all and by tag, likelihood
    and calibration error, and how far members disagree. Empty where there is no such pair.

    Intervals are bootstrapped over prompts. Likelihood and calibration error use scales that were fitted on other
    prompts.
    """
    decided = [one for one in heldout if one.pair.p != 0.5 and one.pair.weight > 0]
    if not decided:
        return centre, {"is_calibrated": False}
    pairs = [one.pair for one in decided]
    each_MN, margins_N = margins_of(members, pairs, centre)
    scale = scale_of(margins_N, pairs)
    prompts_N = np.unique([one.prompt for one in decided], return_inverse=True)[1]
    outside_N = _out_of_fold(margins_N, pairs, prompts_N, scale or 1.0)
    p_N, weights_N = np.array([one.p for one in pairs]), np.array([one.weight for one in pairs])
    right_N = (1 + np.sign(margins_N) * np.sign(p_N - 0.5)) / 2
    tags = sorted({tag for one in decided for tag in one.tags})
    rows = {tag: np.array([tag in one.tags for one in decided]) for tag in tags}
    found: dict[str, Any] = {
        "is_calibrated": scale is not None,
        "heldout_accuracy": asdict(_over_prompts(right_N, weights_N, prompts_N)),
        "heldout_nll": nll(outside_N, p_N).value(weights_N),
        "heldout_calibration_error": ece(outside_N, p_N, folded=True).value(weights_N),
        "by_tag": {
            tag: asdict(_over_prompts(right_N[row], weights_N[row], prompts_N[row]))
            for tag, row in rows.items()
            if row.sum() >= FEWEST_OF_A_SUBSET
        },
    }
    if len(members) > 1:
        sides_MN = np.sign(each_MN)
        found["members_accuracy"] = [
            float(np.average((1 + sides_N * np.sign(p_N - 0.5)) / 2, weights=weights_N)) for sides_N in sides_MN
        ]
        found["disagreement"] = float(each_MN.std(0, ddof=1).mean() * (scale or 1.0))
        found["members_contradict"] = float((np.ptp(sides_MN, axis=0) > 0).mean())
    return dataclasses.replace(centre, scale=scale or 1.0), found


def _out_of_fold(
    margins_N: Floats, pairs: Sequence[PreferencePair], prompts_N: NDArray[np.int64], otherwise: float
) -> Floats:
    """Margins with the scale that pairs of other prompts fit; `otherwise` where they are too few."""
    scaled_N = margins_N.copy()
    for fold in range(FOLDS):
        inside_N = prompts_N % FOLDS == fold
        others = np.flatnonzero(~inside_N)
        found = scale_of(margins_N[others], [pairs[number] for number in others]) if len(others) else None
        scaled_N[inside_N] *= found or otherwise
    return scaled_N


def _over_prompts(right_N: Floats, weights_N: Floats, prompts_N: NDArray[np.int64]) -> Interval:
    """The share of pairs that are right, its interval over prompts."""
    rng = np.random.default_rng(0)
    return mean(right_N).interval(rng, weights_N=weights_N, clusters_N=prompts_N)


def save(members: Sequence[RewardModel], centre: Centre, out: Path, *, source: Path | None = None) -> list[Path]:
    """Write the first member to `out` and the others into folders of it; returns all folders. source: the model whose
    tokenizer they get. On ranks, all call it together. Raises DiskFullError; nothing is left of what did not fit."""
    names = ["", *(member_folder(number) for number in range(1, len(members)))]

    def finish(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config[CENTRE] = {"shifts": list(centre.shifts), "scale": centre.scale, "pessimism": centre.pessimism}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in names:
            if source is not None:
                copy_companions(source, folder / name)

    networks = {name: one.network for name, one in zip(names, members, strict=True)}
    write_networks(networks, out, members[0].ranks, finish=finish)
    return [out / name for name in names]
