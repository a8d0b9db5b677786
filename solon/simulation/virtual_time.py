"""An event loop whose time passes only while all tasks wait: hours of a run in a second.

    outcome, seconds, left = run_virtual(lambda clock: run_loop(make_lanes(clock=clock), ...))

It keeps the order of asyncio's own loop (first come, first served; timers by time, then by age) and does less: no
input or output, no threads, no signals, no debug mode. That makes it several times faster.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, TypeVar

from solon.clock import Clock

T = TypeVar("T")

EPOCH = 1_700_000_000.0
"""Wall time at the beginning."""


class VirtualHandle:
    """A scheduled callback; what asyncio uses of `asyncio.TimerHandle`."""

    __slots__ = ("args", "callback", "context", "when_s")

    def __init__(self, callback: Callable[..., object] | None, args: Any, context: Context, when_s: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.when_s = when_s

    def cancel(self) -> None:
        """Do not call it."""
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.callback is None

    def when(self) -> float:
        """Time of a timer, seconds of the loop."""
        return self.when_s

    def postpone(self, when_s: float) -> None:
        """Call a timer later than it was set, for less than a new timer costs: the loop moves it when its first time
        has come."""
        self.when_s = when_s


class VirtualLoop(asyncio.BaseEventLoop):
    """Where another loop would sleep until the next timer, this one sets its time to it. No input or output."""

    get_debug = staticmethod(bool)  # never; asyncio asks for every future, and this is its fastest answer

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        """What `time` returns; an attribute costs less than a call."""
        self._queue: deque[VirtualHandle] = deque()
        self._timers: list[tuple[float, int, VirtualHandle]] = []
        self._age = 0
        self._stopping = False

    def time(self) -> float:
        return self.now_s

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        handle = VirtualHandle(callback, args, copy_context() if context is None else context, self.now_s)
        self._queue.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        handle = VirtualHandle(callback, args, copy_context() if context is None else context, when)
        self._age += 1
        heapq.heappush(self._timers, (when, self._age, handle))
        return handle

    def _run_once(self) -> None:
        """Everything until the loop is stopped: what is due now, and when nothing is, time passes."""
        queue = self._queue
        while not self._stopping:
            if not queue:
                self._advance()
            for _ in range(len(queue)):
                handle = queue.popleft()
                callback = handle.callback
                if callback is None:
                    continue
                try:
                    handle.context.run(callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"in {callback!r}", "exception": error})

    def _advance(self) -> None:
        timers, queue, now = self._timers, self._queue, self.now_s
        while timers:
            when_s, age, handle = timers[0]
            if queue and when_s > now:
                return
            if handle.callback is None:
                heapq.heappop(timers)
            elif handle.when_s > when_s:  # postponed
                heapq.heapreplace(timers, (handle.when_s, age, handle))
            else:
                if when_s > now:
                    self.now_s = now = when_s
                queue.append(handle)
                heapq.heappop(timers)
        if not queue:
            raise AssertionError("all tasks wait, and no timer is set: they would wait for ever")


def running_loop() -> VirtualLoop:
    """The virtual loop that runs now. Raises RuntimeError when another kind of loop runs, or none."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        raise RuntimeError(f"got {loop!r}, expected a virtual loop; call it within `run_virtual`")
    return loop


def run_virtual(main: Callable[[Clock], Awaitable[T]]) -> tuple[T, float, set[str]]:
    """The result of `main(clock)`, the virtual seconds that it took, and the names of the tasks that it left behind."""

    async def inside() -> tuple[T, float, set[str]]:
        loop = asyncio.get_running_loop()
        result = await main(Clock(loop.time, lambda: EPOCH + loop.time(), ticks=False))
        for _ in range(3):  # until cancelled tasks have ended
            await asyncio.sleep(0)
        return result, loop.time(), {task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()}}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(inside())
