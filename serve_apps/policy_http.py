"""The policy service over HTTP: OpenAI's chat completions and completions, with the version of every answer."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve_apps.admission import Admission
from serve_apps.forwarding import ChatBody, TextBody, forwarded
from serve_apps.policy_service import PolicyService, ServedPolicy
from serve_apps.web import BEARER, UnknownNameError, new_app
from solon.client.wire import ModelCard, Models, PolicyHealth


def build_policy_app(service: PolicyService, *, starts: bool = True) -> FastAPI:
    """The application. starts: the policies are started and ended with it."""
    app = new_app("Solon policies", service, service.file, starts=starts)
    admission = Admission(service.file.max_waiting)
    guarded = APIRouter(prefix="/v1", dependencies=[Depends(BEARER)])

    @app.get("/health", response_model=PolicyHealth)
    async def health() -> Any:
        """Whether every policy is ready. Needs no key."""
        troubles = service.troubles()
        is_well = all(trouble == "ready" for trouble in troubles.values())
        versions = {one.name: one.version.label if one.version else "" for one in service.policies}
        body = PolicyHealth(status="ok" if is_well else "unavailable", policies=troubles, versions=versions)
        return body if is_well else JSONResponse(body.model_dump(mode="json"), status_code=503)

    @guarded.get("/models")
    async def models() -> Models:
        """The policies and comparisons."""
        return Models(data=_cards(service))

    @guarded.get("/models/{name}")
    async def model(name: str) -> ModelCard:
        """One of them."""
        found = next((card for card in _cards(service) if card.id == name), None)
        if found is None:
            known = ", ".join(card.id for card in _cards(service))
            raise UnknownNameError(f"got the model {name[:80]!r}, expected one of {known}", param="model")
        return found

    @guarded.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        return forwarded(service.find, admission, request, "/v1/chat/completions", body)

    @guarded.post("/completions")
    async def completions(body: TextBody, request: Request) -> Response:
        """Continue a text."""
        return forwarded(service.find, admission, request, "/v1/completions", body)

    app.include_router(guarded)
    return app


def _cards(service: PolicyService) -> list[ModelCard]:
    found = [_card(policy) for policy in service.policies]
    now = int(time.time())
    return found + [
        ModelCard(id=name, created=now, arms=list(one.arms), ready=True) for name, one in service.file.compare.items()
    ]


def _card(policy: ServedPolicy) -> ModelCard:
    version = policy.version
    return ModelCard(
        id=policy.name,
        created=int(time.time()),
        version=version.label if version else "",
        digest=version.digest if version else "",
        ready=not policy.trouble,
        swaps=policy.swaps,
    )
