"""A model directory is data: nothing in it runs unless a user allows it."""

from __future__ import annotations

import ast
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.preflight.checks import check_inputs, check_model
from solon.engines.base import EngineConfig
from solon.errors import InputError
from tests.unit.house.test_layers import sources
from tests.unit.run_files import make_model, make_run

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


class Trap:
    """When it is unpickled, a file appears."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that appears when something of a model ran."""
    return tmp_path / "it-ran"


@pytest.fixture
def pickled(tmp_path: Path, mark: Path) -> Path:
    """A model whose weights are pickles, under every name that a library might look for."""
    path = make_model(tmp_path / "pickled", words="a b <unk>")
    (path / "config.json").write_text(json.dumps(LLAMA))
    (path / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "training_args.bin"):
        (path / name).write_bytes(pickle.dumps(Trap(mark)))
    return path


@pytest.fixture
def scripted(tmp_path: Path, mark: Path) -> Path:
    """A model that brings its own classes."""
    path = make_model(tmp_path / "scripted", words="a b <unk>")
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nraise RuntimeError('ran')\n"
    for name in ("configuration", "modeling", "tokenization"):
        (path / f"{name}_own.py").write_text(code)
    auto_map = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoModelForSequenceClassification": "modeling_own.OwnModel",
    }
    config = {**LLAMA, "model_type": "own", "architectures": ["OwnModel"], "auto_map": auto_map}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = {"chat_template": "{{ messages }}", "tokenizer_class": "OwnTokenizer"}
    tokenizer["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", "tokenization_own.OwnTokenizer"]}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def load_policy(path: Path) -> None:
    import torch

    from learners.core.loading import load_model

    load_model(str(path), torch.device("cpu"))


def load_reward_model(path: Path) -> None:
    from learners.networks.reward_model import RewardModel

    RewardModel.load(path, pad_id=0, device="cpu")


def load_encoder(path: Path) -> None:
    from solon.engines.embedding import EncoderEmbed

    EncoderEmbed(str(path))


def load_engine_model(path: Path) -> None:
    import torch

    from solon.engines.transformers_model import load_model

    load_model(EngineConfig(model=str(path), backend="transformers"), torch.device("cpu"))


LOADERS = [load_policy, load_reward_model, load_encoder, load_engine_model]


@pytest.mark.parametrize("load", LOADERS)
def test_nothing_that_loads_a_model_opens_its_pickles(load: Callable[[Path], None], pickled: Path, mark: Path):
    with pytest.raises(InputError):
        load(pickled)
    assert not mark.exists()


@pytest.mark.parametrize("load", LOADERS)
def test_nothing_that_loads_a_model_runs_its_code(load: Callable[[Path], None], scripted: Path, mark: Path):
    with pytest.raises(InputError):
        load(scripted)
    assert not mark.exists()


def test_a_tokenizers_code_is_not_run(scripted: Path, mark: Path):
    from solon.engines.tokens import load_tokenizer

    (scripted / "config.json").write_text(json.dumps(LLAMA))
    try:
        load_tokenizer(str(scripted))
    except ValueError as error:
        assert "trust_remote_code" in str(error)  # noqa: PT017
    assert not mark.exists()


def test_the_trap_would_work(pickled: Path, mark: Path):
    pickle.loads((pickled / "pytorch_model.bin").read_bytes())
    assert mark.exists()


def test_a_model_of_pickles_is_refused_before_anything_starts(pickled: Path, mark: Path):
    with pytest.raises(InputError, match=r"no \*\.safetensors file \(only .*pytorch_model\.bin.*convert it"):
        check_model(str(pickled), role="policy")
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("role", "section"), [("policy", "rollout"), ("judge", "judging")])
def test_a_model_with_code_of_its_own_is_refused_unless_asked_for(tmp_path: Path, file: str, role: str, section: str):
    path = make_run(tmp_path, '[feedback]\ntemplate = "compact"\n')
    content = json.loads((tmp_path / role / file).read_text())
    (tmp_path / role / file).write_text(json.dumps({**content, "auto_map": {"AutoModel": "own.Own"}}))
    with pytest.raises(InputError, match=rf"`auto_map` in {file}.*remove `auto_map`.*{section}\.trust_remote_code"):
        check_inputs(RunFile.load(path))
    check_inputs(RunFile.load(path, overrides=[f"{section}.trust_remote_code=true"]))


def test_trust_is_off_unless_asked_for():
    assert not EngineConfig(model="m").trust_remote_code


# --- the code itself ---------------------------------------------------------------------------------------------

RUNS_WHAT_IT_READS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "torch.load", "np.load", "numpy.load", "yaml.unsafe_load", "yaml.full_load", "__import__"}


def test_no_module_reads_a_format_that_can_run_code():
    wrong = []
    for _, path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wrong += [f"{path}:{node.lineno} {a.name}" for a in node.names if a.name in RUNS_WHAT_IT_READS]
            elif isinstance(node, ast.ImportFrom) and node.module in RUNS_WHAT_IT_READS:
                wrong.append(f"{path}:{node.lineno} {node.module}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                wrong.append(f"{path}:{node.lineno} {ast.unparse(node.func)}")
    assert not wrong


def test_everything_that_loads_a_model_says_that_it_trusts_no_code_and_reads_safetensors_alone():
    wrong = []
    for _, path, tree in sources("solon", "learners", "compression", "nursery", "actors", "cluster"):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained")):
                continue
            given = {keyword.arg for keyword in node.keywords}
            loader = ast.unparse(node.func).split(".")[-2]
            needed = {"trust_remote_code"} | ({"use_safetensors"} if loader.startswith("AutoModel") else set())
            if loader == "PreTrainedTokenizerFast" or None in given:  # no class of others; options of its own: tested
                continue
            if needed - given:
                wrong.append(f"{path}:{node.lineno} {loader} without {sorted(needed - given)}")
    assert not wrong
