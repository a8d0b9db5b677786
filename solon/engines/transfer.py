"""How an engine takes a policy version, whatever carries its tensors.

    load(weights, loader, who="rollout-0", poison=...)

Today the object store carries them. Another way (vLLM's NCCL or IPC transfer, adapters alone) calls the same three
methods of the engine's `WeightLoader`, with tensors that it received itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from solon.engines.chunks import tensors_of
from solon.engines.digest_tree import by_chunk, verify
from solon.errors import EngineFailedError, PayloadLostError
from solon.records import Chunk, Leaf, Weights


class WeightLoader(Protocol):
    """Puts one version into a live model, between two of its steps. Used once."""

    def start(self, weights: Weights) -> None:
        """Check the manifest against the model and change nothing. Raises AttestationError when it does not fit."""
        ...

    def chunk(self, tensors: Sequence[tuple[str, Any]]) -> None:
        """Load some tensors, all of them in the end and each once. They may be views that are gone after this call: a
        loader keeps one only until the last tensor of a joined layer is there, which is in the same chunk."""
        ...

    def finish(self) -> None:
        """All tensors came. Raises AttestationError when a parameter has no new value."""
        ...


def load(
    weights: Weights,
    loader: WeightLoader,
    *,
    who: str,
    poison: Callable[[str], None],
    read: Callable[[Sequence[Leaf], Chunk], Sequence[tuple[str, Any]]] = tensors_of,
    together: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Verify all chunks, then load one after the other; each is dropped before the next is opened.

    Until the loader has started nothing is changed: a version that is damaged (AttestationError), lost
    (PayloadLostError) or of another model leaves the engine as it was. Whatever ends the loading later leaves a mixture
    of two versions, so `poison` is called with the reason: the engine must refuse all work from then on. who: the
    engine's name. together: a block that the ranks of an engine enter and leave together, and in which an error of
    one is raised in all: none loads what another one refuses.
    """
    with together():
        verify(weights, who)
        loader.start(weights)
    try:
        with together():
            for number, leaves in enumerate(by_chunk(weights)):
                loader.chunk(read(leaves, weights.chunks[number]))
            loader.finish()
    except BaseException as error:
        reason = f"loading weights {weights.version} failed half-way: {error}"
        poison(reason)
        if isinstance(error, PayloadLostError):  # the version can be sent again, but not to this engine
            raise EngineFailedError(f"engine {who}: {reason}") from error
        raise
