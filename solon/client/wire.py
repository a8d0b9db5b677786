"""Messages of the feedback service. Both sides use these classes; unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from solon.verdicts import Status

Text = Annotated[str, Field(max_length=1_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,60}$")]


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi!"}]}
"""Of the examples in the interface's description."""


class Turn(Message):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Asked(Message):
    """A conversation that was answered."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=256)]
    """The last one is the user's."""
    tags: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)] = Field(default_factory=list)
    """Decide which principles apply."""


class Scored(Asked):
    """One answer to be scored."""

    answer: Text
    is_cut: bool = False
    """It ended at the length limit."""


class Compared(Asked):
    """Two answers to be compared."""

    first: Text
    second: Text


class Answered(Asked):
    """One answer to be criticised."""

    answer: Text
    principle: Annotated[str, Field(max_length=200)] = ""
    """Id of a principle; empty: one is drawn among those that apply, the same for the same conversation."""


class Revised(Answered):
    """One answer to be revised."""

    critique: Text | None = None
    """Null: one is written first. Empty: revise without one."""


class CritiquesRequest(Message):
    """`POST /v1/critiques`"""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{**_HI, "answer": "Go away."}]}]})

    items: Annotated[list[Answered], Field(min_length=1)]
    writer: Name = "writer"
    stream: bool = False
    """Send each result as a server-sent event when it is made: `{id, writer, index, result}`, at last `{usage}`."""


class RevisionsRequest(Message):
    """`POST /v1/revisions`"""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{**_HI, "answer": "Go away."}]}]})

    items: Annotated[list[Revised], Field(min_length=1)]
    writer: Name = "writer"
    stream: bool = False
    """As in CritiquesRequest."""


class TextUsage(Message):
    """What texts cost."""

    prompt_tokens: int
    completion_tokens: int


class Critique(Message):
    """What is wrong with an answer by one principle."""

    principle: str
    critique: str
    is_cut: bool = False
    """It ended at the length limit."""


class Revision(Message):
    """An answer revised by one principle."""

    principle: str
    critique: str
    """Empty: it was revised without one."""
    revision: str
    is_cut: bool = False
    """It ended at the length limit."""


class CritiquesReply(Message):
    """Results in the order of the items."""

    id: str
    writer: str
    results: list[Critique]
    usage: TextUsage


class RevisionsReply(Message):
    """Results in the order of the items."""

    id: str
    writer: str
    results: list[Revision]
    usage: TextUsage


class ScoresRequest(Message):
    """`POST /v1/scores`"""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [{**_HI, "answer": "Hello!"}]}]})

    items: Annotated[list[Scored], Field(min_length=1)]
    judge: Name = "default"


class PreferencesRequest(Message):
    """`POST /v1/preferences`"""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{**_HI, "first": "Hello!", "second": "Go away."}]}]}
    )

    items: Annotated[list[Compared], Field(min_length=1)]
    judge: Name = "default"


class Verdict(Message):
    """What the judge said under one principle."""

    principle: str
    question: str = ""
    """Which of a principle's questions, where it has several."""
    status: Status
    """Only `ok` and `tie` have a margin."""
    margin: float | None
    """Calibrated log-odds, nats: of yes, or of the first answer."""
    probability: float | None
    """The same between 0 and 1."""
    mass: float
    """Probability on the answer labels."""
    consistent: bool | None = None
    """Comparisons: whether both orders favour the same answer; null when one order was asked."""
    position_offset: float | None = None
    """Comparisons: how much the judge favours the answer shown first, nats."""
    detail: str = ""
    """The error, or the judge's critique or thought."""


class Score(Message):
    """Of one answer."""

    reward: float | None
    """Over all principles; null where a verdict is missing."""
    verdicts: list[Verdict]


class Preference(Message):
    """Of two answers."""

    margin: float | None
    """Over all principles, nats; positive: the first is better. Null where a verdict is missing."""
    probability: float | None
    """That the first one is better."""
    preferred: Literal["first", "second", "tie"] | None
    verdicts: list[Verdict]


class Usage(Message):
    """What the answer cost."""

    labels: int
    questions: int
    """Asked of the engine, cache hits included."""
    cache_hits: int
    prompt_tokens: int
    output_tokens: int


class JudgeCard(Message):
    """A judge of the service."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["solon"] = "solon"
    model: str
    quantization: str
    constitution: str
    constitution_hash: str
    ready: bool
    writes: bool = False
    """It writes critiques, revisions and answers, and gives no verdicts."""


class ModelCard(Message):
    """A policy of the policy service, or a comparison of several."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["solon"] = "solon"
    created: int
    """Seconds since the epoch."""
    version: str = ""
    """Label of the weights that answer now."""
    digest: str = ""
    """Of these weights."""
    arms: list[str] = Field(default_factory=list)
    """Of a comparison."""
    ready: bool
    swaps: int = 0
    """Versions replaced since the service started."""


class Models(Message):
    """`GET /v1/models` of the policy service"""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Judges(Message):
    """`GET /v1/models`"""

    object: Literal["list"] = "list"
    data: list[JudgeCard]


class ScoresReply(Message):
    """Results in the order of the items."""

    id: str
    judge: str
    results: list[Score]
    usage: Usage


class PreferencesReply(Message):
    """Results in the order of the items."""

    id: str
    judge: str
    results: list[Preference]
    usage: Usage


class Problem(Message):
    """Why a request failed."""

    message: str
    type: str
    param: str | None = None
    """The field that is wrong."""
    code: str | None = None


class Failure(Message):
    """The body of every reply that is no success, in the form of OpenAI's interface."""

    error: Problem


class PolicyHealth(Message):
    """`GET /health` of the policy service"""

    status: Literal["ok", "unavailable"]
    policies: dict[str, str]
    """`ready`, or why not, by name."""
    versions: dict[str, str]
    """Label of the weights that answer, by name."""


class Health(Message):
    """`GET /health`"""

    status: Literal["ok", "unavailable"]
    judges: dict[str, str]
    """Judges and writers by name: `ready`, or why not."""
