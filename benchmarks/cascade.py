"""A cascade, a jury and a distilled judge against the large judge alone, with the models of the nursery.

    python benchmarks/cascade.py [--quick] [--json PATH]

The large judge is the nursery's own in full precision. The small one is distilled from it: one of its two layers,
trained on its verdicts on answers to training prompts. All judge pairs that the policy generated for held-out prompts
and that the oracles decide, half of them to fit the threshold, the other half to test it. No engine: plain forward
passes, so cost is computed tokens times the parameters of the layers (a look-up computes nothing, and the head runs
once for a question), and seconds of those passes. Without a prefix cache every prompt token is computed.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import ArrayLike

from benchmarks._harness import Row, arguments, report
from benchmarks._labels import nursery
from learners.networks.student import Student
from learners.objectives.distil import DistilConfig, Lesson, both_orders, distil
from nursery import prompts
from nursery.grow import Nursery
from nursery.language import WordEncoder
from nursery.lessons import Mix, draw_any
from nursery.model import TinyModel, load
from nursery.oracles import adherence
from nursery.sampling import sample_texts
from nursery.spoiling import near_miss
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.interfaces import Item, Judge
from solon.feedback.judges.engine_judge import EngineJudge
from solon.feedback.panels.cascade import Cascade, Threshold, fit_threshold, measured_against
from solon.feedback.panels.jury import Jury, JuryConfig, Method
from solon.feedback.prompting.prompts import COMPACT, JudgePrompts
from solon.feedback.prompting.swap import SwapConfig
from solon.feedback.quality.intervals import Floats
from solon.feedback.questions import Answer, Question
from solon.feedback.trials.acceptance import HeldOutPair, accept
from solon.feedback.trials.faults import FAULTS, FaultyJudge
from solon.records import Prompt
from solon.verdicts import Verdict

ALPHAS, ALPHA, DELTA = (0.02, 0.05, 0.1), 0.05, 0.05
METHODS: tuple[Method, ...] = ("mean", "median", "majority")
BATCH = 128
FAULT_RATE = 0.01
"""Of each of the faults: about one call in seventeen fails."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of questions and training examples."""

    pairs: int
    taught_prompts: int
    epochs: int
    jurors: int
    splits: int
    simulations: int


