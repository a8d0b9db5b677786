from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from cluster.align.compare_file import CompareFile
from cluster.align.file import AlignFile
from cluster.config.run_file import RunFile, looks_like_hub_name
from cluster.config.sections import RolloutSection
from cluster.pipeline_file import load_run
from serve_apps.config import ServiceFile
from solon.cli.main import MAX_SEED
from solon.engines.chat_settings import ThinkingMarks
from solon.errors import InputError
from solon.files.marks import (
    FilePath,
    MayChange,
    ModelName,
    NamesFile,
    NamesModel,
    NamesPrompts,
    is_among,
    mapped,
    marked,
    may_change,
    values,
)
from tests.unit.run_files import write_run

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.toml"))


def load(tmp_path: Path, text: str = "", *overrides: str) -> RunFile:
    return RunFile.load(write_run(tmp_path, text), overrides=overrides)


def refusal(tmp_path: Path, text: str = "", *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_valid_file_of_its_kind(path: Path):
    if path.name == "align.toml":
        assert len(AlignFile.load(path).stages) > 3
        with pytest.raises(InputError, match=r"stages that make files: solon align .*align.toml"):
            load_run(path)
    elif path.name == "feedback-service.toml":
        assert ServiceFile.load(path).judges["default"].model == "nursery:judge"
    elif path.name in ("compare.toml", "english_methods.toml"):
        assert len(CompareFile.load(path).methods) > 1
        with pytest.raises(InputError, match=r"lists methods.*solon compare .*\.toml"):
            load_run(path)
    else:
        assert load_run(path).steps >= 1


def test_there_are_examples():
    assert EXAMPLES


def test_at_most_four_keys_are_required():
    required = [name for name, field in RunFile.model_fields.items() if field.is_required()]
    assert required == ["policy", "judge", "prompts", "constitution"]


def test_how_a_conversation_becomes_text_is_set_for_policy_and_judge_apart(tmp_path: Path):
    text = """
[rollout]
chat_template = "chat.jinja"
chat_template_args = { enable_thinking = true }
[judging]
chat_template_args = { enable_thinking = false }
thinking = { start = "<a>", end = "</a>" }
"""
    run = load(tmp_path, text, "judging.chat_template_args.effort=low", "rollout.thinking=off")
    policy, judge = run.rollout.engine("policy", seed=0), run.judging.engine("judge", seed=0)
    assert policy.chat_template == str(tmp_path / "chat.jinja")
    assert (policy.chat_template_args, policy.thinking) == ({"enable_thinking": True}, "off")
    assert judge.chat_template_args == {"enable_thinking": False, "effort": "low"}
    assert judge.thinking == ThinkingMarks(start="<a>", end="</a>")
    assert "expected year-month-day" in refusal(tmp_path, '[rollout]\nchat_date = "today"\n')


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [f.annotation for f in model.model_fields.values() if isinstance(f.annotation, type)]
    return [model, *(found for part in inner if issubclass(part, BaseModel) for found in sections(part))]


@pytest.mark.parametrize("model", sections(RunFile), ids=lambda model: model.__name__)
def test_every_section_refuses_unknown_keys_and_cannot_be_changed(model: type[BaseModel]):
    assert model.model_config["extra"] == "forbid"
    assert model.model_config["frozen"]


def test_a_clip_that_would_bias_corrected_rewards_is_refused(tmp_path: Path):
    proxy = '[feedback.select]\nproxy = "org/small-judge"\npolicy = "random"\nrate = 0.3\nfloor = 0.1\n'
    assert "which reach 57 nats" in refusal(tmp_path, proxy + "[learn]\nreward_clip = 10.0\n")
    assert load(tmp_path, proxy).learn.reward_clip is None
    assert load(tmp_path, proxy + "[learn]\nreward_clip = 57.0\n").learn.reward_clip == 57.0
    assert load(tmp_path, "[learn]\nreward_clip = 2.0\n").learn.reward_clip == 2.0


@pytest.mark.parametrize("without", ["policy", "judge", "prompts", "constitution"])
def test_a_missing_required_key_is_named(tmp_path: Path, without: str):
    with pytest.raises(InputError, match=f"`{without}` is missing"):
        RunFile.load(write_run(tmp_path, without=[without]))
    with pytest.raises(InputError, match=f"`{without}` got ''"):
        RunFile.load(write_run(tmp_path), overrides=[f"{without}="])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", ["unknown key `stepz`", "did you mean `steps`"]),
        ("[rolout]\ngroup_size = 2", ["unknown key `rolout`", "did you mean `rollout`"]),
        ("[rollout]\ngroupsize = 2", ["unknown key `rollout.groupsize`", "did you mean `group_size`"]),
        ("[learn.lora]\nrr = 2\nalpa = 3", ["`learn.lora.rr`", "did you mean `alpha`"]),
        ("[staleness]\nmax = 2", ["unknown key `staleness.max`"]),
        ("[learn.lora]\nrank = 8", ["unknown key `learn.lora.rank` (did you mean `r`?)"]),
        (
            "dtype = 'bfloat16'",
            ["unknown key `dtype` (did you mean `rollout.dtype` or `judging.dtype` or `learn.dtype`?)"],
        ),
        ("learning_rate = 1e-6", ["(did you mean `learn.learning_rate`?)"]),
        ("lr = 1e-6", ["(did you mean `learn.learning_rate`?)"]),
        ("[rollout]\ntop_k = -1", ["`rollout.top_k`: got -1, expected 0 or more; 0 turns it off"]),
        ("[feedback]\nxyz = 1", ["unknown key `feedback.xyz`"]),
        ("steps = 0", ["`steps` got 0, expected greater than or equal to 1"]),
        ("steps = 'many'", ["`steps` got 'many', expected a whole number"]),
        ("steps = 1.5", ["`steps` got 1.5"]),
        ("seed = -1", ["`seed` got -1"]),
        (f"seed = {2**31}", ["`seed`"]),
        (f"steps = {10**30}", ["`steps` is infinite, huge or not a number"]),
        ("rollout = 5", ["`rollout` got 5, expected a section"]),
        ("[[learn]]\nepochs = 1", ["`learn` got [{'epochs': 1}], expected a section"]),
        ("[rollout]\nmax_tokens = 1024", ["leaves no room for a prompt", "lower max_tokens"]),
        ("[feedback]\nmin_valid = 9", ["exceeds rollout.group_size = 8"]),
        (
            "[feedback]\ntask = 'pairwise'\nmin_valid = 1\n[rollout]\ngroup_size = 1",
            ["rollout.group_size = 1, expected at least 2 for feedback.task"],
        ),
        ("[staleness]\ntarget_staleness = 9", ["staleness", "exceeds max_staleness = 4"]),
        ("[learn]\nlearning_rate = inf", ["`learn.learning_rate` is infinite"]),
        ("[feedback]\ntemperature = nan", ["`feedback.temperature` is infinite, huge or not a number"]),
        ("[learn]\nnum_gpus = 4", ["`learn.num_gpus`: got 4, expected at most 1", "learn.num_ranks"]),
        (
            "[learn]\nnum_ranks = 3\nnum_nodes = 2",
            ["num_nodes = 2 with num_ranks = 3, expected as many ranks on each node", "a multiple of 2, such as 4"],
        ),
        (
            "[learn]\nnum_ranks = 2\nnum_gpus = 0.5",
            ["num_ranks = 2 with num_gpus = 0.5, expected one GPU for each rank"],
        ),
        (
            "[rollout]\nnum_gpus = 2",
            ["`rollout.num_gpus`: got 2, expected at most 1", "tensor_parallel for an engine of several GPUs"],
        ),
        ("[judging]\nnum_gpus = 1.5", ["`judging.num_gpus`: got 1.5, expected at most 1"]),
        ("[rollout]\nnum_cpus = 1.5", ["`rollout.num_cpus`", "got 1.5, expected a whole number above 1"]),
        ("[learn]\ndevice = 'cuda'", ["device = 'cuda' with num_gpus = 0, which hides every GPU"]),
        ("[learn]\nnum_gpus = 1\ndevice = 'cuda:1'", ["device = 'cuda:1', expected 'auto'"]),
        ("[learn]\nnum_gpus = 1\ndevice = 'cpu'", ["which would be idle; set num_gpus = 0"]),
        ("[rollout]\nnum_cpus = 0.00001", ["`rollout.num_cpus`", "at least 0.0001"]),
        ("[evaluate]\nprompts = 'p.jsonl'", ["evaluate needs both prompts and evaluator"]),
        ("[evaluate]\nprompts = 'p'\nevaluator = 'judge'", ["audit_judge goes with"]),
        ("[feedback]\ntemplate = 'long'", ["`feedback.template` got 'long', expected 'compact', 'assistant'"]),
        ("policy = 1", ["is not TOML"]),
        ("x = [1, ", ["is not TOML"]),
        ("x = " + "[" * 3000, ["is not TOML"]),
        ("steps = " + "9" * 5000, ["is not TOML"]),
        ("steps = 0x" + "f" * 5000, ["`steps` is infinite, huge"]),
        ("d = 2024-13-45", ["is not TOML"]),
        ("note = '" + "x" * 5000 + "'", ["unknown key `note`"]),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, words: list[str]):
    message = refusal(tmp_path, text)
    assert [word for word in words if word not in message] == []
    assert len(message) < 500 + len(str(tmp_path))


