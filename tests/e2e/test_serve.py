"""The feedback service as a user runs it: the nursery's judge behind HTTP, and on Ray Serve."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.client import Compared, FeedbackClient, Scored, Turn
from tests.e2e.conftest import environment, solon_command

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.timeout(300)]
SETTINGS = """
port = 0
keys = "keys.txt"
records = "labels"
[judges.default]
model = "nursery:judge"
constitution = "nursery:constitution"
feedback = { template = "compact" }
judging = { max_model_len = 256 }
"""
ASKED = [Turn(role="user", content="what color is the crow ?")]


@pytest.fixture
def service(nursery: Any, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A running service, its address, and a key."""
    (tmp_path / "service.toml").write_text(SETTINGS)
    made = subprocess.run(
        solon_command("serve", "key", "team"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    process = subprocess.Popen(
        solon_command("serve", "feedback", "service.toml"), cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("feedback service on "):
            break
    assert process.poll() is None, "".join(said)
    yield process, said[-1].split()[3].rstrip(","), made.stdout.strip()
    if process.poll() is None:
        process.kill()
        process.wait()


def test_the_nurserys_judge_labels_over_http_and_the_service_ends_at_a_signal_although_a_client_is_slow(
    service: tuple[subprocess.Popen[str], str, str], tmp_path: Path
):
    process, address, key = service
    with FeedbackClient(address, key=key) as client:
        pairs = [("gladly , it is black .", "you fool , it is red ."), ("it is red .", "gladly , it is black .")]
        asked = [Compared(messages=ASKED, first=a, second=b, tags=["fact"]) for a, b in pairs]
        first, second = client.preferences(asked).results
        assert (first.preferred, second.preferred) == ("first", "second")
        scores = client.scores([Scored(messages=ASKED, answer=text, tags=["fact"]) for text in pairs[0]]).results
        assert scores[0].reward is not None
        assert scores[1].reward is not None
        assert scores[0].reward > scores[1].reward
    (file,) = (tmp_path / "labels").iterdir()
    assert all(json.loads(line)["caller"] == "team" for line in file.read_text().splitlines())
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/v1/models", timeout=10)
    slow = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    slow.sendall(b"POST /v1/scores HTTP/1.1\r\nhost: s\r\ncontent-length: 100\r\n\r\n{")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - began < 40
    slow.close()


SERVED = """
import json, sys
import ray
from ray import serve
from serve_apps.feedback import app
from solon.client import FeedbackClient, Scored, Turn

settings, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level="ERROR")
try:
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"settings": settings, "cpus": "0.5"}), name="feedback")
    with FeedbackClient(f"http://127.0.0.1:{port}") as client:
        turn = Turn(role="user", content="what color is the crow ?")
        answers = ("gladly , it is black .", "it is red .")
        asked = [Scored(messages=[turn], answer=text, tags=["fact"]) for text in answers]
        rewards = [one.reward for one in client.scores(asked).results]
        ready = [card.ready for card in client.judges()]
    print("RESULT " + json.dumps([rewards, ready]))
finally:
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.ray
def test_the_same_judges_answer_on_ray_serve(nursery: Any, tmp_path: Path):
    (tmp_path / "service.toml").write_text(
        f'[judges.default]\nmodel = "{nursery.judge}"\nconstitution = "{nursery.constitution}"\n'
        'feedback = { template = "compact" }\njudging = { max_model_len = 256 }\n'
    )
    found, output = on_serve(SERVED, tmp_path)
    assert found, output
    rewards, ready = found
    assert rewards[0] > rewards[1]
    assert ready == [True]


KILLED = """
import json, os, signal, sys, threading, time
from collections import Counter
import httpx
import ray
from ray import serve
from ray.util.state import list_actors
from serve_apps.feedback import app

settings, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ray.init(num_cpus=2, include_dashboard=True, dashboard_port=0, _temp_dir=folder, logging_level="ERROR")
answers, errors, is_over = Counter(), Counter(), threading.Event()
body = {"items": [{"messages": [{"role": "user", "content": "what color is the crow ?"}], "answer": "it is red .",
                   "tags": ["fact"]}]}


def ask():
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=180) as client:
        while not is_over.is_set():
            try:
                reply = client.post("/v1/scores", json=body)
                known = reply.status_code == 200 or "error" in reply.json()
                answers[reply.status_code if known else "bare"] += 1
            except Exception as error:
                errors[repr(error)] += 1
            time.sleep(0.05)


try:
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"settings": settings, "cpus": "0.5"}), name="feedback")
    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(4)
    before = answers[200]
    address = ray.get_runtime_context().gcs_address  # other clusters may live on this machine
    actors = list_actors(address, detail=True)
    (replica,) = [one for one in actors if "feedback-engines" in one.name and one.state == "ALIVE"]
    os.kill(replica.pid, signal.SIGKILL)
    killed = time.monotonic()
    time.sleep(1)
    waited = answers[200]
    while answers[200] <= waited + 8 and time.monotonic() < killed + 150:
        time.sleep(0.1)
    seconds = time.monotonic() - killed
    is_over.set()
    for client in clients:
        client.join()
    print("RESULT " + json.dumps([before, dict(answers), dict(errors), seconds]))
