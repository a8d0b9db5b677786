"""The watch in a run: the judges it asks, its records, how it stops a run, and refusals of the run file."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config.run_file import RunFile
from cluster.preflight.checks import check_inputs
from solon.constitution.constitution import Principle
from solon.errors import InputError, RunFailedError
from solon.feedback.trials.gold import gold_pair
from solon.feedback.watching import observer as module
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.best import gold_at, ranked
from solon.feedback.watching.canary import Canary
from solon.feedback.watching.drift import Window
from solon.feedback.watching.observer import WatchingObserver
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_config import CanaryConfig, WatchConfig
from solon.feedback.watching.watch_state import WatchState
from solon.ledger.ledger import Lease
from solon.protocols import GenerationReport, LabelReport
from solon.records import Feedback, Group, Label, StepReport
from solon.runs.tables import audit_rows
from solon.verdicts import Status, Verdict
from tests.unit.fakes import make_group, make_prompt
from tests.unit.run_files import make_model, make_run

GROUP = 16
SPREAD = np.linspace(-0.1, 0.1, GROUP)


def make_feedback(group: Group, mean: float) -> Feedback:
    rewards = tuple((mean + SPREAD[: len(group.rollouts)]).tolist())
    return Feedback(ordinal=group.ordinal, attempt=0, rewards_G=rewards, labels=())


class Gold:
    """Rises to a step and falls from then on; records the rollouts that it was shown."""

    def __init__(self, turn: int = 1000) -> None:
        self.turn = turn
        self.shown: list[Group] = []
        self.failure: Exception | None = None

    async def label_group(self, group: Group) -> Feedback:
        if self.failure is not None:
            raise self.failure
        self.shown.append(group)
        step = group.ordinal
        return make_feedback(group, 0.1 * (step if step < self.turn else 2 * self.turn - step))


class Written:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.groups: list[int] = []

    def generated(self, report: GenerationReport, payload_ref: Any) -> None:
        self.groups.append(report.ordinal)

    def labelled(self, report: LabelReport, payload_ref: Any) -> None:
        self.groups.append(report.ordinal)

    def stepped(self, lease: Lease, report: StepReport) -> None:
        self.steps.append(report)

    def published(self, version: int, receipts: Any, gap: float, span: Any) -> None: ...

    def event(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def alarms(self) -> list[str]:
        return [fields["kind"] for name, fields in self.events if name == "alarm"]


def make_observer(
    gold: Gold, *, open_payload: Callable[[Any], Any] = lambda payload_ref: payload_ref, **config: Any
) -> tuple[WatchingObserver, Written, list[Alarm]]:
    stops: list[Alarm] = []
    watch = Watch(WatchConfig(**({"audit_share": 1.0, "audit_window": GROUP} | config)))
    written = Written()

    async def act(alarm: Any) -> None:
        stops.append(alarm)

    return WatchingObserver(written, watch, gold=gold, open_payload=open_payload, on_action=act), written, stops


def emit(observer: WatchingObserver, step: int) -> None:
    """One group is written and labelled, and the step is committed."""
    group = make_group(step, texts=[f"the sky is blue {n}" for n in range(GROUP)], version=step)
    generated = GenerationReport(ordinal=step, attempt=0, head=step, num_tokens=3, nbytes=1)
    labelled = LabelReport(
        ordinal=step, attempt=0, num_rollouts=GROUP, num_valid=GROUP, reward_mean=0.0, labels=GROUP, invalid=0,
        questions=GROUP, cache_hits=0, prompt_tokens=1, cached_tokens=0, nbytes=1,
    )  # fmt: skip
    observer.generated(generated, group)
    observer.labelled(labelled, make_feedback(group, 0.1 * step))
    lease = Lease(step=step, token=step, ordinals=(step,), staleness=(0,), payloads=())
    metrics = {"learn/kl_reference/mean": 0.01 * step, "learn/response_length/mean": 20.0}
    observer.stepped(lease, StepReport(step=step, metrics=metrics))


async def settle(observer: WatchingObserver) -> None:
    while observer._tasks:
        await asyncio.gather(*observer._tasks)


async def run(observer: WatchingObserver, steps: int) -> None:
    for step in range(steps):
        emit(observer, step)
        await settle(observer)
    await observer.close()


async def test_gold_sees_the_chosen_rollouts_and_the_run_sees_the_windows():
    gold = Gold()
    observer, written, stops = make_observer(gold, audit_share=0.5)
    await run(observer, 12)
    assert {len(group.rollouts) for group in gold.shown} <= set(range(1, GROUP))
    assert written.groups == [n for step in range(12) for n in (step, step)]
    assert not [event for event in written.events if event[0] == "alarm"]
    assert stops == []
    seen = [report.metrics for report in written.steps if "watch/gold/mean" in report.metrics]
    assert 3 <= len(seen) <= 8
    assert all(report.metrics["learn/response_length/mean"] == 20.0 for report in written.steps)
    # KL of an answer: nats per token times tokens.
    assert observer.watch.windows[-1].distance == pytest.approx((0.01 * 10.5 * 20) ** 0.5, rel=0.1)
    assert observer.summary()["audited"] == sum(len(group.rollouts) for group in gold.shown) - len(
        observer.watch._audited
    )


async def test_a_fooled_judge_stops_the_run_once_and_the_summary_says_why():
    observer, written, stops = make_observer(Gold(turn=8), action="stop")
    await run(observer, 20)
    assert len(stops) == 1
    assert stops[0].kind in ("gold_falls", "past_peak")
    assert stops[0].step < 16
    summary = observer.summary()
    assert summary["best"]["first_step"] == 8
    assert stops[0].kind in {alarm["kind"] for alarm in summary["alarms"]}
    events = [fields for name, fields in written.events if name == "alarm" and fields["action"] == "stop"]
    keys = {"kind", "step", "value", "threshold", "message", "evidence", "remedy", "action", "sound_until"}
    assert set(events[0]) == keys
    assert events[0]["evidence"].startswith("gold ")
    assert "windows of about 16 answers, steps " in events[0]["evidence"]
    assert "another `judge`" in events[0]["remedy"] or "train fewer steps" in events[0]["remedy"]


async def test_a_resumed_run_is_not_stopped_again_for_the_same_alarm():
    first, _, stops = make_observer(Gold(turn=8), action="stop")
    await run(first, 20)
    (stop,) = stops
    state = await first.state()
    second, written, stops = make_observer(Gold(turn=8), action="stop")
    second.restore(WatchState.from_json(state.to_json()))
    for step in range(20, 24):
        emit(second, step)
        await settle(second)
    assert stop.kind not in written.alarms()
    assert stop.kind in {alarm["kind"] for alarm in second.summary()["alarms"]}
    assert second.watch.best == first.watch.best
    for step in range(24, 60):  # something else is another reason to stop
        second._gold.failure = RunFailedError("gone")  # type: ignore[attr-defined]
        emit(second, step)
        await settle(second)
    await second.close()
    assert [alarm.kind for alarm in stops][:1] in (["audit_lost"], ["past_peak"], ["gold_falls"])
    assert len(stops) == 1


async def test_the_death_of_an_auditor_is_reported_once_and_the_run_continues():
    gold = Gold()
    observer, written, stops = make_observer(gold)
    emit(observer, 0)
    await settle(observer)
    gold.failure = RunFailedError("audit-judge died")
    for step in range(1, 4):
        emit(observer, step)
        await settle(observer)
    await observer.close()
    assert written.alarms() == ["audit_lost"]
    assert "RunFailedError: audit-judge died" in written.events[-1][1]["message"]
    assert stops == []


async def test_a_run_that_stops_on_gold_stops_when_the_auditor_is_lost():
    gold = Gold()
    gold.failure = RunFailedError("gone")
    observer, _, stops = make_observer(gold, action="stop")
    await run(observer, 2)
    assert [alarm.kind for alarm in stops] == ["audit_lost"]


async def test_an_auditor_that_falls_behind_holds_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_WAITING", 4)
    observer, written, _ = make_observer(Gold())
    for step in range(5):
        emit(observer, step)  # nothing is awaited, so nothing gets done
    assert written.alarms() == ["audit_behind"]
    await settle(observer)
    await observer.close()


@pytest.mark.parametrize(("action", "stopped"), [("warn", []), ("stop", ["watch_failed"])])
async def test_a_failure_inside_the_watch_is_reported_at_once_and_fails_no_run(action: str, stopped: list[str]):
    def broken(payload_ref: Any) -> Any:
        raise ConnectionError("no payload")

    observer, written, stops = make_observer(Gold(), open_payload=broken, action=action)
    for step in range(3):
        emit(observer, step)
        await asyncio.gather(*observer._tasks, return_exceptions=True)
        await asyncio.sleep(0)
        assert written.alarms() == ["watch_failed"]
    assert "ConnectionError: no payload" in written.events[0][1]["message"]
    await observer.close()
    assert [alarm.kind for alarm in stops] == stopped


async def test_no_payload_is_fetched_for_an_unaudited_group():
    fetched: list[Any] = []

    def open_payload(payload_ref: Any) -> Any:
        fetched.append(payload_ref)
        return payload_ref

    observer, _, _ = make_observer(
        Gold(), open_payload=open_payload, audit_share=1e-9, symptom_answers=GROUP, symptom_every=100
    )
    await run(observer, 10)
    assert len(fetched) <= 4  # one window of symptoms, and one that waits for its turn
    assert observer._boxes == {}


class Boxed:
    """A payload that can be seen to go."""


@pytest.mark.parametrize("event", ["group_dropped", "group_lost", "group_expired"])
async def test_the_payload_of_an_attempt_that_is_never_labelled_is_released(event: str):
    observer, written, _ = make_observer(Gold())
    payload_ref = Boxed()
    kept = weakref.ref(payload_ref)
    observer.generated(GenerationReport(ordinal=3, attempt=0, head=0, num_tokens=3, nbytes=1), payload_ref)
    del payload_ref
    assert kept() is not None
    observer.event(event, ordinal=3, reason="its judge took too long")
    assert observer._boxes == {}
    assert kept() is None
    assert written.events == [(event, {"ordinal": 3, "reason": "its judge took too long"})]


async def test_only_the_last_attempt_at_a_group_keeps_its_payload():
    observer, _, _ = make_observer(Gold())
    payload_refs = [Boxed(), Boxed()]
    kept = [weakref.ref(payload_ref) for payload_ref in payload_refs]
    for attempt in (0, 1):
        report = GenerationReport(ordinal=3, attempt=attempt, head=0, num_tokens=3, nbytes=1)
        observer.generated(report, payload_refs.pop(0))
    assert [payload_ref() is None for payload_ref in kept] == [True, False]
    assert list(observer._boxes) == [3]


def make_window(step: float, gold: float) -> Window:
    return Window(
        first_step=int(step) - 2, last_step=int(step) + 2, step=step, num=64, proxy=0.0, gold=gold, proxy_std=1.0,
        gold_std=1.0, correlation=0.5, agreement=0.7,
    )  # fmt: skip


def test_checkpoints_are_ranked_by_what_gold_says_of_their_steps_and_not_by_their_age():
    windows = [make_window(step, gold) for step, gold in ((2, 0.0), (12, 1.0), (22, 0.9), (32, 0.1))]
    assert ranked([10, 20, 30], windows) == [20, 10, 30]
    assert gold_at([2, 7, 22, 27, 99], windows) == pytest.approx([0.0, 0.5, 0.9, 0.5, 0.1])
    assert ranked([40, 50], windows) == [50, 40]  # gold knows no difference
    assert ranked([10, 20], []) == ranked([], windows) == []


# -- the run file ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    make_model(tmp_path / "auditor")
    return make_run(tmp_path, "[watch]\naudit_judge = 'auditor'\naction = 'stop'\n")


def num_judges(run: RunFile) -> int:
    """Workers that hold a feedback model, the auditor's included."""
    return sum(pool.size for pool in run.workers.values() if pool.role in ("judge", "audit"))