def test_many_mistakes_are_counted_not_listed(tmp_path: Path):
    message = refusal(tmp_path, "\n".join(f"k{n} = 1" for n in range(100)))
    assert message.count("unknown key") == 5
    assert "and 95 more" in message


@pytest.mark.parametrize("place", ["missing.toml", "", "a\0b.toml", "x" * 5000])
def test_an_unreadable_path_is_an_input_error(tmp_path: Path, place: str):
    with pytest.raises(InputError, match="run file"):
        RunFile.load(tmp_path / place)


def test_undecodable_bytes_are_an_input_error_and_a_byte_order_mark_is_accepted(tmp_path: Path):
    path = write_run(tmp_path)
    good = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + good)
    assert RunFile.load(path).steps == 100
    path.write_bytes(b"\xff" + good)
    with pytest.raises(InputError, match="cannot be read"):
        RunFile.load(path)


# -- paths -----------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_run_file_and_hub_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "org" / "local").mkdir(parents=True)
    write_run(tmp_path)
    (tmp_path / "run.toml").write_text(
        'policy = "org/model"\njudge = "org/local"\nprompts = "data/p.jsonl"\nconstitution = "nursery:constitution"\n'
        '[evaluate]\nprompts = "held/out.jsonl"\nevaluator = "judge"\naudit_judge = "./org/other"\n'
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = RunFile.load(Path("..") / "run.toml")
    assert run.policy == "org/model"
    assert run.judge == str(tmp_path / "org/local")
    assert run.prompts == str(tmp_path / "data/p.jsonl")
    assert run.constitution == "nursery:constitution"
    assert run.evaluate.prompts == str(tmp_path / "held/out.jsonl")
    assert run.evaluate.audit_judge == str(tmp_path / "org/other")


def test_a_path_set_on_the_command_line_is_relative_to_where_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = load(tmp_path, "", "prompts=p.jsonl", "policy=org/model", "judge='./j'", "constitution = 7")
    assert run.prompts == str(tmp_path / "here" / "p.jsonl")
    assert run.policy == "org/model"
    assert run.judge == str(tmp_path / "here" / "j")
    assert run.constitution == str(tmp_path / "here" / "7")


@pytest.mark.parametrize("value", ["~no-such-user-here/model", "a\\u0000b"])
def test_a_value_that_cannot_be_a_path_is_an_input_error(tmp_path: Path, value: str):
    path = write_run(tmp_path, f'policy = "{value}"', without=["policy"])
    with pytest.raises(InputError, match="`policy`"):
        RunFile.load(path)


@pytest.mark.parametrize(
    ("name", "is_hub"),
    [
        ("org/model", True),
        ("Org-1/model.v2_x", True),
        ("model", False),
        ("./org/model", False),
        ("/org/model", False),
        ("a/b/c", False),
        ("../model", False),
        ("org/", False),
        ("", False),
        ("org/mo del", False),
        ("org/model\n", False),
    ],
)
def test_a_hub_name_is_an_organisation_and_a_model(name: str, is_hub: bool):
    assert looks_like_hub_name(name) is is_hub


# -- overrides -------------------------------------------------------------------------------------------------


def test_set_changes_one_key_and_makes_sections(tmp_path: Path):
    run = load(
        tmp_path,
        "[learn]\nminibatches = 1",
        "steps=7",
        "learn.epochs = 3",
        "learn.lora.r=4",
        "feedback.template=compact",
        'feedback.task="pairwise"',
        "rollout.enforce_eager=false",
        "learn.learning_rate=1e-4",
    )
    assert (run.steps, run.learn.epochs, run.learn.minibatches) == (7, 3, 1)
    assert (run.feedback.template, run.feedback.task, run.rollout.enforce_eager) == ("compact", "pairwise", False)
    assert run.learn.lora is not None
    assert run.learn.lora.r == 4
    assert run.learn.learning_rate == 1e-4


def test_a_table_may_be_set_as_toml_or_as_json_writes_it(tmp_path: Path):
    for value in ('{"enable_thinking": false, "n": [1, null]}', "{ enable_thinking = false, n = [1] }"):
        args = load(tmp_path, "", f"rollout.chat_template_args={value}").rollout.chat_template_args
        assert args["enable_thinking"] is False
    assert load(tmp_path, "", 'rollout.stop=["a", "b"]').rollout.stop == ("a", "b")
    assert load(tmp_path, "", "rollout.stop={no json").rollout.stop == ("{no json",)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("", "expected key=value"),
        (".steps=3", "expected key=value"),
        ("learn..epochs=3", "expected key=value"),
        ("steps.more=3", "'steps' is a value, not a section"),
        ("policy.name=3", "'policy' is a value, not a section"),
        ("learn=3", "`learn` got 3, expected a section"),
        ("learn.epoch=3", "did you mean `epochs`"),
        ("steps=", "`steps` got ''"),
        ("steps=3\nseed=1", "`steps` got '3\\nseed=1'"),
        ("steps=" + "9" * 5000, "`steps` got '999"),
        ("steps=" + "[" * 5000, "`steps` got '[[["),
        ("steps=inf", "`steps` is infinite"),
    ],
)
def test_an_override_that_does_not_fit_says_so(tmp_path: Path, override: str, words: str):
    assert words in refusal(tmp_path, "steps = 1", override)


