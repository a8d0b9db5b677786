"""Two small environments with stale rollouts served in few bits, and a training loop for them.

The learner is Solon's own. Generation is a loop over a key-value cache in the same process, so that the lag between the
policy that generates and the policy that learns is exact. R: rollouts.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SYMBOLS, GENEROSITY = 16, 8
VOCABULARY = SYMBOLS + GENEROSITY
ANSWER = 24
PROMPTS, GROUP = 16, 4
EVERY = 5
"""Steps between two evaluations."""
BASE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "critic_learning_rate": 3e-3,
    "kl_coefficient": 0.0,
    "lam": 0.95,
    "epochs": 2,
    "minibatches": 2,
}


class World(Protocol):
    """A prompt is (generosity of the judge, symbol); an answer is ANSWER symbols. `score` is the objective, per symbol;
    the reward is ANSWER * score + generosity + noise, given once, after the last symbol."""

    name: str

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> float: ...


class Chain:
    """Every symbol has one right successor, unknown to the policy: credit must be assigned over 24 decisions.
    Score: share of right successors."""

    name = "chain"

    def __init__(self, seed: int) -> None:
        self._successor_S = np.random.default_rng([seed, 1]).permutation(SYMBOLS)

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        before = [prompt[-1], *answer[:-1]]
        return sum(b < SYMBOLS and a == self._successor_S[b] for a, b in zip(answer, before, strict=True)) / ANSWER


class Amount:
    """One symbol must occur exactly ten times: the right choice depends on the rest of the answer, so a policy that
    learns from old answers overshoots. Score: minus the distance to ten, over the length."""

    name = "amount"
    wanted = 10

    def __init__(self, seed: int) -> None:
        self._symbol = int(np.random.default_rng([seed, 1]).integers(SYMBOLS))

    def score(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        return -abs(sum(token == self._symbol for token in answer) - self.wanted) / ANSWER


@dataclass(frozen=True, slots=True)
class Variant:
    """A change of the learner's settings. `Variant("no clip", {"clip_high": 1e6})`"""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    corrected: bool = True
    """False: the behaviour log-probs are replaced by the learner's own, so that every importance weight is 1."""


def train(
    world: World, variant: Variant, *, lag: int, bits: int | None, seed: int, steps: int, noise: float = 1.0
) -> list[float]:
    """Score of the current policy's rollouts, every EVERY steps. Training rollouts come from the policy of `lag` steps
    ago, with its matrices rounded to `bits` bits per weight (None: unrounded)."""
    from learners.build import build_learner
    from learners.config import LearnConfig

    with tempfile.TemporaryDirectory() as folder:
        config = LearnConfig(**(BASE | variant.changes))
        learner = build_learner(config, model=_write_policy(Path(folder), seed), temperature=1.0, seed=seed)
    policy = learner.objective.policy.base
    writers = deque([_served(policy, bits)], maxlen=lag + 1)
    curve = []
    for step in range(steps):
        if step % EVERY == 0:
            curve.append(_evaluate(world, policy, seed))
        groups = _groups(world, writers[0], seed=seed, step=step, version=max(0, step - lag), noise=noise)
        if not variant.corrected:
            groups = _with_own_logprobs(learner, groups)
        learner.step(step, groups)
        writers.append(_served(policy, bits))
    return [*curve, _evaluate(world, policy, seed)]


def _write_policy(folder: Path, seed: int) -> str:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None, pad_token_id=0, initializer_range=0.05,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({f"s{i}": i for i in range(VOCABULARY)}, unk_token="s0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="s0", unk_token="s0").save_pretrained(folder)
    return str(folder)


def _served(policy: Any, bits: int | None) -> Any:
    """A copy with its matrices rounded row by row to a symmetric grid."""
    served = copy.deepcopy(policy)
    if bits is not None:
        for parameter in served.parameters():
            if parameter.ndim == 2:
                scale = parameter.data.abs().amax(1, keepdim=True).clamp(min=1e-8) / (2 ** (bits - 1) - 1)
                parameter.data = (parameter.data / scale).round() * scale
    return served


def _prompts(seed: int, number: int, size: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, 2, number])
    return np.stack([SYMBOLS + rng.integers(0, GENEROSITY, size), rng.integers(0, SYMBOLS, size)], axis=1)


