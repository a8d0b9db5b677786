"""Whether a judge is usable: its labels are single tokens, and the longest question fits its context."""

from __future__ import annotations

from cluster.preflight.frames import FileEncoder, require_rows
from solon.constitution.constitution import Constitution
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.reward_judge import CENTRE, TASKS, centre_of, require_backend
from solon.feedback.prompting.prompts import LEAST_TEXT_TOKENS, TEMPLATES, JudgePrompts, label_ids
from solon.feedback.prompting.templates import require_suited
from solon.models.facts import ModelFacts
from solon.records import Message
from solon.verdicts import Task


def check_labels(facts: ModelFacts, template: str, *, role: str) -> None:
    """Each label must be one token. Raises InputError."""
    if facts.tokenizer is None:
        return  # a slow tokenizer: checked when the judge starts
    chosen, encoder = TEMPLATES[template], FileEncoder(facts.tokenizer)
    for labels in (chosen.pair_labels, chosen.bool_labels):
        try:
            require_suited(chosen, facts.tokenizer.core.get_vocab_size())
            label_ids(encoder, chosen.prefill, labels)
        except InputError as error:
            raise InputError(f"{role} model {facts.path}: {error}") from None


def check_frame(facts: ModelFacts, template: str, chat: ChatSettings, *, role: str) -> None:
    """The words around every question must have rows in the judge's embedding. Raises InputError."""
    if facts.tokenizer is not None:
        prompts = JudgePrompts(TEMPLATES[template], FileEncoder(facts.tokenizer, facts, chat))
        ids = prompts.pointwise((), "", "")
        require_rows(facts, (*ids, *prompts.pair_ids, *prompts.bool_ids), role=role, what="a question to it")


def check_reward_model(
    facts: ModelFacts, feedback: FeedbackConfig, *, role: str, backend: str, length: int, answer_tokens: int
) -> list[str]:
    """Raises InputError when the settings ask for more than one number for an answer; warns when answers do not fit,
    and of rewards whose size is unknown.

    length: its context in tokens. answer_tokens: the longest answer.
    """
    require_backend(centre_of(facts.config, str(facts.path)), backend, str(facts.path))
    found = []
    if feedback.task not in TASKS:
        raise InputError(
            f"{role} model {facts.path} is a reward model, which has one number for an answer, and feedback.task = "
            f"{feedback.task!r}; expected {' or '.join(TASKS)}"
        )
    length = min(length, facts.context or length)
    if answer_tokens and answer_tokens + LEAST_TEXT_TOKENS > length:
        found.append(
            f"{role}: an answer of rollout.max_tokens = {answer_tokens} tokens and its prompt do not fit the reward "
            f"model's {length}: longer conversations have no reward; raise judging.max_model_len or lower "
            "rollout.max_tokens"
        )
    if CENTRE not in facts.config:
        found.append(
            f"{role} model {facts.path} has no {CENTRE} in its config.json: its rewards are taken as they are, and cut "
            f"at feedback.margin_clip = {feedback.margin_clip:g}; if they are large, answers will seem alike: set "
            "shifts and scale there (docs/feedback.md), or raise feedback.margin_clip"
        )
    return found


def check_room(
    facts: ModelFacts,
    feedback: FeedbackConfig,
    constitution: Constitution,
    *,
    role: str,
    length: int,
    task: Task,
    answer_tokens: int,
    chat: ChatSettings | None = None,
) -> list[str]:
    """Raises InputError when no text fits beside the longest question, or a question has tokens that the judge's
    embedding lacks; warns when whole answers do not fit.

    length: the judge's context in tokens. answer_tokens: the longest answer. chat: the judge's chat format.
    """
    if facts.tokenizer is None:
        return []
    length = min(length, facts.context or length)
    room = length - 1 - feedback.written_tokens
    encoder = FileEncoder(facts.tokenizer, facts, chat)
    prompts = JudgePrompts(
        TEMPLATES[feedback.template],
        encoder,
        preamble=constitution.preamble,
        frame=encoder.thought_frame() if feedback.thought_tokens else None,
    )
    answers = 2 if task == "pairwise" else 1
    turn = (Message(role="user", content=""),)
    longest, principle = 0, ""
    for asked in (asked for one in constitution.principles for asked in one.questions(task)):
        if answers == 2:
            ids = prompts.pairwise(turn, "", "", asked.question)
        else:
            ids = prompts.pointwise(turn, "", asked.question)
        require_rows(facts, ids, role=role, what=f"the question of principle {asked.principle.id!r}")
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
