"""The batch that is being trained, and the steps whose weights are not live yet."""

from __future__ import annotations

from solon.errors import RunFailedError
from solon.ledger.leases import Lease
from solon.ledger.queues import GroupQueues
from solon.ledger.staleness import StalenessConfig, can_choose


class Batches:
    """Leases one batch at a time. `token` fences: only the current lease can commit or abort."""

    def __init__(self, queues: GroupQueues, staleness: StalenessConfig, *, batch_groups: int) -> None:
        self._queues = queues
        self._staleness = staleness
        self._batch_groups = batch_groups
        self._lease: Lease | None = None
        self._tokens = 0
        self._unpublished: dict[int, int] = {}  # step -> groups leased or trained whose weights are not live

    @property
    def num_leased(self) -> int:
        """Groups in the batch that is being trained."""
        return len(self._lease.ordinals) if self._lease else 0

    @property
    def num_unpublished(self) -> int:
        """Groups leased or trained, in steps whose weights are not live yet."""
        return sum(self._unpublished.values())

    def is_ready(self, step: int, *, version: int) -> bool:
        """Whether `lease` would return a batch or raise."""
        if self._lease is not None:
            return step != self._lease.step + 1
        ready = self._queues.ready
        return len(ready) >= self._batch_groups and can_choose(
            ready.by_deadline(), self._queues.unfinished(version), step=step, batch_groups=self._batch_groups
        )

    def lease(self, step: int, *, version: int) -> Lease | None:
        """The batch for `step`, or None while the groups it needs are not ready or the step before is leased.

        version: the live weights. Raises RunFailedError for a step other than the leased one's successor.
        """
        if self._lease is not None and step == self._lease.step + 1:
            return None
        if self._lease is not None:
            raise RunFailedError(f"step {self._lease.step} holds the lease, cannot lease step {step}")
        if not self.is_ready(step, version=version):
            return None
        entries = self._queues.take_ready(self._batch_groups)
        self._tokens += 1
        self._unpublished[step] = len(entries)
        self._lease = Lease(
            step,
            self._tokens,
            tuple(e.ordinal for e in entries),
            tuple(step - e.head for e in entries),
            tuple((e.generation, e.feedback) for e in entries),
        )
        return self._lease

    def commit(self, step: int, token: int) -> int | None:
        """The batch was trained: the number of its groups. None: refused, the lease is not the current one."""
        lease = self._current(step, token)
        if lease is None:
            return None
        for ordinal in lease.ordinals:
            self._queues.remove(self._queues[ordinal])
        self._lease = None
        return len(lease.ordinals)

    def abort(self, step: int, token: int) -> bool:
        """The step did not happen: its groups are ready again. False: refused."""
        lease = self._current(step, token)
        if lease is None:
            return False
        for ordinal in lease.ordinals:
            self._queues.to_ready(self._queues[ordinal])
        del self._unpublished[step]
        self._lease = None
        return True

    def published(self, version: int) -> None:
        """`version` is live: the steps before it no longer count as unpublished."""
        for step in [s for s in self._unpublished if s < version]:
            del self._unpublished[step]

    def _current(self, step: int, token: int) -> Lease | None:
        lease = self._lease
        return lease if lease is not None and (lease.step, lease.token) == (step, token) else None
