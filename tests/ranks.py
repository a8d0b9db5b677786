"""Runs a function on several processes that form one group of ranks."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def on_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 180.0) -> list[Any]:
    """`function(ranks, *arguments)` on every rank; their results. Raises AssertionError with the traceback of a rank
    that failed."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="solon-ranks-") as folder:
        processes = [
            context.Process(target=_rank, args=(rank, size, folder, function, arguments), daemon=True)
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout_s)
            if process.is_alive():
                process.kill()
        outcomes = [
            _outcome(Path(folder) / f"{rank}.pickle", process.exitcode) for rank, process in enumerate(processes)
        ]
    failed = [f"rank {rank}: {text}" for rank, (done, text) in enumerate(outcomes) if not done]
    assert not failed, "\n".join(failed)
    return [result for _, result in outcomes]


def _outcome(path: Path, code: int | None) -> tuple[bool, Any]:
    return pickle.loads(path.read_bytes()) if path.exists() else (False, f"ended with exit code {code} and no result")


def _rank(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    from torch import distributed

    from learners.core.ranks import join_ranks, leave_ranks

    torch.set_num_threads(1)
    try:
        store = distributed.FileStore(str(Path(folder) / "store"), size)  # type: ignore[attr-defined]
        outcome = (True, function(join_ranks(rank, size, store=store, timeout_s=60.0), *arguments))
        leave_ranks()
    except BaseException:  # reported by the parent
        outcome = (False, traceback.format_exc())
    (Path(folder) / f"{rank}.part").write_bytes(pickle.dumps(outcome))
    (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.pickle")
