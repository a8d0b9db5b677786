"""Labelled groups leave in the order of their deadlines, whatever the order in which they came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from solon.ledger.ready import ReadyGroups

GROUPS = st.dictionaries(st.integers(0, 40), st.integers(0, 5), max_size=30)


@given(groups=GROUPS, gone=st.sets(st.integers(0, 40)), counts=st.lists(st.integers(0, 12), max_size=5))
def test_it_takes_what_a_sorted_list_would_take(groups, gone, counts):
    ready, same = ReadyGroups(), sorted((deadline, ordinal) for ordinal, deadline in groups.items())
    for ordinal, deadline in groups.items():
        ready.add(deadline, ordinal)
    for deadline, ordinal in [place for place in same if place[1] in gone]:
        ready.remove(deadline, ordinal)
        same.remove((deadline, ordinal))
    for count in counts:
        assert ready.take(count) == sorted(ordinal for _, ordinal in same[:count])
        del same[:count]
        assert len(ready) == len(same)
        assert ready.by_deadline() == {d: sum(1 for due, _ in same if due == d) for d in {due for due, _ in same}}
