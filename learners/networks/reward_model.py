"""A reward model: a decoder with a scalar head, and its rewards for sequences and pairs.

On disk it is Transformers' model for sequence classification with one label, so that other programs load it
unchanged. `learners.objectives.reward_model` has its training.

    model = RewardModel.load("runs/night/checkpoints/step-000400/policy", pad_id=0)
    accuracy(model, held_out)

N pairs, S sequences, B sequences of a microbatch, T token positions, H hidden width.
"""

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
from torch import Tensor, nn

from learners.core.loading import choose_device, quiet
from learners.core.packing import by_length
from learners.core.ranks import ALONE, Ranks
from learners.core.written import write_networks
from solon.errors import InputError, loading
from solon.feedback.quality.intervals import Interval, effective_pairs, wilson

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


class RewardModel(nn.Module):
    """Rewards of whole conversations, computed at the last token.

    `network` is any Hugging Face model for sequence classification with one label. Padding is on the right; a
    sequence must not end in the padding token, since Transformers finds the last token by it.
    """

    def __init__(self, network: Any, *, pad_id: int, ranks: Ranks = ALONE) -> None:
        """ranks: the processes that divide the network, by the objective that trains it."""
        super().__init__()
        self.ranks = ranks
        if network.config.num_labels != 1:
            raise InputError(f"got a model with {network.config.num_labels} labels, expected one: a reward is a scalar")
        self.network = network
        self.pad_id = pad_id
        self.network.config.pad_token_id = pad_id

    @classmethod
    def load(cls, model: str | Path, *, pad_id: int, device: str = "auto", seed: int = 0, ranks: Ranks = ALONE) -> Self:
        """From a reward model, or from a language model, whose output head is replaced by a scalar.

        A new head is drawn with standard deviation 1 / sqrt(H + 1) (Stiennon et al. 2020), so that models of
        different seeds disagree where they know nothing. Weights are float32. ranks: those that are about to divide it:
        until then the first one holds all values, on the CPU, and the others none. Raises InputError.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        options = {"num_labels": 1, "dtype": torch.float32, "pad_token_id": pad_id, "output_loading_info": True}
        options |= {"use_safetensors": True, "trust_remote_code": False}
        remedy = "give a Hugging Face directory of a decoder, with config.json and safetensors files"
        with loading(f"the reward model {str(model)!r}", remedy=remedy), quiet(), _without_load_report():
            if not ranks.is_first:
                config = AutoConfig.from_pretrained(str(model), trust_remote_code=False)
                config.num_labels = 1
                with torch.device("meta"):
                    empty = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
                return cls(empty.eval(), pad_id=pad_id, ranks=ranks)
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
        found = cls(network.eval(), pad_id=pad_id, ranks=ranks)
        return found.to(choose_device(device)) if ranks.is_alone else found

    def save(self, directory: Path) -> None:
        """Save it for `AutoModelForSequenceClassification`; the caller adds the tokenizer. On ranks, all call it
        together, and the first one writes. Raises DiskFullError, and InputError for a directory that holds something
        else than a model; on the other ranks RankFailedError."""
        write_networks({"": self.network}, directory, self.ranks)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, sequences: Sequence[Tokens]) -> Tensor:
        """Rewards, float32, [B]."""
        rewards_B: Tensor = self.network.score(self.features(sequences))[:, 0]
        return rewards_B

    def features(self, sequences: Sequence[Tokens]) -> Tensor:
        """The input of the head: the last token's hidden state, [B, H]."""
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
    """Transformers warns of the new head, which is intended; other missing weights are checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@torch.no_grad()
def score(model: RewardModel, sequences: Sequence[Tokens], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """Rewards, [S]. On ranks, all call it together."""
    return _by_length(model, sequences, max_tokens, model.ranks)


@torch.no_grad()
def embed(model: RewardModel, sequences: Sequence[Tokens], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """The input of the head for each sequence, [S, H]."""
    return _by_length(model.features, sequences, max_tokens, model.ranks)


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


def _by_length(
    run: Callable[[Sequence[Tokens]], Tensor], sequences: Sequence[Tokens], max_tokens: int, ranks: Ranks
) -> NDArray[np.float64]:
    """The rows of `run`'s results, in the order of the sequences. Each rank computes some."""
    if not sequences:
        return np.zeros(0)
    sizes = [len(ids) for ids in sequences]
    batches, found = by_length(sizes, max_tokens, ranks.size), list[Tensor]()
    for place, counts in ranks.turns([len(rows) * max(sizes[i] for i in rows) for rows in batches]):
        values = run([sequences[i] for i in batches[place]]).double()
        if not found:
            found.append(values.new_zeros(len(sequences), *values.shape[1:]))
        if counts:
            found[0][batches[place]] = values
    joined: NDArray[np.float64] = ranks.joined(found[0]).cpu().numpy()
    return joined
