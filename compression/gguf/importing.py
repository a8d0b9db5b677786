"""A GGUF file becomes a Hugging Face directory, whole or not at all.

report = import_gguf(Path("model.gguf"), Path("models/policy"), dtype="bfloat16")
policy = cached_import(Path("model.gguf"))        # once for each content, in the user's cache
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from compression.gguf.container import GgufFile, read_gguf
from compression.gguf.special_tokens import SpecialTokens, choose
from compression.gguf.tokenizer import begin_with, build_tokenizer
from solon.errors import InputError, loading, short
from solon.host.ballast import is_no_space
from solon.host.file_modes import widen
from solon.host.user_folders import cache_folder
from solon.host.whole_directory import alone, has_files, new_directory

Dtype = Literal["float32", "bfloat16"]
IMPORTER = 1
"""Changes when the same file is imported differently; part of a cached import's name."""
RECORD = "import.json"
"""Beside the weights: where they come from."""
BYTES = {"float32": 4, "bfloat16": 2}
MARGIN_BYTES = 64 * 2**20
"""Space for the tokenizer and the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was imported; written as `import.json`."""

    source: str
    sha256: str
    importer: int
    name: str
    """As the file names itself."""
    licence: str
    """As the file states it; empty: it states none."""
    architecture: str
    encoding: str
    """Of most weights in the file: `Q4_1`."""
    dtype: str
    """Of the weights in the directory."""
    layers: int
    parameters: int
    vocabulary: int
    context: int
    tied: bool
    """Whether the output head is the token embedding."""
    eos: str
    stops: tuple[int, ...]
    pad: str
    bos: str | None
    chat_template: bool
    remarks: tuple[str, ...]


def import_gguf(
    source: Path, target: Path, *, dtype: Dtype = "float32", force: bool = False, licence: str = "", sha256: str = ""
) -> ImportReport:
    """Write model, tokenizer, chat template and generation settings to `target`.

    force: an earlier import at `target` is replaced. licence: where the file states none. sha256: what the file must
    still have after it was read; empty: anything. Raises InputError when the file cannot be used or changes meanwhile,
    `target` is taken, or the disk has no room; `target` is then as before.
    """
    source, target = source.expanduser(), target.expanduser().absolute()
    require_free(target, force=force)
    if source.resolve().is_relative_to(target.resolve()):
        raise InputError(f"{target} holds the file {source.name} itself, expected another directory; name a new one")
    file = read_gguf(source)
    needed = file.parameters * BYTES[dtype] + MARGIN_BYTES
    try:
        _require_room(file, target, needed)
        with new_directory(target, replace=force) as scratch:
            with loading(f"the GGUF file {str(source)!r}", remedy="fetch or convert it again"):
                report = _write(file, scratch, dtype, licence)
            if sha256 and report.sha256 != sha256:
                raise InputError(f"{source} changed while it was imported; nothing was kept; import it again")
            return report
    except (OSError, InputError) as error:
        if is_no_space(error):
            raise InputError(_full(target, needed)) from None
        if isinstance(error, InputError):
            raise
        if isinstance(error, FileExistsError) and target.exists():
            raise InputError(
                f"{target} was made by another process meanwhile; use it, or name another directory"
            ) from None
        raise InputError(f"{target} cannot be written: {error}; choose another path") from None


def cached_import(
    source: Path,
    *,
    dtype: Dtype = "float32",
    cache: Path | None = None,
    tell: Callable[[ImportReport], None] | None = None,
) -> Path:
    """The import of a file in the user's cache; imported now where it is not there yet or damaged, by one process.

    tell: is called when it was imported now. Raises InputError.
    """
    source = source.expanduser()
    sha256 = _sha256(source)
    place = cached_place(sha256, dtype=dtype, cache=cache)
    if not is_whole(place):
        with alone(place):
            if not is_whole(place):
                report = import_gguf(source, place, dtype=dtype, force=True, sha256=sha256)
                if tell is not None:
                    tell(report)
    return place


