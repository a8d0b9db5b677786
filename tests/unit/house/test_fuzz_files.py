"""Any content of a file is read, or refused with one short line that a user can act on.

`SOLON_FUZZ_EXAMPLES=2000 SOLON_FUZZ_SEED=7 python -m pytest tests/unit/house/test_fuzz_files.py` looks elsewhere, for
longer; `SOLON_FUZZ_KEEP=folder` keeps the files that were found.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.preflight.checks import check_judge
from solon.cli.label_settings import LabelSettings
from solon.constitution.constitution import Constitution
from solon.constitution.imports import import_constitution
from solon.errors import LONGEST, InputError
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.labelling.dataset import load_answers
from solon.feedback.quality.calibration_book import CalibrationBook
from solon.feedback.trials.gold import load_gold
from solon.files.prompts import load_prompts
from tests.unit.fuzzing import HOSTILE_TOML, Spoil, spoil_json, spoil_toml, spoil_yaml, spoilt

EXAMPLES = int(os.environ.get("SOLON_FUZZ_EXAMPLES", "30"))
SEED = os.environ.get("SOLON_FUZZ_SEED", "1")

RUN = """\
policy = "models/policy"
judge = "org/judge"
prompts = "prompts.jsonl"
constitution = "constitution.yaml"
steps = 4
checkpoint_url = "memory://x"
[rollout]
group_size = 4
max_tokens = 64
temperature = 0.9
[feedback]
task = "pairwise"
min_valid = 2
[feedback.cache]
path = "verdicts.sqlite"
[feedback.jury]
judges = ["org/second", "org/third"]
[learn]
learning_rate = 1e-5
[staleness]
target_staleness = 1
[evaluate]
prompts = "heldout.jsonl"
evaluator = "judge"
audit_judge = "org/audit"
"""
CONSTITUTION = """\
schema: solon.constitution/v1
id: core
version: "1"
description: &text What is asked.
preamble: *text
aggregation: {method: lexicographic, tie_band: 0.2}
sampling: {mode: k_random, k: 2}
principles:
  - id: kind
    weight: 2
    severity: hard
    applies_if: {tags_any: [chat]}
    pairwise_question: Which is kinder?
    pointwise_question: Is it kind?
    score_anchors: {1: rude, 2: cold, 3: kind}
    predicates:
      - {id: thanks, question: Does it thank, polarity: -1}
    examples:
      - {prompt: hi, good: hello, bad: go away}
  - id: truth
    pairwise_question: Which is truer?
tests:
  - prompt: Is the earth flat?
    a: "No."
    b: "Yes."
    expect: a
    tags: [chat]
