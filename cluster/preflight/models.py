"""Whether a model suits its role in a run, judging by its files. Reads headers and small files; no torch.

Each check is one function that raises InputError without naming the model; `check_model` adds its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from cluster.config.run_file import looks_like_hub_name
from cluster.preflight.tokenizers import check_end, check_template, check_tokenizer
from cluster.preflight.values import check_biases, check_inner_size, check_values
from learners.config import LoraConfig
from solon.errors import InputError, nearest, short
from solon.models.certificate import require_certified
from solon.models.facts import ModelFacts, model_folder, num_labels, read_facts
from solon.models.known import causal_models, is_installed, model_types, vllm_architectures

ALLOW_UNCERTIFIED = "SOLON_ALLOW_UNCERTIFIED"
"""1: models that Solon compressed are used without a certificate."""
Kind = Literal["policy", "judge", "reward_model", "encoder"]
"""Roles that train and write; that only read and answer; judges with a head of one number; that only embed."""
ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
PLAIN_ATTENTION = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "smollm3",
    "granite",
)
"""Types whose weights have Llama's names, with a row of `q_proj` for each number of each head."""
FLOATS = ("F32", "F16", "BF16")


def check_model(
    model: str,
    *,
    role: str,
    opt_in: str = "judging",
    trusted: bool = False,
    kind: Kind = "judge",
    template: str = "",
    certified_as: Sequence[str] = (),
    uncertified: bool = False,
) -> ModelFacts | None:
    """The facts in the files; None for a hub name that is not on this machine. Raises InputError.

    opt_in: section of the setting that allows a model to bring code; trusted: whether it is set. template: a file with
    a chat template that replaces the model's own. certified_as: further roles of a compressed model that are enough
    here. uncertified: one without a certificate may be used.
    """
    folder = model_folder(model)
    if folder is None:
        is_file = os.path.exists(model)  # noqa: PTH110  # what cannot be a path does not exist, and raises nothing
        if looks_like_hub_name(model) and not is_file:
            return None  # fetched, or refused, when the engine loads it
        found = "is a file" if is_file else "does not exist"
        raise InputError(
            f"{role} model {model} {found}; expected a Hugging Face directory or a hub name like org/model"
        )
    try:
        facts = read_facts(folder)
        _check_code(facts, opt_in=opt_in, trusted=trusted)
        if not uncertified and os.environ.get(ALLOW_UNCERTIFIED) != "1":
            allow = f"{ALLOW_UNCERTIFIED}=1"
            wanted = "policy" if role == "policy" else "reward_model" if facts.gives_rewards else "judge"
            require_certified(folder, where="certificate", allow=allow, role=wanted, others=certified_as)
        is_rewarding = kind == "judge" and facts.gives_rewards
        for check in _checks("reward_model" if is_rewarding else kind, trusted=trusted):
            if check is not check_template or not template:
                check(facts)
    except InputError as error:
        between = " " if str(error).startswith(("has ", "is ", "misses ", "brings ")) else ": "
        raise InputError(f"{role} model {model}{between}{error}") from None
    return facts


def _checks(kind: Kind, *, trusted: bool) -> Iterator[Callable[[ModelFacts], None]]:
    if not trusted:
        yield _check_type
    yield check_values
    yield _check_groups
    yield _check_attention
    if kind == "encoder":
        return
    yield _check_writes
    if kind == "policy":
        yield _check_trainable
    if kind == "reward_model":
        yield _check_head
    elif not trusted:
        yield _check_architecture
    yield _check_weights
    yield check_template
    yield check_tokenizer
    yield check_end


def _check_code(facts: ModelFacts, *, opt_in: str, trusted: bool) -> None:
    for name, content in (("config.json", facts.config), ("tokenizer_config.json", facts.tokenizer_config)):
        if content.get("auto_map") and not trusted:
            raise InputError(
                f"brings code of its own (`auto_map` in {name}), which is not run unless asked "
                f"for; if the library knows the architecture, remove `auto_map`; if not, and you have read the code, "
                f"set {opt_in}.trust_remote_code = true"
            )


# -- the architecture ----------------------------------------------------------------------------------------------