# -- derived values ---------------------------------------------------------------------------------------------


def test_resources_are_summed_over_all_actors_the_auditing_judge_included(tmp_path: Path):
    run = load(
        tmp_path,
        "[rollout]\nnum_actors = 3\nnum_gpus = 1\nnum_cpus = 2\n[judging]\nnum_gpus = 0.5\n"
        "[learn]\nnum_gpus = 1\nnum_cpus = 0.5\n"
        "[evaluate]\nprompts = 'p.jsonl'\nevaluator = 'judge'\naudit_judge = 'org/audit'",
    )
    assert [pool.name for pool in run.workers.values()] == ["rollout", "judge", "learner", "audit-judge"]
    assert run.gpus == 3 + 2 * 0.5 + 1
    assert run.cpus == 6 + 2 + 0.5


def test_the_hash_is_that_of_the_values_not_of_the_text(tmp_path: Path):
    plain = load(tmp_path)
    assert load(tmp_path, "# a comment\nsteps = 100").hash == plain.hash
    assert load(tmp_path, "", "steps=100").hash == plain.hash
    assert load(tmp_path, "", "learn.epochs=2").hash != plain.hash


def test_the_command_line_and_the_run_file_have_one_bound_on_seeds(tmp_path: Path):
    assert load(tmp_path, f"seed = {MAX_SEED}").seed == MAX_SEED
    assert "seed" in refusal(tmp_path, f"seed = {MAX_SEED + 1}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all examples of a property."""
    return tmp_path_factory.mktemp("examples")


TOML_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["epochs", "r", "x"]), inner),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *RunFile.model_fields,
        "learn.lora",
        "learn.epochs",
        "rollout.max_tokens",
        "judging.num_gpus",
        "ledger.lease_s",
        "",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, TOML_VALUES, max_size=4))
