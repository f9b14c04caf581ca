"""``/v1/feedback``: what users did with results. Only there if ``serving.feedback`` is set."""

from __future__ import annotations

import asyncio
import time
import uuid

from fastapi import FastAPI, Request, Response

from routerretriever.client.schemas import FeedbackRequest, FeedbackResponse, ForgetRequest, ForgetResponse
from routerretriever.config.serving import FeedbackSettings
from routerretriever.datasets.feedback import Feedback, FeedbackLog
from routerretriever.errors import NotFound, WrongField
from routerretriever.serving.access import Access
from routerretriever.serving.http.errors import Contradiction, check_count, check_length
from routerretriever.serving.http.pick import Pick


def add_feedback(api: FastAPI, pick: Pick, settings: FeedbackSettings, log: FeedbackLog) -> None:
    """Add the routes.

    Args:
        api: the application.
        pick: gives the release that answers a request about some collections.
        settings: limits.
        log: where reports are kept.
    """

    @api.post("/v1/feedback")
    async def feedback(body: FeedbackRequest, request: Request) -> FeedbackResponse:
        """Keep what a user clicked and marked. It is on disk when this answers."""
        access: Access = request.state.access
        await pick(request, [body.collection]).require_readable(body.collection, access)
        for field in ("shown", "clicked", "relevant", "not_relevant"):
            check_count(field, getattr(body, field), settings.documents)
        if missing := [document for document in body.clicked if document not in body.shown]:
            raise WrongField("clicked", f"{missing[0]!r} is not among those shown")
        if both := sorted(set(body.relevant) & set(body.not_relevant)):
            raise Contradiction("relevant", f"{both[0]!r} is marked not_relevant too")
        check_length("query", body.query, settings.query_length)
        report = Feedback(
            id=body.id or uuid.uuid4().hex,
            time=time.time(),
            client=access.client,
            user=body.user,
            collection=body.collection,
            query=body.query,
            shown=tuple(body.shown),
            clicked=tuple(body.clicked),
            relevant=tuple(body.relevant),
            not_relevant=tuple(body.not_relevant),
            request=body.request,
        )
        await asyncio.to_thread(log.append, report)
        return FeedbackResponse(id=report.id)

    @api.post("/v1/feedback/delete")
    async def forget(body: ForgetRequest, request: Request) -> ForgetResponse:
        """Delete what a user has reported on the collections that the token may change."""
        access: Access = request.state.access
        return ForgetResponse(deleted=await asyncio.to_thread(log.forget, body.user, access.writes))


def refuse_feedback(api: FastAPI) -> None:
    """Add the routes where feedback is off: they say what turns it on."""

    async def off(_: Request) -> Response:
        raise NotFound("this service keeps no feedback; serving.feedback: {} in its recipe turns it on")

    for path in ("/v1/feedback", "/v1/feedback/delete"):
        api.add_route(path, off, methods=["POST"], include_in_schema=False)
