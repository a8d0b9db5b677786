"""Which tokens end an answer, pad a batch and begin a text: by the chat template first, then by the file's own list.

Converters often copy the ids of the base model, whose end of text never follows an answer in a chat; then an engine
would generate past the end of every answer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression.gguf.container import GgufFile
from compression.gguf.tokenizer import adds_bos, control_tokens
from solon.errors import InputError, short

ANSWER = "Yes"
"""Stands for an answer in the probe of a template."""
RENDER_S = 10.0
"""Longest time for a conversation of two short turns."""
PADDING = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
"""Tokens that pad where the file does not say, the first that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """`SpecialTokens(eos="<|im_end|>", stops=(2, 0), pad="<|endoftext|>", bos=None, adds_bos=False, remarks=())`"""

    eos: str
    """Closes an answer."""
    stops: tuple[int, ...]
    """Ids that end generation: that of `eos` first, then the file's other ends."""
    pad: str
    bos: str | None
    """None: texts begin with no token of their own."""
    adds_bos: bool
    """Whether the tokenizer puts `bos` first."""
    remarks: tuple[str, ...]
    """What a user should know."""


def choose(file: GgufFile, tokenizer: Any) -> SpecialTokens:
    """tokenizer: Transformers' tokenizer with the file's chat template, if it has one. Raises InputError when nothing
    ends a text."""
    known, remarks = control_tokens(file), []
    template = tokenizer.chat_template or ""
    said = [index for name in ("eot", "eos", "eom") if (index := file.token_id(name)) is not None]
    adds, begins = adds_bos(file), file.token_id("bos")
    bos = file.tokens[begins] if begins is not None and (adds or "bos_token" in template) else None
    closing = None
    if template:
        tokenizer.bos_token, tokenizer.eos_token = bos, file.tokens[said[0]] if said else None
        closing, remark = end_of_turn(tokenizer, known)
        remarks += [remark] if remark else []
    else:
        remarks.append(
            "the file has no chat template, so this is a base model: a policy needs one; write chat_template.jinja "
            "into the directory"
        )
    stops = tuple(dict.fromkeys(([known[closing]] if closing is not None else []) + said))
    if not stops:
        raise InputError(
            f"{file.path} names no token that ends a text, expected tokenizer.ggml.eos_token_id; convert the file again"
        )
    eos = file.tokens[stops[0]]
    padding = file.token_id("padding")
    pad = file.tokens[padding] if padding is not None else next((one for one in PADDING if one in known), eos)
    return SpecialTokens(eos=eos, stops=stops, pad=pad, bos=bos, adds_bos=adds, remarks=tuple(remarks))


def _rendered(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """Raises what the template raises, and TimeoutError for one that loops."""
    found: list[str | Exception] = []

    def render() -> None:
        try:
            found.append(str(tokenizer.apply_chat_template(turns, tokenize=False)))
        except Exception as error:
            found.append(error)

    # A thread cannot be stopped, but one of this kind ends with the process.
    worker = threading.Thread(target=render, daemon=True)
    worker.start()
    worker.join(RENDER_S)
    if not found:
        raise TimeoutError(f"it did not end within {RENDER_S:.0f} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def end_of_turn(tokenizer: Any, known: Mapping[str, int]) -> tuple[str | None, str]:
    """The token that follows an answer when a conversation is rendered, or None; and a remark, often empty."""
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = _rendered(tokenizer, turns)
    except Exception as error:  # a template is the file's; whatever it raises, the file's own end remains
        return None, f"the chat template cannot render a short conversation ({short(str(error))}); check it"
    before, answer, tail = text.rpartition(ANSWER)
    found = [(place, -len(token), token) for token in known if answer and (place := tail.find(token)) >= 0]
    if not found:
        return None, "no token closes an answer in the chat template; the file's own end of text does"
    return min(found)[2], ""
