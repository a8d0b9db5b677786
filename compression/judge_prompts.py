"""Real judge prompts as token ids, for calibrating a judge's quantised copy."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from solon.engines.chat_settings import ChatSettings
from solon.engines.tokens import ChatTokenizer
from solon.feedback.interfaces import Item
from solon.feedback.prompting.prompts import TEMPLATES, JudgePrompts
from solon.feedback.prompting.templates import require_suited


def judge_sequences(
    model: str,
    items: Iterable[Item],
    *,
    template: str,
    preamble: str = "",
    limit: int = 512,
    max_tokens: int = 4096,
    settings: ChatSettings | None = None,
) -> list[list[int]]:
    """Token ids of the questions about these items, a pair in both orders, `limit` of them at most.

    judge_sequences("judge", items, template="assistant", preamble=constitution.preamble)

    An item that is too long even when cut is left out. Raises InputError when the tokenizer splits an answer label.
    """
    tokenizer = ChatTokenizer.load(model, settings=settings)
    require_suited(TEMPLATES[template], tokenizer.num_tokens)
    prompts = JudgePrompts(TEMPLATES[template], tokenizer, preamble=preamble)
    laid = (
        prompts.lay(item, swapped=swapped, max_tokens=max_tokens)
        for item in items
        for swapped in ((False, True) if item.task == "pairwise" else (False,))
    )
    return [list(one.question.prompt_token_ids) for one in itertools.islice(filter(None, laid), limit)]