def _sample(model: Any, prompts_RP: NDArray[np.int64], seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Answers and their log-probs, [R, ANSWER] each."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        ids, cache, tokens, logprobs = torch.from_numpy(prompts_RP), None, [], []
        for _ in range(ANSWER):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, distribution = out.past_key_values, out.logits[:, -1].log_softmax(-1)
            ids = torch.multinomial(distribution.exp(), 1, generator=generator)
            tokens.append(ids)
            logprobs.append(distribution.gather(-1, ids))
    return torch.cat(tokens, 1).numpy().astype(np.int32), torch.cat(logprobs, 1).numpy()


def _evaluate(world: World, policy: Any, seed: int) -> float:
    prompts_RP = np.repeat(_prompts(seed, 1_000_000, 64), 4, axis=0)
    tokens_RT, _ = _sample(policy, prompts_RP, seed=1)
    return float(np.mean([world.score(p, a) for p, a in zip(prompts_RP.tolist(), tokens_RT.tolist(), strict=True)]))


def _groups(world: World, writer: Any, *, seed: int, step: int, version: int, noise: float) -> list[Any]:
    """A labelled batch."""
    from solon.records import Feedback, Group, Prompt, Rollout, TrainingGroup

    prompts = _prompts(seed, step, PROMPTS)
    tokens_RT, logprobs_RT = _sample(writer, np.repeat(prompts, GROUP, axis=0), seed=seed * 100_003 + step)
    rng = np.random.default_rng([seed, 3, step])
    groups = []
    for p, prompt in enumerate(prompts.tolist()):
        rows = range(p * GROUP, (p + 1) * GROUP)
        # The judge's generosity to a prompt is independent of the answer: a critic can subtract it.
        generosity = prompt[0] - SYMBOLS - (GENEROSITY - 1) / 2
        rewards = [
            ANSWER * world.score(prompt, tokens_RT[row].tolist()) + generosity + noise * float(rng.normal())
            for row in rows
        ]
        rollouts = tuple(
            Rollout(token_ids=tokens_RT[row], logprobs=logprobs_RT[row], segments=((version, ANSWER),),
                    finish_reason="stop", text="")
            for row in rows
        )  # fmt: skip
        ordinal = step * PROMPTS + p
        group = Group(ordinal=ordinal, attempt=0, prompt=Prompt(prompt_id=str(ordinal), messages=()),
                      prompt_token_ids=np.array(prompt, np.int32), rollouts=rollouts)  # fmt: skip
        feedback = Feedback(ordinal=ordinal, attempt=0, rewards_G=tuple(rewards), labels=())
        groups.append(TrainingGroup(group=group, feedback=feedback))
    return groups


def _with_own_logprobs(learner: Any, groups: list[Any]) -> list[Any]:
    """The same rollouts with the learner's log-probs instead of the generating policy's."""
    import torch

    from learners.core.batch import Batch
    from learners.policy_gradient.targets import gather

    batch = Batch.of(groups)
    microbatches = learner.objective.microbatches(batch, batch.trained_groups())
    with torch.no_grad():
        (own_N,) = gather(batch, microbatches, lambda m: (learner.objective.policy.logprobs(m),))
    own_RT = iter(own_N.numpy().reshape(-1, ANSWER))
    return [
        dataclasses.replace(
            group,
            group=dataclasses.replace(
                group.group,
                rollouts=tuple(dataclasses.replace(rollout, logprobs=next(own_RT)) for rollout in group.group.rollouts),
            ),
        )
        for group in groups
    ]