FULL = Plan(pairs=2400, taught_prompts=800, epochs=3, jurors=3, splits=200, simulations=1000)
QUICK = Plan(pairs=600, taught_prompts=250, epochs=2, jurors=2, splits=20, simulations=100)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question about two answers; `target` is 1 when the oracle favours the first one, 0 the second, 0.5 neither."""

    item: Item
    prompt_id: str
    target: float
    is_adversarial: bool = False


# --- judges -----------------------------------------------------------------------------------------------


class ForwardAsk:
    """Answers questions by forward passes of a tiny network; counts seconds."""

    def __init__(self, model: TinyModel) -> None:
        self.model = model
        self.seconds = 0.0

    async def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        started = time.perf_counter()
        found: dict[int, Answer] = {}
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt_token_ids))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            found |= dict(zip(rows, self._answer([questions[i] for i in rows]), strict=True))
        self.seconds += time.perf_counter() - started
        return [found[i] for i in range(len(questions))]

    @torch.no_grad()
    def _answer(self, questions: Sequence[Question]) -> list[Answer]:
        lengths = [len(question.prompt_token_ids) for question in questions]
        ids = [[*q.prompt_token_ids, *[0] * (max(lengths) - n)] for q, n in zip(questions, lengths, strict=True)]
        view = self.model.view(torch.arange(max(lengths))[None])
        places = torch.arange(len(questions)), torch.tensor(lengths) - 1
        logits = self.model.read(self.model.inner(torch.tensor(ids), view), replace(view, places_N=places))
        logprobs = logits.log_softmax(-1)
        return [
            Answer(tuple(row[list(question.label_ids)].tolist()), prompt_tokens=length)
            for row, question, length in zip(logprobs, questions, lengths, strict=True)
        ]


class MeteredJudge:
    """A judge whose verdicts on the same items are computed once; records their cost."""

    def __init__(self, model: TinyModel, name: str, layout: JudgePrompts) -> None:
        feedback = FeedbackConfig(template="compact", swap=SwapConfig(orders="both"))
        self.name, self._ask = name, ForwardAsk(model)
        self._judge = EngineJudge(self._ask, name=name, prompts=layout, config=feedback, max_prompt_tokens=255)
        self.layer_parameters = sum(p.numel() for p in model.model.layers.parameters())
        self._said: dict[Item, Verdict] = {}

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        new = list(dict.fromkeys(item for item in items if item not in self._said))
        self._said |= dict(zip(new, await self._judge.judge(new), strict=True))
        return [self._said[item] for item in items]

    @property
    def seconds_per_token(self) -> float:
        return self._ask.seconds / sum(verdict.prompt_tokens for verdict in self._said.values())


class Counted:
    """Counts a judge's input: tokens times layer parameters, and seconds at the judge's own rate."""

    def __init__(self, judge: MeteredJudge) -> None:
        self.name, self._judge = judge.name, judge
        self.cost = self.seconds = 0.0

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        verdicts = await self._judge.judge(items)
        tokens = sum(verdict.prompt_tokens for verdict in verdicts)
        self.cost += tokens * self._judge.layer_parameters
        self.seconds += tokens * self._judge.seconds_per_token
        return verdicts


def ask(judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
    return asyncio.run(judge.judge([pair.item for pair in pairs]))


def share(values_N: ArrayLike) -> float:
    return float(np.asarray(values_N, dtype=np.float64).mean())


def right_of(verdicts: Sequence[Verdict], pairs: Sequence[Pair]) -> Floats:
    """1 where the verdict agrees with gold; a missing verdict agrees with neither side."""
    sides = [
        0.0 if v.margin is None else v.margin * (pair.target - 0.5) for v, pair in zip(verdicts, pairs, strict=True)
    ]
    return (np.array(sides) > 0).astype(np.float64)


# --- pairs and lessons ------------------------------------------------------------------------------------


def pairs_of(
    constitution: Constitution, prompt: Prompt, first: str, second: str, *, is_adversarial: bool = False
) -> list[Pair]:
    """Two answers under every principle that applies."""
    questions = {principle.id: principle.pairwise_question for principle in constitution.principles}
    one, two = adherence(prompt, first), adherence(prompt, second)
    return [
        Pair(
            Item(
                task="pairwise",
                conversation=prompt.messages,
                answers=(first, second),
                principle_id=name,
                question=questions[name],
            ),
            prompt_id=prompt.prompt_id,
            target=0.5 + 0.5 * (one[name] - two[name]),
            is_adversarial=is_adversarial,
        )
        for name in one
    ]


def held_out_pairs(grown: Nursery, constitution: Constitution, number: int) -> list[Pair]:
    """Distinct pairs that the policy generated for held-out prompts and that the oracles decide, in random order."""
    policy, asked = load(grown.policy), prompts.draw_many(prompts.NUM_HELDOUT, seed=0, held_out=True)
    found: dict[Item, Pair] = {}
    turn = 0
    while len(found) < number:
        written = [sample_texts(policy, asked, seed=2 * turn + i) for i in (0, 1)]
        for prompt, first, second in zip(asked, *written, strict=True):
            found |= {p.item: p for p in pairs_of(constitution, prompt, first, second) if p.target != 0.5}
        turn += 1
    return random.Random(0).sample(list(found.values()), number)


def taught_pairs(grown: Nursery, constitution: Constitution, number: int) -> list[Pair]:
    """The student's training set: for each training prompt two answers of the policy; for every third one also two
    of any quality, and for every fourth one an answer and its near miss."""
    policy, asked = load(grown.policy), prompts.draw_many(number, seed=1, held_out=False)
    rng = random.Random("taught")
    written = [sample_texts(policy, asked, seed=10_000 + i) for i in (0, 1)]
    found: list[Pair] = []
    for place, (prompt, first, second) in enumerate(zip(asked, *written, strict=True)):
        found += pairs_of(constitution, prompt, first, second)
        if place % 3 == 0:
            found += pairs_of(constitution, prompt, *(draw_any(rng, prompt, Mix()) for _ in (0, 1)))
        if place % 4 == 0:
            found += pairs_of(constitution, prompt, first, near_miss(rng, first), is_adversarial=True)
    return found


def lessons_of(teacher: Judge, pairs: Sequence[Pair], layout: JudgePrompts) -> list[Lesson]:
    """The teacher's verdicts on pairs, in both orders. Gold is not used."""
    lessons: list[Lesson] = []
    for pair, verdict in zip(pairs, ask(teacher, pairs), strict=True):
        shown, swapped = layout.lay(pair.item), layout.lay(pair.item, swapped=True)
        if verdict.margin is not None and shown is not None and swapped is not None:
            lessons += both_orders(shown.question, swapped.question, verdict.margin, is_adversarial=pair.is_adversarial)
    return lessons


