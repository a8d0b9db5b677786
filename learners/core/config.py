"""Settings that every objective shares: network, optimiser, schedule. No torch here.

`[learn]` inherits them, so that its keys are flat; configurations of other trainings use the parts they need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from solon.errors import InputError
from solon.models.formats import format_named

Truncated = Literal["keep", "bootstrap", "mask", "penalise"]
"""The treatment of an answer that was cut at the length limit."""
Shape = Literal["constant", "linear", "cosine"]
"""How a learning rate falls after the warm-up."""
CHUNK = {"cpu": 2**25, "cuda": 2**27}
"""Most logits of response tokens at once, by device. Smaller chunks would read the head's weights so often that the
products of their rows do not hide it."""
PIECE = {"cpu": 2**19, "cuda": 2**24}
"""Logits that are turned into log-probs at once: on a CPU they stay in a core's cache, on a GPU they keep it busy."""


class Settings(BaseModel):
    """Immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfig(Settings):
    """Train low-rank adapters instead of all weights (Hu et al. 2021). `LoraConfig(r=16, alpha=32)`

    The policy and the critic each get their own adapters; the merged model is published.
    """

    r: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the adapter's output is multiplied by alpha / r."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers with an adapter; `all-linear` is every linear layer but the output head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The factor on a peak learning rate as a function of the step. `Schedule(shape="linear", steps=100, warmup=10)`"""

    shape: Shape = "constant"
    steps: int | None = None
    """Steps of the whole schedule, including the warm-up; None with `constant`."""
    warmup: int = 0
    """Steps over which the rate rises linearly from peak / warmup."""

    def __call__(self, step: int) -> float:
        """Never 0, so that every step moves the weights: after `steps` it stays at a tenth.

        >>> Schedule(warmup=4)(0)
        0.25
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.steps is None or self.shape == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / (self.steps - self.warmup))
        falling = 1.0 - done if self.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return 0.1 + 0.9 * falling


class OptimizerConfig(Settings):
    """AdamW with a bound on the norm of the gradients."""

    learning_rate: float = Field(1e-5, gt=0)
    """Peak learning rate (AdamW); a critic or a new head has its own."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment; shorter memory than usual because the objective moves."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradients of each network are scaled down to this norm."""


class ScheduleConfig(Settings):
    """How learning rates rise and fall over the steps of a run."""

    warmup_steps: int = Field(0, ge=0)
    """Steps over which all rates rise linearly from peak / warmup_steps."""
    schedule: Shape = "constant"
    """How all rates fall after the warm-up, to a tenth of the peak at schedule_steps."""
    schedule_steps: int | None = Field(None, ge=1)
    """Steps the schedule spans; needed by linear and cosine."""

    @model_validator(mode="after")
    def _schedule_is_complete(self) -> Self:
        if self.schedule != "constant" and self.schedule_steps is None:
            raise ValueError(
                f"schedule = {self.schedule!r} without schedule_steps; set it to the number of steps of the run"
            )
        if self.schedule_steps is not None and self.schedule_steps <= self.warmup_steps:
            raise ValueError(
                f"schedule_steps = {self.schedule_steps} ends before warmup_steps = {self.warmup_steps}; "
                "make schedule_steps larger"
            )
        return self

    def rate(self, step: int) -> float:
        """Factor on the peak learning rates at a step; never 0, so that every step publishes new weights."""
        return Schedule(shape=self.schedule, steps=self.schedule_steps, warmup=self.warmup_steps)(step)


class CourseConfig(OptimizerConfig):
    """How a network learns from a fixed data set. The rate rises, then falls linearly to a tenth at the last step."""

    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    epochs: int = Field(1, ge=1)
    """Passes over the data set."""
    batch: int = Field(32, ge=1)
    """Examples of one optimiser step."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises from nearly nothing."""
    max_tokens_per_microbatch: int = Field(16384, ge=16)
    """Padded tokens in one forward pass: bounds memory, does not change the result."""
    seed: int = Field(0, ge=0)
    """Seed of the order of the examples."""

    def steps(self, examples: int) -> int:
        """Optimiser steps for this number of examples."""
        return math.ceil(examples / self.batch) * self.epochs

    def rates(self, steps: int) -> Schedule:
        """The factor on the peak rates for this number of steps."""
        return Schedule(shape="linear", steps=steps, warmup=min(int(self.warmup_share * steps), steps - 1))


