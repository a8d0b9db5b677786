"""The keys of every JSON file of a run, its checkpoints and a labelled data set; docs/data.md is generated from them.


A key with dots denotes a nested object: `labels.total`. `*` stands for names that depend on the run.
"""

from __future__ import annotations

from collections.abc import Mapping

Keys = Mapping[str, str]

CONFIG: Keys = {
    "hash": "of the whole configuration, to compare runs; `--resume` does not read it: it compares the settings",
    "constitution_hash": "of the constitution's content",
    "solon": "version of Solon",
    "started": "when the last process began, seconds since the epoch",
    "origin.*": "of a submitted job: the place of its run file",
    "*": "every key of the run file with its value, defaults included",
}

SUMMARY: Keys = {
    "status": "`completed`, `stopped` or `failed`",
    "failure": "the cause, if the run failed",
    "finished": "local time at which it ended",
    "steps": "committed steps",
    "steps_moved": "those that moved the policy; the others had a gradient of exactly 0",
    "warnings": "sentences: steps that moved nothing, answers cut, too many groups dropped, a judge that decides by "
    "position; each with its remedy",
    "wall_s": "seconds of training, earlier processes included",
    "reward.first": "mean reward of the first tenth of the steps, nats; null where none was reported",
    "reward.last": "of the last tenth",
    "reward.relative": "whether rewards compare the answers to one prompt, so that their mean has no meaning",
    "reward.spread.first": "standard deviation of the rewards inside a group, mean of the first tenth, nats",
    "reward.spread.last": "of the last tenth",
    "labels.total": "labels made",
    "labels.valid": "those with a number",
    "labels.invalid": "those without",
    "labels.cache_hits": "questions that the exact cache answered",
    "labels.questions": "questions asked",
    "labels.invalid_by_status.*": "labels without a number, by status",
    "labels.prefix_hit_share": "judge prompt tokens that the engine's prefix cache served",
    "staleness.max": "step minus the oldest version in a group, the largest",
    "staleness.p50": "the median over groups",
    "staleness.bound": "what is allowed",
    "groups.admitted": "groups that were started",
    "groups.committed": "trained",
    "groups.dropped": "dropped, each with a reason in events.jsonl",
    "groups.held": "in flight when the run ended",
    "overlap.efficiency": "busy share of the binding lane",
    "overlap.binding_stage": "`generate`, `label` or `learn`",
    "overlap.busy.*": "busy share of each lane",
    "overlap.speedup_bound": "largest possible speed-up of the lanes over running one after the other",
    "weights.published": "policy versions published",
    "weights.attested": "versions that every engine has proven to hold",
    "weights.max_logprob_gap": "largest difference of canary log-probs between learner and engine, nats",
    "weights.mean_logprob_gap": "their mean absolute difference, of the version where it was largest, nats",
    "weights.pause_s_p50": "seconds that an engine paused for a version, median",
    "throughput.rollouts_per_s": "answers labelled",
    "throughput.labels_per_s": "valid labels",
    "throughput.tokens_per_s": "tokens generated",
    "faults.injected": "caused on purpose",
    "faults.recovered": "workers and runs that recovered",
    "faults.by_event.*": "events that report a fault or a recovery, counted",
    "eval.before.*": "share of held-out answers that obey each principle before training, and their `mean`",
    "eval.after.*": "the same after training",
    "prompts.*": "rows of the prompt file: how many were read, used, and left out, by reason",
    "heldout.*": "the same of the held-out prompts",
    "quarantine.total": "things refused",
    "quarantine.by_stage.*": "how many, by stage and reason",
    "watch.*": "audits, alarms, and where the auditing judge liked the policy best",
    "stopped_by.*": "what ended the run early, and the checkpoint to go back to",
    "end.cause": "why the run ended, in one sentence",
    "end.evidence": "the numbers behind it; null: there are none",
    "end.remedy": "the remedy; null: nothing",
    "end.resume": "the command that resumes the run; null: there is nothing to resume",
}

HELDOUT: Keys = {
    "prompt_id": "digest of the messages",
    "prompt": "the messages",
    "tags": "the prompt's tags",
    "answer": "the policy's answer",
    "scores.*": "1 or 0 by principle: whether the answer obeys it; missing where it does not apply or is not known",
    "score": "their mean; null: none is known",
    "labels": "a judge's labels: `principle_id`, `question_id`, `status`, `margin` in nats; empty without one",
}

