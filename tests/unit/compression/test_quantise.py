"""Judges made smaller and compared: gold pairs, measuring, the comparison, candidates, and refusals to quantise."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from compression.quantise import SCHEMES, calibration_digest, quantise_model, weight_bytes
from solon.cli.judges import judges_app
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig, EngineOptions
from solon.engines.bitsandbytes import bitsandbytes_options
from solon.errors import InputError
from solon.feedback.interfaces import Item
from solon.feedback.trials.candidates import VARIANTS, Candidate, distinctly_named, parse_candidate
from solon.feedback.trials.comparison import compare
from solon.feedback.trials.gold import GoldPair, gold_pair, load_gold, parse_gold
from solon.feedback.trials.measuring import Measurement, Part, deal, measure
from solon.verdicts import Status, Verdict
from tests.models import make_model
from tests.unit.fakes import make_prompt

ROOT = Path(__file__).resolve().parents[3]


# -- builders --------------------------------------------------------------------------------------------------


def make_constitution() -> Constitution:
    return Constitution.model_validate(
        {
            "schema": "solon.constitution/v1",
            "id": "c",
            "version": "1",
            "principles": [
                {"id": "polite", "pairwise_question": "more polite?"},
                {"id": "true", "pairwise_question": "more true?", "weight": 0.5, "applies_if": {"tags_any": ["fact"]}},
                {"id": "brief", "pointwise_question": "is it brief?"},
            ],
        }
    )


def make_pairs(num: int) -> list[GoldPair]:
    """Under one principle, with the word that makes an answer the better one in it."""
    principles = make_constitution().principles[:1]
    return [gold_pair(make_prompt(f"question {i}"), f"good {i}", f"bad {i}", target=1.0, principles=principles)
            for i in range(num)]  # fmt: skip


def prefers(item: Item, word: str = "good") -> float:
    """2 nats for the answer that has the word."""
    return 2.0 if word in item.answers[0] else -2.0


@dataclass
class FakeJudge:
    """Judges by a function; takes the given seconds per verdict on its own clock."""

    margin: Callable[[Item], float | None]
    name: str = "fake"
    seconds: float = 0.5
    offset: float = 0.25
    now: float = 0.0
    asked: list[int] = field(default_factory=list)

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked.append(len(items))
        self.now += self.seconds * len(items)
        return [self._verdict(item) for item in items]

    def clock(self) -> float:
        return self.now

    def _verdict(self, item: Item) -> Verdict:
        margin = self.margin(item)
        if margin is None:
            return Verdict(status=Status.LOW_MASS, margin=None, questions=2)
        return Verdict(
            status=Status.OK,
            margin=margin / 2,
            raw_margin=margin,
            position_offset=self.offset,
            questions=2,
            prompt_tokens=20,
        )


def measured(judge: FakeJudge, pairs: Sequence[GoldPair], *, parts: int = 4) -> Measurement:
    return asyncio.run(measure(judge, pairs, parts=parts, clock=judge.clock))


# -- gold ------------------------------------------------------------------------------------------------------


def test_a_chosen_and_a_rejected_answer_are_a_decided_pair_whichever_stands_first():
    targets = set()
    for number in range(20):
        pair = parse_gold(1, {"prompt": f"hi {number}", "chosen": "yes", "rejected": "no"}, make_constitution())
        assert pair.is_decided
        assert (pair.items[0].answers[0] == "yes") == (pair.target == 1.0)
        targets.add(pair.target)
    assert targets == {0.0, 1.0}


def test_exchanging_a_and_b_gives_the_same_pair():
    row = {"prompt": "hi", "a": "x", "b": "y", "expect": "a"}
    other = {"prompt": "hi", "a": "y", "b": "x", "expect": "b"}
    assert parse_gold(1, row, make_constitution()) == parse_gold(2, other, make_constitution())


def test_a_pair_is_asked_under_the_principles_that_apply_and_have_a_question():
    row = {"prompt": "hi", "chosen": "x", "rejected": "y", "subset": "s"}
    plain = parse_gold(1, row, make_constitution())
    tagged = parse_gold(1, {**row, "tags": ["fact"]}, make_constitution())
    named = parse_gold(1, {**row, "principle": "true"}, make_constitution())
    assert [item.principle_id for item in plain.items] == ["polite"]
    assert [item.principle_id for item in tagged.items] == ["polite", "true"]
    assert tagged.weights == (1.0, 0.5)
    assert [item.question for item in named.items] == ["more true?"]
    assert named.subset == "s"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi"}, "has no answers"),
        ({"prompt": "hi", "chosen": "x"}, "answer None"),
        ({"prompt": "hi", "a": "x", "b": "y"}, "`expect` is None"),
        ({"prompt": "hi", "a": "x", "b": "y", "expect": "A"}, "expected one of a, b, tie"),
        ({"chosen": "x", "rejected": "y"}, "no `prompt`"),
        ({"prompt": "hi", "chosen": "x", "rejected": "y", "principle": "polit"}, "did you mean `polite`"),
        ({"prompt": "hi", "chosen": "x", "rejected": "y", "principle": "brief"}, "no pairwise_question"),
        ({"prompt": "hi", "chosen": "x", "rejected": "y", "subset": 3}, "`subset`"),
        (["hi"], "holds a list"),
        (ValueError("not JSON"), "not JSON"),
    ],
)
def test_a_row_that_is_not_a_pair_is_refused_with_the_reason(row: Any, message: str):
    with pytest.raises(ValueError, match=message):
        parse_gold(1, row, make_constitution())


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_a_file_with_few_broken_rows_is_read_and_one_with_many_is_refused(tmp_path: Path):
    good = [{"prompt": f"p {i}", "chosen": "x", "rejected": "y"} for i in range(100)]
    assert len(load_gold(write_rows(tmp_path / "a.jsonl", [*good, {}]), make_constitution())) == 100
    with pytest.raises(InputError, match=r"2 of 102 rows.*line 101"):
        load_gold(write_rows(tmp_path / "b.jsonl", [*good, {}, {}]), make_constitution())
    with pytest.raises(InputError, match="none that can be used"):
        load_gold(write_rows(tmp_path / "c.jsonl", [{}]), make_constitution())
    with pytest.raises(InputError, match="does not exist"):
        load_gold(tmp_path / "d.jsonl", make_constitution())


# -- measuring -------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 20))
def test_dealing_gives_every_pair_to_one_part_and_no_part_is_empty(num: int, parts: int):
    dealt = deal(num, parts)
    assert sorted(index for part in dealt for index in part) == list(range(num))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert all(dealt)


def test_a_rate_is_the_median_over_parts_each_asked_once():
    judge = FakeJudge(prefers)
    found = measured(judge, make_pairs(40))
    assert judge.asked == [10, 10, 10, 10]
    assert found.rate == pytest.approx(2.0)
    slow_part = replace(found, parts=(*found.parts[:3], Part(verdicts=10, seconds=500.0)))
    assert slow_part.rate == pytest.approx(2.0)
    assert (found.questions, found.prompt_tokens) == (80, 800)


def test_measurements_are_in_the_order_of_the_pairs():
    pairs = make_pairs(7)
    found = measured(FakeJudge(prefers), pairs, parts=3)
    assert found.margins == tuple(1.0 if pair.target == 1.0 else -1.0 for pair in pairs)
    assert found.raw_margins == tuple(2 * margin for margin in found.margins if margin is not None)
    assert set(found.offsets) == {0.25}


def test_the_margin_of_a_pair_is_the_weighted_mean_over_its_principles():
    pair = parse_gold(1, {"prompt": "p", "chosen": "x", "rejected": "y", "tags": ["fact"]}, make_constitution())
    judge = FakeJudge(lambda item: 4.0 if item.principle_id == "polite" else -2.0)
    found = measured(judge, [pair])
    assert found.raw_margins == (pytest.approx((4.0 * 1.0 - 2.0 * 0.5) / 1.5),)


def test_a_pair_with_one_invalid_verdict_has_no_margin_and_counts_once():
    pair = parse_gold(1, {"prompt": "p", "chosen": "x", "rejected": "y", "tags": ["fact"]}, make_constitution())
    found = measured(FakeJudge(lambda item: None if item.principle_id == "true" else 1.0), [pair])
    assert found.margins == found.offsets == (None,)
    assert found.invalid == {"low_mass": 1}
    assert measured(FakeJudge(lambda item: None), [pair]).invalid == {"low_mass": 1}


# -- comparing -------------------------------------------------------------------------------------------------


def wrong_on(numbers: range) -> Callable[[Item], float]:
    """A judge that is wrong about these pairs."""
    return lambda item: prefers(item) * (-1 if int(item.answers[0].split()[1]) in numbers else 1)


def test_a_judge_that_is_wrong_on_ten_of_a_hundred_loses_ten_points():
    pairs = make_pairs(100)
    first = measured(FakeJudge(prefers, name="first"), pairs)
    other = measured(FakeJudge(wrong_on(range(10)), name="other", seconds=0.2), pairs)
    right, wrong = compare([first, other], pairs, resamples=50).rows
    assert (right.agreement.value, right.flips, right.p, right.speedup) == (1.0, None, None, 1.0)
    assert wrong.agreement.value == pytest.approx(0.9)
    assert wrong.lost_points == pytest.approx(10.0)
    assert wrong.flips is not None
    assert wrong.flips.value == pytest.approx(0.1)
    assert wrong.speedup == pytest.approx(2.5)
    assert wrong.p == pytest.approx(2 * 0.5**10)  # ten coins that all fall on one side
    assert wrong.agreement.low < 0.9 < wrong.agreement.high
    assert wrong.kappa_with_first is not None
    assert 0.7 < wrong.kappa_with_first.value < 0.82


def test_all_judges_are_scored_on_the_pairs_that_all_of_them_answered():
    pairs = make_pairs(100)
    honest = measured(FakeJudge(wrong_on(range(20))), pairs)
    dodges = measured(
        FakeJudge(lambda item: None if wrong_on(range(20))(item) != prefers(item) else prefers(item)), pairs
    )
    comparison = compare([honest, dodges], pairs, resamples=50)
    assert (comparison.common, comparison.decided, comparison.pairs) == (80, 100, 100)
    assert [row.agreement.value for row in comparison.rows] == [1.0, 1.0]
    assert [row.invalid for row in comparison.rows] == [0.0, 0.2]


def test_ties_of_gold_are_no_test_of_a_judge():
    pairs = make_pairs(60)
    pairs = [replace(pair, target=0.5) if i < 20 else pair for i, pair in enumerate(pairs)]
    comparison = compare([measured(FakeJudge(wrong_on(range(20))), pairs)], pairs, resamples=50)
    assert (comparison.decided, comparison.rows[0].agreement.value) == (40, 1.0)


def test_a_judge_whose_offset_exceeds_its_margins_is_not_consistent():
    pairs = make_pairs(50)
    shifted = compare([measured(FakeJudge(prefers, offset=3.0), pairs)], pairs, resamples=50).rows[0]
    assert shifted.position_consistency is not None
    assert shifted.position_offset is not None
    assert (shifted.position_consistency.value, shifted.position_offset.value) == (0.0, 3.0)
    steady = compare([measured(FakeJudge(prefers), pairs)], pairs, resamples=50).rows[0]
    assert steady.position_consistency is not None
    assert steady.position_consistency.value == 1.0


def test_cost_is_the_machines_time_and_what_endpoints_charged_over_valid_labels():
    pairs = make_pairs(40)
    found = measured(FakeJudge(prefers, seconds=0.5), pairs)
    # 2 verdicts a second at 3.60 dollars an hour: 0.0005 dollars each.
    assert compare([found], pairs, usd_per_hour=3.6, resamples=50).rows[0].usd_per_1k == pytest.approx(0.5)
    charged = replace(found, usd=0.4)
    assert compare([charged], pairs, resamples=50).rows[0].usd_per_1k == pytest.approx(10.0)
    assert compare([found], pairs, resamples=50).rows[0].usd_per_1k is None


def test_too_few_pairs_are_refused_with_what_each_judge_left_out():
    pairs = make_pairs(40)
    silent = measured(FakeJudge(lambda item: None, name="silent"), pairs)
    with pytest.raises(InputError, match=r"0 of 40 pairs.*silent left out 40 \(40 low_mass\)"):
        compare([silent], pairs)


# -- candidates ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "judge"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    return path


def test_a_variant_names_engine_dtype_and_quantisation(model: Path):
    plain = parse_candidate(str(model), EngineOptions())
    bf16 = parse_candidate(f"{model}@bf16", EngineOptions())
    both = parse_candidate(f"{model}@bnb_nf4,bf16", EngineOptions())
    assert (plain.name, plain.engine.backend, plain.engine.max_model_len) == ("judge", "vllm", 256)
    assert (bf16.name, bf16.engine.dtype, bf16.engine.model) == ("judge@bf16", "bfloat16", str(model))
    assert both.engine.backend == "transformers"
    assert (both.engine.quantization, both.engine.dtype) == ("bnb_nf4", "bfloat16")
    assert both.runs_as == "transformers, bfloat16, bnb_nf4"


def test_every_variant_is_accepted_by_an_engine(model: Path):
    for variant in VARIANTS:
        parse_candidate(f"{model}@{variant}", EngineOptions())


def test_an_at_sign_in_a_folder_above_the_model_is_no_variant(model: Path, tmp_path: Path):
    moved = model.rename(tmp_path / "x@y")
    (moved / "inner").mkdir()
    (moved / "inner" / "config.json").write_text("{}")
    assert parse_candidate(str(moved / "inner"), EngineOptions()).name == "inner"


def test_an_unknown_variant_and_a_missing_model_are_refused(model: Path):
    with pytest.raises(InputError, match="did you mean `bf16`"):
        parse_candidate(f"{model}@bf1", EngineOptions())
    with pytest.raises(InputError, match="no model directory"):
        parse_candidate(f"{model}-gone", EngineOptions())


def test_judges_of_one_name_are_called_by_their_paths(model: Path, tmp_path: Path):
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "judge"
    other.mkdir()
    (other / "config.json").write_text("{}")
    one, two = (parse_candidate(f"{path}@bf16", EngineOptions()) for path in (model, other))
    assert [c.name for c in distinctly_named([one, two])] == [f"{model}@bf16", f"{other}@bf16"]
    with pytest.raises(InputError, match="twice"):
        distinctly_named([one, one])


# -- the commands ----------------------------------------------------------------------------------------------


def test_the_commands_are_imported_without_anything_heavy():
    code = "import sys, solon.cli.judges; print(sorted({'numpy', 'pydantic', 'torch', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A file of 40 pairs and a constitution."""
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    constitution = tmp_path / "constitution.yaml"
    constitution.write_text(
        "schema: solon.constitution/v1\nid: c\nversion: 1.0.0\nprinciples:\n"
        "  - {id: polite, pairwise_question: 'more polite?', critique_request: c, revision_request: r}\n"
    )
    return str(write_rows(tmp_path / "pairs.jsonl", rows)), str(constitution)


