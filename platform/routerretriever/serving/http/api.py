"""The HTTP API as an application. It knows nothing of Ray: any service in this process can be behind it."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

import routerretriever
from routerretriever.client.schemas import (
    ChangeResponse,
    DeleteRequest,
    DocumentIn,
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    ErrorResponse,
    ExpertState,
    Hit,
    Model,
    ModelsResponse,
    RouteRequest,
    RouteResponse,
    SearchRequest,
    SearchResponse,
    ServiceState,
    Status,
    UpsertRequest,
    Usage,
)
from routerretriever.config.serving import LimitSettings, ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import BadInput, Damaged, NotFound, Refused, RouterRetrieverError, Unavailable
from routerretriever.serving.http.auth import Doorkeeper
from routerretriever.serving.http.middleware import Gate, answer, problem

if TYPE_CHECKING:
    from routerretriever.serving.deployments.ingress import Service
    from routerretriever.serving.deployments.metrics import Metrics

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is no JSON."},
    401: {"model": ErrorResponse, "description": "No known token."},
    403: {"model": ErrorResponse, "description": "Not from here, or not with this token."},
    404: {"model": ErrorResponse, "description": "A name is not known; the message lists those that are."},
    405: {"model": ErrorResponse, "description": "Another method is meant."},
    409: {"model": ErrorResponse, "description": "Parts of the body contradict each other."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "A field is wrong; the message names it."},
    429: {"model": ErrorResponse, "description": "The token's rate is used up; see Retry-After."},
    503: {"model": ErrorResponse, "description": "Too much is waiting; see Retry-After."},
    504: {"model": ErrorResponse, "description": "It took too long and was given up."},
}


STATUS: dict[type[RouterRetrieverError], int] = {
    BadInput: 422,
    NotFound: 404,
    Refused: 409,
    Unavailable: 503,
    Damaged: 500,
}
"""HTTP status by kind of error; what is of no kind is a 500."""


def status_of(error: RouterRetrieverError) -> int:
    """The HTTP status that an error's kind stands for."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


class _Wrong(BadInput):
    """A field is against the service's limits."""

    def __init__(self, field: str, message: str, status: int = 422) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.status = status


