"""The HTTP API as an ASGI application, for any service in this process. It knows nothing of Ray."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import routerretriever
from routerretriever.client.schemas import (
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ExpertState,
    Model,
    ModelsResponse,
    RouteRequest,
    RouteResponse,
    SearchRequest,
    SearchResponse,
    ServiceState,
    Status,
    Usage,
)
from routerretriever.config.serving import LimitSettings, ServingSettings
from routerretriever.datasets.feedback import FeedbackLog
from routerretriever.errors import UnknownName, WrongField
from routerretriever.serving.http.auth import Authenticator
from routerretriever.serving.http.collections import add_collections
from routerretriever.serving.http.errors import RESPONSES, answer, check_length, explain_errors
from routerretriever.serving.http.feedback import add_feedback, refuse_feedback
from routerretriever.serving.http.middleware import Middleware
from routerretriever.serving.http.pages import add_pages
from routerretriever.serving.ports import MetricsPort
from routerretriever.serving.service import Service
from routerretriever.types import DOCUMENT_MODEL, ROUTED_MODEL


def build_api(
    service: Callable[[Sequence[str] | None], Service],
    settings: ServingSettings,
    authenticator: Authenticator,
    metrics: MetricsPort,
    feedback: FeedbackLog | None = None,
) -> ASGIApp:
    """The application.

    Args:
        service: gives the release that answers a request; see ``Replica.service``.
        settings: limits and the like.
        authenticator: says who is let in.
        metrics: where answers are counted.
        feedback: where what users do is kept, if the settings say that it is.
    """
    limits = settings.limits
    api = FastAPI(
        title="RouterRetriever",
        version=routerretriever.__version__,
        responses=RESPONSES,
        docs_url=None,
        redoc_url=None,
    )

    def pick(request: Request, collections: Sequence[str] | None = ()) -> Service:
        chosen = service(collections)
        request.state.bundle = chosen.version
        return chosen

    @api.post("/v1/search")
    async def search(body: SearchRequest, request: Request) -> SearchResponse:
        """Route a query, embed it by the chosen expert or mixture, and search by its vector and its words."""
        check_length("query", body.query, limits.text_length)
        named = body.collections or (body.collection and [body.collection])
        chosen, start = pick(request, named or None), time.perf_counter()
        request.state.allow(chosen.tokens([body.query], body.model))
        response = await chosen.search(body, request.state.access)
        seconds = time.perf_counter() - start
        sent = _ready(response.model_copy(update={"request": request.state.id}))
        sent.background = BackgroundTask(chosen.shadow, body, request.state.access, response, seconds)
        return sent

    @api.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        """Embed queries, routed or by a named expert. Compatible with OpenAI's clients."""
        texts = _texts(body.input, limits)
        chosen = pick(request)
        own, *smaller = chosen.dimensions
        length = body.dimensions or own
        if length not in chosen.dimensions:
            may = f"may be cut to {', '.join(map(str, smaller))}" if smaller else "cannot be cut"
            raise WrongField("dimensions", f"found {length}; vectors of this encoder have {own} and {may}")
        model = _model(body)
        request.state.allow(chosen.tokens(texts, model))
        embedded = await chosen.embed(texts, model, request.state.access)
        truncated = [row for row, one in enumerate(embedded) if one.truncated]
        if truncated and (body.truncate == "NONE" if body.truncate else limits.refuse_truncated):
            raise WrongField(f"input.{truncated[0]}", "is longer than the encoder reads")
        tokens = sum(one.tokens for one in embedded)
        pack = _base64 if body.encoding_format == "base64" else _floats
        response = EmbeddingsResponse.model_construct(
            data=[
                Embedding.model_construct(
                    index=row, embedding=pack(one.vector if length == own else chosen.cut(one.vector, length))
                )
                for row, one in enumerate(embedded)
            ],
            model=body.model,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
            truncated=truncated,
        )
        return _ready(response)

    @api.post("/v1/route")
    async def route(body: RouteRequest, request: Request) -> RouteResponse:
        """Say which experts would answer, and how sure the router is."""
        texts = _texts(body.input, limits)
        chosen = pick(request, [] if body.collection is None else [body.collection])
        request.state.allow(chosen.tokens(texts))
        return RouteResponse(data=await chosen.route(texts, request.state.access, body.collection))

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

    if settings.feedback and feedback:
        add_feedback(api, pick, settings.feedback, feedback)
    else:
        refuse_feedback(api)
    add_collections(api, pick, limits)
    add_pages(api)
    explain_errors(api)
    _declare_token(api)
    app = Middleware(api, settings, authenticator, metrics)
    if not settings.cors_origins:
        return app
    # Outermost: a browser asks for leave without a token.
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "X-Request-Id", "X-Bundle-Version"],
    )


def _declare_token(api: FastAPI) -> None:
    """Say in the OpenAPI schema where a token goes, so that clients made of it can send one."""
    made = api.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}, {}]  # by {} a service without tokens takes none
        return schema

    api.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation does


def _model(body: EmbeddingsRequest) -> str:
    """The model that a request means, by its name or by what it says its texts are."""
    if body.input_type is None:
        return body.model
    is_document = body.input_type in ("document", "search_document", "passage")
    if is_document and body.model not in (ROUTED_MODEL, DOCUMENT_MODEL):
        raise WrongField("input_type", f"found {body.input_type!r}; documents are embedded by the base alone")
    if not is_document and body.model == DOCUMENT_MODEL:
        told = f"found {body.input_type!r}; {DOCUMENT_MODEL!r} embeds documents, {ROUTED_MODEL!r} does both"
        raise WrongField("input_type", told)
    return DOCUMENT_MODEL if is_document else body.model


def _texts(given: str | Sequence[str], limits: LimitSettings) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) > limits.texts:
        raise WrongField("input", f"{len(texts)} texts are more than {limits.texts}")
    for row, text in enumerate(texts):
        check_length(f"input.{row}", text, limits.text_length)
    return texts


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _floats(vector: Any) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _ready(response: Any) -> Any:
    """A response that is valid by its making: FastAPI would check it again, number by number."""
    return answer(200, response)
