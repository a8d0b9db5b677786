"""A secret that comes in by a file or the environment goes nowhere: not into configs, logs, records, messages."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config.run_file import RunFile
from cluster.preflight.checks import check_inputs
from solon.cli.label import run_label
from solon.cli.label_settings import LabelRequest, LabelSettings
from solon.cli.main import main
from solon.errors import InputError, RunFailedError, short
from solon.feedback.caches.redis_store import RedisStore
from solon.feedback.endpoint.ask import EndpointAsk
from solon.feedback.endpoint.config import EndpointConfig, read_key
from solon.feedback.endpoint.reply import Problem
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.prompting.secret import nonce_secret
from solon.redaction import redacted
from solon.runs.directory import RunDirectory
from solon.telemetry.recorder import Recorder
from solon.telemetry.totals import RunTotals
from tests.unit.endpoint_server import EndpointServer, answer, error, raw
from tests.unit.run_files import make_run, write_run

CANARY = "canary7WORD1of9SECRETS"
REDIS = f"redis://:{CANARY}@127.0.0.1:9/0"


@pytest.fixture(autouse=True)
def no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After every test: nothing that was printed, logged or written below `out` or `runs` holds the canary."""
    caplog.set_level(logging.DEBUG)
    yield
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err + caplog.text
    for folder in ("out", "runs"):
        for path in (tmp_path / folder).rglob("*"):
            assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        do()
    message = str(caught.value)
    assert CANARY not in message
    assert CANARY[:12] not in message
    return message


# --- striking out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        REDIS,
        f"rediss://user:{CANARY}@cache.internal:6379/0",
        f"s3://{CANARY}:x@bucket/folder",
        f"https://a.example/v1?api_key={CANARY}&n=1",
        f"https://a.example/x?X-Amz-Signature={CANARY}",
        f"abfs://c@a.example/x?sig={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"sk-{CANARY}",
        f"hf_{CANARY}",
        f"in a sentence ({REDIS}), and {REDIS}.",
    ],
)
def test_secrets_of_the_usual_forms_are_redacted_everywhere(text: str):
    assert CANARY not in redacted(text)
    assert CANARY not in str(InputError(f"got {text}; correct it"))
    assert CANARY not in str(RunFailedError(f"got {text}; correct it"))
    assert CANARY[:10] not in short(text)
    assert CANARY[:10] not in short({"a": ["x" * 30 + " " + text]})
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "redis://cache:6379/0",
        "https://a.example/v1?n=1&page=2",
        "models/sk-small/step-000012",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "org/key-2024-01-15-experiment-name",
        "the key is bearer of news",
        "user@host.example",
        "learn.learning_rate=1e-5",
    ],
)
def test_text_without_secrets_is_unchanged(text: str):
    assert redacted(text) == text


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_redaction_accepts_any_text(text: str):
    assert redacted(redacted(text)) == redacted(text)


# --- the run file --------------------------------------------------------------------------------------------