"""
ENDPOINT = """\
max_model_len = 4096
[endpoint]
base_url = "https://judge.example/v1"
model = "big-judge"
api_key_env = "JUDGE_API_KEY"
usd_per_million_input = 0.15
extra = {chat_template_kwargs = {enable_thinking = false}}
[limits]
requests_per_minute = 600
max_usd = 5.0
"""
PROMPT_ROWS = [
    {"prompt": "is the sky blue ?", "tags": ["chat"]},
    {"prompt": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]},
    *({"prompt": f"what is {n} ?"} for n in range(6)),
]
ANSWER_ROWS = [
    {"id": 1, "prompt": "hi", "answers": ["hello", "go away"]},
    {"id": "b", "prompt": "hi", "chosen": "hello", "rejected": [{"role": "assistant", "content": "no"}]},
    {"prompt": [{"role": "user", "content": "ho"}], "completions": ["a", "b", "c"], "tags": ["chat"]},
]
GOLD_ROWS = [
    {"prompt": "hi", "chosen": "hello", "rejected": "no", "tags": ["chat"], "subset": "easy"},
    {"prompt": "hi", "a": "hello", "b": "no", "expect": "tie", "principle": "truth"},
]
IMPORTED = {
    "hf": {"constitutions": [{"critic": "What is harmful?", "revision": "Remove it."}] * 2},
    "langchain": {"kind": {"name": "kind", "critique_request": "Is it kind?", "revision_request": "Be kind."}},
}


INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "pairs": 200}
MEASURED = {**dict.fromkeys(("nll", "brier", "ece"), INTERVAL), "ece_floor": 0.01, "debiased_error": 0.1}
CALIBRATION = {
    "schema": "solon.calibration/v1",
    "identity": "abc",
    "judge": "org/judge",
    "calibrations": [
        {
            "task": "pairwise",
            "temperature": 1.5,
            "pairs": 200,
            "effective_pairs": 190.0,
            "folds": 5,
            "before": MEASURED,
            "after": MEASURED,
        }
    ],
}


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Case:
    """One kind of file: a valid one, its reader, and its most effective corruptions."""

    name: str
    content: Callable[[], bytes]
    read: Callable[[Path], object]
    spoil: Spoil | None = None


def gold(path: Path) -> object:
    return load_gold(path, Constitution.parse(CONSTITUTION))


CASES = {
    case.name: case
    for case in (
        Case("run.toml", RUN.encode, RunFile.load, spoil_toml),
        Case("constitution.yaml", CONSTITUTION.encode, Constitution.load, spoil_yaml),
        Case("hf.json", lambda: json.dumps(IMPORTED["hf"]).encode(), import_constitution, spoil_json),
        Case("hf.jsonl", lambda: jsonl(IMPORTED["hf"]["constitutions"]), import_constitution, spoil_json),
        Case("langchain.yaml", lambda: json.dumps(IMPORTED["langchain"]).encode(), import_constitution, spoil_json),
        Case("prompts.jsonl", lambda: jsonl(PROMPT_ROWS), load_prompts, spoil_json),
        Case("prompts.parquet", lambda: parquet(PROMPT_ROWS[2:]), load_prompts),
        Case("answers.jsonl", lambda: jsonl(ANSWER_ROWS), lambda path: load_answers(path, least=2), spoil_json),
        Case("answers.parquet", lambda: parquet(ANSWER_ROWS[:1] * 3), lambda path: load_answers(path, least=2)),
        Case("gold.jsonl", lambda: jsonl(GOLD_ROWS), gold, spoil_json),
        Case(
            "calibration.json",
            lambda: json.dumps(CALIBRATION).encode(),
            lambda path: CalibrationBook.load(path, identity="abc"),
            spoil_json,
        ),
        Case("endpoint.toml", ENDPOINT.encode, EndpointFile.load, spoil_toml),
    )
}


def outcome(read: Callable[[], object]) -> str | None:
    """The message of a reader: empty when it accepts the file. Any other error is a fault."""
    try:
        read()
    except InputError as error:
        return str(error)
    return None


def assert_is_for_people(message: str) -> None:
    assert 0 < len(message) <= LONGEST, f"{len(message)} characters: {message[:200]}"
    assert len(message.splitlines()) == 1, message
    assert "Traceback" not in message
    message.encode()  # half a character could not even be printed


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_file_before_corruption_is_valid(case: Case, tmp_path: Path):
    path = tmp_path / case.name
    path.write_bytes(case.content())
    assert outcome(lambda: case.read(path)) is None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_corrupted_file_is_read_or_refused_in_one_short_line(case: Case, tmp_path: Path):
    rng = random.Random(f"{case.name}:{SEED}")
    valid = case.content()
    path = tmp_path / case.name
    for _ in range(EXAMPLES):
        path.write_bytes(spoilt(rng, valid, case.spoil))
        try:
            message = outcome(lambda: case.read(path))
            if message is not None:
                assert_is_for_people(message)
        except BaseException:
            kept = Path(os.environ.get("SOLON_FUZZ_KEEP", tmp_path)) / f"found-{case.name}"
            shutil.copyfile(path, kept)
            print(f"the file is kept in {kept}")
            raise


# --- files of no valid kind ----------------------------------------------------------------------------------


def override(rng: random.Random) -> str:
    keys = (*RunFile.model_fields, "learn.learning_rate", "feedback.jury.judges", "rollout", "a.b", "steps.x", "", ".")
    key = rng.choice((rng.choice(keys), ".".join(rng.choices(keys, k=3)), "a" * 5000, "feedback." * 3000 + "task"))
    value = rng.choice((*HOSTILE_TOML, "1\nsteps = 2", "1 # x", "\ud800", "\x1b[2J", "1", "[feedback]"))
    return rng.choice((f"{key}={value}", f"{key} = {value}", key, value, f"{key}==1", "="))


@pytest.mark.parametrize("command", ["train", "label"])
def test_any_override_is_accepted_or_refused_in_one_short_line(command: str, tmp_path: Path):
    rng = random.Random(f"override:{command}:{SEED}")
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    for _ in range(2 * EXAMPLES):
        given = [override(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        read = (
            (lambda g=given: RunFile.load(path, overrides=g))
            if command == "train"
            else lambda g=given: LabelSettings.of(g)
        )
        message = outcome(read)
        if message is not None:
            assert_is_for_people(message)


@pytest.mark.parametrize("kind", ["prompts", "answers"])
def test_a_corrupted_saved_dataset_is_read_or_refused_in_one_short_line(kind: str, tmp_path: Path):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    whole = tmp_path / "whole"
    Dataset.from_list(PROMPT_ROWS[2:] if kind == "prompts" else ANSWER_ROWS[:1] * 3).save_to_disk(str(whole))
    read = load_prompts if kind == "prompts" else lambda path: load_answers(path, least=2)
    assert outcome(lambda: read(whole)) is None
    rng = random.Random(f"dataset:{kind}:{SEED}")
    files = sorted(path.name for path in whole.iterdir())
    for number in range(EXAMPLES // 2):
        spoil = tmp_path / f"{number}"
        shutil.copytree(whole, spoil)
        name = rng.choice(files)
        own = spoil_json if name.endswith(".json") else None
        (spoil / name).write_bytes(spoilt(rng, (whole / name).read_bytes(), own))
        if rng.random() < 0.1:
            (spoil / name).unlink()
        message = outcome(lambda path=spoil: read(path))
        if message is not None:
            assert_is_for_people(message)
        shutil.rmtree(spoil)


def test_a_corrupted_model_directory_is_accepted_or_refused_in_one_short_line(tmp_path: Path):
    from tests.unit.run_files import make_model

    rng = random.Random(f"model:{SEED}")
    whole = make_model(tmp_path / "whole")
    names = ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors"]
    for number in range(EXAMPLES):
        spoil = tmp_path / f"{number}"
        shutil.copytree(whole, spoil)
        name = rng.choice(names)
        own = spoil_json if name.endswith(".json") else None
        (spoil / name).write_bytes(spoilt(rng, (whole / name).read_bytes(), own))

        def read(path: Path = spoil) -> None:
            check_judge(str(path), "compact")

        message = outcome(read)
        if message is not None:
            assert_is_for_people(message)
        shutil.rmtree(spoil)


# --- known effects of such files ---------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg", "gh", "hi")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg", "gh", "hi")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 20,000 values"),
        (MERGES, "more than 20,000 values"),
        ("principles: &a [*a]", "an alias occurs inside its own anchor"),
        ("a: &a {<<: *a}", "an alias occurs inside its own anchor"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 99)), "nested too deeply"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        ("# " + "x" * 300_000, "characters"),
    ],
    ids=["aliases", "merges", "itself", "merges itself", "chain", "deep", "long"],
)
def test_a_constitution_that_would_grow_without_bound_is_refused_at_once(tmp_path: Path, text: str, words: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    started = time.process_time()
    message = outcome(lambda: Constitution.load(path))
    assert message is not None
    assert words in message
    assert time.process_time() - started < 2


def test_an_alias_in_a_constitution_stands_for_its_text():
    assert Constitution.parse(CONSTITUTION).preamble == "What is asked."


def test_thousands_of_principles_of_one_name_are_imported_in_no_time(tmp_path: Path):
    path = tmp_path / "c.jsonl"
    rows = [{"name": "n", "critique_request": "a", "revision_request": str(n)} for n in range(3000)]
    path.write_bytes(jsonl(rows))
    started = time.process_time()
    ids = [p.id for p in import_constitution(path).constitution.principles]
    assert ids[:3] == ["n", "n-2", "n-3"]
    assert len(set(ids)) == 3000
    assert time.process_time() - started < 2


def test_a_line_longer_than_any_row_is_a_broken_row_and_the_next_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("solon.files.row_formats.MAX_LINE_BYTES", 1000)
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"prompt": "' + b"x" * 5000 + b'"}\n' + jsonl([{"prompt": f"{n}"} for n in range(200)]))
    file = load_prompts(path)
    assert len(file.prompts) == 200
    assert [(str(one.place), one.reason) for one in file.bad] == [("line 1", "longer than 0 MiB")]


def test_a_message_is_one_line_and_keeps_its_end_however_long_it_is():
    message = str(InputError("got " + "x\n\u2028" * 10_000 + "\ud800; do this"))
    assert len(message.splitlines()) == 1
    assert len(message) <= LONGEST
    assert message.startswith("got x x")
    assert message.endswith("\\ud800; do this")


def test_a_message_survives_the_transfer_between_processes():
    error = pickle.loads(pickle.dumps(InputError("got 3, expected 4")))
    assert (type(error), str(error)) == (InputError, "got 3, expected 4")
