"""Everything about a run that can be found wrong before an engine starts. No Ray, no torch: answers in a second."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.run_file import RunFile, looks_like_hub_name
from solon.constitution import Constitution
from solon.engines.openai_config import read_key
from solon.errors import InputError, short
from solon.feedback.asking.prompts import TEMPLATES, label_ids
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.reward import rule_of
from solon.feedback.trials.gold import GoldPair, load_gold
from solon.prompts import PromptFile, load_prompts
from solon.records import Prompt
from solon.rows import Refused

PICKLED = ("bin", "pt", "pth", "pkl", "pickle", "ckpt")
"""Endings of files that may run code when they are read; nothing here reads them."""
ROUNDING = 1e-6
"""Three times 0.1 CPU is a little more than 0.3 to a float."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the run reads, checked."""

    constitution: Constitution
    prompts: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    warnings: tuple[str, ...]
    refused: Mapping[str, tuple[Refused, ...]] = field(default_factory=dict)
    """Rows of `prompts` and `heldout` that cannot be used."""
    canary: tuple[GoldPair, ...] = ()
    """Pairs that the watch asks the judge again and again."""


def check_inputs(run: RunFile) -> Inputs:
    """Read and check constitution, prompts and models. Raises InputError on the first that cannot be used."""
    constitution = Constitution.load(run.constitution)
    constitution.for_task(run.feedback.task)
    rule_of(constitution, run.feedback)
    files = [load_prompts(run.prompts)]
    if run.evaluate.prompts:
        files.append(load_prompts(run.evaluate.prompts))
    _check_principles_apply(constitution, files[0])
    check_model(run.policy, role="policy", opt_in="rollout", trusted=run.rollout.trust_remote_code)
    trusted = run.judging.trust_remote_code
    for judge in (run.judge, *run.feedback.panel):
        check_judge(judge, run.feedback.template, trusted=trusted)
    if run.evaluate.audit_judge:
        check_model(run.evaluate.audit_judge, role="evaluate.audit_judge", trusted=trusted)
        _check_labels(run.evaluate.audit_judge, run.feedback.template, role="evaluate.audit_judge")
    if run.watch.audit_judge:
        _check_watch(run, constitution)
    return Inputs(
        constitution=constitution,
        canary=load_gold(run.watch.canary, constitution) if run.watch.canary else (),
        prompts=files[0].prompts,
        heldout=files[1].prompts[: run.evaluate.max_prompts] if len(files) > 1 else (),
        warnings=tuple(warning for file in files if (warning := file.warning())),
        refused={stage: file.refused() for stage, file in zip(("prompts", "heldout"), files, strict=False)},
    )


def _check_watch(run: RunFile, constitution: Constitution) -> None:
    """Gold must be somebody else than those who reward, and is asked yes/no."""
    gold = run.watch.audit_judge
    for judge in (run.judge, *run.feedback.panel):
        if gold == judge or (Path(gold).exists() and Path(judge).exists() and Path(gold).samefile(judge)):
            raise InputError(
                f"watch.audit_judge is {gold}, the judge itself, expected another model: a judge cannot tell that it "
                "is being fooled; name one of another family, larger if possible, or remove [watch]"
            )
    constitution.for_task("pointwise")
    check_model(gold, role="watch.audit_judge", trusted=run.judging.trust_remote_code)
    _check_labels(gold, run.feedback.template, role="watch.audit_judge")


def check_judge(judge: str, template: str, *, trusted: bool = False) -> None:
    """A model or an endpoint file. Raises InputError when it cannot judge. trusted: its own code may run."""
    if EndpointFile.names(judge):
        read_key(EndpointFile.load(judge).endpoint)
        return
    check_model(judge, role="judge", trusted=trusted)
    _check_labels(judge, template, role="judge")