# --- rows -------------------------------------------------------------------------------------------------


def cascade_rows(small: MeteredJudge, large: MeteredJudge, pairs: Sequence[Pair], splits: int) -> list[Row]:
    """One full split into calibration and test, and the error among the accepted over many splits."""
    half = len(pairs) // 2
    calibration, test = pairs[:half], pairs[half:]
    small_right, large_right = (right_of(ask(judge, test), test) for judge in (small, large))
    rows = []
    for alpha in ALPHAS:
        found = fitted(small, calibration, alpha)
        levels = Counted(small), Counted(large)
        alone = Counted(large)
        ask(alone, test)
        verdicts = ask(Cascade(levels, [found.value if found else 0.0]), test)
        accepted = np.array([verdict.level == 0 for verdict in verdicts])
        right = right_of(verdicts, test)
        name = f"cascade, alpha {alpha:g}"
        error = 1 - share(right[accepted]) if accepted.any() else 0.0
        rows += [
            Row(f"{name}: errors among what the small judge decides", error, goal=f"<= {alpha:g}"),
            Row(f"{name}: share that the small judge decides", share(accepted)),
            Row(f"{name}: agreement with gold (reference: always large)", share(right), share(large_right)),
            Row(f"{name}: agreement with gold (reference: always small)", share(right), share(small_right)),
            Row(f"{name}: tokens x layer parameters, 1e9 (reference: always large)",
                sum(level.cost for level in levels) / 1e9, alone.cost / 1e9),
            Row(f"{name}: seconds (reference: always large)", sum(level.seconds for level in levels), alone.seconds),
        ]  # fmt: skip
        bound = f"bound {found.bound:.3f}, threshold {found.value:.3g} bits" if found else "no threshold holds"
        print(f"{name}: {bound}; {share(accepted):.0%} decided by the small judge")
    return rows + split_rows(small, pairs, splits)


def fitted(small: Judge, pairs: Sequence[Pair], alpha: float) -> Threshold | None:
    """None where no threshold holds: then the large judge decides everything."""
    try:
        return fit_threshold(*measured_against(ask(small, pairs), [p.target for p in pairs]), alpha, DELTA)
    except InputError as error:
        print(f"alpha {alpha:g}: {error}", file=sys.stderr)
        return None


