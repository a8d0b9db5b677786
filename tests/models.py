"""Random-weight models of real architectures, in seconds: Hugging Face directories with tokenizer and template."""

from __future__ import annotations

from pathlib import Path

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = (
    *("Answer", "A", "B", ":", "User", "Assistant", "Question", "Verdict", "yes", "no", "is", "the", "sky", "blue"),
    *("green", "what", "color", "?", "good", "bad", "polite", "it", "was", "and", "of", "a", "to", "warm", "up"),
    *("one", "two", "three"),
)


def make_model(
    path: Path, *, architecture: str = "llama", seed: int = 0, labels: bool = True, tied: bool = False
) -> Path:
    """A tiny model with random weights. `labels=False`: its tokenizer does not know the answer labels. `tied`: its head
    is its embeddings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer([w for w in WORDS if labels or w not in ("yes", "no", "A", "B")])
    config = AutoConfig.for_model(
        architecture,
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_tokenizer(words: list[str]):
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<|unk|>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer
