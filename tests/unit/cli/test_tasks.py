"""`solon tasks` serves a policy, calls another program, and reads what it found; mistakes are named before a server
starts."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from solon.cli import tasks
from solon.cli.tasks import TasksRequest, run_tasks
from solon.engines import openai_server
from solon.engines.base import EngineConfig
from solon.errors import InputError, RunFailedError
from solon.evaluation.harness import HARNESSES, Job
from solon.host.processes import Process

STUB = """#!{python}
import json, os, pathlib, sys
arguments = sys.argv[1:]
if "-c" in arguments:
    sys.exit({missing})
out = pathlib.Path(arguments[arguments.index("--output_path") + 1], "policy")
out.mkdir(parents=True)
(out / "called.json").write_text(json.dumps([arguments, os.environ.get("PYTHONPATH"), os.environ["OPENAI_API_KEY"]]))
figures = {{"alias": "easy", "acc,none": 0.5, "acc_stderr,none": 0.1}}
figures |= {{"exact_match,strict": 1, "exact_match_stderr,strict": "N/A"}}
(out / "results_2026.json").write_text(json.dumps({{"results": {{"easy": figures}}}}))
print("the harness said this")
sys.exit({code})
"""


def stub(folder: Path, *, missing: int = 0, code: int = 0) -> str:
    path = folder / "python"
    path.write_text(STUB.format(python=sys.executable, missing=missing, code=code))
    path.chmod(0o755)
    return str(path)


def request(folder: Path, **changes: Any) -> TasksRequest:
    given = {"model": "org/model", "harness": "lm-eval", "tasks": "easy, hard", "out": folder / "out"}
    return TasksRequest(**(given | {"url": "http://127.0.0.1:9/v1/"} | changes))


def test_a_harness_is_called_with_the_served_model_and_its_figures_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    result = run_tasks(request(tmp_path, python=stub(tmp_path), limit=7, more="--num_fewshot 2"), as_json=False)
    assert [(s["metric"], s["value"], s["stderr"]) for s in result["scores"]] == [
        ("acc", 0.5, 0.1),
        ("exact_match (strict)", 1.0, None),
    ]
    (called,) = (tmp_path / "out").rglob("called.json")
    arguments, python_path, key = json.loads(called.read_text())
    text = " ".join(arguments)
    assert "base_url=http://127.0.0.1:9/v1/completions" in text
    assert "--tasks easy,hard" in text
    assert text.endswith("--limit 7 --num_fewshot 2")
    assert (python_path, key) == (None, "none")
    assert json.loads((tmp_path / "out" / "tasks.json").read_text())["harness"] == "lm-eval"
    assert "0.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "missing"}, r"lm-eval is not installed for .*--harness-python harness/bin/python"),
        ({"python": "/no/such/python"}, "cannot be run"),
        ({"tasks": " , "}, "--tasks is empty"),
        ({"more": "it's"}, "cannot be split into arguments"),
        ({"overrides": ["engine.dtpe=float32"]}, "did you mean `dtype`"),
        ({"out": "done"}, "exists, expected a new directory"),
        ({"url": "", "model": "/no/such/model"}, "no/such/model"),
    ],
)
def test_mistakes_are_named_before_a_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a server was started")

    monkeypatch.setattr(tasks, "served", never)
    python = changes.pop("python", "")
    python = stub(tmp_path, missing=3) if python == "missing" else python or stub(tmp_path)
    if "out" in changes:
        (tmp_path / "done").mkdir()
        (tmp_path / "done" / "tasks.json").touch()
        changes["out"] = tmp_path / "done"
    with pytest.raises(InputError, match=message):
        run_tasks(request(tmp_path, python=python, **changes), as_json=True)


def test_a_harness_that_fails_shows_the_end_of_its_log(tmp_path: Path):
    with pytest.raises(RunFailedError, match=r"(?s)ended with exit code 3.*the harness said this.*harness\.log"):
        run_tasks(request(tmp_path, python=stub(tmp_path, code=3)), as_json=True)


def test_scores_of_inspect_are_read_and_a_task_that_failed_is_named(tmp_path: Path):
    metrics = {"accuracy": {"name": "accuracy", "value": 0.25}, "stderr": {"name": "stderr", "value": 0.05}}
    log = {
        "status": "success",
        "eval": {"task": "mine"},
        "results": {"scores": [{"name": "match", "metrics": metrics}]},
    }
    (tmp_path / "a.json").write_text(json.dumps(log))
    (score,) = HARNESSES["inspect"].read(tmp_path)
    assert (score.task, score.metric, score.value, score.stderr) == ("mine", "match accuracy", 0.25, 0.05)
    (tmp_path / "b.json").write_text(json.dumps({**log, "status": "error"}))
    with pytest.raises(RunFailedError, match="the task mine as error"):
        HARNESSES["inspect"].read(tmp_path)


@pytest.mark.parametrize("harness", ["lm-eval", "inspect"])
def test_a_harness_without_results_says_so(tmp_path: Path, harness: str):
    with pytest.raises(RunFailedError, match="read its log"):
        HARNESSES[harness].read(tmp_path)


def test_inspect_gets_the_address_by_its_own_variables():
    job = Job(url="http://127.0.0.1:9", served_name="policy", tokenizer="t", tasks=["a.py"], out=Path("o"))
    assert HARNESSES["inspect"].variables(job)["SOLON_BASE_URL"] == "http://127.0.0.1:9/v1"
    assert HARNESSES["inspect"].arguments(job)[:4] == ["inspect_ai", "eval", "a.py", "--model"]


def test_inspect_is_started_in_the_folder_of_its_files(tmp_path: Path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).touch()
    tasks = [str(tmp_path / "a.py"), f"{tmp_path / 'b.py'}@one", "inspect_evals/gpqa"]
    job = Job(url="http://127.0.0.1:9", served_name="policy", tokenizer="t", tasks=tasks, out=Path("/o"))
    assert HARNESSES["inspect"].folder(job) == tmp_path
    assert HARNESSES["inspect"].arguments(job)[2:5] == ["a.py", "b.py@one", "inspect_evals/gpqa"]
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "c.py").touch()
    with pytest.raises(InputError, match="got tasks in 2 folders"):
        HARNESSES["inspect"].folder(dataclasses.replace(job, tasks=[*tasks, str(tmp_path / "inner" / "c.py")]))


def test_a_server_that_dies_at_its_start_shows_its_log_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(4)"]
    monkeypatch.setattr(openai_server, "_command", lambda *_, **__: command)
    config = EngineConfig(model="m")
    with (
        pytest.raises(RunFailedError, match=r"(?s)server ended with exit code 4.*no such model"),
        openai_server.served(config, on_gpu=False, log=tmp_path / "log"),
    ):
        raise AssertionError("it never ran")


def test_a_server_that_does_not_answer_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    child = "import subprocess, time; print(subprocess.Popen(['sleep', '300']).pid, flush=True); time.sleep(300)"
    monkeypatch.setattr(openai_server, "_command", lambda *_, **__: [sys.executable, "-c", child])
    with (
        pytest.raises(RunFailedError, match="did not start within 2 s"),
        openai_server.served(EngineConfig(model="m"), on_gpu=False, log=tmp_path / "log", timeout_s=2),
    ):
        raise AssertionError("it never ran")
    assert Process.find(int((tmp_path / "log").read_text())) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "transformers"}, "expected 'vllm' to serve"),
        ({"chat_date": "2020-01-01"}, "chat_date has no effect"),
    ],
)
def test_settings_that_a_server_does_not_have_are_refused(tmp_path: Path, settings: dict[str, Any], message: str):
    with (
        pytest.raises(InputError, match=message),
        openai_server.served(EngineConfig(model="m", **settings), on_gpu=False, log=tmp_path / "log"),
    ):
        raise AssertionError("it never ran")


def test_chat_arguments_reach_the_server_and_the_models_own_sampling_does_not():
    config = EngineConfig(model="m", chat_template_args={"enable_thinking": False})
    text = " ".join(openai_server._command(config, 1, on_gpu=False, names=("policy",), label=""))
    assert '--default-chat-template-kwargs {"enable_thinking": false}' in text
    assert "--generation-config vllm" in text
    assert openai_server.without_proxy({"NO_PROXY": "a.example"})["no_proxy"] == "a.example,127.0.0.1,localhost"
