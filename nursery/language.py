"""The closed vocabulary and its word-level tokenizer, as a Hugging Face directory and as a plain dictionary.

The special tokens are no words of the vocabulary: as data they read `<unk>`, so no text can open a turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nursery import prompts, world
from nursery.world import ACTS, FACTS, FORMS, TARGETS, TOPICS, VALUES
from solon.constitution.constitution import Constitution
from solon.feedback.prompting.prompts import COMPACT
from solon.records import Message

CONSTITUTION_PATH = Path(__file__).with_name("constitution.yaml")
UNKNOWN, PAD, USER, ASSISTANT, SYSTEM, END = "<unk>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIALS = (PAD, SYSTEM, USER, ASSISTANT, END)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCAB_MULTIPLE = 64
"""The embedding is padded to a multiple of this."""


@cache
def vocabulary() -> dict[str, int]:
    """Id of every word; the special tokens follow after them."""
    return {word: index for index, word in enumerate((UNKNOWN, *sorted(_words())))}


@cache
def special_ids() -> dict[str, int]:
    """Ids of the special tokens."""
    return {token: len(vocabulary()) + index for index, token in enumerate(SPECIALS)}


def embedding_rows() -> int:
    """Rows of the embedding, those that no token uses included."""
    used = len(vocabulary()) + len(SPECIALS)
    return -(-used // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class WordEncoder:
    """What `ChatTokenizer` does with this language, as dictionary look-ups: lessons encode millions of words."""

    def __init__(self) -> None:
        self._words = vocabulary()
        self._all = {**vocabulary(), **special_ids()}
        self._text = {index: word for word, index in self._words.items()}
        self.eos_token_id = special_ids()[END]
        self.pad_id = special_ids()[PAD]

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        """Ids of the words; special tokens are seen only outside data."""
        table = self._words if is_data else self._all
        return [table.get(word, 0) for word in text.split()]

    def decode(self, token_ids: Sequence[int], *, is_raw: bool = False) -> str:
        """Words joined by spaces, special tokens left out."""
        return " ".join(self._text[i] for i in token_ids if i in self._text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """A conversation, ready for the assistant's turn."""
        turns = [f"<|{m.role}|> {m.content} {END}" for m in messages]
        return self.encode(" ".join((*turns, ASSISTANT)))

    def chat_frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after the content of one user turn."""
        return self.encode(USER), self.encode(f"{END} {ASSISTANT}")


def write_tokenizer(directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json, as Hugging Face reads them."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=UNKNOWN))
    # Without a decoder, tokens are joined by spaces: the inverse of splitting at them.
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"unk_token": UNKNOWN, "pad_token": PAD, "eos_token": END}
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 256,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(named, indent=2), encoding="utf-8")


def _words() -> set[str]:
    constitution = Constitution.load(CONSTITUTION_PATH)
    texts: list[str] = [
        constitution.preamble,
        *world.CLAIM.values(),
        *world.REPLY.values(),
        *prompts.OPENERS,
        *prompts.SMALL_TALK,
    ]
    for principle in constitution.principles:
        texts += [principle.pairwise_question, principle.pointwise_question]
    texts += [phrasing for row in prompts.QUESTIONS.values() for phrasing in row]
    texts += [*prompts.BELIEFS, *prompts.WISHES, *prompts.MISDEEDS, *prompts.FRAMES]
    texts += [*world.COURTESIES, *world.INSULTS, *world.EVASIONS, *world.RAMBLINGS, *world.REFUSALS]
    texts += [*world.STEPS, *world.MOODS, "no , yes and but to here is a :"]
    texts += [COMPACT.opening, COMPACT.user, COMPACT.assistant, COMPACT.answer, COMPACT.first, COMPACT.second]
    texts += [COMPACT.question, COMPACT.prefill, *COMPACT.pair_labels, *COMPACT.bool_labels]
    texts += [
        *FACTS,
        *FORMS,
        *TOPICS,
        *TOPICS.values(),
        *ACTS,
        *TARGETS,
        *(value for row in VALUES.values() for value in row),
    ]
    return {word for text in texts for word in text.split() if not _is_slot(word)}


def _is_slot(word: str) -> bool:
    return word.startswith("{")
