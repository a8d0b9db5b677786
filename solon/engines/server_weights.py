"""New weights for a running vLLM server: a route of its own, and what its workers do.

    POST /v1/solon/weights {"path": "...", "label": "policy@step-000020"}

vLLM's server imports both classes by name (`--middleware`, `--worker-extension-cls`). The route needs the key of the
server. Call it while nothing is in flight: a running request would mix two policies.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_log = logging.getLogger(__name__)
ROUTE = "/v1/solon/weights"
MIDDLEWARE = f"{__name__}.NewWeights"
WORKER = f"{__name__}.WorkerWeights"
KEY = "VLLM_API_KEY"
"""Variable of the environment with the key of the server."""


class NewWeights:
    """Middleware that answers `ROUTE` and passes everything else on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._key = os.environ.get(KEY, "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != ROUTE:
            await self._app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        request = Request(scope, receive)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not self._key or not hmac.compare_digest(given.encode(), self._key.encode()):
            reply = JSONResponse({"error": {"message": "the key is missing or wrong"}}, status_code=401)
        else:
            try:
                asked = json.loads(await request.body())
                await _load(scope["app"].state, asked["path"], asked["label"])
                reply = JSONResponse({})
            except Exception as error:  # an answer, so that the connection stays usable
                _log.exception("new weights were not loaded")
                reply = JSONResponse({"error": {"message": str(error)}}, status_code=500)
        await reply(scope, receive, send)


async def _load(state: Any, path: str, label: str) -> None:
    engine = state.engine_client
    await engine.collective_rpc("load_checkpoint", args=(path,))
    # Blocks of a prefix were computed with the weights before.
    if not await engine.reset_prefix_cache():
        raise RuntimeError("the prefix cache is in use, expected no request in flight")
    for serving in list(vars(state).get("_state", {}).values()):
        if hasattr(serving, "system_fingerprint"):
            serving.system_fingerprint = label


class WorkerWeights:
    """Added to vLLM's worker class."""

    model_runner: Any
    vllm_config: Any

    def load_checkpoint(self, path: str) -> None:
        """Load the weights of a model directory of the same architecture. Raises AttestationError when it lacks
        parameters; the worker is then unusable until it loads another one."""
        from vllm.model_executor.model_loader import get_model_loader

        from solon.engines.vllm_weights import load_into

        model, config = self.model_runner.get_model(), self.vllm_config.model_config
        config.model, config.revision = path, None
        loader: Any = get_model_loader(self.vllm_config.load_config)
        load_into(model, self.vllm_config, loader.get_all_weights(config, model), source=path)
