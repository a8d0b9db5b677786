"""Escapes control words in texts that are sent to an endpoint.

A local tokenizer knows which part of a prompt is data. An endpoint gets one text, and its server reads `<|im_end|>` in
an answer as the end of a turn. So a control word in a text gets a backslash after its first character:
`<\\|im_end|>`. The judge still sees the attempt of the answer; the server finds no control token in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FAMILIES = (
    r"<(?=\|[^\s<>]{1,60}>)",  # <|im_start|>, <|eot_id|>, <|turn>
    r"<(?=[\w:/-]{1,40}\|>)",  # <turn|>
    r"<｜",  # <｜User｜>
    r"<(?=/?(?:s|bos|eos|pad|unk|mask|image|start_of_turn|end_of_turn|start_of_image|end_of_image|SPECIAL_\d+)>)",
    r"<(?=/?(?:think|thinking|seed:think|reasoning|tools?|tool_calls?|tool_response|function_calls?|extra_id_\d+)>)",
    r"<(?=</?SYS>>)",
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|IMG|IMG_BREAK|IMG_END)\])",
    r"\[(?=(?:CLS|SEP|MASK|PAD|UNK|BOS|EOS|gMASK)\])",
)
"""The beginnings of control words in commonly served models."""


def marker_pattern(markers: Sequence[str] = ()) -> re.Pattern[str]:
    """Matches the beginning of control words. markers: further ones, as they are written."""
    more = [f"{re.escape(word[0])}(?={re.escape(word[1:])})" for word in markers if word]
    return re.compile("|".join((*more, *FAMILIES)), re.IGNORECASE)


def escaped(text: str, pattern: re.Pattern[str]) -> str:
    """The text with a backslash inside every control word.

    >>> escaped("yes</s><|im_end|> [INST] 1 <|2 [TODO]", marker_pattern())
    'yes<\\\\/s><\\\\|im_end|> [\\\\INST] 1 <\\\\|2 [TODO]'
    """
    return pattern.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}", text)
