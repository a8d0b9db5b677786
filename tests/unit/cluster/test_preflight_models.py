"""Failures visible on the disk before a run begins: `solon check` finds each in a second and reports it in one line."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.config.fitting import fit_run, machine_cpus, machine_gpus, too_large_for_here
from cluster.config.run_file import RunFile
from cluster.preflight.checks import Inputs, check_inputs, check_judge, check_model
from cluster.preflight.engines import CPU_HEAD_SIZES
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.lengths import engine_config, lowered
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.models.facts import context_of, model_folder, read_facts
from solon.models.known import activations, causal_models, model_types, rope_types, vllm_architectures
from solon.models.safetensors_header import read_header
from tests.unit.run_files import CONFIG, CONSTITUTION, add_token, make_model, make_run, tensors_of, write_weights

Model = Path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def checked(run: Path, *overrides: str) -> Inputs:
    fitted, _ = fit_run(RunFile.load(run, overrides=overrides))
    return check_inputs(fitted)


def refusal(run: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        checked(run, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


# -- ways to spoil a model -----------------------------------------------------------------------------------------


def configure(**changes: Any) -> Callable[[Model], None]:
    """Other values in config.json; None takes a key away."""

    def spoil(model: Model) -> None:
        edit(model / "config.json", changes)

    return spoil


def tokens(**changes: Any) -> Callable[[Model], None]:
    return lambda model: edit(model / "tokenizer_config.json", changes)


def edit(path: Path, changes: dict[str, Any]) -> None:
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def becoming(**config: Any) -> Callable[[Model], None]:
    """Another model, configuration and weights."""

    def spoil(model: Model) -> None:
        edit(model / "config.json", config)
        write_weights(model / "model.safetensors", tensors_of(CONFIG | config))

    return spoil


def header(change: Callable[[dict[str, Any]], None]) -> Callable[[Model], None]:
    """The same bytes under another header."""

    def spoil(model: Model) -> None:
        path = model / "model.safetensors"
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        value = json.loads(raw[8:end])
        change(value)
        text = json.dumps(value).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])

    return spoil


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Model], None]:
    def spoil(model: Model) -> None:
        path = model / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def first(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(value.values()))
    return found


def overlapping(value: dict[str, Any]) -> None:
    _, second, *_ = value.values()
    begin, end = second["data_offsets"]
    second["data_offsets"] = [begin - 4, end - 4]


def sharded(model: Model, *, missing: bool = False, stray: bool = False) -> None:
    """Two files and their index."""
    tensors = tensors_of(CONFIG)
    names = list(tensors)
    (model / "model.safetensors").unlink()
    files = {"model-1.safetensors": names[:2], "model-2.safetensors": names[2:]}
    for file, part in files.items():
        write_weights(model / file, {name: tensors[name] for name in part})
    places = {name: file for file, part in files.items() for name in part}
    if stray:
        places["model.norm.weight"] = "model-1.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    if missing:
        (model / "model-2.safetensors").unlink()


def no_shards(model: Model) -> None:
    sharded(model, missing=True)
    (model / "model-1.safetensors").unlink()


def generation(**values: Any) -> Callable[[Model], None]:
    return lambda model: (model / "generation_config.json").write_text(json.dumps(values)) and None


def valued(key: str, value: Any) -> Callable[[Model], None]:
    """A value in config.json, null included."""

    def spoil(model: Model) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return spoil


def many_words(model: Model) -> None:
    """A tokenizer of more tokens than the embedding has rows."""
    other = make_model(model.parent / "wordy", words=" ".join(f"w{n}" for n in range(40)) + " Verdict: A B yes no")
    shutil.copy(other / "tokenizer.json", model / "tokenizer.json")


def pickled(model: Model) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


BOTH: list[tuple[str, Callable[[Model], None], str]] = [
    ("no type", configure(model_type=None), "has no model_type"),
    ("unknown type", configure(model_type="lama", architectures=["LamaForCausalLM"]), "(did you mean `llama`?)"),
    ("unknown class", configure(architectures=["LlamaForCausalLn"]), "expected a causal language model"),
    ("encoder-decoder", configure(is_encoder_decoder=True), "is an encoder-decoder, expected a decoder"),
    ("no layers", configure(num_hidden_layers=0), "num_hidden_layers = 0, expected a whole number above 0"),
    (
        "uneven heads",
        configure(num_attention_heads=3, num_key_value_heads=3),
        "says 3 attention heads of width 21, the weights have 64 rows",
    ),
    ("uneven groups", configure(num_key_value_heads=4), "which 4 key-value heads do not divide"),
    ("attention", configure(attn_implementation="flashy"), "attn_implementation 'flashy', expected one of eager"),
    ("layer kinds", configure(layer_types=["full_attention"] * 3), "3 layer_types and 1 layers"),
    ("pickles", pickled, "convert it to safetensors"),
    ("empty file", bytes_of(lambda _: b""), "model.safetensors is damaged: it has 0 bytes"),
    ("cut file", bytes_of(lambda raw: raw[:-5]), "it is cut off"),
    ("longer file", bytes_of(lambda raw: raw + b"12"), "bytes that belong to no tensor"),
    ("huge header", bytes_of(lambda raw: b"\xff" * 8 + raw[8:]), "which hold no header"),
    ("no header", bytes_of(lambda raw: raw[:8] + b"x" * (len(raw) - 8)), "its header cannot be read"),
    ("beyond the file", header(lambda h: first(h).update(data_offsets=[0, 2**40])), "does not fill its bytes"),
    ("overlap", header(overlapping), "which overlaps another tensor"),
    ("other shape", header(lambda h: first(h).update(shape=[31, 64])), "does not fill its bytes"),
    ("other dtype", header(lambda h: first(h).update(dtype="BF16")), "does not fill its bytes"),
    ("unknown dtype", header(lambda h: first(h).update(dtype="F33")), "it describes 'model.embed_tokens.weight' as"),
    ("missing shard", lambda m: sharded(m, missing=True), "misses 1 of 2 files of model.safetensors.index.json"),
    ("stray tensor", lambda m: sharded(m, stray=True), "looks for 'model.norm.weight' in model-1.safetensors"),
    ("no shard", no_shards, "misses 2 of 2 files of model.safetensors.index.json: ['model-1.safetensors', "),
    ("no tokenizer", lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer.json, expected one"),
    ("template number", tokens(chat_template=5), "has chat_template = 5, expected text, or a list"),
    ("template list", tokens(chat_template=[1, 2]), "has chat_template = [1, 2], expected text"),
    ("nameless template", tokens(chat_template=[{"name": "default", "template": 5}]), "expected text, or a list"),
    ("deep", lambda m: (m / "config.json").write_text("[" * 100_000) and None, "; check it, or fetch it again"),
    ("generation end", generation(eos_token_id="x"), "generation_config.json has eos_token_id = 'x'"),
    ("generation ends", generation(eos_token_id=[1, [1]]), "generation_config.json has eos_token_id = [1, [1]]"),
    ("fewer layers", configure(num_hidden_layers=4), "config.json says 4 layers, the weights hold 1"),
    ("other vocabulary", configure(vocab_size=33), "vocab_size = 33, the embedding 32 rows"),
    ("other width", configure(hidden_size=32), "hidden_size = 32, the embedding is 64 wide"),
    ("no head", configure(tie_word_embeddings=False), "it would be random"),
    ("many tokens", many_words, "the embedding 32 rows: it is the tokenizer of another model"),
    ("unknown end", tokens(eos_token="<|im_end|>"), "eos_token '<|im_end|>', which tokenizer.json does not know"),
    ("other ids", configure(eos_token_id=3), "token 3 ends an answer, in tokenizer.json that is 'A'"),
    ("no end", tokens(eos_token=None), "has no end-of-sequence token, expected one"),
    ("narrow heads", becoming(head_dim=16), "attention heads are 16 wide, vLLM on a CPU takes 32, 64"),
    (
        "other numbers",
        configure(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=512),
        "so that engine and learner would disagree",
    ),
    ("small cache", becoming(head_dim=512), "GiB of cache"),
]
POLICY: list[tuple[str, Callable[[Model], None], str]] = [
    ("experts", configure(num_local_experts=8), "has 8 experts, expected a dense model"),
    ("images", configure(vision_config={"hidden_size": 8}), "is multimodal"),
    ("quantised", configure(quantization_config={"quant_method": "fp8"}), "is quantised (fp8), expected plain weights"),
    ("no causal class", configure(model_type="vit", architectures=["LlamaForCausalLM"]), "no causal language model"),
]


@pytest.mark.parametrize("role", ["policy", "judge"])
@pytest.mark.parametrize(("spoil", "words"), [pytest.param(s, w, id=name) for name, s, w in BOTH])
def test_a_model_that_cannot_be_used_is_refused_with_its_role_and_the_reason(
    run: Path, tmp_path: Path, role: str, spoil: Callable[[Model], None], words: str
):
    spoil(tmp_path / role)
    section = "rollout" if role == "policy" else "judging"
    message = refusal(run, f"{section}.kv_cache_gib={0.001 if 'cache' in words else 0.5}")
    assert f"{role} model" in message
    assert words in message


@pytest.mark.parametrize(("spoil", "words"), [pytest.param(s, w, id=name) for name, s, w in POLICY])
def test_a_model_that_cannot_be_trained_is_refused_as_a_policy(
    run: Path, tmp_path: Path, spoil: Callable[[Model], None], words: str
):
    spoil(tmp_path / "policy")
    message = refusal(run)
    assert "policy model" in message
    assert words in message


NONSENSE: list[tuple[str, Any, str]] = [
    ("hidden_act", "nonsense", "hidden_act = 'nonsense', which the installed Transformers does not know"),
    ("hidden_act", "sillu", "(did you mean `silu`?)"),
    ("hidden_act", 3, "hidden_act = 3, expected the name of an activation function"),
    ("rope_parameters", {"rope_type": "foo"}, "rope_parameters.rope_type = 'foo', which the installed"),
    ("rope_parameters", {"full_attention": {"rope_type": "foo"}}, "rope_parameters.rope_type = 'foo', which"),
    ("rope_parameters", {"rope_type": "yarn"}, "rope_type = 'yarn' without a factor"),
    ("rope_parameters", "x", "rope_parameters = 'x', expected an object"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "big"}, "rope_theta = 'big', expected a number above 0"),
    ("rope_scaling", {"rope_type": "linear", "factor": -2}, "rope_scaling.factor = -2, expected a number above 0"),
    ("rope_theta", "big", "rope_theta = 'big', expected a number above 0"),
    ("rms_norm_eps", "1e-6", "rms_norm_eps = '1e-6', expected a number above 0"),
    ("rms_norm_eps", math.nan, "rms_norm_eps = nan, expected"),
    ("rms_norm_eps", -1, "rms_norm_eps = -1, expected"),
    ("rms_norm_eps", None, "rms_norm_eps = None, expected"),
    ("hidden_size", math.nan, "hidden_size = nan, expected a whole number above 0"),
    ("intermediate_size", -256, "intermediate_size = -256, expected a whole number above 0"),
    ("intermediate_size", 512, "intermediate_size = 512, the weights have 16 rows for it"),
    ("max_position_embeddings", -5, "max_position_embeddings = -5, expected a whole number above 0"),
    ("max_position_embeddings", "256", "max_position_embeddings = '256', expected"),
    ("max_position_embeddings", True, "max_position_embeddings = True, expected"),
    ("max_position_embeddings", 10**15, "max_position_embeddings = 1000000000000000, expected at most"),
    ("eos_token_id", "x", "eos_token_id = 'x', expected the id of a token"),
    ("eos_token_id", {}, "eos_token_id = {}, expected"),
    ("eos_token_id", -3, "eos_token_id = -3, expected"),
    ("eos_token_id", 10**9, "eos_token_id = 1000000000, the embedding 32 rows"),
    ("pad_token_id", "x", "pad_token_id = 'x', expected"),
    ("pad_token_id", 99_999, "pad_token_id = 99999, the embedding 32 rows"),
    ("dtype", "float99", "dtype = 'float99', expected a dtype of torch"),
    ("torch_dtype", 7, "torch_dtype = 7, expected"),
    ("quantization_config", "x", "quantization_config = 'x', expected an object"),
    ("quantization_config", [1], "quantization_config = [1], expected"),
    ("quantization_config", {}, "quantization_config = {}, expected"),
    ("attention_dropout", "a", "attention_dropout = 'a', expected a probability"),
    ("resid_pdrop", 2.0, "resid_pdrop = 2.0, expected a probability"),
    ("tie_word_embeddings", "yes", "tie_word_embeddings = 'yes', expected true or false"),
    ("attention_bias", True, "the weights hold no self_attn.q_proj.bias: it would be random"),
    ("mlp_bias", True, "the weights hold no mlp.up_proj.bias: it would be random"),
    ("use_cache", "x", "use_cache = 'x', expected true or false"),
    ("architectures", 5, "architectures = 5, expected a list"),
    ("architectures", "LlamaForCausalLM", "architectures = 'LlamaForCausalLM', expected a list"),
    ("architectures", [], "architectures = [], expected a list"),
    ("architectures", None, "architectures = None, expected a list"),
    ("architectures", [["LlamaForCausalLM"]], "architectures = [['LlamaForCausalLM']], expected a list"),
    ("layer_types", 5, "layer_types = 5, expected a list"),
    ("sliding_window", "a", "sliding_window = 'a', expected a number"),
    ("initializer_range", "x", "initializer_range = 'x', expected a number"),
    ("text_config", "x", "text_config = 'x', expected an object"),
]


@pytest.mark.parametrize(("key", "value", "words"), NONSENSE)
def test_a_value_of_another_kind_in_a_configuration_is_refused(tmp_path: Path, key: str, value: Any, words: str):
    model = make_model(tmp_path / "model")
    valued(key, value)(model)
    with pytest.raises(InputError) as caught:
        check_model(str(model), role="policy", kind="policy")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", None),
        ("rope_parameters", None),
        ("rope_scaling", {"type": "default", "mrope_section": [1, 2]}),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
        ("rope_theta", 500_000),
        ("rms_norm_eps", 1e-6),
        ("eos_token_id", None),
        ("eos_token_id", [9, 128_009]),
        ("pad_token_id", -1),
        ("bos_token_id", 50_256),
        ("torch_dtype", "bfloat16"),
        ("dtype", "torch.float16"),
        ("attention_dropout", 0),
        ("classifier_dropout", None),
        ("sliding_window", None),
        ("hidden_act", "gelu_pytorch_tanh"),
        ("quantization_config", None),
    ],
)
def test_configuration_values_of_published_models_are_accepted(tmp_path: Path, key: str, value: Any):
    model = make_model(tmp_path / "model")
    valued(key, value)(model)
    assert check_model(str(model), role="policy", kind="policy") is not None


def test_an_invalid_padding_token_is_a_warning(run: Path, tmp_path: Path):
    configure(pad_token_id=-1)(tmp_path / "policy")
    (warning,) = checked(run).warnings
    assert "policy: config.json has pad_token_id = -1" in warning


@pytest.mark.parametrize("change", [{"num_local_experts": 8}, {"quantization_config": {"quant_method": "awq"}}])
def test_a_judge_may_have_experts_and_be_quantised(run: Path, tmp_path: Path, change: dict[str, Any]):
    configure(**change)(tmp_path / "judge")
    assert checked(run)


def test_an_engine_on_a_gpu_without_cuda_graphs_is_a_warning(run: Path):
    (warning,) = checked(run, "judging.num_gpus=1").warnings
    assert "judging.enforce_eager = true on a GPU" in warning
    assert checked(run, "judging.num_gpus=1", "judging.backend=transformers").warnings == ()
    assert checked(run).warnings == ()


def test_a_quantised_judge_that_this_device_may_not_compute_is_a_warning(run: Path, tmp_path: Path):
    configure(quantization_config={"quant_method": "fp8"})(tmp_path / "judge")
    assert any("judge is quantised by fp8" in warning for warning in checked(run).warnings)
    assert checked(run, "judging.num_gpus=1", "judging.enforce_eager=false").warnings == ()
    edit(
        tmp_path / "judge" / "config.json",
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}},
    )
    assert checked(run).warnings == ()


@pytest.mark.parametrize(("kind", "is_refused"), [("pack-quantized", True), ("int-quantized", False)])
def test_four_bits_are_not_computed_in_32_on_a_cpu(run: Path, tmp_path: Path, kind: str, is_refused: bool):
    configure(quantization_config={"quant_method": "compressed-tensors", "format": kind})(tmp_path / "judge")
    assert checked(run)
    if is_refused:
        assert 'set judging.dtype = "bfloat16", or leave it out' in refusal(run, "judging.dtype=float32")
    else:
        assert checked(run, "judging.dtype=float32")


@pytest.mark.parametrize(
    "role",
    [
        "evaluate.audit_judge",
        "watch.audit_judge",
        "feedback.cascade.judge",
        "feedback.jury.judges",
        "feedback.select.proxy",
        "feedback.semantic.model",
    ],
)
def test_every_model_of_a_run_is_checked(run: Path, tmp_path: Path, role: str):
    other = make_model(tmp_path / "other")
    extra = {"evaluate.audit_judge": [f"evaluate.prompts={tmp_path}/prompts.jsonl", "evaluate.evaluator=judge"]}
    value = f'["{other}"]' if role.endswith("judges") else f"'{other}'"
    settings = [f"{role}={value}", *extra.get(role, [])]
    assert checked(run, *settings)
    (other / "model.safetensors").write_bytes(b"123")
    message = refusal(run, *settings)
    assert f"{role} model {other}" in message
    assert "model.safetensors is damaged" in message


def test_an_added_token_without_a_row_is_a_warning_as_published_models_have_some(run: Path, tmp_path: Path):
    path = tmp_path / "policy" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append({**value["added_tokens"][0], "id": 32, "content": "<image>"})
    path.write_text(json.dumps(value))
    # The library numbers added tokens itself, from the end of the vocabulary on.
    value["model"]["vocab"] |= {f"w{n}": n for n in range(len(value["model"]["vocab"]) + 1, 32)}
    path.write_text(json.dumps(value))
    (warning,) = checked(run).warnings
    assert "policy: 1 added tokens have no row in the embedding ('<image>')" in warning


# -- lengths -------------------------------------------------------------------------------------------------------


def test_a_configured_length_beyond_the_context_is_refused_and_a_default_is_reduced(run: Path, tmp_path: Path):
    configure(max_position_embeddings=200)(tmp_path / "policy")
    configure(max_position_embeddings=300)(tmp_path / "judge")
    fitted, notes = fit_run(RunFile.load(run))
    assert (fitted.rollout.max_model_len, fitted.rollout.max_tokens) == (200, 100)
    assert fitted.judging.engine(fitted.judge, seed=0).max_model_len == 300
    assert "rollout.max_model_len is 200, the policy's context" in notes
    assert "rollout.max_tokens is 100, half of it" in notes
    assert any("judging.max_model_len is 300" in note for note in notes)
    assert "rollout.max_model_len = 500 exceeds the model's context of 200 tokens" in refusal(
        run, "rollout.max_model_len=500"
    )
    assert "judging.max_model_len (judge" in refusal(run, "judging.max_model_len=500")
    assert "rollout.max_tokens = 250 leaves no room" in refusal(run, "rollout.max_tokens=250")


def test_an_engine_outside_of_runs_has_the_models_length_too(tmp_path: Path):
    model = make_model(tmp_path / "judge")
    configure(max_position_embeddings=256)(model)
    assert engine_config(str(model), EngineOptions()).max_model_len == 256
    assert engine_config(str(model), EngineOptions(max_model_len=4096), default=4096).max_model_len == 256
    with pytest.raises(InputError, match="exceeds the model's context of 256 tokens"):
        engine_config(str(model), EngineOptions(max_model_len=4096))
    assert engine_config("org/model", EngineOptions()).max_model_len == 1024
    assert lowered(engine_config(str(model), EngineOptions()), EngineOptions()) == (
        f"max_model_len is 256, the context of {model}"
    )
    assert lowered(engine_config("org/model", EngineOptions()), EngineOptions()) is None


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"n_positions": 100, "max_position_embeddings": 300}, 100),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 100),
        ({"max_position_embeddings": 100, "rope_parameters": {"full": {"rope_type": "linear", "factor": 2}}}, 200),
        ({"text_config": {"max_position_embeddings": 50}, "max_position_embeddings": 9}, 50),
        ({}, None),
    ],
)
def test_the_context_is_derived_as_the_engine_derives_it(tmp_path: Path, config: dict[str, Any], context: int | None):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    assert context_of(str(tmp_path)) == context


def test_a_judge_too_short_for_a_question_is_refused_and_one_that_cuts_answers_causes_a_warning(
    run: Path, tmp_path: Path
):
    long = CONSTITUTION.replace("is it kind", "is it kind " * 120)
    (tmp_path / "constitution.yaml").write_text(long)
    message = refusal(run, "judging.max_model_len=400")
    assert "the question of principle 'kind' takes" in message
    assert "raise it, shorten the question" in message
    (warning,) = checked(run, "judging.max_model_len=640").warnings
    assert "answers of rollout.max_tokens = 256 tokens are cut before they are judged" in warning
    assert checked(run).warnings == ()


def test_the_words_of_the_chat_template_count_as_well(run: Path, tmp_path: Path):
    frame = "you are a judge " * 200 + "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens(chat_template=frame)(tmp_path / "judge")
    assert "there is room for 799" in refusal(run, "judging.max_model_len=800")
    tokens(chat_template="{{ strange() }}")(tmp_path / "judge")  # not rendered here: not counted
    assert checked(run, "judging.max_model_len=800")


THINKS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %} <think> {% endif %}"
)


def test_a_judge_whose_template_writes_tokens_that_its_embedding_lacks_is_refused(run: Path, tmp_path: Path):
    judge = tmp_path / "judge"
    add_token(judge, "<think>")
    tokens(chat_template=THINKS)(judge)
    message = refusal(run)  # the default: a judge is asked without thinking
    assert (
        f"judge model {judge}: a question to it holds the token '<think>' (id 32), the embedding has 32 rows" in message
    )
    assert "resize_token_embeddings" in message
    with pytest.raises(InputError, match="holds the token '<think>'"):
        check_judge(str(judge), "assistant")
    assert checked(run, "judging.chat_template_args.enable_thinking=true")
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert checked(run, f"judging.chat_template={tmp_path / 'plain.jinja'}")


def test_a_question_of_the_constitution_is_compared_with_the_judges_embedding(run: Path, tmp_path: Path):
    add_token(tmp_path / "judge", "<think>")
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION.replace("is it kind", "is it <think> kind"))
    message = refusal(run, "feedback.task=pointwise")
    assert "the question of principle 'kind' holds the token '<think>' (id 32)" in message


def test_the_words_of_the_judges_template_are_counted_with_its_settings(run: Path, tmp_path: Path):
    frame = "{% if long %}{{ 'you are a judge ' * 200 }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens(chat_template=frame)(tmp_path / "judge")
    assert checked(run, "judging.max_model_len=800")
    assert "there is room for 799" in refusal(run, "judging.max_model_len=800", "judging.chat_template_args.long=true")


def test_an_argument_that_the_chat_template_never_mentions_is_a_warning(run: Path, tmp_path: Path):
    tokens(chat_template=THINKS)(tmp_path / "judge")
    found = checked(
        run, "judging.chat_template_args.enable_thinkin=false", "rollout.chat_template_args.mood=1"
    ).warnings
    assert any(
        "judging.chat_template_args has `enable_thinkin`, which its chat template never mentions (did you mean "
        "`enable_thinking`?); it changes nothing" in warning
        for warning in found
    )
    assert any("policy: rollout.chat_template_args has `mood`" in warning for warning in found)
    assert checked(run, "judging.chat_template_args.enable_thinking=false").warnings == ()


def test_a_judge_outside_of_runs_is_checked_with_its_engine_and_its_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    judge = make_model(tmp_path / "judge")
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION.replace("is it kind", "is it kind " * 120))
    asked = {"feedback": FeedbackConfig(), "constitution": Constitution.load(tmp_path / "constitution.yaml")}
    check_judge(str(judge), "assistant", options=EngineOptions(), **asked)
    with pytest.raises(InputError, match="raise it, shorten the question"):
        check_judge(str(judge), "assistant", options=EngineOptions(max_model_len=400), **asked)
    becoming(head_dim=16)(judge)
    with pytest.raises(InputError, match="attention heads are 16 wide"):
        check_judge(str(judge), "assistant", options=EngineOptions())
    check_judge(str(judge), "assistant", options=EngineOptions(backend="transformers"))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_cannot_be_a_path_is_not_a_model(name: str):
    assert model_folder(name) is None
    with pytest.raises(InputError, match="does not exist"):
        check_model(name, role="judge")


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s4://bucket/folder", "has the scheme 's4', expected one that fsspec knows"),
        ("webhdf://host/folder", "(did you mean `webhdfs`?)"),
        ("https://host/folder", "has the scheme 'https', which cannot be written"),
        ("dropbox://folder", "has the scheme 'dropbox': "),
    ],
)
def test_a_store_that_cannot_be_written_is_refused(run: Path, url: str, words: str):
    assert words in refusal(run, f"checkpoint_url={url}")


@pytest.mark.parametrize("url", ["", "file:///tmp/x", "/tmp/x", "memory://x"])
def test_a_writable_store_is_accepted(run: Path, url: str):
    assert checked(run, f"checkpoint_url={url}")


def test_the_nurserys_evaluator_is_refused_for_other_prompts(run: Path, tmp_path: Path):
    settings = [f"evaluate.prompts={tmp_path}/prompts.jsonl", "evaluate.evaluator=nursery"]
    message = refusal(run, *settings)
    assert "reads prompts of the tiny language, 3 of 3 in evaluate.prompts are others ('is 0 blue')" in message
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "what color is the crow ?"}) + "\n")
    assert checked(run, *settings)


def test_a_judge_that_is_the_policy_is_a_warning_also_as_a_copy(run: Path, tmp_path: Path):
    assert checked(run).warnings == ()
    (warning,) = checked(run, f"judge='{tmp_path}/policy'").warnings
    assert "judge is the policy itself" in warning
    shutil.copytree(tmp_path / "policy", tmp_path / "copy")
    assert checked(run, f"judge='{tmp_path}/copy'").warnings == (warning,)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["learn.learning_rate=10"], "learn.learning_rate = 10 is high for all weights"),
        (["learn.learning_rate=0.5", "learn.lora.r=4"], "learn.learning_rate = 0.5 is high for LoRA"),
        (["learn.critic_learning_rate=1"], "learn.critic_learning_rate = 1 is high"),
        (["learn.learning_rate=1e-12"], "is lost in rounding"),
        (["learn.learning_rate=0.004", "learn.lora.r=4"], ""),
        (["learn.learning_rate=4e-4", "learn.critic_learning_rate=1e-3"], ""),
    ],
)
def test_an_absurd_learning_rate_is_a_warning(run: Path, settings: list[str], words: str):
    warnings = checked(run, *settings).warnings
    assert [words in warning for warning in warnings] == [True] * bool(words)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ('["query"]', "= ('query',) matches no layer of the policy, expected some of k_proj, o_proj"),
        ("'.*query'", "= '.*query' matches no layer"),
        ("'('", "is no pattern"),
        ('["q_proj", "query"]', ""),
        ("'.*(q|v)_proj'", ""),
        ("'all-linear'", ""),
    ],
)
def test_adapters_that_match_no_layer_are_refused(run: Path, targets: str, words: str):
    setting = f"learn.lora.target_modules={targets}"
    if words:
        assert words in refusal(run, setting)
    else:
        assert checked(run, setting)


def test_a_16_bit_policy_that_will_be_stored_in_32_bits_causes_a_note(run: Path, tmp_path: Path):
    narrow = {name: ("BF16", shape) for name, (_, shape) in tensors_of(CONFIG).items()}
    assert not any("twice as large" in note for note in checked(run).notes)
    write_weights(tmp_path / "policy" / "model.safetensors", narrow)
    (note,) = checked(run).notes
    assert "weights are bfloat16; the aligned model is written in float32, twice as large" in note
    assert checked(run, "learn.serving_dtype=bfloat16").notes == ()


def test_a_model_that_is_not_on_this_machine_is_reported_as_unchecked(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert checked(run, "policy=org/model").notes == (
        "policy org/model is not on this machine, so it was not looked at; a run fetches it",
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (note,) = checked(run, "judge=org/judge").notes
    assert "cannot be fetched: HF_HUB_OFFLINE is set" in note


def test_a_hub_model_in_the_cache_is_checked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    fetched = tmp_path / "hub" / "models--org--model"
    (fetched / "refs").mkdir(parents=True)
    (fetched / "refs" / "main").write_text("abc")
    (fetched / "snapshots").mkdir()
    shutil.copytree(tmp_path / "policy", fetched / "snapshots" / "abc")
    assert model_folder("org/model") == fetched / "snapshots" / "abc"
    assert checked(run, "policy=org/model").notes == ()
    configure(num_local_experts=4)(fetched / "snapshots" / "abc")
    assert "policy model org/model has 4 experts" in refusal(run, "policy=org/model")


# -- the machine ---------------------------------------------------------------------------------------------------


def test_the_four_keys_fit_two_cores_and_configured_values_stay(run: Path):
    fitted, notes = fit_run(RunFile.load(run), cpus=2.0)
    assert fitted.cpus <= 2
    assert [fitted.rollout.num_cpus, fitted.judging.num_cpus, fitted.learn.num_cpus] == [0.66] * 3
    assert "with the defaults the run needs 3 CPUs, this machine has 2" in notes[-1]
    fitted, _ = fit_run(RunFile.load(run, overrides=["rollout.num_cpus=1"]), cpus=2.0)
    assert [fitted.rollout.num_cpus, fitted.judging.num_cpus, fitted.learn.num_cpus] == [1, 0.5, 0.5]
    assert fit_run(RunFile.load(run), cpus=3.0) == (RunFile.load(run), ())
    assert fit_run(RunFile.load(run), cpus=None) == (RunFile.load(run), ())


def test_a_run_configured_beyond_the_machine_is_not_reduced(run: Path, monkeypatch: pytest.MonkeyPatch):
    settings = [f"{section}.num_cpus=1" for section in ("rollout", "judging", "learn")]
    asked = RunFile.load(run, overrides=settings)
    assert fit_run(asked, cpus=2.0) == (asked, ())
    monkeypatch.setattr("cluster.config.fitting.machine_cpus", lambda: 2.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "needs 3 CPU(s), this machine has 2" in str(too_large_for_here(asked))
    ranks = RunFile.load(run, overrides=["learn.num_ranks=2", "learn.num_nodes=2"])
    assert "learn.num_nodes = 2, this machine is one node" in str(too_large_for_here(ranks))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "needs 1 GPU(s), this machine has 0" in str(
        too_large_for_here(RunFile.load(run, overrides=["rollout.num_gpus=1"]))
    )
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert too_large_for_here(asked) is None


def test_the_cpus_of_this_machine_are_counted_as_ray_counts_them():
    from ray._private.utils import get_num_cpus

    assert machine_cpus() == get_num_cpus()


@pytest.mark.parametrize(("chosen", "count"), [("", 0), ("0", 1), ("0,2", 2), ("-1", 0), ("GPU-abc", 1)])
def test_gpus_that_are_hidden_are_not_counted(monkeypatch: pytest.MonkeyPatch, chosen: str, count: int):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine_gpus() == count


@pytest.mark.parametrize(
    ("devices", "count"),
    [([], 0), (["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], 2), (["dxg"], 1), (["kfd"], 1), (["null"], 0)],
)
def test_gpus_are_counted_by_their_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: list[str], count: int
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("cluster.config.fitting._GPUS", tmp_path / "none")
    monkeypatch.setattr("cluster.config.fitting._DEVICES", tmp_path)
    for name in devices:
        (tmp_path / name).touch()
    assert machine_gpus() == count


# -- values taken from libraries -----------------------------------------------------------------------------------


def test_the_lists_of_the_installed_libraries_are_found():
    causal = causal_models()
    assert causal is not None
    assert causal["llama"] == {"LlamaForCausalLM"}
    assert {"silu", "gelu", "gelu_new", "relu2"} <= (activations() or set())
    assert {"linear", "dynamic", "yarn", "longrope", "llama3"} <= (rope_types() or set())
    assert {"llama", "qwen3", "gemma3", "mixtral"} <= (model_types() or set())
    if importlib.util.find_spec("vllm") is not None:
        assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM"} <= (vllm_architectures() or set())


def test_the_head_sizes_are_those_of_the_installed_engine():
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(spec.submodule_search_locations[0]) / "v1" / "attention" / "backends" / "cpu_attn.py"
    sizes = next(
        ast.literal_eval(statement.value)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_head_sizes"
        for statement in node.body
        if isinstance(statement, ast.Return) and statement.value is not None
    )
    assert tuple(sizes) == CPU_HEAD_SIZES


def test_headers_are_read_as_the_library_reads_them(tmp_path: Path):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"b": np.zeros((2, 3), np.float16), "a": np.zeros((), np.int64), "c": np.zeros((0, 4))}, tmp_path / "x")
    found = read_header(tmp_path / "x")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "a": ("I64", ()),
        "b": ("F16", (2, 3)),
        "c": ("F64", (0, 4)),
    }


def test_facts_of_a_model_are_those_of_its_files(tmp_path: Path):
    facts = read_facts(make_model(tmp_path / "model"))
    assert (facts.architecture, facts.context, facts.head_size) == ("LlamaForCausalLM", 4096, 32)
    assert (facts.embedding, facts.layers, facts.experts, facts.quantisation) == ((32, 64), 1, 0, "")
    assert facts.special_token("eos_token") == "<end>"


def test_a_check_imports_no_torch_and_takes_seconds_at_most(run: Path, tmp_path: Path):
    code = (
        "import json, sys, time\n"
        "start = time.perf_counter()\n"
        "from solon.cli.check import run_check\n"
        f"run_check({str(run)!r}, overrides=[], as_json=True)\n"
        "heavy = sorted({'torch', 'transformers', 'vllm', 'ray'} & set(sys.modules))\n"
        "print(json.dumps([time.perf_counter() - start, heavy]))"
    )
    best = 60.0
    for _ in range(2):  # the second finds the prompts rendered
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds, heavy = json.loads(done.stdout.splitlines()[-1])
        assert heavy == []
        best = min(best, seconds)
    assert best < 5
