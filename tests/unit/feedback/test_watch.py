"""The watch: alarms from its inputs."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from solon.errors import InputError
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.canary import CanaryReading
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_config import CanaryConfig, WatchConfig
from solon.feedback.watching.watch_state import WatchState
from solon.files.json_text import json_text
from solon.records import Feedback
from tests.unit.fakes import make_group

GROUP = 16


def make_watch(**changes: Any) -> Watch:
    config = {"audit_share": 1.0, "audit_window": GROUP, "symptom_answers": 32, "symptom_every": 1} | changes
    return Watch(WatchConfig(**config))


def emit(watch: Watch, step: int, proxy: float, gold: float | None, *, text: str = "the sky is blue") -> list[Alarm]:
    """A step of one group whose rewards spread evenly around a mean, all of it audited."""
    spread = np.linspace(-0.1, 0.1, GROUP)
    group = make_group(step, texts=[f"{text} {n}" for n in range(GROUP)], version=step)
    rewards = Feedback(ordinal=step, attempt=0, rewards_G=tuple((proxy + spread).tolist()), labels=())
    found = (None,) * GROUP if gold is None else tuple((gold + spread).tolist())
    watch.observe(group, rewards)
    chosen = watch.chosen(step, 0, GROUP)
    watch.audit(group, chosen, rewards, Feedback(ordinal=step, attempt=0, rewards_G=found, labels=()))
    return watch.poll(step)


def make_reading(step: int, **changes: Any) -> CanaryReading:
    given: dict[str, Any] = {
        "accuracy": 0.9,
        "flips": 0.0,
        "largest_change": 0.0,
        "silent": 0.0,
        "flipped": (),
    }
    return CanaryReading(step=step, **(given | changes))


def test_a_run_whose_reward_and_gold_rise_together_is_left_alone():
    watch = make_watch()
    assert [alarm for step in range(40) for alarm in emit(watch, step, 0.05 * step, 0.05 * step)] == []
    assert watch.best is not None
    assert watch.best.first_step == 39


def test_a_reward_that_rises_while_gold_falls_is_acted_on_once_and_the_best_steps_are_named():
    watch = make_watch(action="stop")
    alarms = [alarm for step in range(10) for alarm in emit(watch, step, 0.1 * step, 0.1 * step)]
    assert alarms == []
    alarms = [alarm for step in range(10, 30) for alarm in emit(watch, step, 0.1 * step, 2.0 - 0.1 * step)]
    falls = [alarm for alarm in alarms if alarm.kind == "gold_falls"]
    assert len(falls) == 1
    assert (falls[0].action, falls[0].step < 18) == ("stop", True)
    assert "gold was best at steps 10 to 10" in falls[0].message
    assert {alarm.action for alarm in alarms if alarm.kind == "gap"} == {"warn"}


def test_an_alarm_that_cleared_is_raised_again():
    watch = make_watch()
    levels = [*(0.1 * n for n in range(6)), *(0.6 - 0.1 * n for n in range(8)), *(0.1 * n for n in range(8))]
    levels += [0.8 - 0.1 * n for n in range(8)]
    alarms = [a for step, gold in enumerate(levels) for a in emit(watch, step, 0.1 * step, gold)]
    assert len([a for a in alarms if a.kind == "gold_falls"]) == 2


def course(step: int) -> tuple[float, float, str]:
    """Reward, gold and text of a run that is fooled from step 10 on."""
    return 0.1 * step, min(0.1 * step, 2.0 - 0.1 * step), "the sky is blue" if step < 14 else "it is wrong to say"


def resumed(watch: Watch, **changes: Any) -> Watch:
    """Another watch that continues from the state in a checkpoint of this one."""
    text = json_text(watch.state().to_json())
    other = make_watch(**changes)
    other.restore(WatchState.from_json(json.loads(text)))
    return other


@pytest.mark.parametrize("cut", [0, 2, 6, 8, 10, 14, 18, 24])
def test_a_resumed_watch_raises_the_alarms_that_it_would_have_raised(cut: int):
    """A new one would take a policy that is astray already for the normal state of affairs."""
    whole, first = make_watch(action="stop"), make_watch(action="stop")
    said: list[Alarm] = []
    for step in range(30):
        whole.kl(step, 0.01 * step)
        said += emit(whole, step, *course(step)[:2], text=course(step)[2])
    found: list[Alarm] = []
    for step in range(30):
        if step == cut:
            first = resumed(first, action="stop")
        first.kl(step, 0.01 * step)
        found += emit(first, step, *course(step)[:2], text=course(step)[2])
    assert {"gold_falls", "gap", "symptom/refusal"} <= {alarm.kind for alarm in said}
    assert found == said
    assert first.windows == whole.windows
    assert first.best == whole.best


def test_an_alarm_not_reported_before_the_checkpoint_is_reported_after_it():
    watch = make_watch()
    watch.canary(make_reading(0))
    watch.canary(make_reading(50, flips=0.9))
    other = resumed(watch)
    other.canary(make_reading(100, flips=0.9))
    assert [alarm.kind for alarm in other.poll(100)] == ["canary"]


def test_a_state_of_another_version_is_refused_with_what_to_do():
    state = make_watch().state().to_json() | {"windows": [{"step": 1}]}
    with pytest.raises(InputError, match=r"windows\.0\..*resume with the version of Solon that wrote it"):
        WatchState.from_json(state)


def test_the_distance_is_the_root_of_the_mean_kl_of_the_windows_steps():
    watch = make_watch(audit_window=2 * GROUP)
    watch.kl(0, 1.0)
    watch.kl(1, 3.0)
    watch.kl(2, 100.0)
    watch.kl(1, math.nan)
    emit(watch, 0, 0.0, 0.0)
    emit(watch, 1, 0.0, 0.0)
    (window,) = watch.windows
    assert window.distance == pytest.approx(math.sqrt(2.0))


def test_without_a_reference_there_is_no_distance_and_no_peak():
    watch = make_watch()
    for step in range(12):
        emit(watch, step, 0.1 * step, 0.1 * step)
    metrics = watch.drain_metrics()
    assert "watch/distance/mean" not in metrics
    assert "watch/peak/mean" not in metrics


def test_metrics_come_once_and_are_finite():
    watch = make_watch()
    for step in range(8):
        watch.kl(step, 0.1 + step)
        emit(watch, step, 0.1 * step, 0.05 * step)
    metrics = watch.drain_metrics()
    assert metrics["watch/proxy/mean"] == pytest.approx(0.7)
    assert metrics["watch/gold/mean"] == pytest.approx(0.35)
    assert metrics["watch/gold_slope/mean"] == pytest.approx(0.05)
    assert metrics["watch/distance/mean"] == pytest.approx(math.sqrt(7.1))
    assert metrics["watch/audited/sum"] == GROUP
    assert {"watch/gap_cusum/last", "symptom/length/mean"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert watch.drain_metrics() == {}


def test_gold_that_often_says_nothing_is_an_alarm_and_never_a_number():
    watch = make_watch(audit_window=2 * GROUP)
    emit(watch, 0, 1.0, 1.0)
    emit(watch, 1, 9.0, None)
    (alarm,) = emit(watch, 2, 1.0, 1.0)
    assert (alarm.kind, alarm.value) == ("missing_gold", pytest.approx(1 / 3))
    assert [window.proxy for window in watch.windows] == [pytest.approx(1.0)]


def test_a_judge_that_turns_canaries_around_is_no_longer_the_same():
    watch = Watch(WatchConfig(), canaries=CanaryConfig(action="stop", every=50))
    assert [step for step in range(120) if watch.is_canary_due(step)] == [0, 50, 100]
    watch.canary(make_reading(0))
    watch.canary(make_reading(50, flips=0.005, largest_change=0.1))
    assert watch.poll(50) == []
    watch.canary(make_reading(100, flips=0.02, largest_change=3.0))
    (alarm,) = watch.poll(100)
    assert (alarm.kind, alarm.action, alarm.value, alarm.threshold) == ("canary", "stop", 0.02, 0.005)
    watch.canary(make_reading(150, flips=0.02))
    assert watch.poll(150) == []
    assert watch.drain_metrics()["watch/canary_flips/share"] == 0.02


def test_a_judge_that_promises_the_same_bits_is_held_to_it():
    watch = Watch(WatchConfig(), canaries=CanaryConfig(is_repeatable=True))
    watch.canary(make_reading(0))
    assert watch.poll(0) == []
    watch.canary(make_reading(50, largest_change=1e-9))
    (alarm,) = watch.poll(50)
    assert (alarm.value, alarm.threshold) == (1e-9, 0.0)


def test_a_symptom_is_reported_once_per_run():
    watch = make_watch(reference_windows=1)
    texts = ["it is"] * 4 + ["a b c d e f g h i j k l"] * 8 + ["it is"] * 6 + ["a b c d e f g h i j k l"] * 8
    alarms = [alarm for step, text in enumerate(texts) for alarm in emit(watch, step, 0.0, 0.0, text=text)]
    assert [alarm.kind for alarm in alarms].count("symptom/length") == 1
    assert all(alarm.action == "warn" for alarm in alarms)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValidationError):
        WatchConfig(audit_share=0.0)
    with pytest.raises(ValidationError):
        WatchConfig.model_validate({"action": "ignore"})
