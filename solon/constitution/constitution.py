"""The constitution: principles, their questions to a judge, and a hash of the whole text.

A YAML file (`schema: solon.constitution/v1`). It is checked when loaded. Every label carries its hash, so the text
behind a label is always known.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from solon.constitution.arguments import PLACE, named, with_arguments
from solon.constitution.file import MAX_CHARACTERS, parse_yaml
from solon.constitution.rules import Aggregation, PrincipleSampling
from solon.constitution.sections import AppliesIf, Example, Id, Predicate, Section, Text, UnitTest
from solon.errors import InputError, nearest
from solon.files.text_file import read_text
from solon.files.validation import describe_invalid
from solon.records import Prompt
from solon.verdicts import Task

SCHEMA = "solon.constitution/v1"
"""Which of two answers is better; is this answer good; is this fact true of it; how good is it on a scale."""
NEEDED: Mapping[Task, str] = {
    "pairwise": "pairwise_question",
    "pointwise": "pointwise_question",
    "predicate": "predicates",
    "score": "score_anchors",
}
"""The key of a principle that holds the questions of each task."""
COMPLETE = ("pairwise_question", "critique_request", "revision_request")
"""Required in every principle of a constitution that can both revise answers and compare them."""


class Principle(Section):
    """One rule of good behaviour, with its questions.

    At least one question is required: `pairwise_question` (which of two answers is better), `pointwise_question`
    (a yes/no question about one answer, yes is good), `predicates` or `score_anchors`. A question may refer to the
    argument of a tag of `applies_if.tags_any`: `{mention}` is "coffee" for a prompt with the tag `mention:coffee`.
    """

    ADDED: ClassVar = frozenset({"severity", "predicates", "score_anchors", "examples"})

    id: Id
    kind: Literal["harmless", "helpful", "honest", "style", "safety"] = "helpful"
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    severity: Literal["hard", "soft"] = "soft"
    """`hard`: under lexicographic aggregation, no gain elsewhere makes up for breaking it."""
    applies_if: AppliesIf = AppliesIf()
    pairwise_question: str = ""
    pointwise_question: str = ""
    predicates: tuple[Predicate, ...] = ()
    score_anchors: dict[int, str] = Field(default_factory=dict)
    """Meaning of each mark, from 1, the worst, upwards: `{1: rude, 2: cold, 3: kind}`."""
    critique_request: str = ""
    revision_request: str = ""
    examples: tuple[Example, ...] = ()

    @field_validator("score_anchors")
    @classmethod
    def _marks_count_up(cls, anchors: dict[int, str]) -> dict[int, str]:
        marks = sorted(anchors)
        if marks and (marks != list(range(1, len(marks) + 1)) or not 2 <= len(marks) <= 9):
            raise ValueError(f"got the marks {marks[:10]}, expected 1, 2, 3 and so on, two of them to nine")
        if blank := [mark for mark in marks if not anchors[mark].strip()]:
            raise ValueError(f"mark {blank[0]} has no text, expected its meaning")
        return {mark: anchors[mark] for mark in marks}

    @model_validator(mode="after")
    def _can_be_asked_about(self) -> Self:
        if not any(self.can(task) for task in NEEDED):
            raise ValueError(
                f"principle {self.id!r} has no question, expected pairwise_question, pointwise_question, predicates "
                "or score_anchors"
            )
        if twice := _first_twice(predicate.id for predicate in self.predicates):
            raise ValueError(f"predicate id {twice!r} occurs twice in {self.id!r}, expected unique ids; rename one")
        return self

    def can(self, task: Task) -> bool:
        """Whether it has the questions of a task."""
        value = getattr(self, NEEDED[task])
        return bool(value.strip() if isinstance(value, str) else value)

    def questions(self, task: Task) -> tuple[Asked, ...]:
        """Its questions of one form: one, or one per predicate."""
        if task == "predicate":
            return tuple(Asked(self, p.question, question_id=p.id, polarity=p.polarity) for p in self.predicates)
        if task == "score":
            marks = " ".join(f"{mark}: {_sentence(text)}" for mark, text in self.score_anchors.items())
            question = f"Which mark describes the answer best? {marks}"
            return (Asked(self, question, scale=len(self.score_anchors)),)
        return (Asked(self, getattr(self, NEEDED[task])),)

    def naming(self, task: Task) -> tuple[Asked, ...]:
        """Its questions of one form that name an argument of the prompt's tags."""
        return tuple(asked for asked in self.questions(task) if asked.names(self.applies_if.tags_any))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of one principle to a judge. `Asked(principle, "Which is more polite?")`"""

    principle: Principle
    question: str
    question_id: str = ""
    """Identifies the question if the principle has several (predicates)."""
    polarity: int = 1
    """-1: yes speaks against the answer."""
    scale: int = 5
    """Score: the highest mark."""

    def about(self, prompt: Prompt) -> Asked:
        """The question as it is put about answers to a prompt. Raises InputError as `with_arguments` does."""
        tags = self.principle.applies_if.tags_any
        return replace(self, question=with_arguments(self.question, tags, prompt)) if self.names(tags) else self

    def names(self, tags: Iterable[str]) -> bool:
        """Whether it names the argument of one of these tags."""
        return "{" in self.question and bool(named(self.question, tags))


class Constitution(Section):
    """A named, versioned list of principles. `Constitution.load("constitution.yaml").principles[0].id`"""

    ADDED: ClassVar = frozenset({"aggregation", "sampling", "tests"})

    schema_: Literal["solon.constitution/v1"] = Field(alias="schema")
    id: Text
    version: Text
    language: str = "en"
    license: str = ""
    description: str = ""
    preamble: str = ""
    """The beginning of every question to a judge."""
    aggregation: Aggregation = Aggregation()
    sampling: PrincipleSampling = PrincipleSampling()
    principles: tuple[Principle, ...] = Field(min_length=1)
    tests: tuple[UnitTest, ...] = ()
    """Run against a judge by `solon check --judge`."""

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        if twice := _first_twice(principle.id for principle in self.principles):
            raise ValueError(f"principle id {twice!r} occurs twice, expected unique ids; rename one")
        return self

    @model_validator(mode="after")
    def _tests_have_principles(self) -> Self:
        known = [principle.id for principle in self.principles]
        naming = {p.id for p in self.principles if any(p.can(task) and p.naming(task) for task in NEEDED)}
        for number, test in enumerate(self.tests):
            if test.principle and test.principle not in known:
                hint = nearest(test.principle, known)
                raise ValueError(
                    f"`tests.{number}` names the principle {test.principle!r}, which does not exist{hint}; choose one "
                    f"of {', '.join(known[:20])}"
                )
            if not self._is_tested(test):
                what = f"the principle {test.principle!r} does not apply" if test.principle else "no principle applies"
                raise ValueError(
                    f"`tests.{number}`: {what} to a prompt with the tags {list(test.tags)}, so nothing would be "
                    "tested; set `tags` to those that `applies_if` requires"
                )
            if naming:
                _require_arguments(number, test, (p for p in self._tested(test) if p.id in naming))
        return self

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON: independent of comments and key order, but not of any text."""
        canonical = json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def require_hash(self, expected: str) -> None:
        """Raises InputError when the text differs from the pinned one."""
        if expected != self.hash:
            raise InputError(
                f"constitution {self.id!r} {self.version} has the hash {self.hash}, expected {expected}: its text is "
                "not the one that was pinned; go back to that text, or pin the new hash and start a new run"
            )

    def for_task(self, task: Task) -> tuple[Principle, ...]:
        """The principles with questions of this form.

        Raises InputError when one of them has none: a principle silently omitted would not be trained.
        """
        lacking = [p.id for p in self.principles if not p.can(task)]
        if lacking:
            raise InputError(
                f"constitution {self.id!r}: {', '.join(lacking)} has no {NEEDED[task]}, expected it for every "
                f"principle because feedback.task = {task!r}; add it or change feedback.task"
            )
        return self.principles

    def questions_for(self, task: Task, prompt: Prompt) -> tuple[Asked, ...]:
        """All questions of one form under the principles that apply to a prompt, in the order of the file.

        Raises InputError when a principle cannot be asked in this form, or about this prompt (`with_arguments`).
        """
        applying = [principle for principle in self.for_task(task) if principle.applies_if(prompt)]
        return tuple(asked.about(prompt) for principle in applying for asked in principle.questions(task))

    def require_arguments(self, task: Task, prompts: Iterable[Prompt]) -> None:
        """Raises InputError for a prompt that lacks an argument which a question of this form names."""
        naming = {principle.id: found for principle in self.principles if (found := principle.naming(task))}
        if not naming:
            return
        seen: set[tuple[str, ...]] = set()
        for prompt in prompts:
            if prompt.tags not in seen:
                seen.add(prompt.tags)
                for asked in (one for found in naming.values() for one in found):
                    if asked.principle.applies_if(prompt):
                        asked.about(prompt)

    def tested_by(self, test: UnitTest) -> tuple[Principle, ...]:
        """The principles of a unit test."""
        return tuple(self._tested(test))

    def _is_tested(self, test: UnitTest) -> bool:
        return any(True for _ in self._tested(test))  # the first is enough: files have thousands of both

    def _tested(self, test: UnitTest) -> Iterator[Principle]:
        prompt = test.as_prompt()
        return (p for p in self.principles if test.principle in ("", p.id) and p.applies_if(prompt))

    def warnings(self) -> list[str]:
        """Gaps that matter in real use; none of them stops a run."""
        found = []
        for key in COMPLETE:
            if lacking := [p.id for p in self.principles if not getattr(p, key).strip()]:
                found.append(f"no {key}: {', '.join(lacking)}")
        if not self.tests:
            found.append("no tests: nothing shows whether a judge understands the questions")
        elif untested := [p.id for p in self.principles if not any(t.principle == p.id for t in self.tests)]:
            found.append(f"no test of its own: {', '.join(untested)}")
        for p in self.principles:
            texts = (asked.question for task in NEEDED if p.can(task) for asked in p.questions(task))
            places = {name for text in texts for name in PLACE.findall(text)} - set(p.applies_if.tags_any)
            if meant := sorted(name for name in places if re.fullmatch(r"[\w-]+", name)):
                listed = ", ".join(f"{{{name}}}" for name in meant)
                found.append(f"{p.id}: {listed} is no tag of its applies_if.tags_any and stays in the question as text")
        known = {tag for p in self.principles for tag in (*p.applies_if.tags_any, *p.applies_if.tags_none)}
        for number, test in enumerate(self.tests):
            odd = [tag for tag in test.tags if not {tag, tag.partition(":")[0]} & known]
            hints = [f"{tag!r}{hint}" for tag in odd if (hint := nearest(tag, known))]
            found += [f"`tests.{number}`: no principle asks for the tag {hint}" for hint in hints]
        return found

    @classmethod
    def load(cls, path: str | Path, *, expected_hash: str = "") -> Constitution:
        """Read and check a file. Raises InputError with the place and the fix.

        expected_hash: if given, a text with another hash is refused.
        """
        what = f"constitution {path}"
        constitution = cls.parse(read_text(Path(path), what="constitution", most=MAX_CHARACTERS), what=what)
        if expected_hash:
            constitution.require_hash(expected_hash)
        return constitution

    @classmethod
    def parse(cls, text: str, *, what: str = "constitution") -> Constitution:
        """Check a YAML text. `what` opens the message of the InputError."""
        raw = parse_yaml(text, what=what)
        if not isinstance(raw, dict):
            raise InputError(f"{what} holds a {type(raw).__name__}, expected a mapping with `principles`")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{what}: {describe_invalid(cls, error)}") from None


def _require_arguments(number: int, test: UnitTest, principles: Iterable[Principle]) -> None:
    """Raises ValueError when a question names an argument that the tags of a test lack."""
    prompt = test.as_prompt()
    try:
        for principle in principles:
            for task in NEEDED:
                if principle.can(task):
                    [asked.about(prompt) for asked in principle.naming(task)]
    except InputError as error:
        raise ValueError(f"`tests.{number}`: {error}") from None


def _first_twice(ids: Iterable[str]) -> str | None:
    return next((one for one, times in Counter(ids).items() if times > 1), None)


def _sentence(text: str) -> str:
    """The text with a full stop, so that the marks of a scale do not run together."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
