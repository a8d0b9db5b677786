"""A smaller copy of the policy, if a gate finds that it kept its alignment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cluster.align.base import AlignStage, Job
from compression.pruning.plan import Pruning
from solon.errors import InputError, RunFailedError
from solon.files.json_text import json_text
from solon.files.marks import ModelName, PromptsPath


class CompressStage(AlignStage):
    """`{ type = "compress", size = 0.3, recover = true }`"""

    kind: ClassVar[str] = "compress"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "preferences")
    makes: ClassVar[tuple[str, ...]] = ("policy",)
    code: ClassVar[tuple[str, ...]] = (
        "compression.workflow",
        "compression.request",
        "compression.reading",
        "compression.screen",
        "compression.distil",
        "compression.repair",
        "compression.pruning.prune",
    )

    type: Literal["compress"] = "compress"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    preferences: PromptsPath = ""
    """What must be kept, best pairs that the policy was not trained on; empty: the latest preferences."""
    form: str = ""
    """One format for all layers; empty: `size` decides."""
    size: float = Field(0.0, ge=0, lt=1)
    """Largest share of the bytes of the linear layers; formats are then chosen by layer."""
    prune: str = ""
    """What is removed first, such as `channels=0.25`: shares of weights, channels, groups or layers; empty: nothing."""
    screen: float = Field(0.0, ge=0, le=1)
    """Share of the layers that are swept, chosen by gradients; 0: all."""
    algorithm: Literal["rtn", "gptq", "smoothquant", "awq"] = "rtn"
    """How weights are rounded; `smoothquant` is for `w8a8` and `fp8`, `awq` for int4."""
    gate: Literal["strict", "lenient"] = "strict"
    """How much may be lost."""
    recover: bool = True
    """Try further copies when one is rejected."""
    repair_rate: float = Field(1e-5, gt=0)
    """Learning rate of the training on the grid that recovery ends with."""
    max_tokens: int = Field(1024, ge=8)
    """Longest conversation of a pair."""
    answers: int = Field(480, ge=0)
    """Answers that are written and searched for repetition."""
    serve: bool = True
    """Let vLLM load the accepted copy and measure speed."""

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        try:
            pruning = Pruning.parsed(self.prune)
        except InputError as error:
            raise ValueError(str(error)) from None
        if bool(self.form) == bool(self.size) and (self.form or not pruning.is_any):
            raise ValueError("expected form or size, the target of the compression; give one of the two")
        return self

    def make(self, job: Job) -> None:
        self.call(job, "compress_policy")


def compress_policy(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError; RunFailedError when the alignment was not kept."""
    from compression.reading import policy_pairs
    from compression.request import Request
    from compression.workflow import Compression

    out, model = Path(given["out"]), Path(given["policy"])
    pairs, _ = policy_pairs(model, Path(given["preferences"]), max_tokens=given["max_tokens"])
    chosen = {
        name: given[name]
        for name in ("form", "size", "screen", "algorithm", "gate", "recover", "repair_rate", "answers", "serve")
    }
    request = Request(
        model=model,
        out=out / "model",
        work=Path(given["scratch"]) / "work",
        pruning=Pruning.parsed(given["prune"]),
        **chosen,
    )
    report = Compression(request, pairs, say=print).run()
    if report["out"] is None:
        raise RunFailedError(f"the alignment was not kept: {report['reason']}")
    whole = {name: value for name, value in report.items() if name not in ("model", "out")}
    (out / "compression-report.json").write_text(json_text(whole, indent=1), encoding="utf-8")
    return {"reason": report["reason"], "linear_bytes": report["linear_bytes"]}
