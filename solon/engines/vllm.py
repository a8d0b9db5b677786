"""vLLM as a Solon engine, inside this process and stepped by its owner.

Requests go directly to vLLM's engine core, and its per-step outputs are read as raw token ids and arrays of log-probs.
This skips detokenising and per-token dictionaries, which cost more than a tiny model's forward pass, and shows every
token at its own step, so that it gets the right policy version.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from solon.engines.admission import check_ids, check_length, check_request
from solon.engines.base import Completion, EngineConfig, Request
from solon.engines.checkpoint import is_quantised, stop_token_ids
from solon.engines.chunks import SentTensors
from solon.engines.concurrency import Concurrency
from solon.engines.failures import RAISED_BY_LIBRARIES, computing
from solon.engines.live_weights import LiveWeights
from solon.engines.progress import NOTHING, Progress, continued, news
from solon.engines.queue import Queue
from solon.engines.ranks.meeting import ALONE, EngineRanks
from solon.engines.ranks.reports import one_check, one_checksum
from solon.engines.stops import is_stopped
from solon.engines.tokens import ChatTokenizer
from solon.engines.transfer import load
from solon.engines.vllm_adapters import Adapter, Adapters
from solon.engines.vllm_build import TURN, prepare_process, start_vllm, stop_vllm
from solon.engines.vllm_params import Parameters
from solon.engines.vllm_room import cache_usage, make_room, preemptions
from solon.errors import EngineFailedError, InputError, RunFailedError
from solon.records import FinishReason, WeightCheck, Weights

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


@dataclass(slots=True, eq=False)
class _Progress(Progress):
    """A request's progress with its vLLM parameters."""

    params: Any = None
    adapter: Adapter | None = None
    """The version it is computed with, where versions are adapters."""


