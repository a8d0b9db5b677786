"""A compression from pairs to a certificate, what it refuses, and that nothing appears unless it was accepted."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cluster.align.stages.compress import CompressStage, compress_policy
from cluster.preflight.models import check_model
from compression import workflow
from compression.flips import damage
from compression.gate.thresholds import Thresholds
from compression.live import load_model
from compression.pairs import Pair, Scores, part_of, parted, scores_of
from compression.pruning.plan import Pruning
from compression.request import Request
from compression.roles import ROLES, Rules
from compression.sensitivity import plan_of
from compression.units import skeleton, units_of
from compression.workflow import Compression
from serve_apps.versions import require_certificate
from solon.cli.main import app
from solon.errors import InputError, RunFailedError
from solon.models.certificate import CERTIFICATE, read_certificate, require_certified
from tests.models import WORDS, make_model

PROMPTS = 700


def make_pairs(number: int = PROMPTS) -> list[Pair]:
    rng = random.Random(0)

    def words(size: int) -> tuple[int, ...]:
        return tuple(rng.randrange(6, 60) for _ in range(size))

    return [
        Pair(prompt_id=f"p{i}", prompt=words(5), chosen=words(4), rejected=words(4), tags=(f"tag{i % 2}",))
        for i in range(number)
    ]


def compress(folder: Path, pairs: list[Pair] | None = None, **settings: Any) -> dict[str, Any]:
    model = folder / "model"
    if not model.exists():
        make_model(model)
    chosen: dict[str, Any] = {"form": "w8a8", "answers": 0, "serve": False, **settings}
    pruning = Pruning.parsed(chosen.pop("prune", ""))
    request = Request(model=model, out=folder / "out", pruning=pruning, **chosen)
    return Compression(request, make_pairs() if pairs is None else pairs).run()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an accepted model."""
    folder = tmp_path_factory.mktemp("compressed")
    report = compress(folder)
    assert report["verdict"] == "accept", report["reason"]
    return folder


def test_an_accepted_model_has_a_certificate_about_its_weights(done: Path):
    certificate = read_certificate(done / "out")
    assert (certificate["verdict"], certificate["role"]) == ("accept", "policy")
    assert certificate["not_measured"] == ["empty or repeating answers"]
    assert 0 <= certificate["original"]["prefers"] <= 1
    assert certificate["shapes"]["num_hidden_layers"] == [2, 2]
    assert {row["name"] for row in certificate["rows"]} >= {"net flips", "flips", "lost margin", "net flips, tag0"}
    require_certified(done / "out", where="here", allow="x")
    require_certificate(str(done / "out"), where="here")


