"""The learner as a Ray actor, and the lane that the loop sees."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray

from actors.calls import RemoteWorker
from actors.chunks import StoredChunks
from learners.config import LearnConfig
from learners.memory import learner_memory
from solon.engines.device_turns import device_key, turn_on_device, wait_for_memory
from solon.engines.failures import RAISED_BY_LIBRARIES, computing
from solon.engines.memory import CONTEXT
from solon.engines.stops import end_ids_of
from solon.host.ballast import is_no_space
from solon.host.interfaces import talk_over
from solon.ledger.ledger import Lease
from solon.models.facts import model_folder, read_facts
from solon.models.sizes import sizes_of
from solon.protocols import PayloadRef
from solon.records import Chunk, Sampling, StepReport, TrainingGroup, Weights
from solon.runs.directory import DiskFullError

Meeting = tuple[str, int]
"""Host and port at which ranks find each other."""
GROUPS = {"signs": 1, "writes": 1}
"""Threads beside the one that trains: for heartbeats, and for files."""
NO_ROOM = "; if it happens again, lower learn.max_tokens_per_microbatch"


class LearnerShell:
    """Builds the learner in `start`, so that a bad model raises an error instead of killing the actor."""

    def __init__(
        self,
        config: LearnConfig,
        *,
        model: str,
        sampling: Sampling,
        seed: int,
        name: str,
        engines_in_float32: bool = False,
        adapter_only: bool = False,
        rank: int = 0,
        ranks: int = 1,
        nodes: int = 1,
        rank_timeout_s: float = 600.0,
    ) -> None:
        """sampling: that of the rollouts; engines_in_float32: the rollout engines compute in float32;
        adapter_only: they receive adapters alone; rank: of the processes that train together; nodes: over which these
        are divided; rank_timeout_s: how long it waits for the others in one operation."""
        self._arguments: dict[str, Any] = {
            "model": model, "seed": seed, "name": name, "engines_in_float32": engines_in_float32,
            "adapter_only": adapter_only,
        }  # fmt: skip
        self._config = config
        self._sampling = sampling
        self.name = name
        self._rank, self._ranks, self._nodes, self._timeout_s = rank, ranks, nodes, rank_timeout_s
        self._store: Any = None

    def open_meeting(self) -> Meeting:
        """Where the other ranks find this one."""
        from learners.core.ranks import store_at

        host = ray.util.get_node_ip_address()
        self._store = store_at(host, 0, self._ranks)
        return host, int(self._store.port)

    def start(self, checkpoint: str, meeting: Meeting | None = None) -> Iterator[Chunk | Weights]:
        """Yields the chunks of the first version (0, or that of a checkpoint), then its manifest. meeting: of the
        ranks, where there are several; only the first one publishes."""
        with turn_on_device(device_key() if self._config.device == "cuda" else ""):
            if self._config.device == "cuda":
                self._wait_for_memory()
            self._build(checkpoint, meeting)
            with self._computing("publishing the first weights"):
                yield (yield from self._learner.publish())

    def _wait_for_memory(self) -> None:
        """Returns when the device has room for the networks: the driver takes some seconds to free the memory of a
        killed predecessor. A model of an unknown size does not wait."""
        import torch

        folder = model_folder(self._arguments["model"])
        sizes = None if folder is None else sizes_of(read_facts(folder))
        if sizes is not None:
            found = learner_memory(sizes, self._config, on_gpu=True, longest=0, runtime=CONTEXT, ranks=self._ranks)
            wait_for_memory(found.weights + found.runtime, lambda: torch.cuda.mem_get_info(0), who="the learner")

    def _build(self, checkpoint: str, meeting: Meeting | None) -> None:
        from learners.build import build_learner

        sampling, model = self._sampling, self._arguments["model"]
        with self._computing("starting"):
            ranks = self._joined(meeting)
            self._learner = build_learner(
                self._config,
                temperature=sampling.temperature,
                filters=sampling.filters,
                end_ids=end_ids_of(model, sampling) if sampling.filters.min_tokens else (),
                ranks=ranks,
                **self._arguments,
            )
            if checkpoint:
                self._learner.load(checkpoint)

    def _joined(self, meeting: Meeting | None) -> Any:
        """This process among the ranks."""
        from learners.core.ranks import ALONE, join_ranks, store_at

        if meeting is None:
            return ALONE
        if self._nodes > 1:
            talk_over(ray.util.get_node_ip_address())
        store = self._store or store_at(*meeting, self._ranks)
        device = "cuda" if self._config.device == "cuda" else "cpu"
        return join_ranks(self._rank, self._ranks, store=store, device=device, timeout_s=self._timeout_s)

    def step(self, step: int, *payloads: Any) -> Iterator[Chunk | tuple[StepReport, Weights]]:
        """Yields the chunks of the new version, then the report and the manifest. `payloads`: group, feedback, group,
        feedback, ..."""
        groups = [
            TrainingGroup(group=group, feedback=feedback)
            for group, feedback in zip(payloads[::2], payloads[1::2], strict=True)
        ]
        with self._computing(f"training step {step}"):
            yield (yield from self._learner.train_and_publish(step, groups))

    def raise_kl(self, factor: float) -> float:
        """Returns the new coefficient."""
        return self._learner.raise_kl(factor)

    def stage(self, copies: bool) -> None:
        """Take the present state for `write`."""
        with self._computing("copying its state"):
            self._learner.stage(copies=copies)

    @ray.method(concurrency_group="writes")  # type: ignore[untyped-decorator]
    def write(self, directory: str) -> None:
        """Write the staged state, while steps run."""
        try:
            with self._computing("writing its state"):
                self._learner.write(directory)
        except Exception as error:
            if isinstance(error, DiskFullError) or not is_no_space(error):
                raise
            # A full disk is not a fault of this process: a replacement would find it full as well.
            raise DiskFullError(
                f"the learner's state does not fit into {directory}: {os.strerror(errno.ENOSPC)}"
            ) from None

    @ray.method(concurrency_group="signs")  # type: ignore[untyped-decorator]
    def heartbeat(self) -> float:
        """Answered while a step runs: seconds without progress."""
        return 0.0

    def _computing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return computing("the learner", what, kinds=RAISED_BY_LIBRARIES, no_room=NO_ROOM)

    def __repr__(self) -> str:
        return f"Learner({self.name})"


class RemoteLearner(RemoteWorker):
    """A learner in an actor."""

    async def start(self, checkpoint: str = "") -> tuple[Weights, PayloadRef]:
        """The first weights; `checkpoint` is a directory that the learner's machine can read."""
        manifest, references = await self.ask_chunks("start", checkpoint)
        return self._published(manifest, references)

    async def restart_from(
        self, checkpoint: str, placed: Callable[[], None] = lambda: None
    ) -> tuple[Weights, PayloadRef]:
        """See `solon.recovery.workers.LearnerProcess`."""
        await self._another(placed)
        return await self.start(checkpoint)

    async def step(self, lease: Lease) -> tuple[StepReport, Weights, PayloadRef]:
        """See `solon.protocols.Learner.step`."""
        payloads = [payload_ref[0] for pair in lease.payloads for payload_ref in pair]
        (report, manifest), references = await self.ask_chunks("step", lease.step, *payloads)
        return (report, *self._published(manifest, references))

    def _published(self, manifest: Weights, references: list[ray.ObjectRef]) -> tuple[Weights, PayloadRef]:
        """The manifest alone, and with its chunks in the object store, of which this process is the owner."""
        manifest = dataclasses.replace(manifest, incarnation=self._made - 1)
        return manifest, dataclasses.replace(manifest, chunks=StoredChunks(references))

    async def raise_kl(self, factor: float) -> float:
        """Multiply the KL coefficient from the next step on; returns the new one."""
        result: float = await self.ask("raise_kl", factor)
        return result

    async def stage(self, *, copies: bool) -> None:
        """See `solon.recovery.workers.LearnerProcess`."""
        await self.ask("stage", copies)

    async def write(self, directory: str) -> None:
        """See `solon.recovery.workers.LearnerProcess`."""
        await self.ask("write", directory)


LearnerActor = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=GROUPS)(LearnerShell)
