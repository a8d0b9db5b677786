"""A GGUF file: its metadata and the list of its tensors, checked before anything is built from them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solon.errors import InputError, nearest, short
from solon.models.known import gguf_architectures

MAGIC = b"GGUF"
REMEDY = "give a complete GGUF file"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """`file = read_gguf(Path("model.gguf"))`"""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]
    """`gguf.ReaderTensor` by name; `.data` is mapped from the file, not read."""

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it: `llama`, `qwen3`, `gemma3`."""
        return str(self.metadata["general.architecture"])

    @property
    def licence(self) -> str:
        """As the file states it; empty: it states none."""
        said = [self.metadata.get(f"general.license{key}") for key in ("", ".name", ".link")]
        return ", ".join(str(one) for one in said if isinstance(one, str) and one)

    @property
    def tokens(self) -> Sequence[str]:
        """The vocabulary, by id."""
        return self.metadata["tokenizer.ggml.tokens"]  # type: ignore[no-any-return]

    @property
    def rows(self) -> int:
        """Rows of the token embedding."""
        return int(self.tensors["token_embd.weight"].shape[-1])

    @property
    def parameters(self) -> int:
        """Numbers in all tensors of the file; a tied output head is not counted twice."""
        return sum(int(tensor.n_elements) for tensor in self.tensors.values())

    @property
    def encoding(self) -> str:
        """The number format that most parameters are stored in: `Q4_1`."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            name = tensor.tensor_type.name
            sizes[name] = sizes.get(name, 0) + int(tensor.n_elements)
        return max(sizes, key=lambda name: sizes[name])

    def number(self, key: str) -> Any:
        """A value of the architecture's own: `number("block_count")`; None: the file has none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def token_id(self, name: str) -> int | None:
        """The id of a special token of the file, `eos`; None: it names none."""
        found = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return found if type(found) is int and 0 <= found < len(self.tokens) else None


def read_gguf(path: Path) -> GgufFile:
    """Read the header and check it against the file's size and the vocabulary. Raises InputError."""
    _require_magic(path)
    if importlib.util.find_spec("gguf") is None:
        raise InputError(
            f"the package gguf is not installed, expected it to read {path.name}; install it with: pip install gguf"
        )
    try:
        reader = _reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in tensors.values()]
    except Exception as error:  # the reader has no class of its own, and indexes into a file that may end early
        raise InputError(
            f"{path} is truncated or damaged: its {path.stat().st_size} bytes do not hold what its header announces "
            f"({type(error).__name__}: {short(str(error))}); fetch it again"
        ) from None
    if not ends or max(ends) > path.stat().st_size:
        raise InputError(
            f"{path} is truncated: it has {path.stat().st_size} bytes, expected {max(ends, default=1)}; fetch it again"
        )
    file = GgufFile(path=path, metadata=metadata, tensors=tensors)
    _require_model(file)
    _require_numbers(file)
    _require_vocabulary(file)
    return file


def _reader(path: Path) -> Any:
    """A reader that stops at the end of the file: gguf's own reads nothing there, for as long as a damaged header
    says."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"byte {end} is after its end")
            return super()._get(offset, dtype, count, override_order)

    return Bounded(path)


def _require_magic(path: Path) -> None:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no ordinary file, expected a GGUF file; {REMEDY}")
        with path.open("rb") as opened:
            first = opened.read(64)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist, expected a GGUF file; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {REMEDY}") from None
    if first.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a pointer to a large file, expected the GGUF file itself; fetch it with git lfs")
    if not first.startswith(MAGIC):
        raise InputError(f"{path} is no GGUF file: it begins with {first[:4]!r}, expected {MAGIC!r}; {REMEDY}")


def _require_model(file: GgufFile) -> None:
    architecture, known = file.metadata.get("general.architecture"), gguf_architectures()
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"{file.path} is one of {file.metadata['split.count']} parts of a model, expected the whole; "
            "join them with llama-gguf-split --merge"
        )
    if not isinstance(architecture, str) or architecture not in known:
        raise InputError(
            f"{file.path} holds the architecture {short(architecture)}, expected one of {', '.join(sorted(known))}"
            f"{nearest(str(architecture), known)}; give a Hugging Face directory of the model instead"
        )
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"{file.path} has no token embedding (token_embd.weight), expected a language model; {REMEDY}")


def _require_numbers(file: GgufFile) -> None:
    """Where these are missing, Transformers would take its own defaults."""
    names = {f"{file.architecture}.{key}": file.number(key) for key in ("context_length", "block_count")}
    epsilons = [f"{file.architecture}.attention.{kind}_epsilon" for kind in ("layer_norm_rms", "layer_norm")]
    if not any(name in file.metadata for name in epsilons):
        names[epsilons[0]] = None
    for name, value in names.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{file.path} has {name} = {short(value)}, expected a positive number; convert it again")
    layers = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
    if layers != file.number("block_count"):
        raise InputError(
            f"{file.path} has tensors of {layers} layers, expected {file.number('block_count')} by its metadata; fetch "
            "or convert it again"
        )


def _require_vocabulary(file: GgufFile) -> None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError(f"{file.path} holds no vocabulary, expected tokenizer.ggml.tokens; {REMEDY}")
    if len(tokens) > file.rows:
        raise InputError(
            f"{file.path}: its vocabulary has {len(tokens)} tokens and its embedding {file.rows} rows, expected a row "
            "for each token; fetch or convert the file again"
        )
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is not None and len(types) != len(tokens):
        raise InputError(
            f"{file.path} has kinds of {len(types)} tokens for {len(tokens)} tokens, expected one each; convert the "
            "file again"
        )
    for name, value in file.metadata.items():
        if name.startswith("tokenizer.ggml.") and name.endswith("_token_id") and not 0 <= value < len(tokens):
            raise InputError(
                f"{file.path} has {name} = {short(value)}, expected an id of its {len(tokens)} tokens; convert it again"
            )
