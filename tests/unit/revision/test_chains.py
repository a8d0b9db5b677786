"""Chains of critique and revision are one growing conversation, and become data sets without broken texts."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.records import Message, Prompt
from solon.revision.chains import Chain, Round, revise, without_preamble
from solon.revision.running import ReviseSettings
from solon.revision.writing import write_chains


def constitution(*tags: str) -> Constitution:
    return Constitution.model_validate(
        {
            "schema": "solon.constitution/v1",
            "id": "kind",
            "version": "1",
            "principles": [
                {
                    "id": name,
                    "pairwise_question": "Which?",
                    "critique_request": f"Criticise by {name}.",
                    "revision_request": f"Revise by {name}.",
                    **({"applies_if": {"tags_any": [tag]}} if tag else {}),
                }
                for name, tag in zip("abc", [*tags, "", "", ""], strict=False)
            ],
        }
    )


def prompt(number: int, *tags: str) -> Prompt:
    return Prompt(prompt_id=f"p{number}", messages=(Message(role="user", content=f"hello {number}"),), tags=tags)


class Policy:
    """Says how many turns it has read, and remembers the conversations."""

    def __init__(self) -> None:
        self.read: list[list[tuple[Message, ...]]] = []
        self.seeds: list[int] = []

    async def __call__(self, chats: Sequence[Prompt], seed: int) -> list[str]:
        self.read.append([chat.messages for chat in chats])
        self.seeds.append(seed)
        return [f"said after {len(chat.messages)}" for chat in chats]


def chains(
    rounds: int, *prompts: Prompt, rules: Constitution | None = None, seed: int = 0
) -> tuple[Policy, list[Chain]]:
    policy = Policy()
    return policy, asyncio.run(revise(policy, prompts, rules or constitution(), rounds=rounds, seed=seed))


def test_a_chain_is_one_conversation_that_only_grows():
    policy, (chain, _) = chains(2, prompt(1), prompt(2))
    assert (chain.first, chain.last) == ("said after 1", "said after 9")
    assert [one.critique for one in chain.rounds] == ["said after 3", "said after 7"]
    turns = [read[0] for read in policy.read]
    assert [len(one) for one in turns] == [1, 3, 5, 7, 9]
    for shorter, longer in itertools.pairwise(turns):
        assert longer[: len(shorter)] == shorter
    roles = [message.role for message in turns[-1]]
    assert roles == ["user", "assistant"] * 4 + ["user"]
    assert len(set(policy.seeds)) == 5


def test_principles_are_drawn_for_each_prompt_without_repetition_and_the_same_for_a_seed():
    _, found = chains(3, *(prompt(n) for n in range(12)))
    drawn = [[one.principle_id for one in chain.rounds] for chain in found]
    assert all(sorted(one) == ["a", "b", "c"] for one in drawn)
    assert len({tuple(one) for one in drawn}) > 2
    assert [[r.principle_id for r in c.rounds] for c in chains(3, *(prompt(n) for n in range(12)))[1]] == drawn
    more = chains(4, prompt(1))[1][0]
    assert len(more.rounds) == 4


def test_only_principles_that_apply_are_drawn_and_none_is_an_error():
    rules = constitution("risky", "risky", "other")
    assert {one.principle_id for one in chains(2, prompt(1, "risky"), rules=rules)[1][0].rounds} == {"a", "b"}
    with pytest.raises(InputError, match=r"no principle with critique_request .* applies to the prompt p2"):
        chains(1, prompt(2), rules=rules)


def test_a_chain_that_becomes_too_long_ends_and_the_others_continue(tmp_path: Path):
    policy = Policy()
    found = asyncio.run(
        revise(
            policy, [prompt(1), prompt(2)], constitution(), rounds=2, seed=0,
            fits=lambda chat: chat.prompt_id != "p1" or len(chat.messages) < 7,
        )
    )  # fmt: skip
    assert [(len(chain.rounds), chain.is_cut) for chain in found] == [(1, True), (2, False)]
    assert write_chains(tmp_path, found)["too_long"] == 1
    assert len((tmp_path / "demonstrations.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Sure, here is a kinder version:\n\nI am happy to help.", "I am happy to help."),
        ("Here's the revised answer:\nTake the bus.", "Take the bus."),
        ("**Revised answer:** Take the bus.", "Take the bus."),
        ("Revision: Take the bus.", "Take the bus."),
        ("Here: take the bus.", "Here: take the bus."),
        ("Sure, I can help. Two things:\n- one\n- two", "Sure, I can help. Two things:\n- one\n- two"),
        ("Take the bus: it is safe.\n\nReally.", "Take the bus: it is safe.\n\nReally."),
    ],
)
def test_a_preamble_is_cut_and_an_answer_is_not(text: str, left: str):
    assert without_preamble(text) == left


def test_without_critiques_a_revision_follows_its_request_behind_examples_that_the_first_answer_did_not_see():
    rules = constitution("", "")
    examples = [{"prompt": f"q{n}", "good": f"good {n}", "bad": f"bad {n}"} for n in range(3)]
    raw = rules.model_dump(mode="json", by_alias=True)
    raw["principles"] = [{**raw["principles"][0], "critique_request": "", "examples": examples}]
    policy, system = Policy(), Message(role="system", content="be kind")
    asked = Prompt(prompt_id="p", messages=(system, Message(role="user", content="hello")))
    (chain,) = asyncio.run(
        revise(policy, [asked], Constitution.model_validate(raw), rounds=1, seed=0, critique=False, shots=2)
    )
    first, second = (read[0] for read in policy.read)
    assert first == asked.messages
    assert second[0] == system
    assert [message.content for message in second[1:9]] == [
        "q0", "bad 0", "Revise by a.", "good 0", "q1", "bad 1", "Revise by a.", "good 1",
    ]  # fmt: skip
    assert [message.content for message in second[9:]] == ["hello", "said after 2", "Revise by a."]
    assert chain.rounds == (Round(principle_id="a", critique="", revision="said after 12"),)
    assert chain.prompt == asked


def test_examples_have_no_critiques():
    with pytest.raises(InputError, match=r"shots is 1, and examples of principles have no critiques"):
        asyncio.run(revise(Policy(), [prompt(1)], constitution(), rounds=1, seed=0, shots=1))
    with pytest.raises(InputError, match="no principle of the constitution has examples"):
        asyncio.run(revise(Policy(), [prompt(1)], constitution(), rounds=1, seed=0, critique=False, shots=1))
    with pytest.raises(ValidationError, match="set critique = false"):
        ReviseSettings(shots=1)


def test_degenerate_and_unchanged_revisions_teach_no_preference(tmp_path: Path):
    def chain(first: str, last: str) -> Chain:
        return Chain(prompt=prompt(1), first=first, rounds=(Round(principle_id="a", critique="c", revision=last),))

    found = write_chains(
        tmp_path,
        [chain("go away", "Please come in."), chain("same text", "same  text"), chain("x", ""), chain("x", "no " * 30)],
    )
    assert (found["preferences"], found["demonstrations"], found["unchanged"], found["degenerate"]) == (1, 2, 1, 2)
    (pair,) = [json.loads(line) for line in (tmp_path / "preferences.jsonl").read_text().splitlines()]
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("Please come in.", "go away")
    transcripts = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert [one["left_out"] for one in transcripts] == ["", "unchanged", "empty", "repeats"]