GROUP: Keys = {
    "time": "when it was trained or dropped, seconds since the epoch",
    "ordinal": "the group in rollouts/",
    "attempt": "the attempt that ended; 0, plus one for every time that it was generated again",
    "outcome": "`trained` or `dropped`",
    "step": "the step that trained it; null: dropped",
    "reason": "why it was dropped; null: trained",
    "staleness": "versions between its oldest token and its step; null: dropped",
    "version": "oldest policy version in it; null: dropped before it was generated",
    "admitted": "when the ledger admitted it, seconds since the epoch; null: before a resume that does not know",
    "granted": "when an engine was given its last attempt; null: as above",
    "generated": "when its answers were complete; null: dropped before that, or as above",
    "taken": "when a judge took it; null: dropped before that, or as above",
    "labelled": "when its labels were complete; null: dropped, or as above",
    "engine": "the worker that generated it",
    "judge": "the worker that labelled it",
    "tokens": "generated tokens of its answers",
    "labels": "its labels",
    "invalid": "those of them without a number",
    "reward": "mean reward of its answers, nats; null: none",
}

AUDIT: Keys = {
    "time": "seconds since the epoch",
    "ordinal": "the group in rollouts/",
    "attempt": "the attempt at it",
    "index": "the answer in the group; the last line of an answer counts",
    "reward": "by the judge, nats; null: no valid label",
    "gold": "by the judge that audits, nats; null: no valid label",
    "margins.*": "the judge's margin by principle, nats, where answers are judged one by one",
    "gold_margins.*": "the same by the judge that audits",
}

HUMAN: Keys = {
    "label_id": "of this label",
    "parent_label_id": "the label that it is about",
    "source": "`human`",
    "verdict": "`yes`, `no`, `first`, `second`, `tie`: overrules; `flag`: it is wrong or unclear; `withdrawn`",
    "margin": "log-odds that follow from it, nats; null: none",
    "reason": "in the person's words",
    "who": "the person's name",
    "created_ns": "nanoseconds since the epoch",
    "ordinal": "the group in rollouts/",
    "attempt": "the attempt at it",
    "rollouts": "`index` of the answers judged",
    "task": "as in labels",
    "principle_id": "the principle of the constitution",
    "question_id": "which of its questions",
}

QUARANTINE: Keys = {
    "time": "seconds since the epoch",
    "stage": "`prompts`, `heldout`, `rows` or `labels`",
    "reason": "why it was refused",
    "count": "how often this reason had occurred at that time; its last row has the exact count",
    "line": "line or row of the input file",
    "file": "its name, where there are several",
    "ordinal": "the group in rollouts/",
    "excerpt": "its beginning and end",
}

STANDING: Keys = {
    "time": "when it was written, seconds since the epoch",
    "pid": "of the driver",
    "host": "of the driver",
    "still_s": "seconds since anything moved",
    "groups.*": "groups by state, and totals",
    "out": "groups checked out: ordinal, attempt, state, holder, seconds",
    "workers": "worker, state, number of replacements",
    "batch_groups": "groups in a batch",
}

TRACE: Keys = {
    "ph": "`X`: a span; `i`: a mark; `C`: the size of a pool; `M`: the name of a track",
    "pid": "always 1",
    "tid": "the worker's track; of a mark that concerns no worker the track `run`",
    "ts": "begin, microseconds since the epoch",
    "s": "of a mark: `t`, it belongs to its track",
    "dur": "microseconds",
    "cat": "lane: `generate`, `label`, `learn` or `publish`; of a mark `event`",
    "name": "what was done, or what happened",
    "args.*": "of a name: the worker; of a mark: the keys of its line in events.jsonl; of a pool: `workers`",
}

LABEL_CONFIG: Keys = {
    "judge": "the model, or the endpoint",
    "constitution": "its id",
    "constitution_hash": "of its content",
    "policy": "the model that wrote missing answers",
    "settings": "all of `--set`, defaults included",
}

