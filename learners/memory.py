"""The memory of the learner, estimated before it starts from the size of the policy and [learn].

P: elements of the policy, C: of a critic of its own (one that shares the policy's body has none to speak of), A: of the
adapters; all weights, gradients and moments are float32.

    weights        policy 4 P, reference 4 P where a KL is asked for, critic 4 C
    optimiser      gradients 4, two moments 8 bytes of every element that trains
    on the host    reference and moments that are offloaded count as nothing on a GPU, but for what a pass needs of the
                   reference: the embedding, the head and a layer
    then the largest of
      scoring      logits of a microbatch in the dtype of the computation, at most one chunk, no gradients yet
      updating     gradients, logits, activations of the microbatch, narrow copies of the weights. Logits that fit into
                   one chunk are kept with their gradient; more are computed again chunk by chunk. The gradient of the
                   head, and beside it that of a tied embedding, exist once more until they are added to those of
                   earlier microbatches
      publishing   two chunks; embedding, head and one layer once more in float32 and in 16 bits for the canaries
    and beside all  copies of weights and moments for a checkpoint that is written beside steps, on the host

Of W ranks each holds 1 / W of weights, gradients, moments and their copies. What is gathered comes on top: embedding
and head of the network that computes, two layers, and the gradients of what is outside of layers. The first rank
publishes; while it starts, it holds the whole policy, and the copies of it, on the host.

A process on a CPU is resident with more than is in use: glibc keeps free pieces between tensors that stay. They count
with `FREE_PIECES` of what is in use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from learners.config import DIRECT, LearnConfig
from learners.core.config import CHUNK, PIECE
from solon.engines.chunks import CHUNK_BYTES
from solon.engines.memory import adapter_elements
from solon.models.sizes import BYTES, ModelSizes

FREE_PIECES = 0.09
"""Measured on a CPU: resident peaks of one process and of two ranks were 7 to 11 % above what was allocated
(docs/memory.md). torch's allocator on a GPU was not measured."""
FILTERING_BYTES = 26
"""Additional bytes per logit in scoring where answers are sampled with filters: copies in float32, sorted values, their
places, masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """Bytes of the learner, by purpose, each at its own peak."""

    weights: int
    moments: int
    gradients: int
    scoring: int
    updating: int
    """Logits, activations and narrow copies, without gradients."""
    publishing: int
    staging: int
    """Of a checkpoint that is written beside steps, in the host's memory."""
    starting: int
    """Whole networks on the first of several ranks, in the host's memory, before each keeps its part."""
    runtime: int
    on_gpu: bool = False

    @property
    def in_use(self) -> int:
        """The peak of what is allocated, without the runtime. Gradients are gone while scoring and publishing."""
        passing = max(self.scoring, self.gradients + self.updating, self.publishing)
        found = self.weights + self.moments + passing
        return found if self.on_gpu else max(found + self.staging, self.starting)

    @property
    def total(self) -> int:
        """The peak of the process on the device."""
        return self.runtime + round(self.in_use * (1.0 if self.on_gpu else 1 + FREE_PIECES))


def learner_memory(
    sizes: ModelSizes,
    config: LearnConfig,
    *,
    on_gpu: bool,
    longest: int,
    runtime: int,
    filtered: bool = False,
    ranks: int = 1,
    staged: bool = False,
) -> LearnerMemory:
    """The estimate for one learner, or for the first of its ranks. longest: tokens of a prompt and its answer at most,
    which may exceed `max_tokens_per_microbatch`; runtime: bytes of an empty process on that device; filtered: rollouts
    are sampled with top-k, top-p or min-p; staged: checkpoints are written beside steps."""
    policy = sizes.parameters
    direct = config.objective in DIRECT
    own_critic = config.advantages == "gae" and config.critic == "own" and not direct
    critic = policy - sizes.head if own_critic else 0
    trained = policy + critic
    weights = 4 * (policy + critic)
    if config.lora is not None:
        trained = adapter_elements(sizes, config.lora.r) * (2 if critic else 1)
        weights += 4 * trained
    elif (direct or config.kl_coefficient > 0) and not (config.offload_reference and on_gpu):
        weights += 4 * policy
    tokens = max(config.max_tokens_per_microbatch, longest)
    from_host = config.offload_reference and on_gpu and ranks == 1  # ranks gather it, as the others
    narrow = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    width = 2 if narrow else 4
    scoring, updating = _logits(sizes, tokens, width, "cuda" if on_gpu else "cpu", filtered=filtered)
    found = LearnerMemory(
        weights=weights,
        moments=0 if config.offload_optimizer and on_gpu else 8 * trained,
        gradients=4 * trained,
        scoring=scoring + (4 * (sizes.vocabulary * sizes.hidden + sizes.head) if from_host else 0),
        updating=updating + _activations(sizes, config, tokens, width),
        publishing=_publishing(sizes, config, on_gpu=on_gpu),
        staging=_staging(policy, trained, on_gpu=on_gpu, adapted=config.lora is not None) if staged else 0,
        starting=0,
        runtime=runtime,
        on_gpu=on_gpu,
    )
    trains_all = config.lora is None
    if ranks > 1:
        return _divided(found, sizes, ranks, narrow=narrow, trains_all=trains_all)
    embedding = sizes.vocabulary * sizes.hidden
    # Those of a tied embedding are added to those of its head at the end of a pass.
    once_more = 4 * embedding * (1 if sizes.head else 2) if trains_all else 0
    return replace(found, updating=found.updating + once_more + (2 * policy if narrow else 0))


