"""vLLM's sampling parameters of requests, copied from validated prototypes: validating them again costs as much as a
token."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from solon.engines.base import Request


class Parameters:
    """Those of one engine. Import vLLM's settings first: this imports vLLM."""

    def __init__(self, stops: Sequence[int]) -> None:
        """stops: the tokens that end every answer."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        common = {"detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        self.options: dict[str, Any] = {"logprobs": 0, "seed": 0, **common}
        """Of every request for text."""
        self.stops = tuple(stops)
        self._of_text: dict[tuple[Any, ...], Any] = {}
        # Greedy requests skip the sampler's noise; their log-probs are those of temperature 1.
        self._verdict = SamplingParams(temperature=0.0, max_tokens=1, **common)
        self._by_labels: dict[tuple[int, ...], Any] = {}
        self._attesting = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, skip_reading_prefix_cache=True, **common
        )

    def of(self, request: Request) -> Any:
        """Those of a request for text or a verdict."""
        if request.label_ids:
            return self._of_labels(request.label_ids)
        params = copy(self._prototype(request))
        params.temperature = request.temperature
        params.max_tokens = request.max_tokens
        params.seed = request.seed
        return params

    def attesting(self) -> Any:
        """Those of a sequence that attests weights."""
        return copy(self._attesting)

    def clear(self) -> None:
        """Forget the prototypes of requests for text, after a change of `options` or `stops`."""
        self._of_text.clear()

    def _prototype(self, request: Request) -> Any:
        """For requests with these filters and ends."""
        # An answer begun by another engine has fewer tokens left to write.
        least = max(0, request.filters.min_tokens - request.written)
        key = (request.filters, least, request.stop_token_ids)
        params = self._of_text.get(key)
        if params is None:
            from vllm.sampling_params import SamplingParams

            filters = request.filters
            params = self._of_text[key] = SamplingParams(
                top_p=filters.top_p,
                top_k=filters.top_k,
                min_p=filters.min_p,
                min_tokens=least,
                max_tokens=max(1, least),
                stop_token_ids=[*self.stops, *request.stop_token_ids],
                **self.options,
            )
        return params

    def _of_labels(self, label_ids: tuple[int, ...]) -> Any:
        params = self._by_labels.get(label_ids)
        if params is None:
            params = copy(self._verdict)
            params.logprob_token_ids = list(label_ids)
            self._by_labels[label_ids] = params
        return params