def test_any_values_are_a_run_with_a_valid_config_or_an_input_error(found: dict[str, Any]):
    raw: dict[str, Any] = dict.fromkeys(("policy", "judge", "prompts", "constitution"), "x")
    for key, value in found.items():
        section, _, last = key.rpartition(".")
        place = raw.setdefault(section, {}) if section else raw
        if isinstance(place, dict):
            place[last] = value
    run = None
    with contextlib.suppress(InputError):
        run = RunFile.parse(raw, source="run.toml")
    if run is not None:
        json.dumps(run.model_dump(mode="json"), allow_nan=False)
        assert math.isfinite(run.gpus + run.cpus)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=120))
def test_arbitrary_bytes_never_crash_with_anything_but_an_input_error(folder: Path, data: bytes):
    path = folder / "run.toml"
    path.write_bytes(data)
    with pytest.raises(InputError):
        RunFile.load(path)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_arbitrary_overrides_never_crash_with_anything_but_an_input_error(folder: Path, text: str):
    path = write_run(folder)
    for override in (text, f"steps={text}", f"policy={text}", f"learn.lora={text}"):
        with contextlib.suppress(InputError):
            RunFile.load(path, overrides=[override])


def optional(model: type[BaseModel], place: str = "") -> Iterator[str]:
    """Places of everything that may be None."""
    for name, field in model.model_fields.items():
        if type(None) in get_args(field.annotation):
            yield f"{place}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from optional(field.annotation, f"{place}{name}.")


