"""Whether the files of a compressed model are whole: every layer has its scale, the head is tied as in the original,
and a model that loads them reads every key and misses none."""

from __future__ import annotations

import json
from pathlib import Path

from compression.loading import model_class, quiet
from solon.errors import RunFailedError

HEADS = ("lm_head.weight", "embed_out.weight")


def require_whole(source: Path, written: Path, layers: int) -> None:
    """Raises RunFailedError when the files do not hold every layer in its quantised form, hold pickled weights, have a
    head that is tied where the original's is not or the other way round, or hold a key that is not read or lack one."""
    names = _names(written)
    found = sum(name.endswith(".weight_scale") for name in names)
    settings = json.loads((written / "config.json").read_text(encoding="utf-8"))
    if found != layers or "quantization_config" not in settings:
        raise RunFailedError(f"quantising wrote {found} layers with a scale, expected {layers}; nothing was kept")
    _require_tied_alike(source, written, names)
    _require_read(written)


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            names += tensors.keys()
    return names


def _require_tied_alike(source: Path, written: Path, names: list[str]) -> None:
    heads = [name for name in HEADS if name in names]
    was, now = _is_tied(source), _is_tied(written)
    if now and heads:
        raise RunFailedError(
            f"quantising wrote a head of its own ({heads[0]}) and a config that says tied, expected one of the two; "
            "nothing was kept, try another algorithm"
        )
    if was and not now:
        raise RunFailedError(
            "quantising untied the head: the config says untied, expected tied as in the original; nothing was kept, "
            "try another algorithm"
        )


def _is_tied(folder: Path) -> bool:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return bool(getattr(config, "tie_word_embeddings", False))


def _require_read(written: Path) -> None:
    with quiet():
        _, report = model_class(written).from_pretrained(
            written, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        said = "; ".join(
            f"{len(some)} {kind.removesuffix('_keys')}, such as {some[0]}" for kind, some in wrong.items() if some
        )
        raise RunFailedError(
            f"the written model is not read as it was written, got keys: {said}; expected each to be read; nothing was "
            "kept, try another algorithm"
        )
