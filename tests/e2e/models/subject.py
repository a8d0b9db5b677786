"""A tiny random model of one architecture, and its inputs and outputs: prompts, answers, log-probs.

N: response tokens of a batch; T: token positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from solon.engines.base import Completion, Engine, EngineConfig, Request
from solon.engines.build import build_engine
from solon.records import Feedback, Group, Rollout, TrainingGroup, Weights
from tests.architectures import ARCHITECTURES, LENGTH_DEPENDENT, WINDOW
from tests.models import make_tokenizer
from tests.unit.fakes import make_prompt

VOCABULARY = 128
LENGTH = 96
"""Context of the engines, twelve windows."""
SERVED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the narrowest that vLLM's attention for CPUs takes
    "eos_token_id": 5,
    "bos_token_id": None,
    "initializer_range": 0.1,
}
SHAPES = ((3, 4), (WINDOW - 1, 2), (5 * WINDOW, 3), (2, 1), (4 * WINDOW, 1))
"""(prompt tokens, answers): shared and alone, shorter and longer than the window."""
ANSWER = 3 * WINDOW
"""The longest answer in tokens: answers to short prompts pass the window during decoding."""


class Subject:
    """`Subject("gemma3", tmp_path)` writes the model; engines and learners are built from `path`.

    length: context of its engines.
    """

    def __init__(self, name: str, folder: Path, *, length: int = LENGTH) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.name, self.path, self.length = name, folder / name, length
        self._engines: dict[str, Engine] = {}
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config((ARCHITECTURES | LENGTH_DEPENDENT)[name](**SERVED)).to(torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                # Norms of a fresh model are all ones, so that a lost one would not show; biases all zeros.
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        network.save_pretrained(self.path)
        make_tokenizer([f"w{i}" for i in range(VOCABULARY - 6)]).save_pretrained(self.path)

    def engine(self, backend: str) -> Engine:
        """Built on first use. A stage that changes its weights begins with its own."""
        if backend not in self._engines:
            self._engines[backend] = self.engine_of(self.path, backend)
        return self._engines[backend]

    def engine_of(self, path: Path, backend: str) -> Engine:
        config = EngineConfig(
            model=str(path),
            backend=backend,  # type: ignore[arg-type]
            max_model_len=self.length,
            max_running=32,
            kv_cache_gib=0.02,
        )
        return build_engine(config, name=f"{self.name}-{backend}")

    def close(self) -> None:
        while self._engines:
            self._engines.popitem()[1].close()

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        rng = np.random.default_rng(0)
        return [tuple(int(token) for token in rng.integers(6, VOCABULARY, length)) for length, _ in SHAPES]

    @cached_property
    def sequences(self) -> list[tuple[int, ...]]:
        """Texts shorter and longer than the window."""
        rng = np.random.default_rng(1)
        lengths = [n for n in (5, WINDOW, WINDOW + 1, 4 * WINDOW - 1, 8 * WINDOW) if n < self.length]
        return [tuple(int(token) for token in rng.integers(6, VOCABULARY, length)) for length in lengths]

    def requests(self, temperature: float) -> list[Request]:
        return [
            Request(
                request_id=f"{group}-{member}",
                prompt_token_ids=self.prompts[group],
                max_tokens=ANSWER,
                temperature=temperature,
                seed=100 * group + member,
            )
            for group, (_, size) in enumerate(SHAPES)
            for member in range(size)
        ]


def answers(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Adds the requests a few at a time, so that rows of different ages share steps."""
    done: dict[str, Completion] = {}
    for request in requests:
        engine.add(request)
        done |= {completion.request_id: completion for completion in engine.step()}
    while engine.has_work():
        done |= {completion.request_id: completion for completion in engine.step()}
    return [done[request.request_id] for request in requests]


def answered_groups(engine: Engine, requests: Sequence[Request]) -> list[TrainingGroup]:
    """The engine's answers as a learner receives them, the later ones of a group with the larger reward."""
    groups: dict[int, list[tuple[Request, Completion]]] = {}
    for request, completion in zip(requests, answers(engine, requests), strict=True):
        groups.setdefault(int(request.request_id.split("-")[0]), []).append((request, completion))
    return [_group(ordinal, members) for ordinal, members in groups.items()]


def _group(ordinal: int, members: Sequence[tuple[Request, Completion]]) -> TrainingGroup:
    rollouts = tuple(
        Rollout(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            segments=completion.segments,
            finish_reason=completion.finish_reason,
            text="",
        )
        for _, completion in members
    )
    prompt = np.array(members[0][0].prompt_token_ids, np.int32)
    group = Group(ordinal=ordinal, attempt=0, prompt=make_prompt(), prompt_token_ids=prompt, rollouts=rollouts)
    rewards = tuple(float(index) for index in range(len(rollouts)))
    return TrainingGroup(group=group, feedback=Feedback(ordinal=ordinal, attempt=0, rewards_G=rewards, labels=()))


def plain_logprobs(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """log p(token t | tokens < t) for t >= 1, one plain forward pass per sequence."""
    import torch

    found = []
    for sequence in sequences:
        ids_1T = torch.tensor([list(sequence)])
        with torch.no_grad():
            logprobs_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        found.append(logprobs_TV.gather(-1, ids_1T[0, 1:, None])[:, 0].tolist())
    return found


def largest_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Nats."""
    pairs = zip(ours, theirs, strict=True)
    return max(float(np.abs(np.subtract(one, other)).max()) for one, other in pairs)


def canary_gap(engine: Engine, weights: Weights) -> float:
    return largest_gap(engine.sequence_logprobs(weights.canary_token_ids), weights.canary_logprobs)
