"""How far a policy has moved from where it started and from every policy since, on its own answers."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cluster.align.base import AlignStage, Job
from learners.core.config import NetworkConfig
from solon.engines.base import EngineOptions
from solon.errors import InputError
from solon.files.json_text import json_text
from solon.files.marks import ModelName, PromptsPath

if TYPE_CHECKING:
    from cluster.align.file import AlignFile

START = "start"
"""The anchor that is the policy of the file."""


class DriftStage(AlignStage):
    """`{ type = "drift" }`: the KL divergence of the latest policy from the start and from every policy in between."""

    kind: ClassVar[str] = "drift"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "heldout_prompts")
    more_inputs: ClassVar[tuple[str, ...]] = ("anchors",)
    makes: ClassVar[tuple[str, ...]] = ("drift",)
    code: ClassVar[tuple[str, ...]] = ("learners.drift", "solon.pipeline.rollout")

    type: Literal["drift"] = "drift"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    heldout_prompts: PromptsPath = ""
    """Empty: the file's."""
    anchors: tuple[ModelName, ...] = ()
    """Stages or models; empty: the policy of the file and those of all earlier stages."""
    max_prompts: int = Field(128, ge=2)
    answers: int = Field(2, ge=1, le=64)
    """To each prompt, at temperature 1."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer."""
    engine: EngineOptions = EngineOptions()
    network: NetworkConfig = NetworkConfig()
    """How log-probs are computed."""

    def settings(self, file: AlignFile) -> dict[str, Any]:
        return {**super().settings(file), "anchors": []}  # they are inputs

    def takes(self, file: AlignFile, earlier: Sequence[AlignStage]) -> Mapping[str, str]:
        makers = [one.name for one in earlier if "policy" in one.makes]
        measured = self.policy or (makers[-1] if makers else "")
        others = [one for one in makers if one != measured]
        since = [(START, file.policy), *((one, one) for one in others)]
        given = [(_label(one), one) for one in self.anchors] or since
        named = dict(given)
        if len(named) < len(given):
            twice = next(name for name, _ in given if [one for one, _ in given].count(name) > 1)
            raise InputError(
                f"the stage {self.name or self.kind} has two anchors named {twice!r}, expected different last parts of "
                "their paths, and no stage named `start`; rename one"
            )
        roles = super().takes(file, earlier)
        return {**roles, **{f"policy.{name}": given for name, given in named.items()}}

    def make(self, job: Job) -> None:
        self.call(job, "measure")


def _label(given: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(given).name) or "anchor"


def measure(given: Mapping[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own. Raises InputError."""
    import torch

    from learners.drift import drift
    from solon.engines.lengths import engine_config
    from solon.engines.tokens import ChatTokenizer
    from solon.feedback.labelling.dataset import first_rows
    from solon.files.data_config import ReadConfig

    anchors = {role.partition(".")[2]: path for role, path in given.items() if role.startswith("policy.")}
    ours = ChatTokenizer.load(given["policy"]).digest
    for name, path in anchors.items():
        if ChatTokenizer.load(path).digest != ours:
            raise InputError(
                f"the anchor {name!r} has another tokenizer than the policy, expected the same: log-probs of other "
                "tokens cannot be compared; leave it out of `anchors`"
            )
    prompts = [
        row.prompt
        for row in first_rows(given["heldout_prompts"], given["max_prompts"], read=ReadConfig(**given["data"]))
    ]
    engine = engine_config(given["policy"], EngineOptions(**given["engine"]), seed=given["seed"])
    answers = asyncio.run(_answers(engine, prompts, given))
    network = NetworkConfig(**given["network"])
    torch.set_num_threads(network.threads)
    found = {name: dataclasses.asdict(one) for name, one in drift(given["policy"], anchors, answers, network).items()}
    (Path(given["out"]) / "drift.json").write_text(json_text(found, indent=1), encoding="utf-8")
    return {"answers": len(answers), "kl": {name: one["nats"] for name, one in found.items()}}


async def _answers(engine: Any, prompts: Sequence[Any], given: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Token ids of prompts and of the answers to them."""
    from solon.ledger.ledger import Grant
    from solon.pipeline.rollout import RolloutSettings, RolloutWorker
    from solon.protocols import Assignment
    from solon.records import Salvage, Sampling

    sampling = Sampling(temperature=1.0, max_tokens=given["max_tokens"])
    settings = RolloutSettings(sampling=sampling, group_size=given["answers"], seed=given["seed"])
    worker = RolloutWorker(engine, settings, name="policy")
    work = [Assignment(grant=Grant(ordinal=n, attempt=0, version=0), prompt=prompt) for n, prompt in enumerate(prompts)]
    groups = {}
    await worker.start()
    try:
        async for item in worker.generate(work):
            if not isinstance(item, Salvage):
                groups[item[1].ordinal] = item[1]
    finally:
        await worker.close()
    return [
        (tuple(map(int, group.prompt_token_ids)), tuple(map(int, rollout.token_ids)))
        for _, group in sorted(groups.items())
        for rollout in group.rollouts
        if len(rollout.token_ids)
    ]
