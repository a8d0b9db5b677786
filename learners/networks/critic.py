"""The value model: a copy of the policy's backbone with a scalar on top, or a scalar on the policy's own hidden states.

M response tokens of a microbatch, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from learners.core.packing import Microbatch


class Critic(nn.Module):
    """Expected reward at the position before each response token.

    `backbone` is any Hugging Face decoder without its output head (what `AutoModel` gives). The head
    starts at zero, so a new critic returns `bias` everywhere and the first advantages are rewards.
    """

    def __init__(self, backbone: Any, hidden: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, microbatch: Microbatch) -> Tensor:
        """Values in reward units, float32, [M]."""
        hidden_BTH = self.backbone(**microbatch.model_inputs()).last_hidden_state
        hidden_MH = hidden_BTH.flatten(0, 1).index_select(0, microbatch.predict_M)
        # A value is a regression target: bfloat16 would round it to three digits.
        with torch.autocast(hidden_MH.device.type, enabled=False):
            values_M: Tensor = self.head(hidden_MH.float())[:, 0].clone()  # FSDP hooks the output, and not views
        return values_M

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """Return `value` everywhere until trained: the mean return of the first batch is a better start than 0."""
        self.head.bias.fill_(value)


class ValueHead(nn.Linear):
    """Expected reward at the position before each response token, from the policy's last hidden states. It starts at
    zero, as `Critic` does.

    The gradient that reaches the policy is multiplied by `coefficient`; that of the head itself is not. 0: the
    policy does not learn from values.
    """

    def __init__(self, hidden: int, coefficient: float) -> None:
        super().__init__(hidden, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.coefficient = coefficient

    def forward(self, hidden_MH: Tensor) -> Tensor:
        """Values in reward units, float32, [M]."""
        hidden_MH = _Weakened.apply(hidden_MH, self.coefficient) if self.coefficient else hidden_MH.detach()  # type: ignore[no-untyped-call]
        with torch.autocast(hidden_MH.device.type, enabled=False):
            values_M: Tensor = super().forward(hidden_MH.float())[:, 0].clone()  # FSDP hooks the output, and not views
        return values_M

    @torch.no_grad()
    def start_at(self, value: float) -> None:
        """As `Critic.start_at`."""
        self.bias.fill_(value)


class _Weakened(torch.autograd.Function):
    """The same values; their gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return slope * ctx.coefficient, None