def compare_models(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """`solon judges compare`; a judge named after bfloat16 is wrong about the first ten pairs."""

    def measured_here(candidate: Candidate, pairs: Sequence[GoldPair], *_: Any, parts: int) -> Measurement:
        margin = wrong_on(range(10)) if "bf16" in candidate.name else prefers
        found = measured(FakeJudge(margin, name=candidate.name), pairs, parts=parts)
        return replace(found, runs_as=candidate.runs_as, disk_bytes=5_000_000, resident_bytes=2_000_000_000)

    monkeypatch.setattr("solon.cli.compare.measure_apart", measured_here)
    return CliRunner().invoke(judges_app, ["compare", *arguments])


def test_judges_are_compared_in_a_table_json_and_a_page(
    monkeypatch: pytest.MonkeyPatch, files: tuple[str, str], tmp_path: Path
):
    pairs, constitution = files
    model = make_model(tmp_path / "judge")
    out = tmp_path / "out"
    arguments = [str(model), f"{model}@bf16", "--pairs", pairs, "--constitution", constitution, "--out", str(out)]
    printed = compare_models(monkeypatch, *arguments, "--usd-per-hour", "3.6", "--json")
    assert printed.exit_code == 0, printed.output
    result = json.loads(printed.stdout)
    assert result == json.loads((out / "judges.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["judge", "judge@bf16"]
    assert [row["agreement"]["value"] for row in result["rows"]] == [1.0, 0.75]
    assert result["rows"][1]["lost_points"] == 25.0
    assert "judge@bf16" in (out / "judges.html").read_text()
    shown = compare_models(monkeypatch, *arguments[:-2])
    assert "+25.0" in shown.stdout
    assert "40 pairs of 40" in shown.stdout


def test_a_misspelt_template_and_a_missing_constitution_are_input_errors(
    monkeypatch: pytest.MonkeyPatch, model: Path, files: tuple[str, str]
):
    pairs, constitution = files
    wrong = compare_models(
        monkeypatch, str(model), "--pairs", pairs, "--constitution", constitution, "--template", "asistant"
    )
    assert "did you mean `assistant`" in str(wrong.exception)
    assert isinstance(wrong.exception, InputError)
    without = compare_models(monkeypatch, str(model), "--pairs", pairs)
    assert "give --constitution" in str(without.exception)


# -- bitsandbytes ----------------------------------------------------------------------------------------------


def test_vllm_does_not_take_weights_that_are_quantised_while_loading():
    with pytest.raises(ValueError, match=r"needs backend = 'transformers', got 'vllm'"):
        EngineConfig(model="m", quantization="bnb_int8")
    assert EngineConfig(model="m", backend="transformers", quantization="bnb_int8").quantization == "bnb_int8"


def test_without_bitsandbytes_the_refusal_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = EngineConfig(model=str(model), backend="transformers", quantization="bnb_nf4")
    with pytest.raises(InputError, match=r"solon\[bnb\]"):
        bitsandbytes_options(config, "auto", device=None)  # type: ignore[arg-type]


# -- quantising ------------------------------------------------------------------------------------------------


def test_another_sequence_order_or_border_is_another_calibration():
    digests = {calibration_digest(ids) for ids in ([[1, 2], [3]], [[1], [2, 3]], [[3], [1, 2]], [[1, 2, 3]], [[1, 2]])}
    assert len(digests) == 5
    assert calibration_digest([[1, 2], [3]]) == calibration_digest(((1, 2), (3,)))


def make_checkpoint(path: Path, **settings: Any) -> Path:
    """Config and a file of weights that is never read."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **settings}))
    (path / "model.safetensors").write_bytes(b"x" * 10)
    return path


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        ("w8a9", {}, r"expected one of w8a8.*did you mean `w8a8`"),
        ("w8a8", {"quantization_config": {"format": "x"}}, "quantise its original"),
        ("w4a16-gptq", {}, r"got 2 calibration sequences, expected at least 8.*'w4a16'"),
    ],
)
def test_an_unquantisable_model_is_refused_before_anything_is_loaded(
    tmp_path: Path, scheme: str, settings: dict[str, Any], message: str
):
    source = make_checkpoint(tmp_path / "m", **settings)
    loaded = "torch" in sys.modules
    with pytest.raises(InputError, match=message):
        quantise_model(source, tmp_path / "out", scheme, calibration=[[1, 2], [3]])
    assert ("torch" in sys.modules) == loaded
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_existing_target_is_never_overwritten(tmp_path: Path):
    source = make_checkpoint(tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists, expected a new directory"):
        quantise_model(source, tmp_path / "out", "w8a8")
    assert weight_bytes(source) == 10


# -- quantising for real: imports torch, transformers and llm-compressor ---------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.mark.engine
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_writes_a_smaller_model_with_nearly_the_same_outputs(tiny: Path, tmp_path: Path, scheme: str):
    import torch
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    calibration = torch.randint(6, 37, (16, 24), generator=generator).tolist()
    record = quantise_model(tiny, tmp_path / "out", scheme, calibration=calibration)
    assert json.loads((tmp_path / "out" / "quantisation.json").read_text())["scheme"] == scheme
    assert record.layers == 14
    assert record.weight_bytes == weight_bytes(tmp_path / "out") < 0.6 * record.source_weight_bytes
    assert bool(record.calibration_digest) == SCHEMES[scheme].gptq
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"out"}
    ids = torch.randint(6, 37, (4, 24), generator=generator)
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (tiny, tmp_path / "out")
        )
    assert (before - after).norm() / before.norm() < (0.25 if scheme.startswith("w4") else 0.1)


@pytest.mark.engine
def test_layers_that_do_not_divide_are_named(tmp_path: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match=r"128 columns, but model.layers.0.mlp.gate_proj is 344 x 128.*take w8a8"):
        quantise_model(tmp_path / "m", tmp_path / "out", "w4a16")
    with pytest.raises(InputError, match=r"multiple of 16 rows and 16 columns"):
        quantise_model(tmp_path / "m", tmp_path / "out", "w8a8")
    kept = quantise_model(tmp_path / "m", tmp_path / "out", "w4a16", ignore=("lm_head", "re:.*mlp.*"))
    assert kept.layers == 4
