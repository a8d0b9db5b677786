"""The plain engine: a Transformers model, its key-value cache, and one forward pass per step.

It runs wherever torch runs and is short, so it is the fallback where vLLM cannot be installed and the baseline for
vLLM. Rows of a batch are padded on the left, so that the newest token of every row is in the last column; new requests
are prefilled separately and then joined.

Shapes: B rows, T cached positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from solon.engines.admission import check_request
from solon.engines.base import Completion, EngineConfig, Request
from solon.engines.checkpoint import is_quantised, stop_token_ids
from solon.engines.chunks import SentTensors
from solon.engines.device import torch_device
from solon.engines.device_turns import device_key, turn_on_device
from solon.engines.digest import digest_tensors
from solon.engines.failures import RAISED_BY_LIBRARIES, computing
from solon.engines.filters import FLOOR, allowed_tokens
from solon.engines.kv_batch import KvBatch
from solon.engines.live_values import same_values
from solon.engines.progress import NOTHING, Progress, news
from solon.engines.stops import is_stopped
from solon.engines.tokens import ChatTokenizer
from solon.engines.transfer import load
from solon.engines.transformers_model import ModelLoader, live_places, load_model, without_value
from solon.errors import EngineFailedError, InputError
from solon.records import WeightCheck, Weights

if TYPE_CHECKING:
    import torch

_PREFILL_TOKENS = 16384
"""Most prompt tokens, including padding, prefilled in one forward pass."""


@dataclass(slots=True, eq=False)
class _Row(Progress):
    generator: torch.Generator = None  # type: ignore[assignment]


class TransformersEngine:
    """Implements `Engine`. Raises InputError when the model cannot be loaded."""

    def __init__(self, config: EngineConfig, *, name: str) -> None:
        import torch

        self.name = name
        self.version = 0
        self.config = config
        self.tokenizer = ChatTokenizer.load(config.model, trust_remote_code=config.trust_remote_code, settings=config)
        self._quantised = is_quantised(config) or config.quantization != "none"
        self._device = torch.device(torch_device(config.device, name))
        with turn_on_device(device_key() if self._device.type == "cuda" else ""):
            self._model = load_model(config, self._device)
        self._vocab_size = int(self._model.get_input_embeddings().weight.shape[0])
        self._stops = frozenset(stop_token_ids(config, self.tokenizer.eos_token_id))
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._batch = KvBatch(self._model)
        self._broken: str | None = None

    def add(self, request: Request) -> None:
        """See `Engine.add`."""
        import torch

        self._require_usable()
        check_request(
            request,
            max_model_len=self.config.max_model_len,
            vocab_size=self._vocab_size,
            model=self.config.model,
            name=self.tokenizer.name_of,
        )
        self._waiting.append(_Row(request, generator=torch.Generator().manual_seed(request.seed)))

    def step(self) -> list[Completion]:
        """See `Engine.step`."""
        import torch

        self._require_usable()
        with torch.inference_mode(), self._computing("decoding"):
            return self._step()

    def has_work(self) -> bool:
        """See `Engine.has_work`."""
        return bool(self._waiting or self._rows)

    def unfinished(self, after: Mapping[str, int] = NOTHING) -> list[Completion]:
        """See `Engine.unfinished`."""
        return news(self._rows, after)

    def abort(self, request_ids: Sequence[str]) -> None:
        """See `Engine.abort`."""
        gone = set(request_ids)
        self._waiting = deque(row for row in self._waiting if row.request.request_id not in gone)
        keep = [i for i, row in enumerate(self._rows) if row.request.request_id not in gone]
        self._keep(keep)

    def load_weights(self, weights: Weights) -> None:
        """Replaces all weights between two steps; running requests keep their cached keys and values.

        Raises InputError for a quantised model, AttestationError when the weights are not the published ones or do not
        fit the model, PayloadLostError when they are lost; nothing is changed then. Raises EngineFailedError when
        loading fails half-way, after which the engine refuses all work.
        """
        self._require_usable()
        if self._quantised:
            raise InputError(
                f"engine {self.name} runs a quantised model, which cannot take new weights; "
                "quantise judges, and let the policy's engines load the unquantised checkpoint"
            )
        with self._computing(f"loading weights {weights.version}"):
            load(weights, ModelLoader(self._model), who=self.name, poison=self._poison)
        self.version = weights.version

    def checksum(self) -> str:
        """See `Engine.checksum`."""
        with self._computing("summing up its weights"):
            return digest_tensors(self._model.named_parameters())

    @property
    def dtype(self) -> str:
        """See `Engine.dtype`."""
        return str(self._model.dtype).removeprefix("torch.")

    def check_weights(self, weights: Weights) -> WeightCheck:
        """See `Engine.check_weights`."""
        self._require_usable()
        places = live_places(self._model)
        sent = SentTensors(weights)
        known = [name for name in sent if name in places]
        uncompared = tuple(without_value(sent, self._model.state_dict(), places))
        return WeightCheck(
            dtype=self.dtype,
            compared=len(known),
            stale=tuple(name for name in known if not same_values(places[name], sent[name])),
            unknown=uncompared,
            uncompared=uncompared,
        )

    def sequence_logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `Engine.sequence_logprobs`."""
        import torch

        self._require_usable()
        longest = max((len(sequence) for sequence in sequences), default=0)
        if longest < 2:
            return [[] for _ in sequences]
        ids_BT = torch.tensor([[*s, *[0] * (longest - len(s))] for s in sequences], device=self._device)
        with torch.inference_mode(), self._computing("reading log-probs of the attestation"):
            # Padding is on the right and attention is causal: no real token attends to it.
            logits_BTV = self._model(ids_BT, use_cache=False).logits[:, :-1]
            logprobs_BT = torch.log_softmax(logits_BTV.float(), -1).gather(-1, ids_BT[:, 1:, None])[..., 0].tolist()
        return [row[: max(len(s) - 1, 0)] for row, s in zip(logprobs_BT, sequences, strict=True)]

    def close(self) -> None:
        """Frees the model and its cache."""
        import torch

        self._broken = "it was closed"
        self._rows, self._model, self._batch = [], None, None  # type: ignore[assignment]
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _step(self) -> list[Completion]:
        import torch

        finished: list[Completion] = []
        decoded_BV = self._batch.decode([row.tokens[-1] for row in self._rows]) if self._rows else None
        decoding = self._rows
        joined = self._admit(finished)
        rows = decoding + [row for _, row in joined]
        if rows:
            logits = [decoded_BV] if decoded_BV is not None else []
            self._sample(torch.cat([*logits, *(logits_V[None] for logits_V, _ in joined)]), rows)
        self._rows = rows
        self._drop_finished(finished)
        return finished

    def _admit(self, finished: list[Completion]) -> list[tuple[torch.Tensor, _Row]]:
        """Prefills waiting requests that fit. Verdicts finish here; the others join the batch, with their logits."""
        joined: list[tuple[torch.Tensor, _Row]] = []
        while chunk := self._next_chunk(len(self._rows) + len(joined)):
            generating = [i for i, row in enumerate(chunk) if not row.request.label_ids]
            prompts = [row.request.prompt_token_ids for row in chunk]
            logits_BV = self._batch.prefill(prompts, keep=generating)
            joined += [(logits_BV[i], chunk[i]) for i in generating]
            if len(generating) < len(chunk):
                finished += self._verdicts(logits_BV, chunk)
        return joined

    def _next_chunk(self, running: int) -> list[_Row]:
        chunk: list[_Row] = []
        longest = 0
        while self._waiting and running + len(chunk) < self.config.max_running:
            longest = max(longest, len(self._waiting[0].request.prompt_token_ids))
            if chunk and longest * (len(chunk) + 1) > _PREFILL_TOKENS:
                break
            chunk.append(self._waiting.popleft())
        return chunk

    def _verdicts(self, logits_BV: torch.Tensor, chunk: list[_Row]) -> list[Completion]:
        import torch

        logprobs_BV = torch.log_softmax(logits_BV.float(), -1).cpu()
        verdicts = []
        for row, logprobs_V in zip(chunk, logprobs_BV, strict=True):
            if row.request.label_ids:
                top = int(logprobs_V.argmax())
                self._append(row, top, float(logprobs_V[top]))
                row.label_logprobs = tuple(logprobs_V[list(row.request.label_ids)].tolist())
                verdicts.append(row.completion("length"))
        return verdicts

    def _sample(self, logits_BV: torch.Tensor, rows: list[_Row]) -> None:
        import torch

        temperatures = [row.request.temperature for row in rows]
        greedy_B = torch.tensor([t < 1e-5 for t in temperatures], device=self._device)
        scale_B = torch.tensor([t if t >= 1e-5 else 1.0 for t in temperatures], device=self._device)
        logits_BV = self._filtered(logits_BV.float() / scale_B[:, None], rows)
        logprobs_BV = torch.log_softmax(logits_BV, -1)
        # One uniform number per row, from the request's own generator: the draw does not depend on the batch.
        uniform_B = torch.cat([torch.rand(1, generator=r.generator, dtype=torch.float64) for r in rows])
        cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
        threshold_B1 = uniform_B.to(self._device)[:, None] * cumulative_BV[:, -1:]
        drawn_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True)[:, 0]
        token_B = torch.where(greedy_B, logprobs_BV.argmax(-1), drawn_B.clamp(max=logits_BV.shape[-1] - 1))
        logprob_B = logprobs_BV.gather(-1, token_B[:, None])[:, 0]
        for row, token, logprob in zip(rows, token_B.tolist(), logprob_B.tolist(), strict=True):
            self._append(row, token, logprob)

    def _filtered(self, logits_BV: torch.Tensor, rows: list[_Row]) -> torch.Tensor:
        """Logits with those of excluded tokens at the floor."""
        import torch

        for filters in {row.request.filters for row in rows if row.request.filters}:
            chosen = [index for index, row in enumerate(rows) if row.request.filters == filters]
            place_N = torch.tensor([rows[i].request.written + len(rows[i].tokens) for i in chosen])
            ends = self._stops.union(*(rows[i].request.stop_token_ids for i in chosen))
            allowed_NV = allowed_tokens(
                logits_BV[chosen], filters, place_N=place_N.to(self._device), end_ids=sorted(ends)
            )
            logits_BV[chosen] = logits_BV[chosen].masked_fill(~allowed_NV, FLOOR)
        return logits_BV

    def _append(self, row: _Row, token: int, logprob: float) -> None:
        row.tokens.append(token)
        row.logprobs.append(logprob)
        row.versions.append(self.version)

    def _drop_finished(self, finished: list[Completion]) -> None:
        keep = []
        for i, row in enumerate(self._rows):
            request, last = row.request, row.tokens[-1]
            if last in self._stops or last in request.stop_token_ids or is_stopped(self.tokenizer, request, row.tokens):
                finished.append(row.completion("stop"))
            elif len(row.tokens) >= request.max_tokens:
                finished.append(row.completion("length"))
            else:
                keep.append(i)
        self._keep(keep)

    def _keep(self, keep: list[int]) -> None:
        if len(keep) < len(self._rows):
            self._rows = [self._rows[i] for i in keep]
            self._batch.select(keep)

    def _poison(self, reason: str) -> None:
        self._broken = reason

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise EngineFailedError(f"engine {self.name} is unusable: {self._broken}; start a new one")

    def _computing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return computing(f"engine {self.name}", what, kinds=RAISED_BY_LIBRARIES)