class VllmEngine:
    """Implements `Engine`. Build and use it in one thread.

    Raises InputError when the model cannot be loaded.
    """

    def __init__(self, config: EngineConfig, *, name: str, ranks: EngineRanks = ALONE, store: Any = None) -> None:
        """ranks: the place of this process among those that compute the engine together. store: where they meet."""
        self.name = name
        self._ranks = ranks
        self.trail = 0
        """Depends on every token of every request: equal on all ranks as long as they compute the same."""
        self.version = 0
        self.config = config
        self._salts = (f"weights-{count}" for count in itertools.count())
        self._salt = next(self._salts)
        self._queue = Queue(config.max_running)
        self._concurrency = Concurrency(config.max_running) if config.adapts_running else None

        prepare_process(config)
        self.tokenizer = ChatTokenizer.load(config.model, trust_remote_code=config.trust_remote_code, settings=config)
        self._quantised = is_quantised(config)
        self._llm = start_vllm(config, ranks=ranks, store=store)
        self._client = self._llm.engine_core
        self._core = self._client.engine_core
        self._vocab_size = int(self._llm.model_config.get_vocab_size())
        self._max_model_len = int(self._llm.model_config.max_model_len)
        self._running: dict[str, _Progress] = {}
        self._finished: list[Completion] = []
        self._attesting: dict[str, list[float] | None] = {}
        self._attest_ids = itertools.count()
        self._submitted = itertools.count()
        self._broken: str | None = None
        self._live: LiveWeights | None = None
        self._adapters: Adapters | None = None
        if config.adapters is not None:
            self._adapters = Adapters(self._llm, self._core, config.adapters, who=name)
        self._parameters = Parameters(stop_token_ids(config, self.tokenizer.eos_token_id))

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        self._require_usable()
        check_request(
            request,
            max_model_len=self._max_model_len,
            vocab_size=self._vocab_size,
            model=self.config.model,
            name=self.tokenizer.name_of,
        )
        self._running[request.request_id] = _Progress(request, params=self._parameters.of(request))
        self._queue.add(request.request_id)

    def step(self) -> list[Completion]:
        """See `Engine.step`."""
        self._require_usable()
        for request_id in self._queue.let_in():
            self._begin(self._running[request_id])
        if self._running:
            before = self._preemptions()
            self._pump()
            self._adapt(self._preemptions() - before)
        if self._adapters is not None and self._adapters.has_old:
            self._drop_unused()
        finished, self._finished = self._finished, []
        return finished

    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return bool(self._running or self._finished)

    def unfinished(self, after: Mapping[str, int] = NOTHING) -> list[Completion]:
        """See `Engine.unfinished`."""
        return news(self._running.values(), after)

    def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        gone = dict.fromkeys(request_ids)  # in the order of the calls, the same on all ranks
        for request_id in gone:
            self._running.pop(request_id, None)
        self._withdraw(self._queue.remove(gone))
        self._finished = [c for c in self._finished if c.request_id not in gone]

    def load_weights(self, weights: Weights) -> None:
        """Replaces all weights, or takes an adapter, between two steps.

        A request without tokens starts again, so that all of it is computed with the new weights. A request with tokens
        keeps its cached keys and values; with adapters, see `Engine.load_weights`.

        Raises InputError for a quantised model without adapters, AttestationError when the weights are not the
        published ones, PayloadLostError when they are lost; nothing is changed then. Raises EngineFailedError when
        loading fails half-way, after which the engine refuses all work.
        """
        self._require_usable()
        if bool(weights.adapter_rank) != (self._adapters is not None):
            raise InputError(
                f"engine {self.name} got {'an adapter' if weights.adapter_rank else 'whole weights'}, expected "
                f"{'whole weights' if weights.adapter_rank else 'an adapter'}; set publish.way for learner and engines"
            )
        if self._adapters is not None:
            self._take_adapter(self._adapters, weights)
        else:
            self._replace_all(weights)
        # A prefix cached under other weights has another salt, so no request finds it. Neither version nor fingerprint
        # serves as salt: a replaced learner may train a version again with other weights, and for weights that were
        # loaded before there are keys and values that running requests computed with later ones.
        self.version, self._salt = weights.version, next(self._salts)

    def _take_adapter(self, adapters: Adapters, weights: Weights) -> None:
        """Until the adapter is complete, the engine computes with those before; whatever fails changes nothing."""
        adapters.require_fit(weights)
        with TURN, self._computing(f"loading adapter {weights.version}"):
            self._take_back_unbegun()
            # Their tokens are computed again with the new version.
            gone = adapters.oldest if adapters.is_full else None
            self._take_back(lambda progress: progress.adapter is gone)
            if gone is not None:
                adapters.remove(gone)
            adapters.add(weights)
            self._drop_unused()

    def _drop_unused(self) -> None:
        """Remove adapters that no submitted request names."""
        if self._adapters is not None:
            used = (progress.adapter for progress in self._running.values())
            self._adapters.keep({adapter.request.lora_int_id for adapter in used if adapter is not None})

    def _replace_all(self, weights: Weights) -> None:
        if self._quantised:
            raise InputError(
                f"engine {self.name} runs a quantised model, which cannot take new weights; "
                "quantise judges, and let the policy's engines load the unquantised checkpoint"
            )
        from solon.engines.vllm_weights import LayerwiseLoader, live_model

        self._take_back_unbegun()
        loader = LayerwiseLoader(live_model(self._core), self._llm.vllm_config, learn=self._learn_layout)
        with TURN, self._computing(f"loading weights {weights.version}"):
            load(weights, loader, who=self.name, poison=self._poison, together=self._ranks.together)

    def checksum(self) -> str:
        """See `Engine.checksum`."""
        from solon.engines.vllm_weights import live_checksum, live_model

        with self._computing("summing up its weights", RAISED_BY_LIBRARIES):
            return one_checksum(self._ranks.exchange(live_checksum(live_model(self._core))))

    @property
    def dtype(self) -> str:
        """See `Engine.dtype`."""
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    def check_weights(self, weights: Weights) -> WeightCheck:
        """See `Engine.check_weights`."""
        from solon.engines.vllm_weights import live_model, live_tensors

        self._require_usable()
        if self._adapters is not None:
            with TURN, self._computing("comparing its adapter", RAISED_BY_LIBRARIES):
                return self._adapters.check(weights, dtype=self.dtype, quantised=self._quantised)
        if self._live is None:
            raise RunFailedError(f"engine {self.name} has loaded no weights, expected some to compare; load them first")
        sent = SentTensors(weights)
        with TURN, self._computing("comparing its weights", RAISED_BY_LIBRARIES):
            live = live_tensors(live_model(self._core))
            return one_check(self._ranks.exchange(self._live.check(live, sent, salt=weights.version, dtype=self.dtype)))

    def _learn_layout(self, weights: Weights) -> None:
        from solon.engines.vllm_weights import learn_layout, live_model

        if self._live is None:
            self._live = learn_layout(live_model(self._core), self.config.model, weights, ranks=self._ranks)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine`. Requests that have tokens are stepped too, all others wait; the next `step()` returns the
        requests that finish."""
        self._require_usable()
        for sequence in sequences:
            check_length("of the attestation", sequence, 1, self._max_model_len)
            check_ids("a request of the attestation", sequence, self._vocab_size)
        ids = [f"attest-{next(self._attest_ids)}" for _ in sequences]
        waiting = [(i, sequence) for i, sequence in zip(ids, sequences, strict=True) if len(sequence) > 1]
        self._take_back_unbegun()
        with self._computing("preempting requests", RAISED_BY_LIBRARIES):
            make_room(self._core, [sequence for _, sequence in waiting])
        for request_id, sequence in waiting:
            self._attesting[request_id] = None
            self._submit(request_id, sequence, self._parameters.attesting(), priority=-1)
        while any(self._attesting[i] is None for i, _ in waiting):
            self._pump()
        return [self._attesting.pop(i, None) or [] for i in ids]

    def close(self) -> None:
        """Frees the model and its cache."""
        if self._llm is not None:
            stop_vllm(self._llm)
        self._llm = self._client = self._core = self._adapters = None
        self._broken = "it was closed"
        gc.collect()

    def _take_back_unbegun(self) -> None:
        """Move requests without tokens from vLLM back to the queue, as if they had never been submitted."""
        self._take_back(lambda progress: not progress.tokens)

    def _take_back(self, is_meant: Callable[[_Progress], bool]) -> None:
        back = self._queue.take_back(lambda request_id: is_meant(self._running[request_id]))
        for request_id in back:
            self._running[request_id].adapter = None
        self._withdraw(back)

    def _withdraw(self, request_ids: Sequence[str]) -> None:
        # vLLM frees the blocks of one call in the order of a set of strings, which differs between processes. Ranks
        # that free in another order keep other prompts cached, and then compute other numbers of tokens in a step.
        calls = [[one] for one in request_ids] if self._ranks.size > 1 else [request_ids]
        with self._computing("aborting requests"):
            for call in calls:
                self._client.abort_requests(call)

    def _begin(self, progress: _Progress) -> None:
        """Give a request to vLLM, or what is left of one that has tokens."""
        request, params = progress.request, progress.params
        if progress.tokens:
            request = continued(request, progress.tokens)
            params = self._parameters.of(request)
        if self._adapters is not None:
            progress.adapter = self._adapters.current
        self._submit(request.request_id, request.prompt_token_ids, params)

    def _submit(self, request_id: str, prompt: Sequence[int], params: Any, *, priority: int = 0) -> None:
        from vllm.v1.engine import EngineCoreRequest

        request = EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=float(next(self._submitted)),  # first come, first served: the order of calls decides
            lora_request=None
            if self._adapters is None or self._adapters.current is None
            else self._adapters.current.request,
            cache_salt=self._salt,
            data_parallel_rank=None,
            priority=priority,
        )
        with self._computing("taking a request"):
            self._client.add_request(request)

    def _pump(self) -> None:
        """One step of the engine core; finished requests go to `self._finished`."""
        with TURN, self._eager(), self._computing("decoding"):
            outputs = self._client.get_output().outputs
        for output in outputs:
            progress = self._running.get(output.request_id)
            if progress is not None:
                self._advance(progress, output)
            elif output.request_id in self._attesting and output.new_prompt_logprobs_tensors is not None:
                prompt_logprobs = output.new_prompt_logprobs_tensors.logprobs[:, 0]
                self._attesting[output.request_id] = prompt_logprobs.tolist()

    @property
    def cache_use(self) -> float:
        """Share of the key-value cache in use, 0..1."""
        return cache_usage(self._core)

    def _preemptions(self) -> int:
        """How often the requests that run were preempted so far."""
        return preemptions(self._core) if self._concurrency is not None else 0

    def _adapt(self, preempted: int) -> None:
        """Fit the number of requests inside to the key-value cache. preempted: more preemptions in the last step. A
        preempted request that ended in the same step is not counted: the next one shows."""
        if self._concurrency is not None:
            self._queue.places = self._concurrency.after_step(
                usage=cache_usage(self._core),
                preempted=max(0, preempted),
                running=self._queue.num_inside,
                waiting=self._queue.num_waiting,
            )

    def _advance(self, progress: _Progress, output: Any) -> None:
        new = len(output.new_token_ids)
        progress.tokens += output.new_token_ids
        if self._ranks.size > 1:
            self.trail = zlib.crc32(f"{output.request_id} {output.new_token_ids}".encode(), self.trail)
        progress.versions += [self.version if progress.adapter is None else progress.adapter.version] * new
        if output.new_logprobs is not None:
            logprobs = output.new_logprobs.logprobs
            progress.logprobs += logprobs[:, 0].tolist()
            if progress.request.label_ids and new:
                progress.label_logprobs = tuple(logprobs[0, 1 : 1 + len(progress.request.label_ids)].tolist())
        if output.prefill_stats is not None and len(progress.tokens) == new:  # not of a prompt that was computed again
            progress.cached_tokens = output.prefill_stats.num_cached_tokens
        reason = None if output.finish_reason is None else _reason(str(output.finish_reason))
        if reason != "stop" and new and is_stopped(self.tokenizer, progress.request, progress.tokens):
            if reason is None:
                with self._computing("ending a request"):
                    self._client.abort_requests([output.request_id])
            reason = "stop"
        if reason is not None:
            del self._running[output.request_id]
            self._queue.remove([output.request_id])
            self._finished.append(progress.completion(reason))

    def _computing(
        self, what: str, kinds: tuple[type[Exception], ...] = (Exception,)
    ) -> contextlib.AbstractContextManager[None]:
        return computing(f"engine {self.name}", what, kinds=kinds)

    def _eager(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps vLLM's few decorated helpers from being compiled, which takes seconds, in eager mode."""
        if not self.config.enforce_eager:
            return contextlib.nullcontext()
        import torch

        stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance

    def _poison(self, reason: str) -> None:
        self._broken = reason

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise EngineFailedError(f"engine {self.name} is unusable: {self._broken}; start a new one")


def _reason(reason: str) -> FinishReason:
    if reason not in _REASONS:
        raise RunFailedError(f"vLLM ended a request with {reason!r}, expected one of {', '.join(_REASONS)}")
    return _REASONS[reason]
