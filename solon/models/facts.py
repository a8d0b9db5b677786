"""Facts from a model's files: configuration, tokenizer, names and shapes of weights. Without torch, in at most a
second: only the headers of the weights are read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from solon.errors import InputError, short
from solon.host.user_folders import hub_folder
from solon.models.safetensors_header import StoredTensor, read_header

PICKLED = ("bin", "pt", "pth", "pkl", "pickle", "ckpt")
"""Suffixes of files that may run code when read; they are never read here."""
INDEX = "model.safetensors.index.json"
_CONTEXT = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys of config.json that bound the context; vLLM takes the smallest."""
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of position scaling whose configurations state the scaled context."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
"""Keys of config.json with the number of experts."""
_HEADS = ("num_attention_heads", "n_head")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """A tokenizer.json, read only with the `tokenizers` library."""

    words: Mapping[str, int]
    """Ids by token, including added tokens."""
    ordinary: int
    """One more than the largest id of a token that was not added."""
    added: frozenset[int]
    """Ids of added tokens, special or not."""
    core: Any
    """`tokenizers.Tokenizer`."""

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Tokens by id."""
        return {index: word for word, index in self.words.items()}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """`facts = read_facts(Path("/models/policy"))`; all fields are as in the files."""

    path: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)
    tokenizer: TokenizerFacts | None = None
    """None: no tokenizer.json."""

    @property
    def text(self) -> Mapping[str, Any]:
        """The part of the configuration about text."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def architecture(self) -> str:
        """Empty: the configuration names none."""
        listed = self.config.get("architectures")
        return str(listed[0]) if isinstance(listed, list) and listed else ""

    @property
    def model_type(self) -> str:
        """`model_type` of config.json; empty: it has none."""
        return str(self.config.get("model_type") or "")

    @property
    def experts(self) -> int:
        """Number of experts of a mixture-of-experts model; 0: it is dense."""
        counts = [self.text.get(key) for key in EXPERTS]
        most = max((count for count in counts if type(count) is int), default=0)
        return most if most > 1 and self.text.get("is_moe") is not False else 0

    @property
    def is_multimodal(self) -> bool:
        """Whether the model takes images or audio."""
        return any(isinstance(self.config.get(key), dict) for key in ("vision_config", "audio_config"))

    @property
    def gives_rewards(self) -> bool:
        """Whether it has a head of numbers in place of words."""
        return is_reward_architecture(self.architecture)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder."""
        return bool(self.config.get("is_encoder_decoder"))

    @property
    def quantisation(self) -> str:
        """The compression of its weights, such as `fp8` or `compressed-tensors int-quantized`; empty: none."""
        found = self.config.get("quantization_config") or self.config.get("compression_config")
        if not isinstance(found, dict):
            return ""
        return f"{found.get('quant_method', 'compressed')} {found.get('format', '')}".strip()

    @property
    def head_size(self) -> int | None:
        """Width of an attention head; None if the configuration does not state it."""
        if self.text.get("kv_lora_rank"):
            return None
        given = self.text.get("head_dim")
        if type(given) is int:
            return given
        hidden = next((self.text[key] for key in ("hidden_size", "n_embd", "n_embed") if key in self.text), None)
        heads = next((self.text[key] for key in _HEADS if key in self.text), None)
        return hidden // heads if type(hidden) is int and type(heads) is int and heads else None

    @property
    def context(self) -> int | None:
        """Most tokens it can attend to, as vLLM derives them; None: not stated."""
        lengths = [self.text.get(key) for key in _CONTEXT]
        length = min((n for n in lengths if isinstance(n, int | float) and n > 0), default=None)
        if length is None:
            return None
        scale = 1.0
        if "gemma3" not in self.model_type:
            for kind, factor in _scalings(self.text):
                scale = factor if kind not in _SCALED else scale
        return int(min(length * scale, 2**62))

    @property
    def embedding(self) -> tuple[int, int] | None:
        """Rows and columns of the token embedding; None if the weights do not show it."""
        for name, tensor in self.tensors.items():
            if name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2 and not re.search("vision|audio|encoder", name):
                return tensor.shape[0], tensor.shape[1]
        return None

    @property
    def layers(self) -> int | None:
        """Number of layers in the weights; None if their names do not show it."""
        found = [int(match[1]) for name in self.tensors if (match := _LAYER.search(name))]
        return max(found) + 1 if found and not self.is_multimodal else None

    @property
    def rows(self) -> int | None:
        """Rows of the token embedding, by the weights or else by the configuration; None: unknown."""
        said = self.embedding[0] if self.embedding else self.text.get("vocab_size")
        return said if isinstance(said, int) else None

    def special_token(self, name: str) -> str | None:
        """The text of `eos_token` and similar tokens."""
        for source in (self.tokenizer_config, _object(self.path / "special_tokens_map.json", optional=True)):
            value = source.get(name)
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str) and value:
                return value
        return None

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids of the checkpoint, in addition to the tokenizer's own."""
        given = self.generation.get("eos_token_id", self.text.get("eos_token_id"))
        listed = given if isinstance(given, list) else [given]
        return tuple(token for token in listed if type(token) is int)


def is_reward_architecture(name: str) -> bool:
    """Whether a name in `architectures` is that of a reward model: `LlamaForSequenceClassification`."""
    return name.endswith("ForSequenceClassification")


