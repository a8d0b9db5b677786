"""The network being trained and its frozen reference: log-probs of response tokens, and merged weights.

M response tokens of a microbatch, B rows, T positions, H hidden width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from learners.core.adapters import Keep, adapter_of, as_it_is
from learners.core.attention import use_plain_backward
from learners.core.config import NetworkConfig
from learners.core.grid import grid_of
from learners.core.head import After, Beside, Found, Wanted, chunk_rows, find_head, logprobs_through, values_through
from learners.core.leading import led
from learners.core.loading import checkpoint_activations, choose_device, load_model, require_repeatable, with_adapters
from learners.core.logprobs import logprobs_and_entropy, logprobs_of
from learners.core.offload import compute_from_host
from learners.core.packing import OVERHEAD, Layout, Microbatch
from learners.core.ranks import ALONE, Ranks
from learners.core.segments import use_segments
from learners.core.sent_adapter import factor_makers, plain_makers
from learners.core.sharding import full, release, shard
from learners.core.sharing import best_layout
from learners.core.skeleton import LazyTensors
from learners.core.varlen import has_kernel
from solon.engines.filters import FLOOR, allowed_tokens
from solon.errors import InputError
from solon.records import NO_FILTERS, Filters

Makers = dict[str, Callable[[], Tensor]]
"""Of tensors by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Log-probs and other numbers of the response tokens of a microbatch, [M] each; None: not requested."""

    logprobs_M: Tensor
    entropy_M: Tensor | None = None
    """Nats."""
    reference_M: Tensor | None = None
    """Log-probs under the frozen reference, over the tokens that the policy may sample."""
    outside_M: Tensor | None = None
    """True for tokens that the policy would not sample, given the filters; None: nothing is filtered."""
    values_M: Tensor | None = None
    """Of a head beside that of the model."""


class Policy:
    """A causal language model of any Hugging Face architecture, with or without adapters.

    `base` is the plain model and `model` the one that trains: the same, or wrapped by peft. The reference is a frozen
    copy, or the model with its adapters off; None when nothing needs it.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        model: str,
        temperature: float,
        filters: Filters = NO_FILTERS,
        end_ids: Sequence[int] = (),
        reference: bool = False,
        backbone: bool = False,
        offload_reference: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        """temperature, filters: the sampling of the rollouts; end_ids: tokens that end an answer. reference: keep a
        frozen copy of the present model, offload_reference: in host memory; backbone: make a copy without its head, for
        a critic. ranks: the processes
        that divide the networks later, by `divide`: until then the first one holds all values, on the CPU, and the
        others none."""
        if filters.min_tokens and not end_ids:
            raise ValueError(f"min_tokens = {filters.min_tokens} without the tokens that end an answer; name them")
        self.device = choose_device(config.device)
        self.temperature, self.filters, self._end_ids = temperature, filters, tuple(end_ids)
        bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and self.device.type == "cuda")
        self._autocast_dtype = torch.bfloat16 if bfloat16 else None
        self.ranks = ranks
        at = self.device if ranks.is_alone else torch.device("cpu" if ranks.is_first else "meta")
        self.base, self.own_dtype = load_model(model, at)
        if self.base.config._attn_implementation == "sdpa":
            (use_plain_backward if bfloat16 and self.device.type == "cpu" else use_segments)(self.base)
        self.has_reference = reference
        self._reference = None
        if self.has_reference and config.lora is None:
            self._reference = copy.deepcopy(self.base).eval().requires_grad_(False)
            if offload_reference and ranks.is_alone:
                compute_from_host(self._reference, self.device)
        self._offload_reference = offload_reference
        body = copy.deepcopy(self.base.base_model) if backbone else None
        self.model = with_adapters(self.base, config.lora)
        self.grid = grid_of(self.base, config.grid, self._grid_dtype(config)) if config.grid else None
        """Of the policy alone: the reference and the critic compute with weights as they are."""
        self.has_adapters = config.lora is not None
        self._refuse_tied_adapters()
        self.backbone = None if body is None else with_adapters(body, config.lora)
        """For the critic, if there is one: a copy of the untrained model without its head."""
        if config.gradient_checkpointing:
            for network in (self.base, body):
                if network is not None:
                    checkpoint_activations(network)
        found = self._probed(config, at) if ranks.is_first else None
        self.head: After | None
        self.layout: Layout
        self.head, self.layout = ranks.shared(found)

    def _probed(self, config: NetworkConfig, device: torch.device) -> tuple[After | None, Layout]:
        """What the model does to the output of its head (None: log-probs need its logits whole), and how rollouts are
        packed for it."""
        require_repeatable(self.model, device)
        head, layout = find_head(self.base), best_layout(self.base, config, device=device)
        if self._autocast_dtype is not None and has_kernel(self.device):
            layout = replace(layout, dense=0)  # by segments it is one kernel, whatever the length of a row
        return head, replace(layout, ranks=self.ranks.size, overhead=OVERHEAD[self.device.type])

    def divide(self) -> None:
        """Divide policy and reference among the ranks, before an optimiser is built. Raises InputError for a model that
        cannot be divided."""
        # Weights on a grid are rounded from float32, as they are published.
        compute = None if self.grid is not None else self._autocast_dtype
        shard(self.model, self.ranks, compute=compute)
        if self._reference is not None:
            shard(self._reference, self.ranks, compute=compute, offload=self._offload_reference)

    def _grid_dtype(self, config: NetworkConfig) -> torch.dtype:
        """Of the published weights: scales are computed in it."""
        if config.serving_dtype != "auto":
            found: torch.dtype = getattr(torch, config.serving_dtype)
            return found
        return torch.float32 if self.device.type == "cpu" else self.own_dtype

    def _refuse_tied_adapters(self) -> None:
        """A tied tensor is published once, so it cannot carry an adapter on one of its two layers."""
        tied = {*self.base.all_tied_weights_keys, *self.base.all_tied_weights_keys.values()}
        adapted = {name.split(".lora_")[0] for name, _ in self.base.named_parameters() if ".lora_" in name}
        if clash := sorted(layer for layer in adapted if f"{layer}.weight" in tied):
            raise InputError(
                f"learn.lora.target_modules includes {clash}, whose weights are tied to another layer and cannot "
                "be merged apart; leave them out"
            )

    @property
    def hidden(self) -> int:
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(self.base.get_input_embeddings().weight.shape[0])

    def autocast(self) -> Any:
        """Context of every forward pass."""
        if self._autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self._autocast_dtype)

    def logits(self, microbatch: Microbatch, *, reference: bool = False) -> Tensor:
        """Logits of the response tokens as the model gives them, [M, V]."""
        return self._logits(microbatch, None, reference=reference)[0]

    def _logits(
        self, microbatch: Microbatch, values: Beside | None, *, reference: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(logits, values of a further head) of the response tokens.

        The head runs only on the M positions: most of the B x T positions are prompt, and the vocabulary is the widest
        axis of all.
        """
        found: list[Tensor] = []

        def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden_MH = args[0].flatten(0, 1).index_select(0, microbatch.predict_M)
            found.extend([] if values is None else [values(hidden_MH)])
            return (hidden_MH,)

        def both(_: nn.Module, __: Any, output: Any) -> tuple[Tensor, Tensor | None]:
            return output.logits, found.pop() if found else None

        with self._network(reference) as model, model.get_output_embeddings().register_forward_pre_hook(select):
            base = model.get_base_model() if self.has_adapters else model
            # First of the hooks on the output, so that those of sharded weights see the values too.
            with base.register_forward_hook(both, prepend=True):
                logits_MV, values_M = model(**microbatch.model_inputs())
        return logits_MV, values_M

    def logprobs(self, microbatch: Microbatch) -> Tensor:
        """Log-probs of the response tokens, [M]."""
        return self.score(microbatch).logprobs_M

    def values(self, microbatch: Microbatch, values: Beside) -> Tensor:
        """Those of a head beside that of the model, for the response tokens, [M]."""
        with self._network(reference=False) as model:
            return values_through(model, microbatch.model_inputs(), microbatch.predict_M, values)

    def score(
        self, microbatch: Microbatch, *, entropy: bool = False, reference: bool = False, values: Beside | None = None
    ) -> Scored:
        """Log-probs and other requested numbers of the sampling distribution: after temperature and filters. values: a
        further head, on the hidden states of the same pass.

        A response token that the filters leave out, by rounding at the border of the set or because the policy has
        moved, counts as allowed at its own position, so that every number is finite; the loss masks it.
        The reference is taken over the policy's own set: the KL is finite, and 0 where the two are equal.
        """
        if not self._in_chunks(microbatch):
            return self._score_whole(microbatch, entropy=entropy, reference=reference, values=values)
        found = self._through(microbatch, Wanted(
            target_M=microbatch.target_M, temperature=self.temperature, entropy=entropy,
            filters=self.filters, place_M=microbatch.place_M, end_ids=self._end_ids, values=values,
        ))  # fmt: skip
        reference_M = None
        if reference:
            reference_M = self._through(microbatch, self._of_reference(microbatch, found), reference=True).logprobs_M
        return Scored(
            logprobs_M=found.logprobs_M, entropy_M=found.entropy_M, reference_M=reference_M, outside_M=found.outside_M,
            values_M=found.values_M,
        )  # fmt: skip

    def _score_whole(self, microbatch: Microbatch, *, entropy: bool, reference: bool, values: Beside | None) -> Scored:
        """From the logits of all response tokens: where they fit into one chunk no product is computed twice, and
        where the model treats its logits in its own way nothing else is known to be right."""
        (logits_MV, values_M), target_M = self._logits(microbatch, values), microbatch.target_M
        temperature = self.temperature
        banned_MV = outside_M = None
        if self.filters:
            logits_MV, temperature = logits_MV.float() / temperature, 1.0
            allowed_MV = allowed_tokens(logits_MV, self.filters, place_N=microbatch.place_M, end_ids=self._end_ids)
            outside_M = ~allowed_MV.gather(1, target_M[:, None])[:, 0]
            banned_MV = ~allowed_MV.scatter_(1, target_M[:, None], True)
            logits_MV = logits_MV.masked_fill(banned_MV, FLOOR)
        entropy_M = reference_M = None
        if entropy:
            logprobs_M, entropy_M = logprobs_and_entropy(logits_MV, target_M, temperature)
        else:
            logprobs_M = logprobs_of(logits_MV, target_M, temperature)
        del logits_MV
        if reference:
            reference_M = self.reference_logprobs(microbatch, banned_MV)
        return Scored(
            logprobs_M=logprobs_M, entropy_M=entropy_M, reference_M=reference_M, outside_M=outside_M, values_M=values_M
        )

    def reference_logprobs(self, microbatch: Microbatch, banned_MV: Tensor | None = None) -> Tensor:
        """Log-probs of the response tokens under the frozen reference, [M]; `banned_MV`: tokens that are left out."""
        if banned_MV is None and self._in_chunks(microbatch):
            return self._through(microbatch, self._of_reference(microbatch, None), reference=True).logprobs_M
        logits_MV = self.logits(microbatch, reference=True)
        if banned_MV is None:
            return logprobs_of(logits_MV, microbatch.target_M, self.temperature)
        logits_MV = (logits_MV.float() / self.temperature).masked_fill(banned_MV, FLOOR)
        return logprobs_of(logits_MV, microbatch.target_M)

    def _in_chunks(self, microbatch: Microbatch) -> bool:
        return self.head is not None and microbatch.num_tokens > chunk_rows(self.vocabulary, self.device)

    def _of_reference(self, microbatch: Microbatch, found: Found | None) -> Wanted:
        allowed_MU = None if found is None else found.allowed_MU
        return Wanted(target_M=microbatch.target_M, temperature=self.temperature, allowed_MU=allowed_MU)

    def _through(self, microbatch: Microbatch, wanted: Wanted, *, reference: bool = False) -> Found:
        """Log-probs of the response tokens, a chunk of logits at a time."""
        assert self.head is not None
        with self._network(reference) as model:
            return logprobs_through(model, microbatch.model_inputs(), self.head, microbatch.predict_M, wanted)

    @contextmanager
    def _network(self, reference: bool) -> Iterator[Any]:
        """The policy or its reference, in the dtype of the computation."""
        model = self._reference if reference and self._reference is not None else self.model
        adapters_off = self._without_adapters() if reference and self.has_adapters else nullcontext()
        with adapters_off, self.autocast():
            yield model
        if reference and self._reference is not None and not self.ranks.is_alone:
            release(self._reference)

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """peft changes which parameters train, on the parameters that it finds: among ranks these must be the divided
        ones before and after, never gathered copies."""
        release(self.model)
        with self.model.disable_adapter():
            yield
            release(self.model)

    @contextmanager
    def whole(self) -> Iterator[Whole | None]:
        """The policy's tensors on the first rank, each made on access, so only those in use exist twice. On other ranks
        None, after they have taken part in all that the first one asked for: all ranks must enter together. An error of
        the first rank is raised on all, as RankFailedError on the others."""
        merged, unrounded = self.kept()
        groups = {"merged": merged, "unrounded": unrounded}
        groups |= {"plain": plain_makers(self.base), "factors": factor_makers(self.base)}
        with led(self.ranks, [maker for group in groups.values() for maker in group.values()]) as asking:
            if asking is None:
                yield None
                return
            left = iter(asking)
            yield Whole(**{key: LazyTensors({name: next(left) for name in group}) for key, group in groups.items()})

    def kept(self, keep: Keep | None = None) -> tuple[Makers, Makers]:
        """Makers of the policy's tensors by their Hugging Face names, each from what `keep` returned for its sources:
        parameters and persistent buffers with adapters merged and weights on their grid; and weights on a grid before
        rounding. The trained tensors are only read; on ranks, all call a maker together. A tied tensor has only the
        name under which files keep it. keep: a tensor as it is now; None: the tensor itself."""
        release(self.model)
        keep = keep or as_it_is
        tied = set(self.base.all_tied_weights_keys)
        rounded: dict[str, Callable[[], Tensor]] = {}
        unrounded: dict[str, Callable[[], Tensor]] = {}
        if self.grid is not None:
            rounded, unrounded = self.grid.makers(keep, device=self.device)
        frozen = {name for name, parameter in self.base.named_parameters() if not parameter.requires_grad}
        for name, tensor in self.base.state_dict().items():
            owner, is_adapted, leaf = name.rpartition(".base_layer.")
            if ".lora_" in name or ".parametrizations." in name or name in tied:
                continue
            held = keep(tensor, changes=name not in frozen)
            if is_adapted and leaf == "weight":
                adapter = adapter_of(self.base.get_submodule(owner), keep)
                rounded[f"{owner}.weight"] = partial(adapter.merged, held, self.device)
            else:
                rounded[f"{owner}.{leaf}" if is_adapted else name] = partial(full, held)
        return rounded, unrounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The tensors of a policy by their Hugging Face names, each made on access."""

    merged: LazyTensors
    """Adapters merged, weights on their grid."""
    unrounded: LazyTensors
    """Weights on a grid before rounding."""
    plain: LazyTensors
    """Weights that have an adapter, without it."""
    factors: LazyTensors
    """The adapters alone, by PEFT's names (`learners.core.sent_adapter`)."""
