"""The routes that say what is served: models, experts, releases, and whether the service is well."""

from __future__ import annotations

from fastapi import FastAPI, Request

from routerretriever.client.schemas import ExpertState, Model, ModelsResponse, ServiceState, Status
from routerretriever.errors import UnknownName
from routerretriever.serving.http.pick import Pick


def add_state(api: FastAPI, pick: Pick) -> None:
    """Add the routes.

    Args:
        api: where to.
        pick: gives the release that answers a request.
    """

    @api.get("/v1/models")
    async def models(request: Request) -> ModelsResponse:
        """What may be named as a model, as OpenAI lists it."""
        known = pick(request).models
        return ModelsResponse(data=[Model(id=name, created=0) for name in known])

    @api.get("/v1/models/{name}")
    async def model(name: str, request: Request) -> Model:
        """One of them."""
        known = pick(request).models
        if name not in known:
            raise UnknownName("model", name, known)
        return Model(id=name, created=0)

    @api.get("/v1/experts")
    async def experts(request: Request) -> list[ExpertState]:
        """The experts that are served, and how the live traffic spreads over them."""
        return await pick(request).experts()

    @api.get("/v1/service")
    async def state(request: Request) -> ServiceState:
        """Which bundle is served, what was refused, and how far routing has drifted."""
        return await pick(request).state(request.state.access)

    @api.get("/healthz")
    async def health() -> Status:
        """Whether this process answers at all."""
        return Status(status="ok")

    @api.get("/readyz")
    async def ready(request: Request) -> Status:
        """Whether a bundle is loaded, which one, and of how many collections it knows."""
        chosen = pick(request)
        return Status(
            status="ok", details={"version": chosen.version, "collections": len(chosen.collections)}
        )
