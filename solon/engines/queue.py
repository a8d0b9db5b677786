"""The queue in front of an engine that admits only as many requests as it decodes together.

Waiting requests have no state in the engine: they can be dropped, and they start with the weights that are live when
they are admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Queue:
    """Request ids, first come, first served: waiting ones, and at most `places` inside the engine."""

    def __init__(self, places: int) -> None:
        self.places = places
        """Requests that may be inside; when it is lowered, those inside stay."""
        self._waiting: dict[str, None] = {}
        self._inside: dict[str, None] = {}

    def add(self, request_id: str) -> None:
        """Append a request to the queue."""
        self._waiting[request_id] = None

    def let_in(self) -> list[str]:
        """Admit the next requests, one for each free place, and return them."""
        free = max(0, self.places - len(self._inside))
        chosen = [request_id for request_id, _ in zip(self._waiting, range(free), strict=False)]
        for request_id in chosen:
            del self._waiting[request_id]
            self._inside[request_id] = None
        return chosen

    @property
    def num_waiting(self) -> int:
        """Requests in front of the engine."""
        return len(self._waiting)

    @property
    def num_inside(self) -> int:
        """Requests in the engine."""
        return len(self._inside)

    def take_back(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Move matching requests from the engine back to the front of the queue, in their old order."""
        back = [request_id for request_id in self._inside if is_meant(request_id)]
        for request_id in back:
            del self._inside[request_id]
        self._waiting = dict.fromkeys(back) | self._waiting
        return back

    def remove(self, request_ids: Iterable[str]) -> list[str]:
        """Drop requests; returns those that were inside the engine. Unknown ids are ignored."""
        inside = []
        for request_id in request_ids:
            self._waiting.pop(request_id, None)
            if request_id in self._inside:
                del self._inside[request_id]
                inside.append(request_id)
        return inside
