"""Publication of adapters alone against merged weights: one learner, one vLLM engine each, on a random model.

Both publish the same adapters; a publication ends when the engine is attested. Decoding is greedy, `ANSWERS` answers
of `TOKENS` tokens together.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._harness import Row

RANK, ALPHA = 16, 32.0
HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 512, 1408, 8, 8192
ANSWERS, TOKENS, PROMPT = 16, 48, tuple(range(6, 38))


@dataclass(frozen=True, slots=True)
class Published:
    """One publication: bytes, seconds of both sides, and seconds of a token afterwards."""

    nbytes: int
    export_s: float
    pause_s: float
    token_s: float
    gap: float


class Side:
    """A learner that publishes in one way, and the engine of that way."""

    def __init__(self, path: Path, *, adapter_only: bool) -> None:
        from learners.config import LearnConfig, LoraConfig
        from learners.core.policy import Policy
        from learners.core.publish import Publisher
        from solon.engines.base import AdapterRoom, EngineConfig
        from solon.engines.build import build_engine

        config = LearnConfig(kl_coefficient=0.0, advantages="group", lora=LoraConfig(r=RANK, alpha=ALPHA))
        self._policy = Policy(config, model=str(path), temperature=1.0)
        self._publisher = Publisher(
            self._policy, model=str(path), dtype="float32", engines_in_float32=True, adapter_only=adapter_only
        )
        room = AdapterRoom(rank=RANK) if adapter_only else None
        options = EngineConfig(model=str(path), max_model_len=128, max_running=ANSWERS, kv_cache_gib=0.1, adapters=room)
        self.engine: Any = build_engine(options, name="adapter" if adapter_only else "merged")

    def publish(self, version: int) -> Published:
        import torch

        from solon.engines.runner import load_and_report
        from solon.pipeline.attestation import attest

        generator = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for name, parameter in self._policy.model.named_parameters():
                if ".lora_B." in name:
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        began = time.perf_counter()
        weights = self._publisher.weights(version)
        export_s = time.perf_counter() - began
        receipt = attest(weights, load_and_report(self.engine, weights), last_checksum=None)
        nbytes = sum(data.nbytes for chunk in weights.chunks for data in chunk)
        return Published(nbytes, export_s, receipt.pause_s, self._token_s(), receipt.max_gap)

    def _token_s(self) -> float:
        from solon.engines.base import Request

        began, written = time.perf_counter(), 0
        for number in range(ANSWERS):
            self.engine.add(Request(request_id=str(number), prompt_token_ids=PROMPT, max_tokens=TOKENS, seed=number))
        while self.engine.has_work():
            written += sum(len(completion.token_ids) for completion in self.engine.step())
        return (time.perf_counter() - began) / written


def adapter_rows(*, rounds: int) -> list[Row]:
    """Both ways in turns; medians over the rounds after the first."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_model(Path(folder) / "model")
        sides = {way: Side(path, adapter_only=way == "adapter") for way in ("adapter", "merged")}
        found: dict[str, list[Published]] = {way: [] for way in sides}
        for version in range(1, rounds + 2):
            for way, side in sides.items():
                found[way].append(side.publish(version))
        for side in sides.values():
            side.engine.close()

    def middle(way: str, key: str) -> float:
        return statistics.median(getattr(one, key) for one in found[way][1:])

    what = f"adapters of rank {RANK} alone (reference: merged): "
    gap = max(one.gap for one in found["adapter"])
    return [
        Row(what + "bytes of a version, MB", middle("adapter", "nbytes") / 1e6, middle("merged", "nbytes") / 1e6),
        Row(what + "learner, s", middle("adapter", "export_s"), middle("merged", "export_s")),
        Row(what + "engine, loading and attestation, s", middle("adapter", "pause_s"), middle("merged", "pause_s")),
        Row(what + "a token afterwards, ms", 1e3 * middle("adapter", "token_s"), 1e3 * middle("merged", "token_s")),
        Row("largest canary gap of an adapter, nats", gap, goal="<= 1e-4"),
    ]


def make_model(path: Path) -> Path:
    """A random decoder that publishes tens of megabytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.models import WORDS, make_tokenizer

    tokenizer = make_tokenizer(list(WORDS))
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=HIDDEN // 8,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
