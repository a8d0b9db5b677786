"""A small faithful engine for tests: a bigram model over a dozen words, in numpy, built instantly.

It samples from the distribution whose log-probs it returns, another payload gives other log-probs, the canary of
`fake_weights` matches the engine's computation, and errors are those of real engines.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solon.engines.admission import check_request
from solon.engines.base import Completion, Request
from solon.engines.digest_tree import leaves_of, root_of
from solon.engines.progress import NOTHING, Progress, news
from solon.engines.stops import is_stopped
from solon.engines.thinking import AnswerText
from solon.engines.tokens import ChatPrompt
from solon.engines.transfer import load
from solon.errors import EngineFailedError
from solon.records import Chunk, Filters, FinishReason, Leaf, Message, WeightCheck, Weights

WORDS = (
    "the sky is blue grass green yes no A B what color kind mean help harm User Assistant Answer Question "
    "Verdict : ? . ,"
)
_SPECIAL = ("<eos>", "<user>", "<assistant>", "<unk>")


class FakeTokenizer:
    """Whitespace words, one id each; unknown words share one id."""

    eos_token_id = 0

    def __init__(self, words: str = WORDS) -> None:
        self._words = (*_SPECIAL, *dict.fromkeys(words.split()))
        self._ids = {word: i for i, word in enumerate(self._words)}

    def __len__(self) -> int:
        return len(self._words)

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """One token per word."""
        unknown = self._ids["<unk>"]
        ids = [self._ids.get(word, unknown) for word in text.split()]
        return [unknown if is_data and i < len(_SPECIAL) else i for i in ids]

    def decode(self, token_ids: Sequence[int], *, is_raw: bool = False) -> str:
        """The words of the tokens."""
        return " ".join(self._words[i] for i in token_ids if i >= len(_SPECIAL))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a whole conversation."""
        ids: list[int] = []
        for message in messages:
            mark = "<assistant>" if message.role == "assistant" else "<user>"
            ids += [self._ids[mark], *self.encode(message.content), self.eos_token_id]
        return [*ids, self._ids["<assistant>"]]

    def open_chat(self, messages: Sequence[Message]) -> ChatPrompt:
        """Tokens of a conversation up to the answer."""
        return ChatPrompt(tuple(self.encode_chat(messages)))

    def read_answer(self, token_ids: Sequence[int], *, opens_thought: bool = False) -> AnswerText:
        """The answer's text, from its tokens; a thought ends at the word `.`."""
        if not opens_thought:
            return AnswerText(self.decode(token_ids))
        thought, found, answer = self.decode(token_ids).partition(".")
        return AnswerText(answer.strip(), thought.strip(), is_unfinished=not found)

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """The tokens around a turn."""
        return [self._ids["<user>"]], [self.eos_token_id, self._ids["<assistant>"]]

    def thought_frame(self) -> tuple[list[int], list[int]]:
        """The same: every turn of the assistant may begin with a thought."""
        return self.chat_frame()

    def thought_stop(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """A full stop."""
        return (".",), ()

    def end_of_thought(self, token_ids: Sequence[int]) -> int | None:
        """Behind the first full stop."""
        stop = self._ids["."]
        return list(token_ids).index(stop) + 1 if stop in token_ids else None

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self)

    @property
    def digest(self) -> str:
        """Identifies the tokenizer."""
        return hashlib.sha256(" ".join(self._words).encode()).hexdigest()[:16]


@dataclass(slots=True, eq=False)
class _Running(Progress):
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    last: int = 0


