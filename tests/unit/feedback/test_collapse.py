"""A policy that collapses, and principles that are lost: seen by the watch and acted on like any other alarm."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.principles import LostPrinciple, PrincipleDrift
from solon.feedback.watching.symptom_drift import Change, collapses
from solon.feedback.watching.symptoms import symptoms
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_config import Action, WatchConfig
from solon.feedback.watching.watch_state import WatchState
from solon.files.json_text import json_text
from solon.records import Feedback, Group, Label
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group
from tests.unit.feedback.test_symptoms import make_sample

GROUP = 16
WORDS = ["fox", "sky", "song", "tree", "stone", "river", "cloud", "bird", "moon", "fire", "rain", "leaf", "wolf", "sea"]


def varied(step: int) -> list[str]:
    """Answers that are different, of about eight words."""
    rng = np.random.default_rng(step)
    return [" ".join(rng.choice(WORDS, 8)) for _ in range(GROUP)]


def gold_of(group: Group, obeys: dict[str, float], step: int) -> Feedback:
    """Feedback in which a principle is obeyed by this share of the answers."""
    labels = tuple(
        Label(
            task="pointwise",
            principle_id=name,
            rollouts=(index,),
            verdict=Verdict(status=Status.OK, margin=1.0 if (index + step) % GROUP < share * GROUP else -1.0),
        )
        for name, share in obeys.items()
        for index in range(len(group.rollouts))
    )
    rewards = tuple(0.5 + 0.01 * index for index in range(len(group.rollouts)))
    return Feedback(ordinal=group.ordinal, attempt=0, rewards_G=rewards, labels=labels)


def emit(watch: Watch, step: int, texts: Sequence[str], **obeys: float) -> list[Alarm]:
    group = make_group(step, texts=texts, version=step)
    feedback = Feedback(ordinal=step, attempt=0, rewards_G=(0.5,) * GROUP, labels=())
    watch.observe(group, feedback)
    watch.audit(group, range(GROUP), feedback, gold_of(group, obeys, step))
    return watch.poll(step)


def make_watch(action: Action = "stop") -> Watch:
    return Watch(WatchConfig(audit_share=1.0, audit_window=GROUP, symptom_answers=16, symptom_every=1, action=action))


COLLAPSED = {
    "all begin alike": [f"thank you , it {word} {word} {word} {word} {word}" for word in [*WORDS, "sun", "day"]],
    "all are the same": ["it is wrong to say so and that is it"] * GROUP,
    "one word": ["no"] * GROUP,
    "nothing": [""] * GROUP,
}


@pytest.mark.parametrize("action", ["warn", "raise_kl", "stop"])
@pytest.mark.parametrize("texts", COLLAPSED.values(), ids=COLLAPSED)
def test_a_policy_that_collapses_is_an_alarm_that_acts_with_evidence_and_remedy(texts: list[str], action: Action):
    watch = make_watch(action)
    assert [a for step in range(10) for a in emit(watch, step, varied(step)) if a.kind == "collapse"] == []
    found = [a for step in range(10, 20) for a in emit(watch, step, texts) if a.kind == "collapse"]
    (alarm,) = found
    assert (alarm.action, alarm.step) == (action, 11)  # two windows in a row
    assert alarm.message.startswith("the policy has collapsed: ")
    assert " -> " in alarm.evidence
    assert "learn.kl_coefficient" in alarm.remedy


def test_answers_that_began_alike_from_the_start_are_how_this_policy_speaks():
    texts = COLLAPSED["all begin alike"]
    watch = make_watch()
    assert [a.kind for step in range(20) for a in emit(watch, step, texts) if a.action != "warn"] == []


def test_a_policy_that_changes_within_bounds_has_not_collapsed():
    """Half the length, and as many again of the answers begin alike: symptoms, no collapse."""
    watch = make_watch()
    alarms = [a for step in range(10) for a in emit(watch, step, varied(step))]
    for step in range(10, 20):
        texts = [text if n % 3 else "thank you , " + text for n, text in enumerate(varied(step))]
        alarms += emit(watch, step, [" ".join(text.split()[:5]) for text in texts])
    assert {alarm.kind for alarm in alarms} == {"symptom/opening", "symptom/length"}


def test_limits_at_their_ends_turn_it_off():
    reference, now = symptoms(make_sample(*varied(0))), symptoms(make_sample(*COLLAPSED["one word"]))
    assert {change.name for change in collapses(reference, now, alike=0.9, part=0.2)} >= {"collapse/length"}
    assert collapses(reference, now, alike=1.0, part=0.0) == []


def test_evidence_names_no_value_that_the_first_windows_do_not_have():
    known = Change(name="collapse/opening", value=1.0, threshold=0.9, message="", was=0.25)
    assert known.evolution == "opening 0.25 -> 1"
    assert Change(name="margin_psi", value=0.835, threshold=0.2, message="").evolution == "margin_psi 0.835"


def test_a_principle_that_is_lost_acts_though_the_others_rise():
    watch = make_watch()
    alarms = [a for step in range(6) for a in emit(watch, step, varied(step), harmless=0.4, helpful=0.3)]
    assert alarms == []
    for step in range(6, 12):
        alarms += emit(watch, step, varied(step), harmless=0.0, helpful=0.9)
    (alarm,) = alarms
    assert (alarm.kind, alarm.action, alarm.step) == ("principle_lost", "stop", 7)
    assert "harmless" in alarm.message
    assert "helpful" not in alarm.message
    assert "harmless 38% -> 0% of 16 answers" in alarm.evidence or "harmless 44% -> 0%" in alarm.evidence
    assert watch.drain_metrics()["watch/gold_harmless/share"] == 0.0


def test_the_baseline_of_principles_survives_a_checkpoint():
    whole = make_watch()
    for step in range(7):
        emit(whole, step, varied(step), harmless=0.5 if step < 6 else 0.0)
    other = make_watch()
    other.restore(WatchState.from_json(json.loads(json_text(whole.state().to_json()))))
    assert [alarm.kind for alarm in emit(other, 7, varied(7), harmless=0.0)] == ["principle_lost"]


def test_shares_of_few_answers_and_answers_without_a_verdict_say_nothing():
    drift = PrincipleDrift(reference_windows=1, part=0.25)
    silent = Label(
        task="pointwise", principle_id="kind", rollouts=(0,), verdict=Verdict(status=Status.TIMEOUT, margin=None)
    )
    drift.observe(Feedback(ordinal=0, attempt=0, rewards_G=(None,), labels=(silent,)))
    assert drift.close() == ({}, [])
    for step in range(5):
        drift.observe(gold_of(make_group(step, texts=["a"] * 4), {"kind": 0.0}, step))
        assert drift.close()[1] == []


def test_chance_alone_loses_no_principle():
    """A thousand windows of a principle that ten percent of the answers obey, twenty of them in each."""
    rng = np.random.default_rng(0)
    drift = PrincipleDrift(reference_windows=3, part=0.2)
    lost: list[LostPrinciple] = []
    group = make_group(0, texts=["a"] * 20)
    for _ in range(1000):
        shares = (rng.random(20) < 0.1).astype(float)
        labels = tuple(
            Label(
                task="pointwise",
                principle_id="kind",
                rollouts=(n,),
                verdict=Verdict(status=Status.OK, margin=2.0 * share - 1.0),
            )
            for n, share in enumerate(shares)
        )
        drift.observe(Feedback(ordinal=0, attempt=0, rewards_G=(0.0,) * len(group.rollouts), labels=labels))
        lost += drift.close()[1]
    assert lost == []
