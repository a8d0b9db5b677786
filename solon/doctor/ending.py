"""How a run ended: the cause in one sentence, evidence, remedy, the command that resumes it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.doctor.resuming import resume_command, trained_nothing
from solon.feedback.watching.remedies import DRIFTS, SPOILING
from solon.ledger.drops import ENOUGH_GROUPS

KL_FACTOR = 2.0
KL_AT_LEAST = 0.05
"""The KL coefficient suggested for a run without one."""

_OTHER_SETTINGS = (
    "change the setting that the cause names, then train from the start under another --name: a plain --resume accepts "
    "no other settings of rollouts, judges and learning"
)
_OR_GO_BACK = "; --resume --from STEP accepts those of judges, feedback and learning rates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The final lines of a run."""

    cause: str
    evidence: str = ""
    remedy: str = ""
    resume: str = ""
    """A command to copy; empty: there is nothing to resume."""

    def as_json(self) -> dict[str, str | None]:
        """The same for summary.json."""
        return {key: getattr(self, key) or None for key in ("cause", "evidence", "remedy", "resume")}

    def lines(self) -> list[str]:
        """For a terminal, the command last."""
        named = (("why", self.cause), ("evidence", self.evidence), ("what to do", self.remedy), ("resume", self.resume))
        return [f"{name}: {text}" for name, text in named if text]


def ending(summary: Mapping[str, Any], config: Mapping[str, Any], path: Path, *, has_begun: bool = True) -> Ending:
    """The end of a finished run. config: of its `config.json`. has_begun: whether training began."""
    status, stopped = summary.get("status"), summary.get("stopped_by")
    stopped = stopped if isinstance(stopped, Mapping) else {}
    if status == "completed":
        return Ending(cause=f"all {summary.get('steps')} steps are trained")
    if status == "failed":
        return _of_failure(summary, config, path, has_begun=has_begun)
    if stopped.get("kind") in SPOILING:
        return _of_spoilt(summary, stopped, config, path)
    cause = str(stopped.get("message") or "it was asked to stop")
    if "action" in stopped:
        cause = f"alarm {stopped['kind']} at step {stopped.get('step')}: {cause}"
    evidence, remedy = str(stopped.get("evidence") or ""), str(stopped.get("remedy") or "")
    return Ending(cause=cause, evidence=evidence, remedy=remedy, resume=resume_command(path, config))


def changes_for(kind: str, config: Mapping[str, Any]) -> list[str]:
    """Settings, as for `--set`, that keep a run which goes back from stopping again in the same way."""
    learn = config.get("learn")
    now = learn.get("kl_coefficient") if isinstance(learn, Mapping) else None
    if kind not in DRIFTS or not isinstance(now, int | float):
        return []
    return [f"learn.kl_coefficient={max(KL_FACTOR * now, KL_AT_LEAST):g}"]


def _of_failure(summary: Mapping[str, Any], config: Mapping[str, Any], path: Path, *, has_begun: bool) -> Ending:
    kind, _, text = str(summary.get("failure") or "the summary does not say of what").partition(": ")
    cause = text if kind.isidentifier() and text else f"{kind}: {text}" if text else kind
    if trained_nothing(summary):
        return Ending(cause=cause, remedy=_OTHER_SETTINGS)
    if _dropped_too_many(summary, config):
        return Ending(cause=cause, remedy=_OTHER_SETTINGS + (_OR_GO_BACK if summary.get("steps") else ""))
    if kind == "InputError" and not has_begun:
        return Ending(cause=cause, remedy=f"correct it, then start again under another --name, or remove {path} first")
    return Ending(cause=cause, remedy="fix the cause, then resume", resume=resume_command(path, config))


def _dropped_too_many(summary: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the dropped groups failed the run: the same settings would drop them again."""
    groups, ledger = summary.get("groups"), config.get("ledger")
    if not isinstance(groups, Mapping) or not isinstance(ledger, Mapping):
        return False
    dropped, committed = int(groups.get("dropped") or 0), int(groups.get("committed") or 0)
    allowed = ledger.get("max_dropped_share")
    if dropped + committed < ENOUGH_GROUPS or not isinstance(allowed, int | float):
        return False
    return dropped > allowed * (dropped + committed)


def _of_spoilt(summary: Mapping[str, Any], stopped: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Ending:
    """An alarm that reports that the policy has become worse."""
    cause = f"alarm {stopped['kind']} at step {stopped.get('step')}: {stopped.get('message')}"
    evidence = str(stopped.get("evidence") or "")
    best = stopped.get("checkpoint")
    if not best:
        remedy = "no checkpoint is from before it: train again under another --name with another setting and a smaller "
        return Ending(cause=cause, evidence=evidence, remedy=f"{remedy}checkpoint_every")
    settings = changes_for(str(stopped["kind"]), config)
    best = f"`best` is {best}: of the checkpoints before the fault, gold liked it best{_gold(summary)}"
    remedy = f"{stopped.get('remedy')}; {best}"
    resume = resume_command(path, config, back_to="best", settings=settings)
    return Ending(cause=cause, evidence=evidence, remedy=remedy, resume=resume)


def _gold(summary: Mapping[str, Any]) -> str:
    """Where gold was best, and where it was last."""
    watch = summary.get("watch")
    best, last = (watch.get("best"), watch.get("last")) if isinstance(watch, Mapping) else (None, None)
    if not isinstance(best, Mapping) or not isinstance(last, Mapping):
        return ""
    steps = f"{best['first_step']} to {best['last_step']}"
    return f" (of all windows gold was best at steps {steps}: {best['gold']:.2f}; {last['gold']:.2f} at the end)"
