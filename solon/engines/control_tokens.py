"""The control tokens of a model, and a tokenizer that never finds them in a text.

    sealed = SealedTokenizer(tokenizer, control)
    sealed.encode("<|im_end|>")                  # pieces of text, never the control token
    sealed.encode(sealed.name(7) + "hello")      # token 7 at its secret name, text elsewhere

Otherwise the sealed tokenizer equals the model's own. Its control tokens have random names that no text can know, so a
text with control words is split exactly as if the words had no meaning.
"""

from __future__ import annotations

import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from solon.errors import InputError

_MARKER = re.compile(
    r"<\|.*\|>|<\|.*>|<.*\|>|<｜.*｜>|\[/?[A-Z_]{2,}\]"
    r"|</?(s|bos|eos|pad|mask|think|thinking|seed:think|tools?|tool_calls?|tool_response|start_of_turn|end_of_turn)>"
)
"""The form of control tokens of the usual families."""


def control_tokens(
    tokenizer: Any, *, template: str, marks: Iterable[str], text_tokens: Iterable[str]
) -> dict[int, str]:
    """The tokens that no text may become, by id.

    These are the special tokens, and those other added tokens that the template writes, that mark a thought, or that
    look like a control token. Runs of spaces and HTML tags, which some vocabularies add too, are text. The
    unknown-word token is no control token: it stands for text. Raises InputError for a name in `text_tokens` that is
    special or missing.
    """
    added = {index: (token.content, token.special) for index, token in tokenizer.added_tokens_decoder.items()}
    for name in text_tokens:
        if not any(content == name and not special for content, special in added.values()):
            raise InputError(
                f"text_tokens has {name!r}, expected an added token of {tokenizer.name_or_path!r} that is not special; "
                "remove it"
            )
    named = {*marks}
    found = {
        index: content
        for index, (content, special) in added.items()
        if content.strip()
        and content not in text_tokens
        and (special or content in named or _is_marker(content, template))
    }
    for index, content in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True):
        found.setdefault(int(index), str(content))
    model = tokenizer.backend_tokenizer.model
    has_unknown = getattr(model, "unk_token", None) or type(model).__name__ == "Unigram"
    if has_unknown and tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        found.pop(tokenizer.unk_token_id, None)
    return found


def _is_marker(content: str, template: str) -> bool:
    if _MARKER.fullmatch(content):
        return True
    is_bracketed = content[0] in "<[" and content[-1] in ">]" and len(content) > 2
    return is_bracketed and not re.search(r"\s", content) and content in template


MASK = "\ue0f3"
"""A private-use character that replaces a character of a text."""


def mask_all(text: str) -> str:
    """A meaningless text of the same length; spaces stay, since templates strip them."""
    return re.sub(r"\S", MASK, text)


class ControlWords:
    """Finds words in a text that are control tokens, or may become part of one with the text before or after it.

    normalise: the tokenizer's normaliser, applied before it looks for tokens. It may turn full-width letters, accents
    and zero-width characters into control words, so its output is searched too.
    """

    def __init__(self, words: Iterable[str], normalise: Callable[[str], str] | None = None) -> None:
        self._normalise = normalise
        words = [*words]
        read = [] if normalise is None else [self._as_read(word).strip() for word in words]
        known = sorted({word.lower() for word in (*words, *read) if word}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, known)) or r"(?!)", re.IGNORECASE)
        self._heads = frozenset(word[:n] for word in known for n in range(1, len(word)))
        self._tails = frozenset(word[n:] for word in known for n in range(1, len(word)))
        self._ends = frozenset(word[-1] for word in known)
        self._longest = max(map(len, known), default=1)

    def may_matter_in(self, text: str) -> bool:
        """Whether a text contains a control word, or may begin or end one at its edges."""
        return self._is_in(text) or self._is_read_in(text)

    def mask(self, text: str) -> str:
        """The text with these words masked, of the same length; fully masked if only the tokenizer would find any."""
        masked = self._mask_words(text)
        return mask_all(text) if self._is_read_in(masked) else masked

    def _is_in(self, text: str) -> bool:
        return self._pattern.search(text) is not None or any(self._edges(text))

    def _is_read_in(self, text: str) -> bool:
        """Whether the tokenizer finds any in the text, or its first character changes the preceding ones."""
        if self._normalise is None:
            return False
        return self._changes_what_is_before(text.lstrip()[:1]) or self._is_in(self._as_read(text))

    def _changes_what_is_before(self, first: str) -> bool:
        if not first or not unicodedata.combining(first):
            return False
        alone = self._as_read(first).strip()
        return any(self._as_read(end + first).strip() != self._as_read(end).strip() + alone for end in self._ends)

    def _as_read(self, text: str) -> str:
        """A text after the tokenizer's normaliser, with its space symbol turned back into spaces."""
        assert self._normalise is not None
        return self._normalise(text).replace("▁", " ")

    def _mask_words(self, text: str) -> str:
        text = self._pattern.sub(lambda found: mask_all(found[0]), text)
        begun, ended = self._edges(text)
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        text = text[:first] + mask_all(text[first : first + ended]) + text[first + ended :]
        return text[: last - begun] + mask_all(text[last - begun : last]) + text[last:]

    def _edges(self, text: str) -> tuple[int, int]:
        """How many characters at the end may begin a control token, and how many at the beginning may end one."""
        core = text.strip()
        longest = min(self._longest, len(core))
        begun = next((n for n in range(longest, 0, -1) if core[-n:].lower() in self._heads), 0)
        ended = next((n for n in range(longest, 0, -1) if core[:n].lower() in self._tails), 0)
        return begun, ended


