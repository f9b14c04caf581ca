"""Collections created, filled, searched and deleted over HTTP, and who may do it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import zlib

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute
from routerretriever.client import AsyncClient, Client, ServiceError
from routerretriever.errors import StorageError
from routerretriever.index.changes import write_deletion
from routerretriever.index.live import LiveCollection
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.deployments.writer import Writer
from routerretriever.serving.http.auth import Token
from routerretriever.serving.ports import CollectionRef, DesiredState, Release
from support.corpora import PLAIN, make_corpus
from support.service import caller, sent_to
from support.waiting import wait_until
from support.whole_service import WholeService, WordsBundle, WordsEncoder

DOCUMENTS = [
    {"id": "a", "title": "ant", "text": "the ant and the bee", "metadata": {"year": 2001, "tags": ["x"]}},
    {"id": "b", "title": "cat", "text": "a cat for the bee", "metadata": {"year": 2005}},
    {"id": "c", "text": "nothing of the sort"},
]


def filled(service, name="notes"):
    assert service.ask("POST", "/v1/collections", {"name": name})[0] == 200
    path = f"/v1/collections/{name}/documents"
    assert service.ask("POST", path, {"documents": DOCUMENTS})[0] == 200
    return path


def found(service, **body):
    status, answer = service.ask("POST", "/v1/search", {"query": "bee", "collection": "notes", **body})
    assert status == 200, answer
    return [hit["id"] for hit in answer["results"]]


def test_a_collection_offers_a_few_of_its_dev_queries_to_those_who_may_read_it(tmp_path):
    service = WholeService(tmp_path)
    expected = ["what is a fig?", "which fruit has one stone?", "are figs sweet?"]
    assert service.ask("GET", "/v1/collections/fruit")[1]["examples"] == expected
    assert service.ask("GET", "/v1/collections/metal")[1]["examples"] == []
    for replica in service.replicas:
        replica.settings = replica.settings.model_copy(update={"example_queries": 0})
    assert service.ask("GET", "/v1/collections/fruit")[1]["examples"] == []


def test_documents_count_towards_a_rate_by_their_length(tmp_path):
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens = {"team": Token(sha256=digest, write=True, tokens_per_minute=1200)}
    service = WholeService(tmp_path, tokens)
    service.ask("POST", "/v1/collections", {"name": "notes"}, "secret")
    body = {"documents": [{"id": "a", "text": "bee " * 590}]}
    answers = [service.ask("POST", "/v1/collections/notes/documents", body, "secret") for _ in range(3)]
    assert [status for status, _ in answers] == [200, 200, 429]


def test_a_collection_is_created_filled_searched_and_there_after_a_restart(tmp_path):
    service = WholeService(tmp_path)
    path = filled(service)
    for again in range(2):
        status, answer = service.ask("POST", "/v1/search", {"query": "bee", "collection": "notes"})
        assert (status, answer["mode"], answer["lexical_weight"]) == (200, "hybrid", 0.1)
        assert len(answer["results"]) == 3
        assert {hit["collection"] for hit in answer["results"]} == {"notes"}
        assert found(service, mode="lexical") == ["b", "a"] or found(service, mode="lexical") == ["a", "b"]
        assert found(service, filter={"field": "year", "lt": 2003}) == ["a"]
        assert found(service, filter={"field": "tags", "equals": "x"}, mode="dense") == ["a"]
        assert found(service, filter={"not": {"field": "year", "exists": True}}) == ["c"]
        state = service.ask("GET", "/v1/collections/notes")[1]
        assert (state["documents"], state["change"], state["created"]) == (3, 1, True)
        assert state["lexical"]["language"] == "english"
        page = service.ask("GET", f"{path}?limit=2")[1]
        rest = service.ask("GET", f"{path}?offset=2&limit=2")[1]
        assert page["total"] == rest["total"] == 3
        both = sorted([*page["data"], *rest["data"]], key=lambda one: one["id"])
        assert [one["metadata"] for one in both] == [one.get("metadata") for one in DOCUMENTS]
        assert service.ask("GET", "/v1/collections/notes/document?id=b")[1]["metadata"] == {"year": 2005}
        if not again:
            service = WholeService(tmp_path)  # a restart


def test_a_deleted_collection_is_gone_and_its_name_is_free(tmp_path):
    service = WholeService(tmp_path)
    path = filled(service)
    assert service.ask("DELETE", "/v1/collections/notes") == (200, {"status": "deleted", "details": {}})
    assert service.ask("DELETE", "/v1/collections/notes")[0] == 404
    service.heartbeat()
    assert service.ask("POST", "/v1/search", {"query": "bee", "collection": "notes"})[0] == 404
    assert service.ask("POST", path, {"documents": DOCUMENTS})[0] == 404
    assert not list(tmp_path.glob("changes/notes*/*"))
    assert service.ask("POST", "/v1/collections", {"name": "notes", "lexical": None})[0] == 200
    service.heartbeat()
    status, answer = service.ask("POST", "/v1/search", {"query": "bee", "collection": "notes"})
    assert (status, answer["mode"], answer["results"]) == (200, "dense", [])
    assert [one["name"] for one in service.ask("GET", "/v1/collections")[1]] == ["notes", "fruit", "metal"]


def test_several_collections_are_searched_together(tmp_path):
    service = WholeService(tmp_path)
    filled(service)
    body = {"query": "ant bee", "collections": ["fruit", "metal", "notes"], "top_k": 30, "weight": 0.3}
    status, answer = service.ask("POST", "/v1/search", body)
    assert (status, answer["collection"]) == (200, None)
    assert len(answer["results"]) == 12 + 12 + 3
    best = [max(hit[side] for hit in answer["results"]) for side in ("lexical_score", "dense_score")]
    for hit in answer["results"]:
        expected = 0.3 * hit["lexical_score"] / best[0] + 0.7 * (hit["dense_score"] + 1) / (best[1] + 1)
        assert hit["score"] == pytest.approx(expected, abs=1e-5)


def test_passages_are_told_by_their_document_and_looked_through_until_there_are_enough(tmp_path):
    service = WholeService(tmp_path)
    assert service.ask("POST", "/v1/collections", {"name": "notes"})[0] == 200
    long = [{"id": f"long#{number}", "text": "bee " * (number + 1)} for number in range(30)]
    passages = [*long, *({"id": f"{one}#1", "text": f"nothing of {one}"} for one in "abd"), DOCUMENTS[2]]
    assert service.ask("POST", "/v1/collections/notes/documents", {"documents": passages})[0] == 200
    for mode in ("hybrid", "dense"):
        assert len(found(service, mode=mode, top_k=3)) == 3
        grouped = found(service, mode=mode, top_k=5, group_by_parent=True)
        assert sorted(each.partition("#")[0] for each in grouped) == ["a", "b", "c", "d", "long"]
        assert found(service, mode=mode, top_k=2, offset=3, group_by_parent=True) == grouped[3:]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"name": "fruit"}, 409, "name"),
        ({"name": "Not a name"}, 422, "name"),
        ({}, 422, "name"),
        ({"name": "x", "lexical": {"language": "klingon"}}, 422, "lexical"),
        ({"name": "x", "lexical": {"k1": -1}}, 422, "lexical"),
        ({"name": "x", "colour": 1}, 422, "colour"),
    ],
)
def test_a_collection_that_cannot_be_created_leaves_nothing(tmp_path, body, status, param):
    service = WholeService(tmp_path)
    found = service.ask("POST", "/v1/collections", body)
    assert (found[0], found[1]["error"]["param"]) == (status, param)
    assert [one["name"] for one in service.ask("GET", "/v1/collections")[1]] == ["fruit", "metal"]


def nested(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("metadata", "place"),
    [
        ({"a": "x" * 200}, "documents.1.metadata"),
        ({"a": nested(9)}, "documents.1.metadata"),
        ({"a": nested(400)}, "documents.1.metadata"),
        ({"a": [1, float("nan")]}, "documents.1.metadata.a.1"),
        ({"a": float("inf")}, "documents.1.metadata.a"),
        ({"a": "\ud800"}, "documents.1.metadata"),
        ({"\ud800": 1}, "documents.1.metadata"),
        ([], "documents"),
        ("x", "documents"),
    ],
)
def test_bad_metadata_is_named_and_nothing_is_written(tmp_path, metadata, place):
    service = WholeService(tmp_path, metadata_bytes=100)
    body = {"documents": [DOCUMENTS[2], {"id": "z", "text": "z", "metadata": metadata}]}
    status, answer = service.ask_raw("POST", "/v1/collections/fruit/documents", json.dumps(body))
    assert (status, answer["error"]["param"]) == (422, place)
    assert service.ask("GET", "/v1/collections/fruit")[1]["change"] == 0


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"title": "\ud800", "text": "z"}, "documents"),
        ({"title": "t" * 30, "text": "z" * 30}, "documents.1"),
        ({"id": "c", "text": "z"}, "documents.1.id"),
        ({"text": "z", "metadata": {"\ud800": float("nan")}}, r"documents.1.metadata.\ud800"),
    ],
)
def test_a_bad_document_is_named_and_none_of_its_upload_is_written(tmp_path, document, place):
    service = WholeService(tmp_path, document_length=50)
    body = {"documents": [DOCUMENTS[2], {"id": "z", **document}]}
    status, answer = service.ask("POST", "/v1/collections/fruit/documents", body)
    assert (status, answer["error"]["param"]) == (409 if place.endswith("id") else 422, place)
    assert service.ask("GET", "/v1/collections/fruit")[1]["change"] == 0


def test_a_document_that_is_not_there_is_told_by_its_field(tmp_path):
    status, answer = WholeService(tmp_path).ask("GET", "/v1/collections/fruit/document?id=none")
    assert (status, answer["error"]["param"]) == (404, "id")


def test_a_change_whose_sender_hangs_up_is_carried_out_and_the_next_has_its_own_number(tmp_path, monkeypatch):
    """Stopping the wait for a thread does not stop the thread."""
    store, _ = make_corpus(tmp_path, key="corpora/fruit")
    ref = CollectionRef("corpora/fruit", "changes/fruit", PLAIN)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*content):
        begun.set()
        assert go_on.wait(60)
        return write_deletion(*content)

    async def main():
        writer = Writer.func_or_class(store, 100, "tiny")
        monkeypatch.setattr("routerretriever.serving.deployments.writer.write_deletion", slow)
        left = asyncio.create_task(writer.delete(ref, ["d1"]))
        await asyncio.to_thread(begun.wait)
        left.cancel()
        next_one = asyncio.create_task(writer.delete(ref, ["d2"]))
        with pytest.raises(asyncio.CancelledError):
            await left
        go_on.set()
        assert await next_one == 2

        def broken(*content):
            write_deletion(*content)
            raise StorageError("the answer was lost on the way")

        monkeypatch.setattr("routerretriever.serving.deployments.writer.write_deletion", broken)
        with pytest.raises(StorageError):
            await writer.delete(ref, ["d3"])
        monkeypatch.undo()
        assert await writer.delete(ref, ["d4"]) == 4

    asyncio.run(main())
    live = LiveCollection(store, ref.corpus, ref.changes, IndexSettings())
    assert (live.change, len(live)) == (4, 8)


def test_collections_that_were_never_filled_are_let_go_of(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path, key="corpora/fruit")
    shard = Index.func_or_class(IndexSettings(), store, 0, 0, 1)
    fruit = CollectionRef("corpora/fruit", "changes/fruit", PLAIN)
    created = [CollectionRef("corpora/fruit", f"changes/{n}", PLAIN, None, "abc") for n in range(3)]
    write_deletion(store, created[0].changes, 1, ["d1"])
    monkeypatch.setattr("routerretriever.serving.deployments.index._SWEEP_SECONDS", 0.0)
    for ref in (fruit, *created):
        asyncio.run(shard.contents(ref))

    def left():
        asyncio.run(shard.contents(fruit))
        return set(shard.opened)

    wait_until(lambda: left() == {fruit, created[0]})
    monkeypatch.setattr("routerretriever.serving.deployments.index._IDLE_SECONDS", 0.0)
    assert not left() - {fruit}
    assert asyncio.run(shard.contents(created[0])).change == 1


def test_two_services_on_one_storage_number_their_changes_in_turns(tmp_path):
    store, _ = make_corpus(tmp_path, key="corpora/fruit")
    ref = CollectionRef("corpora/fruit", "changes/fruit", PLAIN)

    async def main():
        one, other = (Writer.func_or_class(store, 100, name) for name in ("one", "other"))
        return [
            await writer.delete(ref, [f"d{n}"]) for n, writer in enumerate([one, other, other, one, other])
        ]

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]
    assert len(LiveCollection(store, ref.corpus, ref.changes, IndexSettings())) == 12 - 5


def test_what_was_created_is_told_while_changes_are_written(tmp_path, monkeypatch):
    store, _ = make_corpus(tmp_path, key="corpora/fruit")
    ref = CollectionRef("corpora/empty-4", "changes/notes-1", PLAIN, None, "abc")
    begun, go_on = threading.Event(), threading.Event()

    def slow(*content):
        begun.set()
        assert go_on.wait(60)

    async def main():
        writer = Writer.func_or_class(store, 100, "tiny")
        assert await writer.create("notes", ref, 4)
        monkeypatch.setattr("routerretriever.serving.deployments.writer.write_deletion", slow)
        change = asyncio.create_task(writer.delete(ref, ["d1"]))
        await asyncio.to_thread(begun.wait)
        told = await writer.created("abc")
        go_on.set()
        await change
        return told

    assert asyncio.run(main()) == {"notes": ref}


@pytest.mark.parametrize("fails", [False, True])
def test_a_compaction_that_ends_after_its_collection_was_deleted_leaves_nothing(
    tmp_path, monkeypatch, caplog, fails
):
    store, _ = make_corpus(tmp_path, key="corpora/fruit")
    ref = CollectionRef("corpora/empty-4", "changes/notes-1", PLAIN, None, "abc")
    begun, go_on = threading.Event(), threading.Event()

    def late(store_, key):
        begun.set()
        assert go_on.wait(60)
        store_.put(key, "checkpoint-0000000001.parquet", lambda path: path.write_text("deleted texts"))
        if fails:
            raise FileNotFoundError(key)

    async def main():
        writer = Writer.func_or_class(store, 1, "tiny")
        assert await writer.create("notes", ref, 4)
        monkeypatch.setattr("routerretriever.serving.deployments.writer.compact", late)
        assert await writer.delete(ref, ["d1"]) == 1
        await asyncio.to_thread(begun.wait)
        await writer.drop("notes", ref)
        go_on.set()
        while writer.tasks:
            await asyncio.sleep(0.01)

    with caplog.at_level("ERROR"):
        asyncio.run(main())
    assert store.names(ref.changes) == []
    assert not store.holds(ref.changes)
    assert caplog.records == []


def test_a_bundle_that_takes_a_created_collections_name_is_said_to(tmp_path, caplog):
    service = WholeService(tmp_path)
    filled(service)
    for replica in service.replicas:
        replica.desired.current.collections["notes"] = replica.desired.current.collections["fruit"]
    with caplog.at_level("WARNING"):
        service.heartbeat()
        service.heartbeat()
    hidden = [record for record in caplog.records if "hides the one created over HTTP" in record.message]
    assert len(hidden) == len({id(each.desired.current) for each in service.replicas})


def test_two_ways_to_name_collections_exclude_each_other_and_unknown_ones_are_named(tmp_path):
    service = WholeService(tmp_path)
    for body, status, param in (
        ({"collection": "fruit", "collections": ["metal"]}, 422, "collections"),
        ({"collections": ["fruit", "none"]}, 404, "collections"),
        ({"collections": []}, 422, "collections"),
        ({}, 404, "collection"),
    ):
        found = service.ask("POST", "/v1/search", {"query": "x", **body})
        assert (found[0], found[1]["error"]["param"]) == (status, param)


def filtered(value):
    return '{"query": "x", "collection": "fruit", "filter": ' + value + "}"


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        (filtered('{"field": "a", "equals": %s}' % ("[" * 100 + "]" * 100)), "filter.equals", "found"),
        (filtered("[" * 50_000 + "]" * 50_000), "body", "nested too deep"),
        ('{"query": ', "body", "not JSON at character 10"),
        ("", "body", "Field required"),
        (b'{"query": "\xff"}', "body", "not UTF-8"),
    ],
)
def test_a_body_that_cannot_be_read_is_the_clients_error(tmp_path, body, param, told):
    status, answer = WholeService(tmp_path).ask_raw("POST", "/v1/search", body)
    assert (status, answer["error"]["param"]) == (422, param)
    assert told in answer["error"]["message"]


def test_the_weight_of_words_is_learned_from_judged_queries_and_kept(tmp_path):
    service = WholeService(tmp_path)
    service.ask("POST", "/v1/collections", {"name": "parts"})
    # Only words tell them apart: the vectors of numbers are random.
    documents = [
        {"id": f"p{n}", "text": f"part {n} and part {n + 1} of the machine"} for n in range(0, 80, 2)
    ]
    assert service.ask("POST", "/v1/collections/parts/documents", {"documents": documents})[0] == 200
    queries = [{"query": f"where is the machine of part {n}", "relevant": [f"p{n}"]} for n in range(0, 80, 2)]
    search = {"query": "part 6", "collection": "parts"}
    assert service.ask("POST", "/v1/search", search)[1]["lexical_weight"] == 0.1
    path = "/v1/collections/parts/calibrate"
    few = service.ask("POST", path, {"queries": queries[:1]})[1]
    status, many = service.ask("POST", path, {"queries": queries})
    assert (status, many["queries"], many["collection"]) == (200, 40, "parts")
    curve = {float(weight): ndcg for weight, ndcg in many["ndcg_at_10"].items()}
    assert curve[1.0] > curve[0.0]
    assert many["lexical_weight"] > few["lexical_weight"] >= 0.1
    assert curve[many["lexical_weight"]] > curve[0.1]
    service.heartbeat()
    for _ in range(2):
        answers = [service.ask("POST", "/v1/search", search)[1] for _ in service.replicas]
        assert {answer["lexical_weight"] for answer in answers} == {many["lexical_weight"]}
        assert service.ask("POST", "/v1/search", {**search, "weight": 0.3})[1]["lexical_weight"] == 0.3
        assert service.ask("GET", "/v1/collections/parts")[1]["lexical_weight"] == many["lexical_weight"]
        assert service.ask("POST", "/v1/collections/parts/documents", {"documents": documents[:1]})[0] == 200
        service = WholeService(tmp_path)  # a restart
        service.heartbeat()
    service.ask("DELETE", "/v1/collections/parts")
    assert service.ask("POST", "/v1/collections", {"name": "parts"})[1]["lexical_weight"] is None


@pytest.mark.parametrize(
    ("name", "queries", "status", "told"),
    [
        ("notes", [{"query": "x", "relevant": ["a"]}, {"query": "y", "relevant": ["b", "z"]}], 422, "'z'"),
        ("notes", [], 422, "queries"),
        ("notes", [{"query": "x", "relevant": []}], 422, "relevant"),
        ("notes", [{"query": "", "relevant": ["a"]}], 422, "queries.0.query"),
        ("notes", [{"query": "x", "relevant": ["a"]}] * 4, 422, "4 are more than 3"),
        ("notes", [{"query": "x" * 60, "relevant": ["a"]}], 422, "queries.0.query"),
        ("fruit", [{"query": "x", "relevant": ["d1"]}], 409, "belongs to the bundle"),
        ("dense", [{"query": "x", "relevant": ["a"]}], 409, "not indexed"),
        ("none", [{"query": "x", "relevant": ["a"]}], 404, "none"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_and_changes_nothing(tmp_path, name, queries, status, told):
    service = WholeService(tmp_path, texts=3, text_length=50)
    filled(service)
    service.ask("POST", "/v1/collections", {"name": "dense", "lexical": None})
    answer = service.ask("POST", f"/v1/collections/{name}/calibrate", {"queries": queries})
    assert answer[0] == status
    assert told in answer[1]["error"]["message"]
    assert service.ask("GET", "/v1/collections/notes")[1]["lexical_weight"] is None


TOKENS = {
    "all": {"write": True},
    "reader": {},
    "fruit-reader": {"collections": ["fruit"]},
    "fruit-owner": {"collections": ["fruit"], "write": True},
    "metal-writer": {"collections": ["fruit"], "write": ["metal"]},
}
"""Kinds of tokens: what may be read and written, of the collections fruit and metal."""
MAY_READ = {"all": {"fruit", "metal"}, "reader": {"fruit", "metal"}, "fruit-reader": {"fruit"},
            "fruit-owner": {"fruit"}, "metal-writer": {"fruit"}}  # fmt: skip
MAY_WRITE = {"all": {"fruit", "metal"}, "reader": set(), "fruit-reader": set(),
             "fruit-owner": {"fruit"}, "metal-writer": {"metal"}}  # fmt: skip

READS, WRITES, OPEN, SHARED = "reads a collection", "writes one", "asks for no token", "of no collection"
ROUTES = {
    ("GET", "/"): (OPEN, None),
    ("GET", "/docs"): (OPEN, None),
    ("GET", "/healthz"): (OPEN, None),
    ("GET", "/readyz"): (OPEN, None),
    ("POST", "/v1/search"): (READS, {"query": "x", "collection": "{name}"}),
    ("POST", "/v1/embeddings"): (SHARED, {"input": "x"}),
    ("POST", "/v1/route"): (SHARED, {"input": "x"}),
    ("GET", "/v1/models"): (SHARED, None),
    ("GET", "/v1/models/{name}"): (SHARED, None),
    ("GET", "/v1/experts"): (SHARED, None),
    ("GET", "/v1/service"): (SHARED, None),
    ("GET", "/v1/collections"): (SHARED, None),
    ("POST", "/v1/collections"): (WRITES, {"name": "{name}"}),
    ("GET", "/v1/collections/{name}"): (READS, None),
    ("DELETE", "/v1/collections/{name}"): (WRITES, None),
    ("POST", "/v1/collections/{name}/calibrate"): (
        WRITES,
        {"queries": [{"query": "x", "relevant": ["d1"]}]},
    ),
    ("GET", "/v1/collections/{name}/documents"): (READS, None),
    ("POST", "/v1/collections/{name}/documents"): (WRITES, {"documents": [{"id": "a", "text": "x"}]}),
    ("POST", "/v1/collections/{name}/documents/delete"): (WRITES, {"ids": ["d1"]}),
    ("GET", "/v1/collections/{name}/document"): (READS, None),
}
"""Every route of the service: who may use it, and a body."""


def secured(folder):
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in TOKENS}
    return WholeService(folder, {name: Token(sha256=digests[name], **own) for name, own in TOKENS.items()})


def api_of(service):
    return service.app.app  # the routes lie within the middleware


def test_every_route_is_tried_with_every_token(tmp_path):
    routes = {
        (method, route.path) for route in api_of(secured(tmp_path)).routes if isinstance(route, APIRoute)
        for method in route.methods
    }  # fmt: skip
    assert routes == set(ROUTES), "say above who may use a new route"


@pytest.mark.parametrize("token", [None, "unknown", *TOKENS])
@pytest.mark.parametrize("collection", ["fruit", "metal"])
def test_tokens_open_what_they_are_for_and_nothing_else(tmp_path, token, collection):
    service = secured(tmp_path)
    for (method, path), (kind, body) in ROUTES.items():
        where = path.replace("{name}", collection) + ("?id=d2" if path.endswith("/document") else "")
        status, answer = service.ask(
            method, where, json.loads(json.dumps(body).replace("{name}", collection)), token
        )
        told = f"{token} {method} {where}: {status} {answer}"
        if kind is OPEN:
            assert status == 200, told
        elif token not in TOKENS:
            assert status == 401, told
        elif kind is READS:
            assert status == (200 if collection in MAY_READ[token] else 404), told
        elif kind is WRITES and collection in MAY_WRITE[token]:
            assert status in (200, 409), told  # the bundle's collections can be neither created nor deleted
        elif kind is WRITES:
            assert status in (403, 404), told
            hidden = collection not in MAY_READ[token] and MAY_WRITE[token] and path != "/v1/collections"
            assert (status == 404) == bool(hidden), told
        else:
            assert status == 200, told
        unseen = {"fruit", "metal"} - MAY_READ.get(token, set()) - {collection}
        if kind is not SHARED or path in ("/v1/collections", "/v1/route"):
            for name in unseen if path != "/v1/route" else ():
                assert f'"{name}"' not in json.dumps(answer), told
        if path == "/v1/route" and status == 200:
            assert {one["dataset"] for one in answer["data"][0]["nearest"]} == MAY_READ[token]
    if token in TOKENS:
        listed = service.ask("GET", "/v1/collections", token=token)[1]
        assert {one["name"] for one in listed} == MAY_READ[token]
        assert {one["name"] for one in listed if one["writable"]} == MAY_WRITE[token] & MAY_READ[token]
        both = {"query": "x", "collections": ["fruit", "metal"]}
        allowed = MAY_READ[token] == {"fruit", "metal"}
        assert service.ask("POST", "/v1/search", both, token)[0] == (200 if allowed else 404)
        left_out = {"query": "x"}
        assert service.ask("POST", "/v1/search", left_out, token)[0] == (404 if allowed else 200)


def test_a_route_tells_the_weight_that_a_search_of_the_collection_has(tmp_path):
    service = WholeService(tmp_path)
    filled(service)
    service.ask("POST", "/v1/collections", {"name": "dense", "lexical": None})
    judged = {"queries": [{"query": "bee", "relevant": ["b"]}] * 200}
    learned = service.ask("POST", "/v1/collections/notes/calibrate", judged)[1]["lexical_weight"]
    service.heartbeat()

    def told(**body):
        status, answer = service.ask("POST", "/v1/route", {"input": "bee", **body})
        assert status == 200, answer
        return answer["data"][0]["lexical_weight"]

    searched = service.ask("POST", "/v1/search", {"query": "bee", "collection": "notes"})[1]
    assert told(collection="notes") == searched["lexical_weight"] == learned != told()
    assert told(collection="fruit") == told() == 0.1
    assert told(collection="dense") == 0
    status, answer = service.ask("POST", "/v1/route", {"input": "bee", "collection": "nope"})
    assert (status, answer["error"]["param"]) == (404, "collection")


@pytest.mark.parametrize("token", TOKENS)
def test_a_route_knows_only_collections_that_its_token_may_read(tmp_path, token):
    service = secured(tmp_path)
    for name in ("fruit", "metal"):
        status, answer = service.ask("POST", "/v1/route", {"input": "x", "collection": name}, token)
        assert status == (200 if name in MAY_READ[token] else 404)
        if status == 404:
            told = answer["error"]["message"].partition("; there are ")[2]
            assert set(told.split(", ")) == MAY_READ[token]


@pytest.mark.parametrize(
    ("token", "missing", "seen"), [("fruit-owner", "fruit", "none"), ("metal-writer", "metal", "fruit")]
)
def test_a_write_to_a_collection_that_is_gone_names_no_other_that_its_token_may_not_read(
    tmp_path, token, missing, seen
):
    service = secured(tmp_path)
    for replica in service.replicas:
        kept = dict(replica.desired.current.collections)
        del kept[missing]
        replica.desired = DesiredState(Release(1, "", kept, {}), None)
    for (method, path), (kind, body) in ROUTES.items():
        if kind is WRITES and "{name}" in path:
            status, answer = service.ask(method, path.replace("{name}", missing), body, token)
            assert status == 404, (path, answer)
            assert answer["error"]["message"] == f"collection: found {missing!r}; there are {seen}"


@pytest.mark.parametrize("token", TOKENS)
def test_why_a_version_was_refused_names_no_collection_that_a_token_may_not_read(tmp_path, token):
    status, answer = secured(tmp_path).ask("GET", "/v1/service", token=token)
    assert (status, list(answer["refused"])) == (200, ["2"])
    assert ("metal" in answer["refused"]["2"]) == ("metal" in MAY_READ[token])


class Asgi(httpx.BaseTransport):
    """Lets the synchronous client ask an application in this process."""

    def __init__(self, app):
        self._app = app

    def handle_request(self, request):
        async def once():
            async with caller(self._app) as http:
                body = request.read()
                answer = await http.request(
                    request.method, str(request.url), content=body, headers=request.headers
                )
                return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

        return asyncio.run(once())


def test_the_client_does_all_of_it(tmp_path):
    service = WholeService(tmp_path)
    client = Client("http://localhost", transport=Asgi(service.app))
    assert client.create_collection("notes", {"language": "none"}).lexical.language == "none"
    client.upsert("notes", DOCUMENTS)
    assert [one.name for one in client.collections()] == ["notes", "fruit", "metal"]
    assert client.collection("notes").documents == 3
    assert client.documents("notes", limit=1).total == 3
    assert client.document("notes", "a").metadata["year"] == 2001
    recent = {"field": "year", "gte": 2003}
    answer = client.search("bee", "notes", mode="hybrid", weight=0.5, filter=recent, highlight=True)
    assert [hit.id for hit in answer.results] == ["b"]
    assert answer.lexical_weight == 0.5
    assert client.route(["bee"])[0].lexical_weight == 0.1
    assert client.route(["bee"], "notes")[0].lexical_weight == 0.1
    client.delete_collection("notes")
    service.heartbeat()
    with pytest.raises(ServiceError, match="404"):
        client.collection("notes")

    async def main():
        later = AsyncClient("http://localhost", transport=sent_to(service.app))
        await later.create_collection("notes", None)
        assert (await later.collection("notes")).lexical is None
        await later.upsert("notes", DOCUMENTS)
        assert (await later.documents("notes")).total == len(await later.collections()) == 3
        assert (await later.document("notes", "c")).metadata is None
        assert (await later.search("bee", collections=["notes", "fruit"])).mode == "dense"
        await later.delete_collection("notes")

    asyncio.run(main())


def with_canary(service, collections):
    """Have a challenger with these collections answer whatever it may; they may be made of the current's."""
    for replica in service.replicas:
        current = replica.desired.current
        replica.desired = DesiredState(current, Release(2, "", collections(current.collections), {}))
        replica.engines[2] = replica.engines[1]
        always = replica.settings.releases.model_copy(update={"challenger_share": 1.0})
        replica.settings = replica.settings.model_copy(update={"releases": always})