class FakeEngine:
    """Implements `Engine`. `FakeEngine(step_s=0.01)` simulates steps of 10 ms.

    `label_rule`, if given, answers label requests instead of the model; the next `step()` raises an exception put into
    `fail_next`.
    """

    def __init__(
        self,
        *,
        name: str = "fake",
        words: str = WORDS,
        max_model_len: int = 256,
        max_running: int = 128,
        step_s: float = 0.0,
        seed: int = 0,
        label_rule: Callable[[Request], Sequence[float]] | None = None,
    ) -> None:
        self.name = name
        self.version = 0
        self.tokenizer = FakeTokenizer(words)
        self.fail_next: BaseException | None = None
        self.steps = 0
        self.closed = False
        self._max_model_len = max_model_len
        self._max_running = max_running
        self._step_s = step_s
        self._label_rule = label_rule
        self._payload = np.frombuffer(f"initial {seed}".encode(), np.uint8)
        self._logprobs_VV = _bigrams(self._payload, len(self.tokenizer))
        self._active: dict[str, _Running] = {}
        self._broken = ""

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        self._require_usable()
        check_request(request, max_model_len=self._max_model_len, vocab_size=len(self.tokenizer))
        rng = np.random.default_rng(request.seed)
        self._active[request.request_id] = _Running(request, rng=rng, last=request.prompt_token_ids[-1])

    def step(self) -> list[Completion]:
        """See `Engine.step`."""
        self._require_usable()
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.steps += 1
        if self._step_s:
            time.sleep(self._step_s)
        finished = []
        for running in list(self._active.values())[: self._max_running]:
            completion = self._advance(running)
            if completion is not None:
                del self._active[running.request.request_id]
                finished.append(completion)
        return finished

    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return bool(self._active)

    def unfinished(self, after: Mapping[str, int] = NOTHING) -> list[Completion]:
        """See `Engine.unfinished`."""
        return news(self._active.values(), after)

    def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        for request_id in request_ids:
            self._active.pop(request_id, None)

    def load_weights(self, weights: Weights) -> None:
        """See `Engine.load_weights`."""
        self._require_usable()
        loader = _Loader(self)
        load(weights, loader, who=self.name, poison=self._poison, read=_bytes_of)
        self.version = weights.version

    def checksum(self) -> str:
        """See `Engine.checksum`."""
        return hashlib.sha256(self._logprobs_VV.tobytes()).hexdigest()

    @property
    def dtype(self) -> str:
        """Always "float32"."""
        return "float32"

    def check_weights(self, weights: Weights) -> WeightCheck:
        """See `Engine.check_weights`."""
        # A table drawn from a digest cannot be compared with the payload.
        return WeightCheck(dtype=self.dtype)

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.sequence_logprobs`."""
        table = self._logprobs_VV
        return [[float(table[a, b]) for a, b in itertools.pairwise(s)] for s in sequences]

    def close(self) -> None:
        """Drop all requests."""
        self.closed = True

    def _poison(self, reason: str) -> None:
        self._broken = reason

    def _require_usable(self) -> None:
        if self._broken:
            raise EngineFailedError(f"engine {self.name} is unusable: {self._broken}; start a new one")

    def _advance(self, running: _Running) -> Completion | None:
        request = running.request
        if request.label_ids:
            return self._label(running)
        logits_V = self._logprobs_VV[running.last] / max(request.temperature, 1e-6)
        ends = (self.tokenizer.eos_token_id, *request.stop_token_ids)
        if request.written + len(running.tokens) < request.filters.min_tokens:
            logits_V[list(ends)] = -np.inf
        logprobs_V = _log_softmax(_filtered(logits_V, request.filters))
        token = int(running.rng.choice(len(logprobs_V), p=np.exp(logprobs_V)))
        running.tokens.append(token)
        running.logprobs.append(float(logprobs_V[token]))
        running.versions.append(self.version)
        running.last = token
        reason: FinishReason | None = None
        if token in ends or is_stopped(self.tokenizer, request, running.tokens):
            reason = "stop"
        elif len(running.tokens) == request.max_tokens:
            reason = "length"
        return None if reason is None else running.completion(reason)

    def _label(self, running: _Running) -> Completion:
        request = running.request
        if self._label_rule is not None:
            labels = tuple(self._label_rule(request))
        else:
            labels = tuple(float(self._logprobs_VV[running.last, i]) for i in request.label_ids)
        token = int(self._logprobs_VV[running.last].argmax())
        return Completion(
            request_id=request.request_id,
            token_ids=np.array([token], np.int32),
            logprobs=np.array([self._logprobs_VV[running.last, token]], np.float32),
            segments=((self.version, 1),),
            finish_reason="length",
            label_logprobs=labels,
        )


class _Loader:
    """Implements `solon.engines.transfer.WeightLoader`: the first chunk already replaces what the engine computes."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self._read = engine, b""

    def start(self, weights: Weights) -> None:
        """Any bytes fit."""

    def chunk(self, tensors: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
        """See `WeightLoader.chunk`."""
        self._read += b"".join(data.tobytes() for _, data in tensors)
        engine = self._engine
        engine._payload = np.frombuffer(self._read, np.uint8)
        engine._logprobs_VV = _bigrams(engine._payload, len(engine.tokenizer))

    def finish(self) -> None:
        """Nothing is left to do."""


def _bytes_of(leaves: Sequence[Leaf], chunk: Chunk) -> list[tuple[str, NDArray[np.uint8]]]:
    return [(leaf.name, data) for leaf, data in zip(leaves, chunk, strict=True)]


def fake_weights(
    version: int,
    *,
    payload: bytes | None = None,
    words: str = WORDS,
    canary: tuple[int, ...] = (4, 5, 6, 7),
    chunks: int = 1,
) -> Weights:
    """Weights that a `FakeEngine` loads and attests; each version has its own payload unless one is given. chunks: of
    one tensor each."""
    data = np.frombuffer(payload or f"version {version}".encode(), np.uint8)
    table = _bigrams(data, len(FakeTokenizer(words)))
    parts = np.array_split(data, chunks)
    leaves = tuple(
        leaf
        for number, part in enumerate(parts)
        for leaf in leaves_of([(f"part-{number}", "uint8", part.shape)], (part,), number=number)
    )
    return Weights(
        version=version,
        chunks=tuple((part,) for part in parts),
        leaves=leaves,
        fingerprint=root_of(leaves),
        canary_token_ids=(canary,),
        canary_logprobs=(tuple(float(table[a, b]) for a, b in itertools.pairwise(canary)),),
    )


def _bigrams(payload: NDArray[np.uint8], num_words: int) -> NDArray[np.float64]:
    """Log-probs of the next word given the last, [V, V], drawn from the payload's digest."""
    seed = int.from_bytes(hashlib.sha256(payload.tobytes()).digest()[:8], "little")
    logits_VV = np.random.default_rng(seed).normal(size=(num_words, num_words))
    return _log_softmax(logits_VV)


def _filtered(logits_V: NDArray[np.float64], filters: Filters) -> NDArray[np.float64]:
    """Minus infinity where a token may not be sampled; see `solon.engines.filters`."""
    kept_V = np.ones(len(logits_V), bool)
    if filters.min_p:
        kept_V = logits_V >= logits_V.max() + np.log(filters.min_p)
    order_V = np.argsort(-logits_V, kind="stable")
    if filters.top_k:
        kept_V[order_V[filters.top_k :]] = False
    if filters.top_p < 1:
        probs_V = np.exp(_log_softmax(np.where(kept_V, logits_V, -np.inf)))[order_V]
        kept_V[order_V[probs_V.cumsum() - probs_V >= filters.top_p]] = False
    result: NDArray[np.float64] = np.where(kept_V, logits_V, -np.inf)
    return result


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
