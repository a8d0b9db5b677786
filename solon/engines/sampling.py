"""How answers are sampled: the settings that the learner can reproduce, and the refused ones with the reason.

The learner weights every token by its sampling probability, so it must recompute the same distribution. Filters can be
recomputed from a position's own logits. Settings that depend on earlier tokens cannot, or would train a policy other
than the served one.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from solon.records import LEAST_TEMPERATURE, Filters, Sampling

_PENALTY = (
    "it changes with the tokens written before, so the policy that is trained would differ from the one that is "
    "served; put a principle against repetition into the constitution, or set min_p"
)
_STEERING = "it changes the policy only while sampling, so none of it is learned; put a principle into the constitution"
_SEARCH = "a search draws no samples, and a policy gradient needs them; set group_size for more answers to a prompt"
REFUSED = {
    **dict.fromkeys(("repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size"), _PENALTY),
    **dict.fromkeys(("dry_multiplier", "repetition_detection"), _PENALTY),
    **dict.fromkeys(("logit_bias", "bad_words", "allowed_token_ids", "suppress_tokens"), _STEERING),
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice", "grammar"), _STEERING),
    **dict.fromkeys(("use_beam_search", "beam_width", "num_beams", "best_of", "length_penalty"), _SEARCH),
    **dict.fromkeys(
        ("typical_p", "top_a", "eta_cutoff", "epsilon_cutoff", "tfs", "mirostat", "mirostat_mode"),
        "the engines do not draw by it; set top_p, top_k or min_p",
    ),
    "ignore_eos": "an answer would not end where the policy ends it; set min_tokens",
    "n": "answers to a prompt are set by another key; set group_size",
}
"""Sampling settings of other systems: why each is refused, and the remedy."""


class SamplingOptions(BaseModel):
    """How answers are sampled. `SamplingOptions(temperature=0.7, top_p=0.9, stop=("\\n\\n",))`

    The order is that of vLLM: `min_tokens`, temperature, `min_p`, `top_k`, `top_p`, each applied to the result of the
    previous one. Training and evaluation use the policy with these settings: serve it with the same ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(256, ge=1)
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Divisor of the logits; at least 0.01."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample only from the most likely tokens that together have this probability; 1: all."""
    top_k: int = 0
    """Sample only from this many of the most likely tokens; 0: all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample only from tokens with at least this share of the most likely token's probability; 0: all."""
    min_tokens: int = Field(0, ge=0)
    """An answer has at least this many tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer. The judge reads the text before the string; all sampled tokens are trained."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, in addition to the model's own."""

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key in REFUSED:
                raise ValueError(f"`{key}` is refused: {REFUSED[key]}")
        return raw

    @field_validator("top_k")
    @classmethod
    def _nothing_is_zero(cls, top_k: int) -> int:
        if top_k < 0:
            raise ValueError(f"got {top_k}, expected 0 or more; 0 turns it off")
        return top_k

    @field_validator("temperature")
    @classmethod
    def _engines_sample_at(cls, temperature: float) -> float:
        if not temperature >= LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature = {temperature:g}, expected at least {LEAST_TEMPERATURE}: below it rounding decides, and "
                "below 0.00001 vLLM takes the likeliest token and returns log-probs of temperature 1; raise it, or set "
                "top_k = 1 for the likeliest token"
            )
        return temperature

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("stop holds an empty string, expected text: it would end every answer; remove it")
        return stop

    @field_validator("stop_token_ids")
    @classmethod
    def _are_ids(cls, ids: tuple[int, ...]) -> tuple[int, ...]:
        if any(token < 0 for token in ids):
            raise ValueError(f"stop_token_ids = {list(ids)}, expected token ids of 0 or more")
        return ids

    @model_validator(mode="after")
    def _can_end(self) -> SamplingOptions:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens = {self.min_tokens} exceeds max_tokens = {self.max_tokens}; lower it")
        return self

    def sampling(self) -> Sampling:
        """The settings as engines and learner use them."""
        return Sampling(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            filters=Filters(top_p=self.top_p, top_k=self.top_k, min_p=self.min_p, min_tokens=self.min_tokens),
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
        )