def num_labels(config: Mapping[str, Any]) -> int:
    """Numbers that a classifier gives; Transformers has two where the file says nothing."""
    labels = config.get("id2label")
    given = config.get("num_labels", 2)
    return len(labels) if isinstance(labels, dict) else given if type(given) is int else 2


def is_reward_model(model: str) -> bool:
    """Whether a directory or hub name on this machine is a reward model."""
    folder = model_folder(model)
    listed = _object(folder / "config.json", optional=True).get("architectures") if folder else None
    return isinstance(listed, list) and bool(listed) and is_reward_architecture(str(listed[0]))


def _scalings(text: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(kind, factor) of each position scaling; one for all layers, or one for each kind of layer."""
    found = text.get("rope_parameters") or text.get("rope_scaling")
    if not isinstance(found, dict):
        return []
    parts = [part for part in found.values() if isinstance(part, dict)] or [found]
    return [
        (str(part.get("rope_type") or part.get("type")), float(part["factor"]))
        for part in parts
        if isinstance(part.get("factor"), int | float) and 0 < part["factor"] < math.inf
    ]


def model_folder(model: str) -> Path | None:
    """Folder of a directory or hub name on this machine; None: not here."""
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
        if path.exists() or model.count("/") != 1:
            return None
    except (OSError, ValueError, RuntimeError):  # cannot be a path
        return None
    hub = hub_folder() / f"models--{model.replace('/', '--')}"
    try:
        snapshot = hub / "snapshots" / (hub / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    # A partial model may be here: the rest is downloaded when an engine needs it.
    return snapshot if (snapshot / "config.json").exists() and any(snapshot.glob("*.safetensors")) else None


def read_facts(path: Path) -> ModelFacts:
    """Read all facts. Raises InputError for missing or damaged files; the message does not name the model."""
    config = _object(path / "config.json")
    if "architectures" not in config and "model_type" not in config:
        raise InputError("config.json names no architecture; is it a model directory?")
    return ModelFacts(
        path=path,
        config=config,
        tensors=_tensors(path),
        tokenizer_config=_object(path / "tokenizer_config.json"),
        generation=_object(path / "generation_config.json", optional=True),
        tokenizer=read_tokenizer(path / "tokenizer.json"),
    )


def context_of(model: str) -> int | None:
    """Most tokens a model attends to; None if it is not on this machine or does not state it."""
    folder = model_folder(model)
    if folder is None:
        return None
    try:
        config = _object(folder / "config.json")
    except InputError:
        return None  # the error is reported where the model is loaded or checked
    return ModelFacts(path=folder, config=config, tokenizer_config={}, generation={}).context


@dataclass(frozen=True, slots=True)
class _TokenizerFile:
    """A file, equal to any other with the same content."""

    digest: str
    path: Path = field(compare=False)


def read_tokenizer(path: Path) -> TokenizerFacts | None:
    """The tokenizer of a file; None if there is none. Raises InputError when it cannot be read."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"tokenizer.json cannot be read: {error}") from None
    return _read_tokenizer(_TokenizerFile(digest, path))


@lru_cache(16)
def _read_tokenizer(file: _TokenizerFile) -> TokenizerFacts:
    """Cached: tens of megabytes take a second, and models of one family share the file."""
    from tokenizers import Tokenizer

    try:
        core = Tokenizer.from_file(str(file.path))
    except Exception as error:  # the library has no narrower class
        raise InputError(f"tokenizer.json cannot be read: {short(str(error))}; fetch it again") from None
    added = core.get_added_tokens_decoder()
    words = core.get_vocab(with_added_tokens=True)
    return TokenizerFacts(
        words=words,
        ordinary=max((index for index in words.values() if index not in added), default=-1) + 1,
        added=frozenset(added),
        core=core,
    )


def _tensors(path: Path) -> dict[str, StoredTensor]:
    files = sorted(path.glob("*.safetensors"))
    if not files and not (path / INDEX).exists():
        pickled = sorted(p.name for ending in PICKLED for p in path.glob(f"*.{ending}"))
        hint = f" (only {short(pickled)}, which may run code when read: convert it to safetensors)" if pickled else ""
        raise InputError(f"has no *.safetensors file{hint}")
    if not (path / INDEX).exists():
        # Without an index, only the file with the usual name is loaded.
        files = [file for file in files if file.name == "model.safetensors"] or files
        return {name: tensor for file in files for name, tensor in read_header(file).items()}
    places = _object(path / INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise InputError(f"{INDEX} has no weight_map; fetch it again")
    named = sorted({str(name) for name in places.values()})
    if missing := [name for name in named if not (path / name).is_file()]:
        raise InputError(f"misses {len(missing)} of {len(named)} files of {INDEX}: {short(missing)}; fetch them")
    headers = {name: read_header(path / name) for name in named}
    for tensor, file in places.items():
        if tensor not in headers[str(file)]:
            raise InputError(f"{INDEX} looks for {short(tensor)} in {file}, which does not hold it; fetch both again")
    return {name: tensor for header in headers.values() for name, tensor in header.items()}


def _object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise InputError(f"has no {path.name}; expected a Hugging Face directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read: {short(str(error))}; check it, or fetch it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path.name} holds a {type(value).__name__}, expected an object")
    return value
