"""Engines on a CUDA device for its tests: each in a process of its own, which sees one device and ends with it.

found = apart(checked, model)       # checked(model), a function of a test module, in another process
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from solon.engines.base import Completion, Engine, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.chunks import packed
from solon.records import Weights
from tests.engine_ranks import DEVICES
from tests.unit.learner_builders import write_llama

ResultT = TypeVar("ResultT")

DEVICE = "gpu"
VOCABULARY = 512
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Heads of 64 elements, which every attention kernel takes."""
LIMIT_S = 240.0


def apart(function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """The result of a function of a module in another process. Raises its error."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_one_device) as pool:
        return pool.submit(function, *arguments).result(LIMIT_S)


def _one_device() -> None:
    """Ray gives an actor one device too."""
    os.environ[DEVICES] = given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    os.environ["CUDA_VISIBLE_DEVICES"] = given.split(",")[0] if given else "0"


def write_model(path: Path, *, seed: int = 0, tied: bool = True, dtype: str = "bfloat16") -> str:
    """A random model whose weights have no more digits than an engine of this dtype keeps; returns its path."""
    from transformers import AutoModelForCausalLM

    model = write_llama(path, tied=tied, seed=seed, **SIZES)
    AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).save_pretrained(model)
    return model


def engine_of(model: str, **options: Any) -> Engine:
    """An engine of this model, which takes new weights."""
    given = {"dtype": "bfloat16", "max_model_len": 512, "max_running": 8, "kv_cache_gib": 0.5} | options
    return build_engine(EngineConfig(model=model, device=DEVICE, reloads=True, **given), name="policy-0")


def weights_in(model: str, version: int) -> Weights:
    """The weights in these files as a policy version, in several chunks."""
    from safetensors.torch import load_file

    canary = tuple(range(20, 44))
    return packed(
        version,
        load_file(Path(model) / "model.safetensors").items(),
        canary_token_ids=(canary,),
        canary_logprobs=(tuple(recomputed(model, [canary])[0]),),
        bound=1 << 20,
    )


def recomputed(
    model: str, sequences: Sequence[Sequence[int]], *, temperature: float = 1.0, top_k: int = 0
) -> list[list[float]]:
    """log p(token t | tokens < t) for t >= 1, by Transformers on the host in float32."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for sequence in sequences:
        ids = torch.tensor([list(sequence)])
        with torch.no_grad():
            logits_TV = network(ids).logits[0, :-1] / temperature
        if top_k:
            least_T1 = logits_TV.topk(top_k).values[:, -1:]
            logits_TV = logits_TV.masked_fill(logits_TV < least_T1, float("-inf"))
        found.append(logits_TV.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist())
    return found


def requests_of(count: int, *, max_tokens: int = 24, prompt: int = 20, name: str = "r", **rest: Any) -> list[Request]:
    """Requests with random prompts, each with a seed of its own."""
    drawn = np.random.default_rng(count)
    return [
        Request(
            request_id=f"{name}{i}",
            prompt_token_ids=tuple(int(token) for token in drawn.integers(6, VOCABULARY, prompt + i)),
            max_tokens=max_tokens,
            **{"seed": i} | rest,
        )
        for i in range(count)
    ]


def finish(engine: Engine, requests: Sequence[Request] = ()) -> list[Completion]:
    """Completions in the order of the requests; without them all that the engine has to do."""
    for request in requests:
        engine.add(request)
    done: dict[str, Completion] = {}
    while engine.has_work():
        done |= {completion.request_id: completion for completion in engine.step()}
    return [done[request.request_id] for request in requests] if requests else list(done.values())


def answers_of(completions: Sequence[Completion]) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probs."""
    return [(done.token_ids.tolist(), done.logprobs.tolist()) for done in completions]


def mean_gap(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Mean difference, nats."""
    return float(np.mean([np.abs(np.subtract(a, b)).mean() for a, b in zip(one, other, strict=True)]))
