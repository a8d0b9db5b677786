"""Why a labelling run has no labels, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

REMEDIES: Mapping[str, str] = {
    "low_mass": (
        "the judge puts little probability on the answers that it is asked for; {template} another judge (`solon check "
        "CONSTITUTION --judge MODEL` asks it the constitution's own tests)"
    ),
    "truncated": (
        "a question does not fit the judge's context: raise --set judging.max_model_len=N, or shorten the texts"
    ),
    "unparsable": (
        "the replies contain no answer: check the endpoint's address and model, and the replies in labels/ "
        "(column `detail`)"
    ),
    "refusal": "the judge declines to judge: name another one, or word the constitution's questions differently",
    "timeout": "the judge does not answer in time: raise timeout_s in the endpoint's file, or ask fewer at once",
    "transport_error": "the endpoint cannot be reached: check base_url in its file, and whether it is up",
    "engine_error": "the judge's engine fails: check the column `detail` of labels/",
    "abstain": "the judge gave no number: check the column `detail` of labels/",
    "budget_skip": "raise the limit and start the same command again",
}
"""Remedy by status of a label, for people."""


def _other_template(template: str) -> str:
    """A suggestion for a different template."""
    if template == "assistant":
        return "if it is a nursery model, try --set feedback.template=compact, else"
    return "its words are probably not those of feedback.template: try --set feedback.template=assistant, or"


def why_nothing(statuses: Counter[str], *, refusal: str, detail: str, template: str) -> str:
    """Cause and remedy, in one sentence, for a run without a valid label. refusal: from the budget; detail: of an
    invalid label; template: the configured one."""
    if refusal and not statuses.total():
        return f"nothing was labelled: {refusal}"
    if not statuses.total():
        return (
            "nothing was labelled: no principle of the constitution applies to any row; check `applies_if` of its "
            "principles and at the column `tags`"
        )
    status, count = statuses.most_common(1)[0]
    remedy = REMEDIES[status].format(template=_other_template(template))
    said = f" (`{' '.join(detail.split())[:120]}`)" if detail else ""
    return (
        f"nothing was labelled: {count} of {statuses.total()} labels are {status}{said}; {remedy}; then "
        "start again with another --out, as this one keeps what its judge said"
    )
