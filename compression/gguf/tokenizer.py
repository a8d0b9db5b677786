"""The tokenizer of a GGUF file, built from its vocabulary: byte-level BPE, and SentencePiece BPE with byte fallback.

    core = build_tokenizer(file)      # tokenizers.Tokenizer

A byte-level vocabulary says by name how text is cut into words before merging. A rule that is not known here is
refused: the same text would silently become other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compression.gguf.container import GgufFile
from solon.errors import InputError, short

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Kinds of tokens in `tokenizer.ggml.token_type`."""
SPACE = "▁"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"


@dataclass(frozen=True, slots=True)
class WordRule:
    """How text is cut into words."""

    pattern: str = ""
    """A regular expression; empty: that of GPT-2."""
    splits_digits: bool = False
    """Every digit is a word."""
    nfc: bool = False
    """Text is composed first (Unicode NFC)."""
    ignores_merges: bool = False
    """A word of the vocabulary is one token, whatever the merges say."""


_LLAMA3 = WordRule(rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}", ignores_merges=True)
_QWEN2 = WordRule(rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}", nfc=True)
_DIGITS = WordRule(splits_digits=True)
WORD_RULES = {
    "gpt-2": WordRule(),
    "default": WordRule(),
    "olmo": WordRule(),
    "phi-2": WordRule(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": WordRule(_QWEN2.pattern),
}
"""By the name in `tokenizer.ggml.pre`."""
ADD_BOS_BY_DEFAULT = ("llama", "llama-bpe", "llama3")
"""Vocabularies and word rules whose texts begin with a token of their own where the file does not say."""


def build_tokenizer(file: GgufFile) -> Any:
    """A `tokenizers.Tokenizer` with the file's ids. Raises InputError for a kind that is not known here."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        core = _byte_level(file)
    elif kind == "llama":
        core = _sentence_piece(file)
    else:
        raise InputError(
            f"{file.path} has a tokenizer of the kind {short(kind)}, expected gpt2 or llama; give a Hugging Face "
            "directory of the model instead"
        )
    _add_tokens(core, file)
    return core


def adds_bos(file: GgufFile) -> bool:
    """Whether texts begin with the file's first token."""
    said = file.metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(said, bool):
        return said and file.token_id("bos") is not None
    kinds = (file.metadata.get("tokenizer.ggml.model"), file.metadata.get("tokenizer.ggml.pre"))
    return file.token_id("bos") is not None and any(kind in ADD_BOS_BY_DEFAULT for kind in kinds)


def control_tokens(file: GgufFile) -> dict[str, int]:
    """Ids of the tokens that structure a text, by text: control tokens, and those that were added to the vocabulary."""
    types = file.metadata.get("tokenizer.ggml.token_type")
    if not types:
        named = {file.token_id(name) for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
        return {file.tokens[index]: index for index in named if index is not None}
    kinds = (CONTROL, USER_DEFINED)
    return {
        text: index
        for index, (text, kind) in enumerate(zip(file.tokens, types, strict=False))
        if kind in kinds and text.strip()
    }


def _byte_level(file: GgufFile) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    name = file.metadata.get("tokenizer.ggml.pre")
    rule = WORD_RULES.get(name)  # type: ignore[arg-type]
    if rule is None:
        raise InputError(
            f"{file.path} cuts text into words by the rule {short(name)}, expected one of {', '.join(WORD_RULES)}; "
            "give a Hugging Face directory of the model instead"
        )
    if not (pairs := file.metadata.get("tokenizer.ggml.merges")):
        raise InputError(
            f"{file.path} has no tokenizer.ggml.merges, expected the pairs of its tokens; convert it again"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in pairs]
    words = {text: index for index, text in enumerate(file.tokens)}
    core = _model(file, lambda: BPE(vocab=words, merges=merges, ignore_merges=rule.ignores_merges))
    core = Tokenizer(core)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.splits_digits else []
    if rule.pattern:
        steps.append(pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not rule.pattern))
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rule.nfc:
        core.normalizer = normalizers.NFC()
    core.decoder = decoders.ByteLevel()
    return core


def _sentence_piece(file: GgufFile) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(file.tokens):
        raise InputError(
            f"{file.path} has {len(scores or ())} scores for {len(file.tokens)} tokens, expected one each; convert the "
            "file again"
        )
    words = {text: index for index, text in enumerate(file.tokens)}
    unknown = file.token_id("unknown")
    core = _model(
        file,
        lambda: BPE(
            vocab=words,
            merges=_merges(file, scores),
            unk_token=None if unknown is None else file.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    )
    core = Tokenizer(core)
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    marked = normalizers.Replace(" ", SPACE)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), marked]) if prefix else marked
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*back, decoders.Strip(content=" ", left=1)] if prefix else back)
    return core


def _model(file: GgufFile, build: Any) -> Any:
    try:
        return build()
    except Exception as error:  # the library has no narrower class
        raise InputError(
            f"the vocabulary of {file.path} and its merges do not fit together ({short(str(error))}); convert the file "
            "again"
        ) from None


def _merges(file: GgufFile, scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece stores no merges: two tokens merge when their text together is a token, the best score first."""
    types = file.metadata.get("tokenizer.ggml.token_type") or [1] * len(file.tokens)
    score_of = {
        text: score for text, score, kind in zip(file.tokens, scores, types, strict=False) if kind in (1, USER_DEFINED)
    }
    found = []
    for text, score in score_of.items():
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [pair for pair in halves if pair[0] in score_of and pair[1] in score_of]
        pairs.sort(key=lambda pair: (score_of[pair[0]], score_of[pair[1]]), reverse=True)
        found += [(score, pair) for pair in pairs]
    found.sort(key=lambda one: one[0], reverse=True)
    return [pair for _, pair in found]


def _add_tokens(core: Any, file: GgufFile) -> None:
    """Control tokens are special; those that were added to the vocabulary are matched before words are cut."""
    from tokenizers import AddedToken

    types = file.metadata.get("tokenizer.ggml.token_type") or ()
    control = [text for text, kind in zip(file.tokens, types, strict=False) if kind == CONTROL]
    control = control or [text for text in control_tokens(file) if not types]
    control += [text for text, kind in zip(file.tokens, types, strict=False) if kind == UNKNOWN]
    added = [text for text, kind in zip(file.tokens, types, strict=False) if kind == USER_DEFINED]
    core.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])


def begin_with(core: Any, token: str, index: int) -> None:
    """Every text begins with this token, unless special tokens are not asked for."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    template = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, index)]
    )
    core.post_processor = Sequence([ByteLevel(trim_offsets=False), template])