def at(run: RunFile, place: str) -> Any:
    return functools.reduce(getattr, place.split("."), run)


@pytest.mark.parametrize("place", list(optional(RunFile)))
def test_every_optional_key_can_be_set_to_none(tmp_path: Path, place: str):
    assert at(load(tmp_path, "", f"{place}=none"), place) is None
    *sections_, last = place.split(".")
    assert at(load(tmp_path, f"[{'.'.join(sections_)}]\n{last} = 'none'"), place) is None


def test_the_clips_that_are_on_by_default_are_among_them():
    assert {"learn.reward_clip", "learn.dual_clip"} <= set(optional(RunFile))


def test_none_is_no_number_where_one_is_needed(tmp_path: Path):
    assert "`learn.gamma` got 'none'" in refusal(tmp_path, "", "learn.gamma=none")
    assert load(tmp_path, "", "rollout.quantization=none").rollout.quantization == "none"


CHOICES = (
    "steps=7",
    "learn.reward_clip=none",
    "learn.dual_clip=4",
    "learn.lora.r=8",
    "learn.schedule=linear",
    "learn.schedule_steps=50",
    "learn.advantages=group",
    "feedback.task=pairwise",
    "feedback.principles_per_group=2",
    "feedback.jury.judges=['a','b']",
    "feedback.semantic.model=c",
    "watch.audit_judge=d",
    "watch.enabled=true",
    "evaluate.prompts=e",
    "evaluate.evaluator=nursery",
    "rollout.num_gpus=0.5",
    "judging.backend=transformers",
    "ledger.batch_groups=3",
    "staleness.max_staleness=6",
    "checkpoint_url=s3://bucket/folder",
)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(CHOICES)))
def test_a_written_run_configuration_reads_back_equal(folder: Path, chosen: set[str]):
    path = write_run(folder)
    try:
        run = RunFile.load(path, overrides=sorted(chosen))
    except InputError:
        return  # some choices exclude each other
    assert RunFile.parse(run.model_dump(), source="here") == run
    # As in the directory of a run, with the other keys that are written there.
    record = {"hash": run.hash, "constitution_hash": "x", "solon": "0", "started": 1.0, "origin": {}}
    (folder / "config.json").write_text(json.dumps(record | run.model_dump(mode="json")))
    again = RunFile.load(folder / "config.json")
    assert again == run
    assert again.hash == run.hash


