"""Questions that name a prompt's own wish: "Does the answer contain the word {mention}?" for the tag `mention:coffee`.

A principle that applies to prompts with the tag `mention` may refer to it as `{mention}`. The text behind the colon
takes its place. Other braces of a question are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from solon.errors import InputError, short
from solon.records import Prompt

PLACE = re.compile(r"\{([^{}\s]+)\}")
ALLOWED = re.compile(r"[^\W_](?:[\w .,:;'’/+-]{0,198}[\w.'’)])?")
"""An argument becomes part of the question, not of the data: one line without the marks of which control tokens and
headings are made."""


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
    if not found:
        raise InputError(
            f"prompt {prompt.prompt_id}: a principle asks about {{{tag}}}, but the prompt's tags are "
            f"{short(list(prompt.tags))}; expected {tag}:TEXT among them; add it, or take {{{tag}}} out of the question"
        )
    if not ALLOWED.fullmatch(found[0]):
        raise InputError(
            f"prompt {prompt.prompt_id}: got the tag {short(f'{tag}:{found[0]}')}, expected up to 200 letters, digits, "
            "spaces and . , : ; ' / + - behind the colon, as this becomes part of a question to the judge"
        )
    return found[0]
