"""What is refused, where, and why. Everything else in the matrix must work."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.architectures import ARCHITECTURES

MATRIX = tuple(name for name in ARCHITECTURES if name != "llama4")
"""vLLM reads Llama 4 only in its multimodal form; the learner's own tests cover its chunked attention."""
POLICY = r"(sampled|published|saved)\w*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    names: tuple[str, ...]
    stages: str
    """Pattern of their names."""
    words: str
    """Pattern of the error's message."""
    reason: str
    """The text on the page."""


REFUSALS = (
    Refusal(
        names=("gpt_oss", "mixtral", "qwen3_moe"),
        stages=POLICY,
        words="mixture of 4 experts",
        reason="A mixture of experts is no policy: engines hold experts in another layout than the files and would "
        "keep the old ones after a publication. As a judge it is read exactly.",
    ),
    Refusal(
        names=("gpt_oss", "mixtral", "qwen3_moe"),
        stages="quantised",
        words="mixture of experts, whose layers are not quantised",
        reason="Experts are not quantised here.",
    ),
    Refusal(
        names=("cohere2",),
        stages=r"\w*vllm|quantised",
        words="see 9 tokens where Transformers",
        reason="vLLM lets the windowed layers of Cohere 2 see one token more than Transformers, which trains them. "
        'Set `backend = "transformers"`, or a `max_model_len` that the window holds.',
    ),
    Refusal(
        names=("qwen2_some_windows",),
        stages=r"\w*vllm|quantised",
        words="1 of its 2 layers have a sliding window",
        reason="vLLM gives a window to all layers of Qwen2 and Qwen3, or to none. "
        'Set `backend = "transformers"` where `max_window_layers` lies between.',
    ),
    Refusal(
        names=("gpt2",),
        stages="quantised",
        words="no linear layers",
        reason="GPT-2 keeps its weights in `Conv1D` layers, which are not quantised here.",
    ),
)


def refusal_of(name: str, stage: str) -> Refusal | None:
    return next((r for r in REFUSALS if name in r.names and re.fullmatch(r.stages, stage)), None)
