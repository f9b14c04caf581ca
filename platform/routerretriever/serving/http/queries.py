"""The routes that queries take: search, embeddings, and what the router says of them."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.background import BackgroundTask

from routerretriever.client.schemas import (
    Embedding,
    EmbeddingsRequest,
    EmbeddingsResponse,
    RouteRequest,
    RouteResponse,
    SearchRequest,
    SearchResponse,
    Usage,
)
from routerretriever.config.serving import LimitSettings
from routerretriever.errors import UnknownName, WrongField
from routerretriever.serving.http.errors import answer, check_length
from routerretriever.serving.http.pick import Pick
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL


def add_queries(api: FastAPI, pick: Pick, limits: LimitSettings) -> None:
    """Add the routes.

    Args:
        api: where to.
        pick: gives the release that answers a request about some collections.
        limits: bounds on one request.
    """

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
        model = _model(body, chosen.models)
        request.state.allow(chosen.tokens(texts, model))
        embedded = await chosen.embed(texts, model, request.state.access)
        truncated = [row for row, one in enumerate(embedded) if one.truncated]
        if truncated and (body.truncate == "NONE" if body.truncate else limits.refuse_truncated):
            told = "is longer than the encoder reads; send it in parts, or `truncate: END` to have it cut"
            raise WrongField(f"input.{truncated[0]}", told)
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


def _model(body: EmbeddingsRequest, known: Sequence[str]) -> str:
    """The model that a request means, by its name or by what it says its texts are."""
    if body.input_type is None:
        return body.model
    is_document = body.input_type in ("document", "search_document", "passage")
    if is_document and body.model not in (ROUTED_MODEL, BASE, DOCUMENT_MODEL):
        if body.model not in known:
            raise UnknownName("model", body.model, known)
        told = f"found {body.input_type!r}; no expert embeds documents; {ROUTED_MODEL!r} and {BASE!r} do"
        raise WrongField("input_type", told)
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