finally:
    is_over.set()
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.ray
def test_no_request_is_lost_when_a_replica_is_killed_on_ray_serve(nursery: Any, tmp_path: Path):
    (tmp_path / "service.toml").write_text(
        f'[judges.default]\nmodel = "{nursery.judge}"\nconstitution = "{nursery.constitution}"\n'
        'feedback = { template = "compact" }\njudging = { max_model_len = 256 }\n'
    )
    found, output = on_serve(KILLED, tmp_path)
    assert found, output
    before, answers, errors, seconds = found
    assert before > 0, "nothing was answered before the kill"
    assert errors == {}
    assert set(answers) <= {"200", "503", "429"}, answers
    assert answers["200"] > before
    assert seconds < 150


def on_serve(script: str, folder: Path) -> tuple[Any, str]:
    """What a script printed that serves `service.toml` of a folder on Ray; and the end of its output."""
    with socket.socket() as probe, tempfile.TemporaryDirectory(prefix="solon-") as short:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, str(folder / "service.toml"), str(port), short],
            cwd=folder, env=environment(RAY_USAGE_STATS_ENABLED="0"), capture_output=True, text=True, timeout=280,
        )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return (json.loads(found[0].removeprefix("RESULT ")) if found else None), done.stdout[-1500:] + done.stderr[-3000:]


POLICY = """
import json, sys
import httpx
import ray
from ray import serve
from serve_apps.policy import app

settings, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, logging_level="ERROR")
body = {"model": "policy", "messages": [{"role": "user", "content": "what color is the crow ?"}], "max_tokens": 8}
try:
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app({"settings": settings, "cpus": "0.5"}), name="policy")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        whole = client.post("/v1/chat/completions", json=body)
        with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
            lines = [line for line in reply.iter_lines() if line]
        refused = client.post("/v1/chat/completions", json=body | {"model": "other"})
    text = whole.json()["choices"][0]["message"]["content"]
    print("RESULT " + json.dumps([text, whole.headers["x-solon-version"], lines[-1], len(lines), refused.status_code]))
finally:
    serve.shutdown()
    ray.shutdown()
"""


@pytest.mark.ray
def test_a_policy_answers_and_streams_on_ray_serve(nursery: Any, tmp_path: Path):
    (tmp_path / "service.toml").write_text(
        f'[policies.policy]\nmodel = "{nursery.policy}"\nengine = {{ max_model_len = 128 }}\n'
    )
    found, output = on_serve(POLICY, tmp_path)
    assert found, output
    text, version, last, lines, status = found
    assert text
    assert version
    assert (last, status) == ("data: [DONE]", 404)
    assert lines > 2
