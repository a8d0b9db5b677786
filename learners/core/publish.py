"""Weights in the form that engines receive: safetensors bytes, and canary log-probs that attest them.

B canary sequences of one length, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.core.loading import quiet
from learners.core.policy import Policy
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.engines.payload import fingerprint, pack
from solon.engines.tokens import load_tokenizer
from solon.host.file_modes import widen
from solon.models.unrounded import write_unrounded
from solon.pipeline.attestation import canary_gap
from solon.pipeline.canaries import Canaries
from solon.records import Weights

NUM_CANARIES = 4
CANARY_TOKENS = 12


class Publisher:
    """Turns a policy into `Weights`.

    It holds a model without storage, filled with exactly the published tensors to compute the canaries: they attest the
    payload, with adapters merged and dtype reduced, not the network in training.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        model: str,
        dtype: str,
        canaries: Sequence[Sequence[int]] | None = None,
        engines_in_float32: bool = False,
    ) -> None:
        """engines_in_float32: all engines compute in float32, so the effect of 16 bits is not measured. An engine that
        computes in 16 bits all the same is held to the tolerance of float32, and refused."""
        from transformers import AutoModelForCausalLM

        self._policy = policy
        self._engines_in_float32 = engines_in_float32
        self._source = Path(model).expanduser()
        self._tokenizer = load_tokenizer(model)
        if dtype == "auto":
            self.dtype = torch.float32 if policy.device.type == "cpu" else policy.own_dtype
        else:
            self.dtype = getattr(torch, dtype)
        config = copy.deepcopy(policy.base.config)
        config.dtype = self.dtype
        with torch.device("meta"):
            self._skeleton: Any = AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()
        # Written beside saved weights, so that saving undoes a conversion done on loading.
        self._skeleton._weight_conversions = getattr(policy.base, "_weight_conversions", None)
        self._skeleton.generation_config = policy.base.generation_config
        warn_of_dropped(repair_generation_config(self._skeleton))
        if canaries is None:
            canaries = default_canaries(policy.vocabulary, len(self._tokenizer), self._tokenizer.all_special_ids)
        self.canaries = tuple(tuple(int(token) for token in canary) for canary in canaries)

    def tensors(self) -> dict[str, Tensor]:
        """The policy as the engines will hold it, in the serving dtype, on the learner's device. All ranks must ask for
        it together; only the first one keeps it."""
        kept = {}
        for name, tensor in self._policy.merged():
            if self._policy.ranks.is_first:
                kept[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        return kept

    @torch.no_grad()
    def weights(self, version: int) -> Weights:
        """The current policy under this version number; ranks but the first get one without bytes."""
        from transformers.core_model_loading import revert_weight_conversion

        tensors = self.tensors()
        if not self._policy.ranks.is_first:
            return Weights(
                version=version,
                payload=np.zeros(0, np.uint8),
                fingerprint="",
                canary_token_ids=(),
                canary_logprobs=(),
                canary_noise=0.0,
            )
        files = revert_weight_conversion(self._skeleton, dict(tensors))
        payload = pack(files)
        with ThreadPoolExecutor(1) as beside:  # hashing leaves the interpreter to others
            digest = beside.submit(fingerprint, payload)
            exact = self.canary_logprobs(tensors, torch.float32)
            noise = self._noise(tensors, exact)
        return Weights(
            version=version,
            payload=payload,
            fingerprint=digest.result(),
            canary_token_ids=self.canaries,
            canary_logprobs=exact,
            canary_noise=noise,
        )

    @torch.no_grad()
    def save(self, directory: Path) -> Canaries | None:
        """The policy as a Hugging Face directory with its tokenizer, in the serving dtype; beside weights on a grid
        those before rounding. Returns what attests an engine that loads it; None on ranks but the first, which write
        nothing."""
        from transformers.core_model_loading import revert_weight_conversion

        tensors, grid = self.tensors(), self._policy.grid
        unrounded = {} if grid is None else grid.weights(rounded=False)
        if not self._policy.ranks.is_first:
            return None
        exact = self.canary_logprobs(tensors, torch.float32)
        evidence = Canaries(token_ids=self.canaries, logprobs=exact, noise=self._noise(tensors, exact))
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        with quiet():
            self._skeleton.save_pretrained(directory, state_dict=tensors)
        if grid is not None:
            own = {name: tensor.to(self.dtype) for name, tensor in unrounded.items()}
            write_unrounded(directory, grid.name, revert_weight_conversion(self._skeleton, own))
        widen(directory)
        # Copied, since saving a tokenizer may change it. A tokenizer from the hub has no directory of its own.
        if not (self._source.is_dir() and copy_companions(self._source, directory)):
            self._tokenizer.save_pretrained(directory)
        return evidence

    def _noise(self, tensors: dict[str, Tensor], exact: tuple[tuple[float, ...], ...]) -> float:
        """The change from 16 bits alone, mean, nats: in the serving dtype, or the one that engines choose; 0
        where no engine computes in 16 bits."""
        if self._engines_in_float32:
            return 0.0
        if self.dtype != torch.float32:
            return canary_gap(exact, self.canary_logprobs(tensors, self.dtype)).mean
        try:
            return canary_gap(exact, self.canary_logprobs(tensors, torch.bfloat16)).mean
        except RuntimeError:
            # Not every model computes in 16 bits everywhere. Then no engine computes in 16 bits either; if one did, it
            # would be held to the tolerance of float32.
            return 0.0

    def canary_logprobs(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[tuple[float, ...], ...]:
        """log p(token t | tokens < t) for t >= 1, of every canary, at temperature 1, computed in this dtype. Takes a
        copy of the tensors when theirs is another."""
        state = dict(self._policy.base.named_buffers()) | {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
        }
        found: dict[int, tuple[float, ...]] = {}
        for length in {len(canary) for canary in self.canaries}:  # batched by length, as batches need no padding then
            places = [place for place, canary in enumerate(self.canaries) if len(canary) == length]
            input_BT = torch.tensor([self.canaries[place] for place in places], device=self._policy.device)
            output = torch.func.functional_call(self._skeleton, state, (input_BT,), {"use_cache": False})
            logprobs_BTV = output.logits[:, :-1].float().log_softmax(-1)
            logprobs_BT = logprobs_BTV.gather(-1, input_BT[:, 1:, None])[..., 0]
            found |= {place: tuple(row) for place, row in zip(places, logprobs_BT.tolist(), strict=True)}
        return tuple(found[place] for place in range(len(self.canaries)))


def default_canaries(vocabulary: int, tokenizer_length: int, special: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The same few sequences for every run of a model: ordinary tokens in random order, which no model
    expects, so that their log-probs are far from 0 and move with every weight."""
    usable: NDArray[np.int64] = np.setdiff1d(np.arange(min(vocabulary, tokenizer_length)), list(special))
    drawn = np.random.default_rng(0).choice(usable, (NUM_CANARIES, CANARY_TOKENS))
    return tuple(tuple(int(token) for token in row) for row in drawn)
