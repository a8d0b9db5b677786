"""Reward models for use as judges: an ensemble taught by pairs, its centre and scale, and how good it is.

    margin = (r - shift) * scale

`shift` is the mean reward of the policy's answers that taught it, so that a typical answer has a margin of 0. `scale`
is one over the temperature that fits held-out pairs (Guo et al. 2017): after it margins are log-odds.

N pairs, M members.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.networks.reward_model import PreferencePair, RewardModel, accuracy_of, margins, score
from learners.objectives.reward_model import FitReport, RewardModelConfig, fit
from solon.errors import InputError
from solon.feedback.judges.reward_judge import CENTRE, member_folder
from solon.feedback.quality.calibration import FEWEST_PAIRS
from solon.feedback.quality.calibration import fit as fit_temperature
from solon.feedback.quality.metrics import ece, nll

FEWEST_OF_A_SUBSET = 10
"""Held-out pairs of a tag whose accuracy is reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """From rewards to margins."""

    shift: float
    scale: float
    is_calibrated: bool
    """The scale was fitted on held-out pairs; otherwise there were too few, and it is 1."""


def teach(
    model: str, pairs: Sequence[PreferencePair], config: RewardModelConfig, *, members: int, pad_id: int
) -> tuple[list[RewardModel], list[FitReport]]:
    """Members with heads of different seeds, each on all pairs in an order of its own. Raises InputError,
    RunFailedError."""
    taught, reports = [], []
    for member in range(members):
        one = RewardModel.load(model, pad_id=pad_id, seed=config.seed + member)
        reports.append(fit(one, pairs, config.model_copy(update={"seed": config.seed + member})))
        taught.append(one)
    return taught, reports


def margins_of(members: Sequence[RewardModel], pairs: Sequence[PreferencePair]) -> NDArray[np.float64]:
    """Margins of every member, before any scale, [M, N]."""
    return np.stack([margins(one, pairs) for one in members])


def centre(
    members: Sequence[RewardModel], taught: Sequence[PreferencePair], heldout_N: Sequence[PreferencePair]
) -> Centre:
    """Shift and scale of the members' mean."""
    answers = list(dict.fromkeys(ids for pair in taught for ids in (pair.first, pair.second)))
    shift = float(np.mean([score(one, answers).mean() for one in members]))
    raw_N = margins_of(members, heldout_N).mean(0) if heldout_N else np.zeros(0)
    if len(heldout_N) < FEWEST_PAIRS or not raw_N.any():
        return Centre(shift=shift, scale=1.0, is_calibrated=False)
    fitted = fit_temperature(raw_N, [p.p for p in heldout_N], [p.weight for p in heldout_N], fit_bias=False)
    return Centre(shift=shift, scale=1 / fitted.temperature, is_calibrated=True)


def examine(
    members: Sequence[RewardModel], pairs: Sequence[PreferencePair], tags: Sequence[Sequence[str]], scale: float
) -> dict[str, Any]:
    """Accuracy on decided held-out pairs, over all and by tag, calibration, and how far members disagree. Empty where
    there is no such pair."""
    kept = [number for number, pair in enumerate(pairs) if pair.p != 0.5 and pair.weight > 0]
    if not kept:
        return {}
    decided, subsets = [pairs[number] for number in kept], [tags[number] for number in kept]
    margins_MN = margins_of(members, decided) * scale
    mean_N, p_N = margins_MN.mean(0), np.array([pair.p for pair in decided])
    by_tag = {}
    for tag in sorted({tag for some in subsets for tag in some}):
        rows = [number for number, some in enumerate(subsets) if tag in some]
        if len(rows) >= FEWEST_OF_A_SUBSET:
            by_tag[tag] = asdict(accuracy_of(mean_N[rows], [decided[number] for number in rows]))
    found = {
        "heldout_accuracy": asdict(accuracy_of(mean_N, decided)),
        "heldout_nll": nll(mean_N, p_N).value(),
        "heldout_calibration_error": ece(mean_N, p_N, folded=True).value(),
        "by_tag": by_tag,
    }
    if len(members) > 1:
        found["members_accuracy"] = [accuracy_of(row_N, decided).value for row_N in margins_MN]
        found["disagreement"] = float(margins_MN.std(0, ddof=1).mean())
        found["members_contradict"] = float((np.ptp(np.sign(margins_MN), axis=0) > 0).mean())
    return found


def save(members: Sequence[RewardModel], centre: Centre, out: Path, *, pessimism: float = 0.0) -> list[Path]:
    """Write the first member to `out` and the others into folders of it; returns all folders, for the tokenizer."""
    if len(members) < 2 and pessimism:
        raise InputError(f"pessimism = {pessimism:g} with one member, expected several: they have no disagreement")
    folders = [out, *(out / member_folder(number) for number in range(1, len(members)))]
    for one, folder in zip(members, folders, strict=True):
        one.save(folder)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config[CENTRE] = {"shift": centre.shift, "scale": centre.scale, "members": len(members), "pessimism": pessimism}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folders
