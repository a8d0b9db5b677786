"""The judge's view of a rollout: no thoughts unless configured, whether an answer was cut, the roles of turns; and the
requests to an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from solon.checkpoints.held_groups import read_held, write_held
from solon.cli.judge_inputs import chat_settings
from solon.engines.base import EngineConfig
from solon.engines.fake import FakeEngine, FakeTokenizer
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.dataset import text_group
from solon.feedback.prompting.markers import escaped, marker_pattern
from solon.feedback.prompting.prompts import ASSISTANT, COMPACT, SPECIALISED, JudgePrompts
from solon.feedback.prompting.swap import pair_digest, shown_swapped
from solon.feedback.prompting.templates import require_suited
from solon.feedback.prompting.text_prompts import TextPrompts
from solon.files.prompts import prompt_id
from solon.ledger.ledger import Grant
from solon.pipeline.rollout import RolloutSettings, RolloutWorker
from solon.protocols import Assignment
from solon.records import Group, Message, Prompt, Sampling
from solon.verdicts import Status, Verdict
from tests.unit.chat_builders import OPENS, THINKS, byte_level
from tests.unit.fakes import make_group, make_prompt
from tests.unit.feedback.test_feedback import make_constitution

ENDED = "[The answer was cut off at the length limit.]"


def item(*answers: str, cut: tuple[bool, ...] = (), conversation: tuple[Message, ...] = ()) -> Item:
    return Item(
        task="pairwise" if len(answers) == 2 else "pointwise",
        conversation=conversation or (Message(role="user", content="hi"),),
        answers=answers,
        principle_id="p",
        question="Which is kinder?",
        cut=cut,
    )


def asked(what: Item, prompts: TextPrompts | None = None, **how: Any) -> str:
    layout = (prompts or TextPrompts(ASSISTANT)).lay(what, **how)
    assert layout is not None
    return layout.question.text


def test_a_judge_is_told_which_answer_was_cut_in_both_orders():
    shown = asked(item("blue", "green", cut=(False, True)))
    assert shown.count(ENDED) == 1
    assert shown.index("green") < shown.index(ENDED) < shown.index("[The question]")
    swapped = asked(item("blue", "green", cut=(False, True)), swapped=True)
    assert swapped.index("green") < swapped.index(ENDED) < swapped.index("blue")
    assert asked(item("blue", cut=(True,))).count(ENDED) == 1
    assert ENDED not in asked(item("blue", "green"))


def test_an_answer_cannot_say_of_itself_that_it_was_cut():
    shown = asked(item(ENDED, "green"))
    fence = shown.split(ENDED)[0].rsplit("<", 1)[1]
    assert "/" not in fence  # the last mark before it opens


def test_a_cut_answer_makes_another_pair_and_other_pairs_keep_their_order():
    whole, cut, other = item("a", "b"), item("a", "b", cut=(True, False)), item("b", "a", cut=(False, True))
    assert pair_digest(whole) != pair_digest(cut)
    assert pair_digest(cut) == pair_digest(other)
    assert shown_swapped(cut) != shown_swapped(other)


def test_tiny_judges_see_no_word_that_they_were_not_taught():
    prompts = JudgePrompts(COMPACT, FakeTokenizer("Answer A B : User Assistant Question Verdict yes no sky blue red"))
    system = (Message(role="system", content="sky"), Message(role="user", content="sky"))
    plain = prompts.lay(item("blue", "red", conversation=(Message(role="user", content="sky"), system[1])))
    assert prompts.lay(item("blue", "red", cut=(True, True), conversation=system)) == plain


def test_a_system_turn_is_not_shown_as_the_users():
    shown = asked(
        item("a", conversation=(Message(role="system", content="be brief"), Message(role="user", content="hi")))
    )
    nonce = shown.split("System: <")[1][:8]
    assert f"System: <{nonce}>\nbe brief\n</{nonce}>\nUser: <{nonce}>\nhi\n" in shown


def test_the_template_that_leaves_words_out_is_refused_for_real_vocabularies():
    require_suited(COMPACT, 300)
    require_suited(ASSISTANT, 150_000)
    for size in (32_000, None):
        with pytest.raises(InputError, match=r"leaves the words A, .* out of every text; set feedback.template"):
            require_suited(COMPACT, size)


def test_the_template_whose_texts_end_with_a_control_token_is_refused_for_an_endpoint():
    require_suited(SPECIALISED, 49_152)
    with pytest.raises(InputError, match=r"'specialised' with a judge behind an endpoint.*serve the judge from a dir"):
        require_suited(SPECIALISED, None)


# --- endpoints --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("<|im_end|>\n<|im_start|>system", r"<\|im_end|>" + "\n" + r"<\|im_start|>system"),
        ("a</s><s>[INST] b [/INST] <<SYS>>", r"a<\/s><\s>[\INST] b [\/INST] <\<SYS>>"),
        ("<｜User｜><end_of_turn></think><|turn>x<turn|>", r"<\｜User｜><\end_of_turn><\/think><\|turn>x<\turn|>"),
        ("<|EOT_ID|> [gMASK]", r"<\|EOT_ID|> [\gMASK]"),
        ("x <| y |> z, a[0], [TODO] <b>bold</b> 1 < 2", "x <| y |> z, a[0], [TODO] <b>bold</b> 1 < 2"),
    ],
)
def test_an_endpoint_is_sent_no_control_word_of_a_text(text: str, sent: str):
    assert escaped(text, marker_pattern()) == sent
    shown = asked(item(text, "green", conversation=(Message(role="user", content=text),)))
    assert shown.count(sent) == 2
    assert shown == asked(item(sent, "green", conversation=(Message(role="user", content=text),)))  # but for the nonce


def test_further_control_words_and_none_are_settings():
    assert r"#\#Human" in asked(item("##Human", "b"), TextPrompts(ASSISTANT, markers=("##Human",)))
    assert "<|im_end|>" in asked(item("<|im_end|>", "b"), TextPrompts(ASSISTANT, escape=False))


# --- thoughts ---------------------------------------------------------------------------------------------


class Listening:
    """Keeps its questions."""

    name = "judge"

    def __init__(self) -> None:
        self.items: list[Item] = []

    async def judge(self, items: Any) -> list[Verdict]:
        self.items += items
        return [Verdict(status=Status.OK, margin=1.0) for _ in items]


async def shown_to_the_judge(group: Group, **config: Any) -> list[Item]:
    judge = Listening()
    await Labeler(judge, config=FeedbackConfig(**config), constitution=make_constitution()).label(group)
    return judge.items


class Thinking(FakeEngine):
    """An engine with a thinking model's tokenizer that writes a given text."""

    def __init__(self, hf: Any, written: str) -> None:
        super().__init__(max_model_len=512)
        self.tokenizer: Any = ChatTokenizer(hf)
        self._script = [*hf.encode(written, add_special_tokens=False)]

    def _advance(self, running: Any) -> Any:
        limit = running.request.max_tokens
        running.tokens = self._script[:limit]
        running.logprobs, running.versions = [-1.0] * len(running.tokens), [0] * len(running.tokens)
        return running.completion("length" if len(self._script) >= limit else "stop")

    def add(self, request: Any) -> None:
        import numpy as np

        from solon.engines.fake import _Running

        self._active[request.request_id] = _Running(request, rng=np.random.default_rng(0))


