"""Whether a judge can be asked: its labels are single tokens, and its context holds the longest question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solon.constitution import Constitution
from solon.errors import InputError
from solon.feedback.asking.prompts import LEAST_TEXT_TOKENS, TEMPLATES, JudgePrompts, label_ids
from solon.feedback.asking.templates import require_suited
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.local import VERDICT_TOKENS
from solon.feedback.judging import Task
from solon.model_facts import ModelFacts, TokenizerFacts
from solon.records import Message

_MARK = "solonframemark"


class FileEncoder:
    """The tokenizer file alone, without the seconds that importing transformers costs."""

    def __init__(self, tokenizer: TokenizerFacts, facts: ModelFacts | None = None) -> None:
        self._core = tokenizer.core
        self._facts = facts

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        return ids

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Empty where the template cannot be rendered here."""
        text = "" if self._facts is None else render_chat(self._facts, [{"role": "user", "content": _MARK}])
        before, found, after = text.partition(_MARK)
        return (self.encode(before), self.encode(after)) if found else ([], [])


def render_chat(facts: ModelFacts, turns: Sequence[Mapping[str, str]]) -> str:
    """A conversation in the model's chat template; empty when the template needs more than it is given here."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = facts.tokenizer_config.get("chat_template")
    file = facts.path / "chat_template.jinja"
    if file.exists():
        template = file.read_text(encoding="utf-8", errors="replace")
    if not isinstance(template, str):
        return ""
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens: dict[str, Any] = {name: facts.special_token(name) or "" for name in names}
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        rendered = environment.from_string(template).render(messages=turns, add_generation_prompt=True, **tokens)
    except Exception:  # a template is a program; whoever loads the model says what is wrong with it
        return ""
    return str(rendered)


def check_labels(facts: ModelFacts, template: str, *, role: str) -> None:
    """Each label is one token. Raises InputError."""
    if facts.tokenizer is None:
        return  # a slow tokenizer: checked when the judge starts
    chosen, encoder = TEMPLATES[template], FileEncoder(facts.tokenizer)
    for labels in (chosen.pair_labels, chosen.bool_labels):
        try:
            require_suited(chosen, facts.tokenizer.core.get_vocab_size())
            label_ids(encoder, chosen.prefill, labels)
        except InputError as error:
            raise InputError(f"{role} model {facts.path}: {error}") from None


def check_room(
    facts: ModelFacts,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    role: str,
    length: int,
    task: Task,
    answer_tokens: int,
) -> list[str]:
    """Raises InputError when no text fits beside the longest question; says it when whole answers do not.

    length: tokens that the judge reads at once. answer_tokens: what an answer may have.
    """
    if facts.tokenizer is None:
        return []
    length = min(length, facts.context or length)
    room = length - 1 - (feedback.critique_tokens + VERDICT_TOKENS if feedback.critique_tokens else 0)
    template = TEMPLATES[feedback.template]
    prompts = JudgePrompts(template, FileEncoder(facts.tokenizer, facts), preamble=constitution.preamble)
    answers = 2 if task == "pairwise" else 1
    turn = (Message(role="user", content=""),)
    longest, principle = 0, ""
    for asked in (asked for one in constitution.principles for asked in one.questions(task)):
        if answers == 2:
            ids = prompts.pairwise(turn, "", "", asked.question)
        else:
            ids = prompts.pointwise(turn, "", asked.question)
        if len(ids) > longest:
            longest, principle = len(ids), asked.principle.id
    if longest + answers + 1 > room:  # a token of each text
        raise InputError(
            f"{role} model {facts.path}: the question of principle {principle!r} takes {longest} tokens without any "
            f"text, and there is room for {room} (judging.max_model_len = {length}); raise it, shorten the question or "
            "the preamble, or choose a judge of longer context"
        )
    whole = longest + LEAST_TEXT_TOKENS + answers * answer_tokens
    if whole > room:
        return [
            f"{role}: answers of rollout.max_tokens = {answer_tokens} tokens are cut before they are judged, or not "
            f"judged: a question needs {whole} tokens, there is room for {room}; raise judging.max_model_len or lower "
            "rollout.max_tokens"
        ]
    return []