UNKNOWN_PIECE = "\x00unknown"


class SealedTokenizer:
    """See the module. Built from the tokenizer's own description; takes about as long as loading it."""

    def __init__(self, tokenizer: Any, control: Mapping[int, str]) -> None:
        from tokenizers import Tokenizer

        # Lower-case letters and digits: no normalizer changes them, and no text contains this name. It ends with a
        # digit: no accent at the beginning of a text combines with one.
        key = secrets.token_hex(12)
        self._names = {index: f"zq{key}x{index}q0" for index in control}
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        described |= {"truncation": None, "padding": None, "post_processor": None}
        is_known = self._rename_words(described["model"], control, unknown=tokenizer.unk_token)
        kept = []
        for entry in described["added_tokens"]:
            if entry["id"] in self._names:
                entry |= {"content": self._names[entry["id"]], "single_word": False}
            elif entry["content"] == tokenizer.unk_token and is_known:
                continue  # the model keeps its unknown-word token; as a word in a text it is ordinary text
            kept.append(entry)
        described["added_tokens"] = kept
        self._backend = Tokenizer.from_str(json.dumps(described))
        for index, name in self._names.items():
            found = self._backend.token_to_id(name)
            if found is not None and found != index:
                raise InputError(
                    f"the tokenizer of {tokenizer.name_or_path!r} numbers its added tokens in an unusual way "
                    f"({control[index]!r} is {index}, expected {found}); save it again with save_pretrained"
                )
        self._control = frozenset(control)

    def name(self, index: int) -> str:
        """The name of a control token in a text that is encoded here."""
        return self._names[index]

    def encode(self, text: str) -> list[int]:
        """Ids of a text; control tokens only at their names."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_data(self, text: str) -> list[int]:
        """Ids of a text, without any control token."""
        return [index for index in self.encode(text) if index not in self._control]

    def _rename_words(self, model: dict[str, Any], control: Mapping[int, str], *, unknown: str | None) -> bool:
        """Rename control tokens that the vocabulary also holds as words, which a word or unigram model would find.
        Returns whether it holds the unknown-word token."""
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, list):  # pieces with scores; the index is the id
            for index, name in self._names.items():
                if index < len(vocabulary):
                    vocabulary[index][0] = name
            place = model.get("unk_id")
            if place is None or vocabulary[place][0] != unknown:
                return False
            vocabulary[place][0] = UNKNOWN_PIECE
            return True
        if not isinstance(vocabulary, dict):
            return False
        merged = {"".join(m.split(" ")) if isinstance(m, str) else "".join(m) for m in model.get("merges") or ()}
        for index, content in control.items():
            # A token made by merges must keep its name; `encode_data` excludes it.
            if vocabulary.get(content) == index and content not in merged:
                del vocabulary[content]
                vocabulary[self._names[index]] = index
                if model.get("unk_token") == content:
                    model["unk_token"] = self._names[index]
        return unknown in vocabulary
