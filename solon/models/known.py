"""The models that the installed libraries support, read from their sources, since importing them takes seconds.

None if a library is not installed or keeps its list elsewhere: nothing is checked then.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

_AUTO = "models/auto"
_REGISTRY = "model_executor/models/registry.py"
_NO_DECODERS = {"general", "tokenizer", "t5", "umt5"}
_GGUF_SPELLINGS = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "minimax_m2": "minimax-m2",
}


@cache
def model_types() -> frozenset[str] | None:
    """Values of `model_type` in Transformers."""
    found = _table("transformers", f"{_AUTO}/auto_mappings.py", "CONFIG_MAPPING_NAMES")
    # One alias is added outside the list.
    return frozenset(found) | {"gpt-sw3"} if found else None


@cache
def causal_models() -> dict[str, frozenset[str]] | None:
    """Transformers' classes for causal language models, by `model_type`."""
    return _table("transformers", f"{_AUTO}/modeling_auto.py", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES") or None


@cache
def activations() -> frozenset[str] | None:
    """Names of activation functions in Transformers."""
    return frozenset(_table("transformers", "activations.py", "ACT2CLS")) or None


@cache
def rope_types() -> frozenset[str] | None:
    """Kinds of position scaling that Transformers computes, without the default."""
    return frozenset(_table("transformers", "modeling_rope_utils.py", "ROPE_INIT_FUNCTIONS")) or None


@cache
def vllm_architectures() -> frozenset[str] | None:
    """The `architectures` that vLLM serves."""
    tables = [_table("vllm", _REGISTRY, name) for name in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")]
    return frozenset(name for table in tables for name in table) or None


@cache
def takes_adapters(architecture: str) -> bool | None:
    """Whether vLLM serves LoRA adapters of models of this class; None: it is not in vLLM's list, or not installed."""
    tables = [_table("vllm", _REGISTRY, name) for name in ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")]
    for names in (table[architecture] for table in tables if architecture in table):
        for module in names:
            found = _is_kind("vllm", f"model_executor/models/{module}", next(iter(names - {module}), module))
            if found is not None:
                return found
    return None


@cache
def gguf_architectures() -> frozenset[str]:
    """Names of decoder architectures that Transformers reads from GGUF files, as GGUF spells them."""
    found = frozenset(_table("transformers", "integrations/ggml.py", "GGUF_CONFIG_MAPPING"))
    spelt = {_GGUF_SPELLINGS.get(name, name) for name in found - _NO_DECODERS}
    return frozenset(spelt)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def _is_kind(package: str, module: str, name: str, kind: str = "SupportsLoRA") -> bool | None:
    """Whether a class in a module of a package, or a class that it is made of, names this base; None: not found."""
    if (tree := _parsed(package, f"{module}.py") or _parsed(package, f"{module}/__init__.py")) is None:
        return None
    folder = module.rpartition("/")[0]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            return kind in bases or any(_is_kind(package, module, base, kind) for base in bases)
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            source = (node.module or "").replace(".", "/")
            source = f"{folder}/{source}" if node.level == 1 else source.removeprefix(f"{package}/")
            return _is_kind(package, source, name, kind)
    return None


def _parsed(package: str, file: str) -> ast.Module | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        try:
            return ast.parse((Path(folder) / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
    return None


def _table(package: str, file: str, name: str) -> dict[str, frozenset[str]]:
    """Keys of a dictionary literal in a module, with the texts of each value."""
    tree = _parsed(package, file)
    for node in tree.body if tree is not None else ():
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            return _entries(value) if value is not None else {}
    return {}


def _entries(node: ast.expr) -> dict[str, frozenset[str]]:
    """Entries of `{"key": value}` and of `OrderedDict([("key", value)])`."""
    pairs: list[tuple[ast.expr | None, ast.expr]] = []
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.List):
        pairs = [(e.elts[0], e.elts[1]) for e in node.args[0].elts if isinstance(e, ast.Tuple) and len(e.elts) == 2]
    return {
        key.value: frozenset(
            leaf.value for leaf in ast.walk(value) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
        )
        for key, value in pairs
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
