"""Held-out evaluation: what is said of each answer, and what it comes to."""

from __future__ import annotations

from cluster.evaluate import AuditEvaluator, Evaluation, OracleEvaluator, obeyed
from solon.records import Feedback, Group, Label, Status
from tests.unit.fakes import make_prompt


def about(principle: str, margin: float | None, question: str = "") -> Label:
    status = Status.TIMEOUT if margin is None else Status.OK
    return Label(
        task="predicate", principle_id=principle, question_id=question, rollouts=(0,), status=status, margin=margin
    )


def test_an_answer_obeys_a_principle_when_all_its_questions_speak_for_it():
    labels = (
        about("kind", -1.0, "greets"), about("kind", 2.0, "thanks"),
        about("true", 1.0, "cites"), about("true", 2.0, "agrees"),
        about("brief", None, "short"), about("brief", 3.0, "dense"),
    )  # fmt: skip
    assert obeyed(labels) == {"kind": False, "true": True}  # of `brief` nobody knows


async def test_every_held_out_row_carries_its_scores_and_the_labels_that_they_follow_from():
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


async def test_the_oracles_score_every_held_out_row():
    prompts = (make_prompt("what color is the sky ?"),)
    (judged,) = await OracleEvaluator()(prompts, ("the sky is blue , thank you .",))
    assert set(judged.obeys) >= {"polite", "brief"}
