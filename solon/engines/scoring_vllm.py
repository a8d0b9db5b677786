"""Rewards by vLLM's pooling runner, inside this process, with its prefix cache."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence

from solon.engines.base import EngineConfig
from solon.engines.failures import computing
from solon.engines.scoring import Tokens
from solon.engines.tokens import ChatTokenizer
from solon.engines.vllm_build import TURN, prepare_process, start_vllm, stop_vllm
from solon.errors import InputError


class VllmScoring:
    """Implements `ScoringEngine`."""

    def __init__(self, config: EngineConfig, *, name: str) -> None:
        self.name = name
        if config.tensor_parallel > 1:
            raise InputError(
                f"tensor_parallel = {config.tensor_parallel} with the reward model {config.model!r}, expected a "
                "language model; set 1"
            )
        prepare_process(config)
        self.tokenizer = ChatTokenizer.load(config.model, trust_remote_code=config.trust_remote_code, settings=config)
        self._llm = start_vllm(config, pooling=True)
        self._client = self._llm.engine_core
        self.max_tokens = int(self._llm.model_config.max_model_len)
        self._ids = itertools.count()

        from vllm.pooling_params import PoolingParams
        from vllm.v1.engine import EngineCoreRequest

        # With one label vLLM would return the sigmoid of the reward.
        self._params = PoolingParams(task="classify", use_activation=False)
        self._params.verify(self._llm.model_config)
        self._request_type = EngineCoreRequest

    @property
    def dtype(self) -> str:
        """See `ScoringEngine`."""
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    def score(self, sequences: Sequence[Tokens]) -> list[float]:
        """See `ScoringEngine`."""
        waiting, found = {}, [0.0] * len(sequences)
        with TURN, computing(f"engine {self.name}", "scoring"):
            for row, ids in enumerate(sequences):
                request = str(next(self._ids))
                waiting[request] = row
                self._client.add_request(
                    self._request_type(
                        request_id=request,
                        prompt_token_ids=list(ids),
                        mm_features=None,
                        sampling_params=None,
                        pooling_params=self._params.clone(),
                        arrival_time=float(request),
                        lora_request=None,
                        cache_salt=None,
                        data_parallel_rank=None,
                    )
                )
            while waiting:
                for output in self._client.get_output().outputs:
                    if output.pooling_output is not None:
                        found[waiting.pop(output.request_id)] = float(output.pooling_output.reshape(-1)[0])
        return found

    def close(self) -> None:
        """Free the model."""
        if self._llm is not None:
            stop_vllm(self._llm)
        self._llm = self._client = None
        gc.collect()
