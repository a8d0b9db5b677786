"""Service times from published rates of a device, where nothing was measured.

Decoding is bound by memory: a step reads all weights once, and the cached keys and values of every running answer.
Prompts, verdicts and training are bound by arithmetic: 2 operations for each parameter and token forwards, 4 more
backwards, 2 more where activations are computed again. The shares of the peak that real programs reach are assumptions;
a plan that uses them lists them.

Embeddings are looked up, which costs no arithmetic; the head is computed for the tokens that are generated, asked for
or trained. Without CUDA graphs every pass over a layer takes at least the start of its operations. Engines on several
devices share reading and arithmetic, not those starts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cluster.config.run_file import RunFile
from cluster.plan.hardware import Device
from cluster.plan.memory import engine_model
from cluster.plan.rates import (
    RANKS_SHARE,
    JudgeRate,
    LearnerRate,
    LoadRate,
    Rates,
    RolloutRate,
    digest_of,
    models_of,
    ranks_speed,
    settings_of,
)
from learners.config import DIRECT
from solon.constitution.constitution import Constitution
from solon.engines.memory import adapter_elements, element_bytes
from solon.models.sizes import ModelSizes
from solon.records import Prompt

READING = 0.65
"""Share of the memory's bandwidth that decoding reaches."""
FORWARD = 0.45
"""Share of the arithmetic that prompts and verdicts reach."""
TRAINING = 0.35
"""The same of training."""
EAGER_S = 0.00035
"""Starting the operations of one layer without CUDA graphs."""
GRAPHS_S = 0.002
"""A decoding step beside the network: scheduling, sampling, log-probs."""
MOVED = 28
"""Bytes that an update moves for each trained element: weight, gradient and two moments read, all but one written."""
COPY = 4e9
"""Bytes a second of new weights from the learner through the object store into an engine, checks included."""
QUESTION_TOKENS = 60
"""Of a judge's question, beside prompt and answers."""
CHARACTERS = 4.0
"""In a token of a prompt."""
FRAME_TOKENS = 24
"""Of a chat template."""
ANSWER_SHARE = 0.5
"""Median answer, as a share of rollout.max_tokens; log-normal."""
ANSWER_SIGMA = 0.6
BOTH_ORDERS = 1.15
"""Questions for each pair: some are asked in both orders."""


def published_rates(
    run: RunFile,
    device: Device,
    key: str,
    sizes: dict[str, ModelSizes],
    quantised: dict[str, str],
    prompts: Sequence[Prompt],
    constitution: Constitution,
) -> Rates:
    """sizes, quantised: of each model by name; the latter as config.json says it, empty for full precision."""
    prompt = statistics.fmean(
        sum(len(message.content) for message in one.messages) / CHARACTERS + FRAME_TOKENS for one in prompts
    )
    answers = answer_lengths(run)
    answer = statistics.fmean(answers)
    rollout = _rollout(run, device, sizes[engine_model(run)], quantised[engine_model(run)], prompt, answer)
    judging = _judging(
        run, device, sizes[run.judge], quantised[run.judge], prompt, answer, len(constitution.principles)
    )
    return Rates(
        source="published",
        device=key,
        cores=0,
        machine=f"{device.name}: {device.source}",
        date="",
        versions={},
        policy=run.policy,
        judge=run.judge,
        models={role: digest_of(name) for role, name in models_of(run).items()},
        settings=settings_of(run),
        rollout=rollout,
        judging=judging,
        learn=_learning(run, device, sizes[run.policy], prompt, answer),
        publish=LoadRate(load_s=_published(run, sizes[run.policy]) / COPY, cores=1),
        driver_s=0.0,
        answer_tokens=answers,
        prompt_tokens=prompt,
        assumptions=assumptions(run),
    )


def assumptions(run: RunFile) -> tuple[str, ...]:
    """What the figures rest on, a sentence each."""
    lowest, highest = min(answer_lengths(run)), max(answer_lengths(run))
    return (
        f"decoding reaches {READING:.0%} of the memory's bandwidth, verdicts {FORWARD:.0%} and training {TRAINING:.0%} "
        "of the dense arithmetic",
        f"several ranks keep {RANKS_SHARE:.0%} of a rank's speed; new weights travel at {COPY / 1e9:g} GB/s",
        f"answers have {lowest} to {highest} tokens, half of them more than {ANSWER_SHARE:.0%} of rollout.max_tokens; "
        f"a prompt has {FRAME_TOKENS} tokens and one for every {CHARACTERS:g} characters",
        "kernels are those of the vendor's stack; nothing was run",
    )


def answer_lengths(run: RunFile, count: int = 200) -> tuple[int, ...]:
    """Quantiles of a log-normal distribution, cut at `rollout.max_tokens`."""
    longest = run.rollout.max_tokens
    normal = statistics.NormalDist(math.log(ANSWER_SHARE * longest), ANSWER_SIGMA)
    return tuple(max(1, min(longest, round(math.exp(normal.inv_cdf((index + 0.5) / count))))) for index in range(count))