def _divided(whole: LearnerMemory, sizes: ModelSizes, ranks: int, *, narrow: bool, trains_all: bool) -> LearnerMemory:
    """Of one rank. Copies in 16 bits are those of the layers that are gathered."""
    embedding = sizes.vocabulary * sizes.hidden
    outside = embedding + sizes.head
    layer = max(0, sizes.parameters - outside) // sizes.layers
    gathered = 4 * outside + 2 * (2 if narrow else 4) * layer
    # The gradient of the head waits for that of the embedding, which is the last of a pass.
    undivided = 4 * (embedding + max(embedding, layer)) if trains_all else 0
    return replace(
        whole,
        weights=whole.weights // ranks,
        moments=whole.moments // ranks,
        gradients=whole.gradients // ranks,
        staging=whole.staging // ranks,
        starting=whole.weights + 4 * sizes.parameters // ranks,
        scoring=whole.scoring + gathered,
        updating=whole.updating + gathered + undivided,
    )


def _staging(policy: int, trained: int, *, on_gpu: bool, adapted: bool) -> int:
    """Copies of weights and moments; frozen weights are copied from a GPU alone."""
    return 12 * trained + (4 * policy if adapted and on_gpu else 0)


def _logits(sizes: ModelSizes, tokens: int, width: int, device: str, *, filtered: bool) -> tuple[int, int]:
    """(bytes in scoring, bytes in updating) of the logits of a microbatch and of what is computed from them."""
    logits, chunk = tokens * sizes.vocabulary, CHUNK[device]
    if logits <= chunk:
        return logits * (width + (FILTERING_BYTES if filtered else 0)), 2 * width * logits
    # Sets of allowed tokens have a bit for every logit.
    filtering = FILTERING_BYTES * PIECE[device] + logits // 8 if filtered else 0
    pieces = 3 * 4 * PIECE[device]
    return width * chunk + pieces + filtering, width * chunk + pieces


def _activations(sizes: ModelSizes, config: LearnConfig, tokens: int, width: int) -> int:
    """Activations kept for the backward pass of one microbatch; norms are computed in float32."""
    attention = 3 * sizes.heads * sizes.head_dim + 4 * sizes.kv_heads * sizes.head_dim
    of_layer = tokens * (width * (4 * sizes.hidden + attention + 4 * sizes.intermediate) + 4 * 4 * sizes.hidden)
    if not config.gradient_checkpointing:
        return of_layer * sizes.layers
    return tokens * sizes.hidden * width * sizes.layers + of_layer


def _publishing(sizes: ModelSizes, config: LearnConfig, *, on_gpu: bool) -> int:
    """Beside the policy: two chunks, and for the canaries copies of the embedding, the head and one layer at a time, as
    they are served and in the dtype of the pass."""
    served = (sizes.own_bytes if on_gpu else 4) if config.serving_dtype == "auto" else BYTES[config.serving_dtype]
    outside = sizes.vocabulary * sizes.hidden + sizes.head
    layer = max(0, sizes.parameters - outside) // sizes.layers
    merged = 4 * layer if config.lora is not None else 0
    canaries = (served + 4 if served != 4 else 2) * (outside + layer)
    return merged + canaries + 2 * max(CHUNK_BYTES, served * sizes.vocabulary * sizes.hidden)