def split_rows(small: Judge, pairs: Sequence[Pair], splits: int) -> list[Row]:
    """The same pairs, split repeatedly."""
    uncertainties_N, errors_N = measured_against(ask(small, pairs), [pair.target for pair in pairs])
    rng, half, seen = np.random.default_rng(0), len(errors_N) // 2, []
    for _ in range(splits):
        order = rng.permutation(len(errors_N))
        one, other = order[:half], order[half:]
        try:
            value = fit_threshold(uncertainties_N[one], errors_N[one], ALPHA, DELTA).value
        except InputError:
            continue
        accepted = uncertainties_N[other] <= value
        seen.append((share(errors_N[other][accepted]), share(accepted)))
    errors, coverages = np.array(seen).T if seen else (np.zeros(1), np.zeros(1))
    name = f"cascade, alpha {ALPHA:g}, {splits} splits"
    return [
        Row(f"{name}: errors among what the small judge decides, mean", share(errors), goal=f"<= {ALPHA:g}"),
        Row(f"{name}: splits with more than alpha in their test half", share(errors > ALPHA)),
        Row(f"{name}: share that the small judge decides, mean", share(coverages)),
        Row(f"{name}: splits in which a threshold was found", len(seen) / splits),
    ]


def simulated_rows(runs: int) -> list[Row]:
    """How often the true error exceeds alpha, where it is known: 2 % + 38 % u^3 at uncertainty u."""
    rng, missed, found = np.random.default_rng(1), 0, 0
    for _ in range(runs):
        u_N = rng.random(1000)
        errors_N = rng.random(1000) < 0.02 + 0.38 * u_N**3
        try:
            t = min(1.0, fit_threshold(u_N, errors_N, ALPHA, DELTA).value)
        except InputError:
            continue
        found += 1
        missed += 0.02 + 0.38 * t**3 / 4 > ALPHA
    return [
        Row(f"{runs} simulated calibrations: share that missed alpha", missed / runs, goal=f"<= {DELTA:g}"),
        Row(f"{runs} simulated calibrations: share that found a threshold", found / runs),
    ]


def jury_rows(jurors: Sequence[MeteredJudge], large: MeteredJudge, pairs: Sequence[Pair]) -> list[Row]:
    """A jury of small judges, compared with each of them."""
    alone = [share(right_of(ask(juror, pairs), pairs)) for juror in jurors]
    reference = Counted(large)
    ask(reference, pairs)
    rows, name = [], f"jury of {len(jurors)}"
    for method in METHODS:
        counted = [Counted(juror) for juror in jurors]
        verdicts = ask(Jury(counted, JuryConfig(method=method)), pairs)
        found = share(right_of(verdicts, pairs))
        rows.append(Row(f"{name}, {method}: agreement with gold (reference: best juror)", found, max(alone)))
    # Where all jurors favour the same answer, every method gives the same result.
    said_JN = asyncio.run(Jury(jurors).poll([pair.item for pair in pairs]))
    sides_JN = np.sign([[verdict.margin or 0.0 for verdict in said_N] for said_N in said_JN])
    unanimous_N = np.abs(sides_JN.sum(0)) == len(jurors)
    first_N = right_of(said_JN[0], pairs)
    return [
        *rows,
        Row(f"{name}: agreement of a juror with gold, mean (reference: best)", share(alone), max(alone)),
        Row(f"{name}: agreement where all favour one answer (reference: first juror everywhere)",
            share(first_N[unanimous_N]), share(first_N)),
        Row(f"{name}: share where all favour one answer", share(unanimous_N)),
        Row(f"{name}: tokens x layer parameters, 1e9 (reference: large judge)",
            sum(juror.cost for juror in counted) / 1e9, reference.cost / 1e9),
    ]  # fmt: skip


def fault_rows(small: Judge, large: Judge, value: float, pairs: Sequence[Pair]) -> list[Row]:
    """Random failures of both judges."""
    rates = dict.fromkeys(FAULTS, FAULT_RATE)
    alone = ask(FaultyJudge(small, rates, seed=1), pairs)
    both = [FaultyJudge(small, rates, seed=1), FaultyJudge(large, rates, seed=2)]
    verdicts = ask(Cascade(both, [value]), pairs)
    lost, lost_alone = (share([not _is_number(v) for v in said]) for said in (verdicts, alone))
    wrong = [v for v in verdicts if v.status.valid and not _is_number(v)]
    name = f"{len(FAULTS)} faults at {FAULT_RATE:.0%} each"
    return [
        Row(f"{name}: pairs without a verdict, cascade (reference: small judge alone)", lost, lost_alone),
        Row(f"{name}: valid verdicts of the cascade that are no number", len(wrong), goal="<= 0"),
    ]


