"""A thinking judge's verdict is read after its thought, and never inside or instead of one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from solon.engines.base import Request
from solon.engines.chat_settings import ChatSettings
from solon.engines.fake import FakeEngine
from solon.engines.runner import EngineRunner
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError
from solon.feedback.config import AROUND_WRITTEN, FeedbackConfig
from solon.feedback.judges.engine_ask import EngineAsk
from solon.feedback.prompting.prompts import COMPACT, JudgePrompts
from solon.feedback.questions import Answer, Question
from solon.records import Message
from solon.verdicts import Status
from tests.unit.chat_builders import CHATML, OPENS, THINKS, byte_level

HI = (Message(role="user", content="what color is the sky ?"),)


async def asked(thought_tokens: int, number: int = 8) -> tuple[list[Answer], list[Question], list[Request], Any]:
    """Answers of a fake judge whose thoughts end at a full stop, and what its verdicts were read from."""
    read: list[Request] = []

    def rule(request: Request) -> list[float]:
        read.append(request)
        return [-0.1, -2.4]

    engine = FakeEngine(label_rule=rule, max_model_len=1024)
    runner = EngineRunner(lambda: engine)
    await runner.ready()
    prompts = JudgePrompts(COMPACT, engine.tokenizer, frame=engine.tokenizer.thought_frame())
    questions = [
        Question(prompts.pointwise(HI, " ".join(["blue"] * (1 + n)), "help ?"), prompts.bool_ids) for n in range(number)
    ]
    try:
        return await EngineAsk(runner, prompts, thought_tokens=thought_tokens)(questions), questions, read, engine
    finally:
        await runner.close()


async def test_a_verdict_is_read_after_a_whole_thought():
    answers, questions, read, engine = await asked(400)
    ended = [(answer, question) for answer, question in zip(answers, questions, strict=True) if answer.failure is None]
    assert len(ended) == len(read) > 0
    (full_stop,), prefill = engine.tokenizer.encode("."), tuple(engine.tokenizer.encode("Verdict :"))
    for (answer, question), request in zip(ended, read, strict=True):
        stem = question.prompt_token_ids[: -len(prefill)]
        ids = request.prompt_token_ids
        assert ids[: len(stem)] == stem
        assert ids[-len(prefill) :] == prefill
        thought = ids[len(stem) : -len(prefill)]
        assert thought[-1] == full_stop
        assert full_stop not in thought[:-1]
        assert answer.output_tokens == len(thought)
        assert answer.detail == engine.tokenizer.decode(thought[:-1])


async def test_a_thought_that_does_not_end_gives_no_verdict_and_says_what_to_raise():
    answers, _, read, _ = await asked(1)
    failed = [answer for answer in answers if answer.failure is not None]
    assert failed
    assert len(read) == len(answers) - len(failed)
    assert all(answer.failure is Status.TRUNCATED and not answer.logprobs for answer in failed)
    assert "did not end within 1 tokens; raise feedback.thought_tokens" in failed[0].detail


async def test_the_same_question_gets_the_same_thought():
    first, *_ = await asked(60)
    again, *_ = await asked(60)
    assert [a.detail for a in first] == [a.detail for a in again]


@pytest.mark.parametrize("template", [THINKS, OPENS])
def test_the_frame_of_a_thinking_judge_ends_inside_a_thought(template: str):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    wrapper = ChatTokenizer(tokenizer)
    _, after = wrapper.thought_frame()
    assert tokenizer.decode(after).endswith("assistant\n<think>\n")
    assert wrapper.thought_stop() == ((), tuple(tokenizer.encode("</think>", add_special_tokens=False)))
    ids = tokenizer.encode("short.</think>", add_special_tokens=False)
    assert wrapper.read_answer(ids, opens_thought=True).thought == "short."
    assert wrapper.end_of_thought([*ids, *ids[:2]]) == len(ids)
    assert wrapper.end_of_thought(ids[:2]) is None


def test_a_judge_without_thoughts_is_refused():
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    with pytest.raises(InputError, match=r"no marks around a thought.*set judging.thinking .* or thought_tokens to 0"):
        ChatTokenizer(tokenizer, ChatSettings(thinking="off")).thought_frame()


def test_thoughts_that_the_users_own_arguments_turn_off_are_refused():
    tokenizer = byte_level()
    tokenizer.chat_template = THINKS
    settings = ChatSettings(chat_template_args={"enable_thinking": False})
    with pytest.raises(InputError, match=r"has enable_thinking = false, and feedback.thought_tokens is above 0"):
        ChatTokenizer(tokenizer, settings).thought_frame()


def test_room_is_kept_for_what_is_written_before_a_verdict():
    assert FeedbackConfig().written_tokens == 0
    assert FeedbackConfig(thought_tokens=100).written_tokens == 100 + AROUND_WRITTEN
    with pytest.raises(ValidationError, match="critique_tokens and thought_tokens are both set"):
        FeedbackConfig(thought_tokens=1, critique_tokens=1)
