"""Publication of weights: the digest tree, and chunks through the object store to two engines on one host.

    python benchmarks/publication.py [--quick] [--json PATH] [--gib 2.0] [--chunk-mib 128] [--only adapters]

A learner process publishes a random decoder in bfloat16, `--gib` in all, once from bfloat16 and once cast from float32;
two processes like engines verify, load and keep it, one after the other, as in a run. Both sides of a comparison take
turns; ratios are medians over the rounds. Memory is what a process has for itself (RssAnon), sampled every 5 ms.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._adapter_publication import adapter_rows
from benchmarks._harness import Row, arguments, report
from benchmarks._rounds import pin, timed
from solon.records import Chunk, Weights

CORES = 2
LAYER = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32_000


def shapes(nbytes: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of a decoder of about this size in bfloat16."""
    layer = {
        f"{module}.{part}.weight": (HIDDEN, HIDDEN)
        if module == "self_attn"
        else ((HIDDEN, INTERMEDIATE) if part == "down_proj" else (INTERMEDIATE, HIDDEN))
        for module, parts in LAYER.items()
        for part in parts
    }
    embedding = (VOCABULARY, HIDDEN)
    room = nbytes // 2 - VOCABULARY * HIDDEN
    layers = max(1, room // sum(rows * columns for rows, columns in layer.values()))
    return {"model.embed_tokens.weight": embedding} | {
        f"model.layers.{number}.{name}": shape for number in range(layers) for name, shape in layer.items()
    }


@dataclass(frozen=True, slots=True)
class Round:
    """One publication: seconds, and the extra memory of each side."""

    total_s: float
    export_s: float
    learner_bytes: int
    engine_bytes: int
    chunks: int


class Memory:
    """Largest memory of this process alone during a piece of work, above what it had before; bytes."""

    def __enter__(self) -> Memory:
        self._before = self._peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def extra(self) -> int:
        return self._peak - self._before

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, anonymous_bytes())


def anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class Learner:
    """Weights of this dtype, published in bfloat16."""

    def __init__(self, nbytes: int, bound: int, dtype: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._bound = bound
        self._weights = {name: torch.rand(shape, dtype=getattr(torch, dtype)) for name, shape in shapes(nbytes).items()}
        self._plain = np.ones(sum(tensor.numel() for tensor in self._weights.values()) * 2, np.uint8)

    def nbytes(self) -> int:
        return self._plain.nbytes

    def publish(self, version: int) -> Iterator[Chunk | tuple[Weights, int]]:
        """Yields the chunks, then the manifest and the extra memory."""
        import torch

        from solon.engines.chunks import cut
        from solon.engines.digest_tree import root_of

        with Memory() as memory:
            named = ((name, tensor.to(torch.bfloat16)) for name, tensor in self._weights.items())
            leaves = yield from cut(named, bound=self._bound)
        manifest = Weights(
            version=version,
            chunks=(),
            leaves=leaves,
            fingerprint=root_of(leaves),
            canary_token_ids=(),
            canary_logprobs=(),
        )
        yield manifest, memory.extra

    def plain(self) -> Any:
        """The same bytes as one array."""
        return self._plain


class Engine:
    """Holds the weights in bfloat16, as an engine does."""

    def __init__(self, nbytes: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._live = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes(nbytes).items()}
        self._plain = np.ones(sum(tensor.numel() for tensor in self._live.values()) * 2, np.uint8)

    def load(self, weights: Weights) -> tuple[str, int]:
        """The root of what it holds now, and the extra memory."""
        from solon.engines.transfer import load

        with Memory() as memory:
            load(weights, self, who="benchmark", poison=print)
        return weights.fingerprint, memory.extra

    def holds(self) -> str:
        from solon.engines.chunks import packed

        return packed(0, self._live.items()).fingerprint

    def copy(self, plain: Any) -> int:
        np.copyto(self._plain, plain)
        return len(plain)

    def start(self, weights: Weights) -> None:
        assert {leaf.name for leaf in weights.leaves} == self._live.keys()

    def chunk(self, tensors: Sequence[tuple[str, Any]]) -> None:
        for name, tensor in tensors:
            self._live[name].copy_(tensor)

    def finish(self) -> None: ...


def digest_rows(*, quick: bool) -> list[Row]:
    """GB/s of one thread over 256 MiB, and of the leaves of one chunk in threads."""
    import hashlib

    from blake3 import blake3

    from solon.engines import digest_tree

    data = np.random.default_rng(0).integers(0, 255, 256 << 20, np.uint8)
    target = np.empty_like(data)
    parts = tuple(np.split(data, 8))
    named = [(f"w{number}", "uint8", part.shape) for number, part in enumerate(parts)]

    def one_core() -> None:
        for (name, dtype, shape), part in zip(named, parts, strict=True):
            digest_tree.leaf_digest(name, dtype, shape, part)

    rounds = 3 if quick else 9
    ways: dict[str, Callable[[], Any]] = {
        "copy into memory in use": lambda: np.copyto(target, data),
        "leaves (XXH3, 128 bits), one core": one_core,
        "BLAKE3, one core": lambda: blake3(data.data).hexdigest(),
        "SHA-256, one core": lambda: hashlib.sha256(data.data).hexdigest(),
        "leaves of a chunk, in threads": lambda: digest_tree.leaves_of(named, parts, number=0),
    }
    np.copyto(target, data)
    seconds = {name: statistics.median(timed(way) for _ in range(rounds)) for name, way in ways.items()}
    rate = {name: data.nbytes / 1e9 / found for name, found in seconds.items()}
    goals = {"leaves (XXH3, 128 bits), one core": ">= 4"}
    copying = rate["copy into memory in use"]
    return [Row(f"digest, GB/s: {name} (reference: a copy)", found, copying, goals.get(name, ""))
            for name, found in rate.items()]  # fmt: skip


def transport_rows(nbytes: int, bound: int, *, dtype: str, rounds: int) -> list[Row]:
    """Learner, object store and two engines, on real actors."""
    import ray

    from actors.calls import RemoteWorker
    from actors.chunks import StoredChunks

    ray.init(
        num_cpus=CORES, object_store_memory=int(3.5 * nbytes) + (256 << 20), include_dashboard=False,
        logging_level="ERROR", log_to_driver=False,
    )  # fmt: skip
    store = ray.cluster_resources()["object_store_memory"]
    spawn: Callable[..., Any] = lambda kind, *given: RemoteWorker(  # noqa: E731
        lambda _: ray.remote(kind).options(num_cpus=0).remote(*given), name=kind.__name__
    )
    learner, engines = spawn(Learner, nbytes, bound, dtype), [spawn(Engine, nbytes) for _ in range(2)]

    async def publish(version: int) -> tuple[Round, Weights]:
        began = time.perf_counter()
        (manifest, learning), references = await learner.ask_chunks("publish", version)
        exported = time.perf_counter()
        weights = replace(manifest, chunks=StoredChunks(references))
        found = [await engine.ask("load", weights) for engine in engines]
        total_s = time.perf_counter() - began
        return Round(total_s, exported - began, learning, max(extra for _, extra in found), len(references)), weights

    async def plainly() -> float:
        began = time.perf_counter()
        reference = learner.actor.plain.remote()
        for engine in engines:
            await engine.ask("copy", reference)
        return time.perf_counter() - began

    async def measure() -> list[Row]:
        size = await learner.ask("nbytes")
        source, target = (np.ones(size, np.uint8) for _ in range(2))
        ours: list[Round] = []
        plain, memory = list[float](), list[float]()
        held: Weights | None = None
        await plainly()
        for version in range(1, rounds + 3):
            # The version before goes when the next one is loaded.
            found, held = await publish(version)
            copied = await plainly()
            memory_s = timed(lambda: np.copyto(target, source))
            if version > 2:  # the first two pay for pages of the store that later ones use again
                ours.append(found)
                plain.append(copied)
                memory.append(memory_s)
        assert held is not None
        roots = {held.fingerprint, *[await engine.ask("holds") for engine in engines]}
        assert len(roots) == 1, "an engine holds other weights than were published"
        copies = await used(store, size)
        return rows_of(size, bound, dtype, ours, plain, memory, copies)

    try:
        with asyncio.Runner() as loop:
            return loop.run(measure())
    finally:
        ray.shutdown()


async def used(store: float, size: int) -> float:
    """Bytes in the object store over those of a version, when nothing else is left in it."""
    import ray

    await asyncio.sleep(3)  # the figure is reported every now and then
    return (store - ray.available_resources().get("object_store_memory", 0.0)) / size


def rows_of(
    size: int,
    bound: int,
    dtype: str,
    ours: Sequence[Round],
    plain: Sequence[float],
    memory: Sequence[float],
    copies: float,
) -> list[Row]:
    total, export = [found.total_s for found in ours], [found.export_s for found in ours]
    what = f"from {dtype}: publication to two engines, {size / 1e9:.2f} GB in {ours[0].chunks} chunks"
    is_cast = dtype != "bfloat16"
    seconds, whole = statistics.median(total), statistics.median(plain)
    over = [one / other for one, other in zip(total, plain, strict=True)]
    bare = [one / other for one, other in zip(total, memory, strict=True)]
    least = [one / (3 * other) for one, other in zip(total, memory, strict=True)]
    print(f"publication {total} s, of it export {export} s; one array through the store {plain} s; a copy in memory "
          f"{memory} s", flush=True)  # fmt: skip
    return [
        Row(f"{what}, s (reference: one array, copied by both, no cast, no digest)", seconds, whole),
        Row("the same, median of the rounds' ratios", statistics.median(over), goal="" if is_cast else "<= 2"),
        Row("over a copy of the bytes within one process", statistics.median(bare)),
        Row("over three such copies: into the store, and out of it twice", statistics.median(least)),
        Row("of it the learner: cast, digests and put, s", statistics.median(export)),
        Row("copies in the object store, two engines", copies, goal="<= 1.05"),
        Row("extra memory of the learner, chunks", max(found.learner_bytes for found in ours) / bound, goal="<= 2"),
        Row("extra memory of an engine, chunks", max(found.engine_bytes for found in ours) / bound, goal="<= 2"),
    ]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the published weights; nine times this is used")
    parser.add_argument("--chunk-mib", type=int, default=128, help="bound of a chunk")
    parser.add_argument("--only", choices=("adapters", "chunks"), help="one part")
    options = parser.parse_args()
    if options.gib < 0.25:
        parser.error(f"--gib got {options.gib}, expected at least 0.25: below, processes weigh more than weights")
    pin(CORES)
    rows = [] if options.only == "chunks" else adapter_rows(rounds=3 if options.quick else 7)
    if options.only == "adapters":
        report("publication", rows, options.json)
        return
    rows += digest_rows(quick=options.quick)
    for dtype in ("bfloat16", "float32"):
        size, bound = int(options.gib * (1 << 30)), options.chunk_mib << 20
        rows += transport_rows(size, bound, dtype=dtype, rounds=2 if options.quick else 5)
    report("publication", rows, options.json)


if __name__ == "__main__":
    main()
