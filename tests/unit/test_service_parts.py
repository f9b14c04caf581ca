"""The parts of the service that need no cluster: batches, the door, answers to good and bad requests."""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections import Counter
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
from routerretriever.bundle.manifest import ValidationQuery
from routerretriever.client.client import AsyncClient, Client, ServiceError
from routerretriever.client.langchain import RoutedEmbeddings
from routerretriever.client.schemas import (
    Hit,
    SearchRequest,
    SearchResponse,
)
from routerretriever.config.serving import ReplicaSettings, ServingSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import ArtifactMissing, Overloaded, RecipeError, UnknownName
from routerretriever.index.live import Found
from routerretriever.serving.batching import Batcher
from routerretriever.serving.deployments.calls import OneThread
from routerretriever.serving.deployments.index import Place
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.deployments.releases import Release, Releases, Vetted, _Candidate
from routerretriever.serving.engine import Engine
from routerretriever.serving.http.auth import Token, read_tokens
from routerretriever.serving.shadow import Shadows
from routerretriever.types import BASE, ROUTED_MODEL
from support.service import StandIn, application, ask, caller

JSON = {"content-type": "application/json"}
SECRET = "a secret that nobody knows"


@settings(deadline=None, max_examples=60)
@given(
    calls=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    max_batch=st.integers(1, 7),
    passes=st.integers(1, 3),
)
def test_every_call_gets_its_own_results_in_order_and_no_pass_is_too_large(calls, max_batch, passes):
    sizes = []

    async def double(items):
        sizes.append(len(items))
        await asyncio.sleep(0 if len(sizes) % 2 else 0.001)
        return [2 * item for item in items]

    async def main():
        batcher = Batcher(double, max_batch, max_waiting=1000, passes=passes)
        items = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(calls)]
        results = await asyncio.gather(*(batcher.submit(own) for own in items))
        assert results == [[2 * item for item in own] for own in items]
        assert batcher.idle
        assert batcher.waiting == 0

    asyncio.run(main())
    assert max(sizes) <= max_batch
    assert sum(sizes) == sum(calls)


