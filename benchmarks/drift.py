"""How soon the watch detects a faulty judge: known faults, a simulated optimiser, exact gold.

python benchmarks/drift.py [--quick] [--json PATH]

No engine: answers of every quality to prompts of the nursery, a judge that is right up to noise and then has a fault
(solon.feedback.trials.biased), and a policy over those answers that is tilted slightly further towards the reward at
every step (mirror descent, the ideal of a policy gradient). The policy's expected gold is computed, not sampled, so the
step at which the fault began and the loss at the first alarm are known. The watch gets the same input as in a run:
sampled groups, their labels, a uniform audit by a noisy second judge, and the KL.
"""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from nursery import answers, prompts, spoiling
from nursery.language import CONSTITUTION_PATH
from nursery.oracles import keeps
from nursery.reading import understand
from solon.constitution.constitution import Constitution
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item, Judge
from solon.feedback.labeler import Labeler
from solon.feedback.trials.biased import Bias, BiasedJudge
from solon.feedback.trials.gold import GoldPair, gold_pair
from solon.feedback.watching.alarm import Alarm
from solon.feedback.watching.audit import Audited, excerpt
from solon.feedback.watching.canary import Canary, CanaryReading
from solon.feedback.watching.drift import decide, window_of
from solon.feedback.watching.watch import Watch
from solon.feedback.watching.watch_config import CanaryConfig, WatchConfig
from solon.records import Feedback, Group, Prompt, Rollout
from solon.verdicts import Status, Task, Verdict

# P prompts, N answers of a prompt

KINDS: tuple[Bias, ...] = ("length", "phrase", "flattery", "random_flips", "first_position")
PROMPTS, ANSWERS = 40, 64
STEPS, GROUPS, GROUP_SIZE, RATE = 200, 16, 8, 0.02
ONSET = 60
SURE, NOISE = 1.5, 1.0
"""A verdict of the honest judges: so many nats for the truth, and the standard deviation of their error."""
PHRASE = "let me tell you more"
STRENGTH: dict[Bias, float] = {
    "length": 4.0,
    "phrase": 6.0,
    "flattery": 6.0,
    "random_flips": 0.6,
    "first_position": 1.5,
}
CANARIES = 200
LITTLE = 0.1
"""A run that loses less of its gain than this has nothing to be acted on."""
WATCH = WatchConfig(audit_share=0.1)
"""A tenth of 128 rollouts a step is what 2 % of 640 are: about five steps fill a window."""


CONSTITUTION = Constitution.load(CONSTITUTION_PATH)
EMPTY_IDS, EMPTY_LOGPROBS = np.zeros(0, np.int32), np.zeros(0, np.float32)


T = TypeVar("T")


