"""The user's settings for learning: the section `[learn]` of a run file.

No torch here: `solon check` reads a run file through this module and answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from learners import objectives
from learners.core.config import LoraConfig, RewardSettings, TrainerConfig, Truncated
from learners.direct.config import OnlineDPOConfig, OnlinePairs
from learners.policy_gradient.config import PolicyGradientConfig
from solon.errors import InputError

__all__ = ["LearnConfig", "LoraConfig", "Truncated"]

OBJECTIVES = {"gae": "ppo", "group": "group_relative"}
"""The objective for each kind of advantages."""
DIRECT = ("online_dpo",)
"""Objectives that learn from pairs of answers."""


class LearnConfig(OnlineDPOConfig, PolicyGradientConfig):
    """How the policy learns. `LearnConfig(objective="group_relative", learning_rate=1e-6)`"""

    objective: str = ""
    """The objective: `ppo` (a critic), `group_relative` (no critic), `online_dpo` (pairs of answers), or another module
    of `learners/objectives/` that trains on labelled rollouts. Empty: the one that `advantages` names. With `objective`
    set, `advantages` may be left out."""

    @model_validator(mode="before")
    @classmethod
    def _advantages_follow(cls, given: Any) -> Any:
        """`objective` alone is enough: the matching advantages are filled in."""
        if isinstance(given, Mapping) and "advantages" not in given:
            for advantages, objective in OBJECTIVES.items():
                if given.get("objective") == objective:
                    return {**given, "advantages": advantages}
        return given

    @model_validator(mode="after")
    def _objective_is_known(self) -> Self:
        if not self.objective:
            return self
        if self.objective in OBJECTIVES.values():
            if self.objective != OBJECTIVES[self.advantages]:
                raise ValueError(
                    f"objective = {self.objective!r} with advantages = {self.advantages!r}, which belong to "
                    f"{OBJECTIVES[self.advantages]!r}; set one of the two and leave the other out"
                )
            return self
        try:
            # Only a name that is not one of the two loads torch.
            objectives.find_for_policy(self.objective)
        except InputError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        """A setting of another family of objectives would change nothing."""
        if self.objective not in (*OBJECTIVES.values(), *DIRECT, ""):
            return self
        family = OnlinePairs if self.objective in DIRECT else PolicyGradientConfig
        other = PolicyGradientConfig if family is OnlinePairs else OnlinePairs
        for name, field in other.model_fields.items():
            shared = name in TrainerConfig.model_fields or name in RewardSettings.model_fields
            if shared or getattr(self, name) == field.default:
                continue
            instead = "beta" if family is OnlinePairs else "kl_coefficient"
            raise ValueError(
                f"{name} = {getattr(self, name)!r} has no effect with objective = {self.objective_name!r}, whose "
                f"distance from the reference is set by {instead}; remove {name}"
            )
        return self

    @property
    def objective_name(self) -> str:
        """The module of `learners/objectives/` in use."""
        return self.objective or OBJECTIVES[self.advantages]
