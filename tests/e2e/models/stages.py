"""The stages for every architecture, and the required accuracy. Each stage returns one number."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learners.build import Learner, build_learner
from learners.config import LearnConfig, LoraConfig
from solon.engines.base import EngineConfig
from solon.engines.runner import load_and_report
from solon.engines.same_numbers import require_same_numbers
from solon.engines.vllm_classes import classes_left_alone
from solon.pipeline.attestation import attest
from tests.e2e.models.subject import LENGTH, Subject, answered_groups, canary_gap, largest_gap, plain_logprobs

EXACT = 1e-5
TEMPERATURES = (0.7, 1.0, 1.3)
TURNS = [{"role": "user", "content": "w3 <|end|> w5"}]
Reader = Callable[[Path, list[tuple[int, ...]]], tuple[Any, list[list[float]]]]
LORA = LoraConfig(r=4, alpha=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One column of the matrix."""

    name: str
    title: str
    """The title of the column."""
    bound: float
    """The upper bound of the number."""
    measure: Callable[[Subject], float]


def packed_logprobs(subject: Subject) -> float:
    found, expected, _ = _packed(subject)
    return float((found - expected).abs().max())


def packed_gradients(subject: Subject) -> float:
    """Norm of the difference, relative."""
    import torch

    from tests.unit.learners.test_sharing import gradient

    found, expected, model = _packed(subject)
    weights = torch.linspace(-1, 1, len(found))
    plain = gradient(model, weights @ expected)
    return float((gradient(model, weights @ found) - plain).norm() / plain.norm())


def _packed(subject: Subject) -> tuple[Any, Any, Any]:
    """Log-probs of shared and unshared rows in one microbatch, of one plain pass per answer, and the model."""
    import torch

    from learners.core.batch import Batch
    from learners.core.policy import Policy
    from tests.unit.learners.test_sharing import TEMPERATURE, mixed_groups, one_by_one

    config = LearnConfig(kl_coefficient=0.0, advantages="group")
    policy = Policy(config, model=str(subject.path), temperature=TEMPERATURE)
    batch = Batch.of(mixed_groups())
    (microbatch,) = policy.layout.microbatches(batch, range(batch.num_rollouts), torch.device("cpu"))
    found = torch.zeros(batch.num_tokens).index_add(0, microbatch.index_M, policy.logprobs(microbatch))
    return found, one_by_one(policy.model, batch), policy.model


def _learner(subject: Subject, temperature: float, **settings: Any) -> Learner:
    config = LearnConfig(learning_rate=1e-2, minibatches=1, **settings)
    return build_learner(config, model=str(subject.path), temperature=temperature, seed=0)


def engine_against_learner(backend: str) -> Callable[[Subject], float]:
    """Largest difference between the log-probs that an answer was sampled with and the learner's, in nats."""

    def measure(subject: Subject) -> float:
        gaps = []
        for temperature in TEMPERATURES:
            learner = _learner(subject, temperature, advantages="group")
            engine = subject.engine(backend)
            if engine.version:
                engine.load_weights(learner.initial_weights())
            report, _ = learner.step(0, answered_groups(engine, subject.requests(temperature)))
            gaps.append(report.metrics["learn/mismatch_gap/max"])
        return max(gaps)

    return measure


def published(backend: str, lora: LoraConfig | None) -> Callable[[Subject], float]:
    """The same after a training step: its weights were published, attested as in a run, and sampled from."""

    def measure(subject: Subject) -> float:
        learner = _learner(subject, 0.7, lora=lora, advantages="gae" if lora is None else "group")
        engine = subject.engine(backend)
        engine.load_weights(learner.initial_weights())
        digest = engine.checksum()
        report, weights = learner.step(0, answered_groups(engine, subject.requests(0.7)))
        moved = canary_gap(engine, weights)
        assert report.moved
        assert moved > 1e-3, f"training moved the canaries by {moved}"
        receipt = attest(weights, load_and_report(engine, weights), last_checksum=digest)
        assert engine.checksum() != digest
        assert receipt.check.compared
        assert not receipt.check.unknown, f"not compared: {receipt.check.unknown}"
        report, _ = learner.step(1, answered_groups(engine, subject.requests(0.7)))
        return max(receipt.max_gap, report.metrics["learn/mismatch_gap/max"])

    return measure