def _check_type(facts: ModelFacts) -> None:
    known, served = model_types(), vllm_architectures() or frozenset()
    if not facts.model_type:
        raise InputError('config.json has no model_type, expected one, as in "llama"; take the model\'s own file')
    if known is not None and facts.model_type not in known and facts.architecture not in served:
        raise InputError(
            f"config.json has model_type {short(facts.model_type)}, which the installed Transformers does not know"
            f"{nearest(facts.model_type, known)}; install a newer one, or choose another model"
        )


def _check_architecture(facts: ModelFacts) -> None:
    causal, name = causal_models(), facts.architecture
    if causal is None or not name:
        return
    served = vllm_architectures() or frozenset()
    classes = frozenset(one for names in causal.values() for one in names)
    if name not in classes | served:
        raise InputError(
            f"is a {short(name)}, expected a causal language model{nearest(name, classes | served)}; choose another"
        )


def _check_head(facts: ModelFacts) -> None:
    """A reward is one number from the last hidden state."""
    if (labels := num_labels(facts.config)) != 1:
        raise InputError(f"has {labels} labels, expected one: a reward is a number; choose a reward model")
    heads = [one for name, one in facts.tensors.items() if name.endswith("score.weight")]
    if facts.tensors and not heads:
        if any(name.startswith("classifier.") for name in facts.tensors):
            raise InputError("has an encoder's head (`classifier`), expected a decoder with `score`; choose another")
        raise InputError("holds no score.weight, its head: it would be random; train it, or fetch all files")
    width = facts.text.get("hidden_size")
    if heads and isinstance(width, int) and tuple(heads[0].shape) != (1, width):
        raise InputError(
            f"has a head of shape {tuple(heads[0].shape)}, expected (1, {width}) by config.json; take both from "
            "one model"
        )


def _check_writes(facts: ModelFacts) -> None:
    if facts.is_encoder_decoder:
        raise InputError(
            "is an encoder-decoder, expected a decoder: prompts and answers are one sequence here; choose another"
        )


def _check_trainable(facts: ModelFacts) -> None:
    """Refuse what the learner and the exchange of weights do not support."""
    if facts.experts:
        raise InputError(
            f"has {facts.experts} experts, expected a dense model: engines store experts in another layout than the "
            "files, so that trained weights could not be published; choose a dense one (a judge may have experts)"
        )
    if facts.is_multimodal:
        raise InputError(
            "is multimodal (it has a vision_config or audio_config), expected a text model: what is not text cannot be "
            "trained here; choose the text model of its family"
        )
    if facts.quantisation:
        raise InputError(
            f"is quantised ({facts.quantisation}), expected plain weights: compressed weights cannot be trained or "
            "replaced; give the model that it was made from, and quantise judges"
        )
    causal = causal_models()
    if causal is not None and facts.model_type not in causal and not facts.config.get("auto_map"):
        raise InputError(
            f"is of model_type {short(facts.model_type)}, of which Transformers has no causal language model; choose "
            "another"
        )


def _check_groups(facts: ModelFacts) -> None:
    text = facts.text
    heads, groups = text.get("num_attention_heads"), text.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise InputError(f"config.json has {heads} attention heads, which {groups} key-value heads do not divide")


def _check_attention(facts: ModelFacts) -> None:
    wanted = facts.config.get("attn_implementation", facts.config.get("_attn_implementation"))
    if isinstance(wanted, str) and wanted not in ATTENTION:
        raise InputError(
            f"config.json asks for attn_implementation {short(wanted)}, expected one of {', '.join(ATTENTION)}; remove "
            "the key"
        )
    if wanted == "flash_attention_2" and not is_installed("flash_attn"):
        raise InputError(
            "config.json asks for flash_attention_2, and the package flash_attn is not installed; remove the key"
        )
    kinds, layers = facts.text.get("layer_types"), facts.text.get("num_hidden_layers")
    if isinstance(kinds, list) and isinstance(layers, int) and len(kinds) != layers:
        raise InputError(f"config.json has {len(kinds)} layer_types and {layers} layers, expected as many; correct it")


# -- the weights ---------------------------------------------------------------------------------------------------


