"""A small language model that answers a judge's question with one label, taught by a larger judge.

Questions are token ids, so that no template is known here, and the saved model is an ordinary language model: engines
load it as a judge, with the teacher's prompts. `learners.objectives.distil` has its training.

N questions, B rows of a microbatch, T token positions, V vocabulary, 2 labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learners.core.loading import choose_device, load_model
from learners.core.packing import by_length
from learners.core.ranks import ALONE, Ranks
from learners.core.written import write_networks
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.errors import InputError
from solon.feedback.questions import Question


class Student(nn.Module):
    """A language model that answers with one label. `Student.load("models/judge", layers=(0, 2))`"""

    def __init__(
        self,
        network: Any,
        *,
        source: Path | None = None,
        dtype: torch.dtype = torch.float32,
        ranks: Ranks = ALONE,
    ) -> None:
        """ranks: the processes that divide the network, by the objective that trains it."""
        super().__init__()
        self.ranks = ranks
        self.network = network
        self._source = source
        self._dtype = dtype

    @classmethod
    def load(
        cls, model: str | Path, *, layers: Sequence[int] | None = None, device: str = "auto", ranks: Ranks = ALONE
    ) -> Self:
        """From a Hugging Face directory; `layers`: only these of its layers, in this order. ranks: those that are about
        to divide it: until then the first one holds all values, on the CPU, and the others none. Raises InputError."""
        if Path(model).is_dir() and is_quantised(EngineConfig(model=str(model))):
            raise InputError(
                f"{str(model)!r} is quantised, expected plain weights to teach; quantise the student after"
            )
        at = choose_device(device) if ranks.is_alone else torch.device("cpu" if ranks.is_first else "meta")
        network, dtype = load_model(str(model), at)
        if layers is not None:
            _keep_layers(network, layers)
        return cls(network, source=Path(model), dtype=dtype, ranks=ranks)

    def save(self, directory: Path) -> None:
        """Save it for engines, in the dtype of its original model and with that model's tokenizer. On ranks, all call
        it together, and the first one writes. Raises DiskFullError, and InputError for a directory that holds something
        else than a model; on the other ranks RankFailedError."""
        warn_of_dropped(repair_generation_config(self.network))
        source = self._source
        write_networks(
            {"": self.network},
            directory,
            self.ranks,
            dtype=self._dtype,
            finish=lambda folder: source and copy_companions(source, folder),
        )

    def forward(self, questions: Sequence[Question]) -> Tensor:
        """Log-probs of the labels, float32, [B, 2]."""
        device = next(self.parameters()).device
        width = max(len(question.prompt_token_ids) for question in questions)
        # Padded on the left, so that every verdict is at the last position and the head runs once per row.
        gaps = [width - len(question.prompt_token_ids) for question in questions]
        ids_BT = torch.tensor([[0] * gap + [*q.prompt_token_ids] for gap, q in zip(gaps, questions, strict=True)])
        mask_BT = torch.arange(width)[None] >= torch.tensor(gaps)[:, None]
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        logits_BV = self.network(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.long().to(device),
            position_ids=positions_BT.to(device),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]
        labels_B2 = torch.tensor([q.label_ids for q in questions], device=device)
        return torch.as_tensor(logits_BV.float().log_softmax(-1).gather(1, labels_B2))


def _keep_layers(network: Any, kept: Sequence[int]) -> None:
    layers = getattr(network.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise InputError(f"a {type(network).__name__} has no list of layers to choose from; leave `layers` out")
    if not kept or any(not 0 <= index < len(layers) for index in kept) or len(set(kept)) < len(kept):
        raise InputError(f"layers: got {list(kept)}, expected different ones from 0 to {len(layers) - 1}")
    network.base_model.layers = nn.ModuleList(layers[index] for index in kept)
    network.config.num_hidden_layers = len(kept)
    if getattr(network.config, "layer_types", None):
        network.config.layer_types = [network.config.layer_types[index] for index in kept]


@torch.no_grad()
def label_logprobs(student: Student, questions: Sequence[Question], *, max_tokens: int = 16384) -> NDArray[np.float64]:
    """The student's log-probs of the labels, [N, 2]."""
    found = np.zeros((len(questions), 2))
    for rows in by_length([len(question.prompt_token_ids) for question in questions], max_tokens):
        found[rows] = student([questions[i] for i in rows]).double().cpu().numpy()
    return found
