"""The section `[data]`: which column and split holds the prompts, and what becomes of those that do not fit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReadConfig(BaseModel):
    """Which part of a file or dataset is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field("prompt", min_length=1)
    """The column (key of a JSON object) that holds the prompt: text, or a list of messages."""
    json_messages: bool = True
    """A text that is a JSON list of {role, content} is read as these messages. False: it is a text like any other."""
    split: str = ""
    """Split of a saved or hub dataset, or of a folder with files such as `train-00000-of-00002.parquet`; empty: the
    only one there is."""
    subset: str = ""
    """Configuration of a hub dataset; empty: its default."""


class DataConfig(ReadConfig):
    """Training and held-out prompts."""

    heldout_split: str = ""
    """Split of `evaluate.prompts`; empty: `split`."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Share of rows that may be broken (unreadable, another form); more: the file is refused."""
    refused: Literal["drop", "error"] = "drop"
    """Prompts that the policy's chat template refuses."""
    overlong: Literal["drop", "error", "cut"] = "drop"
    """Prompts longer than rollout.max_model_len less rollout.max_tokens. `cut` removes the oldest turns, then the
    beginning of the last user turn, never a system message."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Prompts with the same messages as an earlier one. Kept, they are drawn that much more often."""
    heldout_overlap: Literal["warn", "drop", "error"] = "warn"
    """Training prompts that are held out as well; `drop` removes them from training."""

    @property
    def heldout(self) -> ReadConfig:
        """How the held-out prompts are read."""
        changed = {"split": self.heldout_split or self.split}
        return ReadConfig(**self.model_dump(include={*ReadConfig.model_fields} - {"split"}), **changed)
