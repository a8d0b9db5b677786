"""Work that the first rank leads: it asks for one thing after the other, and every other rank takes part in making it.

    with led(ranks, [make_a, make_b]) as asking:
        if asking is not None:            # the first rank
            write(asking[1](), asking[0]())

Gathering a divided tensor needs all ranks. If the first one fails between two of them, the others are told at once and
raise its error: they would wait for the next one until the deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from learners.core.ranks import RankFailedError, Ranks
from solon.errors import one_line

MadeT = TypeVar("MadeT")

END, FAILED = -1, -2
"""Said in place of the number of a thing: the work is done, or an error follows."""


@contextmanager
def led(
    ranks: Ranks, makers: Sequence[Callable[[], MadeT]], *, beside: bool = False
) -> Iterator[Sequence[Callable[[], MadeT]] | None]:
    """The makers, to be called by the first rank in any order; None on the others, after they have called with it all
    that it called. All ranks must enter together with the same makers.

    beside: at the same time as a step, whose operations belong to another group. Raises RankFailedError with the error
    of the first rank on the others.
    """
    if not ranks.is_first:
        while (place := ranks.heard(beside=beside)) >= 0:
            makers[place]()
        if place == FAILED:
            raise RankFailedError(f"rank 0 of {ranks.size} failed: {ranks.shared(None, beside=beside)}")
        yield None
        return

    def ask(place: int) -> MadeT:
        ranks.say(place, beside=beside)
        return makers[place]()

    try:
        yield [partial(ask, place) for place in range(len(makers))]
    except BaseException as error:
        with suppress(RuntimeError):  # the others are gone, which is what the error says
            ranks.say(FAILED, beside=beside)
            ranks.shared(one_line(f"{type(error).__name__}: {error}", longest=500), beside=beside)
        raise
    ranks.say(END, beside=beside)


@contextmanager
def alone_led(ranks: Ranks) -> Iterator[bool]:
    """Work of the first rank alone, at the same time as a step: True on it. The others wait until it is done, and raise
    RankFailedError with its error."""
    nothing: list[Callable[[], None]] = []
    with led(ranks, nothing, beside=True) as asking:
        yield asking is not None
