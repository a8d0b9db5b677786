"""The smaller parts of a constitution file: when a principle applies, its facts, its examples, its unit tests."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from solon.files.prompts import parse_messages, prompt_id
from solon.records import Message, Prompt


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank, expected a text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Id = Annotated[str, Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Section(BaseModel):
    """A part of a constitution file. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Keys added after the first release. They are omitted when they hold their default, so that a file without them
    keeps its hash."""

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        for name in self.ADDED:
            if getattr(self, name) == fields[name].get_default(call_default_factory=True):
                content.pop(name, None)
        return content


class AppliesIf(Section):
    """The prompts to which a principle applies, by their tags; empty means all."""

    tags_any: tuple[str, ...] = ()
    tags_none: tuple[str, ...] = ()

    def __call__(self, prompt: Prompt) -> bool:
        tags = set(prompt.tags)
        return (not self.tags_any or bool(tags & set(self.tags_any))) and not tags & set(self.tags_none)


class Predicate(Section):
    """A yes/no fact about one answer. `{id: names_the_doubt, question: Does the answer say what is uncertain?}`"""

    id: Id
    question: Text
    polarity: Literal[1, -1] = 1
    """-1: yes speaks against the answer."""


class Example(Section):
    """A good and a bad answer, for people and for judges that are shown examples."""

    prompt: Text
    good: str
    bad: str

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if self.good.strip() == self.bad.strip():
            raise ValueError("`good` and `bad` are the same text, expected two answers; change one")
        return self


class Turn(Section):
    """One turn of the conversation of a unit test."""

    role: Literal["system", "user", "assistant"]
    content: str


class UnitTest(Section):
    """The expected verdict of a judge under this constitution.

    `{prompt: "Is the earth flat?", a: "No.", b: "Yes.", expect: a, principle: true-claims}`. Without a principle, all
    applicable ones are asked and aggregated.
    """

    prompt: str | tuple[Turn, ...]
    """Text, or a conversation that ends with the user."""
    a: str
    b: str
    expect: Literal["a", "b", "tie"]
    principle: str = ""
    tags: tuple[str, ...] = ()
    """Tags of the prompt, which decide the applicable principles."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_a_conversation(cls, value: Any) -> Any:
        messages = parse_messages(list(value) if isinstance(value, tuple) else value)
        return value if isinstance(value, str) else [{"role": m.role, "content": m.content} for m in messages]

    @model_validator(mode="after")
    def _answers_differ(self) -> Self:
        if self.a.strip() == self.b.strip():
            raise ValueError("`a` and `b` are the same text, which tests nothing; change one")
        return self

    def as_prompt(self) -> Prompt:
        """The prompt of the answers."""
        turns = (Turn(role="user", content=self.prompt),) if isinstance(self.prompt, str) else self.prompt
        messages = tuple(Message(role=turn.role, content=turn.content) for turn in turns)
        return Prompt(prompt_id=prompt_id(messages), messages=messages, tags=self.tags)
