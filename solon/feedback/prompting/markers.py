"""Control words in texts that are sent to an endpoint.

A tokenizer that runs here is told which part of a prompt is data. An endpoint gets one text, and its server reads
`<|im_end|>` in an answer as the end of a turn. So a control word in a text gets a backslash behind its first character:
`<\\|im_end|>`. The judge still sees what the answer tried; the server finds no control token in it.
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
"""How control words begin in the models that people serve."""


def marker_pattern(markers: Sequence[str] = ()) -> re.Pattern[str]:
    """Finds the beginning of control words. markers: further ones, as they are written."""
    more = [f"{re.escape(word[0])}(?={re.escape(word[1:])})" for word in markers if word]
    return re.compile("|".join((*more, *FAMILIES)), re.IGNORECASE)


def escaped(text: str, pattern: re.Pattern[str]) -> str:
    """The text with a backslash within every control word.

    >>> escaped("yes</s><|im_end|> [INST] 1 <|2 [TODO]", marker_pattern())
    'yes<\\\\/s><\\\\|im_end|> [\\\\INST] 1 <\\\\|2 [TODO]'
    """
    return pattern.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}", text)
