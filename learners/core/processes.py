"""Ranks as processes of this machine, for a training on a fixed data set. A run has its ranks as Ray actors instead.

first, *_ = run_on_ranks(2, train_some, "models/policy", pairs)      # train_some(ranks, "models/policy", pairs)
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from solon.errors import InputError, RunFailedError

Outcome = tuple[Exception | None, Any]
"""The error of a rank, or its result."""
KEPT_S = 60.0
"""Seconds for which a rank waits until its result is read."""
PATIENCE_S = 5.0
"""Seconds for the other ranks to say what happened after the first one failed."""


def run_on_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    device: str = "cpu",
    threads: int = 1,
    timeout_s: float = 600.0,
) -> list[Any]:
    """`function(ranks, *arguments)` on every rank, each a process of its own; their results, in the order of the ranks.

    function: found by its module and name. device: `cuda` gives each rank the device of its number. timeout_s: how long
    a rank waits for the others in one operation. When a rank fails, all end. Raises the InputError or RunFailedError
    that a rank raised, else RunFailedError that names the rank.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="solon-ranks-") as name:
        store = str(Path(name) / "store")
        pipes = [context.Pipe() for _ in range(size)]
        processes = [
            context.Process(
                target=_rank,
                args=(rank, size, store, sending, function, arguments, device, threads, timeout_s),
                daemon=True,
            )
            for rank, (_, sending) in enumerate(pipes)
        ]
        try:
            for process in processes:
                process.start()
            for _, sending in pipes:
                sending.close()  # the end of a process is then the end of its pipe
            found = _received([receiving for receiving, _ in pipes])
            for rank, process in enumerate(processes):
                process.join(0 if rank in found else 1.0)
            codes = [0 if rank in found else process.exitcode for rank, process in enumerate(processes)]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
    outcomes = [found.get(rank, (None, None)) for rank in range(size)]
    errors = [error for error, _ in outcomes if error is not None]
    for kind in (InputError, RunFailedError):
        for error in errors:
            if isinstance(error, kind):
                raise error
    if any(codes) or errors:
        raise RunFailedError(_cause(codes, errors))
    return [result for _, result in outcomes]


def device_of_ranks(num_ranks: int, device: str, model: str) -> str:
    """`cuda` or `cpu`, for ranks that are to divide a model. Raises InputError when there are too few GPUs, or the
    model cannot be divided."""
    import torch

    from learners.core.loading import choose_device, require_divisible

    kind = choose_device(device).type
    if kind == "cuda" and num_ranks > torch.cuda.device_count():
        raise InputError(
            f"num_ranks = {num_ranks} on a machine with {torch.cuda.device_count()} GPUs, expected at most one "
            "rank for each; lower num_ranks"
        )
    require_divisible(model)
    return kind


def _received(pipes: Sequence[Connection]) -> dict[int, Outcome]:
    """What the ranks send, until all have ended, or some time after one has failed."""
    found: dict[int, Outcome] = {}
    waited: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(pipes)}
    failed_at: float | None = None
    while waited and not (failed_at is not None and time.monotonic() - failed_at > PATIENCE_S):
        for pipe in wait(list(waited), timeout=0.5):
            rank, receiving = waited[pipe], pipes[waited.pop(pipe)]
            try:
                found[rank] = receiving.recv()
                receiving.send(None)  # tensors are in memory of the rank, which must live until here
            except EOFError:  # it ended without a word
                failed_at = failed_at or time.monotonic()
            else:
                failed_at = (failed_at or time.monotonic()) if found[rank][0] is not None else failed_at
    return found


def _cause(codes: Sequence[int | None], errors: Sequence[Exception]) -> str:
    """The rank that a signal ended, before the errors that the others have for it."""
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    if killed:
        return f"rank {killed[0]} of {len(codes)} was ended by signal {-(codes[killed[0]] or 0)}"
    return str(errors[0]) if errors else f"a rank of {len(codes)} ended without a result"


def _rank(
    rank: int,
    size: int,
    place: str,
    sending: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    device: str,
    threads: int,
    timeout_s: float,
) -> None:
    import torch
    from torch import distributed

    from learners.core.ranks import join_ranks, leave_ranks

    torch.set_num_threads(threads)
    if device == "cuda":
        torch.cuda.set_device(rank)
    outcome: Outcome
    try:
        store = distributed.FileStore(place, size)  # type: ignore[attr-defined]
        outcome = None, function(join_ranks(rank, size, store=store, device=device, timeout_s=timeout_s), *arguments)
        leave_ranks()
    except (InputError, RunFailedError) as error:
        outcome = error, None
    except Exception:  # told by the parent; a class of a library may not be picklable
        outcome = ChildError(f"rank {rank} of {size} failed:\n{traceback.format_exc()}"), None
    sending.send(outcome)
    sending.poll(KEPT_S)
    sending.close()


class ChildError(Exception):
    """Another error of a rank, with its traceback."""