def test_a_certificate_that_was_edited_moved_or_removed_is_none(done: Path, tmp_path: Path):
    model = shutil.copytree(done / "out", tmp_path / "copy")
    path = model / CERTIFICATE
    whole = json.loads(path.read_text())
    for changed, words in (
        ({**whole, "verdict": "accept", "reason": "trust me"}, "was edited"),
        ({**whole, "schema": "other"}, "not a certificate"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words):
            require_certified(model, where="here", allow="x")
    path.write_text("{")
    with pytest.raises(InputError, match="not a certificate"):
        require_certificate(str(model), where="here")
    path.write_text(json.dumps(whole))
    settings = model / "generation_config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(InputError, match="about other files"):
        require_certified(model, where="here", allow="x")
    path.unlink()
    with pytest.raises(InputError, match=r"has no certificate.json.*or set x"):
        require_certified(model, where="here", allow="x")


def test_a_model_that_was_certified_as_a_policy_is_no_judge_unless_told_otherwise(
    done: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(InputError, match="certified as a policy, expected a judge"):
        check_model(str(done / "out"), role="judge")
    monkeypatch.setenv("SOLON_ALLOW_UNCERTIFIED", "1")
    check_model(str(done / "out"), role="judge")


def test_a_certified_policy_is_accepted_where_a_policy_writes_and_another_one_where_that_is_allowed(
    done: Path, tmp_path: Path
):
    check_model(str(done / "out"), role="policy", opt_in="engine")
    model = shutil.copytree(done / "out", tmp_path / "copy")
    (model / CERTIFICATE).unlink()
    with pytest.raises(InputError, match=r"has no certificate.json"):
        check_model(str(model), role="policy", opt_in="engine")
    check_model(str(model), role="policy", opt_in="engine", uncertified=True)


def test_a_model_that_loses_its_preferences_is_rejected_and_nothing_appears(tmp_path: Path):
    report = compress(tmp_path, form="w4a16-g128")
    assert report["verdict"] == "reject"
    assert report["out"] is None
    assert not (tmp_path / "out").exists()
    assert report["candidates"][0]["rows"]


def test_a_second_start_repeats_neither_sweeps_nor_candidates_and_gives_the_same_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"form": "", "size": 0.3, "gate": "lenient", "recover": True}
    first = compress(tmp_path, **settings)
    assert first["verdict"] == "accept", first["reason"]
    assert first["linear_bytes"]["after"] <= 0.3 * first["linear_bytes"]["before"]
    assert first["front"][-1]["cost"] == 0
    certificate = (tmp_path / "out" / CERTIFICATE).read_bytes()
    shutil.rmtree(tmp_path / "out")

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("it was finished")

    monkeypatch.setattr(workflow, "export", unwanted)
    monkeypatch.setattr("compression.sensitivity.damage", unwanted)
    second = compress(tmp_path, **settings)
    assert second == first
    assert (tmp_path / "out" / CERTIFICATE).read_bytes() == certificate


def test_another_target_gate_or_recovery_repeats_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"form": "", "size": 0.3, "gate": "lenient", "formats": ("w4a16-g128", "w8a8")}
    monkeypatch.setattr("compression.original.MOST_SEARCHED", 24)
    assert compress(tmp_path, **settings)["verdict"] == "accept"
    shutil.rmtree(tmp_path / "out")
    (file,) = (tmp_path / "out.work").glob("sweeps-*.jsonl")
    before = file.read_text()

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("it was finished")

    with monkeypatch.context() as patched:
        patched.setattr("compression.sensitivity.damage", unwanted)
        report = compress(tmp_path, **{**settings, "size": 0.5, "recover": True})
    assert report["linear_bytes"]["after"] > 0.3 * report["linear_bytes"]["before"]
    assert file.read_text() == before
    assert len(list((tmp_path / "out.work").glob("*/candidate-1"))) == 2