def test_json_that_is_no_record_of_a_run_is_checked_like_any_run_file(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"policy": "a", "hash": "x"}')
    with pytest.raises(InputError, match="unknown key `hash`"):
        RunFile.load(tmp_path / "run.json")
    for text, words in (("{", "is not JSON"), ("[]", "holds a list"), ("[" * 9000, "nested too deeply")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=words):
            RunFile.load(tmp_path / "run.json")


def test_keys_that_name_a_model_a_file_or_what_may_change_are_marked_on_their_fields():
    assert set(marked(RunFile, NamesModel)) == {
        "policy", "judge", "evaluate.audit_judge", "watch.audit_judge", "rollout.base_model", "feedback.cascade.judge",
        "feedback.jury.judges", "feedback.select.proxy", "feedback.semantic.model",
    }  # fmt: skip
    assert set(marked(RunFile, NamesFile)) == {
        "prompts", "constitution", "evaluate.prompts", "rollout.chat_template", "judging.chat_template",
        "feedback.calibration", "feedback.programs", "feedback.cascade.calibration", "feedback.cache.path",
        "watch.canary",
    }  # fmt: skip
    assert marked(RunFile, NamesPrompts) == ("prompts", "evaluate.prompts")
    placed = ("num_actors", "num_cpus", "num_gpus", "labels")
    sizes = ("max_actors", "tensor_parallel")
    cache = ("gpu_memory_utilization", "kv_cache_gib", "max_batched_tokens", "gives_way", "adapts_running")
    assert set(may_change(RunFile)) == {
        "steps", "checkpoint_every", "checkpoint_first", "checkpoint_async", "checkpoint_keep", "checkpoint_url",
        "recovery", "elasticity", "publish.timeout_s", "publish.engines_at_once",
        "ledger.max_held_mib", "ledger.max_attempts", "ledger.max_losses",
        "ledger.max_dropped_share", "ledger.lease_s",
        *(f"{section}.{key}" for section in ("rollout", "judging") for key in (*placed, *sizes, *cache)),
        *(f"learn.{key}" for key in (*placed[1:], "num_ranks", "num_nodes", "rank_timeout_s")),
    }  # fmt: skip


def test_a_new_section_brings_its_own_marks():
    class Rewards(BaseModel):
        model: ModelName = ""
        table: FilePath = ""
        patience: Annotated[int, MayChange()] = 1

    class Longer(RunFile):
        rewards: Rewards = Rewards()
        others: dict[str, Rewards] = Field(default_factory=dict)

    assert {"rewards.model", "others.*.model"} <= set(marked(Longer, NamesModel))
    assert is_among("others.second.patience", may_change(Longer))
    raw = {**dict.fromkeys(("policy", "judge", "prompts", "constitution"), "x"), "others": {"a": {"table": "t.csv"}}}
    Longer.resolve(raw, Path("/runs"))
    Longer.override(raw, "others.a.model=/models/m")
    run = Longer.parse(raw, source="test")
    assert (run.others["a"].table, run.others["a"].model) == ("/runs/t.csv", "/models/m")
    assert "/runs/t.csv" in values(run, NamesFile)
    assert mapped(run, NamesFile, str.upper).others["a"].table == "/RUNS/T.CSV"


@pytest.mark.parametrize(
    ("section", "certain"),
    [({}, True), ({"dtype": "float32", "num_gpus": 1}, True), ({"num_gpus": 1}, False), ({"dtype": "bfloat16"}, False)],
)
def test_rollout_engines_on_a_cpu_compute_in_float32_unless_told_otherwise(section, certain):
    assert RolloutSection(**section).computes_in_float32 == certain
