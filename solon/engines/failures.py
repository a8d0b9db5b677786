"""Separates failures of the compute libraries of an engine or learner from bad input and from our own bugs.

    with computing("engine rollout-0", "decoding"):
        outputs = client.get_output()

An exception of torch, CUDA, vLLM or Transformers during a computation makes the process unusable: its state may be half
written, and after a CUDA error the device refuses all further work. So it becomes an EngineFailedError, and the owner
of the process replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from solon.engines.base import Completion
from solon.errors import EngineFailedError, InputError, RunFailedError, one_line

RAISED_BY_LIBRARIES = (RuntimeError, MemoryError)
"""The errors of a failed computation in torch, used where Solon's own code runs between its calls. Every CUDA error and
`torch.OutOfMemoryError` is a RuntimeError; mistakes in Python code have other classes."""
_OURS = (InputError, RunFailedError, NotImplementedError, RecursionError)
_NO_ROOM = "; if it happens again, lower max_running, max_model_len or gpu_memory_utilization of this engine's section"


@contextmanager
def computing(
    who: str, what: str, *, kinds: tuple[type[Exception], ...] = (Exception,), no_room: str = _NO_ROOM
) -> Iterator[None]:
    """Turns exceptions of these kinds into an EngineFailedError; input errors and errors of a run pass unchanged.

    no_room: the remedy when memory was too small, beginning with "; ".
    """
    try:
        yield
    except _OURS:
        raise
    except kinds as error:
        kind = type(error).__name__
        remedy = no_room if isinstance(error, MemoryError) or "OutOfMemory" in kind else ""
        cause = one_line(str(error), longest=500)
        raise EngineFailedError(f"{who} failed while {what}: {kind}: {cause}{remedy}") from error


def check_numbers(who: str, completions: Sequence[Completion]) -> None:
    """Raises EngineFailedError when log-probs are not finite: every sampled token has a finite one."""
    for completion in completions:
        wrong = [float(x) for x in completion.logprobs if not math.isfinite(x)]
        wrong += [x for x in completion.label_logprobs if math.isnan(x) or x == math.inf]
        if wrong:
            raise EngineFailedError(
                f"{who} computed log-probs that are not finite: {wrong[0]} among {len(completion.logprobs)} tokens; if "
                'a new one does so too, the weights are broken: lower learn.learning_rate, or dtype = "bfloat16" '
                "where float16 overflows"
            )


def check_canaries(who: str, canary: Sequence[Sequence[float]]) -> None:
    """The same for the log-probs that attest weights."""
    if any(not math.isfinite(x) for row in canary for x in row):
        raise EngineFailedError(f"{who} computed log-probs that are not finite on the attestation's sequences")
