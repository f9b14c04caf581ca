"""The HTTP API as an ASGI application, for any service in this process. It knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import routerretriever
from routerretriever.config.serving import ServingSettings
from routerretriever.datasets.feedback import FeedbackLog
from routerretriever.serving.http.auth import Authenticator
from routerretriever.serving.http.collections import add_collections
from routerretriever.serving.http.errors import RESPONSES, explain_errors
from routerretriever.serving.http.feedback import add_feedback, refuse_feedback
from routerretriever.serving.http.middleware import Middleware
from routerretriever.serving.http.pages import add_pages
from routerretriever.serving.http.queries import add_queries
from routerretriever.serving.http.state import add_state
from routerretriever.serving.ports import MetricsPort
from routerretriever.serving.service import Service


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

    add_queries(api, pick, settings.limits)
    add_state(api, pick)
    if settings.feedback and feedback:
        add_feedback(api, pick, settings.feedback, feedback)
    else:
        refuse_feedback(api)
    add_collections(api, pick, settings.limits)
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
