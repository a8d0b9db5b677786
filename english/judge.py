"""The specialised judge: the first layers of SmolLM2, taught the questions of the English constitution.

It answers one kind of question, so that a third of the layers is enough, and after the question one token decides:
the whole cost is reading the prompt once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from english.answers import Answer, openings_for, write_answers
from english.lessons import Examiner, draw_passages, heldout_questions
from english.prompts import Part, draw
from english.requests import Request
from english.teaching import Teaching, TeachingConfig
from learners.core.course import CourseReport, run_course
from learners.networks.student import Student
from learners.objectives.distil import Lesson
from solon.engines.base import Engine, EngineConfig
from solon.engines.base import Request as EngineRequest
from solon.engines.tokens import ChatTokenizer, load_tokenizer
from solon.host.processor import fastest_dtype
from solon.records import Prompt

Tick = Callable[[float], None]
LAYERS = 10
"""Of the 30 of SmolLM2."""
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""No turns and no system message, which would be thirty tokens of every question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How much a judge is taught, and on how many answers."""

    requests: int = 700
    """Each answered twice."""
    passages: int = 7_000
    """Contexts with several questions each."""
    learning_rate: float = 6e-4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """Answers of the policy: two to each prompt, neighbours in the lists."""

    requests: list[Request]
    prompts: list[Prompt]
    answers: list[Answer]


def collect(policy: Path, number: int, part: Part, *, seed: int, opened: bool, tick: Tick) -> Written:
    """Two answers of the policy to each of `number` distinct prompts of a part. opened: most answers to harmful
    requests begin with a refusal or an offer that the policy continues."""
    rng = random.Random(f"collect-{seed}-{part}")
    drawn: dict[str, tuple[Request, Prompt]] = {}
    while len(drawn) < number:
        request, prompt = draw(rng, part)
        drawn.setdefault(prompt.prompt_id, (request, prompt))
    requests = [request for request, _ in drawn.values() for _ in range(2)]
    prompts = [prompt for _, prompt in drawn.values() for _ in range(2)]
    openings = openings_for(rng, prompts) if opened else ()
    return Written(requests, prompts, write_answers(policy, prompts, seed=seed, openings=openings, tick=tick))


def teach(policy: Path, target: Path, written: Written, course: Course, *, threads: int, tick: Tick) -> CourseReport:
    """Teach a judge from the first layers of the policy's base model, and save it."""
    import torch

    torch.set_num_threads(threads)
    tokenizer = judge_tokenizer(policy)
    examiner = Examiner(ChatTokenizer(tokenizer))
    passages = draw_passages(examiner, written.requests, written.answers, course.passages, seed=course.seed)
    student = Student.load(policy, layers=range(LAYERS))
    # The labels are two of 49,152 tokens: what the embeddings know is enough.
    student.network.get_input_embeddings().weight.requires_grad_(False)
    dtype = getattr(torch, fastest_dtype())
    config = TeachingConfig(learning_rate=course.learning_rate, seed=course.seed)
    report = run_course(Teaching(student, config, dtype=dtype), passages, config, tick=tick)
    student.eval().save(target)
    tokenizer.save_pretrained(target)
    return report


def judge_tokenizer(policy: Path) -> Any:
    """The policy's tokenizer with the chat template of a model that is only ever asked questions."""
    tokenizer = load_tokenizer(str(policy))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def questions(examiner: Examiner, written: Written) -> dict[str, list[Lesson]]:
    """Questions about answers as the policy wrote them."""
    pairs = [written.answers[index : index + 2] for index in range(0, len(written.answers), 2)]
    return heldout_questions(examiner, written.prompts[::2], pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeScores:
    """Agreement and rate of a judge on held-out questions."""

    agreement: Mapping[str, float]
    """Share of verdicts on the programs' side, by `task/wish`, and `pairwise` and `pointwise` over all of a task."""
    majority: Mapping[str, float]
    """Agreement of a judge that always gives the more frequent verdict, by the same keys."""
    asked: Mapping[str, int]
    """Questions, by the same keys."""
    per_second: float
    """Verdicts per second, on two threads, without the first batch."""


def evaluate_judge(model: Path, lessons: Mapping[str, Sequence[Lesson]]) -> JudgeScores:
    """Ask a judge held-out questions in the engine that serves it."""
    engine = open_engine(model)
    asked = [(key, lesson) for key, found in lessons.items() for lesson in found]
    random.Random(0).shuffle(asked)
    warm = min(64, len(asked) // 4)  # prepares kernels
    right = ask(engine, [lesson for _, lesson in asked[:warm]])
    started = time.perf_counter()
    right += ask(engine, [lesson for _, lesson in asked[warm:]])
    seconds = time.perf_counter() - started
    keys = [key for key, _ in asked]
    first = shares(keys, [lesson.margin > 0 for _, lesson in asked])
    return JudgeScores(
        agreement=shares(keys, right),
        majority={key: max(share, 1 - share) for key, share in first.items()},
        asked={key: sum(key in (one, one.partition("/")[0]) for one in keys) for key in first},
        per_second=(len(asked) - warm) / seconds,
    )


def open_engine(model: Path) -> Engine:
    """The engine of a judge, as a run would build it on two threads."""
    from solon.engines.build import build_engine

    config = EngineConfig(model=str(model), max_model_len=640, max_running=128, threads=2, dtype=fastest_dtype())
    return build_engine(config, name=model.name)


def ask(engine: Engine, lessons: Sequence[Lesson]) -> list[bool]:
    """Whether the engine gives the programs' verdict, for each lesson."""
    for index, lesson in enumerate(lessons):
        question = lesson.question
        ids, labels = question.prompt_token_ids, question.label_ids
        engine.add(EngineRequest(request_id=str(index), prompt_token_ids=ids, max_tokens=1, label_ids=labels))
    right: dict[int, bool] = {}
    while engine.has_work():
        for done in engine.step():
            index, (first, second) = int(done.request_id), done.label_logprobs
            right[index] = (first > second) == (lessons[index].margin > 0)
    return [right[index] for index in range(len(lessons))]


def shares(keys: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    """Share of right verdicts by `task/wish`, and over all of a task."""
    found: dict[str, list[bool]] = {}
    for key, one in zip(keys, right, strict=True):
        for name in (key, key.partition("/")[0]):
            found.setdefault(name, []).append(one)
    return {name: sum(all_of) / len(all_of) for name, all_of in sorted(found.items())}
