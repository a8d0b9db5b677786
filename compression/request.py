"""What a compression is asked for, and what is refused before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compression.gate.gate import ALPHA, LEAST_TAG, LOOKS
from compression.gate.thresholds import Role, Strictness, Thresholds
from compression.pairs import Pair
from compression.pruning.plan import Pruning
from compression.target import Shapes, require_target
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised, model_settings, require_model
from solon.engines.scoring import require_one_label
from solon.errors import InputError
from solon.feedback.judges.reward_judge import centre_of
from solon.host.directory_lock import require_unused
from solon.models.facts import is_reward_model
from solon.models.formats import SEARCHED

NO_SWEEPS = "and only --size makes some, or --format with --recover"
USER, REMEDY = "another `solon compress`", "wait for it, or choose another --out"
"""Of the lock of a folder of finished steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of a compression. One of `form` and `size` is given, or `pruning`."""

    model: Path
    out: Path
    role: Role = "policy"
    """A judge is asked questions of one token, a reward model gives a number: their answers are not written."""
    form: str = ""
    """One format for all units."""
    size: float = 0.0
    """Largest share of the bytes of the linear layers; formats are then chosen for each unit."""
    formats: tuple[str, ...] = SEARCHED
    """From which they are chosen."""
    screen: float = 0.0
    """Share of the units that are swept, those with the highest harm by gradients; the others' costs come from the
    gradients. 0: all are swept."""
    algorithm: str = "rtn"
    """One of `algorithms.ALGORITHMS`."""
    gate: Strictness = "strict"
    recover: bool = False
    repair_rate: float = 1e-5
    """Learning rate of the training on the grid that recovery ends with."""
    answers: int = 480
    """Prompts whose answers are written and searched for repetition; 0: none."""
    pruning: Pruning = field(default_factory=Pruning)
    """What is removed before weights are rounded; with it the formats may be left out."""
    work: Path | None = None
    """Folder of finished steps; by default beside the output."""
    serve: bool = True
    """Start vLLM with the accepted model and let it write."""

    @property
    def sweeps(self) -> bool:
        """Whether units are swept: to choose formats, or to give some more bits."""
        return bool(self.size or (self.form and self.recover))

    @property
    def shared(self) -> Path:
        """Folder of finished steps."""
        return self.work or self.out.with_name(f"{self.out.name}.work")


def check(request: Request) -> Shapes:
    """What is compressed. Raises InputError for a model, target or output that cannot be used: all that is refused
    without pairs."""
    if not (request.model / "config.json").is_file():
        raise InputError(
            f"{request.model} is not a model directory on this machine; check the path, or download the model"
        )
    config = EngineConfig(model=str(request.model))
    require_model(config)
    if is_quantised(config):
        raise InputError(f"{request.model} is compressed already, expected a model that is not; compress its original")
    if bool(request.form) == bool(request.size) and (request.form or not request.pruning.is_any):
        raise InputError(
            f"got {'both --format and --size' if request.form else 'no target'}, expected one of --format and --size, "
            "or --prune alone; give one"
        )
    if request.screen and not request.sweeps:
        raise InputError(f"--screen is about sweeps, {NO_SWEEPS}; leave it out")
    if tuple(request.formats) != SEARCHED and not request.sweeps:
        raise InputError(f"--formats is the choice of sweeps, {NO_SWEEPS}; leave it out")
    _check_pruning(request)
    if request.size and not 0 < request.size < 1:
        raise InputError(f"--size is {request.size:g}, expected a share of the bytes of the linear layers, such as 0.3")
    if not 0 <= request.screen <= 1:
        raise InputError(f"--screen is {request.screen:g}, expected a share of the units, such as 0.3, or 0 for all")
    if not (math.isfinite(request.repair_rate) and request.repair_rate > 0):
        raise InputError(f"--repair-rate is {request.repair_rate:g}, expected a learning rate above 0")
    if not any(request.model.glob("*.safetensors")):
        raise InputError(f"{request.model} holds no *.safetensors, expected a model directory; convert its weights")
    _check_role(request, config)
    if request.out.absolute().is_relative_to(request.model.absolute()):
        raise InputError(f"--out {request.out} lies in the model, expected another place; choose one")
    if request.out.exists():
        raise InputError(f"{request.out} exists, expected a new directory; remove it or choose another")
    require_unused(request.shared, user=USER, remedy=REMEDY)
    shapes = Shapes.of(request.model, request.pruning)
    require_target(shapes, form=request.form, size=request.size, formats=request.formats, algorithm=request.algorithm)
    return shapes


def _check_pruning(request: Request) -> None:
    if request.pruning.is_any and request.role == "reward_model":
        raise InputError("reward models are not pruned: they are not trained after it; leave --prune out")
    if request.pruning.weights and request.algorithm != "rtn":
        raise InputError(
            f"{request.algorithm} would fill the zeros of --prune weights={request.pruning.weights:g}; take rtn, or "
            "prune channels, groups or layers"
        )


def _check_role(request: Request, config: EngineConfig) -> None:
    gives_rewards = is_reward_model(str(request.model))
    if gives_rewards != (request.role == "reward_model"):
        raise InputError(
            f"{request.model} is {'a reward model' if gives_rewards else 'no reward model'} by its config.json, and "
            f"--role is {request.role}; {'give --role reward_model' if gives_rewards else 'give another role'}"
        )
    if not gives_rewards:
        return
    if request.screen:
        raise InputError("--screen is about log-probs, and a reward model has none; leave it out")
    require_one_label(config)
    members = centre_of(model_settings(config), str(request.model)).members
    if members > 1:
        raise InputError(
            f"{request.model} has {members} members, expected a reward model of one: their disagreement is not "
            "measured here; teach one with members = 1"
        )


def require_enough(gate: Sequence[Pair], limits: Thresholds, *, answers: int, alpha: float = ALPHA) -> list[str]:
    """Raises InputError when not even a model without a change could be accepted. Returns tags that are too rare for a
    figure of their own.

    alpha: the error that may be spent on this copy.
    """
    _require_prompts(gate, limits, answers=answers, alpha=alpha)
    prompts: dict[str, set[str]] = {}
    for pair in gate:
        for tag in pair.tags:
            prompts.setdefault(tag, set()).add(pair.prompt_id)
    rare, needed = [], _least(limits.worst_tag, alpha)
    for tag, names in sorted(prompts.items()):
        if len(names) < LEAST_TAG:
            rare.append(tag)
        elif len(names) < needed:
            raise InputError(
                f"{len(names)} prompts of the gate have the tag {tag!r}, expected at least {needed}, or fewer than "
                f"{LEAST_TAG} for no figure of its own; give pairs of {needed / len(names):.1f} times as many prompts "
                "with it, or remove the tag"
            )
    return rare


def _require_prompts(gate: Sequence[Pair], limits: Thresholds, *, answers: int, alpha: float) -> None:
    found = len({pair.prompt_id for pair in gate})
    least = _least(limits.net_flips, alpha)
    if found < least:
        raise InputError(
            f"{found} prompts are for the gate, which are half of all, expected at least {least}: with fewer not even "
            f"a model without a change could be accepted; give pairs of at least {2 * least} prompts"
        )
    if 0 < min(answers, found) < _least(limits.degenerate, alpha):
        raise InputError(
            f"--answers is {answers}, expected 0 or at least {_least(limits.degenerate, alpha)}: with fewer nothing "
            "could be accepted; raise it"
        )


def _least(threshold: float, alpha: float) -> int:
    """Prompts without any harm whose exact bound is below a threshold at the last look."""
    return math.ceil(math.log(alpha * LOOKS[-1][1]) / math.log(1 - threshold))