def saved(backend: str, read: Reader) -> Callable[[Subject], float]:
    """A trained policy, saved and read by the library without Solon: same token ids, log-probs of the engine."""

    def measure(subject: Subject) -> float:
        from transformers import AutoTokenizer

        settings = json.loads((subject.path / "config.json").read_text())
        require_same_numbers(settings, backend=backend, max_model_len=LENGTH)
        learner = _learner(subject, 0.7, advantages="group")
        engine = subject.engine("transformers")
        engine.load_weights(learner.initial_weights())
        _, weights = learner.step(0, answered_groups(engine, subject.requests(0.7)))
        engine.load_weights(weights)
        expected = engine.sequence_logprobs(subject.sequences)
        subject.close()  # vLLM's shutdown also removes state that other engines of its process use
        with tempfile.TemporaryDirectory() as folder:
            learner.save(folder)
            tokenizer, logprobs = read(Path(folder) / "policy", subject.sequences)
        assert _ids(tokenizer) == _ids(AutoTokenizer.from_pretrained(subject.path)), "the tokenizer gives other ids"
        return largest_gap(logprobs, expected)

    return measure


def _ids(tokenizer: Any) -> list[int]:
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def _plain(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # The fused attention, its default, leaves out soft caps.
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def _stock_transformers(path: Path, sequences: list[tuple[int, ...]]) -> tuple[Any, list[list[float]]]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path), plain_logprobs(_plain(path), sequences)


def _stock_vllm(path: Path, sequences: list[tuple[int, ...]]) -> tuple[Any, list[list[float]]]:
    from solon.engines.vllm_build import prepare_process

    prepare_process(EngineConfig(model=str(path)))
    from vllm import LLM, SamplingParams

    # Once it has built a model, no one else in this process could use Transformers' classes.
    with classes_left_alone():
        llm = LLM(str(path), dtype="float32", max_model_len=LENGTH, enforce_eager=True, kv_cache_memory_bytes=1 << 25)
    try:
        prompts = [{"prompt_token_ids": list(ids)} for ids in sequences]
        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        outputs = llm.generate(prompts, asked, use_tqdm=False)
        logprobs = [
            [at[token].logprob for at, token in zip(one.prompt_logprobs[1:], one.prompt_token_ids[1:], strict=True)]
            for one in outputs
        ]
        return llm.get_tokenizer(), logprobs
    finally:
        llm.llm_engine.engine_core.shutdown()


def quantised(subject: Subject) -> float:
    """Mean difference of the int8 copy's log-probs from the model's, in nats."""
    from compression.quantise import quantise_model

    subject.close()
    expected = plain_logprobs(_plain(subject.path), subject.sequences)
    with tempfile.TemporaryDirectory() as folder:
        quantise_model(subject.path, Path(folder) / "int8", "w8a8")
        with closing(subject.engine_of(Path(folder) / "int8", "vllm")) as engine:
            found = engine.sequence_logprobs(subject.sequences)
    gap = float(np.mean(np.abs(np.concatenate(found) - np.concatenate(expected))))
    assert gap > 1e-4, "the copy is not quantised"
    return gap


def read_by(backend: str) -> Callable[[Subject], float]:
    """Log-probs that an engine reads, as a judge does, against a plain forward pass."""

    def measure(subject: Subject) -> float:
        engine = subject.engine(backend)
        return largest_gap(
            engine.sequence_logprobs(subject.sequences), plain_logprobs(_plain(subject.path), subject.sequences)
        )

    return measure


STAGES = (
    Stage(name="packed_logprobs", title="packed = plain, log-probs", bound=EXACT, measure=packed_logprobs),
    Stage(name="packed_gradients", title="packed = plain, gradients", bound=EXACT, measure=packed_gradients),
    *(
        Stage(name=f"{name}_{backend}", title=f"{title} ({shown})", bound=EXACT, measure=measure(backend))
        for name, title, measure in (
            ("read", "read = plain", read_by),
            ("sampled", "sampled = learner", engine_against_learner),
            ("published", "published, all weights", lambda backend: published(backend, None)),
            ("published_lora", "published, LoRA", lambda backend: published(backend, LORA)),
        )
        for backend, shown in (("vllm", "vLLM"), ("transformers", "Transformers"))
    ),
    Stage(
        name="saved_transformers",
        title="saved (Transformers)",
        bound=EXACT,
        measure=saved("transformers", _stock_transformers),
    ),
    Stage(name="saved_vllm", title="saved (vLLM)", bound=EXACT, measure=saved("vllm", _stock_vllm)),
    Stage(name="quantised", title="int8 (vLLM)", bound=0.1, measure=quantised),
)
