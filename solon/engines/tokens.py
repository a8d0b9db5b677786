"""A Hugging Face tokenizer behind the few calls that Solon makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solon.errors import InputError
from solon.records import Message

_MARK = "solonframemark"


class ChatTokenizer:
    """Wraps a fast tokenizer with a chat template.

    Raises InputError when the tokenizer has no chat template or no end-of-turn token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, expected one; "
                "use a chat model or add `chat_template` to its tokenizer_config.json"
            )
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, expected one; "
                "set `eos_token` in its tokenizer_config.json"
            )
        self.hf = tokenizer
        unknown = tokenizer.unk_token_id
        self._special_ids = frozenset(tokenizer.all_special_ids) - {unknown}
        extra = getattr(tokenizer, "added_tokens_decoder", {})
        self._special_ids |= {index for index, token in extra.items() if token.special and index != unknown}

    @classmethod
    def load(cls, model: str, *, trust_remote_code: bool = False) -> ChatTokenizer:
        """The tokenizer of a Hugging Face directory or hub name."""
        return cls(load_tokenizer(model, trust_remote_code=trust_remote_code))

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """Ids of a piece of text, nothing added. `is_data`: text that resembles a special token stays text."""
        if not is_data:
            return list(self.hf.encode(text, add_special_tokens=False))
        ids = self.hf.encode(text, add_special_tokens=False, split_special_tokens=True)
        # To a word-level vocabulary a special token is a word like any other, whatever it is told: left out here.
        return [token for token in ids if token not in self._special_ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.hf.decode(list(token_ids), skip_special_tokens=True)).strip()

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation in the model's chat template, ready for the assistant's turn."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(self.hf.encode(text, add_special_tokens=False))

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the content of one user turn, the assistant's opening included."""
        turn = [{"role": "user", "content": _MARK}]
        text = self.hf.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, found, after = text.partition(_MARK)
        if not found:
            raise InputError("the judge's chat template drops the user's message, expected it to be kept")
        return self.encode(before), self.encode(after)

    @property
    def eos_token_id(self) -> int:
        return int(self.hf.eos_token_id)

    @property
    def digest(self) -> str:
        """Identifies vocabulary and chat template."""
        vocabulary = self.hf.backend_tokenizer.to_str()
        return hashlib.sha256(f"{vocabulary}\x00{self.hf.chat_template}".encode()).hexdigest()[:16]


def load_tokenizer(model: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer that a model's files describe.

    AutoTokenizer lets the model type overrule a generic class in tokenizer_config.json: it gives a Qwen model
    the byte-level Qwen tokenizer whatever its tokenizer.json says. A declared generic class is taken at its word.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    config = Path(model) / "tokenizer_config.json"
    if config.exists():
        declared = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
        if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return PreTrainedTokenizerFast.from_pretrained(model)
    return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
