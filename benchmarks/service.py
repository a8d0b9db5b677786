"""Services under load: labels over HTTP against the same labels in process, and versions replaced under live training.

    python benchmarks/service.py [--quick] [--json PATH] [--only load,soak,swap]

Nursery models on two cores. Every item is new, so that no cache answers. The swap trains the nursery's policy
meanwhile, in another process, so its figures are of a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import psutil

from benchmarks._harness import Row, arguments, report
from benchmarks._labels import constitution_of, draw_groups, nursery, opened
from benchmarks._service_soak import soak_rows
from nursery.grow import Nursery
from solon.feedback.config import FeedbackConfig
from solon.feedback.labeler import Labeler
from solon.host.own_code import child_environment, module_command
from solon.records import Group

PARTS = ("load", "soak", "swap")
CLIENTS = 64
ITEMS = 32
"""Of one request in the batch form."""
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "nursery.toml"
MAX_WAITING = CLIENTS * ITEMS
"""Room for all clients; twice as many are partly refused."""


# -- labels under load --------------------------------------------------------------------------------------------


async def load_rows(grown: Nursery, *, quick: bool) -> list[Row]:
    """Rates in process and over HTTP, and what twice the load is answered."""
    rounds = 1 if quick else 3
    inside: list[float] = []
    batch: list[float] = []
    single: list[float] = []
    waits_s: list[float] = []
    statuses: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="solon-") as folder:
        for number in range(rounds):
            inside.append(await _in_process(grown, seed=10 * number))
            async with _served_feedback(grown, Path(folder)) as url:
                await _clients(url, _requests(4, ITEMS, seed=900 + number), clients=4)  # warms up
                rate, waits, found = await _clients(url, _requests(2 * CLIENTS, ITEMS, seed=10 * number + 1), CLIENTS)
                batch.append(rate)
                waits_s += waits
                rate, _, more = await _clients(url, _requests(512, 1, seed=10 * number + 2), CLIENTS)
                single.append(rate)
                _, _, refused = await _clients(url, _requests(4 * CLIENTS, ITEMS, seed=10 * number + 3), 2 * CLIENTS)
                statuses += found + more + refused
    ours, reference = statistics.median(batch), statistics.median(inside)
    waits_s.sort()
    others = sum(count for status, count in statuses.items() if status not in (200, 429))
    print("answers by status:", dict(statuses))
    return [
        Row(f"labels/s, {CLIENTS} clients, {ITEMS} items a request (reference: in process)", ours, reference),
        Row("the same, share", ours / reference, goal=">= 0.9"),
        Row(
            f"labels/s, {CLIENTS} clients, one item a request (reference: in process)",
            statistics.median(single),
            reference,
        ),
        Row("batch form: median s a request", waits_s[len(waits_s) // 2]),
        Row("batch form: 99th percentile, s a request", waits_s[int(0.99 * (len(waits_s) - 1))]),
        Row("twice the load: answers that are neither 200 nor 429", others, goal="<= 0"),
        Row("twice the load: refused with 429", statuses[429]),
    ]


async def _in_process(grown: Nursery, *, seed: int) -> float:
    """Labels a second of the same judge without HTTP."""
    constitution = constitution_of(grown)
    config = FeedbackConfig(template="compact", task="pointwise")
    async with opened(grown.judge, constitution, task="pointwise") as judge:
        labeler = Labeler(judge, config=config, constitution=constitution)
        await asyncio.gather(*(labeler.label(group) for group in _groups(64, seed=seed + 7)))
        groups = _groups(2 * CLIENTS * ITEMS, seed=seed)
        began = time.perf_counter()
        found = await asyncio.gather(*(labeler.label(group) for group in groups))
        return sum(len(one.labels) for one in found) / (time.perf_counter() - began)


def _groups(number: int, *, seed: int) -> list[Group]:
    return draw_groups(number, size=1, seed=seed)


def _requests(number: int, items: int, *, seed: int) -> list[bytes]:
    groups = _groups(number * items, seed=seed)
    asked = [
        {
            "messages": [{"role": one.role, "content": one.content} for one in group.prompt.messages],
            "tags": list(group.prompt.tags),
            "answer": group.rollouts[0].text,
        }
        for group in groups
    ]
    return [json.dumps({"items": asked[start : start + items]}).encode() for start in range(0, len(asked), items)]


async def _clients(url: str, requests: Sequence[bytes], clients: int) -> tuple[float, list[float], Counter[int]]:
    """Labels a second, seconds of every answered request, and how many were answered how."""
    queue, waits, statuses, labels = list(requests), [], Counter[int](), 0

    async def client() -> None:
        nonlocal labels
        async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
            while queue:
                body, began = queue.pop(), time.perf_counter()
                reply = await http.post("/v1/scores", content=body, headers={"content-type": "application/json"})
                statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    waits.append(time.perf_counter() - began)
                    labels += reply.json()["usage"]["labels"]

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return labels / (time.perf_counter() - began), waits, statuses


@asynccontextmanager
async def _served_feedback(grown: Nursery, folder: Path) -> AsyncIterator[str]:
    (folder / "service.toml").write_text(
        f'port = 0\nmax_waiting = {MAX_WAITING}\n[judges.default]\nmodel = "{grown.judge}"\n'
        f'constitution = "{grown.constitution}"\nfeedback = {{ template = "compact" }}\n'
        "judging = { max_model_len = 256, threads = 2 }\n"
    )
    async with _solon("serve", "feedback", str(folder / "service.toml"), said="feedback service on ") as line:
        yield line.split()[3].rstrip(",")


@asynccontextmanager
async def _solon(*arguments_: str, said: str, folder: Path | None = None) -> AsyncIterator[str]:
    """A command that is asked to end with the block; gives its first line that begins so."""
    process = subprocess.Popen(  # noqa: ASYNC220  # it starts at once
        module_command("solon", *arguments_),
        cwd=folder,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    try:
        lines = []
        while line := await asyncio.to_thread(process.stdout.readline):
            lines.append(line)
            if line.startswith(said):
                break
        else:
            raise SystemExit("".join(lines))
        drain = asyncio.create_task(asyncio.to_thread(process.stdout.read))
        yield line
        process.terminate()
        await drain
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        if process.poll() is None:
            process.kill()


# -- versions under live training -----------------------------------------------------------------------------------


async def swap_rows(*, quick: bool) -> list[Row]:
    """Requests without a pause while a run trains and its checkpoints replace one another."""
    wanted, limit_s = (2, 240.0) if quick else (20, 2700.0)
    with tempfile.TemporaryDirectory(prefix="solon-") as name:
        folder = Path(name)
        training = subprocess.Popen(  # noqa: ASYNC220  # it starts at once
            module_command(
                "solon", "train", str(EXAMPLE), "--name", "live", "--steps", "100000",
                "--set", "checkpoint_every=10", "--set", 'evaluate.prompts=""', "--set", 'evaluate.evaluator=""',
            ),
            cwd=folder, env=child_environment(RAY_AUTH_MODE="disabled"), stdin=subprocess.DEVNULL,
            stdout=(folder / "train.log").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            latest = folder / "runs" / "live" / "checkpoints" / "LATEST"
            while not latest.exists():
                if training.poll() is not None:
                    raise SystemExit((folder / "train.log").read_text()[-3000:])
                await asyncio.sleep(0.5)
            settings = ("serve", "policy", "runs/live", "--set", "port=0", "--set", "engine.max_model_len=128")
            async with _solon(*settings, said="policy service on ", folder=folder) as line:
                return await _asked_while_swapped(line.split()[3].rstrip(","), wanted, limit_s)
        finally:
            training.terminate()
            training.wait()


async def _asked_while_swapped(url: str, wanted: int, limit_s: float) -> list[Row]:
    versions: list[str] = []
    statuses: Counter[str] = Counter()
    mixed, waits_s, began = 0, [], time.perf_counter()

    async def client(streams: bool) -> None:
        nonlocal mixed
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
            while len(set(versions)) < wanted and time.perf_counter() - began < limit_s:
                body = {
                    "model": "policy", "max_tokens": 16, "stream": streams,
                    "messages": [{"role": "user", "content": "what color is the crow ?"}],
                }  # fmt: skip
                sent = time.perf_counter()
                try:
                    reply = await http.post("/v1/chat/completions", json=body)
                except httpx.TransportError as error:
                    statuses[type(error).__name__] += 1
                    continue
                waits_s.append(time.perf_counter() - sent)
                whole = reply.status_code == 200 and (not streams or reply.text.rstrip().endswith("[DONE]"))
                statuses["200" if whole else f"{reply.status_code}, incomplete"] += 1
                version = reply.headers.get("x-solon-version", "")
                if version not in versions:
                    versions.append(version)
                    print(f"{time.perf_counter() - began:7.1f} s  {version}", flush=True)
                mixed += not streams and reply.json().get("system_fingerprint") != f"policy@{version}"
                await asyncio.sleep(0.05)

    await asyncio.gather(*(client(streams) for streams in (False, False, True, True)))
    waits_s.sort()
    print("answers:", dict(statuses))
    return [
        Row("versions served one after the other", len(set(versions)), goal=f">= {wanted}"),
        Row("requests", sum(statuses.values())),
        Row("requests dropped or cut", sum(statuses.values()) - statuses["200"], goal="<= 0"),
        Row("answers whose header names another version than wrote them", mixed, goal="<= 0"),
        Row("seconds a version", (time.perf_counter() - began) / max(1, len(set(versions)) - 1)),
        Row("99th percentile, s a request", waits_s[int(0.99 * (len(waits_s) - 1))]),
    ]


# -- a long time at twice the load ---------------------------------------------------------------------------------


async def long_rows(grown: Nursery, *, quick: bool) -> list[Row]:
    """Memory and open files of the feedback service while twice its clients ask."""
    with tempfile.TemporaryDirectory(prefix="solon-") as folder:
        async with _served_feedback(grown, Path(folder)) as url:
            port = int(url.rpartition(":")[2])
            here = [one for one in psutil.Process().children(recursive=True) if _listens(one, port)]
            return await soak_rows(
                url,
                here[0].pid,
                lambda number: _requests(64, ITEMS, seed=5000 + number),
                clients=2 * CLIENTS,
                seconds=60.0 if quick else 600.0,
            )


def _listens(process: psutil.Process, port: int) -> bool:
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.net_connections("inet"))


async def run(parts: Sequence[str], *, quick: bool) -> list[Row]:
    grown, rows = nursery(), []
    if "load" in parts:
        rows += await load_rows(grown, quick=quick)
    if "soak" in parts:
        rows += await long_rows(grown, quick=quick)
    if "swap" in parts:
        rows += await swap_rows(quick=quick)
    return rows


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts with commas between them: {', '.join(PARTS)}")
    chosen = parser.parse_args()
    rows = asyncio.run(run(chosen.only.split(","), quick=chosen.quick))
    report("service", rows, chosen.json)


if __name__ == "__main__":
    main()