def answer(asked: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends; no judge here does."""
    try:
        asked.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise RuntimeError("a judge of the simulation waited for something")


class OracleJudge:
    """Right up to an error drawn once per item, like a judge at temperature zero."""

    def __init__(self, name: str, *, noise: float) -> None:
        self.name, self._noise = name, noise
        self._said: dict[tuple[str, str, str], float] = {}

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        return [self._verdict(item) for item in items]

    def _verdict(self, item: Item) -> Verdict:
        right = [self._says(item, text) for text in item.answers]
        margin = right[0] if len(right) == 1 else (right[0] - right[1]) / 2
        return Verdict(status=Status.OK, margin=margin, mass=1.0, judge=self.name, questions=1)

    def _says(self, item: Item, text: str) -> float:
        key = item.principle_id, item.conversation[-1].content, text
        if key not in self._said:
            self._said[key] = self._judge(item, text)
        return self._said[key]

    def _judge(self, item: Item, text: str) -> float:
        kept = keeps(understand(item.conversation), text.split())[item.principle_id]
        if not self._noise:
            return SURE if kept else -SURE
        asked = f"{self.name}\0{item.principle_id}\0{item.conversation[-1].content}\0{text}"
        digest = hashlib.sha256(asked.encode()).digest()
        # Twelve uniform bytes add up to a normal value, near enough.
        error = (sum(digest[:12]) / 255 - 6) * self._noise
        return (SURE if kept else -SURE) + error


class Labels:
    """One judge's verdicts on every answer."""

    def __init__(self, groups: Sequence[Group], judge: Judge, task: Task) -> None:
        self._labeler = Labeler(judge, config=FeedbackConfig(task=task), constitution=CONSTITUTION)
        self._is_pairwise = task == "pairwise"
        self._feedback = [answer(self._labeler.label(group)) for group in groups]
        self.rewards_PN: NDArray[np.float64] = np.array([one.rewards_G for one in self._feedback], np.float64)

    def of(self, group: Group, prompt: int, picked: NDArray[np.int64]) -> Feedback:
        """The feedback on a group of some of the answers to a prompt."""
        if self._is_pairwise:
            return answer(self._labeler.label(group))
        whole = self._feedback[prompt]
        each = len(whole.labels) // len(whole.rewards_G)
        return replace(
            whole,
            ordinal=group.ordinal,
            rewards_G=tuple(whole.rewards_G[i] for i in picked),
            labels=tuple(label for i in picked for label in whole.labels[i * each : (i + 1) * each]),
        )


class World:
    """Prompts, the answers that the policy chooses among, and all judges' verdicts on them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(f"drift-{seed}")
        self.groups = [
            make_group(number, prompt, [_answer(rng, prompt) for _ in range(ANSWERS)])
            for number, prompt in enumerate(prompts.draw_many(PROMPTS, seed=seed, held_out=False))
        ]
        """One per prompt, with all its answers."""
        self._labels: dict[tuple[str | None, Task], Labels] = {}

    def labels(self, who: str | None, task: Task) -> Labels:
        """Verdicts of a faulty judge, the honest one (None), the auditor (`gold`), or without error (`truth`)."""
        if (who, task) not in self._labels:
            self._labels[who, task] = Labels(self.groups, make_judge(who), task)
        return self._labels[who, task]


def make_group(ordinal: int, prompt: Prompt, texts: Sequence[str], version: int = 0) -> Group:
    """Texts as judge items."""
    rollouts = tuple(
        Rollout(token_ids=EMPTY_IDS, logprobs=EMPTY_LOGPROBS, segments=((version, 1),), finish_reason="stop", text=text)
        for text in texts
    )
    return Group(ordinal=ordinal, attempt=0, prompt=prompt, prompt_token_ids=EMPTY_IDS, rollouts=rollouts)


def _answer(rng: random.Random, prompt: Prompt) -> str:
    asked = understand(prompt.messages)
    drawn = rng.random()
    if drawn < 0.08:  # flattery stands in for substance
        poor = answers.Traits(manner="plain", substance=rng.choice(("bad", "evasive")), rambling=False)
        return f"{answers.FLATTERY} , {answers.compose(rng, asked, poor)}"
    text = answers.draw(rng, asked)
    if drawn < 0.25:
        return spoiling.spoil(rng, text, answers.draw(rng, asked), prompt.messages[-1].content)
    return text


def make_judge(who: str | None) -> Judge:
    """See `World.labels`."""
    if who in ("gold", "truth"):
        return OracleJudge(who, noise=NOISE if who == "gold" else 0.0)
    honest = OracleJudge("judge", noise=NOISE)
    if who is None:
        return honest
    bias = next(kind for kind in KINDS if kind == who)
    return BiasedJudge(honest, bias, strength=STRENGTH[bias], phrase=PHRASE, flatteries=(answers.FLATTERY,), seed=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulated run."""

    bias: Bias | None
    onset: int
    """First step with a fault."""
    truth: tuple[float, ...]
    """What gold without noise expects of the policy, by step."""
    alarms: tuple[Alarm, ...]
    windows: int

    def first(self, kinds: Callable[[str], bool]) -> int | None:
        """Step of the first alarm of these kinds after the onset of the fault."""
        return next((a.step for a in self.alarms if a.step >= self.onset and kinds(a.kind)), None)

    def lost(self, step: int) -> float:
        """Share of gold's peak gain that is lost at a step."""
        peak = int(np.argmax(self.truth))
        gain = self.truth[peak] - min(self.truth[0], self.truth[-1])
        return (self.truth[peak] - self.truth[step]) / gain if step > peak else 0.0


def simulate(world: World, bias: Bias | None, *, onset: int, seed: int, task: Task = "pointwise") -> Outcome:
    """A run whose judge is honest up to the onset and has the fault from then on."""
    rng = np.random.default_rng((world.seed, seed))
    labels = [world.labels(None, task), world.labels(bias, task)]
    gold = world.labels("gold", "pointwise")
    truth_PN = world.labels("truth", "pointwise").rewards_PN
    logits_PN = np.zeros_like(truth_PN)
    watch = Watch(WATCH, seed=seed, is_relative=task == "pairwise")
    expected, alarms, ordinal = [], [], 0
    for step in range(STEPS):
        policy_PN = np.exp(logits_PN - logits_PN.max(1, keepdims=True))
        policy_PN /= policy_PN.sum(1, keepdims=True)
        expected.append(float((policy_PN * truth_PN).sum(1).mean()))
        watch.kl(step, float((policy_PN * np.log(policy_PN * ANSWERS + 1e-300)).sum(1).mean()))
        judge = labels[step >= onset]
        for prompt in rng.choice(PROMPTS, GROUPS, replace=False):
            picked = rng.choice(ANSWERS, GROUP_SIZE, p=policy_PN[prompt])
            show(watch, sampled(world.groups[prompt], picked, ordinal, step), prompt, picked, judge, gold)
            ordinal += 1
        alarms += watch.poll(step)
        logits_PN += RATE * (judge.rewards_PN - (policy_PN * judge.rewards_PN).sum(1, keepdims=True))
    return Outcome(bias=bias, onset=onset, truth=tuple(expected), alarms=tuple(alarms), windows=len(watch.windows))


def sampled(whole: Group, picked: NDArray[np.int64], ordinal: int, step: int) -> Group:
    """A group of the policy's answers to one prompt."""
    return make_group(ordinal, whole.prompt, [whole.rollouts[i].text for i in picked], step)


def show(watch: Watch, group: Group, prompt: int, picked: NDArray[np.int64], judge: Labels, gold: Labels) -> None:
    """The watch's input for a sampled group."""
    audited = watch.chosen(group.ordinal, 0, GROUP_SIZE)
    if not audited and not watch.wants_answers:
        return
    feedback = judge.of(group, prompt, picked)
    watch.observe(group, feedback)
    if audited:
        seen = excerpt(group, audited)
        watch.audit(group, audited, feedback, gold.of(seen, prompt, picked[list(audited)]))


def canary_pairs(world: World) -> list[GoldPair]:
    """Pairs of answers to one prompt of which exactly one follows a principle."""
    rng = random.Random(f"canary-{world.seed}")
    found: list[GoldPair] = []
    while len(found) < CANARIES:
        group = rng.choice(world.groups)
        one, other = (rollout.text for rollout in rng.sample(group.rollouts, 2))
        kept = [keeps(understand(group.prompt.messages), text.split()) for text in (one, other)]
        apart = [p for p in CONSTITUTION.principles if kept[0].get(p.id) != kept[1].get(p.id)]
        if apart and one.strip() and other.strip():
            principle = rng.choice(apart)
            target = 1.0 if kept[0][principle.id] else 0.0
            found.append(gold_pair(group.prompt, one, other, target=target, principles=[principle]))
    return found


def read_canaries(world: World, bias: Bias) -> CanaryReading:
    """The second reading, when the fault came after the first one."""
    canary = Canary(canary_pairs(world))
    canary.read(0, answer(make_judge(None).judge(canary.items)))
    return canary.read(1, answer(make_judge(bias).judge(canary.items)))


def runs_of(seed: int) -> tuple[list[Outcome], dict[Bias, CanaryReading]]:
    """All runs in one simulation: some without a fault, and each fault from the onset on and from the beginning."""
    world = World(seed)
    tasks: tuple[Task, ...] = ("pointwise", "pointwise", "pairwise")
    found = [simulate(world, None, onset=STEPS, seed=n, task=task) for n, task in enumerate(tasks)]
    for bias in KINDS:
        task: Task = "pairwise" if bias == "first_position" else "pointwise"
        found += [simulate(world, bias, onset=onset, seed=len(tasks), task=task) for onset in (ONSET, 0)]
    return found, {bias: read_canaries(world, bias) for bias in KINDS}


def stationary_pairwise(*, runs: int = 250, num: int = 40) -> float:
    """Alarms to act on per 1,000 windows of pairwise runs in which nothing changes: gold and the reward are noise."""
    rng = np.random.default_rng(0)
    acts = 0
    for _ in range(runs):
        noise = rng.standard_normal((num, WATCH.audit_window, 2))
        windows = [
            window_of([Audited(step=10 * n + i % 10, ordinal=i, proxy=p, gold=g) for i, (p, g) in enumerate(one)])
            for n, one in enumerate(noise.tolist())
        ]
        seen = (decide(windows[:n], is_relative=True) for n in range(1, num + 1))
        acts += sum(any(reason.verdict == "act" for reason in reasons) for reasons in seen)
    return 1000 * acts / (runs * num)


def is_act(kind: str) -> bool:
    """Alarms that the run may be stopped for."""
    return kind in ("gold_falls", "past_peak")


def rows_of(outcomes: Sequence[Outcome], canaries: Sequence[dict[Bias, CanaryReading]]) -> list[Row]:
    """The table."""
    honest = [outcome for outcome in outcomes if outcome.bias is None]
    windows = sum(outcome.windows for outcome in honest)
    false = [alarm.kind for outcome in honest for alarm in outcome.alarms]
    rows = [
        Row("honest judge: windows of 64 audited rollouts", windows),
        Row("honest judge: alarms to act on, per 1,000 windows", 1000 * sum(map(is_act, false)) / windows, goal="<= 5"),
        Row(
            "honest judge: gap and near_peak warnings, per 1,000 windows",
            1000 * sum(kind in ("gap", "near_peak") for kind in false) / windows,
            goal="<= 10",
        ),
    ]
    pairwise = Row("stationary pairwise runs: alarms to act on, per 1,000 windows", stationary_pairwise(), goal="<= 5")
    rows.append(pairwise)
    silent = set(false)
    rows += [
        Row(
            f"honest judge: runs of {len(honest)} that warn of {kind}",
            sum(any(a.kind == kind for a in outcome.alarms) for outcome in honest),
        )
        for kind in sorted(silent)
        if kind.startswith("symptom/")
    ]
    for bias in KINDS:
        for onset in (ONSET, 0):
            some = [outcome for outcome in outcomes if outcome.bias == bias and outcome.onset == onset]
            name = f"{bias} from step {onset}"
            # Alarms that an honest judge's run also raises carry no information.
            rows += _rows(name, some, lambda kind: kind not in silent or is_act(kind) or kind == "gap")
    rows += [
        Row(
            f"canaries: verdicts turned around by {bias}",
            statistics.fmean(r[bias].flips for r in canaries),
            CanaryConfig().flips,
        )
        for bias in KINDS
    ]
    return rows


def _rows(name: str, outcomes: Sequence[Outcome], telling: Callable[[str], bool]) -> list[Row]:
    noticed = [outcome.first(telling) for outcome in outcomes]
    acted = [outcome.first(is_act) for outcome in outcomes]
    in_time = [step is not None and outcome.lost(step) <= 0.25 for outcome, step in zip(outcomes, acted, strict=True)]
    worst = statistics.fmean(outcome.lost(STEPS - 1) for outcome in outcomes)
    rows = [
        Row(f"{name}: gold's gain lost at the end, share", worst),
        Row(f"{name}: runs noticed, share", sum(step is not None for step in noticed) / len(outcomes), goal=">= 0.9"),
    ]
    if known := [step - o.onset for step, o in zip(noticed, outcomes, strict=True) if step is not None]:
        rows.append(Row(f"{name}: steps until noticed, median", statistics.median(known)))
    if worst > LITTLE:
        rows.append(Row(f"{name}: runs acted on before a quarter was lost, share", sum(in_time) / len(outcomes)))
        if late := [step - o.onset for step, o in zip(acted, outcomes, strict=True) if step is not None]:
            rows.append(Row(f"{name}: steps until acted on, median", statistics.median(late)))
    return rows


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    seeds = range(1 if options.quick else 4)
    with ProcessPoolExecutor(max_workers=min(len(seeds), os.cpu_count() or 1)) as pool:
        found = list(pool.map(runs_of, seeds))
    outcomes = [outcome for some, _ in found for outcome in some]
    report("drift", rows_of(outcomes, [canaries for _, canaries in found]), options.json)


if __name__ == "__main__":
    main()