def test_a_run_file_names_its_auditor_and_counts_its_engine(run_file: Path, tmp_path: Path):
    run = RunFile.load(run_file)
    assert run.watch.action == "stop"
    assert run.auditor == str(tmp_path / "auditor")
    assert num_judges(run) == 2
    assert check_inputs(run)


def test_the_judge_does_not_audit_itself(run_file: Path, tmp_path: Path):
    for name in ("judge", "alias"):
        (tmp_path / "alias").unlink(missing_ok=True)
        (tmp_path / "alias").symlink_to(tmp_path / "judge")
        with pytest.raises(InputError, match="the judge itself, expected another model"):
            check_inputs(RunFile.load(run_file, overrides=[f"watch.audit_judge={tmp_path / name}"]))


def test_no_member_of_a_panel_audits_it(run_file: Path, tmp_path: Path):
    make_model(tmp_path / "second")
    panel = [f"feedback.jury.judges=['{tmp_path / 'second'}']"]
    assert check_inputs(RunFile.load(run_file, overrides=panel))
    with pytest.raises(InputError, match="the judge itself, expected another model"):
        check_inputs(RunFile.load(run_file, overrides=[*panel, f"watch.audit_judge={tmp_path / 'second'}"]))


def test_an_auditor_that_cannot_be_asked_is_refused(run_file: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"watch\.audit_judge model .*nowhere does not exist"):
        check_inputs(RunFile.load(run_file, overrides=[f"watch.audit_judge={tmp_path / 'nowhere'}"]))
    text = (tmp_path / "constitution.yaml").read_text()
    (tmp_path / "constitution.yaml").write_text(text.replace("pointwise_question: is it kind, ", ""))
    with pytest.raises(InputError, match="pointwise_question"):
        check_inputs(RunFile.load(run_file, overrides=["feedback.task=pairwise"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("watch.audit_judge=", "audit_judge"),
        ("watch.kl_factor=1", "kl_factor"),
        ("watch.audit_share=0", "audit_share"),
        ("watch.nudit_share=1", "did you mean"),
    ],
)
def test_a_meaningless_watch_is_refused(run_file: Path, override: str, words: str):
    with pytest.raises(InputError, match=words):
        RunFile.load(run_file, overrides=[override if not override.endswith("=") else f'{override}""'])


def test_the_watch_and_the_evaluation_have_one_auditor(run_file: Path, tmp_path: Path):
    evaluation = ["evaluate.prompts=prompts.jsonl", "evaluate.evaluator=judge"]
    shared = [*evaluation, f"evaluate.audit_judge={tmp_path / 'auditor'}"]
    assert num_judges(RunFile.load(run_file, overrides=shared)) == 2
    with pytest.raises(InputError, match="expected one auditing judge for both"):
        RunFile.load(run_file, overrides=[*evaluation, f"evaluate.audit_judge={tmp_path / 'policy'}"])


async def test_a_judge_that_changes_is_caught_by_the_canaries():
    pairs = [gold_pair(make_prompt(f"p{n}"), "blue", "green", target=1.0, principles=[PRINCIPLE]) for n in range(10)]
    asked: list[int] = []

    async def judge(items: Any) -> list[Verdict]:
        asked.append(len(items))
        sign = 1 if len(asked) == 1 else -1
        return [Verdict(status=Status.OK, margin=sign * (2.0 if i.answers[0] == "blue" else -2.0)) for i in items]

    stops: list[Any] = []

    async def act(alarm: Any) -> None:
        stops.append(alarm)

    watch = Watch(WatchConfig(audit_share=0.001), canaries=CanaryConfig(every=2, action="stop"))
    written = Written()
    observer = WatchingObserver(
        written,
        watch,
        gold=Gold(),
        open_payload=lambda payload_ref: payload_ref,
        on_action=act,
        canary=Canary(pairs),
        judge=judge,
    )
    for step in range(5):
        emit(observer, step)
        for _ in range(20):
            await asyncio.sleep(0.001)
    await observer.close()
    assert asked == [10, 10, 10]
    assert written.alarms() == ["canary"]
    assert [alarm.kind for alarm in stops] == ["canary"]


async def test_unanswered_canaries_are_reported_once_and_fail_no_run():
    pairs = [gold_pair(make_prompt("p"), "blue", "green", target=1.0, principles=[PRINCIPLE])]
    asked: list[int] = []

    async def judge(items: Any) -> list[Verdict]:
        asked.append(len(items))
        raise RunFailedError("judge-0, judge-1: all were given up")

    async def act(alarm: Any) -> None:
        raise AssertionError("a warning asks for nothing")

    written = Written()
    observer = WatchingObserver(
        written, Watch(WatchConfig(audit_share=0.001), canaries=CanaryConfig(every=1)), gold=Gold(),
        open_payload=lambda payload_ref: payload_ref, on_action=act, canary=Canary(pairs), judge=judge,
    )  # fmt: skip
    await run(observer, 4)
    assert asked == [1]
    assert written.alarms() == ["canary_lost"]
    assert "all were given up" in written.events[-1][1]["message"]


PRINCIPLE = Principle(id="kind", pairwise_question="which is kinder?")


async def test_every_audited_answer_is_handed_on_with_both_rewards():
    rows: list[dict[str, Any]] = []
    observer, _, _ = make_observer(Gold(), audit_share=0.5)
    observer._on_audit = lambda *audited: rows.extend(audit_rows(*audited))
    await run(observer, 4)
    assert {row["ordinal"] for row in rows} <= set(range(4))
    assert 0 < len(rows) < 4 * GROUP
    for row in rows:
        assert row["reward"] == 0.1 * row["ordinal"] + SPREAD[row["index"]]


def test_an_audited_answer_keeps_the_margins_about_it_alone():
    group = make_group(3, texts=["a", "b", "c"])

    def labels(*margins: tuple[tuple[int, ...], str, float | None]) -> Feedback:
        found = tuple(
            Label(
                task="pointwise",
                principle_id=principle,
                rollouts=rollouts,
                verdict=Verdict(status=status, margin=margin),
            )
            for rollouts, principle, margin in margins
            for status in (Status.OK if margin is not None else Status.TIMEOUT,)
        )
        return Feedback(ordinal=3, attempt=0, rewards_G=(1.0, 2.0, 3.0), labels=found)

    proxy = labels(
        ((2,), "kind", 1.0), ((2,), "kind", 3.0), ((1,), "kind", 9.0), ((2, 1), "brief", 5.0), ((2,), "true", None)
    )
    (row,) = audit_rows(group, (2,), proxy, labels(((0,), "kind", -1.0)))
    assert (row["index"], row["reward"], row["gold"]) == (2, 3.0, 1.0)
    assert (row["margins"], row["gold_margins"]) == ({"kind": 2.0}, {"kind": -1.0})
