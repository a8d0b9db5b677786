"""Ten minutes of a service at twice its load: what is answered, and whether memory and open files grow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import psutil

from benchmarks._harness import Row

SAMPLE_S = 10.0
WARM_S = 60.0
"""Until then caches and pools fill."""


async def soak_rows(
    url: str, pid: int, requests: Callable[[int], Sequence[bytes]], *, clients: int, seconds: float
) -> list[Row]:
    """requests: new bodies for a number. pid: of the service; its children count too."""
    statuses: Counter[str] = Counter()
    waits_s: list[float] = []
    samples: list[tuple[float, int, int]] = []
    began = time.perf_counter()
    bodies = list(requests(0))
    made = 1

    async def client() -> None:
        nonlocal made
        async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
            while time.perf_counter() - began < seconds:
                if not bodies:
                    bodies.extend(requests(made))
                    made += 1
                body, sent = bodies.pop(), time.perf_counter()
                try:
                    reply = await http.post("/v1/scores", content=body, headers={"content-type": "application/json"})
                except httpx.TransportError as error:
                    statuses[type(error).__name__] += 1
                    continue
                statuses[str(reply.status_code)] += 1
                if reply.status_code == 200:
                    waits_s.append(time.perf_counter() - sent)
                else:
                    await asyncio.sleep(min(1.0, float(reply.headers.get("retry-after", 1))))

    async def watch() -> None:
        while time.perf_counter() - began < seconds:
            samples.append((time.perf_counter() - began, *_size(pid)))
            await asyncio.sleep(SAMPLE_S)

    await asyncio.gather(watch(), *(client() for _ in range(clients)))
    warm = [sample for sample in samples if sample[0] >= min(WARM_S, seconds / 3)]
    third = max(1, len(warm) // 3)
    memory = [max(sample[1] for sample in part) / 2**20 for part in (warm[:third], warm[-third:])]
    files = [max(sample[2] for sample in part) for part in (warm[:third], warm[-third:])]
    waits_s.sort()
    others = sum(count for status, count in statuses.items() if status not in ("200", "429"))
    print("answers:", dict(statuses))
    return [
        Row(f"soak: seconds with {clients} clients", time.perf_counter() - began),
        Row("soak: answers that are neither 200 nor 429", others, goal="<= 0"),
        Row("soak: requests answered", statuses["200"]),
        Row("soak: 99th percentile, s a request", waits_s[int(0.99 * (len(waits_s) - 1))]),
        Row("soak: memory, MiB, last third (reference: first third)", memory[1], memory[0]),
        Row("soak: memory of the last third, share of the first", memory[1] / memory[0], goal="<= 1.05"),
        Row("soak: open files, last third (reference: first third)", files[1], files[0]),
    ]


def _size(pid: int) -> tuple[int, int]:
    """Bytes in memory and open files of a process and all that it started."""
    total = files = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in family:
        try:
            total += process.memory_info().rss
            files += len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        except (psutil.Error, OSError):
            continue
    return total, files