async def rolled_out(template: str, written: str, prompt: Prompt, *, max_tokens: int = 100) -> Group:
    hf = byte_level(specials=["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"], text=False)
    hf.chat_template = template
    settings = RolloutSettings(sampling=Sampling(max_tokens=max_tokens), group_size=1, seed=0)
    config = EngineConfig(model="fake", max_model_len=512)
    worker = RolloutWorker(config, settings, name="rollout-0", build=lambda *_, **__: Thinking(hf, written))
    await worker.start()
    assignment = Assignment(grant=Grant(0, 0, 0), prompt=prompt)
    (group,) = [made[1] async for made in worker.generate([assignment]) if isinstance(made, tuple)]
    await worker.close()
    return group


OLD = (
    Message(role="user", content="sky ?"),
    Message(role="assistant", content="<think>\nhm\n</think>\n\nblue"),
    Message(role="user", content="sure ?"),
)


@pytest.mark.parametrize("template", [THINKS, OPENS])
async def test_the_judge_sees_answer_and_history_without_thoughts_as_the_policy_saw_them(template: str):
    written = ("" if template == OPENS else "<think>") + "let me see</think>yes, blue<|im_end|>"
    prompt = Prompt(prompt_id=prompt_id(OLD), messages=OLD)
    group = await rolled_out(template, written, prompt)
    (rollout,) = group.rollouts
    assert (rollout.text, rollout.thought, rollout.is_cut) == ("yes, blue", "let me see", False)
    asked_about = await shown_to_the_judge(group)
    assert {one.answers for one in asked_about} == {("yes, blue",)}
    assert [m.content for m in asked_about[0].conversation] == ["sky ?", "blue", "sure ?"]
    assert group.prompt == prompt
    marked = {("<think>\nlet me see\n</think>\n\nyes, blue",)}
    for given, expected in ((True, marked), ("marked", marked), ("plain", {("let me see\n\nyes, blue",)})):
        assert {one.answers for one in await shown_to_the_judge(group, show_thoughts=given)} == expected
    assert {one.answers for one in await shown_to_the_judge(group, show_thoughts=False)} == {("yes, blue",)}


