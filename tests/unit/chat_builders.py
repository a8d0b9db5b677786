"""Small tokenizers of every family and the chat templates of the usual models, for tests: built in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CORPUS = [
    "the sky is blue and the grass is green , what color is the crow ? Answer A : yes no Verdict : B",
    "user assistant system model Human: Assistant: [INST] [/INST] <|im_start|> <start_of_turn> </s> <think> </think>",
    "You judge answers of an assistant. Reply with the verdict alone, nothing else.\n\nQuestion: déjà vu 你好 🙂",
] * 4
BRACKETS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEXT_TOKENS = ["<think>", "</think>", "<tool_call>", "    ", "<h1>"]
"""Added tokens that are not special: some steer a model, some are text."""


def byte_level(**more: Any) -> Any:
    """As Qwen, Llama 3 and SmolLM: bytes, no unknown word, special tokens outside of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=more.pop("ignore_merges", False)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if more.get("normalized"):
        tokenizer.normalizer = normalizers.NFKC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finished(tokenizer, specials=more.pop("specials", BRACKETS), eos=more.pop("eos", "<|im_end|>"), **more)


def llama2(scheme: str = "legacy", **more: Any) -> Any:
    """As SentencePiece models converted: byte fallback, a space before every text, special tokens in the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        replace = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    described = _without_added(tokenizer, keep=("<unk>", "<s>", "</s>"))
    return _finished(described, specials=["<s>", "</s>"], bos="<s>", eos="</s>", unk="<unk>", **more)


def unigram(*, has_nfkc: bool = False) -> Any:
    """As T5 and XLNet: pieces with scores, special tokens among them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    if has_nfkc:
        tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finished(tokenizer, specials=["<pad>", "</s>"], eos="</s>", pad="<pad>", unk="<unk>")


def word_piece(**more: Any) -> Any:
    """As BERT: lower case, punctuation apart."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _finished(tokenizer, specials=["[PAD]", "[CLS]", "[SEP]"], eos="[SEP]", pad="[PAD]", unk="[UNK]", **more)


def words() -> Any:
    """As the tiny language: a word is a token, and special tokens are words of the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = dict.fromkeys(word for line in CORPUS for word in line.split())
    vocabulary = {word: index for index, word in enumerate(["<unk>", "</s>", "<|user|>", *known])}
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finished(tokenizer, specials=["</s>", "<|user|>"], eos="</s>", unk="<unk>")


def adds_bos() -> Any:
    """Its post-processor puts a beginning of sequence before every text, as Llama 3's does."""
    from tokenizers import processors

    hf = byte_level(specials=["<|begin|>", "<|eot|>", *BRACKETS], bos="<|begin|>", eos="<|eot|>", ignore_merges=True)
    index = hf.convert_tokens_to_ids("<|begin|>")
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", index)]
    )
    return hf


def _without_added(tokenizer: Any, *, keep: tuple[str, ...]) -> Any:
    import json

    from tokenizers import Tokenizer

    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [entry for entry in described["added_tokens"] if entry["content"] in keep]
    return Tokenizer.from_str(json.dumps(described))


def _finished(
    tokenizer: Any,
    *,
    specials: list[str],
    eos: str,
    bos: str = "",
    pad: str = "",
    unk: str = "",
    text: bool = True,
    normalized: bool = False,
) -> Any:
    """normalized: added tokens are searched for in the normalised text."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=normalized) for token in specials])
    if text:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=normalized) for token in TEXT_TOKENS])
    named = {"eos_token": eos, "bos_token": bos, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{key: value for key, value in named.items() if value})


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level, no pad": byte_level,
    "byte-level, pad is eos": lambda: byte_level(pad="<|im_end|>"),
    "byte-level, adds bos": adds_bos,
    "byte fallback, legacy prefix": llama2,
    "byte fallback, prefix first": lambda: llama2("first"),
    "byte fallback, prefix always": lambda: llama2("always"),
    "byte fallback, no prefix": lambda: llama2("never"),
    "unigram": unigram,
    "word pieces": word_piece,
    "words": words,
    "byte-level, NFKC before added tokens": lambda: byte_level(normalized=True),
    "unigram, NFKC": lambda: unigram(has_nfkc=True),
    "word pieces, BERT before added tokens": lambda: word_piece(normalized=True),
}

_LOOP = "{% for message in messages %}"
_END = "{% endfor %}{% if add_generation_prompt %}"
CHATML = (
    _LOOP
    + "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    + _END
    + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
THINKS = (
    _LOOP
    + "{% set content = message.content %}{% if message.role == 'assistant' and '</think>' in content %}"
    + "{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    + "{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}"
    + _END
    + "{{ '<|im_start|>assistant\\n' }}"
    + "{% if enable_thinking is defined and not enable_thinking %}"
    + "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
OPENS = THINKS[: THINKS.index("{% if enable_thinking")] + "{{ '<think>\\n' }}{% endif %}"
WRITES_BOS = (
    "{{ bos_token | default('') }}"
    + _LOOP
    + "{{ '<|' + message.role + '|>\\n\\n' + (message.content | trim) + eos_token }}"
    + _END
    + "{{ '<|assistant|>\\n\\n' }}{% endif %}"
)
STRICT = (
    "{{ bos_token | default('') }}{% if messages[0].role == 'system' %}"
    + "{{ raise_exception('System role not supported') }}{% endif %}"
    + _LOOP
    + "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    + "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}"
    + "{{ message.content | trim }}{{ '<end_of_turn>\\n' }}"
    + _END
    + "{{ '<start_of_turn>model\\n' }}{% endif %}"
)
INST = (
    _LOOP
    + "{% if message.role == 'assistant' %}{{ ' ' + message.content | trim + ' ' + eos_token }}"
    + "{% else %}{{ (bos_token | default('')) + '[INST] ' + message.content | trim + ' [/INST]' }}{% endif %}"
    + "{% endfor %}"
)
DATED = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\\n' }}" + CHATML
TWICE = CHATML.replace("message.content", "message.content + ' / ' + message.content")
SHOUTS = CHATML.replace("message.content", "message.content | upper")
PEEKS = CHATML.replace("message.content", "('tool!' if '<tool_call>' in message.content else message.content)")

TEMPLATES = {
    "chatml": CHATML,
    "strips old thoughts": THINKS,
    "opens a thought": OPENS,
    "writes bos": WRITES_BOS,
    "strict": STRICT,
    "inst": INST,
    "dated": DATED,
    "twice": TWICE,
    "shouts": SHOUTS,
}
