"""A reward model: a decoder with a scalar on top, taught by soft preferences between two answers.

    loss = -w [p log s(d) + (1 - p) log s(-d)],   d = r(first) - r(second)

This is the Bradley-Terry likelihood (Bradley and Terry 1952) under a judge who is sure with probability p; a tie has
p = 1/2 and teaches that there is no difference. On disk it is what Transformers calls a model for sequence
classification with one label, so that others load it as it is.

    model = RewardModel.load("runs/night/checkpoints/step-000400/policy", pad_id=0)
    report = fit(model, pairs, RewardModelConfig(epochs=2))
    accuracy(model, held_out)
"""

# N pairs, S sequences, B sequences of a microbatch, T token positions, H hidden width

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from learners.config import LearnConfig
from learners.loading import choose_device, quiet
from learners.optimizer import Optimizer
from solon.errors import InputError, loading
from solon.feedback.quality.intervals import Interval, effective_pairs, wilson
from solon.host.file_modes import widen

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two conversations that differ in their last answer. PreferencePair(first=(5, 9, 2), second=(5, 7, 2), p=0.9)"""

    first: Tokens
    """Token ids of the whole conversation, the answer and its end-of-turn token included."""
    second: Tokens
    p: float
    """Probability that the first answer is the better one; 0.5 is a tie."""
    weight: float = 1.0
    """How much the pair counts; 0 leaves it out."""

    def __post_init__(self) -> None:
        if not (0 <= self.p <= 1 and 0 <= self.weight < math.inf):
            raise ValueError(f"a pair with p = {self.p} and weight = {self.weight}: expected 0 <= p <= 1, weight >= 0")


class RewardModelConfig(BaseModel):
    """How a reward model learns. `RewardModelConfig(learning_rate=1e-5, epochs=1)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate of the backbone (AdamW); it falls linearly to a tenth."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """The same of the scalar head, which starts from nothing."""
    epochs: int = Field(1, ge=1)
    """Passes over the pairs; reward models overfit from the second on, unless they are tiny."""
    batch_pairs: int = Field(32, ge=1)
    """Pairs of one optimiser step."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which both rates rise from nearly nothing."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of backbone and head are each scaled down to this norm."""
    max_tokens_per_microbatch: int = Field(16384, ge=16)
    """Padded tokens in one forward pass: bounds memory, does not change the result."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the pairs."""

    def schedule(self, steps: int) -> LearnConfig:
        """What the optimisers go by when there are so many steps."""
        return LearnConfig(
            weight_decay=self.weight_decay,
            adam_beta2=0.999,
            max_grad_norm=self.max_grad_norm,
            warmup_steps=int(self.warmup_share * steps),
            schedule="linear",
            schedule_steps=steps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What became of a fit."""

    steps: int
    pairs: int
    first_loss: float
    """Mean loss of the first step, nats; log 2 = 0.693 is a model that knows nothing."""
    last_loss: float
    """The same of the last tenth of the steps."""


class RewardModel(nn.Module):
    """Rewards of whole conversations, read off the last token.

    `network` is any Hugging Face model for sequence classification with one label. Padding is on the right; a
    sequence must not end in the padding token, since Transformers finds the last token by it.
    """

    def __init__(self, network: Any, *, pad_id: int) -> None:
        super().__init__()
        if network.config.num_labels != 1:
            raise InputError(f"got a model with {network.config.num_labels} labels, expected one: a reward is a scalar")
        self.network = network
        self.pad_id = pad_id
        self.network.config.pad_token_id = pad_id

    @classmethod
    def load(cls, model: str | Path, *, pad_id: int, device: str = "auto", seed: int = 0) -> Self:
        """From a reward model, or from a language model, whose output head is replaced by a scalar.

        A new head is drawn with standard deviation 1 / sqrt(H + 1) (Stiennon et al. 2020), so that models of
        different seeds disagree where they know nothing. Weights are float32. Raises InputError.
        """
        from transformers import AutoModelForSequenceClassification

        options = {"num_labels": 1, "dtype": torch.float32, "pad_token_id": pad_id, "output_loading_info": True}
        options |= {"use_safetensors": True, "trust_remote_code": False}
        remedy = "give a Hugging Face directory of a decoder, with config.json and safetensors files"
        with loading(f"the reward model {str(model)!r}", remedy=remedy), quiet(), _without_load_report():
            network, info = AutoModelForSequenceClassification.from_pretrained(str(model), **options)
        missing = set(info["missing_keys"])
        if missing - {"score.weight"}:
            raise InputError(
                f"{str(model)!r} lacks {sorted(missing - {'score.weight'})}, expected all weights but the scalar head; "
                "give a decoder that Transformers can load for sequence classification"
            )
        if missing:
            head = network.score.weight
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(head.shape, generator=generator) / math.sqrt(head.shape[1] + 1)
            with torch.no_grad():
                head.copy_(drawn)
        return cls(network.eval(), pad_id=pad_id).to(choose_device(device))

    def save(self, directory: Path) -> None:
        """As `AutoModelForSequenceClassification` loads it; the tokenizer is the caller's to put beside it."""
        with quiet():
            self.network.save_pretrained(directory)
        widen(directory)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, sequences: Sequence[Tokens]) -> Tensor:
        """Rewards, float32, [B]."""
        rewards_B: Tensor = self.network.score(self.features(sequences))[:, 0]
        return rewards_B

    def features(self, sequences: Sequence[Tokens]) -> Tensor:
        """What the head reads: the last token's hidden state, [B, H]."""
        ids_BT, mask_BT = self._padded(sequences)
        hidden_BTH = self.network.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)[0]
        last_B = mask_BT.sum(1) - 1
        features_BH: Tensor = hidden_BTH[torch.arange(len(last_B), device=last_B.device), last_B].float()
        return features_BH

    def _padded(self, sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        if any(not ids or ids[-1] == self.pad_id for ids in sequences):
            raise InputError(
                f"got a sequence that is empty or ends in the padding token {self.pad_id}, expected another last "
                "token; pad with a token that ends no turn"
            )
        width = max(map(len, sequences))
        ids_BT = torch.tensor([[*ids, *[self.pad_id] * (width - len(ids))] for ids in sequences])
        mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
        return ids_BT.to(self.device), mask_BT.to(self.device)


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Transformers warns of the new head, which is meant; what else may be missing is looked at here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def preference_loss(margins_N: Tensor, p_N: Tensor, weights_N: Tensor) -> Tensor:
    """Sum over pairs of -w [p log s(d) + (1 - p) log s(-d)]; the caller divides by the sum of all weights.

    margins_N: r(first) - r(second). Its gradient is w (s(d) - p), so that it is least where s(d) = p.
    """
    losses_N = functional.binary_cross_entropy_with_logits(margins_N, p_N, reduction="none")
    return (weights_N * losses_N).sum()


def fit(model: RewardModel, pairs: Sequence[PreferencePair], config: RewardModelConfig) -> FitReport:
    """Teach the model the pairs, in place. The same model, pairs and config on one machine give the same result.

    Raises InputError when no pair counts, or the loss is not finite.
    """
    pairs = [pair for pair in pairs if pair.weight > 0]
    if not pairs:
        raise InputError("got no preference pairs with a weight above 0, expected some; label more pairs")
    per_epoch = math.ceil(len(pairs) / config.batch_pairs)
    steps = per_epoch * config.epochs
    schedule = config.schedule(steps)
    head = Optimizer(model.network.score, config.head_learning_rate, schedule)
    backbone = Optimizer(model.network.base_model, config.learning_rate, schedule)
    rng = np.random.default_rng(config.seed)
    model.train()
    losses = []
    for step in range(steps):
        if step % per_epoch == 0:
            order_N = rng.permutation(len(pairs))
        start = step % per_epoch * config.batch_pairs
        batch = [pairs[i] for i in order_N[start : start + config.batch_pairs]]
        losses.append(_backward(model, batch, config.max_tokens_per_microbatch))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is {losses[-1]} at step {step}; lower learning_rate")
        for optimizer in (backbone, head):
            optimizer.clip()
            optimizer.apply(step)
    model.eval()
    tail = losses[-math.ceil(len(losses) / 10) :]
    return FitReport(steps=steps, pairs=len(pairs), first_loss=losses[0], last_loss=sum(tail) / len(tail))


def _backward(model: RewardModel, batch: Sequence[PreferencePair], max_tokens: int) -> float:
    """Accumulate the gradient of the batch's mean loss; returns the loss."""
    total, loss = sum(pair.weight for pair in batch), 0.0
    sizes = [max(len(pair.first), len(pair.second)) for pair in batch]
    for rows in microbatches(sizes, max_tokens // 2):
        some = [batch[i] for i in rows]
        first_N, second_N = model([*(p.first for p in some), *(p.second for p in some)]).chunk(2)
        p_N, weights_N = (first_N.new_tensor(values) for values in ([x.p for x in some], [x.weight for x in some]))
        part = preference_loss(first_N - second_N, p_N, weights_N) / total
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
    return loss


@torch.no_grad()
def score(model: RewardModel, sequences: Sequence[Tokens], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """Rewards, [S]."""
    return _by_length(model, sequences, max_tokens)


@torch.no_grad()
def embed(model: RewardModel, sequences: Sequence[Tokens], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """What the head reads of each sequence, [S, H]."""
    return _by_length(model.features, sequences, max_tokens)


def margins(model: RewardModel, pairs: Sequence[PreferencePair], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """r(first) - r(second), nats, [N]."""
    rewards_S = score(model, [*(p.first for p in pairs), *(p.second for p in pairs)], max_tokens=max_tokens)
    first_N, second_N = np.split(rewards_S, 2)
    difference_N: NDArray[np.float64] = first_N - second_N
    return difference_N


def accuracy(model: RewardModel, pairs: Sequence[PreferencePair]) -> Interval:
    """Share of held-out pairs on which the sign of the margin is gold's, weighted, with its Wilson interval.

    Ties (p = 0.5) have no sign and are left out; a margin of exactly 0 counts half.
    """
    decided = [pair for pair in pairs if pair.p != 0.5 and pair.weight > 0]
    if not decided:
        raise InputError(f"got {len(pairs)} held-out pairs without a decided one, expected some with p other than 0.5")
    return accuracy_of(margins(model, decided), decided)


def accuracy_of(margins_N: ArrayLike, pairs: Sequence[PreferencePair]) -> Interval:
    """The same from margins of decided pairs."""
    sides_N = np.sign(np.asarray(margins_N)) * np.sign([pair.p - 0.5 for pair in pairs])
    weights_N = np.array([pair.weight for pair in pairs])
    share = float((weights_N * (1 + sides_N) / 2).sum() / weights_N.sum())
    return wilson(min(share, 1.0), effective_pairs(weights_N))


def microbatches(sizes: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like size, none of more than `max_tokens` when padded, or of one row."""
    rows: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if rows and sizes[index] * (len(rows) + 1) > max_tokens:
            yield rows
            rows = []
        rows.append(index)
    if rows:
        yield rows


def _by_length(
    run: Callable[[Sequence[Tokens]], Tensor], sequences: Sequence[Tokens], max_tokens: int
) -> NDArray[np.float64]:
    """The rows of what `run` gives for each sequence, in their order."""
    if not sequences:
        return np.zeros(0)
    found: dict[int, NDArray[np.float64]] = {}
    for rows in microbatches([len(ids) for ids in sequences], max_tokens):
        values = run([sequences[i] for i in rows]).double().cpu().numpy()
        found |= dict(zip(rows, values, strict=True))
    return np.stack([found[i] for i in range(len(sequences))])