def build_api(
    service: Callable[[], Service], settings: ServingSettings, doorkeeper: Doorkeeper, metrics: Metrics
) -> Gate:
    """The application.

    Args:
        service: gives the release that answers a request.
        settings: limits and the like.
        doorkeeper: says who is let in.
        metrics: where answers are counted.
    """
    limits = settings.limits
    api = FastAPI(title="RouterRetriever", version=routerretriever.__version__, responses=_ERRORS)

    def pick(request: Request) -> Service:
        chosen = service()
        request.state.bundle = chosen.version
        return chosen

    @api.post("/v1/search")
    async def search(body: SearchRequest, request: Request) -> SearchResponse:
        """Route one query, embed it by the chosen expert or mixture, and search a collection."""
        _check_length("query", body.query, limits.text_length)
        chosen, start = pick(request), time.perf_counter()
        collection, embedded, found = await chosen.search(body.query, body.collection, body.top_k, body.model)
        seconds = time.perf_counter() - start
        weights = embedded.weights
        response = SearchResponse(
            collection=collection,
            expert=max(weights, key=weights.__getitem__),
            weights=weights,
            results=[
                Hit(id=hit.document.id, score=hit.score, title=hit.document.title, text=hit.document.text)
                for hit in found
            ],
        )
        sent = _ready(response)
        sent.background = BackgroundTask(chosen.shadow, body, response, seconds)
        return sent

    @api.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> EmbeddingsResponse:
        """Embed queries, routed or by a named expert. Compatible with OpenAI's clients."""
        embedded = await pick(request).embed(_texts(body.input, limits), body.model)
        tokens = sum(one.tokens for one in embedded)
        pack = _base64 if body.encoding_format == "base64" else _floats
        response = EmbeddingsResponse.model_construct(
            data=[
                Embedding.model_construct(index=row, embedding=pack(one.vector))
                for row, one in enumerate(embedded)
            ],
            model=body.model,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )
        return _ready(response)

    @api.post("/v1/route")
    async def route(body: RouteRequest, request: Request) -> RouteResponse:
        """Say which experts would answer, and how sure the router is."""
        return RouteResponse(data=await pick(request).route(_texts(body.input, limits)))

    @api.get("/v1/models")
    async def models(request: Request) -> ModelsResponse:
        """What may be named as a model, as OpenAI lists it."""
        known = pick(request).models
        return ModelsResponse(data=[Model(id=name, created=0) for name in known])

    @api.get("/v1/experts")
    async def experts(request: Request) -> list[ExpertState]:
        """The experts that are served, and how the live traffic spreads over them."""
        return await pick(request).experts()

    @api.get("/v1/service")
    async def state(request: Request) -> ServiceState:
        """Which bundle is served, what was refused, and how far routing has drifted."""
        return await pick(request).state()

    @api.get("/v1/collections")
    async def collections(request: Request) -> list[str]:
        """The collections that can be searched."""
        return pick(request).collections

    @api.post("/v1/collections/{name}/documents")
    async def upsert(name: str, body: UpsertRequest, request: Request) -> ChangeResponse:
        """Add documents; those whose ids are there already are replaced."""
        if len(body.documents) > limits.documents:
            raise _Wrong("documents", f"{len(body.documents)} are more than {limits.documents}")
        for row, document in enumerate(body.documents):
            _check_length(f"documents.{row}.text", document.text, limits.document_length)
            _check_length(f"documents.{row}.title", document.title, limits.document_length)
        documents = {d.id: Document(d.id, d.title, d.text) for d in body.documents}
        if len(documents) < len(body.documents):
            raise _Wrong("documents", "an id comes twice", status=409)
        return await pick(request).upsert(name, list(documents.values()))

    @api.post("/v1/collections/{name}/documents/delete")
    async def delete(name: str, body: DeleteRequest, request: Request) -> ChangeResponse:
        """Delete documents by their ids."""
        if len(body.ids) > limits.documents:
            raise _Wrong("ids", f"{len(body.ids)} are more than {limits.documents}")
        return await pick(request).delete(name, body.ids)

    @api.get("/v1/collections/{name}/document")
    async def document(
        name: str, request: Request, document_id: Annotated[str, Query(alias="id", min_length=1)]
    ) -> DocumentIn:
        """One document as it is now."""
        found = await pick(request).document(name, document_id)
        return DocumentIn.model_construct(id=found.id, title=found.title, text=found.text)

    @api.get("/healthz")
    async def health() -> Status:
        """Whether this process answers at all."""
        return Status(status="ok")

    @api.get("/readyz")
    async def ready(request: Request) -> Status:
        """Whether queries can be answered: a bundle is loaded and its collections are there."""
        chosen = pick(request)
        return Status(status="ok", details={"version": chosen.version, "collections": chosen.collections})

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def playground() -> str:
        return files("routerretriever.serving.http").joinpath("playground.html").read_text(encoding="utf-8")

    _explain_errors(api)
    return Gate(api, settings.limits, doorkeeper, metrics)


def _explain_errors(api: FastAPI) -> None:
    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # ("body", "input", "list[...]", 0): what is behind the field's name says which kind was tried.
        where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        where = where or (["query"] if "query" in first["loc"] else ["body"])
        problems = list(dict.fromkeys(wrong["msg"].removeprefix("Value error, ") for wrong in error.errors()))
        named = where[0] if len(problems) > 1 else ".".join(part for part in where if "[" not in part)
        return problem(422, f"{named}: {'; '.join(problems)}", where[0])

    @api.exception_handler(RouterRetrieverError)
    async def known(request: Request, error: RouterRetrieverError) -> Response:
        status = error.status if isinstance(error, _Wrong) else status_of(error)
        if status >= 500 and not isinstance(error, Unavailable):
            raise error
        return problem(status, str(error), error.field, retry_after=1 if status == 503 else None)

    @api.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = f"{request.url.path}: {error.detail}"
        return problem(error.status_code, message, headers=dict(error.headers or {}))

    @api.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> Response:
        raise error  # the gate answers, and names the request's id


def _texts(given: str | Sequence[str], limits: LimitSettings) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) > limits.texts:
        raise _Wrong("input", f"{len(texts)} texts are more than {limits.texts}")
    for row, text in enumerate(texts):
        _check_length(f"input.{row}", text, limits.text_length)
    return texts


def _check_length(field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise _Wrong(field, f"{len(text)} characters are more than {longest}")


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _floats(vector: Any) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _ready(response: Any) -> Any:
    """A response that is valid by its making: FastAPI would check it again, number by number."""
    return answer(200, response)