def _is_number(verdict: Verdict) -> bool:
    return verdict.margin is not None and bool(np.isfinite(verdict.margin))


def student_rows(small: MeteredJudge, large: MeteredJudge, pairs: Sequence[Pair], taught: frozenset[str]) -> list[Row]:
    """The student's test on the policy's answers."""
    held_out = [HeldOutPair(origin="policy", prompt_id=pair.prompt_id, target=pair.target) for pair in pairs]
    decision = accept(ask(small, pairs), ask(large, pairs), held_out, taught=taught)
    print(f"student {'accepted' if decision.accepted else 'refused'}: {decision.reason}")
    assert decision.lost_high is not None
    assert decision.student_gold is not None
    return [
        Row("student: agreement with its teacher on the policy's pairs", decision.agreement),
        Row("student: lower bound of that (reference: asked for)", decision.low, decision.threshold),
        Row("student: agreement with gold (reference: teacher)", decision.student_gold, decision.teacher_gold),
        Row("student: agreement with gold lost, upper bound", decision.lost_high),
        Row("student: layer parameters (reference: teacher)", small.layer_parameters, large.layer_parameters),
        Row("student: microseconds a token (reference: teacher)",
            1e6 * small.seconds_per_token, 1e6 * large.seconds_per_token),
        Row("student: accepted (1) or refused (0)", float(decision.accepted)),
    ]  # fmt: skip


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    plan = QUICK if options.quick else FULL
    torch.set_num_threads(1)
    grown, clock = nursery(), stopwatch()
    constitution = Constitution.load(grown.constitution)
    layout = JudgePrompts(COMPACT, WordEncoder(), preamble=constitution.preamble)
    large = MeteredJudge(load(grown.judge_fp), "large", layout)
    pairs = held_out_pairs(grown, constitution, plan.pairs)
    clock(f"{len(pairs)} held-out pairs")
    lessons = lessons_of(large, taught_pairs(grown, constitution, plan.taught_prompts), layout)
    clock(f"{len(lessons)} lessons")
    jurors, taught = [], frozenset[str]()
    with tempfile.TemporaryDirectory() as folder:
        # Another family for every second juror: jurors with correlated errors add nothing.
        for number, source in enumerate([grown.judge_fp, grown.audit_judge, grown.judge_fp][: plan.jurors]):
            student = Student.load(source, layers=(0,))
            config = DistilConfig(learning_rate=4e-3, epochs=plan.epochs, batch=64, seed=number)
            learned = distil(student, lessons, config)
            student.save(Path(folder) / str(number))
            jurors.append(MeteredJudge(load(Path(folder) / str(number)), f"small-{number}", layout))
            taught |= learned.taught
            clock(f"student {number}: {learned.steps} steps, loss {learned.first_loss:.3f} to {learned.last_loss:.3f}")
    small = jurors[0]
    rows = cascade_rows(small, large, pairs, plan.splits)
    rows += simulated_rows(plan.simulations)
    rows += jury_rows(jurors, large, pairs)
    threshold = fitted(small, pairs[: len(pairs) // 2], ALPHA)
    rows += fault_rows(small, large, threshold.value if threshold else 0.0, pairs)
    rows += student_rows(small, large, pairs, taught)
    clock("measured")
    report("cascade", rows, options.json)


def stopwatch() -> Callable[[str], None]:
    """Print the duration of each part."""
    last = [time.perf_counter()]

    def say(what: str) -> None:
        now = time.perf_counter()
        print(f"{what} ({now - last[0]:.0f} s)", flush=True)
        last[0] = now

    return say


if __name__ == "__main__":
    main()
