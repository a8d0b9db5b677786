"""A model's files without loading it: their location on this machine, and digests of their content."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

from solon.host.user_folders import hub_folder

WHOLE_BYTES = 32 << 20
"""A larger file is not hashed whole, but by its size, its first bytes (tensor names and shapes) and samples."""
SAMPLES = 256
SAMPLE_BYTES = 4096
TOKENIZER_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)


def local_directory(model: str) -> Path | None:
    """The directory of a model, or the snapshot of a hub name in this machine's cache; None when it is not here."""
    path = Path(model)
    if path.is_dir():
        return path
    if model.count("/") != 1 or path.exists():
        return None
    cache = hub_folder() / f"models--{model.replace('/', '--')}"
    try:
        revision = (cache / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = cache / "snapshots" / revision
    return snapshot if revision and snapshot.is_dir() else None


def model_digest(model: str) -> str | None:
    """Identifies configuration, tokenizer and weights; None when they are not on this machine.

    For a large weight file it hashes names and shapes of all tensors and evenly spaced samples of the values: training
    moves all of them, so different weights are detected, in milliseconds instead of minutes.
    """
    directory = local_directory(model)
    if directory is None:
        return None
    digest = hashlib.sha256(tokenizer_digest(directory).encode())
    # Members of an ensemble of reward models are in folders of it.
    for file in (*sorted(directory.glob("*.safetensors")), *sorted(directory.glob("member-*/*.safetensors"))):
        digest.update(str(file.relative_to(directory)).encode())
        digest.update(file_digest(file))
    return digest.hexdigest()[:16]


def tokenizer_digest(directory: Path) -> str:
    """Identifies everything in a model directory that affects how a conversation becomes token ids."""
    digest = hashlib.sha256()
    templates = sorted((directory / "additional_chat_templates").glob("*.jinja"))
    for file in (*(directory / name for name in TOKENIZER_FILES), *templates):
        if file.is_file():
            digest.update(file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> bytes:
    """sha256 of a file; for a large file, of parts of it."""
    size = path.stat().st_size
    digest = hashlib.sha256(struct.pack("<Q", size))
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return digest.digest()
        (header,) = struct.unpack("<Q", file.read(8))
        digest.update(file.read(min(header, WHOLE_BYTES)))
        for place in sampled(size):
            file.seek(place)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()


def sampled(size: int) -> Iterable[int]:
    """Offsets in a file of this size: evenly spaced, the last one at its end."""
    return ((size - SAMPLE_BYTES) * n // (SAMPLES - 1) for n in range(SAMPLES))