def test_a_canary_answers_for_no_collection_that_its_bundle_lacks_and_alone_for_its_own(tmp_path):
    service = WholeService(tmp_path)
    with_canary(service, lambda held: {"fruit": held["fruit"], "ores": held["metal"]})

    def version(path, body=None):
        async def once():
            async with caller(service.app) as http:
                return await (http.post(path, json=body) if body else http.get(path))

        response = asyncio.run(once())
        assert response.status_code == 200, response.text
        return response.headers["x-bundle-version"]

    for collection, expected in (("fruit", "2"), ("metal", "1"), ("ores", "2")):
        assert version("/v1/search", {"query": "bee", "collection": collection}) == expected
        assert version(f"/v1/collections/{collection}") == expected
    assert version("/v1/search", {"query": "bee", "collections": ["fruit", "metal"]}) == "1"
    listed = service.ask("GET", "/v1/collections")[1]
    assert {each["name"] for each in listed} == {"fruit", "metal", "ores"}
    assert service.ask("POST", "/v1/search", {"query": "bee", "collection": "no"})[0] == 404
    assert service.ask("POST", "/v1/search", {"query": "bee", "collections": ["metal", "ores"]})[0] == 404


def test_a_canary_whose_bundle_has_a_created_collections_name_leaves_its_requests_to_the_current(tmp_path):
    """A document that was written to the canary's would be found by no search of the current release."""
    service = WholeService(tmp_path)
    path = filled(service)
    with_canary(service, lambda held: {"fruit": held["fruit"], "notes": held["metal"]})
    assert service.ask("POST", path, {"documents": [{"id": "new", "text": "bee"}]})[0] == 200
    assert service.ask("POST", f"{path}/delete", {"ids": ["a"]})[0] == 200
    assert sorted(found(service)) == ["b", "c", "new"]
    assert service.ask("GET", "/v1/collections/notes")[1]["created"]
    assert service.ask("DELETE", "/v1/collections/notes")[0] == 200
    service.heartbeat()
    assert len(found(service, top_k=50)) == 12