LABEL_SUMMARY: Keys = {
    "status": "`completed`; `stopped`; `budget`: a limit was reached; `failed`: nothing was labelled",
    "failure": "why nothing was labelled, and the remedy",
    "budget": "which limit was reached",
    "rows.total": "rows that can be labelled",
    "rows.done": "labelled, by all starts",
    "rows.left": "not yet",
    "rows.skipped": "rows that cannot be labelled, see quarantine.jsonl",
    "preferences": "lines of preferences.jsonl",
    "contradicted": "pairs left out: under every principle the two orders favour different answers",
    "warnings": "list, where there is one: that the judge decides by position",
    "labels.total": "labels made",
    "labels.valid": "those with a number",
    "labels.invalid": "those without",
    "labels.by_status.*": "by status",
    "quality.tie_share": "ties among the valid",
    "quality.consistent_share": "both orders agree, among those asked in both",
    "quality.both_orders": "comparisons asked in both orders",
    "quality.by_position_share": "comparisons on which the place of an answer weighs more than its text",
    "quality.position_offset_mean": "how much the answer shown first is favoured, nats",
    "quality.first_answer_chosen_share": "preferences for the answer that stands first in the file",
    "quality.margin_mean": "mean absolute margin, nats",
    "quality.entropy_bits_mean": "mean uncertainty of a label",
    "quality.escalated_share": "labels that a cascade asked a further judge for",
    "cost.questions": "questions asked",
    "cost.cache_hits": "questions that a cache answered",
    "cost.prompt_tokens": "tokens of the questions",
    "cost.cached_token_share": "of them from the prefix cache",
    "cost.output_tokens": "tokens that judges wrote",
    "cost.usd": "money spent",
    "cost.usd_per_1k_valid": "for a thousand valid labels",
    "quarantine.total": "things refused",
    "quarantine.by_stage.*": "how many, by stage and reason",
    "this_start.rows": "rows labelled by the last start",
    "this_start.labels": "its labels",
    "this_start.seconds": "its time",
    "this_start.labels_per_s": "its rate",
    "this_start.usd": "its money",
}

PREFERENCES: Keys = {
    "prompt": "the conversation as messages `{role, content}`, system turns included",
    "chosen": "the better answer: one assistant message",
    "rejected": "the other one",
    "soft_label": "probability that the chosen answer is the better one, `sigmoid(judge_margin)`",
    "weight": "1 over the probability with which the row was selected; 1 where all were",
    "judge_margin": "how sure the judge is, all principles together, nats; never below 0",
    "label_id": "the first of `label_ids`",
    "label_ids": "labels that the preference follows from, in labels/*.parquet",
    "row_id": "`id` of the row in the input, or a digest of prompt and answers",
}

RATINGS: Keys = {
    "prompt": "the conversation as messages `{role, content}`, system turns included",
    "completion": "the answer: one assistant message",
    "good": "probability that the answer is good, `sigmoid(reward)`; for `pairwise` relative to the other answers",
    "reward": "all principles together, nats",
    "weight": "1 over the probability with which the row was selected; 1 where all were",
    "row_id": "`id` of the row in the input, or a digest of prompt and answers",
}

ANSWERS: Keys = {"id": "the row", "answers": "the policy's answers"}

SELECTION: Keys = {
    "item_id": "the row",
    "policy_id": "the rule of selection",
    "propensity": "probability of its selection",
    "selected": "whether it was",
    "weight": "1 over the propensity, bounded; 0 when it was not selected",
    "proxy_score": "the proxy's score, nats",
}

SPEND: Keys = {"schema": "of this file", "spent_usd": "money spent by all starts"}

MANIFEST: Keys = {"step": "committed steps", "config_hash": "of the configuration", "files.*": "sha256 by path"}
LEDGER_CUT: Keys = {
    "admitted": "groups begun",
    "committed": "groups trained",
    "dropped.*": "groups dropped, by reason",
    "entries": "groups held: ordinal, attempt, state, head, nbytes, failures, losses",
}
RUN_STATE: Keys = {
    "run_id": "name of the run",
    "constitution_hash": "of the constitution",
    "tally.*": "running totals",
    "scores.*": "held-out scores so far",
    "watch": "state of the watch; null without one",
    "stopped_by": "the event that stopped the run at this checkpoint; null: none",
    "*": "further digests that a resumed run must share",
}
RECORDED: Keys = {
    "files.*": "by name: `lines` of a file (of `quarantine.jsonl` those that no start writes again), `bytes`, `sha256`",
}
PART: Keys = {
    "part": "its path in the run directory",
    "rows": "rows in it",
    "bytes": "its size",
    "sha256": "its digest",
}
LEARNER_STATE: Keys = {
    "version": "committed steps",
    "seed": "of the run",
    "kl_coefficient": "as it stands",
    "kl_configured": "of the configuration",
    "*": "further counters",
}
CANARIES: Keys = {
    "token_ids": "sequences of ordinary tokens",
    "logprobs": "of their tokens, the first of each left out, nats: what the learner computed in float32",
    "noise": "mean effect of 16-bit arithmetic on them, nats",
}
FEEDBACK_HELD: Keys = {
    "ordinal": "the group",
    "attempt": "of it",
    "rewards_G": "reward of each answer, null: none",
    "labels": "its labels, keys as in labels/*.parquet",
}