def is_whole(place: Path) -> bool:
    """Whether an import is there with its record and weights: a cleaner of caches may leave some files of it."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return has_files(place, (RECORD, "config.json", "tokenizer.json")) and any(has_files(place, (w,)) for w in weights)


def cached_place(sha256: str, *, dtype: Dtype = "float32", cache: Path | None = None) -> Path:
    """Directory of a file's import in the cache, whether or not it is there."""
    return (cache or cache_folder()) / "imports" / f"{sha256[:32]}-{IMPORTER}-{dtype}"


def require_free(target: Path, *, force: bool) -> None:
    """Raises InputError when something is at `target` that an import may not replace."""
    try:
        taken, is_folder = target.exists() or target.is_symlink(), target.is_dir() and not target.is_symlink()
        is_import = is_folder and (target / RECORD).is_file()
        may_go = is_import or (is_folder and not any(target.iterdir()))
    except OSError as error:
        raise InputError(f"{short(str(target))} cannot be used: {error.strerror}; name another directory") from None
    if not taken:
        return
    if not force:
        raise InputError(f"{target} exists, expected a new directory; name another one, or replace it with --force")
    if not may_go:
        raise InputError(
            f"{target} is no earlier import (it has no {RECORD}), so --force does not replace it; name another one"
        )


def _write(file: GgufFile, scratch: Path, dtype: Dtype, licence: str) -> ImportReport:
    import torch

    from compression.gguf.weights import read_network
    from learners.core.loading import quiet

    tokenizer, tokens = _tokenizer(file)
    ids = {text: index for index, text in enumerate(file.tokens)}
    with quiet():
        model = read_network(file, getattr(torch, dtype), tokens, ids)
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    widen(scratch)
    report = ImportReport(
        source=file.path.name,
        sha256=_sha256(file.path),
        importer=IMPORTER,
        name=str(file.metadata.get("general.name") or file.path.stem),
        licence=file.licence or licence,
        architecture=model.config.architectures[0],
        encoding=file.encoding,
        dtype=dtype,
        layers=int(model.config.num_hidden_layers),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(file.tokens),
        context=int(model.config.max_position_embeddings),
        tied=bool(model.config.tie_word_embeddings),
        eos=tokens.eos,
        stops=tokens.stops,
        pad=tokens.pad,
        bos=tokens.bos,
        chat_template=bool(tokenizer.chat_template),
        remarks=tokens.remarks,
    )
    (scratch / RECORD).write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def _tokenizer(file: GgufFile) -> tuple[Any, SpecialTokens]:
    from transformers import PreTrainedTokenizerFast

    core = build_tokenizer(file)
    template = file.metadata.get("tokenizer.chat_template")
    context, unknown = file.number("context_length"), file.token_id("unknown")

    def tokenizer(**special: Any) -> Any:
        made = PreTrainedTokenizerFast(
            tokenizer_object=core,
            clean_up_tokenization_spaces=False,  # the vocabulary keeps its spaces
            model_max_length=int(context) if context else None,
            **special,
        )
        made.chat_template = template if isinstance(template, str) and template.strip() else None
        return made

    tokens = choose(file, tokenizer())
    if tokens.bos is not None and tokens.adds_bos:
        begin_with(core, tokens.bos, file.tokens.index(tokens.bos))
    special = {"eos_token": tokens.eos, "pad_token": tokens.pad}
    special |= {"bos_token": tokens.bos} if tokens.bos is not None else {}
    if unknown is not None and file.metadata.get("tokenizer.ggml.model") == "llama":
        special["unk_token"] = file.tokens[unknown]
    return tokenizer(**special), tokens


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist, expected a GGUF file; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a GGUF file") from None


def _require_room(file: GgufFile, target: Path, needed: int) -> None:
    folder = next(one for one in target.parents if one.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"importing {file.path.name} needs {_mib(needed)} in {folder}, expected at least that free, got "
            f"{_mib(free)}; free some space, or {_elsewhere(target)}"
        )


def _full(target: Path, needed: int) -> str:
    return (
        f"the disk of {target} became full during the import, which needs {_mib(needed)}; nothing was kept; free some "
        f"space, or {_elsewhere(target)}"
    )


def _elsewhere(target: Path) -> str:
    in_cache = target.is_relative_to(cache_folder())
    return "set XDG_CACHE_HOME to a folder with room" if in_cache else "choose another path"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
