"""Whether a tokenizer belongs to its model, and whether an answer can end. Each check raises InputError."""

from __future__ import annotations

from solon.errors import InputError, short
from solon.models.facts import ModelFacts

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer")
"""Tokenizer classes without an end-of-sequence token of their own."""
USUAL_ENDS = ("</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")
"""End-of-sequence tokens of the other classes."""
OTHER_FILES = ("vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
"""Files that a tokenizer is built from where there is no tokenizer.json."""


def _check_files(facts: ModelFacts) -> None:
    """The tokenizer must exist, and its template must be text."""
    if facts.tokenizer is None and not any(file for kind in OTHER_FILES for file in facts.path.glob(kind)):
        raise InputError("has no tokenizer.json, expected one; fetch it from the model's own files")
    template = facts.tokenizer_config.get("chat_template")
    listed = template if isinstance(template, list) else []
    is_named = all(isinstance(one, dict) and isinstance(one.get("template"), str) and "name" in one for one in listed)
    if not isinstance(template, str | list | None) or not is_named:
        raise InputError(
            f"tokenizer_config.json has chat_template = {short(template)}, expected text, or a list of objects with "
            "`name` and `template`; fetch it again"
        )


def check_template(facts: ModelFacts) -> None:
    if not facts.tokenizer_config.get("chat_template") and not (facts.path / "chat_template.jinja").exists():
        raise InputError(
            "has no chat template in tokenizer_config.json or chat_template.jinja; use a chat model, or name a file "
            "with one in the setting chat_template"
        )


def check_tokenizer(facts: ModelFacts) -> None:
    """Every token id must have a row in the embedding, and special ids must mean the same in both."""
    _check_files(facts)
    tokenizer, rows = facts.tokenizer, facts.embedding[0] if facts.embedding else facts.text.get("vocab_size")
    if tokenizer is None:
        return
    rows = rows if isinstance(rows, int) else None
    if rows and tokenizer.ordinary > rows:
        raise InputError(
            f"tokenizer.json has {tokenizer.ordinary} tokens, the embedding {rows} rows: it is the tokenizer of "
            "another model; take both from one"
        )
    end = facts.special_token("eos_token")
    if end is not None and end not in tokenizer.words:
        raise InputError(
            f"tokenizer_config.json has eos_token {short(end)}, which tokenizer.json does not know; take both from one "
            "model"
        )
    if rows and end is not None and tokenizer.words[end] >= rows:
        raise InputError(
            f"the end-of-sequence token {short(end)} has id {tokenizer.words[end]}, the embedding {rows} rows; take "
            "both from one model"
        )
    stops = facts.stop_ids
    if not stops or (end is not None and tokenizer.words[end] in stops):
        return
    named = [tokenizer.tokens.get(stop, "") for stop in stops]
    if not any(stop in tokenizer.added or name.startswith(("<", "[")) for stop, name in zip(stops, named, strict=True)):
        found = short(named[0] or "nothing")
        raise InputError(
            f"config.json says that token {stops[0]} ends an answer, in tokenizer.json that is {found}: it is the "
            "tokenizer of another model; take both from one"
        )


def check_end(facts: ModelFacts) -> None:
    tokenizer = facts.tokenizer
    if tokenizer is None or facts.special_token("eos_token") is not None:
        return
    is_generic = facts.tokenizer_config.get("tokenizer_class") in GENERIC
    if is_generic or not any(token in tokenizer.words for token in USUAL_ENDS):
        raise InputError(
            "has no end-of-sequence token, expected one: no answer would ever end; set `eos_token` in "
            "tokenizer_config.json"
        )
