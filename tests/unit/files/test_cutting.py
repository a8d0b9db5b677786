"""Conversations made shorter."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from solon.files.cutting import fitted
from solon.records import Message


def length(messages: Sequence[Message]) -> int:
    """Three tokens of frame for each turn, one a character."""
    return sum(3 + len(message.content) for message in messages)


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in turns)  # type: ignore[arg-type]


LONG = chat(
    ("system", "ss"), ("user", "aaaa"), ("assistant", "bbbb"), ("user", "cccc"), ("assistant", "d"), ("user", "ef")
)


def test_a_prompt_that_fits_is_unchanged():
    assert fitted(LONG, room=length(LONG), length=length) == LONG


def test_whole_turns_are_cut_first_and_a_user_turn_leads_the_rest():
    assert fitted(LONG, room=length(LONG) - 1, length=length) == (LONG[0], *LONG[3:])
    assert fitted(LONG, room=10, length=length) == (LONG[0], LONG[-1])


def test_then_only_the_beginning_of_the_last_user_turn_is_cut():
    assert fitted(LONG, room=9, length=length) == (LONG[0], Message(role="user", content="f"))
    assert fitted(LONG, room=8, length=length) is None


turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text("xyz", max_size=9)), max_size=8)


@given(turns, st.text("abc", min_size=1, max_size=30), st.integers(1, 90))
def test_the_rest_fits_keeps_every_system_message_and_ends_as_before(
    before: list[tuple[str, str]], last: str, room: int
):
    messages = chat(*before, ("user", last))
    found = fitted(messages, room=room, length=length)
    kept = [m for m in messages if m.role == "system"]
    if found is None:
        assert length((*kept, Message(role="user", content=last[-1]))) > room
        return
    assert length(found) <= room
    assert [m for m in found if m.role == "system"] == kept
    assert found[-1].role == "user"
    assert last.endswith(found[-1].content)
    assert len(found) == len(kept) + 1 or found[-1].content == last
