"""Real judge prompts as token ids, for calibrating a judge's smaller copy and for its gate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from compression.pairs import Pair
from solon.engines.chat_settings import ChatSettings
from solon.engines.tokens import ChatTokenizer
from solon.feedback.interfaces import Item
from solon.feedback.prompting.prompts import TEMPLATES, JudgePrompts
from solon.feedback.prompting.templates import require_suited
from solon.feedback.trials.gold import GoldPair


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


def judge_pairs(
    model: str,
    gold: Iterable[GoldPair],
    *,
    template: str,
    preamble: str = "",
    max_tokens: int = 4096,
    settings: ChatSettings | None = None,
) -> list[Pair]:
    """Gold pairs as preferences of a judge: the prompt is its question, the chosen answer the label of the better one.

    Every question is there in both orders, under its principle as tag; pairs without a better answer are left out, and
    questions that are too long even when cut. Raises InputError when the tokenizer splits an answer label.
    """
    tokenizer = ChatTokenizer.load(model, settings=settings)
    require_suited(TEMPLATES[template], tokenizer.num_tokens)
    prompts = JudgePrompts(TEMPLATES[template], tokenizer, preamble=preamble)
    found = []
    for pair in gold:
        for item in pair.items if pair.is_decided else ():
            for swapped in (False, True):
                laid = prompts.lay(item, swapped=swapped, max_tokens=max_tokens)
                if laid is None:
                    continue
                first, second = ((one,) for one in laid.question.label_ids)
                chosen, rejected = (first, second) if (pair.target > 0.5) != swapped else (second, first)
                found.append(
                    Pair(
                        prompt_id=pair.prompt_id,
                        prompt=laid.question.prompt_token_ids,
                        chosen=chosen,
                        rejected=rejected,
                        tags=(item.principle_id,),
                    )
                )
    return found
