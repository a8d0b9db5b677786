"""The records that cross process borders: frozen, with numpy payloads, without torch or Ray.

Shapes: G rollouts of a group, T token positions of one rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solon.verdicts import Status, Task, Verdict

FinishReason = Literal["stop", "length", "abort"]
LEAST_TEMPERATURE = 0.01
"""Below this, rounding decides what is sampled, and engines switch to the most likely token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `Message(role="user", content="what color is the sky ?")`"""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that ends with a user turn and has no answer yet."""

    prompt_id: str
    """Stable across runs: a digest of the messages."""
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which tokens may be sampled at a position. This depends only on the logits and the position in the answer, so the
    learner applies the same filters: the trained policy is the filtered one."""

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    """Number of tokens before a token may end the answer."""

    def __bool__(self) -> bool:
        """Whether any token is ever excluded."""
        return self != NO_FILTERS


NO_FILTERS = Filters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How rollouts are sampled."""

    max_tokens: int
    temperature: float = 1.0
    filters: Filters = NO_FILTERS
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, in addition to the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer, exactly as the engine produced it."""

    token_ids: NDArray[np.int32]  # [T], the end-of-turn token included when finish_reason == "stop"
    logprobs: NDArray[np.float32]  # [T], of the distribution it was sampled from (after temperature and filters)
    segments: tuple[tuple[int, int], ...]
    """Run-length policy versions, `((3, 10), (4, 2))`: ten tokens by version 3, then two by version 4."""
    finish_reason: FinishReason
    text: str
    """The answer decoded without special tokens, for judges and people; never tokenised again for training. A leading
    thought and a trailing stop string are removed."""
    thought: str = ""
    """The thought of a thinking model before its answer."""
    is_cut: bool = False
    """The answer ended at the length limit or inside a thought; judges are told."""

    @property
    def head(self) -> int:
        """Oldest policy version in the rollout."""
        return min(version for version, _ in self.segments)

    @property
    def tail(self) -> int:
        """Youngest policy version in the rollout."""
        return max(version for version, _ in self.segments)

    def versions_T(self) -> NDArray[np.int32]:
        """Policy version of every token, [T]."""
        return np.repeat(np.array([v for v, _ in self.segments], np.int32), [n for _, n in self.segments])


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The G answers to one prompt: the unit that the ledger counts."""

    ordinal: int
    """Dispatch number, unique in a run."""
    attempt: int
    prompt: Prompt
    prompt_token_ids: NDArray[np.int32]
    rollouts: tuple[Rollout, ...]
    shown: tuple[Message, ...] = ()
    """The conversation as the policy saw it, if its chat template removed thoughts from earlier answers; empty: the
    prompt's messages."""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The conversation as the policy saw it."""
        return self.shown or self.prompt.messages

    @property
    def head(self) -> int:
        """Oldest policy version in the group."""
        return min(r.head for r in self.rollouts)

    @property
    def tail(self) -> int:
        """Youngest policy version in the group."""
        return max(r.tail for r in self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all rollouts."""
        return sum(len(r.token_ids) for r in self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """The tokens that the answers of an unfinished group gained since the last report. Another engine can continue from
    all reports of a group.

    The tokens keep the log-probs and versions of the engine that sampled them, so continuing them is as legitimate as
    generating across a change of weights.
    """

    ordinal: int
    attempt: int
    token_ids: NDArray[np.int32]  # [N], new tokens of all answers, one answer after the other
    logprobs: NDArray[np.float32]  # [N]
    segments: tuple[tuple[tuple[int, int], ...], ...]
    """[G]. Run-length policy versions of each answer's new tokens, which also give their number; (): none."""
    finish_reasons: tuple[FinishReason, ...]
    """[G]. "abort": the answer is to be continued."""

    @property
    def head(self) -> int:
        """Oldest policy version in the tokens."""
        return min(version for segments in self.segments for version, _ in segments)

    @property
    def num_tokens(self) -> int:
        """Number of new tokens of all answers."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The verdict on one rollout (pointwise) or on two (pairwise) under one principle.

    Label(task="pairwise", principle_id="harm-3", rollouts=(0, 1), verdict=Verdict(status=Status.OK, margin=0.8))
    """

    task: Task
    principle_id: str
    rollouts: tuple[int, ...]
    """Indices into the group: one for pointwise, (first, second) for pairwise."""
    verdict: Verdict
    question_id: str = ""
    """Which of a principle's questions, where it has several (predicates)."""

    @property
    def status(self) -> Status:
        """Status of the verdict."""
        return self.verdict.status

    @property
    def margin(self) -> float | None:
        """Margin of the verdict; None unless its status is valid."""
        return self.verdict.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """The judges' labels of a group and the rewards that follow from them."""

    ordinal: int
    attempt: int
    rewards_G: tuple[float | None, ...]
    """None: no valid label; the rollout must not be trained."""
    labels: tuple[Label, ...]

    @property
    def num_valid(self) -> int:
        """Rollouts that have a reward."""
        return sum(r is not None for r in self.rewards_G)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """A generated group with its feedback: the learner's input."""

    group: Group
    feedback: Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A period in which one lane was busy. Times are `time.time()` seconds, comparable on one host."""

    lane: Literal["generate", "label", "learn", "publish"]
    worker: str
    name: str
    start_s: float
    end_s: float


Chunk = tuple[NDArray[np.uint8], ...]
"""Adjacent tensors of a version: the bytes of each, in the order of their leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A published tensor without its values: a leaf of the digest tree."""

    name: str
    """The name that files have (Hugging Face)."""
    dtype: str
    """As torch names it: "bfloat16"."""
    shape: tuple[int, ...]
    digest: str
    """Of name, dtype, shape and bytes (`solon.engines.digest_tree`)."""
    chunk: int
    """Number of the chunk that holds it. Leaves are in the order of the chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A policy version on its way to the engines: a manifest, which goes by value, and the chunks that it names."""

    version: int
    chunks: Sequence[Chunk]
    """Opened one at a time, read-only; what opens one drops it before the next. On Ray `actors.chunks.StoredChunks`,
    whose items are views of the object store; () in a manifest that travels alone."""
    leaves: tuple[Leaf, ...] = ()
    fingerprint: str
    """Root of the digest tree over the leaves (`solon.engines.digest_tree`)."""
    canary_token_ids: tuple[tuple[int, ...], ...]
    canary_logprobs: tuple[tuple[float, ...], ...]
    """The learner's log p(token t | tokens < t) for t >= 1 of every canary sequence, at temperature 1, of exactly
    these bytes, computed in float32."""
    canary_noise: float = 0.0
    """Effect of 16-bit arithmetic alone: mean difference in nats between the learner's canary log-probs in 16 bits and
    in float32."""
    incarnation: int = 0
    """Number of earlier processes that hosted the learner."""
    adapter_rank: int = 0
    """Above 0, the tensors are an adapter alone (LoRA): factors of at most this rank under PEFT's names, with the scale
    inside of B. 0: all tensors of the model."""

    @property
    def manifest(self) -> Weights:
        """The same without the chunks."""
        return replace(self, chunks=())


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCheck:
    """Result of an engine's comparison between its live tensors and the published ones."""

    dtype: str = "float32"
    """The type it actually computes in: `float32`, `bfloat16` or `float16`."""
    compared: int = 0
    """Live tensors compared value by value; 0: this engine cannot compare."""
    stale: tuple[str, ...] = ()
    """Tensors that differ from the published ones."""
    unknown: tuple[str, ...] = ()
    """Tensors that were not compared, mostly because their layout is unknown."""
    uncompared: tuple[str, ...] = ()
    """Those of `unknown` whose layout is known, but whose source tensors were not published or which are missing from
    the model."""
    quantised: bool = False
    """Its weights are quantised, so its log-probs differ from the learner's by more than rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReceipt:
    """An engine's answer to new weights: what it received, what it now holds and what it now computes."""

    engine: str
    version: int
    fingerprint: str
    """Root of the digest tree over the tensors as received."""
    checksum: str
    """Digest of the live parameters in the engine's own layout; empty when its tensors were compared."""
    canary_logprobs: tuple[tuple[float, ...], ...]
    pause_s: float
    """Seconds for which generation paused."""
    check: WeightCheck = WeightCheck()
    max_gap: float = 0.0
    """Largest canary log-prob difference from the learner in nats; set at attestation."""
    mean_gap: float = 0.0
    """Mean of those differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGroup:
    """Result of a group in the step that trained it."""

    ordinal: int
    attempt: int
    rewards_G: tuple[float | None, ...]
    """Rewards from the judges; None: no valid label."""
    advantages_G: tuple[float | None, ...]
    """Mean over the tokens in the policy loss; None: no token of the rollout was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Report of one committed optimiser update; keys are `learn/what/stat`."""

    step: int
    metrics: dict[str, float]
    spans: tuple[Span, ...] = field(default=())
    groups: tuple[TrainedGroup, ...] = ()
    """The trained groups, in the order of their ordinals."""
    moved: bool = True
    """False: every gradient was zero (all rewards equal, for example), no optimiser step was taken, and the policy did
    not change."""
