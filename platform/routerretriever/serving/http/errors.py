"""How errors become answers: one table from an error's kind to its HTTP status, and OpenAI's form for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import Scope

from routerretriever.client.schemas import HALF_PAIR, ErrorResponse, Problem
from routerretriever.errors import (
    BadInput,
    Damaged,
    Forbidden,
    NotFound,
    RateExceeded,
    Refused,
    RouterRetrieverError,
    Unavailable,
    WrongField,
)

STATUS: dict[type[RouterRetrieverError], int] = {
    BadInput: 422,
    NotFound: 404,
    Forbidden: 403,
    Refused: 409,
    RateExceeded: 429,
    Unavailable: 503,
    Damaged: 500,
}
"""HTTP status by kind of error, the first that fits. Any other exception is our mistake: a 500 with its
traceback in the log."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorResponse, "description": "No known token."},
    403: {"model": ErrorResponse, "description": "Not from here, or not with this token."},
    404: {"model": ErrorResponse, "description": "A name is not known; the message lists those that are."},
    405: {"model": ErrorResponse, "description": "Another method is meant."},
    409: {"model": ErrorResponse, "description": "It contradicts itself, or what is there."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    415: {
        "model": ErrorResponse,
        "description": "A header says that the body is no plain JSON.",
    },
    422: {
        "model": ErrorResponse,
        "description": "A field is wrong, or the body no JSON; the message says where.",
    },
    429: {"model": ErrorResponse, "description": "The token's rate is used up; see Retry-After."},
    500: {"model": ErrorResponse, "description": "Our mistake; the message names the request's id."},
    503: {"model": ErrorResponse, "description": "Too much is waiting; see Retry-After."},
    504: {"model": ErrorResponse, "description": "It took too long and was given up."},
}
"""For the OpenAPI schema."""

_WORDS = {
    "extra_forbidden": "there is no such field",
    "model_attributes_type": "expected an object",
    "dict_type": "expected an object",
    "string_unicode": HALF_PAIR,
}
"""What is said instead of pydantic's own words, by its kind of error."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Contradiction(Refused):
    """Parts of a request contradict each other."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def check_length(field: str, text: str, longest: int) -> None:
    """Raise ``WrongField`` if a text is too long."""
    if len(text) > longest:
        raise WrongField(field, f"{len(text)} characters are more than {longest}")


def check_count(field: str, values: Sized, most: int) -> None:
    """Raise ``WrongField`` if a list has too many entries."""
    if len(values) > most:
        raise WrongField(field, f"{len(values)} are more than {most}")


def status_of(error: RouterRetrieverError) -> int:
    """The HTTP status that an error's kind stands for."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def answer(status: int, body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(body.model_dump_json(), status, headers, "application/json")


def problem(
    status: int,
    message: str,
    param: str | None = None,
    retry_after: int | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """An error, in OpenAI's form."""
    headers = dict(headers or {})
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = Problem(message=_encodable(message), type=kind, param=param and _encodable(param))
    return answer(status, ErrorResponse(error=told), headers)


def _encodable(text: str) -> str:
    """A text that names what a client sent, which may hold half a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _parts(error: Mapping[str, Any]) -> list[str]:
    """The field that an error is in, then what is inside of it: ``input``, ``list[...]``, ``0``; brackets are
    of the kind of value that was tried."""
    kind, *inside = (str(part) for part in error["loc"])
    return inside or [kind]


def _place(error: Mapping[str, Any]) -> str:
    """Where in the request an error is, without the kinds of value that were tried."""
    return ".".join(part for part in _parts(error) if "[" not in part)


def explain_errors(api: FastAPI) -> None:
    """Answer errors in OpenAI's form; our own mistakes go on to the middleware, which knows the request."""

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = error.errors()
        first = errors[0]
        if isinstance(error.body, bytes):  # FastAPI reads JSON only where the header says that it is
            found = request.headers.get("content-type", "none")
            message = f"Content-Type: found {found!r}; send the body as 'application/json'"
            return problem(415, message, "Content-Type")
        if first["type"] == "json_invalid":
            return problem(
                422, f"body: not JSON at character {first['loc'][-1]}: {first['ctx']['error']}", "body"
            )
        field = _parts(first)[0]
        if field == "body" and error.body is None and "upgrade" in request.headers:
            # Java asks so for HTTP/2. HAProxy takes the header out; without it, uvicorn drops the body.
            message = (
                f"Upgrade: found {request.headers['upgrade']!r}, beside which the body was not read; "
                "ask by HTTP/1.1 (in Java: HttpClient.Version.HTTP_1_1)"
            )
            return problem(422, message, "Upgrade")
        same_field = [wrong for wrong in errors if wrong["loc"][:2] == first["loc"][:2]]
        problems: dict[str, list[str]] = {}
        for wrong in same_field:
            problems.setdefault(_told(wrong), []).append(_place(wrong))
        tried = any("[" in part for wrong in same_field for part in _parts(wrong))
        if len(problems) == 1 or not tried:
            told = [f"{places[0]}: {message}" for message, places in problems.items()]
        else:  # each kind that the field may be of has its own problem
            told = [f"{field}: {'; '.join(problems)}"]
        return problem(422, "; ".join(told), field)

    @api.exception_handler(RouterRetrieverError)
    async def known(_: Request, error: RouterRetrieverError) -> Response:
        status = status_of(error)
        if status == 500:
            raise error
        return problem(status, str(error), error.field, retry_after=_seconds_to_wait(error))

    @api.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        message = f"{request.url.path}: {error.detail}"
        if isinstance(error.__cause__, RecursionError):  # FastAPI tells only that it could not parse it
            return problem(422, "body: nested too deep to be read; write it flatter", "body")
        if isinstance(error.__cause__, UnicodeDecodeError):
            return problem(422, f"body: not UTF-8: {error.__cause__}", "body")
        if isinstance(error.__cause__, ValueError):  # Python's JSON raises no other beside those for syntax
            return problem(422, "body: holds a number of more digits than are read; send it as text", "body")
        headers = dict(error.headers or {})
        if error.status_code == 404:
            meant = _path_of_same_end(api, request.url.path)
            message += f"; there is {meant}" if meant else "; /docs lists what there is"
        elif error.status_code == 405:  # Starlette names the methods of the first route of this path alone
            headers["Allow"] = ", ".join(sorted(_methods(api, request.scope)))
            message += f"; it answers {headers['Allow']}"
        return problem(error.status_code, message, headers=headers)

    @api.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> Response:
        raise error


def _seconds_to_wait(error: RouterRetrieverError) -> int | None:
    """When it is worth trying again; None if it is not."""
    if isinstance(error, RateExceeded):
        return math.ceil(error.seconds)
    return 1 if isinstance(error, Unavailable) else None


def _told(wrong: dict[str, Any]) -> str:
    """One of pydantic's errors, in a few words."""
    return _WORDS.get(wrong["type"]) or str(wrong["msg"]).removeprefix("Value error, ")


def _path_of_same_end(api: FastAPI, path: str) -> str | None:
    """The path that a client may mean whose base URL has no ``/v1``, or has it twice."""
    end = path.rstrip("/").rpartition("/")[2]
    paths = (route.path for route in api.routes if isinstance(route, Route))
    return next((each for each in paths if end and each.rpartition("/")[2] == end), None)


def _methods(api: FastAPI, scope: Scope) -> set[str]:
    routes = [route for route in api.routes if isinstance(route, Route)]
    found = {
        method
        for route in routes
        if route.matches(scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return found | {"HEAD"} if "GET" in found else found
