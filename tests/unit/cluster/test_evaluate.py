"""Held-out evaluation: the verdicts on each answer, and the scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.evaluate import AuditEvaluator, Evaluation, ProgramEvaluator, evaluate, obeyed
from solon.errors import RunFailedError
from solon.records import Feedback, Group, Label, Prompt
from solon.recovery.guard import Guard, RecoveryConfig
from solon.recovery.supervised_lanes import SupervisedRollout
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_prompt


def about(principle: str, margin: float | None, question: str = "") -> Label:
    status = Status.TIMEOUT if margin is None else Status.OK
    return Label(
        task="predicate",
        principle_id=principle,
        question_id=question,
        rollouts=(0,),
        verdict=Verdict(status=status, margin=margin),
    )


def test_an_answer_obeys_a_principle_when_all_its_questions_support_it():
    labels = (
        about("kind", -1.0, "greets"), about("kind", 2.0, "thanks"),
        about("true", 1.0, "cites"), about("true", 2.0, "agrees"),
        about("brief", None, "short"), about("brief", 3.0, "dense"),
    )  # fmt: skip
    assert obeyed(labels) == {"kind": False, "true": True}  # nothing is known of `brief`


async def test_every_held_out_row_carries_its_scores_and_their_labels():
    class Auditor:
        async def label_group(self, group: Group) -> Feedback:
            labels = (about("kind", 1.5), about("true", -0.5 if group.ordinal else None))
            return Feedback(ordinal=group.ordinal, attempt=0, rewards_G=(1.0,), labels=labels)

    prompts, answers = (make_prompt("one", "fact"), make_prompt("two")), ("a", "b")
    judged = await AuditEvaluator(Auditor())(prompts, answers)
    found = Evaluation(prompts=prompts, answers=answers, judged=judged)
    assert found.scores == {"kind": 1.0, "true": 0.0, "mean": 0.5}
    first, second = found.rows()
    assert first == {
        "prompt_id": prompts[0].prompt_id,
        "prompt": [{"role": "user", "content": "one"}],
        "tags": ["fact"],
        "answer": "a",
        "scores": {"kind": 1.0},
        "score": 1.0,
        "labels": [
            {"principle_id": "kind", "question_id": "", "status": "ok", "margin": 1.5},
            {"principle_id": "true", "question_id": "", "status": "timeout", "margin": None},
        ],
    }
    assert (second["scores"], second["score"]) == ({"kind": 1.0, "true": 0.0}, 0.5)


@pytest.mark.parametrize("first_is", ["given up", "being replaced"])
async def test_held_out_answers_come_from_an_engine_that_is_up(first_is: str):
    lanes = [make_lane("rollout-0"), make_lane("rollout-1")]
    first = lanes[0].guard
    if first_is == "given up":
        first.given_up = True
    else:
        first._up.clear()
    found = await evaluate(lanes, (make_prompt("one"),), ProgramEvaluator("nursery"), seed=0)
    assert found.answers == ["rollout-1"]


async def test_evaluation_waits_for_the_first_engine_to_return_and_for_none_that_was_given_up():
    lanes = [make_lane(f"rollout-{n}") for n in range(3)]
    for lane in lanes:
        lane.guard._up.clear()
    answering = asyncio.ensure_future(evaluate(lanes, (make_prompt("one"),), ProgramEvaluator("nursery"), seed=0))
    await asyncio.sleep(0.01)
    lanes[0].guard.given_up = True
    lanes[0].guard._up.set()
    await asyncio.sleep(0.01)
    assert not answering.done()
    lanes[2].guard._up.set()
    assert (await asyncio.wait_for(answering, 5)).answers == ["rollout-2"]


async def test_evaluation_reports_that_all_engines_were_given_up():
    lanes = [make_lane("rollout-0"), make_lane("rollout-1")]
    for lane in lanes:
        lane.guard.given_up = True
    with pytest.raises(RunFailedError, match="rollout-0, rollout-1: all were given up"):
        await evaluate(lanes, (make_prompt("one"),), ProgramEvaluator("nursery"), seed=0)


def make_lane(name: str) -> SupervisedRollout:
    """An engine that answers with its name."""

    class Engine:
        groups_at_once = 1

        async def answer(self, prompts: Sequence[Prompt], *, seed: int) -> list[str]:
            return [self.name for _ in prompts]

    engine: Any = Engine()
    engine.name = name
    return SupervisedRollout(engine, Guard(engine, RecoveryConfig()))


async def test_the_oracles_score_every_held_out_row():
    prompts = (make_prompt("what color is the sky ?"),)
    (judged,) = await ProgramEvaluator("nursery")(prompts, ("the sky is blue , thank you .",))
    assert set(judged.obeys) >= {"polite", "brief"}
