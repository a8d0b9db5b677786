"""Fewer bits for the weights of a judge: schemes, and the one function that writes a quantised copy.

    quantise_model(Path("judge"), Path("judge-int8"), "w8a8")
    quantise_model(Path("judge"), Path("judge-int4"), "w4a16-gptq", calibration=judge_sequences(...))

The output is a Hugging Face directory in the compressed-tensors format, which vLLM and Transformers load. It is built
in a folder beside its destination and renamed, so that a partial copy is never visible.

A one-token verdict is all prefill: arithmetic is the bottleneck, and eight-bit arithmetic (`w8a8`, `fp8`) makes a judge
faster. Four-bit weights (`w4a16`) are converted back to floating point before they are multiplied: they save memory,
and time only where a judge writes long critiques. Calibrate on real judge prompts, never on running text: GPTQ keeps
exact what its calibration data exercises.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from compression.llm_compressor import linear_layers, write_compressed
from compression.written import require_whole
from solon.engines.base import EngineConfig
from solon.engines.checkpoint import is_quantised, require_model
from solon.engines.model_files import copy_companions
from solon.errors import InputError, nearest
from solon.feedback.judges.identity import weights_digest

RECORD = "quantisation.json"
"""Beside the weights: a record of how they were quantised."""
PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors")
LEAST_SEQUENCES = 8
"""GPTQ measures how inputs vary; fewer sequences than this are not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How weights and inputs of the linear layers are stored and multiplied."""

    preset: str
    """Its name in compressed-tensors."""
    columns: int
    """The width of every layer must be a multiple of this."""
    rows: int
    """The height too must be a multiple of this: kernels work on blocks."""
    gptq: bool = False
    """Rounding errors are passed on to weights that are rounded later (arXiv:2210.17323); else each weight is rounded
    to the nearest value."""


SCHEMES: dict[str, Scheme] = {
    "w8a8": Scheme(preset="W8A8", columns=16, rows=16),
    "w8a8-gptq": Scheme(preset="W8A8", columns=16, rows=16, gptq=True),
    "w4a16": Scheme(preset="W4A16", columns=128, rows=32),
    "w4a16-gptq": Scheme(preset="W4A16", columns=128, rows=32, gptq=True),
    "fp8": Scheme(preset="FP8_DYNAMIC", columns=16, rows=16),
}
"""w8a8: int8 weights, one scale a row; int8 inputs, one scale a token. w4a16: int4 weights, one scale for 128 of
them; inputs stay. fp8: as w8a8, in eight-bit floating point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """The output of a quantisation; the content of `quantisation.json`."""

    scheme: str
    source: str
    source_digest: str
    calibration_digest: str
    """Of the calibration token ids; empty when the scheme uses none."""
    calibration_sequences: int
    layers: int
    """Linear layers that were quantised."""
    ignored: tuple[str, ...]
    weight_bytes: int
    source_weight_bytes: int
    versions: dict[str, str]
    note: str = ""


