"""How feedback is requested and turned into a reward."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from solon.feedback.caches.cache import CacheConfig
from solon.feedback.caches.semantic import SemanticConfig
from solon.feedback.panels.panel_config import CascadeSection, JurySection
from solon.feedback.panels.selective import SelectionSection
from solon.feedback.prompting.swap import SwapConfig
from solon.files.marks import FilePath
from solon.verdicts import Task


def _shown(value: Any) -> Any:
    """Earlier files have true or false."""
    return {True: "marked", False: "none"}.get(value, value) if isinstance(value, bool) else value


AROUND_WRITTEN = 8
"""Tokens between a critique or thought and the verdict."""


class FeedbackConfig(BaseModel):
    """`FeedbackConfig(task="pairwise", comparisons=2)`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = "pointwise"
    """`pointwise`: a yes/no question about each answer. `pairwise`: which of two answers of a group is better.
    `predicate`: the principles' yes/no facts about each answer. `score`: a mark for each answer."""
    template: Literal["compact", "assistant", "specialised"] = "assistant"
    """Fixed words around the data: `compact` for tiny models, `assistant` for real ones, `specialised` for judges that
    were trained on Solon's questions (no instructions, fewer tokens)."""
    tell_cut: bool = True
    """Tell the judge when an answer ended at the length limit (template `assistant`)."""
    show_thoughts: Annotated[Literal["none", "marked", "plain"], BeforeValidator(_shown)] = "none"
    """What the judge sees of a thinking model's thought. `none`: only the answer. `marked`: the thought between marks,
    then the answer; true means this. `plain`: both as one text. Thoughts are stored on disk either way."""
    principles_per_group: int | None = Field(None, ge=0)
    """Principles sampled for each group among those that apply; 0: all of them; not given: by the constitution's
    `sampling`."""
    comparisons: int = Field(1, ge=1)
    """Pairwise: number of neighbours in the group with which each answer is compared."""
    pairwise: Literal["least_squares", "mean"] = "least_squares"
    """Pairwise: how a group's comparisons become rewards. `least_squares`: rewards whose differences fit the margins
    best. `mean`: mean margin of an answer, however good its opponents are."""
    pairwise_ridge: float = Field(0.2, gt=0, le=1e6)
    """Least squares: variance of a margin's noise over the variance of the answers. A very noisy judge needs 1 or more;
    the larger the value, the closer the rewards are to `mean`."""
    aggregation: Literal["", "mean", "weighted", "min", "lexicographic"] = ""
    """How the principles' margins become one reward; empty: by the constitution's `aggregation`."""
    margin_clip: float = Field(3.0, gt=0)
    """Margins are clipped to this many nats before aggregation, so that no principle outweighs all others."""
    temperature: float = Field(1.0, gt=0)
    """Margins are divided by it (calibration)."""
    min_mass: float = Field(0.5, gt=0, le=1)
    """A judge that puts less probability than this on its answer labels gives no verdict."""
    tie_band: float = Field(0.1, ge=0)
    """A margin below this many nats is a tie; it keeps its value."""
    min_valid: int = Field(2, ge=1)
    """A group with fewer labelled answers than this is dropped and replaced."""
    batch_questions: int = Field(256, ge=1)
    """Most questions sent to the judge in one batch."""
    batch_tokens: int = Field(65536, ge=1)
    """Most prompt tokens sent to the judge in one batch."""
    batch_age_ms: float = Field(5.0, ge=0)
    """How long a question waits for others while the judge is busy."""
    batch_order: Literal["prefix", "length", "arrival"] = "prefix"
    """Order of questions in a batch. `prefix`: questions with a common beginning together, for an engine with a prefix
    cache; `length`: similar lengths together, for one that pads."""
    swap: SwapConfig = SwapConfig()
    """Pairwise: when the second order is asked."""
    calibration: FilePath = ""
    """File with the judge's calibration, written by `solon judges calibrate`; empty: margins are divided by
    `temperature`."""
    critique_tokens: int = Field(0, ge=0, le=1024)
    """Above 0: the judge writes a critique of at most this many tokens before each verdict."""
    thought_tokens: int = Field(0, ge=0, le=32768)
    """Above 0: a thinking judge writes a thought of at most this many tokens before each verdict. One that does not end
    by then gives no verdict. `judging.max_model_len` must have room for it."""
    cache: CacheConfig = CacheConfig()
    """The exact cache of verdicts."""
    semantic: SemanticConfig = SemanticConfig()
    """The semantic cache; off unless it names an encoder."""
    programs: FilePath = ""
    """File of functions that decide some of the principles in place of the judge (docs/feedback.md); empty: none."""
    cascade: CascadeSection = CascadeSection()
    """A second judge for items where the first is unsure."""
    jury: JurySection = JurySection()
    """Further judges that judge every item."""
    select: SelectionSection = SelectionSection()
    """A cheap judge for all items, the judge itself for a selection; for rewards, see `SelectiveJudge`."""

    @model_validator(mode="after")
    def _one_panel(self) -> Self:
        named = {
            "cascade.judge": self.cascade.judge,
            "jury.judges": self.jury.judges,
            "select.proxy": self.select.proxy,
        }
        if len(given := [key for key, value in named.items() if value]) > 1:
            raise ValueError(f"{' and '.join(given)} are set, expected at most one; remove the others")
        if self.select.proxy and self.semantic.model:
            raise ValueError("select.proxy and semantic.model are both set, expected at most one; remove one")
        if self.critique_tokens and self.thought_tokens:
            raise ValueError("critique_tokens and thought_tokens are both set, expected at most one; set one to 0")
        if self.jury.judges and self.jury.min_jurors > len(self.jury.judges) + 1:
            raise ValueError(
                f"jury.min_jurors = {self.jury.min_jurors}, but there are {len(self.jury.judges) + 1} jurors; lower it"
            )
        return self

    @property
    def written_tokens(self) -> int:
        """Most tokens between a question and its verdict: of a critique or a thought, and of the words around it."""
        written = self.critique_tokens or self.thought_tokens
        return written + AROUND_WRITTEN if written else 0

    @property
    def panel(self) -> tuple[str, ...]:
        """Further judges named by these settings."""
        return tuple(name for name in (self.cascade.judge, *self.jury.judges, self.select.proxy) if name)
