"""Real publications of small random steps to a real vLLM engine, with a way to leave one of its tensors stale."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from learners.config import LearnConfig
from learners.core.policy import Policy
from learners.core.publish import Publisher
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.live_weights import PACKED
from solon.engines.runner import load_and_report
from solon.records import LoadReceipt, Weights
from tests.models import make_tokenizer

VOCABULARY = 512
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {"tie_word_embeddings": True, "sliding_window": 32, "query_pre_attn_scalar": 32},
    "gpt2": {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_positions": 256, "n_inner": 256},
    "gpt_neox": {"tie_word_embeddings": False},
}
"""Architectures that lay weights out differently: joined, tied, with norms of their own, transposed, reordered."""
LEARNING_RATE = 1e-5
LORA_RANK, LORA_SCALE = 16, 2.0
OLD_TOLERANCE = 0.25
"""What was tolerated in 16 bits before: so many nats for the largest canary difference."""


def make_tiny(path: Path, family: str) -> Path:
    """A random model whose predictions are sharp enough that rounding shows. `family`: of FAMILIES, or a model type."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 5, "pad_token_id": 0}
    if family != "gpt2":
        common |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        common |= {"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256}
    config = AutoConfig.for_model(family.removesuffix("-tied"), **common, **FAMILIES.get(family, {}))
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.1)
    network.save_pretrained(path)
    make_tokenizer([f"w{i}" for i in range(VOCABULARY - 6)]).save_pretrained(path)
    return path


def with_settings(path: Path, target: Path, **changes: Any) -> Path:
    """The same weights under a modified config.json."""
    target.mkdir()
    for file in path.iterdir():
        if file.name != "config.json" and file.is_file():
            (target / file.name).symlink_to(file.resolve())
    settings = json.loads((path / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | changes))
    return target


@dataclass(frozen=True, slots=True)
class Sent:
    """A version, the engine's report on it, and the values that the old rule would have compared."""

    weights: Weights
    receipt: LoadReceipt
    rounded: Any
    """The learner's canary log-probs in 16 bits."""

    def old_alarm(self, receipt: LoadReceipt) -> bool:
        """Whether the old rule would have stopped the run."""
        return float(np.abs(np.subtract(receipt.canary_logprobs, self.rounded)).max()) > OLD_TOLERANCE


class PublishedModel:
    """A learner's publisher and an engine, both of the model at `path`; `served`: the engine's, if it is another."""

    def __init__(self, path: Path, *, dtype: str, served: Path | None = None) -> None:
        config = LearnConfig(kl_coefficient=0.0, advantages="group")
        self.policy = Policy(config, model=str(path), temperature=1.0)
        self.dtype = dtype
        self.path = path
        self.publisher = Publisher(self.policy, model=str(path), dtype=dtype)
        options = EngineConfig(
            model=str(served or path), dtype=dtype, max_model_len=128, max_running=8, kv_cache_gib=0.05
        )
        self.engine: Any = build_engine(options, name=path.name)
        self.version = 0

    def publish(self) -> Sent:
        """The unchanged weights, under the next version."""
        import torch

        weights = self.publisher.weights(self.version)
        self.version += 1
        receipt = load_and_report(self.engine, weights)
        return Sent(weights, receipt, self.publisher.canary_logprobs(self.publisher.tensors(), torch.bfloat16))

    def again(self, sent: Sent) -> LoadReceipt:
        """The engine's current report, without loading anything."""
        canary = self.engine.sequence_logprobs(sent.weights.canary_token_ids)
        rows = tuple(tuple(row) for row in canary)
        return replace(sent.receipt, check=self.engine.check_weights(sent.weights), canary_logprobs=rows)

    def step(self, seed: int, *, lora: bool) -> None:
        """Moves the policy as Adam's first step does: every parameter, or every factor B of new LoRA adapters, by the
        learning rate."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.policy.base.named_parameters():
                shape = parameter.shape
                if not lora:
                    moved = LEARNING_RATE * torch.randn(shape, generator=generator).sign()
                    parameter += moved.to(parameter.device)
                elif parameter.ndim == 2 and (".layers." in name or ".h." in name):
                    b = LEARNING_RATE * torch.randn(shape[0], LORA_RANK, generator=generator).sign()
                    a = (2 * torch.rand(LORA_RANK, shape[1], generator=generator) - 1) / shape[1] ** 0.5
                    parameter += (LORA_SCALE * b @ a).to(parameter.device)

    def noise(self, sequences: int) -> tuple[Any, Any]:
        """Mean absolute differences from float32 of every one of so many random sequences: engine's, learner's."""
        import torch

        usable = sorted({token for canary in self.publisher.canaries for token in canary})
        low, high = min(usable), self.policy.vocabulary - 8
        drawn = np.random.default_rng(7).integers(low, high, (sequences, len(self.publisher.canaries[0])))
        probe = copy.copy(self.publisher)
        probe.canaries = tuple(tuple(int(token) for token in row) for row in drawn)
        exact, rounded = (probe.canary_logprobs(probe.tensors(), dtype) for dtype in (torch.float32, torch.bfloat16))
        served = self.engine.sequence_logprobs(probe.canaries)
        return tuple(np.abs(np.subtract(one, exact)).mean(1) for one in (served, rounded))  # type: ignore[return-value]

    # ---- stale tensors

    def held(self) -> dict[str, Any]:
        """Current values of every tensor that the engine computes with: packed copies by reference, others copied."""
        network = self._network()
        packed = {n + ".weight" + PACKED: m.cpu_linear for n, m in network.named_modules() if hasattr(m, "cpu_linear")}
        return packed | {n: p.detach().clone() for n, p in network.named_parameters() if p.numel()}

    def put(self, name: str, value: Any) -> None:
        """Make the engine compute with that value."""
        network = self._network()
        if name.endswith(PACKED):
            network.get_submodule(name.removesuffix(".weight" + PACKED)).cpu_linear = value
        else:
            dict(network.named_parameters())[name].data.copy_(value)

    def differ(self, name: str, one: Any, other: Any) -> bool:
        """Whether two values of a tensor differ: a step may be lost in rounding."""
        import torch

        if not name.endswith(PACKED):
            return not torch.equal(one, other)
        module = self._network().get_submodule(name.removesuffix(".weight" + PACKED))
        width = int(getattr(module, "input_size_per_partition", None) or module.weight.shape[-1])
        probe_KC = torch.eye(width, dtype=getattr(module, "params_dtype", module.weight.dtype))[:: max(1, width // 64)]
        return not torch.equal(one(probe_KC, module.weight, None), other(probe_KC, module.weight, None))

    def _network(self) -> Any:
        from solon.engines.vllm_weights import live_model

        return live_model(self.engine._core)

    def close(self) -> None:
        self.engine.close()