def test_a_screen_sweeps_a_share_of_the_units_and_its_agreement_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make_model(tmp_path / "model")
    pairs = write_preferences(tmp_path / "pairs.jsonl")
    monkeypatch.setattr("compression.original.MOST_SEARCHED", 24)
    arguments = ["compress", str(tmp_path / "model"), "--pairs", str(pairs), "--answers", "0", "--no-serve"]
    target = ["--size", "0.5", "--formats", "w4a16-g32,w8a8", "--screen", "0.3", "--gate", "lenient"]
    done = CliRunner().invoke(app, [*arguments, *target, "--out", str(tmp_path / "small")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert -1 <= report["screen_agreement"] <= 1
    words = f"gradients and sweeps about the layers that were swept: Spearman {report['screen_agreement']:.2f}"
    assert words in done.output
    assert words in (tmp_path / "small" / "report.html").read_text()
    (file,) = (tmp_path / "small.work").glob("sweeps-*.jsonl")
    swept = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({one["unit"] for one in swept} - {""}) == 3  # of 8
    assert {one["unit"] for one in report["costs"]} == {unit.name for unit in units_of(skeleton(tmp_path / "model"))}
    settings = ["--gpus-per-worker", "0.5", "--out", str(tmp_path / "other")]
    wrong = CliRunner().invoke(app, [*arguments, *target, *settings])
    assert "--gpus-per-worker is 0.5 without workers" in str(wrong.exception)


def test_what_all_units_take_at_least_is_measured_again_for_other_formats(tmp_path: Path):
    units = units_of(skeleton(make_model(tmp_path / "model")))
    few, more = (plan_of(units, formats) for formats in (["w8a8"], ["w4a16-g128", "w8a8"]))
    shared = {one.key for one in few} & {one.key for one in more}
    assert shared == {("in", unit.name, "w8a8") for unit in units}
    assert {one.form for one in more if one.kind != "in"} == {"w4a16-g128"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"screen": 1.5, "form": "", "size": 0.5}, r"--screen is 1\.5, expected a share"),
        ({"form": "w8a8", "size": 0.5}, "got both --format and --size"),
        ({"form": "", "size": 0.0}, "got no target"),
        ({"form": "", "size": 3.0}, "expected a share"),
        ({"form": "w9"}, "expected one of"),
        ({"form": "", "size": 0.01}, "the smallest size is 0.13"),
        ({"pairs": make_pairs(100)}, "give pairs of at least 526 prompts"),
        ({"pairs": make_pairs(1)}, "label more"),
        ({"answers": 100}, "--answers is 100, expected 0 or at least"),
        ({"repair_rate": float("nan")}, "--repair-rate is nan"),
        ({"screen": 0.5}, "--screen is about sweeps, and only --size makes some"),
        ({"formats": ("w8a8", "keep")}, "--formats is the choice of sweeps, and only --size makes some"),
        ({"prune": "weights=1e-9"}, r"removes 0 of 128 weights of a row, expected at least one.*one is 0\.00781"),
        ({"prune": "weights=0.999"}, "removes 128 of 128 weights of a row"),
        ({"prune": "weights=0"}, "--prune weights is '0', which removes nothing"),
        ({"prune": "weights=0.5,layers=0.0"}, r"--prune layers is '0\.0', which removes nothing"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path, settings: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        compress(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def test_a_candidate_that_was_changed_after_it_was_measured_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object, **__: object) -> None:
        raise RunFailedError("not served")

    monkeypatch.setattr(workflow, "check_in_vllm", fails)
    with pytest.raises(RunFailedError, match="not served"):
        compress(tmp_path, serve=True)
    (candidate,) = (tmp_path / "out.work").glob("*/candidate-1")
    before = read_files(candidate)
    weights = next(candidate.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-64] + bytes(64))
    kept = candidate.with_suffix(".json")
    compress(tmp_path)
    assert read_files(tmp_path / "out").items() >= before.items()
    shutil.rmtree(tmp_path / "out")
    kept.write_text("{")  # cut by a full disk
    assert compress(tmp_path)["verdict"] == "accept"


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_that_is_not_on_this_machine_is_refused_before_pairs_are_read(tmp_path: Path):
    done = CliRunner().invoke(
        app, ["compress", "nowhere", "--pairs", "none.jsonl", "--out", str(tmp_path / "out"), "--format", "w8a8"]
    )
    assert isinstance(done.exception, InputError)
    assert "nowhere is not a model directory on this machine" in str(done.exception)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_weights_that_do_not_fit_on_the_disk_are_one_message_and_the_next_start_continues(tmp_path: Path):
    make_model(tmp_path / "model")
    with files_of_at_most(100_000), pytest.raises(InputError, match=r"the disk of .* is full; free some space"):
        compress(tmp_path)
    assert not (tmp_path / "out").exists()
    with (
        files_of_at_most(100_000),
        pytest.raises(RunFailedError, match=r"is full \(File too large\).*free some space, then start again"),
    ):
        compress(tmp_path, prune="weights=0.5")
    assert compress(tmp_path)["verdict"] == "accept"


def test_two_commands_with_one_output_are_refused_and_the_first_is_not_disturbed(tmp_path: Path):
    def second(line: str) -> None:
        if line.startswith("1: "):
            for start in (lambda: compress(tmp_path), lambda: other.run()):
                with pytest.raises(
                    InputError, match=rf"another `solon compress` is using .*out.work \(process {pid}\)"
                ):
                    start()
            refused.append(line)

    refused: list[str] = []
    request = Request(model=make_model(tmp_path / "model"), out=tmp_path / "out", form="w8a8", answers=0, serve=False)
    other, pid = Compression(request, make_pairs()), os.getpid()
    report = Compression(request, make_pairs(), say=second).run()
    assert (report["verdict"], len(refused)) == ("accept", 2)
    with pytest.raises(InputError, match="out exists"):
        compress(tmp_path)


def test_an_accepted_model_appears_with_its_report_or_not_at_all(tmp_path: Path):
    def killed(report: Any, place: Path) -> None:
        (place / "report.json").write_text(json.dumps(report))
        if place.name == "model":
            raise KeyboardInterrupt

    request = Request(model=make_model(tmp_path / "model"), out=tmp_path / "out", form="w8a8", answers=0, serve=False)
    with pytest.raises(KeyboardInterrupt):
        Compression(request, make_pairs(), write_report=killed).run()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "out.work"]
    written: list[Path] = []
    work = Compression(request, make_pairs(), write_report=lambda report, place: written.append(place))
    assert work.run()["verdict"] == "accept"
    assert written[0] == work.work
    assert [one.parent.parent for one in written[1:]] == [tmp_path]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--size", "0"], "--size is 0, expected a share"),
        (["--format", "w8a9"], "expected one of"),
        (["--format", "fp8", "--algorithm", "awq"], "awq is for an int4 format"),
        (["--format", "w4a16-g64", "--algorithm", "smoothquant"], "smoothquant is for w8a8 or fp8"),
        (["--size", "0.01"], "the smallest size is 0.13"),
        (["--prune", "layers=0.01"], "removes 0 of 2"),
        (["--format", "w8a8", "--workers", "2"], "--workers measure sweeps, and only --size makes some"),
        (["--prune", "layers=0.5", "--recover", "--workers", "2"], "--workers measure sweeps"),
        (["--format", "w8a8", "--formats", "w8a8,keep"], "--formats is the choice of sweeps"),
    ],
)
def test_a_target_that_cannot_work_is_refused_before_pairs_are_read(tmp_path: Path, given: list[str], words: str):
    model = make_model(tmp_path / "model")
    arguments = ["compress", str(model), "--pairs", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, *given])
    assert isinstance(done.exception, InputError)
    assert words in str(done.exception)
    assert not (tmp_path / "out.work").exists()


