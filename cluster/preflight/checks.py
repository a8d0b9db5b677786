"""Runs every check that is possible before an engine starts. No Ray, no torch: answers in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config.fitting import machine_gpus
from cluster.config.input_digests import Digests, input_digests
from cluster.config.pools import PoolSpec
from cluster.config.run_file import RunFile
from cluster.evaluate import PROGRAMS
from cluster.preflight.adapters import check_adapters
from cluster.preflight.devices import check_devices
from cluster.preflight.engines import check_engine, check_stops, on_cpu
from cluster.preflight.frames import unused_args
from cluster.preflight.judges import check_frame, check_labels, check_reward_model, check_room
from cluster.preflight.models import check_lora, check_model, remarks
from cluster.preflight.prompt_inputs import read_prompts
from cluster.preflight.ranks import check_ranks
from cluster.preflight.settings import check_programs_apply, check_store, remarks_on_settings
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.endpoint.config import read_key
from solon.feedback.judges.endpoint_judge import EndpointFile, refuse_written
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.judges.program_file import ProgramFile
from solon.feedback.prompting.templates import TEMPLATES, require_suited
from solon.feedback.reward import rule_of
from solon.feedback.trials.gold import GoldPair, load_gold
from solon.files.rows import Refused
from solon.models.facts import ModelFacts
from solon.records import Prompt
from solon.verdicts import Task

__all__ = ["Inputs", "check_inputs", "check_judge", "check_model"]

ENCODER = "feedback.semantic.model"
NARROW = {"BF16": "bfloat16", "F16": "float16"}
"""Types of two bytes, by their names in safetensors and in run files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The inputs of the run, checked."""

    constitution: Constitution
    prompts: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What could not be checked."""
    refused: Mapping[str, tuple[Refused, ...]] = field(default_factory=dict)
    """Rows of `prompts` and `heldout` that cannot be used."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many prompts were read and used, and why others were left out: `cluster.preflight.prompt_inputs.COUNTS`."""
    digests: Digests = field(default_factory=dict)
    """Of prompts, policy and judges."""
    canary: tuple[GoldPair, ...] = ()
    """Pairs that the watch puts to the judge repeatedly."""


def check_inputs(run: RunFile, *, fetch: bool = False, say: Callable[[str], None] | None = None) -> Inputs:
    """Read and check constitution, prompts and models. Raises InputError on the first that is unusable.

    fetch: the tokenizer of a policy on the hub may be fetched, to render the prompts. say: receives progress notes.
    """
    constitution = Constitution.load(run.constitution)
    constitution.for_task(run.feedback.task)
    rule_of(constitution, run.feedback)
    check_store(run.checkpoint_url)
    if run.watch.audit_judge:
        _check_watch(run, constitution)
    warnings, notes = _check_models(run, constitution)
    warnings += [*check_devices(run), *remarks_on_settings(run)]
    found = read_prompts(run, fetch=fetch, say=say)
    _check_principles_apply(constitution, run.prompts, found.prompts)
    constitution.require_arguments(run.feedback.task, found.prompts)
    if run.watch.audit_judge:
        constitution.require_arguments("pointwise", found.prompts)
    if run.evaluate.audit_judge:
        constitution.require_arguments("pointwise", found.heldout)
    if run.evaluate.evaluator in PROGRAMS:
        check_programs_apply(run.evaluate.evaluator, found.heldout)
    return Inputs(
        constitution=constitution,
        canary=load_gold(run.watch.canary, constitution) if run.watch.canary else (),
        prompts=found.prompts,
        heldout=found.heldout,
        warnings=(*found.warnings, *warnings),
        notes=(*notes, *found.notes),
        refused=found.refused,
        counts=found.counts,
        digests=input_digests(run, found.prompts, found.heldout),
    )


def _check_watch(run: RunFile, constitution: Constitution) -> None:
    """The gold judge must differ from those that reward, and takes yes/no questions."""
    gold = run.watch.audit_judge
    for judge in (run.judge, *run.feedback.panel):
        if gold == judge or (Path(gold).exists() and Path(judge).exists() and Path(gold).samefile(judge)):
            raise InputError(
                f"watch.audit_judge is {gold}, the judge itself, expected another model: a judge cannot tell that it "
                "is being fooled; name one of another family, larger if possible, or remove [watch]"
            )
    constitution.for_task("pointwise")


def check_judge_file(judge: str, template: str) -> str:
    """What a judge's file stands for, for people. Raises InputError when it cannot be used; calls nothing."""
    file = load_judge_file(judge)
    if isinstance(file, ProgramFile):
        return f"decides {', '.join(sorted(file.programs))} by programs: they were not called"
    read_key(file.endpoint)
    require_suited(TEMPLATES[template], None)
    return "is an endpoint: it was not called"


def check_judge(
    judge: str,
    template: str,
    *,
    trusted: bool = False,
    options: EngineOptions | None = None,
    feedback: FeedbackConfig | None = None,
    constitution: Constitution | None = None,
    chat: ChatSettings | None = None,
) -> None:
    """A model or an endpoint file. Raises InputError when it cannot serve as a judge.

    trusted: its own code may run. options: its engine on this machine. feedback and constitution: the questions that
    it will receive. chat: its chat format, where there are no options.
    """
    if EndpointFile.names(judge):
        check_judge_file(judge, template)
        if feedback is not None:
            refuse_written(feedback)
        return
    facts = check_model(judge, role="judge", trusted=trusted, template=options.chat_template if options else "")
    if facts is None:
        return
    if facts.gives_rewards:
        if options is not None:
            check_engine(facts, options, role="judge", section="judging", on_cpu=not machine_gpus())
            if feedback is not None:
                limits = {"length": options.max_model_len, "answer_tokens": 0}
                check_reward_model(facts, feedback, role="judge", backend=options.backend, **limits)
        return
    check_labels(facts, template, role="judge")
    check_frame(facts, template, chat or options or ChatSettings(), role="judge")
    if options is None:
        return
    check_engine(facts, options, role="judge", section="judging", on_cpu=not machine_gpus())
    if feedback is not None and constitution is not None:
        length = options.max_model_len
        check_room(
            facts,
            feedback,
            constitution,
            role="judge",
            length=length,
            task=feedback.task,
            answer_tokens=0,
            chat=options,
        )


