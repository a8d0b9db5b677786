"""The section `[data]`: the column and split of the prompts, and the treatment of prompts that do not fit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReadConfig(BaseModel):
    """Which part of a file or dataset is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field("prompt", min_length=1)
    """The column (key of a JSON object) that holds the prompt: text, or a list of messages."""
    json_messages: bool = True
    """Read a text that is a JSON list of {role, content} as these messages. False: treat it as any other text."""
    split: str = ""
    """Split of a saved or hub dataset, or of a folder with files such as `train-00000-of-00002.parquet`; empty: its
    only split."""
    subset: str = ""
    """Configuration of a hub dataset; empty: its default."""


class DataConfig(ReadConfig):
    """Training and held-out prompts."""

    heldout_split: str = ""
    """Split of `evaluate.prompts`; empty: `split`."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Largest share of broken rows (unreadable or malformed); above it the file is refused."""
    refused: Literal["drop", "error"] = "drop"
    """Treatment of prompts that the policy's chat template refuses."""
    overlong: Literal["drop", "error", "cut"] = "drop"
    """Treatment of prompts longer than rollout.max_model_len minus rollout.max_tokens. `cut` removes the oldest turns,
    then the beginning of the last user turn, never a system message."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Treatment of prompts with the same messages as an earlier one. If kept, they are drawn more often."""
    heldout_overlap: Literal["warn", "drop", "error"] = "warn"
    """Treatment of training prompts that are also held out; `drop` removes them from training."""

    @property
    def heldout(self) -> ReadConfig:
        """Settings for reading the held-out prompts."""
        changed = {"split": self.heldout_split or self.split}
        return ReadConfig(**self.model_dump(include={*ReadConfig.model_fields} - {"split"}), **changed)
