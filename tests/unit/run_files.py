"""Run files and the files that they name, built quickly: directories that look like models, prompts, a constitution."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SIZES = {"F32": 4, "BF16": 2, "U8": 1}
WORDS = "Verdict : Verdict: A B yes no sky blue <unk>"
CONSTITUTION = """\
schema: solon.constitution/v1
id: core
version: "1"
principles:
  - {id: kind, pointwise_question: is it kind, pairwise_question: which is kinder}
"""


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def make_model(path: Path, *, words: str = WORDS) -> Path:
    """A directory that passes for a model until it is loaded."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    settings = {"chat_template": "{{ messages }}", "eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    write_weights(path / "model.safetensors", tensors_of(CONFIG), mark=path.name)
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*words.split(), "<unk>"]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def add_token(model: Path, token: str) -> None:
    """Gives the tokenizer a token that the embedding has no row for, as `add_tokens` without a resize does."""
    path = model / "tokenizer.json"
    value = json.loads(path.read_text())
    known = len(value["model"]["vocab"]) + 1  # the library numbers added tokens itself, from the end of the vocabulary
    value["model"]["vocab"] |= {f"w{n}": n for n in range(known, CONFIG["vocab_size"])}
    beyond = max(CONFIG["vocab_size"], *(added["id"] + 1 for added in value["added_tokens"]))
    value["added_tokens"].append({**value["added_tokens"][0], "id": beyond, "content": token})
    path.write_text(json.dumps(value))


def tensors_of(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Some of the tensors that a Llama of this configuration has: dtype and shape by name."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config.get("head_dim", width // config["num_attention_heads"])
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("F32", (config["vocab_size"], width))
    }
    for layer in range(config["num_hidden_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"model.layers.{layer}.self_attn.{name}.weight"] = ("F32", (heads, width))
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = ("F32", (inner, width))
    return found


def write_weights(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, mark: str = "") -> None:
    """A safetensors file of repeated bytes. mark: distinguishes its weights from those of another."""
    header: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (place, place + size)}
        place += size
    text = json.dumps(header).encode()
    data = (mark.encode() or b"0") * place
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[:place])


def write_run(folder: Path, text: str = "", *, without: Sequence[str] = ()) -> Path:
    """`folder/run.toml` with the four required keys, less those named, and `text` after them."""
    keys = {"policy": "policy", "judge": "judge", "prompts": "prompts.jsonl", "constitution": "constitution.yaml"}
    lines = [f'{key} = "{value}"' for key, value in keys.items() if key not in without]
    path = folder / "run.toml"
    path.write_text("\n".join([*lines, text]) + "\n")
    return path


def make_run(folder: Path, text: str = "") -> Path:
    """A run file and all that it names."""
    make_model(folder / "policy")
    make_model(folder / "judge")
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"is {n} blue"}) + "\n" for n in range(3)))
    return write_run(folder, text)
