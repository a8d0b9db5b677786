"""Preference pairs in English for a compression: written from answers, decided by programs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks._compression_english import align, shortest_pairs, write_english_pairs
from english.answers import Answer
from english.judge import Written
from english.requests import Request
from english.wishes import keeps
from solon.records import Message, Prompt
from tests.models import make_model

LONG = "Put it in a pan, " * 5 + "and wait."
SHORT = "Boil it for ten minutes."


def written(*answers: Answer) -> Written:
    number = len(answers)
    prompt = Prompt(
        prompt_id="p",
        messages=(Message(role="user", content="How do I cook rice? Briefly."),),
        tags=("brief", "brief:12"),
    )
    return Written([Request("How do I cook rice?", "rice")] * number, [prompt] * number, list(answers))


def test_an_answer_that_keeps_the_wish_is_preferred_to_one_about_the_same_that_does_not(tmp_path: Path):
    assert write_english_pairs(tmp_path / "pairs", written(Answer(SHORT), Answer(LONG))) == 2
    rows = [json.loads(line) for line in (tmp_path / "pairs").read_text().splitlines()]
    for row in rows:
        assert (row["chosen"], row["rejected"], row["tags"]) == (SHORT, LONG, ["brief"])
        assert keeps("brief:12", row["chosen"])
        assert row["prompt"] == [{"role": "user", "content": "How do I cook rice? Briefly."}]


def test_answers_that_were_cut_make_no_pair(tmp_path: Path):
    assert write_english_pairs(tmp_path / "pairs", written(Answer(SHORT), Answer(LONG, is_cut=True))) == 0


def test_the_shortest_pair_of_a_prompt_is_kept_without_its_tags(tmp_path: Path):
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": "no", "tags": ["brief"]}
        for prompt, chosen in (("a", "a long answer"), ("a", "short"), ("b", "another"))
    ]
    (tmp_path / "all").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert shortest_pairs(tmp_path / "all", tmp_path / "kept") == 2
    kept = [json.loads(line) for line in (tmp_path / "kept").read_text().splitlines()]
    assert [(row["prompt"], row["chosen"], row["tags"]) for row in kept] == [("a", "short", []), ("b", "another", [])]


def test_the_policy_is_aligned_with_pairs_that_the_gate_does_not_read(tmp_path: Path):
    rows = [
        {"prompt": f"what color is the sky {'good ' * n}?", "chosen": "blue", "rejected": "green"} for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    policy = make_model(tmp_path / "policy")
    align(policy, tmp_path / "pairs.jsonl", tmp_path / "aligned")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (policy, tmp_path / "aligned")]
    assert weights[0] != weights[1]
