"""The watch in a run: an observer of the loop that lets gold read a share of the rollouts, and acts on the result.

    loop ──▶ WatchingObserver ──▶ observer of the run (recorder)
                   │   ▲
         excerpts  ▼   │ gold's feedback
                gold judge

No stage waits for it. Its computations run in a thread, one at a time; metrics of a finished window are reported with
the next committed step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from solon.errors import PayloadLostError
from solon.feedback.interfaces import Item
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.audit import excerpt
from solon.feedback.watching.canary import Canary
from solon.feedback.watching.drift import Window
from solon.feedback.watching.remedies import LOSSES, remedy_of
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_config import Action
from solon.feedback.watching.watch_state import WatchState
from solon.ledger.ledger import Lease
from solon.protocols import GenerationReport, LabelReport, Observer, PayloadRef
from solon.records import Feedback, Group, LoadReceipt, Span, StepReport
from solon.verdicts import Verdict

AUDITS_AT_ONCE = 8
MAX_WAITING = 256
"""Most groups that wait for gold: each holds a payload that the run could free."""
ENDED = ("group_dropped", "group_lost", "group_expired")
"""Events after which a generated attempt is never labelled."""


class GoldJudge(Protocol):
    """A different judge than the one that rewards."""

    async def label_group(self, group: Group) -> Any:
        """Its feedback on a group."""
        ...


class WatchingObserver:
    """Implements `Observer`. `await close()` when the loop has ended. An internal failure is an alarm, not an error,
    since the run itself is sound.

    The events of the ledger must come through `event`: a payload is kept until its group is labelled, lost or dropped.

    unbox: opens a payload; may block. on_action: called with the first alarm of each kind whose action is more than a
    warning. canary, judge: fixed pairs, and the call that asks the rewarding judge about them without its caches.
    """

    def __init__(
        self,
        observer: Observer,
        watch: Watch,
        *,
        gold: GoldJudge,
        open_payload: Callable[[PayloadRef], Any],
        on_action: Callable[[Alarm], Awaitable[None]],
        canary: Canary | None = None,
        judge: Callable[[Sequence[Item]], Awaitable[list[Verdict]]] | None = None,
        on_audit: Callable[[Group, tuple[int, ...], Feedback, Feedback], None] = lambda *_: None,
    ) -> None:
        """on_audit: called with a group, the audited rollouts, the judge's feedback on the group, gold's on them."""
        self._observer = observer
        self.watch = watch
        self._gold = gold
        self._open_payload = open_payload
        self._on_action = on_action
        self._canary = canary
        self._judge = judge
        self._on_audit = on_audit
        self.alarms: list[Alarm] = []
        """All alarms of the run, including those before it was resumed."""
        self._before = 0
        """Number of alarms from before."""
        self._boxes: dict[int, tuple[int, PayloadRef]] = {}
        """Attempt and payload by ordinal, of groups that are generated and not labelled yet."""
        self._room = asyncio.Semaphore(AUDITS_AT_ONCE)
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics: dict[str, float] = {}
        self._step = 0
        self._is_blind = False
        """Gold can no longer be asked."""
        self._is_deaf = False
        """The canary pairs can no longer be asked."""
        self._has_failed = False

    def generated(self, report: GenerationReport, payload_ref: PayloadRef) -> None:
        """Pass the report on."""
        self._boxes[report.ordinal] = (report.attempt, payload_ref)
        self._observer.generated(report, payload_ref)

    def labelled(self, report: LabelReport, payload_ref: PayloadRef) -> None:
        """Pass the report on, and keep the group if it is selected for the audit."""
        self._observer.labelled(report, payload_ref)
        attempt, written = self._boxes.pop(report.ordinal, (report.attempt, None))
        if attempt != report.attempt:  # of an abandoned attempt
            written = None
        rollouts = self.watch.chosen(report.ordinal, report.attempt, report.num_rollouts)
        if self._is_blind:
            rollouts = ()
        if written is None or not (rollouts or self.watch.wants_answers):
            return
        if len(self._tasks) >= MAX_WAITING:
            self._lose("audit_behind", f"{MAX_WAITING} groups wait for it; lower watch.audit_share or judge faster")
            return
        self._begin(self._look(written, payload_ref, rollouts))

    def stepped(self, lease: Lease, report: StepReport) -> None:
        """Pass the report on, then poll the watch."""
        self._step = lease.step
        per_token = report.metrics.get("learn/kl_reference/mean")
        length = report.metrics.get("learn/response_length/mean")
        kl = None if per_token is None or length is None else per_token * length
        metrics, self._metrics = self._metrics, {}
        self._observer.stepped(lease, replace(report, metrics=report.metrics | metrics))
        self._begin(self._poll(lease.step, kl))
        if self._canary is not None and self.watch.is_canary_due(lease.step):
            self._begin(self._read_canary(self._canary, lease.step))

    def published(self, version: int, receipts: Sequence[LoadReceipt], gap: float, span: Span) -> None:
        """Pass the report on."""
        self._observer.published(version, receipts, gap, span)

    def event(self, name: str, **fields: Any) -> None:
        """Pass the event on."""
        if name in ENDED:
            self._boxes.pop(int(fields["ordinal"]), None)
        self._observer.event(name, **fields)

    async def close(self) -> None:
        """End all background work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def state(self) -> WatchState:
        """State for a checkpoint, without unfinished audits."""
        async with self._turn:
            canary = None if self._canary is None else self._canary.first
            return self.watch.state().model_copy(update={"alarms": tuple(self.alarms), "canary": canary})

    def restore(self, state: WatchState) -> None:
        """Continue from a checkpoint. Actions for earlier alarms are not repeated."""
        self.watch.restore(state)
        self.alarms = list(state.alarms)
        self._before = len(self.alarms)
        if self._canary is not None:
            self._canary.restore(state.canary)

    def warnings(self, *, but: str = "") -> list[str]:
        """Warnings of a run that continued in spite of alarms: alarms at its end, and stopped monitors. but: a kind
        that is reported elsewhere."""
        told = {*self.watch.standing, *LOSSES} - {"near_peak", but}
        last = {alarm.kind: alarm for alarm in self.alarms if alarm.kind in told}
        symptoms = sorted(kind.partition("/")[2] for kind in last if kind.startswith("symptom/"))
        lines = [f"alarm {alarm.line()}" for kind, alarm in last.items() if not kind.startswith("symptom/")]
        return [*lines, *([f"answers or labels changed in {', '.join(symptoms)} (alarms)"] if symptoms else [])]

    def summary(self) -> dict[str, Any]:
        """For summary.json: audits, alarms, and where gold was best."""
        best, last = self.watch.best, self.watch.windows[-1] if self.watch.windows else None
        return {
            "audited": sum(window.num for window in self.watch.windows),
            "windows": len(self.watch.windows),
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "best": _place(best),
            "last": _place(last),
            "standing": self.watch.standing,
        }

    async def _look(self, written: PayloadRef, labels: PayloadRef, rollouts: tuple[int, ...]) -> None:
        async with self._room:
            try:
                group: Group = await asyncio.to_thread(self._open_payload, written)
                proxy: Feedback = await asyncio.to_thread(self._open_payload, labels)
            except PayloadLostError:
                return  # lost with its machine: the group is generated again and audited then
            gold = await self._ask(group, rollouts) if rollouts else None
            async with self._turn:
                self.watch.observe(group, proxy)
                if gold is not None:
                    self.watch.audit(group, rollouts, proxy, gold)
                    self._on_audit(group, rollouts, proxy, gold)

    async def _ask(self, group: Group, rollouts: tuple[int, ...]) -> Feedback | None:
        if self._is_blind:
            return None
        try:
            found: Feedback = await self._gold.label_group(excerpt(group, rollouts))
        except Exception as error:  # a failed auditor does not end the run
            self._lose("audit_lost", _described(error))
            return None
        return found

    async def _read_canary(self, canary: Canary, step: int) -> None:
        assert self._judge is not None, "canaries need a judge to ask"
        if self._is_deaf:
            return
        try:
            verdicts = await self._judge(canary.items)
        except Exception as error:  # a failed canary reading does not end the run
            self._is_deaf = True
            message = f"the canary pairs are no longer judged: {_described(error)}"
            self._raise(self._loss("canary_lost", message, self.watch.canaries.action))
            return
        async with self._turn:
            self.watch.canary(canary.read(step, verdicts))

    async def _poll(self, step: int, kl: float | None) -> None:
        async with self._turn:
            if kl is not None:
                self.watch.kl(step, kl)
            alarms = await asyncio.to_thread(self.watch.poll, step)
            self._metrics |= self.watch.drain_metrics()
        for alarm in alarms:
            self._raise(alarm)

    def _lose(self, kind: str, why: str) -> None:
        """Gold is lost for the rest of the run: reported once, with the action configured for gold."""
        if self._is_blind:
            return
        self._is_blind = True
        self._raise(self._loss(kind, f"the run is no longer audited: {why}", self._without_gold))

    @property
    def _without_gold(self) -> Action:
        """The action of a run that is no longer audited."""
        return "stop" if self.watch.config.action == "stop" else "warn"

    def _loss(self, kind: str, message: str, action: Action) -> Alarm:
        """The alarm for the loss of a part of the watch."""
        remedy = remedy_of(kind)
        return Alarm(
            kind=kind, step=self._step, value=1.0, threshold=0.0, message=message, remedy=remedy, action=action
        )

    def _raise(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        self._observer.event("alarm", **asdict(alarm))
        # A run stops once, and again after a resume; KL is raised once for each kind of alarm.
        if alarm.action == "stop":
            alike = [one for one in self.alarms[self._before :] if one.action == "stop"]
        else:
            alike = [one for one in self.alarms if (one.action, one.kind) == (alarm.action, alarm.kind)]
        if alarm.action != "warn" and len(alike) == 1:
            self._begin(self._act(alarm))

    async def _act(self, alarm: Alarm) -> None:
        await self._on_action(alarm)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._has_failed:
            self._has_failed = True
            message = f"the watch itself failed, so that it may miss alarms: {_described(error)}"
            self._raise(self._loss("watch_failed", message, self._without_gold))


def _place(window: Window | None) -> dict[str, Any] | None:
    return None if window is None else {key: getattr(window, key) for key in ("first_step", "last_step", "gold")}


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