def _rollout(
    run: RunFile, device: Device, sizes: ModelSizes, quantised: str, prompt: float, answer: float
) -> RolloutRate:
    options, size = run.rollout, run.rollout.group_size
    faster = ranks_speed(options.tensor_parallel)
    width = element_bytes(sizes, options, on_gpu=True)
    reads = device.gb_per_s * 1e9 * READING * faster
    operations = device.operations(quantised) * FORWARD * faster
    cached = sizes.cached_elements * width * (prompt + answer / 2)
    # The answers of a group share the cached prompt.
    prefill = 2 * layer_elements(sizes) * prompt / size / operations / answer
    return RolloutRate(
        step_s=sizes.weights(width) / reads + _starts(sizes, eager=options.enforce_eager),
        token_s=cached / reads + 2 * (layer_elements(sizes) + head_elements(sizes)) / operations + prefill,
        cores=0,
    )


def layer_elements(sizes: ModelSizes) -> int:
    """Those with which every token is multiplied: neither the embedding nor the head."""
    return max(0, sizes.parameters - sizes.vocabulary * sizes.hidden - sizes.head)


def head_elements(sizes: ModelSizes) -> int:
    """Those of the head, which may be the embedding."""
    return sizes.vocabulary * sizes.hidden


def _starts(sizes: ModelSizes, *, eager: bool) -> float:
    """Seconds of a pass that no arithmetic hides."""
    return EAGER_S * sizes.layers if eager else GRAPHS_S


def questions_of_group(run: RunFile, principles: int) -> float:
    """Questions that a judge is asked about one group."""
    feedback, size = run.feedback, run.rollout.group_size
    asked = min(principles, feedback.principles_per_group or principles)
    if feedback.task == "pairwise":
        return asked * size * feedback.comparisons * BOTH_ORDERS
    return float(asked * size)


def _judging(
    run: RunFile, device: Device, sizes: ModelSizes, quantised: str, prompt: float, answer: float, principles: int
) -> JudgeRate:
    options, feedback = run.judging, run.feedback
    questions = questions_of_group(run, principles)
    answers = 2 if feedback.task == "pairwise" else 1
    asked = min(principles, feedback.principles_per_group or principles)
    # The cache holds the principle and the prompt of a group; answers and question are computed each time.
    computed = questions * (answers * answer + QUESTION_TOKENS) + asked * (prompt + QUESTION_TOKENS)
    written = questions * (feedback.critique_tokens + feedback.thought_tokens)
    faster = ranks_speed(options.tensor_parallel)
    # A verdict is one token; the head is computed for it and for what is written before.
    elements = layer_elements(sizes) * (computed + written) + head_elements(sizes) * (questions + written)
    seconds = 2 * elements / (device.operations(quantised) * FORWARD * faster)
    width = element_bytes(sizes, options, on_gpu=True)
    step_s = sizes.weights(width) / (device.gb_per_s * 1e9 * READING * faster)
    step_s += _starts(sizes, eager=options.enforce_eager)
    return JudgeRate(call_s=step_s, group_s=seconds + written * step_s / options.max_running, cores=0)


def _learning(run: RunFile, device: Device, sizes: ModelSizes, prompt: float, answer: float) -> LearnerRate:
    section, size = run.learn, run.rollout.group_size
    direct = section.objective in DIRECT
    backward = 2 if section.lora is not None else 4
    again = 2 if section.gradient_checkpointing else 0
    passes = (2 + backward + again) * section.epochs
    passes += 0 if direct or section.bypass else 2
    passes += 2 if direct or section.kl_coefficient > 0 else 0
    critic = section.advantages == "gae" and not direct
    total = passes + ((2 + backward + again) * section.epochs + 2 if critic else 0)
    # A shared prompt is computed once for a group.
    per_token = 1 + prompt / answer / (size if section.share_prompts else 1)
    peak = 1e12 * device.float32 if section.dtype == "float32" else device.operations("")
    token_s = total * (layer_elements(sizes) + head_elements(sizes)) * per_token / (peak * TRAINING)
    # Of a microbatch: every pass over a layer starts its operations, however few tokens there are.
    starts_s = EAGER_S * sizes.layers * total / 2
    computed = run.ledger.batch_groups * size * answer * per_token
    trained = adapter_elements(sizes, section.lora.r) if section.lora is not None else sizes.parameters
    moved = MOVED * trained * (2 if critic else 1)
    token_s = max(token_s, starts_s * per_token / section.max_tokens_per_microbatch)
    alone_s = starts_s * math.ceil(computed / section.max_tokens_per_microbatch)
    unfilled_s = max(0.0, alone_s - token_s * computed / per_token)
    export_s = _published(run, sizes) / COPY
    return LearnerRate(
        step_s=moved / (device.gb_per_s * 1e9 * READING) + unfilled_s + export_s,
        token_s=token_s,
        cores=0,
        export_s=export_s,
        least_s=starts_s,
    )


def _published(run: RunFile, sizes: ModelSizes) -> float:
    """Bytes of a version of the policy: its adapters, or all its weights."""
    width = element_bytes(sizes, run.rollout, on_gpu=True)
    if (room := run.adapter_room) is not None:
        return float(adapter_elements(sizes, room.rank) * width)
    return float(sizes.weights(width))