def test_a_full_disk_is_one_message_and_the_next_start_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "sweeps.jsonl")

    with monkeypatch.context() as patched:
        patched.setattr(workflow, "write_whole", full)
        with pytest.raises(RunFailedError, match=r"sweeps.jsonl: No space left.*free space"):
            compress(tmp_path)
    assert not (tmp_path / "out").exists()
    assert compress(tmp_path)["verdict"] == "accept"


def test_scores_that_are_not_finite_reject_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(model: Any, pairs: list[Pair], **rows: Any) -> Scores:
        scores = scores_of(model, pairs, **rows)
        if hasattr(model.config, "quantization_config"):
            scores.chosen_P[3] = float("nan")
        return scores

    monkeypatch.setitem(ROLES, "policy", Rules(scores=broken))
    report = compress(tmp_path)
    assert (report["verdict"], report["reason"]) == ("reject", "its log-probs are not finite")


def test_a_tag_with_too_few_prompts_is_named_at_the_start_and_a_rare_one_has_no_figure(tmp_path: Path):
    pairs = [replace(pair, tags=("rare",) if n < 120 else ("common",)) for n, pair in enumerate(make_pairs())]
    with pytest.raises(InputError, match="have the tag 'rare', expected at least 130"):
        compress(tmp_path, pairs)
    few = [replace(pair, tags=("rare",) if n < 20 else ()) for n, pair in enumerate(make_pairs())]
    assert not any("rare" in row["name"] for row in compress(tmp_path, few)["candidates"][0]["rows"])


