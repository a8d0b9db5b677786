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
                   one chunk are kept with their gradient; more are computed again chunk by chunk, beside a second
                   gradient of the head
      publishing   two chunks; embedding, head and one layer once more in float32 and in 16 bits for the canaries

Of W ranks each holds 1 / W of weights, gradients and moments. What is gathered comes on top: the embedding and the head
of each network for a pass, two layers, and the gradient of a layer or of what is outside of them. The first rank
publishes; while it starts, it holds the whole policy, and the copies of it, on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from learners.config import DIRECT, LearnConfig
from learners.core.config import CHUNK, PIECE
from solon.engines.chunks import CHUNK_BYTES
from solon.models.sizes import BYTES, ModelSizes

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
    runtime: int

    @property
    def total(self) -> int:
        """The peak. Gradients are gone while scoring and publishing."""
        passing = max(self.scoring, self.gradients + self.updating, self.publishing)
        return self.weights + self.moments + passing + self.runtime


def learner_memory(
    sizes: ModelSizes,
    config: LearnConfig,
    *,
    on_gpu: bool,
    longest: int,
    runtime: int,
    filtered: bool = False,
    ranks: int = 1,
) -> LearnerMemory:
    """The estimate for one learner, or for the first of its ranks. longest: tokens of a prompt and its answer at most,
    which may exceed `max_tokens_per_microbatch`; runtime: bytes of an empty process on that device; filtered: rollouts
    are sampled with top-k, top-p or min-p."""
    policy = sizes.parameters
    direct = config.objective in DIRECT
    own_critic = config.advantages == "gae" and config.critic == "own" and not direct
    critic = policy - sizes.head if own_critic else 0
    trained = policy + critic
    weights = 4 * (policy + critic)
    if config.lora is not None:
        adapters = config.lora.r * sizes.layers * (9 * sizes.hidden + 3 * sizes.intermediate)
        trained = adapters * (2 if critic else 1)
        weights += 4 * trained
    elif (direct or config.kl_coefficient > 0) and not (config.offload_reference and on_gpu):
        weights += 4 * policy
    tokens = max(config.max_tokens_per_microbatch, longest)
    from_host = config.offload_reference and on_gpu and ranks == 1  # ranks gather it, as the others
    narrow = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    width = 2 if narrow else 4
    scoring, updating = _logits(sizes, tokens, width, "cuda" if on_gpu else "cpu", filtered=filtered)
    if config.lora is None and tokens * sizes.vocabulary > CHUNK["cuda" if on_gpu else "cpu"]:
        updating += 4 * sizes.vocabulary * sizes.hidden
    found = LearnerMemory(
        weights=weights,
        moments=0 if config.offload_optimizer and on_gpu else 8 * trained,
        gradients=4 * trained,
        scoring=scoring + (4 * (sizes.vocabulary * sizes.hidden + sizes.head) if from_host else 0),
        updating=updating + _activations(sizes, config, tokens, width) + (2 * policy if narrow else 0),
        publishing=_publishing(sizes, config, on_gpu=on_gpu),
        runtime=runtime,
    )
    return found if ranks == 1 else _divided(found, sizes, ranks, narrow=narrow, critic=critic > 0)


def _divided(whole: LearnerMemory, sizes: ModelSizes, ranks: int, *, narrow: bool, critic: bool) -> LearnerMemory:
    """Of one rank. Copies in 16 bits are those of the layers that are gathered."""
    embedding = sizes.vocabulary * sizes.hidden
    outside = embedding + sizes.head
    layer = max(0, sizes.parameters - outside) // sizes.layers
    gathered = 4 * outside + 2 * (2 if narrow else 4) * layer
    while_updating = gathered + 4 * max(outside, layer) + (4 * embedding if critic else 0)
    return replace(
        whole,
        weights=whole.weights // ranks,
        moments=whole.moments // ranks,
        gradients=whole.gradients // ranks,
        scoring=whole.scoring + gathered,
        updating=whole.updating - (2 * sizes.parameters if narrow else 0) + while_updating,
    )


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
