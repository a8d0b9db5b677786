"""The digest tree of a policy version: a leaf for every tensor, and a root that identifies the version.

A leaf is the XXH3 digest (128 bits) of name, dtype, shape and bytes, which reads memory faster than a copy does. The
root is the BLAKE3 digest of all leaves in the order of their names, so neither the order nor the chunks in which
tensors travel change it. Leaves are computed apart, in threads and on any machine, and a difference names its tensor.
XXH3 detects faults of memory and transport; it does not protect against a person who chooses the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from solon.errors import AttestationError
from solon.records import Chunk, Leaf, Weights

MOST_THREADS = 4
"""More read memory no faster, and engines and learners compute beside."""
_THREADED_BYTES = 8 << 20
"""Less is hashed sooner than threads start."""


def leaf_digest(name: str, dtype: str, shape: Sequence[int], data: NDArray[np.uint8]) -> str:
    """Digest of one tensor, whose bytes are contiguous."""
    from xxhash import xxh3_128

    digest = xxh3_128(f"{name} {dtype} {tuple(shape)}\n".encode())
    digest.update(data.data)
    return digest.hexdigest()


def leaves_of(named: Sequence[tuple[str, str, tuple[int, ...]]], chunk: Chunk, *, number: int) -> tuple[Leaf, ...]:
    """The leaves of chunk `number`: (name, dtype, shape) and the bytes of each of its tensors, hashed in threads."""
    digests = _in_threads([(*one, data) for one, data in zip(named, chunk, strict=True)])
    return tuple(
        Leaf(name=name, dtype=dtype, shape=shape, digest=digest, chunk=number)
        for (name, dtype, shape), digest in zip(named, digests, strict=True)
    )


def root_of(leaves: Iterable[Leaf]) -> str:
    """Digest of a whole version; independent of the order of its leaves."""
    from blake3 import blake3

    digest = blake3()
    for leaf in sorted(leaves, key=lambda leaf: leaf.name):
        digest.update(f"{leaf.name} {leaf.dtype} {leaf.shape} {leaf.digest}\n".encode())
    return digest.hexdigest()


def verify(weights: Weights, engine: str) -> None:
    """Raises AttestationError, naming the first tensors that differ, unless the chunks hold what the manifest says."""
    known = f"engine {engine} received weights {weights.version}"
    if root_of(weights.leaves) != weights.fingerprint:
        raise AttestationError(
            f"{known} with digest {root_of(weights.leaves)[:12]}…, expected {weights.fingerprint[:12]}…; the manifest "
            "changed on its way, nothing was loaded"
        )
    if lost := [leaf.name for leaf in weights.leaves if leaf.chunk >= len(weights.chunks)]:
        raise AttestationError(f"{known} without {len(lost)} of its tensors ({lost[0]}); nothing was loaded")
    for number, leaves in enumerate(by_chunk(weights)):
        if wrong := _different(leaves, weights.chunks[number]):
            raise AttestationError(
                f"{known}, of which {len(wrong)} tensors in chunk {number} have other bytes than the learner sent "
                f"({', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}); they changed on their way, nothing "
                "was loaded"
            )


def by_chunk(weights: Weights) -> list[list[Leaf]]:
    """The leaves of each chunk; opens none."""
    found: list[list[Leaf]] = [[] for _ in range(len(weights.chunks))]
    for leaf in weights.leaves:
        if leaf.chunk < len(found):
            found[leaf.chunk].append(leaf)
    return found


def _different(leaves: Sequence[Leaf], chunk: Chunk) -> list[str]:
    if len(leaves) != len(chunk):
        return [leaf.name for leaf in leaves] or ["a tensor without a leaf"]
    digests = _in_threads([(leaf.name, leaf.dtype, leaf.shape, data) for leaf, data in zip(leaves, chunk, strict=True)])
    return [leaf.name for leaf, digest in zip(leaves, digests, strict=True) if leaf.digest != digest]


def _in_threads(tensors: Sequence[tuple[str, str, tuple[int, ...], NDArray[np.uint8]]]) -> list[str]:
    threads = min(MOST_THREADS, len(tensors), os.cpu_count() or 1)
    if threads < 2 or sum(data.nbytes for *_, data in tensors) < _THREADED_BYTES:
        return [leaf_digest(*one) for one in tensors]
    with ThreadPoolExecutor(threads) as pool:  # XXH3 leaves the interpreter to others
        return list(pool.map(lambda one: leaf_digest(*one), tensors))