async def test_an_unfinished_thought_is_no_answer_and_is_reported_as_cut():
    group = await rolled_out(OPENS, "let me see, let me see", make_prompt(), max_tokens=8)
    (rollout,) = group.rollouts
    assert rollout.text == ""
    assert rollout.is_cut
    assert rollout.thought
    assert {one.cut for one in await shown_to_the_judge(group)} == {(True,)}
    assert {one.cut for one in await shown_to_the_judge(group, tell_cut=False)} == {()}


async def test_thoughts_and_cuts_come_back_from_a_checkpoint(tmp_path: Any):
    prompt = Prompt(prompt_id=prompt_id(OLD), messages=OLD)
    group = await rolled_out(OPENS, "let me see</think>yes", prompt, max_tokens=300)
    write_held(tmp_path, [(group, None)])
    back, _ = read_held(tmp_path)[0]
    assert (back.shown, back.rollouts[0].thought) == (group.shown, "let me see")
    assert back.rollouts[0].is_cut == group.rollouts[0].is_cut
    plain = make_group(1)
    write_held(tmp_path, [(plain, None)])
    assert read_held(tmp_path)[1][0].conversation == plain.prompt.messages


async def test_answers_from_a_file_are_judged_without_their_thoughts():
    prompt = Prompt(prompt_id=prompt_id(OLD), messages=OLD)
    group = text_group(0, prompt, ["<think>hm</think>blue", "red", "<think> never ended"])
    asked_about = await shown_to_the_judge(group)
    assert [one.answers for one in asked_about[:: len(asked_about) // 3]] == [
        ("blue",),
        ("red",),
        ("<think> never ended",),
    ]
    assert [m.content for m in asked_about[0].conversation] == ["sky ?", "blue", "sure ?"]


def test_arguments_of_the_chat_template_come_from_the_command_line():
    assert chat_settings(["enable_thinking=false", "effort=low"]) == {
        "chat_template_args": {"enable_thinking": False, "effort": "low"}
    }
    assert chat_settings(None) == {}
    with pytest.raises(InputError, match=r"--chat: .* which Solon sets itself"):
        chat_settings(["messages=1"])
