"""Writes networks of one process or of several ranks as one directory, a parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learners.core.leading import led
from learners.core.ranks import Ranks
from learners.core.sharding import full, release
from learners.core.skeleton import LazyTensors
from solon.engines.model_writer import own_tensors, whole_model, write_model


def write_networks(
    networks: Mapping[str, Any],
    place: Path,
    ranks: Ranks,
    *,
    dtype: torch.dtype | None = None,
    finish: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write Transformers models as one directory that appears whole: the first rank writes, the others take part in
    gathering, all together.

    networks: by their folders in `place`; "" is `place` itself. dtype: of the written weights; None: their own. finish:
    adds further files to the folder before it takes its place. Raises DiskFullError, and InputError for a directory
    that holds something else than a model; on the other ranks RankFailedError.
    """
    own: dict[str, dict[str, Tensor]] = {}
    for name, network in networks.items():
        release(network)
        own[name] = own_tensors(network)
    makers = [partial(full, tensor) for tensors in own.values() for tensor in tensors.values()]
    with led(ranks, makers) as asking:
        if asking is None:
            return
        asked = iter(asking)
        with whole_model(place) as folder:
            for name, network in networks.items():
                (folder / name).mkdir(parents=True, exist_ok=True)
                write_model(network, folder / name, LazyTensors({key: next(asked) for key in own[name]}), dtype=dtype)
            finish(folder)