@pytest.fixture
def overflowing(monkeypatch):
    """A base that makes no numbers of a text with the word "huge"."""
    huge, embed = zlib.crc32(b"huge"), WordsEncoder.embed_tokens

    def embed_tokens(self, rows):
        vectors = embed(self, rows)
        vectors[[huge in row for row in rows]] = np.nan
        return vectors

    monkeypatch.setattr(WordsEncoder, "embed_tokens", embed_tokens)


@pytest.mark.parametrize("passages", [None, {"tokens": 8, "overlap": 0}])
def test_a_document_without_a_finite_vector_is_named_and_none_of_its_upload_is_written(
    tmp_path, overflowing, passages
):
    service = WholeService(tmp_path)
    assert service.ask("POST", "/v1/collections", {"name": "notes", "passages": passages})[0] == 200
    upload = {"documents": [{"id": "a", "text": "an ant " * 20}, {"id": "b", "text": "a bee. " * 9 + "huge"}]}
    status, answer = service.ask("POST", "/v1/collections/notes/documents", upload)
    assert (status, answer["error"]["param"]) == (422, "documents.1")
    assert "'b' gets a vector that is not finite" in answer["error"]["message"]
    state = service.ask("GET", "/v1/collections/notes")[1]
    assert (state["documents"], state["change"]) == (0, 0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/search", {"query": "huge", "collection": "fruit"}, "query"),
        ("/v1/embeddings", {"input": ["ant", "huge bee"]}, "input.1"),
        ("/v1/embeddings", {"input": ["huge"], "encoding_format": "base64", "model": "documents"}, "input.0"),
        ("/v1/embeddings", {"input": ["huge"], "model": "fruit"}, "input.0"),
    ],
)
def test_a_query_without_a_finite_vector_is_named(tmp_path, overflowing, path, body, param):
    service = WholeService(tmp_path)
    for _ in range(4):  # each replica twice: what is cached is no better
        status, answer = service.ask("POST", path, body)
        assert (status, answer["error"]["param"]) == (422, param)
        assert "not finite" in answer["error"]["message"]


def test_a_query_whose_route_is_no_number_is_named_and_is_not_counted(tmp_path, monkeypatch):
    def route(self, rows):
        weights = np.tile(np.array([1.0, 0, 0], np.float32), (len(rows), 1))
        weights[[zlib.crc32(b"huge") in row for row in rows]] = np.nan
        return weights

    monkeypatch.setattr(WordsBundle, "route", route)
    service = WholeService(tmp_path)
    status, answer = service.ask("POST", "/v1/route", {"input": ["ant", "huge"]})
    assert (status, answer["error"]["param"]) == (422, "input.1")
    for text in ("ant", "huge"):
        service.ask("POST", "/v1/embeddings", {"input": text})
    assert service.replicas[0].engines[1].take_routed()["fruit"] == 1.0