def _widened(policy: ModelFacts, run: RunFile) -> list[str]:
    """Warn that the aligned model is stored in a wider type than the policy."""
    stored = {kind for tensor in policy.tensors.values() if (kind := NARROW.get(tensor.dtype))}
    wanted = run.learn.serving_dtype
    if len(stored) != 1 or not (wanted == "float32" or (wanted == "auto" and run.learn.num_gpus == 0)):
        return []
    (kind,) = stored
    return [
        f"the policy's weights are {kind}; the aligned model is written in float32, twice as large "
        f"(learn.serving_dtype = {wanted!r})"
        f'; learn.serving_dtype = "{kind}" keeps the type'
    ]


def _check_models(run: RunFile, constitution: Constitution) -> tuple[list[str], list[str]]:
    """Check every model that the run names: (warnings, notes). Raises InputError on the first that is unsuitable."""
    warnings, notes = [], []
    trusted = run.rollout.trust_remote_code
    template = run.rollout.chat_template
    policy = check_model(run.policy, role="policy", opt_in="rollout", trusted=trusted, kind="policy", template=template)
    if policy is None:
        notes.append(not_looked_up("policy", run.policy))
    else:
        warnings += remarks(policy, role="policy")
        pool = run.workers[run.policy_pool]
        check_ranks(policy, pool, role="policy")
        warnings += check_engine(
            policy, run.rollout, role="policy", section="rollout", on_cpu=on_cpu(run.rollout), ranks=pool.num_ranks
        )
        warnings += unused_args(policy, run.rollout, role="policy", section="rollout")
        check_stops(policy, run.rollout)
        if run.learn.lora is not None:
            check_lora(policy, run.learn.lora)
        warnings += check_adapters(policy, run)
        notes += _widened(policy, run)
    for role, model, task, pool in _judges(run):
        if EndpointFile.names(model):
            notes.append(f"{role} {model} {check_judge_file(model, run.feedback.template)}")
            continue
        engine, section = pool.engine, pool.section
        trusted, template = engine.trust_remote_code, engine.chat_template
        judge = check_model(model, role=role, trusted=trusted, template=template)
        if judge is None:
            notes.append(not_looked_up(role, model))
            continue
        warnings += remarks(judge, role=role)
        check_ranks(judge, pool, role=role, others=len(run.feedback.panel) if pool.role == "judge" else 0)
        on_host = not pool.placement.num_gpus
        warnings += check_engine(judge, engine, role=role, section=section, on_cpu=on_host, ranks=pool.num_ranks)
        warnings += _check_questions(judge, run, constitution, engine, role=role, task=task)
        warnings += unused_args(judge, engine, role=role, section=section)
    if (encoder := run.feedback.semantic.model) and check_model(encoder, role=ENCODER, kind="encoder") is None:
        notes.append(not_looked_up(ENCODER, encoder))
    return warnings, notes


def _check_questions(
    judge: ModelFacts, run: RunFile, constitution: Constitution, engine: EngineOptions, *, role: str, task: Task
) -> list[str]:
    """Raises InputError when a judge cannot answer the run's questions; returns warnings."""
    lengths = {"length": engine.max_model_len, "answer_tokens": run.rollout.max_tokens}
    if judge.gives_rewards:
        return check_reward_model(judge, run.feedback, role=role, backend=engine.backend, **lengths)
    check_labels(judge, run.feedback.template, role=role)
    check_frame(judge, run.feedback.template, engine, role=role)
    return check_room(judge, run.feedback, constitution, role=role, task=task, chat=engine, **lengths)


def _judges(run: RunFile) -> Iterator[tuple[str, str, Task, PoolSpec]]:
    """(role, model, task, pool) of every feedback model."""
    feedback = run.feedback
    (pool, *others) = [pool for pool in run.workers.values() if pool.role == "judge"]
    yield "judge", run.judge, feedback.task, pool
    yield from (("judge", other.model, feedback.task, other) for other in others)
    panel = (
        ("feedback.cascade.judge", (feedback.cascade.judge,)),
        ("feedback.jury.judges", feedback.jury.judges),
        ("feedback.select.proxy", (feedback.select.proxy,)),
    )
    yield from ((role, model, feedback.task, pool) for role, models in panel for model in models if model)
    yield from ((key, audit.model, "pointwise", audit) for key, audit in run.auditors.items())


def not_looked_up(role: str, model: str) -> str:
    """The note about a hub name."""
    offline = any(os.environ.get(name) in ("1", "true") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    then = "and cannot be fetched: HF_HUB_OFFLINE is set" if offline else "so it was not looked at; a run fetches it"
    return f"{role} {model} is not on this machine, {then}"


def _check_principles_apply(constitution: Constitution, path: str, prompts: Sequence[Prompt]) -> None:
    bare = [p for p in prompts if not any(rule.applies_if(p) for rule in constitution.principles)]
    if bare:
        example = bare[0].messages[-1].content[:60]
        raise InputError(
            f"{len(bare)} of {len(prompts)} prompts in {path} are under no principle of constitution "
            f"{constitution.id!r} (the first: {example!r}, tags {list(bare[0].tags)}), so no label could train them; "
            "remove them, tag them, or widen applies_if"
        )
