"""A check renders a judge's template exactly as the judge's engine does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.preflight.frames import FileEncoder
from solon.engines.chat_settings import ChatSettings
from solon.engines.tokens import ChatTokenizer
from solon.models.facts import read_facts
from tests.unit.chat_builders import byte_level
from tests.unit.run_files import make_model

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% elif opens %}{{ '<think>\\n' }}{% endif %}"
)


def test_a_normaliser_of_no_steps_changes_nothing():
    from tokenizers import normalizers

    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.chat_template = TEMPLATE
    assert ChatTokenizer(tokenizer).chat_frame() == _plain().chat_frame()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chat_template_args": {"enable_thinking": True}},
        {"chat_template_args": {"enable_thinking": True, "opens": 1}},
    ],
)
def test_a_check_renders_the_frame_of_a_question_as_the_engine_does(tmp_path: Path, settings: dict[str, Any]):
    model = make_model(tmp_path / "judge")
    _plain().hf.save_pretrained(model)
    facts, chat = read_facts(model), ChatSettings(**settings)
    assert facts.tokenizer is not None
    before, after = ChatTokenizer(_plain().hf, chat).chat_frame()
    assert FileEncoder(facts.tokenizer, facts, chat).chat_frame() == (list(before), list(after))
    before, after = ChatTokenizer(_plain().hf, chat).thought_frame()
    assert FileEncoder(facts.tokenizer, facts, chat).thought_frame() == (list(before), list(after))


def _plain() -> ChatTokenizer:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    return ChatTokenizer(tokenizer)
