"""Whether an engine accepts a model with its settings: lengths, attention, cache, quantisation."""

from __future__ import annotations

from cluster.config.sections import EngineSection, RolloutSection
from solon.engines.base import EngineOptions
from solon.engines.lengths import fit_length
from solon.engines.memory import CPU_CACHE_GIB
from solon.engines.same_numbers import require_same_numbers
from solon.errors import InputError
from solon.models.facts import ModelFacts
from solon.models.known import is_installed

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention for CPUs; a test compares it with the installed source."""
ON_CPU = ("int-quantized", "pack-quantized", "naive-quantized", "dense")
"""Formats of compressed-tensors that vLLM computes on a CPU."""
_BYTES = {"bfloat16": 2, "float16": 2}
_GIB = 1 << 30


def check_engine(
    facts: ModelFacts, options: EngineOptions, *, role: str, section: str, on_cpu: bool, ranks: int = 1
) -> list[str]:
    """Raises InputError for what an engine refuses; returns warnings. section: where its settings stand. ranks: of one
    engine."""
    found = []
    try:
        fit_length(options, facts.context, where=f"{section}.max_model_len")
        require_same_numbers(facts.config, backend=options.backend, max_model_len=_length(facts, options))
        if on_cpu and options.backend == "vllm":
            _check_heads(facts, section)
            _check_cache(facts, options, section, ranks)
            _check_dtype(facts, options, section)
    except InputError as error:
        raise InputError(f"{role} model {facts.path}: {error}") from None
    if options.backend == "vllm" and not is_installed("vllm"):
        found.append(
            f'vLLM is not installed here; install solon[gpu] or solon[cpu], or set {section}.backend = "transformers"'
        )
    if not on_cpu and options.backend == "vllm" and options.enforce_eager:
        found.append(
            f"{section}.enforce_eager = true on a GPU: without CUDA graphs the CPU starts every kernel of every token, "
            "and small models decode several times slower; set it to false for long runs"
        )
    kind = facts.quantisation
    if on_cpu and kind and not kind.endswith(ON_CPU):
        found.append(
            f"{role} is quantised by {kind}, which this engine may not compute on a CPU; w8a8 and w4a16 of "
            "`solon judges quantise` run here"
        )
    return found


def check_stops(facts: ModelFacts, section: RolloutSection) -> None:
    """Raises InputError for a stop token that is not in the policy's vocabulary."""
    vocabulary = facts.text.get("vocab_size")
    beyond = [token for token in section.stop_token_ids if isinstance(vocabulary, int) and token >= vocabulary]
    if beyond:
        raise InputError(
            f"rollout.stop_token_ids holds {beyond}, expected ids below {vocabulary}, the vocabulary of the policy; "
            "remove them"
        )


def on_cpu(section: EngineSection) -> bool:
    """Whether the engine has no GPU: GPUs that its actor did not request are hidden from it."""
    return section.num_gpus == 0


def _length(facts: ModelFacts, options: EngineOptions) -> int:
    return min(options.max_model_len, facts.context or options.max_model_len)


def _check_heads(facts: ModelFacts, section: str) -> None:
    size = facts.head_size
    if size is not None and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        raise InputError(
            f"its attention heads are {size} wide, vLLM on a CPU takes {sizes}; set {section}.backend = "
            '"transformers", or use a GPU'
        )


def _check_dtype(facts: ModelFacts, options: EngineOptions, section: str) -> None:
    """vLLM's four-bit kernel for CPUs refuses float32; where no type was set, the engine uses another."""
    if options.dtype == "float32" and facts.quantisation.endswith("pack-quantized"):
        raise InputError(
            f"it is quantised ({facts.quantisation}), which vLLM computes in 16 bits on a CPU; set {section}.dtype = "
            '"bfloat16", or leave it out'
        )


def _check_cache(facts: ModelFacts, options: EngineOptions, section: str, ranks: int) -> None:
    """One request of full length must fit into the cache of a rank."""
    text, size = facts.text, facts.head_size
    layers, heads = text.get("num_hidden_layers"), text.get("num_key_value_heads", text.get("num_attention_heads"))
    if size is None or not isinstance(layers, int) or not isinstance(heads, int) or text.get("sliding_window"):
        return
    length = _length(facts, options)
    needed = 2 * layers * -(-heads // ranks) * size * _BYTES.get(options.dtype, 4) * length
    given = CPU_CACHE_GIB if options.kv_cache_gib is None else options.kv_cache_gib
    if needed > given * _GIB:
        raise InputError(
            f"a request of {section}.max_model_len = {length} tokens needs {needed / _GIB:.2f} GiB of cache, "
            f"{section}.kv_cache_gib = {given:g}; raise it or lower max_model_len"
        )
