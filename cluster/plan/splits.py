"""The division of devices over the lanes: `Split(engines=40, judges=16, ranks=8)`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.plan.rates import Rates
from solon.engines.memory import GIB, element_bytes
from solon.models.sizes import ModelSizes

LANES = ("generate", "label", "learn")
RANKS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of ranks that are tried."""
FINE = 30
"""Numbers of workers that are tried between one and its double."""
ROOM = 1.15
"""Cache of an engine, over what its answers take when all are half written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Devices by lane, and how far generation runs ahead."""

    engines: int
    judges: int
    ranks: int
    staleness: int
    sharing: tuple[str, ...] = ()
    """Lanes that share one device."""
    on_cpu: bool = False
    engine_ranks: int = 1
    """Devices of one engine."""
    judge_ranks: int = 1

    @property
    def devices(self) -> int:
        """GPUs that it takes."""
        if self.on_cpu:
            return 0
        engines, judges = self.engines * self.engine_ranks, self.judges * self.judge_ranks
        return engines + judges + self.ranks - max(0, len(self.sharing) - 1)

    def share(self, lane: str) -> float:
        """Of a GPU, that a worker of the lane has."""
        if self.on_cpu:
            return 0.0
        return math.floor(100 / len(self.sharing)) / 100 if lane in self.sharing else 1.0

    def __str__(self) -> str:
        if self.on_cpu:
            return f"the cores as they are, target_staleness {self.staleness}"
        shared = f" ({' and '.join(self.sharing)} share a device)" if self.sharing else ""
        return f"{self.workers}{shared}, target_staleness {self.staleness}"

    @property
    def workers(self) -> str:
        """`40 : 16 : 8`, engines, judges and ranks of the learner."""
        engines, judges = _times(self.engines, self.engine_ranks), _times(self.judges, self.judge_ranks)
        return f"{engines} : {judges} : {self.ranks}"


def _times(workers: int, ranks: int) -> str:
    """`3`, or `3x2` where each has two devices."""
    return str(workers) if ranks == 1 else f"{workers}x{ranks}"


def splits_of(
    gpus: int, ranks: Sequence[int], stalenesses: Sequence[int], *, engine_ranks: int = 1, judge_ranks: int = 1
) -> Iterator[Split]:
    """All that use at most these devices. ranks: numbers of ranks in which the learner fits; engine_ranks, judge_ranks:
    devices of one engine and of one judge. Lanes share a device only where there are too few, and then with one rank
    each."""
    if gpus >= engine_ranks + judge_ranks + 1:
        for count in ranks:
            for judges, engines in _pairs(gpus - count, engine_ranks, judge_ranks):
                for d in stalenesses:
                    yield Split(engines=engines, judges=judges, ranks=count, staleness=d,
                                engine_ranks=engine_ranks, judge_ranks=judge_ranks)  # fmt: skip
        return
    divided = {lane for lane, size in (("generate", engine_ranks), ("label", judge_ranks)) if size > 1}
    for lanes in (LANES, ("generate", "label"), ("label", "learn"), ("generate", "learn")):
        for d in stalenesses if 1 in ranks and not divided & set(lanes) else ():
            split = Split(engines=1, judges=1, ranks=1, staleness=d, sharing=lanes,
                          engine_ranks=engine_ranks, judge_ranks=judge_ranks)  # fmt: skip
            if split.devices == gpus:
                yield split


def _pairs(devices: int, engine_ranks: int, judge_ranks: int) -> Iterator[tuple[int, int]]:
    """Judges and engines of at most these devices: all numbers up to 32, then about 30 to each doubling."""
    counts = sorted({max(1, round(2 ** (power / FINE))) for power in range(FINE * 13)} | set(range(1, 33)))
    for judges in (count for count in counts if count * judge_ranks + engine_ranks <= devices):
        most = (devices - judges * judge_ranks) // engine_ranks
        yield from ((judges, count) for count in counts if count <= most)
        if most not in counts:
            yield judges, most


def stalenesses_of(run: RunFile) -> list[int]:
    """Targets that are tried: from on-policy to three batches ahead, within the bound of the run file."""
    return list(range(min(3, run.staleness.max_staleness) + 1))


def bound(run: RunFile, rates: Rates, split: Split) -> float:
    """Groups a second that no schedule of these lanes can exceed."""
    size, batch = run.rollout.group_size, run.ledger.batch_groups
    tokens = rates.mean_answer
    trained = tokens * size * batch
    step_s, token_s = rates.learn.with_ranks(split.ranks, trained)
    lanes = {
        "generate": split.engines * rates.rollout.tokens_per_s(running_of(run, split)) / (tokens * size),
        "label": split.judges / rates.judging.group_s,
        "learn": batch / (step_s + token_s * trained),
        # Every version goes to every engine, before the one after the next is trained.
        "publish": batch * run.publish.engines_at_once / max(1e-12, split.engines * rates.publish.load_s),
    }
    alone = min(rate for lane, rate in lanes.items() if lane not in split.sharing)
    together = 1 / sum(1 / lanes[lane] for lane in split.sharing) if split.sharing else math.inf
    return min(alone, together)


def running_of(run: RunFile, split: Split) -> float:
    """Answers that an engine decodes together when all that may be admitted are generating."""
    ahead = (split.staleness + 1) * run.ledger.batch_groups * run.rollout.group_size
    return max(1.0, min(run.rollout.max_running, ahead / split.engines))


def fitted_running(run: RunFile, split: Split) -> int:
    """`rollout.max_running` of an engine of this split: what it can be given, in steps of 8."""
    return min(run.rollout.max_running, max(8, 8 * math.ceil(running_of(run, split) / 8)))


def with_split(run: RunFile, split: Split, sizes: dict[str, ModelSizes], rates: Rates) -> RunFile:
    """The run file with this division."""
    update: dict[str, Any] = {"staleness": run.staleness.model_copy(update={"target_staleness": split.staleness})}
    if split.on_cpu:
        return run.model_copy(update=update)
    max_running = fitted_running(run, split)
    rollout: dict[str, Any] = {
        "num_actors": split.engines,
        "num_gpus": split.share("generate"),
        "max_running": max_running,
    }
    judging: dict[str, Any] = {"num_actors": split.judges, "num_gpus": split.share("label")}
    if "generate" in split.sharing:
        needed = _cache_gib(run.rollout, sizes[run.policy], max_running, rates)
        rollout["kv_cache_gib"] = run.rollout.kv_cache_gib or needed
    if "label" in split.sharing:
        needed = _cache_gib(run.judging, sizes[run.judge], min(64, run.judging.max_running), rates)
        judging["kv_cache_gib"] = run.judging.kv_cache_gib or needed
    learn = {"num_ranks": split.ranks, "num_gpus": split.share("learn")}
    return run.model_copy(
        update=update
        | {
            "rollout": run.rollout.model_copy(update=rollout),
            "judging": run.judging.model_copy(update=judging),
            "learn": run.learn.model_copy(update=learn),
        }
    )


def _cache_gib(options: Any, sizes: ModelSizes, running: int, rates: Rates) -> float:
    """Cache for these answers, at least for one request of full length; rounded up to a quarter."""
    width = element_bytes(sizes, options, on_gpu=True)
    tokens = running * ROOM * (rates.prompt_tokens + rates.mean_answer)
    needed = sizes.cached_elements * width * max(tokens, options.max_model_len)
    return float(math.ceil(4 * needed / GIB) / 4)


def pools_of(run: RunFile) -> dict[str, PoolSpec]:
    """Rollout engines and judges, by lane."""
    return {"generate": run.workers[run.policy_pool], "label": run.workers[run.judge_pool]}