def _check_weights(facts: ModelFacts) -> None:
    """The configuration and the weights must belong to one model."""
    text, embedding = facts.text, facts.embedding
    layers, expected = facts.layers, text.get("num_hidden_layers")
    if layers is not None and isinstance(expected, int) and layers < expected:
        raise InputError(f"config.json says {expected} layers, the weights hold {layers}; take both from one model")
    if embedding is None:
        return
    rows, columns = embedding
    if (vocabulary := text.get("vocab_size")) is not None and vocabulary != rows:
        raise InputError(
            f"config.json has vocab_size = {vocabulary}, the embedding {rows} rows; take both from one model"
        )
    width = text.get("hidden_size")
    if width is not None and columns != width and not {"word_embed_proj_dim", "embedding_size"} & text.keys():
        raise InputError(f"config.json has hidden_size = {width}, the embedding is {columns} wide; take both from one")
    is_apart = (
        facts.model_type in PLAIN_ATTENTION and not facts.gives_rewards and text.get("tie_word_embeddings") is False
    )
    if is_apart and not any("lm_head." in name for name in facts.tensors):
        raise InputError(
            "config.json says that the output layer is not tied to the embedding, and the weights hold none: it would "
            "be random; fetch all files, or set tie_word_embeddings"
        )
    _check_heads(facts)
    check_inner_size(facts)
    check_biases(facts)


def _check_heads(facts: ModelFacts) -> None:
    """The heads in the configuration must together be as wide as the projection that makes them."""
    heads, size = facts.text.get("num_attention_heads"), facts.head_size
    if facts.model_type not in PLAIN_ATTENTION or not isinstance(heads, int) or not size:
        return
    for name, tensor in facts.tensors.items():
        if name.endswith("self_attn.q_proj.weight") and len(tensor.shape) == 2 and tensor.dtype in FLOATS:
            if tensor.shape[0] != heads * size:
                raise InputError(
                    f"config.json says {heads} attention heads of width {size}, the weights have {tensor.shape[0]} "
                    f"rows for them ({name}); take both from one model"
                )
            return


# -- warnings, and trainable layers --------------------------------------------------------------------------------


def remarks(facts: ModelFacts, *, role: str) -> list[str]:
    """Oddities that do not stop a run, a sentence each."""
    found = []
    layers, expected = facts.layers, facts.text.get("num_hidden_layers")
    if role == "policy" and layers is not None and isinstance(expected, int) and layers > expected:
        found.append(f"{role}: the weights hold {layers} layers, config.json says {expected}; the rest is not used")
    tokenizer, rows = facts.tokenizer, facts.embedding[0] if facts.embedding else None
    if facts.text.get("pad_token_id") == -1:
        found.append(f"{role}: config.json has pad_token_id = -1, which is no token; it is not used here")
    if tokenizer is None:
        found.append(f"{role} has no tokenizer.json: its tokenizer was not looked at")
    if tokenizer is not None and rows is not None:
        beyond = sorted(word for word, index in tokenizer.words.items() if index >= rows)
        if beyond:
            found.append(
                f"{role}: {len(beyond)} added tokens have no row in the embedding ({short(beyond[0])}); a text with "
                "one of them cannot be read"
            )
    return found


def check_lora(facts: ModelFacts, lora: LoraConfig) -> None:
    """At least one layer must receive an adapter. Raises InputError."""
    names = [name.removesuffix(".weight") for name, tensor in facts.tensors.items() if _is_matrix(name, tensor.shape)]
    targets = lora.target_modules
    if targets == "all-linear" or not names:
        return
    if isinstance(targets, str):
        try:
            chosen = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise InputError(f"learn.lora.target_modules = {targets!r} is no pattern: {error}; correct it") from None
    else:
        chosen = [name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)]
    endings = sorted({name.rpartition(".")[2] for name in names})
    if not chosen:
        raise InputError(
            f"learn.lora.target_modules = {short(targets)} matches no layer of the policy, expected some of "
            f"{', '.join(endings)}; or leave it out for all of them"
        )
    tied = facts.text.get("tie_word_embeddings", True)
    if tied and any(name.endswith("lm_head") for name in chosen):
        raise InputError(
            "learn.lora.target_modules includes lm_head, whose weights are tied to the embedding and cannot be merged "
            "apart; leave it out"
        )


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and "embed" not in name and "norm" not in name
