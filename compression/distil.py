"""Distillation: a changed copy of a model learns the original's distribution of every token of the answers of
preference pairs, the better and the worse ones. B rows, T positions, V vocabulary, M tokens of answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from compression.pairs import Pair, laid_out
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.engines.model_writer import whole_model, write_model
from solon.errors import RunFailedError

MARGIN_WEIGHT = 0.3
"""Of the squared differences of the log-probs of the answers' tokens, beside the divergence."""


MOST_HELD = 128
"""Pairs that are not trained on, at most a tenth."""


class DistillationConfig(BaseModel):
    """`DistillationConfig(learning_rate=1e-5)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-5, gt=0)
    """Peak, AdamW; it rises over a tenth of the steps and falls to 0 (cosine)."""
    epochs: int = Field(3, ge=1)
    batch: int = Field(8, ge=1)
    """Pairs of a step."""
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)
    """CPU threads; 0: as the process has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """What a distillation did."""

    steps: int
    first_loss: float
    """Distance from the original on pairs that are not trained on, before the training: the divergence, nats a token,
    and weighted squared differences of log-probs."""
    last_loss: float
    """On the same pairs, of what was kept."""
    is_kept: bool
    """False: the training made it worse, and the weights before it were kept."""

    def __str__(self) -> str:
        after = f"{self.first_loss:.4g} -> {self.last_loss:.4g} on answers that were not trained on"
        lower = "" if self.is_kept else "; it made the copy worse and was undone: give a lower --repair-rate"
        return f"{self.steps} steps, distance from the original {after}{lower}"


class Distillation:
    """The student learns the teacher's distribution over every token of the answers of some pairs.

    `run(steps)` may be called several times, with changes to the student in between, then `finish()`; rates follow the
    whole course.
    """

    def __init__(self, teacher: Any, student: Any, pairs: Sequence[Pair], config: DistillationConfig) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self._teacher, self._student, self._config = teacher, student.train(), config
        held = min(MOST_HELD, max(1, len(pairs) // 10))
        self._lessons, self._held = list(pairs[:-held]), list(pairs[-held:])
        rng, count = random.Random(config.seed), len(self._lessons)
        self._order = [place for _ in range(config.epochs) for place in rng.sample(range(count), count)]
        self.steps = math.ceil(len(self._order) / config.batch)
        self._done = 0

    def finish(self) -> Distilled:
        """Take all steps that are left, and undo them if they made the student worse on answers that are not trained
        on. Raises RunFailedError when the loss is not finite."""
        before = {name: one.detach().clone() for name, one in self._student.state_dict().items()}
        first = self.held_loss()
        self.run(self.steps)
        last = self.held_loss()
        is_kept = last <= first
        if not is_kept:
            self._student.load_state_dict(before)
        return Distilled(steps=self._done, first_loss=first, last_loss=min(first, last), is_kept=is_kept)

    @torch.no_grad()
    def held_loss(self) -> float:
        """On answers that are not trained on."""
        batch = self._config.batch
        parts = [self._held[start : start + batch] for start in range(0, len(self._held), batch)]
        losses = [float(_distance(self._teacher, self._student, some)) * len(some) for some in parts]
        return sum(losses) / len(self._held)

    def run(self, steps: int) -> None:
        """Take the next steps. Raises RunFailedError when the loss is not finite."""
        batch = self._config.batch
        optimiser = torch.optim.AdamW(self._student.parameters(), lr=self._config.learning_rate, weight_decay=0.0)
        for step in range(self._done, min(self.steps, self._done + steps)):
            some = [self._lessons[place] for place in self._order[step * batch : (step + 1) * batch]]
            loss = _distance(self._teacher, self._student, some)
            if not torch.isfinite(loss):
                raise RunFailedError("the loss of the training is not finite; lower --repair-rate")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = self._config.learning_rate * _rate(step, self.steps)
            optimiser.step()
            self._done += 1


def _rate(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _distance(teacher: Any, student: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """KL divergence of the student from its teacher, and weighted squared differences of log-probs: means over the
    tokens of the answers."""
    ids_BT, mask_BT, answer_BT = laid_out(
        [(pair.prompt, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    )
    with torch.no_grad():
        wanted_MV = teacher(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1][answer_BT].float().log_softmax(-1)
    found_MV = student(input_ids=ids_BT, attention_mask=mask_BT).logits[:, :-1][answer_BT].float().log_softmax(-1)
    divergence = nn.functional.kl_div(found_MV, wanted_MV, log_target=True, reduction="batchmean")
    # The divergence hardly weighs unlikely tokens, and margins are sums over them: rejected answers are full of them.
    token_M1 = ids_BT[:, 1:][answer_BT][:, None]
    apart_M = (found_MV.gather(-1, token_M1) - wanted_MV.gather(-1, token_M1))[:, 0]
    loss: torch.Tensor = divergence + MARGIN_WEIGHT * apart_M.square().mean()
    return loss


def save_trained(model: Any, source: Path, target: Path) -> None:
    """Write a trained model with the tokenizer of its source. Raises DiskFullError."""
    warn_of_dropped(repair_generation_config(model))
    with whole_model(target) as folder:
        write_model(model, folder)
        copy_companions(source, folder)
