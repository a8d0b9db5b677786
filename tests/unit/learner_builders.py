"""Small honest models and batches for the learner's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from solon.engines.chunks import named_tensors
from solon.records import Feedback, FinishReason, Group, Prompt, Rollout, TrainingGroup, Weights

VOCABULARY = 32


def write_tokenizer(directory: Path, vocabulary: int = VOCABULARY) -> None:
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(directory)


def write_llama(directory: Path, *, tied: bool = True, seed: int = 0, **changes: Any) -> str:
    """A random Llama of 0.02 M parameters with a word-level tokenizer; returns its path."""
    torch.manual_seed(seed)
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    LlamaForCausalLM(LlamaConfig(**(config | changes))).save_pretrained(directory)
    write_tokenizer(directory)
    return str(directory)


def tensors_in(weights: Weights) -> dict[str, torch.Tensor]:
    """Copies of the published tensors."""
    return {name: tensor.clone() for name, tensor in named_tensors(weights)}


def model_from(weights: Weights, path: str, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh Hugging Face model that holds the payload, and nothing else."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    return put(weights, model)


def put(weights: Weights, model: Any) -> Any:
    """The model with the payload in it; every parameter must be there."""
    result = model.load_state_dict(tensors_in(weights), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= set(model.all_tied_weights_keys)
    return model


@torch.no_grad()
def logprobs_of_sequence(model: Any, token_ids: Sequence[int]) -> list[float]:
    """log p(token t | tokens < t) for t >= 1."""
    ids = torch.tensor([list(token_ids)])
    logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist()


def make_group(
    ordinal: int,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    rewards: Sequence[float | None],
    *,
    logprobs: Sequence[Sequence[float]] | None = None,
    version: int = 0,
    finish: Sequence[FinishReason] | None = None,
) -> TrainingGroup:
    """A labelled group; without `logprobs` the engine counts as uniform, without `finish` all answers as cut."""
    rollouts = []
    for i, answer in enumerate(answers):
        mu = [-float(np.log(VOCABULARY))] * len(answer) if logprobs is None else logprobs[i]
        rollouts.append(
            Rollout(
                token_ids=np.array(answer, np.int32),
                logprobs=np.array(mu, np.float32),
                segments=((version, len(answer)),),
                finish_reason="length" if finish is None else finish[i],
                text="",
            )
        )
    group = Group(
        ordinal=ordinal,
        attempt=0,
        prompt=Prompt(prompt_id=str(ordinal), messages=()),
        prompt_token_ids=np.array(prompt, np.int32),
        rollouts=tuple(rollouts),
    )
    return TrainingGroup(
        group=group, feedback=Feedback(ordinal=ordinal, attempt=0, rewards_G=tuple(rewards), labels=())
    )


def random_groups(
    num_groups: int = 4, size: int = 3, *, seed: int = 0, version: int = 0, invalid: bool = False
) -> list[TrainingGroup]:
    """Ragged groups of random tokens with random rewards; with `invalid`, the first of each has none."""
    rng = np.random.default_rng(seed)
    groups = []
    for ordinal in range(num_groups):
        answers = [rng.integers(1, VOCABULARY, rng.integers(1, 8)).tolist() for _ in range(size)]
        rewards: list[float | None] = [float(r) for r in rng.normal(size=size)]
        if invalid:
            rewards[0] = None
        prompt = rng.integers(1, VOCABULARY, rng.integers(3, 12)).tolist()
        groups.append(make_group(ordinal, prompt, answers, rewards, version=version))
    return groups


@torch.no_grad()
def sampled_groups(
    model: Any,
    reward: Callable[[list[int]], float],
    *,
    num_groups: int,
    size: int,
    length: int,
    version: int,
    temperature: float = 1.0,
) -> list[TrainingGroup]:
    """Groups really sampled from the model, with its log-probs."""
    generator = torch.Generator().manual_seed(version)
    prompts = torch.randint(3, VOCABULARY, (num_groups, 3), generator=generator).repeat_interleave(size, 0)
    ids, logprobs = prompts, []
    for _ in range(length):
        distribution = (model(ids).logits[:, -1] / temperature).log_softmax(-1)
        token = torch.multinomial(distribution.exp(), 1, generator=generator)
        logprobs.append(distribution.gather(-1, token))
        ids = torch.cat([ids, token], 1)
    mu = torch.cat(logprobs, 1)
    groups = []
    for g in range(num_groups):
        rows = range(g * size, (g + 1) * size)
        answers = [ids[row, 3:].tolist() for row in rows]
        groups.append(
            make_group(
                1000 * version + g,
                ids[g * size, :3].tolist(),
                answers,
                [reward(answer) for answer in answers],
                logprobs=[mu[row].tolist() for row in rows],
                version=version,
            )
        )
    return groups
