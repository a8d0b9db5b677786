"""The protocol of every engine, with its inputs and outputs.

An engine is single-threaded: its owner (normally `solon.engines.runner.EngineRunner`) calls it from one thread. The
owner adds work, then calls `step()` until it is done. The weights may be replaced between two steps, so an update needs
no pause and loses no token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.engines.adapter_names import MOST_RANK
from solon.engines.chat_settings import ChatSettings
from solon.files.marks import MayChange
from solon.records import NO_FILTERS, Filters, FinishReason, Message, WeightCheck, Weights

if TYPE_CHECKING:
    from solon.engines.thinking import AnswerText
    from solon.engines.tokens import ChatPrompt


class EngineOptions(ChatSettings):
    """How an engine is built, independent of its model, and its chat settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["vllm", "transformers"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU; the model's own on a GPU."""
    max_model_len: int = Field(1024, ge=16)
    """Most tokens of prompt and answer together."""
    max_running: int = Field(128, ge=1)
    """Requests decoded together; all others wait in front of the engine."""
    adapts_running: Annotated[bool, MayChange()] = True
    """Decode fewer than `max_running` together while the key-value cache is nearly full or requests are preempted. Only
    with backend `vllm`; with a cache that holds `max_running` requests it changes nothing."""
    gpu_memory_utilization: Annotated[float, MayChange()] = Field(0.85, gt=0, lt=1)
    """Share of a GPU's memory that the engine takes in total; the key-value cache gets the rest after weights,
    activations and context. Not used with `kv_cache_gib`."""
    kv_cache_gib: Annotated[float | None, MayChange()] = Field(None, gt=0)
    """Key-value cache, GiB. Default: 0.5 on a CPU, on a GPU by `gpu_memory_utilization`."""
    max_batched_tokens: Annotated[int | None, MayChange()] = Field(None, ge=16)
    """Most tokens computed in one step, over all requests: more use a GPU better and take more memory. Default: 8,192.
    On a CPU, where a prompt is computed in one piece, at least `max_model_len`."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    gives_way: Annotated[bool, MayChange()] = False
    """On Linux: its threads get what other threads leave of the cores. For an engine on the cores of a busy learner,
    whose threads wait for one another whenever an engine interrupts one of them."""
    enforce_eager: bool = True
    """No CUDA graphs and no compilation: starts quickly. Turn off for long runs on a GPU."""
    trust_remote_code: bool = False
    quantization: Literal["none", "bnb_int8", "bnb_nf4"] = "none"
    """Weights are quantised by bitsandbytes during loading; only with backend `transformers`. vLLM loads models that
    are already quantised, for example by `compression.quantise`."""

    @model_validator(mode="after")
    def _vllm_loads_what_is_quantised(self) -> Self:
        if self.backend == "vllm" and self.quantization != "none":
            raise ValueError(
                f"quantization = {self.quantization!r} needs backend = 'transformers', got 'vllm'; change the "
                "backend, or leave it out and point at a model that is quantised already"
            )
        return self


class AdapterRoom(BaseModel):
    """Room for policy versions that are adapters. `AdapterRoom(rank=16, versions=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(ge=1, le=MOST_RANK)
    """Largest rank of an adapter."""
    versions: int = Field(2, ge=2)
    """Versions held at once: the current one, and those with which answers were begun."""
    layers: tuple[str, ...] = ()
    """Last parts of the names of the layers that have adapters; (): every layer may."""


class EngineConfig(EngineOptions):
    """An engine of one model. `EngineConfig(model="/models/policy")`"""

    model: str
    """A Hugging Face directory, or a hub name `org/model`."""
    seed: int = 0
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where it runs. `auto`: on a GPU if one is visible. `cpu`, `gpu`: only there; InputError if the engine cannot."""
    shares_device: bool = False
    """Other processes compute on the same GPU."""
    reloads: bool = False
    """It gets new weights while it runs and needs memory for a second copy of them."""
    tensor_parallel: int = Field(1, ge=1)
    """Processes that compute it together; above 1 `solon.engines.ranks` builds it."""
    rank_timeout_s: float = Field(600.0, gt=0)
    """How long one of these processes waits for the others, seconds."""
    adapters: AdapterRoom | None = None
    """Its new versions are adapters beside its own weights, which may be quantised; only with backend `vllm`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A text to generate, or (with `label_ids`) a verdict to read from the next-token distribution."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    filters: Filters = NO_FILTERS
    stop: tuple[str, ...] = ()
    """Strings that end the answer: `finish_reason` is "stop", the tokens stay."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the answer, in addition to the model's own."""
    written: int = 0
    """Number of tokens at the end of the prompt that belong to the answer: another engine wrote them."""
    seed: int = 0
    label_ids: tuple[int, ...] = ()
    """If given, the sampled text does not matter: the log-probs of these tokens at the next position (temperature 1,
    whole vocabulary) are returned in `Completion.label_logprobs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished request."""

    request_id: str
    token_ids: NDArray[np.int32]  # [T]
    logprobs: NDArray[np.float32]  # [T], of the sampling distribution (after temperature and filters)
    segments: tuple[tuple[int, int], ...]  # ((version, n_tokens), ...)
    finish_reason: FinishReason
    label_logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0
    """Prompt tokens served by the prefix cache."""

    def after(self, known: int) -> Self:
        """The same completion without its first `known` tokens."""
        segments, left = [], known
        for version, count in self.segments:
            if count > left:
                segments.append((version, count - left))
            left = max(0, left - count)
        return replace(self, token_ids=self.token_ids[known:], logprobs=self.logprobs[known:], segments=tuple(segments))


class TokenizerLike(Protocol):
    """The interface of a tokenizer; `solon.engines.tokens.ChatTokenizer` wraps a Hugging Face one."""

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """Ids of a piece of text within a longer one, with nothing added. `is_data`: apparent control tokens stay
        text."""
        ...

    def decode(self, token_ids: Sequence[int], *, is_raw: bool = False) -> str:
        """Text without special tokens, stripped of surrounding white space unless `is_raw`."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation in the model's chat template, ready for the assistant's turn. Raises PromptRefusedError."""
        ...

    def open_chat(self, messages: Sequence[Message]) -> ChatPrompt:
        """The same ids with further facts about the prompt. Raises PromptRefusedError."""
        ...

    def read_answer(self, token_ids: Sequence[int], *, opens_thought: bool = False) -> AnswerText:
        """An answer without its leading thought. opens_thought: the prompt opened it."""
        ...

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the content of one user turn, including the opening of the assistant's turn."""
        ...

    def thought_frame(self) -> tuple[list[int], list[int]]:
        """The same, ending inside a thought. Raises InputError for a model that has no thoughts."""
        ...

    def thought_stop(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Strings and ids at which a thought may have ended."""
        ...

    def end_of_thought(self, token_ids: Sequence[int]) -> int | None:
        """Number of tokens of a thought up to its end mark, the mark included; None: it has not ended."""
        ...

    @property
    def eos_token_id(self) -> int:
        """The token that ends a sequence."""
        ...

    @property
    def digest(self) -> str:
        """Identifies vocabulary and chat template."""
        ...

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, including added tokens."""
        ...


class Engine(Protocol):
    """Generates, scores and loads new weights."""

    @property
    def name(self) -> str:
        """Name of the engine's worker."""
        ...

    @property
    def version(self) -> int:
        """Policy version of the live weights; 0 until the first `load_weights`."""
        ...

    @property
    def tokenizer(self) -> TokenizerLike:
        """Tokenizer and chat template of the model."""
        ...

    @property
    def dtype(self) -> str:
        """The type the model computes in, for example "float32"; never "auto"."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request. Raises InputError when prompt plus `max_tokens` exceed `max_model_len`."""
        ...

    def step(self) -> list[Completion]:
        """Advance all running requests (by about one token); return those that finished."""
        ...

    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        ...

    def unfinished(self, after: Mapping[str, int] = ...) -> list[Completion]:
        """The output of running requests beyond their first `after[request_id]` tokens, with `finish_reason` "abort":
        another engine can continue from it. Requests without new tokens are omitted."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop these requests, waiting or running; unknown ids are ignored."""
        ...

    def load_weights(self, weights: Weights) -> None:
        """Replace all weights, or take an adapter, between two steps. Sets `version`.

        A request without tokens is computed with the new weights only, including its prompt. A request with tokens
        keeps them: it continues with the cached keys and values of its earlier tokens, which were computed with the
        weights that were live at the time. With adapters it keeps the version it was begun with; when the engine needs
        that version's place, the request continues with the new one, which computes all of its earlier tokens again.
        """
        ...

    def checksum(self) -> str:
        """Digest of the live parameters in the engine's own layout."""
        ...

    def check_weights(self, weights: Weights) -> WeightCheck:
        """Compares every live tensor to the weights that were loaded last."""
        ...

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p(token t | tokens < t) for t >= 1, temperature 1, no cached prefix. For attestation: it does not wait
        for running answers."""
        ...

    def close(self) -> None:
        """Free the model and its memory. The engine cannot be used afterwards."""
        ...
