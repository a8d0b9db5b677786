"""The meaning of every column of the Parquet files; docs/data.md is generated from it. Types are in
`solon.runs.tables`."""

from __future__ import annotations

from collections.abc import Mapping

ROLLOUTS: Mapping[str, str] = {
    "ordinal": "dispatch number of the group, unique in a run: all answers to one prompt, drawn together",
    "attempt": "0, plus one for every time that the group was generated again",
    "index": "place of this answer in its group, from 0",
    "prompt_id": "digest of the prompt's messages, the same in every run",
    "prompt": "the prompt as JSON: a list of `{role, content}`",
    "tags": "the prompt's tags, from the prompt file",
    "text": "the answer without special tokens, as judges read it",
    "thought": "a thinking model's text before the answer; judges do not see it",
    "is_cut": "the answer ended at the length limit, or inside a thought; judges are told",
    "shown": "the conversation as the policy saw it, as JSON, where its chat template changed old turns; else empty",
    "token_ids": "tokens of the answer as they were sampled, the end-of-turn token included",
    "logprobs": "log-probability of each token under the policy that sampled it, at the temperature of the run",
    "versions": "policy versions that wrote the answer, in order; more than one where weights changed midway",
    "version_tokens": "how many tokens each of `versions` wrote",
    "finish_reason": "`stop`: it ended by itself; `length`: at `rollout.max_tokens`; `abort`: it was interrupted",
    "created_ns": "when the row was made, nanoseconds since the epoch",
    "reward": "the result of its labels, in nats, before `learn.reward_clip`; null: no valid label, or none yet",
    "advantage": "mean over its trained tokens of the factor in the policy loss; null: not trained, or there is none",
    "step": "the step whose batch it was in; trained if `advantage` is not null; null: none (yet), dropped or left",
}

LABELS: Mapping[str, str] = {
    "label_id": "name of the label, unique among the labels of a directory",
    "schema_version": "of these columns",
    "created_ns": "when the row was made, nanoseconds since the epoch",
    "ordinal": "the group in `rollouts/`; in a labelled data set the line of the input file",
    "attempt": "the attempt at the group; 0 in a data set",
    "task": "`pairwise`, `pointwise`, `predicate` or `score`; null: no principle applies, the row has no label",
    "principle_id": "the principle of the constitution behind the question",
    "question_id": "which of its questions, where it has several (predicates); else empty",
    "rollouts": "`index` of the answers judged: one, or (first, second) of a comparison",
    "status": "`ok` and `tie` carry a number; else why there is none: `low_mass`, `truncated`, `timeout`, …",
    "valid": "whether the status is `ok` or `tie`",
    "margin": "calibrated log-odds of yes, or of the first answer over the second, position bias removed; a score's "
    "distance from the middle of the scale; null unless valid",
    "raw_margin": "the margin before calibration",
    "consistent": "comparison asked in both orders: whether both favour the same answer; else null",
    "position_offset": "comparison asked in both orders: how much the answer shown first is favoured, nats; else null",
    "mass": "probability that the judge put on the allowed labels; the smaller one of both orders",
    "reward": "reward of the first of `rollouts`, all labels of the group together; null: it has none",
    "prompt_digests": "sha256 of each question, in order",
    "prompt_tokens": "tokens of the questions",
    "cached_tokens": "those of them that the engine's prefix cache served",
    "output_tokens": "tokens that the judge wrote",
    "questions": "questions asked for this label",
    "cache_hits": "those of them that a cache of verdicts answered",
    "judge": "the judge behind the verdict, where several judges are asked",
    "level": "number of further judges that a cascade asked before this verdict",
    "source": "`judge`, `exact_cache`, `semantic_cache` or `proxy`",
    "propensity": "probability with which the judge was to be asked; below 1, the margin is doubly robust",
    "usd": "its cost at an endpoint with prices",
    "detail": "the error, or the judge's critique or thought, as text",
    "critique_tokens": "`feedback.critique_tokens` of the judge",
    "thought_tokens": "`feedback.thought_tokens` of the judge",
    "run_id": "name of the run, or of the directory of labels",
    "judge_id": "name of the first judge",
    "model": "its directory, hub name or endpoint model",
    "weights_digest": "of its weights and configuration",
    "quantization": "how its weights are quantised",
    "engine": "`vllm`, `transformers` or `openai`",
    "engine_version": "of that engine",
    "dtype": "the type in which its engine computes, never `auto`; `unknown` for an endpoint",
    "tokenizer_digest": "of its tokenizer",
    "template_id": "the fixed words around the question",
    "constitution_id": "`id` of the constitution",
    "constitution_hash": "of its content",
    "row_id": "data sets only: `id` of the row, or a digest of prompt and answers",
    "weight": "data sets only: 1 over the probability with which the row was selected; else 1",
}

HELD: Mapping[str, str] = {"prompt_token_ids": "tokens of the prompt as the engine was given them"}
"""Columns of a checkpoint's `held.parquet` in addition to those of rollouts, whose outcomes it lacks."""

COLUMNS: Mapping[str, Mapping[str, str]] = {"rollouts": ROLLOUTS, "labels": LABELS, "held": {**ROLLOUTS, **HELD}}
