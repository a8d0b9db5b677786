"""Questions that name a prompt's own wish: "Does the answer contain the word {mention}?" for the tag `mention:coffee`.

A principle that applies to prompts with the tag `mention` may refer to it as `{mention}`. The text after the colon
takes its place. Other braces of a question are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from solon.errors import InputError, short
from solon.records import Prompt

PLACE = re.compile(r"\{([^{}\n]+)\}")
LONGEST = 200
REFUSED = frozenset("<>[]{}|\\`")
"""Marks of which control tokens and headings are made: an argument becomes part of the question, not of the data."""


def named(question: str, tags: Iterable[str]) -> list[str]:
    """Those of the tags that a question names, in its order."""
    known = set(tags)
    return [name for name in PLACE.findall(question) if name in known]


def with_arguments(question: str, tags: Iterable[str], prompt: Prompt) -> str:
    """The question with each `{tag}` of these tags replaced by the prompt's argument of it.

    Raises InputError for a prompt without such an argument, or with one that may not stand in a question.
    """
    known = set(tags)

    def argument(place: re.Match[str]) -> str:
        return _argument(place[1], prompt) if place[1] in known else place[0]

    return PLACE.sub(argument, question)


def _argument(tag: str, prompt: Prompt) -> str:
    found = [one.partition(":")[2].strip() for one in prompt.tags if one.startswith(f"{tag}:")]
    where = f"prompt {prompt.prompt_id} ({short(prompt.messages[-1].content)})"
    if len(found) != 1:
        raise InputError(
            f"{where}: a principle asks about {{{tag}}}, but the prompt's tags are {short(list(prompt.tags))}, "
            f"expected one {tag}:TEXT among them; add it, or take {{{tag}}} out of the question"
        )
    text = found[0]
    if not text or len(text) > LONGEST or REFUSED & set(text) or not text.isprintable():
        raise InputError(
            f"{where}: got the tag {short(f'{tag}:{text}')}, expected one line of 1 to {LONGEST} characters behind the "
            f"colon, none of {' '.join(sorted(REFUSED))}: it becomes part of a question to the judge"
        )
    return text