def quantise_model(
    source_dir: Path,
    target_dir: Path,
    scheme: str,
    *,
    calibration: Sequence[Sequence[int]] = (),
    ignore: Sequence[str] = ("lm_head",),
) -> Quantised:
    """Write a quantised copy of a model. Takes seconds for a tiny one, and memory for the whole of it.

    calibration: token ids of real judge prompts, for the GPTQ schemes; the others use no data.
    ignore: layers that stay unquantised, by name or `re:` pattern; the head is used for one token in a hundred.

    Raises InputError when the scheme is unknown, the model is quantised already, a layer does not divide, the target
    exists or the calibration is too small.
    """
    recipe = scheme_named(scheme)
    source, target = Path(source_dir), Path(target_dir)
    _require_inputs(source, target, scheme, calibration)
    sequences = calibration if recipe.gptq else ()
    _require_fit(source, scheme, ignore)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantising-") as scratch:
        written = Path(scratch) / "model"
        layers = write_compressed(
            source,
            written,
            preset=recipe.preset,
            algorithm="gptq" if recipe.gptq else "rtn",
            sequences=sequences,
            ignore=ignore,
        )
        require_whole(source, written, layers)
        copy_companions(source, written)
        record = Quantised(
            scheme=scheme,
            source=str(source),
            source_digest=weights_digest(source),
            calibration_digest=calibration_digest(sequences) if sequences else "",
            calibration_sequences=len(sequences),
            layers=layers,
            ignored=tuple(ignore),
            weight_bytes=weight_bytes(written),
            source_weight_bytes=weight_bytes(source),
            versions={package: version(package) for package in PACKAGES},
            note=fp8_note() if scheme == "fp8" else "",
        )
        (written / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        written.rename(target)
    return record


def scheme_named(name: str) -> Scheme:
    """Raises InputError for an unknown name."""
    if name not in SCHEMES:
        raise InputError(
            f"there is no quantisation scheme {name!r}, expected one of {', '.join(SCHEMES)}{nearest(name, SCHEMES)}"
        )
    return SCHEMES[name]


def calibration_digest(sequences: Sequence[Sequence[int]]) -> str:
    """sha256 of token ids, first 16 digits; it changes with any sequence, their order or their borders."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(4, "little"))
        digest.update(np.array(sequence, np.int32).tobytes())
    return digest.hexdigest()[:16]


def weight_bytes(directory: Path) -> int:
    """Bytes of the safetensors files of a model."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def fp8_note() -> str:
    """Whether this machine multiplies in fp8, as a sentence."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU here: vLLM computes fp8 by way of floats on a CPU, correct but slower than int8"
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if (major, minor) >= (8, 9):
        return f"{name} multiplies in fp8"
    return (
        f"{name} (compute capability {major}.{minor}) does not multiply in fp8, which takes 8.9: the weights are "
        "turned back, which saves memory and no time; take w8a8"
    )


def _require_inputs(source: Path, target: Path, scheme: str, calibration: Sequence[Sequence[int]]) -> None:
    config = EngineConfig(model=str(source))
    require_model(config)
    if is_quantised(config):
        raise InputError(f"{source} holds quantised weights, expected a model that is not; quantise its original")
    if not any(source.glob("*.safetensors")):
        raise InputError(f"{source} holds no *.safetensors, expected a model directory on this machine; download it")
    if target.exists():
        raise InputError(f"{target} exists, expected a new directory; remove it or choose another")
    if SCHEMES[scheme].gptq and len(calibration) < LEAST_SEQUENCES:
        raise InputError(
            f"{scheme} got {len(calibration)} calibration sequences, expected at least {LEAST_SEQUENCES} "
            f"(some hundred are better); give judge prompts, or take {scheme.removesuffix('-gptq')!r}, which needs none"
        )
    if any(len(sequence) == 0 for sequence in calibration):
        raise InputError("a calibration sequence is empty, expected token ids; leave it out")


def _require_fit(source: Path, scheme: str, ignore: Sequence[str]) -> None:
    """Raises InputError unless every layer divides. Reads only the shapes, before any weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    recipe = SCHEMES[scheme]
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, trust_remote_code=False))
    layers = list(linear_layers(skeleton, ignore))
    if any("expert" in name for name, _ in skeleton.named_parameters()):
        raise InputError(f"{source} is a mixture of experts, whose layers are not quantised here; serve it as it is")
    if not layers:
        raise InputError(
            f"{source} ({type(skeleton).__name__}) has no linear layers that are quantised here; serve it as it is"
        )
    wrong = [
        f"{name} is {layer.out_features} x {layer.in_features}"
        for name, layer in layers
        if layer.in_features % recipe.columns or layer.out_features % recipe.rows
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise InputError(
            f"{scheme} needs layers of a multiple of {recipe.rows} rows and {recipe.columns} columns, but {shown}; "
            + ("ignore those layers or take w8a8" if recipe.columns > 16 else "ignore those layers")
        )
