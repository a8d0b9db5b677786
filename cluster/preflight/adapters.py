"""Whether adapters can be published alone: what trains, what the engine takes, and the weights below the adapters."""

from __future__ import annotations

import re

from cluster.config.run_file import RunFile
from cluster.preflight.engines import check_engine, on_cpu
from cluster.preflight.models import check_model
from learners.config import LoraConfig
from solon.errors import InputError
from solon.models.facts import ModelFacts
from solon.models.known import takes_adapters

SHAPE = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads")  # fmt: skip
"""Keys of config.json in which a policy and the weights below its adapters agree."""


def check_adapters(policy: ModelFacts, run: RunFile) -> list[str]:
    """Raises InputError for a policy whose adapters no engine takes; returns warnings. Nothing is loaded."""
    if run.publish.way == "merged" or run.learn.lora is None:
        return []
    if takes_adapters(policy.architecture) is False:
        raise InputError(
            f"publish.way = 'adapter', and vLLM serves no adapters of {policy.architecture}; set publish.way = 'merged'"
        )
    _check_ends(policy, run.learn.lora)
    if not (name := run.rollout.base_model):
        return []
    base = check_model(
        name, role="base", opt_in="rollout", trusted=run.rollout.trust_remote_code, certified_as=("policy",)
    )
    if base is None:
        return [f"rollout.base_model {name} is not on this machine: whether it fits the policy was not looked at"]
    _check_same(policy, base)
    if base.quantisation and on_cpu(run.rollout):
        raise InputError(
            f"rollout.base_model {base.path} is quantised ({base.quantisation}), expected a GPU for it: vLLM's kernels "
            "for CPUs drop the weights that its adapters are placed beside; set rollout.num_gpus or remove it"
        )
    return check_engine(base, run.rollout, role="base", section="rollout", on_cpu=on_cpu(run.rollout))


def _check_ends(policy: ModelFacts, lora: LoraConfig) -> None:
    """Embedding and head are no layers that an engine adapts."""
    names = [name.removesuffix(".weight") for name in policy.tensors if name.endswith(".weight")]
    ends = sorted({name for name in names if re.search(r"(^|\.)(lm_head|embed_\w+|wte|wpe|embed_out)$", name)})
    targets = lora.target_modules
    if targets == "all-linear":
        return
    if isinstance(targets, str):
        found = [name for name in ends if re.fullmatch(targets, name)]
    else:
        found = [name for name in ends if any(name == target or name.endswith(f".{target}") for target in targets)]
        found = found or [target for target in targets if target == "lm_head"]
    if found:
        raise InputError(
            f"learn.lora.target_modules includes {', '.join(found)}, expected layers between embedding and head with "
            "publish.way = 'adapter'; leave them out, or set publish.way = 'merged'"
        )


def _check_same(policy: ModelFacts, base: ModelFacts) -> None:
    """Adapters of one model are added to the weights of the other."""
    for key in SHAPE:
        ours, theirs = policy.text.get(key), base.text.get(key)
        if ours != theirs:
            raise InputError(
                f"rollout.base_model {base.path} has {key} = {theirs!r}, the policy {ours!r}; expected a copy of the "
                "policy, for example by `solon compress`"
            )
    if policy.tokenizer is not None and base.tokenizer is not None and policy.tokenizer.words != base.tokenizer.words:
        raise InputError(
            f"rollout.base_model {base.path} has another vocabulary than the policy; expected a copy of it"
        )