RUN: Mapping[str, tuple[str, Keys | None]] = {
    "config.json": ("the resolved configuration, written before anything starts", CONFIG),
    "metrics.jsonl": ("one object per committed step; after a resume the last line of a step counts", None),
    "events.jsonl": ("faults, restarts, publications, alarms, dropped groups, as they occur", None),
    "groups.jsonl": ("a line per group when it is trained or dropped; after a resume its last line counts", GROUP),
    "parts.jsonl": ("a line for every part that was written; the last line of a part counts", PART),
    "rollouts/part-*.parquet": ("every answer that was generated", None),
    "labels/part-*.parquet": ("every label", None),
    "heldout-before.json": ("answers to the held-out prompts before training, with their scores", HELDOUT),
    "heldout-after.json": ("and after", HELDOUT),
    "audits.jsonl": ("answers that the watch had audited: rewards of both judges", AUDIT),
    "human-labels.jsonl": ("labels of people, from `solon watch`; never trained on", HUMAN),
    "quarantine.jsonl": ("refused input and the reasons; the first 100 rows of each reason", QUARANTINE),
    "report.html": ("the report, also of a stopped or failed run; needs no network", None),
    "live.json": ("the state of the run, every few seconds; read by `solon doctor`", STANDING),
    "trace.json": ("the activity of every worker over time, for ui.perfetto.dev", TRACE),
    "trace-earlier.json": ("the 64 MiB before that", TRACE),
    "summary.json": ("the outcome, also of a stopped or failed run", SUMMARY),
    ".ballast": (
        "space that is held on the disk: 16 MiB for the last rows, and room for the next checkpoint; gone when the run "
        "has ended",
        None,
    ),
    "checkpoints/LATEST": ("name of the last checkpoint", None),
    "checkpoints/aside/step-*": ("checkpoints that the run went back from; nothing reads them", None),
    "checkpoints/step-*/manifest.json": ("sha256 of every file of the checkpoint", MANIFEST),
    "checkpoints/step-*/policy/*": (
        "the policy: a Hugging Face directory, safetensors, in `learn.serving_dtype`: `auto` is float32 on a CPU, also "
        "for a policy that came in 16 bits, and the policy's own type on a GPU",
        None,
    ),
    "checkpoints/step-*/learner.safetensors": ("weights and moments of policy and critic, exact to the bit", None),
    "checkpoints/step-*/canaries.json": ("attests an engine that loads the policy", CANARIES),
    "checkpoints/step-*/learner.json": ("the learner's counters", LEARNER_STATE),
    "checkpoints/step-*/ledger.json": ("which groups are held, and where", LEDGER_CUT),
    "checkpoints/step-*/held.parquet": ("answers that are held: generated, not trained yet", None),
    "checkpoints/step-*/feedback.jsonl": ("labels of the held groups", FEEDBACK_HELD),
    "checkpoints/step-*/records.json": ("the extent of the files beside it at that moment", RECORDED),
    "checkpoints/step-*/run.json": ("totals and scores that a resumed run continues from", RUN_STATE),
}
"""Files of a run directory: the meaning of each, and its keys where it is JSON."""

LABELLED: Mapping[str, tuple[str, Keys | None]] = {
    "preferences.jsonl": (
        "the preferences, in TRL's columns; written again from the labels by every start",
        PREFERENCES,
    ),
    "ratings.jsonl": ("every answer with a reward; written again from the labels by every start", RATINGS),
    "labels/part-*.parquet": ("every label", None),
    "summary.json": ("number, confidence, consistency and cost of the labels", LABEL_SUMMARY),
    "config.json": ("what all labels of the directory share", LABEL_CONFIG),
    "quarantine.jsonl": ("rows and labels that were refused, and why", QUARANTINE),
    "answers.jsonl": ("answers that `--policy` wrote", ANSWERS),
    "selection.jsonl": ("which rows were selected, with what probability", SELECTION),
    "spend.json": ("money spent at an endpoint with a cap", SPEND),
    ".ballast": ("16 MiB that are released when the disk is full", None),
    "spend.json.lock": ("held by the process that spends", None),
    "verdicts.sqlite*": ("the exact cache of verdicts: a later start asks none of them again", None),
    "proxy/*": ("labels of `select.proxy`, a directory like this one", None),
}
"""Files of a directory that `solon label` writes."""
