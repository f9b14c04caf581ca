"""The routes of collections and their documents."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import ValidationError

from routerretriever.client.schemas import (
    HALF_PAIR,
    Calibrated,
    CalibrateRequest,
    ChangeResponse,
    CollectionIn,
    CollectionState,
    DeleteRequest,
    DocumentOut,
    DocumentsResponse,
    PassageOptions,
    Status,
    UpsertRequest,
)
from routerretriever.config.serving import LimitSettings
from routerretriever.datasets.collection import Document
from routerretriever.datasets.settings import PassageSettings
from routerretriever.errors import WrongField
from routerretriever.index.documents import StoredDocument
from routerretriever.serving.http.errors import Contradiction, check_count, check_length
from routerretriever.serving.http.pick import Pick

_DEEPEST = 8
"""Levels of lists and objects in metadata."""


def add_collections(api: FastAPI, pick: Pick, limits: LimitSettings) -> None:
    """Add the routes.

    Args:
        api: where to.
        pick: gives the release that answers a request about some collections.
        limits: bounds on one request.
    """

    @api.get("/v1/collections")
    async def collections(request: Request) -> list[CollectionState]:
        """The collections that can be searched."""
        return await pick(request).collection_states(request.state.access)

    @api.post("/v1/collections")
    async def create(body: CollectionIn, request: Request) -> CollectionState:
        """Create a collection without documents; it can be searched with all experts at once.

        With `passages`, documents are cut when they are added. That cannot be changed later.
        """
        check_passages(body.passages)
        return await pick(request, [body.name]).create(body, request.state.access)

    @api.get("/v1/collections/{name}")
    async def collection(name: str, request: Request) -> CollectionState:
        """One collection."""
        return await pick(request, [name]).collection_state(name, request.state.access)

    @api.delete("/v1/collections/{name}")
    async def drop(name: str, request: Request) -> Status:
        """Delete a collection that was created here, with its documents."""
        await pick(request, [name]).drop(name, request.state.access)
        return Status(status="deleted")

    @api.post("/v1/collections/{name}/calibrate")
    async def calibrate(name: str, body: CalibrateRequest, request: Request) -> Calibrated:
        """Learn how much words count beside vectors in a collection that was created here."""
        check_count("queries", body.queries, limits.texts)
        for row, judged in enumerate(body.queries):
            check_length(f"queries.{row}.query", judged.query, limits.text_length)
            check_count(f"queries.{row}.relevant", judged.relevant, limits.documents)
        chosen = pick(request, [name])
        request.state.allow(chosen.tokens([judged.query for judged in body.queries]))
        return await chosen.calibrate(name, body.queries, request.state.access)

    @api.get("/v1/collections/{name}/documents", response_model_exclude_unset=True)
    async def documents(
        name: str,
        request: Request,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> DocumentsResponse:
        """Whole documents by page, however they are cut."""
        held, page = await pick(request, [name]).documents(name, offset, limit, request.state.access)
        return DocumentsResponse.model_construct(total=held.documents, data=[_shown(each) for each in page])

    @api.post("/v1/collections/{name}/documents")
    async def upsert(name: str, body: UpsertRequest, request: Request) -> ChangeResponse:
        """Add documents; those whose ids are there already are replaced, with all of their passages."""
        check_count("documents", body.documents, limits.documents)
        for row, document in enumerate(body.documents):
            if (length := len(document.title) + len(document.text)) > limits.document_length:
                told = f"title and text have {length} characters, more than {limits.document_length}"
                raise WrongField(f"documents.{row}", told)
            check_metadata(f"documents.{row}.metadata", document.metadata, limits.metadata_bytes)
        documents: dict[str, Document] = {}
        for row, d in enumerate(body.documents):
            if d.id in documents:
                raise Contradiction(f"documents.{row}.id", f"{d.id!r} comes twice; send each document once")
            documents[d.id] = Document(d.id, d.title, d.text, d.metadata or None)
        state = request.state
        return await pick(request, [name]).upsert(name, list(documents.values()), state.access, state.allow)

    @api.post("/v1/collections/{name}/documents/delete")
    async def delete(name: str, body: DeleteRequest, request: Request) -> ChangeResponse:
        """Delete documents by their ids, with all of their passages."""
        check_count("ids", body.ids, limits.documents)
        return await pick(request, [name]).delete(name, body.ids, request.state.access)

    @api.get("/v1/collections/{name}/document", response_model_exclude_unset=True)
    async def document(
        name: str, request: Request, document_id: Annotated[str, Query(alias="id", min_length=1)]
    ) -> DocumentOut:
        """One document as it is now, whole."""
        return _shown(await pick(request, [name]).document(name, document_id, request.state.access))


def check_passages(options: PassageOptions | None) -> None:
    """Raise ``Contradiction`` if documents cannot be cut so."""
    if options is None:
        return
    try:
        PassageSettings.model_validate(options.model_dump())
    except ValidationError as error:
        raise Contradiction("passages", error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def check_metadata(field: str, metadata: dict[str, Any] | None, most: int) -> None:
    """Raise ``WrongField`` if metadata is too large, too deep, or holds what JSON cannot."""
    if metadata is None:
        return
    level: list[tuple[str, Any]] = [(field, metadata)]
    for _ in range(_DEEPEST + 1):
        inner: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, dict):
                inner += [(f"{place}.{name}", each) for name, each in value.items()]
            elif isinstance(value, list):
                inner += [(f"{place}.{row}", each) for row, each in enumerate(value)]
            elif isinstance(value, float) and not math.isfinite(value):
                raise WrongField(place, f"found {value}, which is no number in JSON")
        level = inner
        if not level:
            break
    else:
        raise WrongField(field, f"lists and objects in it are deeper than {_DEEPEST} levels")
    try:
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise WrongField(field, HALF_PAIR) from None
    if size > most:
        raise WrongField(field, f"{size} bytes are more than {most}")


def _shown(stored: StoredDocument) -> DocumentOut:
    values = stored.document._asdict()
    if stored.passages is not None:
        values["passage_count"] = stored.passages
    return DocumentOut.model_construct(**values)
