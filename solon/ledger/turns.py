"""Workers that wait for work of one kind, and how it is dealt to them. Plain asyncio.

    turns = Turns(available, held)
    part = await turns.part(ask)        # groups that the worker may take now; 0: look again at the reason for waiting
    turns.deal()                        # by a worker that took less than its part
    turns.deal()                        # after every change that may have made work available

Work is dealt to all waiting workers in one pass, once for everything that happens at one moment, and only those that
get something are woken. If every waiting worker looked for itself, each change would cost as much as there are workers,
and a batch of credits the square of that.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping

from solon.ledger.shares import Ask, deal


class _Turn:
    """One waiting worker. `age`: the order of asking. `part`: groups dealt to it that it has not taken yet."""

    __slots__ = ("age", "ask", "part", "woken")

    def __init__(self, ask: Ask, age: int, woken: asyncio.Future[None]) -> None:
        self.ask = ask
        self.age = age
        self.part = 0
        self.woken = woken


class Turns:
    """See the module."""

    def __init__(self, available: Callable[[], int], held: Mapping[str, int]) -> None:
        """available: groups that could be taken now. held: groups that each worker holds, by its
        name."""
        self._available = available
        self._held = held
        self._waiting: dict[str, list[_Turn]] = {}  # by worker
        self._order: list[tuple[int, int, _Turn]] | None = None
        """A heap of (groups held, age, turn). Of a turn whose worker has finished groups since it asked there are
        several; the one with the number that it holds now is the valid one. None: made when it is needed, since the
        last work was dealt to all."""
        self._num_waiting = self._age = self._dealt = 0
        self._is_due = False

    async def part(self, ask: Ask) -> int:
        """Waits until the worker gets groups, is down, or is woken. It takes its part before it waits for anything
        else, and calls `deal` when it leaves some of it."""
        self._age += 1
        turn = _Turn(ask, self._age, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(ask.holder, []).append(turn)
        self._num_waiting += 1
        if self._order is not None:
            self._put(turn)
        self.deal()
        try:
            await turn.woken
        except BaseException:
            self._leave(turn)
            if turn.part:
                self.deal()
            raise
        self._leave(turn)
        return turn.part

    def _leave(self, turn: _Turn) -> None:
        holder = turn.ask.holder
        turns = self._waiting[holder]
        if len(turns) == 1:
            del self._waiting[holder]
        else:
            turns.remove(turn)
        self._num_waiting -= 1
        self._dealt -= turn.part

    def returned(self, holder: str) -> None:
        """This worker holds one group less."""
        if self._order is not None:
            for turn in self._waiting.get(holder, ()):
                self._put(turn)

    def deal(self) -> None:
        """Deal what is available, once all that happens at this moment has happened: workers that ask together
        share."""
        if self._num_waiting and not self._is_due and self._available() > self._dealt:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._deal)

    def wake(self) -> None:
        """Every waiting worker looks again."""
        for turns in self._waiting.values():
            for turn in turns:
                _wake(turn)

    def _deal(self) -> None:
        self._is_due = False
        left = self._available() - self._dealt
        if 2 * left > self._num_waiting:
            self._deal_to_all(left)
            return
        while left > 0 and (turn := self._first()) is not None:
            if turn.ask.is_up():
                turn.part += 1
                self._dealt += 1
                left -= 1
                if turn.part < turn.ask.room:
                    self._put(turn)
            _wake(turn)

    def _deal_to_all(self, left: int) -> None:
        self._order = None
        up = []
        for turn in [turn for turns in self._waiting.values() for turn in turns if not turn.woken.done()]:
            if turn.ask.is_up():
                up.append(turn)
            else:
                _wake(turn)
        up.sort(key=lambda turn: turn.age)
        asks = [(turn.ask.room, self._held[turn.ask.holder]) for turn in up]
        for turn, part in zip(up, deal(left, asks) if asks else (), strict=True):
            if part:
                turn.part = part
                self._dealt += part
                _wake(turn)

    def _put(self, turn: _Turn) -> None:
        order = self._order
        if order is None:  # made when it is needed
            return
        if len(order) > 64 + 8 * self._num_waiting:  # most of them are of turns that have ended
            order = self._ordered()
        heapq.heappush(order, (self._held[turn.ask.holder] + turn.part, turn.age, turn))

    def _ordered(self) -> list[tuple[int, int, _Turn]]:
        waiting = [turn for turns in self._waiting.values() for turn in turns if not turn.woken.done()]
        self._order = [(self._held[turn.ask.holder], turn.age, turn) for turn in waiting]
        heapq.heapify(self._order)
        return self._order

    def _first(self) -> _Turn | None:
        """Take the waiting worker with the fewest groups out of the order; None: no one waits."""
        order = self._ordered() if self._order is None else self._order
        while order:
            held, _, turn = heapq.heappop(order)
            if (turn.woken.done() and not turn.part) or turn.part == turn.ask.room:
                continue  # it has its answer, or was cancelled
            if turn not in self._waiting.get(turn.ask.holder, ()):
                continue
            now = self._held[turn.ask.holder] + turn.part
            if held == now:
                return turn
            if held < now:  # it took groups in another turn
                self._put(turn)
                order = self._order or []
        return None


def _wake(turn: _Turn) -> None:
    if not turn.woken.done():
        turn.woken.set_result(None)