def test_a_compressed_model_is_not_compressed_again(done: Path, tmp_path: Path):
    shutil.copytree(done / "out", tmp_path / "model")
    with pytest.raises(InputError, match="is compressed already"):
        compress(tmp_path)


def test_a_model_that_does_not_agree_with_itself_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)

    def noisy(_: object, pairs: list[Pair], **__: object) -> Scores:
        return Scores(
            chosen_P=rng.normal(size=len(pairs)), rejected_P=np.zeros(len(pairs)), tokens_P=np.ones(len(pairs))
        )

    monkeypatch.setitem(ROLES, "policy", Rules(scores=noisy))
    with pytest.raises(RunFailedError, match="does not agree with itself"):
        compress(tmp_path)


def test_a_prompt_is_in_one_part_whatever_else_the_file_holds():
    parts = parted(make_pairs(2000))
    names = [{pair.prompt_id for pair in some} for some in parts.values()]
    assert not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
    assert [len(one) / 2000 for one in names] == pytest.approx([0.15, 0.35, 0.5], abs=0.04)
    assert all(part_of(name) == "gate" for name in names[2])


def test_scores_do_not_depend_on_order_and_batch_size_beyond_rounding(tmp_path: Path):
    model, pairs = load_model(make_model(tmp_path / "model")), make_pairs(60)
    whole, other = scores_of(model, pairs), scores_of(model, pairs[::-1], rows=7)
    assert np.abs(whole.margin_P - other.margin_P[::-1]).max() < 1e-4
    none = damage(whole, whole)
    assert (none.soft_flips, none.flips, none.margin_damage, none.nll) == (0, 0, 0, 0)


def write_preferences(path: Path, number: int = 700) -> Path:
    rng = random.Random(1)

    def words() -> str:
        return " ".join(rng.choice(WORDS) for _ in range(5))

    rows = [{"prompt": f"{words()} {words()}", "chosen": words(), "rejected": words()} for _ in range(number)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_the_stage_of_an_alignment_makes_a_certified_policy(tmp_path: Path):
    stage = CompressStage(type="compress", form="w8a8", answers=0, serve=False)
    (tmp_path / "out").mkdir()
    given = {
        **stage.model_dump(mode="json"),
        "policy": str(make_model(tmp_path / "model")),
        "preferences": str(write_preferences(tmp_path / "pairs.jsonl")),
        "out": str(tmp_path / "out"),
        "scratch": str(tmp_path / "scratch"),
    }
    (tmp_path / "scratch").mkdir()
    report = compress_policy(given)
    assert report["linear_bytes"]["after"] < report["linear_bytes"]["before"] / 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compression-report.json", "model"]
    assert read_certificate(tmp_path / "out" / "model")["verdict"] == "accept"
    with pytest.raises(ValidationError, match="expected form or size"):
        CompressStage(type="compress")


def test_the_command_writes_a_report_and_says_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_model(tmp_path / "model")
    pairs = write_preferences(tmp_path / "pairs.jsonl")
    arguments = ["compress", str(tmp_path / "model"), "--pairs", str(pairs), "--answers", "0", "--no-serve"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "small"), "--format", "w8a8"])
    assert done.exit_code == 0, done.output
    assert "accepted: linear layers" in done.output
    assert (tmp_path / "small" / "report.html").stat().st_size > 1000
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["candidates"][0]["verdict"] == "accept"
    assert "screen_agreement" not in report
    monkeypatch.setattr(workflow, "thresholds", lambda *_: Thresholds(margin=1e-9))
    again = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "other"), "--format", "w4a16-g128"])
    assert again.exit_code == 1
    assert isinstance(again.exception, RunFailedError)
    assert not (tmp_path / "other").exists()