def check_model(model: str, *, role: str, opt_in: str = "judging", trusted: bool = False) -> None:
    """A Hugging Face directory with everything in it, or a hub name. Raises InputError.

    opt_in: section of the setting by which a person lets a model bring code; trusted: whether it is set.
    """
    path = Path(model)
    if not path.is_dir():
        if looks_like_hub_name(model) and not path.exists():
            return  # fetched, or refused, when the engine loads it
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(
            f"{role} model {model} {found}; expected a Hugging Face directory or a hub name like org/model"
        )
    config = _read_json(path / "config.json", role, model)
    if "architectures" not in config and "model_type" not in config:
        raise InputError(f"{role} model {model}: config.json names no architecture; is it a model directory?")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for ending in PICKLED for p in path.glob(f"*.{ending}"))
        hint = f" (only {short(pickled)}, which may run code when read: convert it to safetensors)" if pickled else ""
        raise InputError(f"{role} model {model} has no *.safetensors file{hint}")
    tokenizer = _read_json(path / "tokenizer_config.json", role, model)
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if content.get("auto_map") and not trusted:
            raise InputError(
                f"{role} model {model} brings code of its own (`auto_map` in {name}), which is not run unless asked "
                f"for; if the library knows the architecture, remove `auto_map`; if not, and you have read the code, "
                f"set {opt_in}.trust_remote_code = true"
            )
    if not tokenizer.get("chat_template") and not (path / "chat_template.jinja").exists():
        raise InputError(
            f"{role} model {model} has no chat template in tokenizer_config.json or chat_template.jinja; use a chat "
            "model or add one"
        )


def check_cluster(run: RunFile, resources: dict[str, float]) -> None:
    """Whether a cluster can hold the run's actors. Raises InputError naming what to lower."""
    wanted = {
        f"{run.rollout.num_actors} x rollout": run.rollout.num_gpus * run.rollout.num_actors,
        f"{run.num_judges} x judging": run.judging.num_gpus * run.num_judges,
        "learn": run.learn.num_gpus,
    }
    have = resources.get("GPU", 0.0)
    if run.gpus > have + ROUNDING:
        parts = ", ".join(f"{role} {gpus:g}" for role, gpus in wanted.items() if gpus)
        raise InputError(
            f"the run needs {run.gpus:g} GPU(s) ({parts}), the cluster has {have:g}; lower num_gpus or num_actors in "
            "[rollout], [judging] and [learn], or join a larger cluster"
        )
    if run.cpus > resources.get("CPU", 0.0) + ROUNDING:
        raise InputError(
            f"the run needs {run.cpus:g} CPU(s), the cluster has {resources.get('CPU', 0.0):g}; lower num_cpus in "
            "[rollout], [judging] and [learn], or join a larger cluster"
        )


def _check_principles_apply(constitution: Constitution, file: PromptFile) -> None:
    bare = [p for p in file.prompts if not any(rule.applies_if(p) for rule in constitution.principles)]
    if bare:
        example = bare[0].messages[-1].content[:60]
        raise InputError(
            f"{len(bare)} of {len(file.prompts)} prompts in {file.path} are under no principle of constitution "
            f"{constitution.id!r} (the first: {example!r}, tags {list(bare[0].tags)}), so no label could train them; "
            "remove them, tag them, or widen applies_if"
        )


class _FastEncoder:
    """The tokenizer file alone, without the seconds that importing transformers costs."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))

    def encode(self, text: str, *, is_data: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def chat_frame(self) -> tuple[list[int], list[int]]:
        return [], []


def _check_labels(judge: str, template: str, *, role: str) -> None:
    file = Path(judge) / "tokenizer.json"
    if not file.exists():
        return  # a hub name, or a slow tokenizer: checked when the judge starts
    chosen = TEMPLATES[template]
    try:
        encoder = _FastEncoder(file)
    except Exception as error:  # the library has no narrower one
        raise InputError(f"{role} model {judge}: tokenizer.json cannot be read: {error}; fetch it again") from None
    for labels in (chosen.pair_labels, chosen.bool_labels):
        try:
            label_ids(encoder, chosen.prefill, labels)
        except InputError as error:
            raise InputError(f"{role} model {judge}: {error}") from None


def _read_json(path: Path, role: str, model: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{role} model {model} has no {path.name}; expected a Hugging Face directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{role} model {model}: {path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{role} model {model}: {path.name} holds a {type(value).__name__}, expected an object")
    return value
