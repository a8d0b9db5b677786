"""The queue in front of an engine that takes only as many requests as it decodes together.

What waits here has touched nothing: it can be dropped, and it starts with the weights that are live when it is let in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Queue:
    """Ids of requests, first come, first served: those that wait, and at most `places` inside the engine."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: dict[str, None] = {}
        self._inside: dict[str, None] = {}

    def add(self, request_id: str) -> None:
        """It waits behind all others."""
        self._waiting[request_id] = None

    def let_in(self) -> list[str]:
        """The next ones, as many as there are free places; they are inside from now on."""
        free = self._places - len(self._inside)
        chosen = [request_id for request_id, _ in zip(self._waiting, range(free), strict=False)]
        for request_id in chosen:
            del self._waiting[request_id]
            self._inside[request_id] = None
        return chosen

    def take_back(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Those inside that are meant wait again, before all others and in their old order."""
        back = [request_id for request_id in self._inside if is_meant(request_id)]
        for request_id in back:
            del self._inside[request_id]
        self._waiting = dict.fromkeys(back) | self._waiting
        return back

    def remove(self, request_ids: Iterable[str]) -> list[str]:
        """Forgets them; returns those that were inside. Unknown ids are ignored."""
        inside = []
        for request_id in request_ids:
            self._waiting.pop(request_id, None)
            if request_id in self._inside:
                del self._inside[request_id]
                inside.append(request_id)
        return inside
