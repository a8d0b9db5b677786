"""The remedy for each kind of alarm, and whether the policy itself has become worse. Pure; imports nothing heavy."""

from __future__ import annotations

SPOILING = ("gold_falls", "past_peak", "collapse", "principle_lost", "canary")
"""Kinds of alarm after which the last checkpoint holds a worse policy than an earlier one, or one trained by another
judge: a run stopped by such an alarm is resumed from an earlier checkpoint."""
DRIFTS = ("gold_falls", "past_peak", "collapse", "principle_lost")
"""Kinds that recur when the run is resumed with the same settings."""
LOSSES = ("audit_lost", "audit_behind", "canary_lost", "watch_failed")
"""Kinds after which a part of the run is no longer watched."""

_WEIGHS = "more learn.kl_coefficient keeps the policy nearer to the reference"
_REMEDIES = {
    "gold_falls": f"resume from the best checkpoint with another setting: {_WEIGHS}, another `judge` rewards other "
    "things",
    "past_peak": f"resume from the best checkpoint and train fewer steps, or with another setting: {_WEIGHS}",
    "near_peak": f"little is to be gained from here; end the run, or resume with another setting: {_WEIGHS}",
    "collapse": f"resume from the best checkpoint with another setting: {_WEIGHS}, a smaller learn.learning_rate and a "
    "larger learn.entropy_bonus keep its answers apart",
    "principle_lost": f"resume from the best checkpoint with another setting: {_WEIGHS}; in a new run give the "
    "principle more weight",
    "gap": "read answers of the last steps that the judge likes; measure the judge with `solon judges test`",
    "missing_gold": "check the auditing judge's labels in labels/: their status gives the reason",
    "canary": "give the judge back the weights, template and engine settings that the run began with, then resume from "
    "the best checkpoint",
    "canary_lost": "check the judges' logs in the Ray dashboard, then resume",
    "audit_lost": "check the auditing judge's log in the Ray dashboard, then resume: it is started again",
    "audit_behind": "lower watch.audit_share, or give the auditing judge more room, then resume",
    "watch_failed": "report it with this message; resume with watch.action = 'warn' to train without it",
}
_SYMPTOM = "read answers of the last steps in rollouts/ before the run goes further; `watch.action` acts on a collapse"


def remedy_of(kind: str) -> str:
    """The remedy for an alarm of this kind.

    >>> remedy_of("audit_behind")
    'lower watch.audit_share, or give the auditing judge more room, then resume'
    """
    return _SYMPTOM if kind.startswith("symptom/") else _REMEDIES.get(kind, "")
