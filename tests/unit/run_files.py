"""Run files and what they name, built in no time: directories that look like models, prompts, a constitution."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

WORDS = "Verdict : Verdict: A B yes no sky blue <unk>"
CONSTITUTION = """\
schema: solon.constitution/v1
id: core
version: "1"
principles:
  - {id: kind, pointwise_question: is it kind, pairwise_question: which is kinder}
"""


def make_model(path: Path, *, words: str = WORDS) -> Path:
    """A directory that passes for a model until somebody loads it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (path / "model.safetensors").write_bytes(b"")
    vocabulary = {word: n for n, word in enumerate(dict.fromkeys([*words.split(), "<unk>"]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


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
