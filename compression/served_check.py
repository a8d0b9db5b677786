"""Whether vLLM serves a compressed model, and how fast: its own server loads it and writes; a reward model is loaded by
the engine of the feedback.

    found = check_in_vllm(copy, prompts, log=log)
    compared(check_in_vllm(original, prompts, log=log), found)
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from compression.pairs import Tokens
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import model_settings
from solon.engines.device import vllm_build
from solon.engines.openai_server import SERVED_NAME, served
from solon.errors import InputError, RunFailedError
from solon.models.facts import context_of, is_reward_model

PROMPTS = 16
TOKENS = 64
"""Of every answer."""
REPEATS = 3
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens a second of vLLM, all prompts together, the median of three times after one that warms up."""

    dtype: str
    """In which it computes."""
    prefill: float
    """Of the prompts."""
    decode: float | None
    """Of the answers; None: it writes none."""


def check_in_vllm(model: Path, prompts: Sequence[Tokens], *, log: Path) -> Speed:
    """Raises RunFailedError when it does not start, or gives log-probs or rewards that are not finite.

    prompts: the first 16 are used, of an original the same as of its copy. log: of the server.
    """
    gives_rewards, context = is_reward_model(str(model)), context_of(str(model)) or 1 << 30
    tokens = 1 if gives_rewards else min(TOKENS, context // 2)
    length = min(max(map(len, prompts)) + tokens, context)
    config = EngineConfig(model=str(model), max_model_len=max(16, length), dtype=serving_dtype(model))
    asked = [one[-(length - tokens) :] for one in prompts[:PROMPTS]]
    return _scored(config, asked) if gives_rewards else _written(config, asked, log, tokens=tokens)


def compared(original: Speed, copy: Speed) -> dict[str, Any]:
    """The speeds as a report has them; `ratio`: above 1 the copy is faster."""
    names = ("prefill", *(("decode",) if original.decode and copy.decode else ()))
    one, other = ({name: getattr(speed, name) for name in names} for speed in (original, copy))
    return {
        "dtype": copy.dtype,
        "original": one,
        "copy": other,
        "ratio": {name: other[name] / one[name] for name in names},
    }


def said(speed: dict[str, Any]) -> str:
    """One sentence about the speeds."""
    parts = [
        f"{what} {speed['original'][name]:,.0f} -> {speed['copy'][name]:,.0f} tokens/s ({speed['ratio'][name]:.2f} x)"
        for name, what in (("prefill", "prompts"), ("decode", "answers"))
        if name in speed["ratio"]
    ]
    return f"speed in vLLM ({speed['dtype']}): {', '.join(parts)}"


def serving_dtype(model: Path) -> Any:
    """The same for an original and its copy: 16 bits, of which int4 and the fast int8 kernels need some."""
    settings = model_settings(EngineConfig(model=str(model)))
    own = settings.get("dtype", settings.get("torch_dtype"))
    return own if vllm_build() == "gpu" and own in ("float16", "bfloat16") else "bfloat16"


def _written(config: EngineConfig, prompts: Sequence[Tokens], log: Path, *, tokens: int) -> Speed:
    with (
        served(config, on_gpu=vllm_build() == "gpu", log=log) as address,
        httpx.Client(trust_env=False, timeout=TIMEOUT_S) as http,
    ):

        def write(most: int, salt: str) -> None:
            """salt: without it a repetition would find its prompts in the cache."""
            body = {
                "model": SERVED_NAME, "prompt": [list(one) for one in prompts], "max_tokens": most, "temperature": 0,
                "logprobs": 1, "ignore_eos": True, "cache_salt": f"{most}-{salt}",
            }  # fmt: skip
            try:
                reply = http.post(f"{address}/v1/completions", json=body)
            except httpx.HTTPError as error:
                raise RunFailedError(f"vLLM loads {config.model} and does not answer ({error}); see {log}") from None
            if not reply.is_success:
                raise RunFailedError(
                    f"vLLM loads {config.model} and does not answer ({reply.status_code}); its log is {log}"
                )
            found = [value for choice in reply.json()["choices"] for value in choice["logprobs"]["token_logprobs"]]
            if not found or not all(math.isfinite(value) for value in found):
                raise RunFailedError(f"vLLM gives log-probs that are not finite for {config.model}; its log is {log}")

        prefill_s = _median_s(lambda salt: write(1, salt))
        whole_s = _median_s(lambda salt: write(tokens, salt))
    return Speed(
        dtype=config.dtype,
        prefill=sum(map(len, prompts)) / prefill_s,
        decode=len(prompts) * (tokens - 1) / max(1e-3, whole_s - prefill_s),
    )


def _median_s(run: Callable[[str], None]) -> float:
    run("warm")
    seconds = []
    for number in range(REPEATS):
        began = time.perf_counter()
        run(str(number))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _scored(config: EngineConfig, sequences: Sequence[Tokens]) -> Speed:
    """In a process of its own: vLLM's engine of rewards has no server."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_score_apart, args=(sender, config, tuple(sequences)), daemon=True)
    child.start()
    sender.close()
    try:
        outcome: Speed | Exception = receiver.recv()
    except EOFError:
        child.join()
        raise RunFailedError(f"vLLM ended with exit code {child.exitcode} when it loaded {config.model}") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _score_apart(sender: Connection, config: EngineConfig, sequences: Sequence[Tokens]) -> None:
    outcome: Speed | Exception
    try:
        outcome = _score(config, sequences)
    except (InputError, RunFailedError) as error:
        outcome = RunFailedError(f"{error}; or give --no-serve, and use the copy with that backend")
    with contextlib.suppress(BrokenPipeError):  # the reader has left
        sender.send(outcome)
    sender.close()


def _score(config: EngineConfig, sequences: Sequence[Tokens]) -> Speed:
    from solon.engines.scoring import build_scoring_engine

    engine = build_scoring_engine(config, name="reward model")
    try:
        # Every time they begin differently: the engine has a prefix cache.
        rounds = iter([[(*ids[number:], *ids[:number]) for ids in sequences] for number in range(REPEATS + 1)])

        def score(_: str) -> None:
            found = engine.score(next(rounds))
            if not all(map(math.isfinite, found)):
                raise RunFailedError(f"vLLM gives rewards that are not finite for {config.model}")

        seconds, dtype = _median_s(score), engine.dtype
    finally:
        engine.close()
    return Speed(dtype=dtype, prefill=sum(map(len, sequences)) / seconds, decode=None)