class NetworkConfig(Settings):
    """Where a network computes, in which precision, which weights train, and how inputs are packed."""

    max_tokens_per_microbatch: int = Field(4096, ge=16)
    """Padded tokens in one forward pass: bounds memory, does not change the result."""
    share_prompts: bool = True
    """Run a prompt once for several of its answers, where the model allows it and it saves work."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; weights and optimiser are float32. `auto`: float32 on CPU, bfloat16 autocast on GPU."""
    serving_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the published weights. `auto`: the engines' default, float32 on CPU, the model's own on GPU."""
    lora: LoraConfig | None = None
    """None trains all weights."""
    grid: str = ""
    """A format of `solon compress`, such as `w4a16-g64`: the policy computes with weights that are rounded to it, and
    the rounded weights are published. The reference stays as it was. Empty: no rounding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto`: the GPU when there is one."""
    threads: int = Field(1, ge=1)
    """CPU threads of the learner's process."""

    @model_validator(mode="after")
    def _grid_is_known(self) -> Self:
        if not self.grid:
            return self
        try:
            chosen = format_named(self.grid)
        except InputError as error:
            raise ValueError(f"grid: {error}") from None
        if not chosen.bits:
            raise ValueError(f"grid = {self.grid!r} rounds nothing; leave it out")
        if self.lora is not None:
            raise ValueError(
                "grid and lora exclude each other: adapters are merged before weights are rounded; choose one"
            )
        return self


class RankSettings(Settings):
    """Training by several processes of one machine."""

    num_ranks: int = Field(1, ge=1, le=64)
    """Processes that train together, each with a part of the network; on GPUs one for each device."""


class RewardSettings(Settings):
    """How an objective reads the rewards of labelled rollouts."""

    reward_clip: float | None = Field(None, gt=0)
    """Rewards are clipped to [-reward_clip, reward_clip]. None: unclipped; labelling bounds them by
    feedback.margin_clip, and with feedback.select.proxy by margin_clip (2 / floor - 1), 117 nats by default: a smaller
    clip would bias corrected rewards and is refused. Least squares over comparisons can add up to half the group size
    times as much."""
    truncated: Truncated = "keep"
    """The reward of an answer cut at the length limit. `keep`: its reward, as any other: the limit is part of the task.
    `bootstrap`: the critic's expectation in place of its reward (gae). `mask`: none, it is not trained. `penalise`: its
    reward less truncated_penalty."""
    truncated_penalty: float = Field(1.0, gt=0)
    """Nats that a truncated answer loses (penalise)."""
    length_penalty: float = Field(0.0, ge=0)
    """Nats that an answer loses for each token beyond length_free, whatever the judge says of it: a judge that likes
    length makes answers longer with every step. 0: none."""
    length_free: int = Field(0, ge=0)
    """Tokens that cost nothing (length_penalty)."""


class TrainerConfig(NetworkConfig, ScheduleConfig, OptimizerConfig):
    """The settings for training a published policy, with any objective. `TrainerConfig(learning_rate=1e-6)`"""

    epochs: int = Field(1, ge=1)
    """Passes over a batch; more make a small batch of noisy rewards overfit."""
    minibatches: int = Field(2, ge=1)
    """Optimiser steps per pass; a batch is split by groups, never through one."""
    max_bad_steps: int = Field(2, ge=0)
    """Optimiser steps in a row that are left out because a loss or a gradient is not finite; one more ends the run."""
    offload_reference: bool = False
    """Keep the frozen reference in host memory and copy it to the GPU layer by layer when it computes: 4 bytes a
    parameter less on the GPU, as many over the bus for every microbatch that is scored."""
    offload_optimizer: bool = False
    """Keep AdamW's moments in host memory and compute its steps on the CPU, with learn.threads threads: 8 bytes a
    trained parameter less on the GPU, 16 in host memory, 8 over the bus for every optimiser step."""
    kl_limit: float | None = Field(10.0, gt=0)
    """The run ends when the mean KL from the reference exceeds this, nats per token of the answers. A policy that still
    writes the language of its reference stays far below; "none": no limit."""

    @model_validator(mode="after")
    def _grid_is_served(self) -> Self:
        if self.grid and format_named(self.grid).inputs:
            raise ValueError(
                f"grid = {self.grid!r} rounds inputs too, and engines do not round inputs of published weights: they "
                "would sample from another policy; choose a format of weights alone, such as w4a16-g64"
            )
        return self

    @model_validator(mode="after")
    def _offloading_has_an_effect(self) -> Self:
        if self.offload_reference and self.lora is not None:
            raise ValueError(
                "offload_reference with lora: the reference is the policy with its adapters off, and has no weights of "
                "its own; remove offload_reference"
            )
        return self

    @property
    def offloaded(self) -> list[str]:
        """Names of the settings that move something to host memory."""
        return [name for name in ("offload_reference", "offload_optimizer") if getattr(self, name)]

    @property
    def steps_per_batch(self) -> int:
        """Optimiser steps taken on one batch."""
        return self.epochs * self.minibatches