KEYS = [
    "policy",
    "judge",
    "prompts",
    "constitution",
    "checkpoint_url",
    "feedback.cache.path",
    "feedback.cache.redis_env",
    "feedback.calibration",
    "feedback.semantic.model",
    "evaluate.audit_judge",
    "feedback.task",
    "steps",
    "unknown",
    f"a.{REDIS}",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("how", ["file", "--set"])
def test_an_address_with_a_password_is_refused_in_any_key_and_not_shown(tmp_path: Path, key: str, how: str):
    if how == "--set":
        refusal(lambda: RunFile.load(write_run(tmp_path), overrides=[f"{key}={REDIS}"]))
        return
    *sections, last = key.split(".") if REDIS not in key else ["a", REDIS]
    line = f'{json.dumps(last) if REDIS in last else last} = "{REDIS}"'
    text = f"[{'.'.join(sections)}]\n{line}" if sections else ""
    path = write_run(tmp_path, text, without=[key])
    if not sections:
        path.write_text(f"{line}\n{path.read_text()}")
    refusal(lambda: RunFile.load(path))


def test_the_configuration_that_is_written_holds_names_of_secrets_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CACHE_URL", REDIS)
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    (tmp_path / "judge.toml").write_text(
        '[endpoint]\nbase_url = "https://judge.example/v1"\nmodel = "m"\napi_key_env = "JUDGE_KEY"\n'
    )
    path = make_run(tmp_path, '[feedback.cache]\nredis_env = "CACHE_URL"\n')
    run = RunFile.load(path, overrides=[f"judge={tmp_path / 'judge.toml'}"])
    check_inputs(run)
    dumped = json.dumps(run.model_dump(mode="json")) + repr(run) + run.hash
    assert "CACHE_URL" in dumped
    assert CANARY not in dumped


# --- endpoints -------------------------------------------------------------------------------------------------

ENDPOINT = {"base_url": '"https://judge.example/v1"', "model": '"m"'}


def endpoint_file(tmp_path: Path, **fields: str) -> Path:
    path = tmp_path / "judge.toml"
    lines = [f"{key} = {value}" for key, value in {**ENDPOINT, **fields}.items()]
    path.write_text("\n".join(["[endpoint]", *lines, ""]))
    return path


@pytest.mark.parametrize("field", sorted({*EndpointConfig.model_fields, "api_key", "key"} - {"api_key_file", "model"}))
def test_a_key_in_any_field_of_an_endpoint_file_is_refused_and_not_shown(tmp_path: Path, field: str):
    for value in (f'"{CANARY}"', f'["{CANARY}"]', f'{{a = "sk-{CANARY}"}}', f"{CANARY}", f'"https://{CANARY}@a/v1"'):
        refusal(lambda value=value: EndpointFile.load(endpoint_file(tmp_path, **{field: value})))


@pytest.mark.parametrize("text", ['limits = "{}"', "max_model_len = '{}'", '"{}" = 1', "[limits]\nmax_usd = '{}'"])
def test_a_key_elsewhere_in_an_endpoint_file_is_not_shown(tmp_path: Path, text: str):
    path = endpoint_file(tmp_path)
    path.write_text(text.format(f"sk-{CANARY}") + "\n" + path.read_text())
    refusal(lambda: EndpointFile.load(path))


def test_a_key_file_that_is_no_key_is_not_shown(tmp_path: Path):
    for content in (f"{CANARY} {CANARY}".encode(), f"{CANARY}\x1b".encode(), CANARY.encode() + b"\xff"):
        (tmp_path / "key").write_bytes(content)
        config = EndpointConfig(base_url="https://a.example/v1", model="m", api_key_file=str(tmp_path / "key"))
        refusal(lambda config=config: read_key(config))


@pytest.fixture
def request_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds a request whose judge has the canary as its key."""
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    (tmp_path / "c.yaml").write_text(
        'schema: solon.constitution/v1\nid: c\nversion: "1"\n'
        "principles:\n  - {id: kind, pairwise_question: which is kinder}\n"
    )
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi", "answers": ["a", "b"]}\n{"prompt": 3}\n')

    def build(base_url: str, **changes: Any) -> LabelRequest:
        fields = {"base_url": f'"{base_url}"', "api_key_env": '"JUDGE_KEY"', "max_retries": "0"}
        given = {
            "source": tmp_path / "a.jsonl",
            "judge": str(endpoint_file(tmp_path, **fields)),
            "constitution": str(tmp_path / "c.yaml"),
            "out": tmp_path / "out",
        }
        return LabelRequest(**{**given, **changes})

    return build


BEHAVIOURS = {
    "works": answer({"A": 0.6, "B": 0.3}),
    "repeats the key": raw(f"you sent Bearer {CANARY} and {CANARY}".encode()),
    "repeats it in an error": error(500, f"bad key {CANARY}, Bearer {CANARY}"),
    "refuses it": error(401, f"invalid api key {CANARY}"),
    "judges with it": answer({CANARY: 0.9}),
}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_labelling_leaves_no_trace_of_the_key_for_any_reply(request_labels: Any, tmp_path: Path, behaviour: str):
    with EndpointServer(BEHAVIOURS[behaviour]) as server:
        try:
            run_label(request_labels(server.base_url), as_json=False)
        except InputError as refused:
            print(behaviour, refused)
        assert server.seen  # the key was used
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "changes",
    [{"policy": REDIS}, {"judge": REDIS}, {"overrides": [f"feedback.cache.path={REDIS}"]}, {"overrides": [REDIS]}],
)
def test_a_secret_on_the_command_line_is_refused_and_not_shown(request_labels: Any, changes: dict[str, Any]):
    refusal(lambda: run_label(request_labels("http://127.0.0.1:9/v1", **changes), as_json=True))


def test_a_secret_on_the_command_line_is_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for extra in (["--set", f"feedback.cache.path={REDIS}"], ["--set", f"{REDIS}"], ["--name", REDIS]):
        run = tmp_path / "r"
        run.mkdir(exist_ok=True)
        monkeypatch.setattr("sys.argv", ["solon", "check", str(write_run(run)), *extra])
        with pytest.raises(SystemExit):
            main()


async def test_an_endpoint_object_shows_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    config = EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", api_key_env="JUDGE_KEY", max_retries=0)
    async with EndpointAsk(config) as endpoint:
        shown = [repr(config), str(config), config.model_dump_json(), repr(endpoint), repr(endpoint._wire)]
        outcome = await endpoint._wire.post("/x", b"{}")
        assert isinstance(outcome, Problem)
        shown.append(repr(outcome))
    assert CANARY not in "".join(shown)
    assert CANARY.encode() not in pickle.dumps(EndpointFile(endpoint=config))  # this is sent to the workers


# --- Redis, nonces, events -----------------------------------------------------------------------------------------


async def test_a_redis_that_does_not_answer_is_told_without_its_password(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("redis", reason="the package redis is an extra")
    store = RedisStore(REDIS, timeout_s=0.2)
    assert await store.get_many([b"k"]) == {}
    assert store.failures == 1
    assert caplog.text
    assert CANARY not in repr(store)
    await store.close()


def test_an_address_that_is_none_of_redis_is_not_shown():
    refusal(lambda: RedisStore(f"nonsense://:{CANARY}@x"))
    refusal(lambda: RedisStore(CANARY))


def test_the_secret_of_the_nonces_is_not_shown_when_it_is_unusable(tmp_path: Path):
    (tmp_path / "nonce.key").write_text(CANARY)
    refusal(lambda: nonce_secret(tmp_path))


def test_a_cause_in_the_events_holds_no_secret(tmp_path: Path):
    directory = RunDirectory.create(tmp_path / "runs", "r", default="r")
    recorder = Recorder(
        directory,
        RunTotals(staleness_bound=1, total_steps=1),
        open_payload=lambda payload_ref: payload_ref,
        provenance={},
        on_failure=lambda _: None,
    )
    recorder.event("upload_failed", checkpoint="step-000001", cause=f"cannot reach {REDIS}")
    recorder.close()
    directory.close()
    (line,) = (tmp_path / "runs" / "r" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == "cannot reach redis://***@127.0.0.1:9/0"


def test_no_record_that_is_written_out_has_a_field_for_a_secret():
    from solon.feedback.judges.identity import JudgeIdentity
    from solon.records import Label

    names = {field.name for record in (JudgeIdentity, Label) for field in dataclasses.fields(record)}
    names |= set(RunFile.model_fields) | set(LabelSettings.model_fields)
    assert not {name for name in names if name in ("secret", "api_key", "password", "token")}
