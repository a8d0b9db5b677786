"""Names and GGUF files of a run file are checked before anything is made, and only what they need is made."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.pipeline_file import load_run
from english import packages
from nursery import grow as growing
from solon.cli import models as models_command
from solon.cli.judge_inputs import model_path
from solon.cli.names import FAMILIES, is_constitution_name, resolver, uses_names, with_paths
from solon.errors import InputError
from solon.models.given_names import PREFIXES, is_given_name


class World(ModuleType):
    """Stands for `english.grow`; counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__("english.grow")
        self.asked: list[str] = []

    def world(self, cache: Path) -> Any:
        self.asked.append("world")
        keys = ("constitution", "train_prompts", "heldout_prompts", "gold_prompts")
        return SimpleNamespace(**{key: cache / key for key in keys})

    def grow(self, cache: Path, *, progress: bool) -> Any:
        self.asked.append("grow")
        measured = {"agreement": {"pairwise": 0.934, "pointwise": 0.917}, "per_second": 154.6}
        return SimpleNamespace(judge=cache / "judge", judge_fp=cache / "judge_fp", report={"judge": measured})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    made = World()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "english.grow", made)
    monkeypatch.setattr(packages, "packaged", lambda model, progress: Path(f"/cache/{model.title}"))
    return made


def run_file(folder: Path, **keys: str) -> Path:
    given = {"policy": "english:policy", "judge": "english:judge", "prompts": "english:train_prompts",
             "constitution": "english:constitution"} | keys  # fmt: skip
    path = folder / "run.toml"
    path.write_text("".join(f'{key} = "{value}"\n' for key, value in given.items()))
    return path


def test_an_unknown_name_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, world: World):
    monkeypatch.setattr(growing, "grow", lambda **_: pytest.fail("it grew"))
    with pytest.raises(InputError, match=r"got the name `nursery:larg_judge`.*nursery:large_judge"):
        resolver(["nursery:policy", "nursery:larg_judge"], progress=False)
    with pytest.raises(InputError, match=r"got the name `nursery:juge`.*nursery:judge"):
        model_path("nursery:juge@bf16", progress=False)
    with pytest.raises(InputError, match=r"got the name `english:polcy`.*did you mean `policy`"):
        resolver(["nursery:policy", "english:judge", "english:polcy"], progress=False)
    with pytest.raises(InputError, match=r"got the name `English:policy`, expected `english:policy`"):
        resolver(["English:policy"], progress=False)
    assert world.asked == []


def test_every_prefix_of_run_files_has_a_family():
    assert tuple(family.prefix for family in FAMILIES) == PREFIXES
    assert is_given_name("english:policy")
    assert not is_given_name("org/model")
    assert is_constitution_name("english:constitution")
    assert not is_constitution_name("english:judge")


def test_a_packaged_model_and_the_prompts_need_no_growing(world: World):
    path = resolver(["english:policy", "english:gemma"], progress=False)
    assert path("english:policy") == "/cache/SmolLM2-135M-Instruct"
    assert path("english:gemma").startswith("/cache/Gemma 3")
    assert path("/models/mine") == "/models/mine"
    assert world.asked == []
    resolver(["english:constitution", "english:gold_prompts"], progress=False)
    assert world.asked == ["world"]
    resolver(["english:judge_fp"], progress=False)
    assert world.asked == ["world", "grow"]


def test_a_judge_that_a_run_uses_comes_with_its_measured_agreement(world: World, capsys: pytest.CaptureFixture[str]):
    resolver(["english:judge"], progress=True)
    assert (
        "english:judge agrees with the programs on 93% of held-out pairs and 92% of single" in capsys.readouterr().err
    )
    resolver(["english:judge"], progress=False)
    assert capsys.readouterr().err == ""


def test_a_run_file_of_english_names_gets_paths(tmp_path: Path, world: World):
    run = RunFile.load(run_file(tmp_path))
    assert run.policy == "english:policy"
    assert uses_names(run)
    made = with_paths(run, progress=False)
    assert made.judge == str(tmp_path / "solon/judge")
    assert made.prompts == str(tmp_path / "solon/train_prompts")
    assert not uses_names(made)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.fixture
def imports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    made: list[Path] = []

    def imported(source: Path, *, progress: bool) -> Path:
        made.append(source)
        return Path("/cache/imports") / source.stem

    monkeypatch.setattr(models_command, "import_into_cache", imported)
    return made


def test_a_gguf_file_of_a_run_file_is_imported_once_from_beside_it(tmp_path: Path, imports: list[Path]):
    touch(tmp_path, "small.gguf", "p.jsonl", "c")
    run = RunFile.load(run_file(tmp_path, policy="small.gguf", judge="small.gguf", prompts="p.jsonl", constitution="c"))
    made = with_paths(run, progress=False)
    assert imports == [tmp_path / "small.gguf"]
    assert made.policy == made.judge == "/cache/imports/small"
    assert made.prompts == str(tmp_path / "p.jsonl")


def test_a_gguf_file_of_a_pool_is_imported(tmp_path: Path, imports: list[Path]):
    touch(tmp_path, "small.gguf", "judge.gguf", "p.jsonl", "c.yaml")
    path = tmp_path / "pipeline.toml"
    path.write_text(
        'prompts = "p.jsonl"\nconstitution = "c.yaml"\n'
        '[pools.policy]\nrole = "rollout"\nmodel = "small.gguf"\n[pools.judge]\nrole = "judge"\nmodel = "judge.gguf"\n'
        '[[stages]]\ntype = "rlaif"\npolicy = "policy"\njudge = "judge"\n'
    )
    made = with_paths(load_run(path), progress=False)
    assert sorted(imports) == [tmp_path / "judge.gguf", tmp_path / "small.gguf"]
    assert made.workers["policy"].model == made.policy == "/cache/imports/small"
    assert made.workers["judge"].model == "/cache/imports/judge"


def test_a_gguf_judge_may_carry_a_variant(tmp_path: Path, imports: list[Path]):
    touch(tmp_path, "small.gguf")
    assert model_path(f"{tmp_path}/small.gguf@bf16", progress=False) == "/cache/imports/small@bf16"
    assert imports == [tmp_path / "small.gguf"]


@pytest.mark.parametrize("missing", ["p.jsonl", "c", "judge.gguf"])
def test_nothing_is_made_for_a_run_that_lacks_a_file(tmp_path: Path, imports: list[Path], missing: str):
    touch(tmp_path, *{"p.jsonl", "c", "judge.gguf", "small.gguf"} - {missing})
    run = RunFile.load(run_file(tmp_path, policy="small.gguf", judge="judge.gguf", prompts="p.jsonl", constitution="c"))
    with pytest.raises(InputError, match=rf"{missing}.? does not exist"):
        with_paths(run, progress=False)
    assert imports == []


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "small.gguf", "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="cannot be used: Not a directory; set XDG_CACHE_HOME"):
        resolver([str(tmp_path / "small.gguf")], progress=False)
