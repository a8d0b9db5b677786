"""Ranks as processes of this machine, for a training on a fixed data set. A run has its ranks as Ray actors instead.

first, *_ = run_on_ranks(2, train_some, "models/policy", pairs)      # train_some(ranks, "models/policy", pairs)
"""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from solon.errors import InputError, RunFailedError

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
        folder = Path(name)
        processes = [
            context.Process(
                target=_rank, args=(rank, size, folder, function, arguments, device, threads, timeout_s), daemon=True
            )
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            _await(processes, folder)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        outcomes = [_outcome(folder, rank) for rank in range(size)]
        codes = [process.exitcode for process in processes]
    errors = [error for error, _ in outcomes if error is not None]
    for kind in (InputError, RunFailedError):
        for error in errors:
            if isinstance(error, kind):
                raise error
    if any(codes) or errors:
        raise RunFailedError(_cause(codes, errors))
    return [result for _, result in outcomes]


def _await(processes: Sequence[BaseProcess], folder: Path) -> None:
    """Returns when all ranks have ended, or some time after one has failed."""
    failed_at: float | None = None
    while any(process.is_alive() for process in processes):
        time.sleep(0.02)
        failed = any(process.exitcode for process in processes) or any(folder.glob("*.failed"))
        failed_at = (failed_at or time.monotonic()) if failed else None
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE_S:
            return


def _outcome(folder: Path, rank: int) -> tuple[Exception | None, Any]:
    """The error and the result of a rank; neither for one that ended without."""
    for kind in ("done", "failed"):
        path = folder / f"{rank}.{kind}"
        if path.exists():
            found: tuple[Exception | None, Any] = pickle.loads(path.read_bytes())
            return found
    return None, None


def _cause(codes: Sequence[int | None], errors: Sequence[Exception]) -> str:
    """The rank that a signal ended, before the errors that the others have for it."""
    killed = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    if killed:
        return f"rank {killed[0]} of {len(codes)} was ended by signal {-(codes[killed[0]] or 0)}"
    return str(errors[0]) if errors else f"a rank of {len(codes)} ended without a result"


def _rank(
    rank: int,
    size: int,
    folder: Path,
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
    outcome: tuple[Exception | None, Any]
    try:
        store = distributed.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]
        outcome = None, function(join_ranks(rank, size, store=store, device=device, timeout_s=timeout_s), *arguments)
        leave_ranks()
    except (InputError, RunFailedError) as error:
        outcome = error, None
    except Exception:  # told by the parent; a class of a library may not be picklable
        outcome = ChildError(f"rank {rank} of {size} failed:\n{traceback.format_exc()}"), None
    part = folder / f"{rank}.part"
    part.write_bytes(pickle.dumps(outcome))
    part.rename(folder / f"{rank}.{'failed' if outcome[0] is not None else 'done'}")


class ChildError(Exception):
    """Another error of a rank, with its traceback."""
