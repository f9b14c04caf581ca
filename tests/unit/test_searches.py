"""Searches as the API takes them: mode and weight, filters, pages, several shards and collections."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from routerretriever.client.schemas import SearchRequest
from routerretriever.config.serving import ReplicaSettings
from routerretriever.datasets.collection import Document
from routerretriever.errors import StorageError, WrongField
from routerretriever.index.changes import write_change, write_deletion
from routerretriever.index.filters import parse_filter
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.live import Found, Wanted
from routerretriever.index.settings import FusionSettings, IndexSettings
from routerretriever.serving.deployments.calls import call_with_retry
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.engine import Embedded, Engine
from routerretriever.serving.executor import SerialExecutor
from routerretriever.serving.ports import CollectionRef
from routerretriever.serving.search import Plan
from support.corpora import FILTER, PLAIN, WORDS, expected_scores, make_corpus, make_document, write_corpus
from support.service import REF, StandIn, application, ask
from support.whole_service import open_shards


@settings(deadline=None, max_examples=40)
@given(
    shards=st.integers(1, 3),
    count=st.integers(1, 2),
    mode=st.sampled_from(["hybrid", "dense", "lexical"]),
    weight=st.floats(0, 0.95),
    depth=st.integers(1, 30),
    filtered=st.booleans(),
    text=st.lists(st.sampled_from([*WORDS, "yak"]), max_size=4).map(" ".join),
    change=st.tuples(st.booleans(), st.lists(st.integers(0, 15), min_size=1, unique=True)),
)
def test_shards_and_collections_are_ranked_as_if_everything_lay_in_one(
    tmp_path_factory, shards, count, mode, weight, depth, filtered, text, change
):
    folder = tmp_path_factory.mktemp("store")
    names = [f"c{number}" for number in range(count)]
    held, refs = {}, []
    for seed, name in enumerate(names):
        store, held[name] = make_corpus(folder, key=f"corpora/{name}", seed=seed)
        refs.append(CollectionRef(f"corpora/{name}", f"changes/{name}", PLAIN))
    index = open_shards(store, shards)
    query = make_document(99, 0)[1]
    wanted = Wanted(text, query, depth, weight, parse_filter(FILTER) if filtered else None)
    asyncio.run(index.find(tuple(refs), mode, [wanted]))  # opens them before the change
    deletes, ids = change
    if deletes:
        write_deletion(store, "changes/c0", 1, [f"d{each}" for each in ids])
        held["c0"] = {key: value for key, value in held["c0"].items() if int(key[1:]) not in ids}
    else:
        new = [make_document(7, each) for each in ids]
        write_change(store, "changes/c0", 1, [d for d, _ in new], np.stack([v for _, v in new]))
        held["c0"] |= {document.id: (document, vector) for document, vector in new}

    found, _ = asyncio.run(index.find(tuple(refs), mode, [wanted, Wanted("ant", query, 3)]))

    bm25, cosines, fused = expected_scores(held, text, query, weight, filtered)
    scores = {"hybrid": fused, "dense": cosines, "lexical": bm25}[mode]
    may = {key: scores[key] for key in fused if mode != "lexical" or bm25[key] > 0}
    best = sorted(may.values(), reverse=True)[:depth]
    np.testing.assert_allclose([hit.score for _, hit in found], best, atol=1e-5)
    for place, hit in found:
        key = (names[place], hit.document.id)
        assert hit.document == held[names[place]][hit.document.id][0]
        assert hit.score == pytest.approx(scores[key], abs=1e-5)
        assert hit.cosine == pytest.approx(cosines[key], abs=1e-5)
        assert hit.bm25 == (None if mode == "dense" else pytest.approx(bm25[key], abs=1e-4))


@settings(deadline=None, max_examples=40)
@given(
    shards=st.integers(1, 3),
    count=st.integers(1, 2),
    depth=st.integers(1, 30),
    last_rank=st.sampled_from([1, 3, 10, 1000]),
    filtered=st.booleans(),
    text=st.lists(st.sampled_from([*WORDS, "yak"]), max_size=4).map(" ".join),
    deleted=st.lists(st.integers(0, 11), max_size=4, unique=True),
)
def test_reciprocal_ranks_are_those_among_all_documents_that_pass(
    tmp_path_factory, shards, count, depth, last_rank, filtered, text, deleted
):
    folder = tmp_path_factory.mktemp("store")
    refs = []
    for seed in range(count):
        store, _ = make_corpus(folder, key=f"corpora/c{seed}", seed=seed)
        refs.append(CollectionRef(f"corpora/c{seed}", f"changes/c{seed}", PLAIN))
    if deleted:
        write_deletion(store, "changes/c0", 1, [f"d{each}" for each in deleted])
    index, query = open_shards(store, shards), make_document(99, 0)[1]
    condition = parse_filter(FILTER) if filtered else None

    def find(mode, depth, fusion="convex"):
        wanted = Wanted(text, query, depth, 0.5, condition, fusion=fusion)
        found, _ = asyncio.run(index.find(tuple(refs), mode, [wanted, Wanted("ant", query, 3, 0.5)]))
        return {(place, hit.document.id): hit.score for place, hit in found}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerretriever.index.hybrid.RRF_DEPTH", last_rank)
        every, some = find("hybrid", 1000, "rrf"), find("hybrid", depth, "rrf")

    expected = {}
    for mode in ("dense", "lexical"):  # each alone is compared with loops over all documents above
        side = find(mode, 1000)
        for key, score in side.items():
            rank = 1 + sum(other > score for other in side.values())
            if rank <= last_rank:
                expected[key] = expected.get(key, 0) + 1 / (60 + rank)
    assert every == pytest.approx(expected, abs=1e-8)
    assert list(every.values()) == sorted(every.values(), reverse=True)
    assert list(some.items()) == list(every.items())[:depth]


def test_a_last_rank_that_many_documents_share_counts_for_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr("routerretriever.index.hybrid.RRF_DEPTH", 2)
    _, vector = make_document(0, 0)
    best = (Document("best", "", "ant ant"), vector)
    equal = [(Document(f"d{number}", "", "ant bee"), -vector) for number in range(30)]
    store = write_corpus(tmp_path, [[*equal[:20], best], equal[20:]], "corpora/equal")
    index, ref = open_shards(store, 2), CollectionRef("corpora/equal", "changes/equal", PLAIN)
    wanted = [Wanted("ant", vector, depth, fusion="rrf") for depth in (9, 50)]
    some, every = asyncio.run(index.find((ref,), "hybrid", wanted))
    assert [hit.score for _, hit in every] == pytest.approx([2 / 61, *[2 / 62] * 30])
    assert [hit.document.id for _, hit in every] == ["best", *(f"d{number}" for number in range(30))]
    assert some == every[:9]


def test_a_replica_that_was_not_asked_before_finds_the_same(tmp_path):
    store, held = make_corpus(tmp_path)
    ref = CollectionRef("corpora/tiny", "changes/tiny", PLAIN)
    wanted = [Wanted("ant bee", held["d1"][1], 5, 0.5)]

    async def both():
        shards = [Index.func_or_class(IndexSettings(), store, 0, part, 2) for part in range(2)]
        tops = [await shard.look(ref, wanted, "token") for shard in shards]
        top = [max(tops[0][0], tops[1][0])]
        known = [await shard.find(ref, "hybrid", wanted, top, "token") for shard in shards]
        return known, [await shard.find(ref, "hybrid", wanted, top, "token") for shard in shards]

    known, again = asyncio.run(both())
    assert known == again


def request(**values):
    return SearchRequest(query="fig", collection="fruit", **values)


VECTORS_ONLY = CollectionRef("corpora/a", "changes/a")


@pytest.mark.parametrize(
    ("values", "ref", "expected"),
    [
        ({}, REF, ("hybrid", 0.3)),
        ({}, VECTORS_ONLY, ("dense", None)),
        ({"weight": 0.7}, REF, ("hybrid", 0.7)),
        ({"weight": 0}, REF, ("hybrid", 0)),
        ({"mode": "dense"}, REF, ("dense", None)),
        ({"mode": "lexical"}, REF, ("lexical", None)),
        ({"fusion": "rrf"}, REF, ("hybrid", None)),
    ],
)
def test_the_mode_is_hybrid_where_words_are_indexed_and_the_answer_says_the_weight(values, ref, expected):
    plan = Plan(request(**values), {"fruit": ref})
    embedded = Embedded(np.zeros(2, np.float32), {"fruit": 1.0}, 1)
    answer = plan.answer(embedded, plan.wanted(embedded, 0.3, -1.0), [])
    assert (answer.mode, answer.lexical_weight) == expected


@pytest.mark.parametrize(
    ("values", "ref", "field"),
    [
        ({"mode": "hybrid"}, VECTORS_ONLY, "mode"),
        ({"mode": "lexical"}, VECTORS_ONLY, "mode"),
        ({"mode": "dense", "weight": 0.5}, REF, "weight"),
        ({"weight": 0.5}, VECTORS_ONLY, "weight"),
        ({"fusion": "rrf", "weight": 0.5}, REF, "weight"),
        ({"fusion": "rrf", "mode": "lexical"}, REF, "fusion"),
        ({"fusion": "rrf"}, VECTORS_ONLY, "fusion"),
        ({"filter": {"field": "year", "near": 3}}, REF, "filter.near"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(values, ref, field):
    with pytest.raises(WrongField) as refused:
        Plan(request(**values), {"fruit": ref})
    assert refused.value.field == field


def test_pages_least_scores_fields_and_highlights():
    documents = [make_document(0, number)[0]._replace(title=f"t{number}") for number in range(6)]
    found = [(0, Found(1 - at / 10, each, 0.5, 0.1)) for at, each in enumerate(documents)]
    embedded = Embedded(np.zeros(2, np.float32), {"fruit": 1.0}, 1)

    def hits(**values):
        plan = Plan(request(**values), {"fruit": REF})
        wanted = plan.wanted(embedded, 0.1, -1.0)
        return plan.answer(embedded, wanted, found[: wanted.depth]).results

    assert [hit.id for hit in hits(offset=2, limit=2)] == ["d2", "d3"]
    assert [hit.id for hit in hits(top_k=3)] == ["d0", "d1", "d2"]
    assert [hit.id for hit in hits(min_score=0.75)] == ["d0", "d1", "d2"]
    assert hits()[1].metadata == documents[1].metadata
    some = hits(fields=["title", "year"])[1]
    assert (some.title, some.text, list(some.metadata)) == ("t1", "", ["year"])
    text = Plan(SearchRequest(query="fig", highlight=True), {"fruit": REF})
    marked = [(0, Found(1.0, documents[0]._replace(text="two figs in a tree")))]
    (hit,) = text.answer(embedded, text.wanted(embedded, 0.1, -1.0), marked).results
    assert [hit.snippet.text[start:stop] for start, stop in hit.snippet.highlights] == ["figs"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"mode": "both"}, "mode"),
        ({"weight": 1.5}, "weight"),
        ({"weight": "much"}, "weight"),
        ({"weight": 0.5, "mode": "dense"}, "weight"),
        ({"weight": 0.5, "fusion": "rrf"}, "weight"),
        ({"fusion": "sum"}, "fusion"),
        ({"limit": 0}, "limit"),
        ({"limit": 3, "top_k": 5}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": 1001}, "offset"),
        ({"min_score": "high"}, "min_score"),
        ({"fields": "title"}, "fields"),
        ({"filter": []}, "filter"),
        ({"filter": {"field": "year", "gte": []}}, "filter.gte"),
        (
            {"filter": {"and": [{"field": "a", "equals": 1}, {"not": {"field": 3}}]}},
            "filter.and[1].not.field",
        ),
        ({"filter": {"field": "a", "gte": 10**400}}, "filter.gte"),
        ({"colections": ["fruit"]}, "colections"),
    ],
)
def test_a_bad_search_gets_a_422_that_names_the_place(body, param):
    response = ask(
        application(StandIn()), "POST", "/v1/search", json={"query": "x", "collection": "fruit", **body}
    )
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert param in response.json()["error"]["message"]


class Bundle:
    """What an engine asks of a bundle before it embeds anything."""

    router = SimpleNamespace(experts=["fruit", "metal", "base"])
    experts = ("fruit", "metal")

    def __init__(self, fusion):
        self.fusion = fusion

    def fusion_weights(self, weights_BT, domains, collection=None):
        return self.fusion.of_queries(weights_BT, domains, collection)


def test_the_weight_is_the_bundles_and_without_one_the_recipes_prior():
    def engine(fusion):
        prior = FusionSettings(prior=0.25)
        return Engine(Bundle(fusion), SerialExecutor(), None, ReplicaSettings(), Metrics(), fusion=prior)

    assert engine(None).lexical_weight({"fruit": 1.0}, "fruit") == 0.25
    likes_words = np.tile(np.array(GRID), (500, 1))
    fitted = engine(FusionWeights.fit({"fruit": likes_words}, FusionSettings()))
    assert fitted.lexical_weight({"fruit": 1.0}) == 1.0
    assert fitted.lexical_weight({"base": 1.0}) == FusionSettings().prior
    assert fitted.lexical_weight({"base": 1.0}, "fruit") == 1.0
    assert fitted.lexical_weight({"fruit": 1.0}, "another") == FusionSettings().prior


def test_an_error_of_a_deployment_comes_in_its_own_words():
    async def remote():
        cause = StorageError("changes/c: missing; restore it from a copy")
        raise RayTaskError("find", "Traceback: secret lines", cause).as_instanceof_cause()

    with pytest.raises(StorageError) as found:
        asyncio.run(call_with_retry(SimpleNamespace(remote=remote)))
    assert str(found.value) == "changes/c: missing; restore it from a copy"
