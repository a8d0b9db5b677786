"""Weights in the form that engines receive: chunks of tensors, and canary log-probs that attest them.

B canary sequences of one length, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learners.core.adapters import Keep
from learners.core.leading import led
from learners.core.policy import Makers, Policy, Whole
from learners.core.sent_adapter import as_computed, rank_of, refuse_unservable, transposed_weights
from learners.core.skeleton import LazyTensors, forward_at_once, forward_by_layer
from solon.engines.chunks import CHUNK_BYTES, collected, cut
from solon.engines.digest_tree import root_of
from solon.engines.model_files import copy_companions, repair_generation_config, warn_of_dropped
from solon.engines.model_writer import as_files, whole_model, write_model, write_unrounded
from solon.engines.tokens import load_tokenizer
from solon.engines.weight_files import SHARD_BYTES
from solon.errors import InputError
from solon.pipeline.attestation import canary_gap
from solon.pipeline.canaries import Canaries
from solon.records import Chunk, Weights

Publishing = Generator[Chunk, None, Weights]
"""Yields the chunks of a version, one at a time; returns its manifest."""
NUM_CANARIES = 4
CANARY_TOKENS = 12


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """A policy of one moment, which `Publisher.write` writes."""

    evidence: Canaries | None
    """None on ranks but the first."""
    makers: Makers
    """Of tensors by their Hugging Face names; ranks call each together."""
    own: Makers
    """Of weights on a grid before rounding."""


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
        adapter_only: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """chunk_bytes: bound of a chunk. shard_bytes: of a file of weights. adapter_only: only the factors of the
        adapters are sent, to engines that hold the weights below them. engines_in_float32: all engines compute in
        float32, so the effect of 16 bits is not measured. An engine that computes in 16 bits all the same is held to
        the tolerance of float32, and refused. Raises InputError for adapters that cannot be sent alone."""
        from transformers import AutoModelForCausalLM

        if adapter_only:
            _require_adapters(policy)
        self._adapter_only = adapter_only
        self._policy, self._bound, self._shard_bytes = policy, chunk_bytes, shard_bytes
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
        self._by_layer = True
        # Canaries fill the skeleton for the time of a pass, perhaps while files are written.
        self._writing = copy.deepcopy(self._skeleton)
        self.canaries = tuple(tuple(int(token) for token in canary) for canary in canaries)

    @torch.no_grad()
    def publish(self, version: int) -> Publishing:
        """Yields the current policy chunk by chunk, returns the manifest of this version. A chunk may be a view of the
        policy: it is valid until the next one is asked for. All ranks publish together; those but the first yield
        nothing."""
        with self._policy.whole() as whole:
            if whole is None:
                return _nothing(version)
            tensors = self._computed(whole)
            evidence = self._evidence(tensors)
            named = self._factors(whole) if self._adapter_only else as_files(self._skeleton, tensors)
            leaves = yield from cut(named, bound=self._bound)
        return Weights(
            version=version,
            chunks=(),
            leaves=leaves,
            fingerprint=root_of(leaves),
            canary_token_ids=self.canaries,
            canary_logprobs=evidence.logprobs,
            canary_noise=evidence.noise,
            adapter_rank=rank_of(self._policy.base) if self._adapter_only else 0,
        )

    def weights(self, version: int) -> Weights:
        """The current policy under this version number, copied."""
        return collected(self.publish(version))

    @torch.no_grad()
    def files(self, keep: Keep | None = None, attested: Weights | None = None) -> PolicyFiles:
        """The present policy, for `write`. keep: a tensor that may be read later; None: the tensor itself. attested:
        what was published of the same weights; None: the canaries are computed. All ranks call it together."""
        if self._adapter_only and self.dtype != torch.float32:
            attested = None  # files hold merged weights, rounded after the adapters were added
        if attested is not None:
            evidence = _evidence_of(attested)
        else:
            with self._policy.whole() as whole:
                evidence = None if whole is None else self._evidence(self._served(whole.merged))
        return PolicyFiles(evidence, *self._policy.kept(keep))

    @torch.no_grad()
    def write(self, files: PolicyFiles, directory: Path) -> None:
        """The policy as a Hugging Face directory with its tokenizer, in the serving dtype; beside weights on a grid
        those before rounding. The first rank writes one tensor after the other, and the others take part in gathering
        each. May run while the policy is trained and published. Raises DiskFullError, on the other ranks
        RankFailedError."""
        with led(self._policy.ranks, [*files.makers.values(), *files.own.values()], beside=True) as asking:
            if asking is None:
                return
            made = LazyTensors(dict(zip(files.makers, asking, strict=False)))
            own = LazyTensors(dict(zip(files.own, asking[len(files.makers) :], strict=True)))
            with whole_model(directory) as folder:
                write_model(self._writing, folder, made, dtype=self.dtype, shard_bytes=self._shard_bytes)
                if (grid := self._policy.grid) is not None:
                    write_unrounded(self._writing, folder, grid.name, own, self.dtype)
                # Copied, since saving a tokenizer may change it. A tokenizer from the hub has no directory of its own.
                if not (self._source.is_dir() and copy_companions(self._source, folder)):
                    self._tokenizer.save_pretrained(folder)

    def save(self, directory: Path) -> Canaries | None:
        """`write` the present policy. Returns what attests an engine that loads it; None on ranks but the first."""
        files = self.files()
        self.write(files, directory)
        return files.evidence

    def tensors(self) -> LazyTensors:
        """The policy of one process as the engines will hold it, in the serving dtype; each tensor is made when it is
        read."""
        with self._policy.whole() as whole:
            assert whole is not None
            return self._served(whole.merged)

    def _computed(self, whole: Whole) -> LazyTensors:
        """What the engines will compute with."""
        if not self._adapter_only:
            return self._served(whole.merged)
        turned = transposed_weights(self._policy.base)
        return as_computed(whole.merged, whole.plain, whole.factors, self.dtype, transposed=turned)

    def _factors(self, whole: Whole) -> Iterator[tuple[str, Tensor]]:
        """The adapters alone, in the serving dtype."""
        for name in whole.factors:
            yield name, whole.factors[name].to(self.dtype)

    def _served(self, merged: LazyTensors) -> LazyTensors:
        """The policy as the engines will hold it, in the serving dtype, on the learner's device."""

        def make(name: str) -> Tensor:
            tensor = merged[name]
            return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

        return LazyTensors({name: partial(make, name) for name in merged})

    def _evidence(self, tensors: LazyTensors) -> Canaries:
        """What attests an engine that holds these tensors."""
        exact = self.canary_logprobs(tensors, torch.float32)
        return Canaries(token_ids=self.canaries, logprobs=exact, noise=self._noise(tensors, exact))

    def _noise(self, tensors: Mapping[str, Tensor], exact: tuple[tuple[float, ...], ...]) -> float:
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

    @torch.no_grad()
    def canary_logprobs(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[tuple[float, ...], ...]:
        """log p(token t | tokens < t) for t >= 1, of every canary, at temperature 1, computed in this dtype.

        A tensor of another dtype is copied, those of a layer while it computes; embedding and head are copied for the
        whole pass.
        """
        state = LazyTensors(
            {name: partial(_itself, buffer) for name, buffer in self._policy.base.named_buffers()}
            | {name: partial(tensors.__getitem__, name) for name in tensors}
        )
        found: dict[int, tuple[float, ...]] = {}
        for length in {len(canary) for canary in self.canaries}:  # batched by length, as batches need no padding then
            places = [place for place, canary in enumerate(self.canaries) if len(canary) == length]
            input_BT = torch.tensor([self.canaries[place] for place in places], device=self._policy.device)
            logprobs_BTV = self._logits(state, dtype, input_BT)[:, :-1].float().log_softmax(-1)
            logprobs_BT = logprobs_BTV.gather(-1, input_BT[:, 1:, None])[..., 0]
            found |= {place: tuple(row) for place, row in zip(places, logprobs_BT.tolist(), strict=True)}
        return tuple(found[place] for place in range(len(self.canaries)))

    def _logits(self, state: LazyTensors, dtype: torch.dtype, input_BT: Tensor) -> Tensor:
        if self._by_layer:
            try:
                return forward_by_layer(self._skeleton, state, dtype, input_BT)
            except (RuntimeError, NotImplementedError) as error:
                if "meta" not in str(error):
                    raise
                # The model reads a layer's tensors from outside of it: they are needed all at once.
                self._by_layer = False
        return forward_at_once(self._skeleton, state, dtype, input_BT)


def _require_adapters(policy: Policy) -> None:
    if not policy.has_adapters or policy.grid is not None:
        got = "learn.grid" if policy.has_adapters else "a policy of which all weights train"
        raise InputError(
            f"publish.way = 'adapter' with {got}, expected learn.lora alone: there is nothing to send beside whole "
            "weights; set publish.way = 'merged'"
        )
    refuse_unservable(policy.base)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _evidence_of(weights: Weights) -> Canaries | None:
    """What attests published weights; None on ranks but the first, which publish nothing."""
    if not weights.canary_logprobs:
        return None
    return Canaries(token_ids=weights.canary_token_ids, logprobs=weights.canary_logprobs, noise=weights.canary_noise)


def _nothing(version: int) -> Weights:
    """The manifest of a rank that publishes nothing."""
    return Weights(
        version=version, chunks=(), leaves=(), fingerprint="", canary_token_ids=(), canary_logprobs=(), canary_noise=0.0
    )


def default_canaries(vocabulary: int, tokenizer_length: int, special: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The same few sequences for every run of a model: ordinary tokens in random order, which no model
    expects, so that their log-probs are far from 0 and move with every weight."""
    usable: NDArray[np.int64] = np.setdiff1d(np.arange(min(vocabulary, tokenizer_length)), list(special))
    drawn = np.random.default_rng(0).choice(usable, (NUM_CANARIES, CANARY_TOKENS))
    return tuple(tuple(int(token) for token in row) for row in drawn)
