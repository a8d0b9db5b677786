"""Token ids of a prompt and of an answer to it, as an engine reads the one and writes the other."""

from __future__ import annotations

from collections.abc import Sequence

from solon.engines.thinking import without_thought
from solon.engines.tokens import ChatTokenizer
from solon.records import Message

Tokens = tuple[int, ...]


def encode_turn(tokenizer: ChatTokenizer, messages: Sequence[Message], answer: str) -> tuple[Tokens, Tokens]:
    """The conversation up to the assistant's opening, and the answer with the token that ends it.

    Where the chat template opens a thought, an answer without one closes it first. Control words in the answer stay
    text. Raises PromptRefusedError when the template refuses the conversation.
    """
    prompt = tokenizer.open_chat(messages)
    read = without_thought(answer)
    text: list[int] = []
    if tokenizer.marks is not None and (prompt.opens_thought or read.thought):
        if not prompt.opens_thought:
            text += tokenizer.encode(tokenizer.marks.start)
        text += tokenizer.encode(f"\n{read.thought}\n" if read.thought else "\n", is_data=True)
        text += [*tokenizer.encode(tokenizer.marks.end), *tokenizer.encode("\n\n")]
        answer = read.text
    text += tokenizer.encode(answer.strip(), is_data=True)
    return prompt.token_ids, (*text, tokenizer.turn_end_id)
