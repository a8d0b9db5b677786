"""Algorithms of rounding: what each is for, what it scales, what it writes, and the order in which recovery tries."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compression.algorithms import ALGORITHMS, LLAMA_LIKE, others, require_algorithm, scaled_layers
from compression.export import export
from compression.live import load_model
from compression.llm_compressor import _batches
from compression.request import Request
from compression.units import skeleton, uniform, units_of
from compression.workflow import Compression
from compression.written import require_whole
from solon.errors import InputError, RunFailedError
from tests.models import make_model
from tests.unit.compression.test_workflow import make_pairs

IDS = torch.randint(6, 37, (4, 24), generator=torch.Generator().manual_seed(0))
CALIBRATION = torch.randint(6, 37, (16, 24), generator=torch.Generator().manual_seed(1)).tolist()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_model(folder)(IDS).logits
    return found


def write(source: Path, target: Path, form: str, algorithm: str) -> None:
    units = units_of(skeleton(source))
    export(source, target, units, uniform(units, form), algorithm=algorithm, calibration=CALIBRATION)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "form"),
    [
        ("rtn", "fp8"),
        ("gptq", "fp8"),
        ("smoothquant", "fp8"),
        ("smoothquant", "w8a8"),
        ("gptq", "w4a16-g64"),
        ("awq", "w4a16-g64"),
    ],
)
def test_every_algorithm_writes_a_close_model_whose_head_is_tied_as_before(
    tmp_path: Path, algorithm: str, form: str, tied: bool
):
    source = make_model(tmp_path / "model", tied=tied)
    write(source, tmp_path / "out", form, algorithm)
    before, after = logits(source), logits(tmp_path / "out")
    assert (before - after).norm() / before.norm() < (0.25 if form.startswith("w4") else 0.1)
    names = [name for file in (tmp_path / "out").glob("*.safetensors") for name in load_file(file)]
    assert ("lm_head.weight" in names) != tied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is tied
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert (record["algorithm"], bool(record["calibration_digest"])) == (algorithm, algorithm != "rtn")


@pytest.mark.parametrize(("algorithm", "form"), [("smoothquant", "fp8"), ("awq", "w4a16-g64")])
def test_the_named_norms_are_scaled_before_rounding_and_the_last_one_is_not(tmp_path: Path, algorithm: str, form: str):
    source = make_model(tmp_path / "model")
    write(source, tmp_path / "out", form, algorithm)
    before, after = (load_model(folder).state_dict() for folder in (source, tmp_path / "out"))
    norms = [name for name in before if name.endswith("norm.weight")]
    assert [name for name in norms if torch.equal(before[name], after[name])] == ["model.norm.weight"]
    assert len(norms) == 5


def test_values_that_heads_share_are_not_scaled_for_the_layer_after(tmp_path: Path):
    model = skeleton(make_model(tmp_path / "model"))
    units = [
        replace(unit, matrices=tuple(replace(one, columns=one.columns * 2) for one in unit.matrices))
        if unit.name.endswith(".o")
        else unit
        for unit in units_of(model)
    ]
    found = scaled_layers(model, units, uniform(units, "w4a16-g64"), "awq")
    assert [one.before.rpartition(".")[2] for one in found] == 2 * [
        "input_layernorm", "post_attention_layernorm", "up_proj",
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("algorithm", "form", "number"), [("smoothquant", "w8a8", 4), ("awq", "w4a16-g32", 8)])
def test_a_model_whose_layers_are_scaled_as_an_algorithm_does_computes_the_same(
    tmp_path: Path, architecture: str, algorithm: str, form: str, number: int
):
    source = make_model(tmp_path / "model", architecture=architecture)
    model, units = load_model(source), units_of(skeleton(source))
    found = scaled_layers(model, units, uniform(units, form), algorithm)
    assert (len(found), type(model).__name__ in LLAMA_LIKE) == (number, True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = model(IDS).logits
        for one in found:
            before = model.get_submodule(one.before)
            scale = torch.rand(len(before.weight), generator=generator) + 0.5
            before.weight.data /= scale if before.weight.ndim == 1 else scale[:, None]
            if getattr(before, "bias", None) is not None:
                before.bias.data /= scale
            for name in one.layers:
                model.get_submodule(name).weight.data *= scale
        assert (model(IDS).logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_only_units_of_the_formats_that_an_algorithm_is_for_are_scaled(tmp_path: Path):
    model = skeleton(make_model(tmp_path / "model"))
    units = units_of(model)
    mixed = {unit.name: "w8a8" if unit.name.startswith("0.") else "w4a16-g64" for unit in units} | {"1.o": "keep"}
    smoothed = [one.before for one in scaled_layers(model, units, mixed, "smoothquant")]
    assert smoothed == ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    scaled = {one.before: one.layers for one in scaled_layers(model, units, mixed, "awq")}
    assert [name.removeprefix("model.layers.1.") for name in scaled] == [
        "input_layernorm", "post_attention_layernorm", "mlp.up_proj",
    ]  # fmt: skip
    assert scaled["model.layers.1.mlp.up_proj"] == ("model.layers.1.mlp.down_proj",)
    assert not scaled_layers(model, units, mixed, "gptq")


@pytest.mark.parametrize("algorithm", ["awq", "smoothquant"])
def test_a_mixed_model_is_written_by_algorithms_that_are_for_some_of_its_units(tmp_path: Path, algorithm: str):
    source = make_model(tmp_path / "model")
    units = units_of(skeleton(source))
    mixed = {unit.name: "w8a8" if unit.name.startswith("0.") else "w4a16-g64" for unit in units} | {"1.o": "keep"}
    export(source, tmp_path / "out", units, mixed, algorithm=algorithm, calibration=CALIBRATION)
    before, after = logits(source), logits(tmp_path / "out")
    assert (before - after).norm() / before.norm() < 0.25


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "w8a8", "algorithm": "awq"}, r"awq is for an int4 format.*got the formats w8a8;.*take gptq"),
        ({"form": "fp8", "algorithm": "awq"}, r"awq is for an int4 format.*got the formats fp8"),
        ({"form": "w4a16-g64", "algorithm": "smoothquant"}, r"smoothquant is for w8a8 or fp8, got the formats w4a16"),
        ({"size": 0.5, "formats": ("w8a8",), "algorithm": "awq"}, r"awq is for an int4 format"),
        ({"form": "w8a8", "algorithm": "awk"}, r"got the algorithm 'awk', expected one of rtn, gptq.*mean `awq`"),
        ({"form": "w8a8", "algorithm": "smoothquant", "architecture": "gemma"}, r"layers of GemmaForCausalLM"),
    ],
)
def test_an_algorithm_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], words: str
):
    chosen = dict(settings)
    source = make_model(tmp_path / "model", architecture=chosen.pop("architecture", "llama"))
    with pytest.raises(InputError, match=words):
        Compression(Request(model=source, out=tmp_path / "out", answers=0, serve=False, **chosen), make_pairs())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_assignment_without_a_unit_for_the_algorithm_is_refused_by_the_export_too(tmp_path: Path):
    source = make_model(tmp_path / "model")
    with pytest.raises(InputError, match=r"awq is for an int4 format"):
        write(source, tmp_path / "out", "w8a8", "awq")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_recovery_tries_the_other_algorithms_that_fit_at_the_same_bytes_cheapest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = make_model(tmp_path / "model")
    monkeypatch.setattr(Compression, "_promotions", lambda *_: [{"0.qkv": "keep"}])

    def tried(form: str, algorithm: str) -> list[tuple[str, str]]:
        request = Request(
            model=source, out=tmp_path / "out", form=form, algorithm=algorithm, recover=True, answers=0, serve=False
        )
        return [(one.name, one.algorithm) for one in Compression(request, make_pairs(1200))._candidates()]

    assert tried("w4a16-g64", "rtn") == [("1", "rtn"), ("2", "gptq"), ("3", "awq"), ("4", "gptq"), ("5", "rtn")]
    assert [name for _, name in tried("w8a8", "rtn")] == ["rtn", "gptq", "smoothquant", "gptq", "rtn"]
    assert [name for _, name in tried("fp8", "smoothquant")] == ["smoothquant", "gptq", "gptq", "rtn"]
    mixed = {"0.qkv": "w4a16-g64", "0.o": "w8a8"}
    assert others("gptq", "LlamaForCausalLM", mixed) == ["awq", "smoothquant"]
    assert others("rtn", "GemmaForCausalLM", mixed) == ["gptq"]


def test_a_written_model_with_a_key_that_is_missing_or_not_read_is_not_kept(tmp_path: Path):
    source = make_model(tmp_path / "model")
    write(source, tmp_path / "out", "w8a8", "rtn")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    whole = load_file(file)
    layers = sum(name.endswith(".weight_scale") for name in whole)
    require_whole(source, tmp_path / "out", layers)
    save_file({**whole, "model.layers.0.extra.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(RunFailedError, match=r"1 unexpected, such as model.layers.0.extra.weight"):
        require_whole(source, tmp_path / "out", layers)
    less = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    save_file(less, file, metadata={"format": "pt"})
    with pytest.raises(RunFailedError, match=r"1 missing, such as model.norm.weight"):
        require_whole(source, tmp_path / "out", layers)


def test_a_head_that_was_untied_or_has_a_copy_is_not_kept(tmp_path: Path):
    source = make_model(tmp_path / "model", tied=True)
    write(source, tmp_path / "out", "w8a8", "rtn")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    whole = load_file(file)
    save_file({**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(RunFailedError, match=r"a head of its own \(lm_head.weight\) and a config that says tied"):
        require_whole(source, tmp_path / "out", 14)
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(RunFailedError, match=r"quantising untied the head"):
        require_whole(source, tmp_path / "out", 14)


def test_rounding_alone_is_for_every_architecture_and_format():
    for algorithm in ALGORITHMS[:2]:
        require_algorithm(algorithm, "GemmaForCausalLM", ("w8a8", "w4a16-g64", "keep"))


def test_sequences_are_whole_and_in_order_alone_and_of_like_lengths_together():
    sequences = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    assert _batches(sequences, 1) == [[[1, 2, 3]], [[4]], [[5, 6]], [[7, 8, 9, 10]]]
    assert _batches(sequences, 2) == [[[4], [5]], [[1, 2, 3], [7, 8, 9]]]