def test_a_batcher_refuses_what_it_cannot_hold_and_forgets_who_left():
    async def main():
        started, go_on, ran = asyncio.Event(), asyncio.Event(), []

        async def work(items):
            started.set()
            await go_on.wait()
            ran.extend(items)
            return items

        batcher = Batcher(work, max_batch=2, max_waiting=3)
        first = asyncio.create_task(batcher.submit(["a", "b"]))
        await started.wait()
        leaver = asyncio.create_task(batcher.submit(["c", "d"]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 queries are waiting; the bound is 3"):
            await batcher.submit(["e", "f"])
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert batcher.waiting == 0
        last = asyncio.create_task(batcher.submit(["g"] * 5))  # too many, but nobody waits
        go_on.set()
        assert await first == ["a", "b"]
        assert await last == ["g"] * 5
        assert ran == ["a", "b", *["g"] * 5]

    asyncio.run(main())


def test_a_failing_pass_fails_its_callers_and_nobody_else():
    async def main():
        async def work(items):
            if "bad" in items:
                raise RuntimeError("broken")
            return items

        batcher = Batcher(work, max_batch=1, max_waiting=10)
        results = await asyncio.gather(
            *(batcher.submit(own) for own in (["one"], ["bad", "two"], ["three"])), return_exceptions=True
        )
        assert results[0] == ["one"]
        assert str(results[1]) == "broken"
        assert results[2] == ["three"]
        assert batcher.waiting == 0
        assert batcher.idle

    asyncio.run(main())


def test_a_short_call_does_not_wait_for_all_of_a_long_one():
    async def main():
        order = []

        async def work(items):
            order.append(list(items))
            await asyncio.sleep(0)
            return items

        batcher = Batcher(work, max_batch=4, max_waiting=1000)
        await asyncio.gather(batcher.submit(["long"] * 40), batcher.submit(["short"]))
        assert "short" in [*order[0], *order[1]]

    asyncio.run(main())


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
        ("search", {}, 422, "query"),
        ("embeddings", {"input": []}, 422, "input"),
        ("embeddings", {"input": ["x", ""]}, 422, "input"),
        ("embeddings", {"input": ["x"] * 4}, 422, "input"),
        ("embeddings", {"input": ["x", "x" * 51]}, 422, "input.1"),
        ("embeddings", {"input": [[1, 2]]}, 422, "input"),
        ("embeddings", {"input": "x", "encoding_format": "hex"}, 422, "encoding_format"),
        ("embeddings", {"input": "x", "dimensions": 3}, 422, "dimensions"),
        ("route", {"input": 3}, 422, "input"),
        ("collections/fruit/documents", {"documents": []}, 422, "documents"),
        ("collections/fruit/documents", {"documents": [{"id": "a", "text": ""}]}, 422, "documents"),
        ("collections/fruit/documents", {"documents": [{"id": "a", "text": "x"}] * 2}, 409, "documents"),
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


def test_unknown_paths_and_methods_are_told_in_the_same_form():
    app = application(StandIn())
    assert ask(app, "GET", "/v1/nothing").json()["error"]["message"] == "/v1/nothing: Not Found"
    assert ask(app, "GET", "/v1/search").status_code == 405


def test_answers_are_openais_and_say_which_bundle_and_request():
    app = application(StandIn())
    body = {"input": ["ab", "abc"], "model": "router", "user": "me"}
    response = ask(app, "POST", "/v1/embeddings", json=body)
    assert response.headers["x-request-id"].isalnum()
    assert response.headers["x-bundle-version"] == "7"
    answer = response.json()
    assert answer["object"] == "list"
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
            while not app._in_progress:
                await asyncio.sleep(0)
            crowded = await http.post("/v1/search", json=body)
            healthy = await http.get("/healthz")
            late = await waiting
        assert (large.status_code, streamed.status_code) == (413, 413)
        assert (crowded.status_code, crowded.headers["retry-after"]) == (503, "1")
        assert healthy.status_code == 200
        assert late.status_code == 504
        assert app._in_progress == 0

    asyncio.run(main())


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


def test_without_tokens_only_this_machine_is_answered():
    async def status(app):
        async with caller(app, client=("192.0.2.7", 1)) as http:
            return (await http.get("/v1/models")).status_code

    assert asyncio.run(status(application(StandIn()))) == 403
    assert asyncio.run(status(application(StandIn(), allow_anonymous=True))) == 200


def test_tokens_are_needed_beyond_loopback_and_read_with_care(tmp_path):
    assert read_tokens(ServingSettings()) == {}
    assert read_tokens(ServingSettings(host="0.0.0.0", allow_anonymous=True)) == {}
    with pytest.raises(RecipeError, match=r"serving\.host: 0\.0\.0\.0 lets other machines ask"):
        read_tokens(ServingSettings(host="0.0.0.0"))
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

        client = AsyncClient("http://service")
        client._http = caller(sometimes_busy)
        assert (await client.search("fig", "fruit")).results[0].id == "d1"
        assert (await client.embed(["ab", "abc"])).tolist() == [[2.0] * 3, [3.0] * 3]
        assert (await client.route(["fig"]))[0].nearest[0].query == "a fig?"
        assert refusals == 2
        assert (await client.experts())[0].replicas == {"STARTING": 1}
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
    client = Client("http://service", patience=patience)
    client._http = httpx.Client(transport=httpx.MockTransport(service), base_url="http://service")
    return client


def test_a_client_outlasts_a_restart(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("routerretriever.client.client.time.sleep", waited.append)
    service = Restarted(*TROUBLES)
    client = patient(service, 20)
    assert client.route(["x"]) == client.route(["x"]) == []
    assert service.asked == 2 + len(TROUBLES)
    assert waited == [0.25, 0.5, 1, 2]

    async def main() -> None:
        again = AsyncClient("http://service")
        service = Restarted(404)
        again._http = httpx.AsyncClient(transport=httpx.MockTransport(service), base_url="http://service")
        assert await again.route(["x"]) == await again.route(["x"]) == []

    asyncio.run(main())


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_clients_patience_ends(trouble):
    client = patient(Restarted(trouble), 0.1)  # less than the first pause
    client.route(["x"])
    with pytest.raises((ServiceError, httpx.TransportError)):
        client.route(["x"])


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


class HalfBundle:
    """Routes every query half to "a" and half to the base, without an encoder."""

    router = SimpleNamespace(experts=["a", "b", BASE])
    experts = ("a", "b")

    def tokenize(self, texts):
        return [[1] * len(text) for text in texts]

    def route(self, rows):
        return np.tile(np.array([0.5, 0, 0.5], np.float32), (len(rows), 1))

    def embed(self, rows, weights, experts):
        return np.zeros((len(rows), 2), np.float32)


def test_an_engine_tells_once_who_was_asked_by_the_router_and_by_name():
    metrics = Metrics()  # Ray's own refuse what is no plain number
    metrics.expert_weight, metrics.expert_queries = Counted(), Counted()
    entropies = []
    observe = metrics.routing_entropy.observe
    metrics.routing_entropy.observe = lambda bits: (observe(bits), entropies.append(bits))
    engine = Engine(HalfBundle(), OneThread(), None, ReplicaSettings(), metrics)

    async def ask():
        await engine.embed(["one", "two"], ROUTED_MODEL)
        return await engine.embed(["three"], "b")

    (named,) = asyncio.run(ask())
    assert named.weights == {"b": 1.0}
    assert named.tokens == 5
    assert engine.take_routed() == {"a": 1.0, "b": 0.0, BASE: 1.0}
    assert engine.take_routed() == {"a": 0.0, "b": 0.0, BASE: 0.0}
    assert metrics.expert_weight.by_tag == {"a": 1, BASE: 1}
    assert metrics.expert_queries.by_tag == {"a": 2, BASE: 2, "b": 1}
    assert entropies == [1.0, 1.0]


def test_stages_are_spans_where_somebody_listens():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    with Metrics().stage("search"):
        pass
    assert [span.name for span in exporter.get_finished_spans()] == ["search"]


class Counted:
    """Stands in for a metric: adds up by the value of its one tag."""

    def __init__(self):
        self.by_tag = Counter()

    def inc(self, amount, tags):
        (value,) = tags.values()
        self.by_tag[value] += amount

    def observe(self, amount, tags):
        self.inc(1, tags)


class Challenger:
    """Another bundle: finds what it is told to, when it is told to."""

    version = 8

    def __init__(self, *ids, expert="fruit"):
        self.found = expert, list(ids)
        self.go_on = asyncio.Event()

    async def shadow_search(self, query, collection, top_k, model):
        await self.go_on.wait()
        if not self.found[1]:
            raise UnknownName("collection", collection, ["metal"])
        return self.found


def shadowed(challengers, share=1.0, busy=False, seconds=5.0):
    """What is counted when the same search is offered to each challenger, before the first one is done."""
    metrics = SimpleNamespace(shadows=Counted(), shadow_documents=Counted(), shadow_seconds=Counted())
    asked = SearchRequest(query="a fig?", collection="fruit", top_k=3)
    hits = [Hit(id=document_id, score=1.0, title="", text="") for document_id in ("d1", "d2", "d3")]
    answer = SearchResponse(collection="fruit", expert="fruit", weights={"fruit": 1.0}, results=hits)

    async def main():
        shadows = Shadows(share, seconds, metrics)
        for challenger in challengers:
            shadows.offer(challenger, busy, asked, answer, 0.1)
        for challenger in challengers:
            challenger.go_on.set()
        while shadows._running:
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
        async def shadow(self, asked, answer, seconds):
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

    def __init__(self):
        self.search = self

    async def remote(self, place, queries, depths):
        if place.corpus == "lost":
            raise ArtifactMissing("corpora/lost: not here")
        return [[Found(1.0, Document(f"d{int(query[0])}", "", ""))] for query in queries]


def candidate(version, fingerprint, right):
    """A bundle of two collections whose canary queries are answered rightly in these shares of them."""
    manifest = {"encoder_fingerprint": fingerprint, "encoder": {"name": "some"}}
    canary = {
        name: ([ValidationQuery("?", {"d1": 1})] * 4, np.array([[float(at < 4 * share)] for at in range(4)]))
        for name, share in right.items()
    }
    places = {name: Place(name, "") for name in right}
    return _Candidate(Release(version, "", places, {}), Vetted("", manifest, canary, 1))


@pytest.mark.parametrize(
    ("fingerprint", "right", "objection"),
    [
        ("one", {"fruit": 1.0, "metal": 0.5}, None),
        ("one", {"fruit": 1.0}, None),  # metal's expert was taken out: that is no loss to fruit
        ("one", {"sport": 0.0}, None),
        ("one", {"fruit": 0.5, "metal": 0.5}, "canary queries of fruit, metal is 0.5000; .* has 0.7500"),
        ("one", {"fruit": 0.5, "sport": 1.0}, "canary queries of fruit is 0.5000; .* has 1.0000"),
        ("two", {"fruit": 1.0, "metal": 0.5}, "made for base some .two.; this service runs some .one."),
    ],
)
def test_a_bundle_of_another_base_or_with_worse_canaries_is_refused(fingerprint, right, objection):
    keeper = object.__new__(Releases.func_or_class)
    keeper._indexes, keeper._settings = [FakeIndex()], ServingSettings().releases
    present = candidate(1, "one", {"fruit": 1.0, "metal": 0.5})
    found = asyncio.run(keeper._objection(candidate(2, fingerprint, right), present))
    assert found is None if objection is None else re.search(objection, found)


def test_a_bundle_with_a_collection_that_is_not_there_is_refused():
    """Also if no canary query is asked of it, as of one without an expert."""
    keeper = object.__new__(Releases.func_or_class)
    keeper._indexes = [FakeIndex()]
    incomplete = candidate(1, "one", {"fruit": 1.0})
    incomplete.release.places["zero-shot"] = Place("lost", "")
    assert asyncio.run(keeper._objection(incomplete, None)) == "corpora/lost: not here"
