"""What crosses process borders: frozen records, numpy payloads, no torch and no Ray.

Shapes: G rollouts of a group, T token positions of one rollout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solon.verdicts import Status, Task, Verdict

FinishReason = Literal["stop", "length", "abort"]
LEAST_TEMPERATURE = 0.01
"""Below it rounding decides what is sampled, and engines go over to the likeliest token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation. `Message(role="user", content="what color is the sky ?")`"""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A conversation that ends with a user turn, waiting for an answer."""

    prompt_id: str
    """Stable across runs: a digest of the messages."""
    messages: tuple[Message, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which tokens may be sampled at a position. They follow from its logits and its place in the answer alone, so the
    learner applies the same ones: the policy that is trained is the filtered one."""

    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    """So many tokens come before one that ends the answer."""

    def __bool__(self) -> bool:
        """Whether any token is ever left out."""
        return self != NO_FILTERS


NO_FILTERS = Filters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How rollouts are drawn."""

    max_tokens: int
    temperature: float = 1.0
    filters: Filters = NO_FILTERS
    stop: tuple[str, ...] = ()
    """Strings that end an answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer, exactly as the engine produced it."""

    token_ids: NDArray[np.int32]  # [T], the end-of-turn token included when finish_reason == "stop"
    logprobs: NDArray[np.float32]  # [T], of the distribution it was sampled from (after temperature and filters)
    segments: tuple[tuple[int, int], ...]
    """Run-length policy versions, `((3, 10), (4, 2))`: ten tokens by version 3, then two by version 4."""
    finish_reason: FinishReason
    text: str
    """The answer decoded without special tokens, for judges and people; never tokenised again for training. A thought
    that it began with and a stop string that it ended with are left out."""
    thought: str = ""
    """What a thinking model thought before the answer."""
    is_cut: bool = False
    """The answer ended at the length limit, or inside of a thought: judges are told."""

    @property
    def head(self) -> int:
        """Oldest policy version in it."""
        return min(version for version, _ in self.segments)

    @property
    def tail(self) -> int:
        """Youngest policy version in it."""
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
    """The conversation as the policy saw it, where its chat template cut thoughts out of old answers; empty: the
    prompt's messages."""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """What the policy saw."""
        return self.shown or self.prompt.messages

    @property
    def head(self) -> int:
        """Oldest policy version in it."""
        return min(r.head for r in self.rollouts)

    @property
    def tail(self) -> int:
        """Youngest policy version in it."""
        return max(r.tail for r in self.rollouts)

    @property
    def num_tokens(self) -> int:
        """Generated tokens, all rollouts together."""
        return sum(len(r.token_ids) for r in self.rollouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What the answers of a group that is still being generated have gained since the part before: another engine can
    continue from all parts together.

    The tokens keep the log-probs and versions of the engine that sampled them, so what follows is as legitimate as
    generation across a change of weights.
    """

    ordinal: int
    attempt: int
    token_ids: NDArray[np.int32]  # [N], new tokens of all answers, one answer after the other
    logprobs: NDArray[np.float32]  # [N]
    segments: tuple[tuple[tuple[int, int], ...], ...]
    """[G]. Policy versions of each answer's new tokens, and so how many there are; (): none."""
    finish_reasons: tuple[FinishReason, ...]
    """[G]. "abort": to be continued."""

    @property
    def head(self) -> int:
        """Oldest policy version in it."""
        return min(version for segments in self.segments for version, _ in segments)

    @property
    def num_tokens(self) -> int:
        """New tokens of all answers."""
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
        """Of the verdict."""
        return self.verdict.status

    @property
    def margin(self) -> float | None:
        """Of the verdict; None unless its status is valid."""
        return self.verdict.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What the judges said about a group, and the reward that follows from it."""

    ordinal: int
    attempt: int
    rewards_G: tuple[float | None, ...]
    """None: no valid label, the rollout must not be trained."""
    labels: tuple[Label, ...]

    @property
    def num_valid(self) -> int:
        """Rollouts that have a reward."""
        return sum(r is not None for r in self.rewards_G)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """A generated group together with its feedback: what the learner takes."""

    group: Group
    feedback: Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Work that kept one lane busy. Times are `time.time()` seconds, comparable on one host."""

    lane: Literal["generate", "label", "learn", "publish"]
    worker: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A policy version on its way to the engines: a safetensors file in memory, and what attests it."""

    version: int
    payload: NDArray[np.uint8]
    """The bytes of a safetensors file, Hugging Face parameter names."""
    fingerprint: str
    """sha256 of the payload."""
    canary_token_ids: tuple[tuple[int, ...], ...]
    canary_logprobs: tuple[tuple[float, ...], ...]
    """The learner's log p(token t | tokens < t) for t >= 1 of every canary sequence, at temperature 1, of exactly
    these bytes, computed in float32."""
    canary_noise: float = 0.0
    """What computing in 16 bits alone changes: mean difference in nats between the learner's own canary log-probs in
    16 bits and those in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightCheck:
    """What an engine found when it compared the tensors that it computes with to those that were sent."""

    dtype: str = "float32"
    """What it really computes in: `float32`, `bfloat16` or `float16`."""
    compared: int = 0
    """Live tensors that were compared value by value; 0: this engine cannot."""
    stale: tuple[str, ...] = ()
    """Those that hold something else than what was sent."""
    unknown: tuple[str, ...] = ()
    """Those that were not compared, most of them for a layout that is not understood."""
    uncompared: tuple[str, ...] = ()
    """Those of `unknown` whose layout is understood: nothing was sent by the names of what they are made of, or they
    are gone from the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReceipt:
    """An engine's answer to new weights: what it received, what it now holds, what it now computes."""

    engine: str
    version: int
    fingerprint: str
    """sha256 of the payload as received."""
    checksum: str
    """Digest of the live parameters in the engine's own layout."""
    canary_logprobs: tuple[tuple[float, ...], ...]
    pause_s: float
    """How long generation stood still."""
    check: WeightCheck = WeightCheck()
    max_gap: float = 0.0
    """Largest difference in nats of a canary log-prob from the learner's; known once it is attested."""
    mean_gap: float = 0.0
    """Mean of those differences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedGroup:
    """What a group came to in the step that trained it."""

    ordinal: int
    attempt: int
    rewards_G: tuple[float | None, ...]
    """As the judges gave them; None: no valid label."""
    advantages_G: tuple[float | None, ...]
    """Mean over the tokens that the policy loss weighed; None: none of the rollout was trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one committed optimiser update says about itself; keys are `learn/what/stat`."""

    step: int
    metrics: dict[str, float]
    spans: tuple[Span, ...] = field(default=())
    groups: tuple[TrainedGroup, ...] = ()
    """What the step trained, in the order of the ordinals."""
    moved: bool = True
    """False: every gradient was zero (all rewards equal, say), no optimiser step was taken, and the policy is the same
    as before."""
