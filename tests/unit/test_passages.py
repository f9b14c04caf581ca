"""Long documents in live collections: passages are searched, and documents are told."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.bundle.manifest import cut_collections
from routerretriever.client import AsyncClient
from routerretriever.datasets.collection import Document
from routerretriever.datasets.passages import (
    about_how_many,
    count_tokens,
    cut,
    cut_in_windows,
    join,
)
from routerretriever.datasets.settings import PassageSettings
from routerretriever.index.changes import compact, write_change, write_deletion
from routerretriever.index.filters import parse_filter
from routerretriever.index.live import Wanted
from routerretriever.serving.ports import CollectionRef
from semantic_text_splitter import TextSplitter
from support.corpora import FILTER, PLAIN, WORDS, expected_scores, make_corpus, make_document, write_corpus
from support.service import sent_to
from support.whole_service import WholeService, WordsEncoder, open_shards

CUT = PassageSettings(tokens=8, overlap=2)
CHANGES = "changes/cut"


def make_cut(seed, number):
    """A document whose passages are near to each other: the best rows of a search are of few documents."""
    document, centre = make_document(seed, number)
    random = np.random.default_rng((seed, number, 1))
    texts = [make_document((seed, number), place)[0].text for place in range(int(random.integers(1, 9)))]
    vectors = centre + 0.05 * random.normal(size=(len(texts), 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return document._replace(text=" / ".join(texts)), texts, vectors


def passages_of(made):
    document, texts, vectors = made
    return [
        (document._replace(id=f"{document.id}#{place}", text=text), vector)
        for place, (text, vector) in enumerate(zip(texts, vectors, strict=True), start=1)
    ]


@settings(deadline=None, max_examples=25)
@given(
    shards=st.integers(1, 3),
    mode=st.sampled_from(["hybrid", "dense", "lexical"]),
    weight=st.sampled_from([0, 0.3, 0.8]),
    depth=st.integers(1, 12),
    filtered=st.booleans(),
    group=st.sampled_from([None, None, False]),
    with_whole=st.booleans(),
    text=st.lists(st.sampled_from([*WORDS, "yak"]), min_size=1, max_size=4).map(" ".join),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["upsert", "upsert", "delete", "compact"]),
            st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True),
        ),
        max_size=4,
    ),
    opened_late=st.booleans(),
)
def test_grouping_is_the_best_passage_of_every_document(
    tmp_path_factory, shards, mode, weight, depth, filtered, group, with_whole, text, changes, opened_late
):
    folder = tmp_path_factory.mktemp("store")
    held = {number: make_cut(0, number) for number in range(10)}
    rows = [row for each in held.values() for row in passages_of(each)]
    # Shards of a corpus are cut between passages of one document, too.
    store = write_corpus(folder, [rows[:7], rows[7:20], rows[20:]], "corpora/cut")
    _, whole = make_corpus(folder, key="corpora/whole", seed=5)
    refs = (CollectionRef("corpora/cut", CHANGES, PLAIN, CUT), CollectionRef("corpora/whole", "w", PLAIN))
    refs = refs if with_whole else refs[:1]
    index = open_shards(store, shards)
    query = make_document(99, 0)[1]
    wanted = Wanted(text, query, depth, weight, parse_filter(FILTER) if filtered else None, group)
    if not opened_late:
        asyncio.run(index.find(refs, mode, [wanted]))
    number = 0
    for kind, ids in changes:
        if kind == "compact":
            compact(store, CHANGES)
            continue
        number += 1
        if kind == "delete":
            write_deletion(store, CHANGES, number, [f"d{each}" for each in ids])
            held = {key: value for key, value in held.items() if key not in ids}
        else:
            new = {each: make_cut(number, each) for each in ids}
            documents, texts, vectors = zip(*new.values(), strict=True)
            write_change(store, CHANGES, number, documents, np.concatenate(vectors), texts)
            held |= new

    found, _ = asyncio.run(index.find(refs, mode, [wanted, Wanted("ant", query, 3)]))

    plain = {
        0: {
            document.id: (document, vector)
            for each in held.values()
            for document, vector in passages_of(each)
        }
    }
    if with_whole:
        plain[1] = whole
    bm25, cosines, fused = expected_scores(plain, text, query, weight, filtered)
    scores = {"hybrid": fused, "dense": cosines, "lexical": bm25}[mode]
    may = {key: scores[key] for key in fused if mode != "lexical" or bm25[key] > 0}
    best = {}
    for (place, name), score in may.items():
        key = (place, name if place or group is False else name.rpartition("#")[0])
        best[key] = max(score, best.get(key, score))
    np.testing.assert_allclose(
        [hit.score for _, hit in found], sorted(best.values(), reverse=True)[:depth], atol=1e-5
    )
    told = [(place, hit.document.id, hit.passage if group is False else None) for place, hit in found]
    assert len(set(told)) == len(told)
    for place, hit in found:
        name = hit.document.id if place else f"{hit.document.id}#{hit.passage}"
        assert hit.score == pytest.approx(scores[place, name], abs=1e-5)
        assert hit.document == plain[place][name][0]._replace(id=hit.document.id)

    contents = asyncio.run(index.contents(refs[0]))
    assert (contents.documents, contents.rows) == (len(held), len(plain[0]))
    pages = [one for at in range(0, 15, 4) for one in asyncio.run(index.documents(refs[0], at, 4))]
    assert {one.document.id: one.passages for one in pages} == {
        each[0].id: len(each[1]) for each in held.values()
    }
    assert len(pages) == len(held)


@given(
    words=st.lists(
        st.sampled_from(["one", "two.", "three,\n", "four-five", "six\n\n", "七八", "हिन्दी"]), max_size=80
    )
)
@settings(deadline=None, max_examples=40)
def test_passages_are_joined_to_the_text_that_they_were_cut_from(words):
    # Numbered: what is said twice in a row looks like an overlap.
    text = " ".join(f"{place}{word}" for place, word in enumerate(words)) or "-"
    parts = [each.text for each in cut(Document("a", "", text), CUT)]
    assert join(parts, CUT).split() == text.split()
    assert max(map(count_tokens, parts)) <= CUT.tokens
    assert len(parts) <= 2 * about_how_many(text, CUT)


LONG = " ".join(f"Sentence {number} is about the {word}." for number, word in enumerate(WORDS))
DOCUMENTS = [
    {"id": "a", "title": "ant", "text": LONG, "metadata": {"year": 2001}},
    {"id": "a#1", "text": "nothing of the sort", "metadata": {"year": 2005}},
]
PATH = "/v1/collections/manuals/documents"


def filled(service, **passages):
    body = {"name": "manuals", "passages": {"tokens": 8, "overlap": 2, **passages}}
    status, state = service.ask("POST", "/v1/collections", body)
    assert (status, state["passages"], state["passage_count"]) == (200, {"tokens": 8, "overlap": 2}, 0)
    status, changed = service.ask("POST", PATH, {"documents": DOCUMENTS})
    assert (status, changed["truncated"], changed["hint"]) == (200, 0, None)
    return changed["passage_count"]


def search(service, query="about the fox", **body):
    status, answer = service.ask(
        "POST", "/v1/search", {"query": query, "collection": "manuals", "weight": 0.9, **body}
    )
    assert status == 200, answer
    return answer["results"]


@given(
    st.lists(
        st.sampled_from(["漢字", "แมว ", "word ", "-", "a,b;", "  ", "x" * 40, "हिन्दी ", "한국어 "]),
        min_size=50,
    ),
    st.sampled_from([(8, 0), (8, 3), (20, 7)]),
)
@settings(max_examples=40, deadline=None)
def test_windows_of_a_text_without_ends_have_the_passages_of_the_whole_text(parts, bounds):
    tokens, overlap = bounds
    text, wanted = "".join(parts * 5), PassageSettings(tokens=tokens, overlap=overlap)
    splitter = TextSplitter.from_callback(count_tokens, tokens, overlap=overlap)
    assert list(cut_in_windows(text, wanted)) == splitter.chunks(text)


@pytest.mark.parametrize("text", ["漢" * 40_000, "word " * 40_000, "-" * 40_000])
def test_the_splitter_is_given_no_more_than_a_window_of_a_text_without_ends(text, monkeypatch):
    wanted, given_to_it = PassageSettings(tokens=200, overlap=20), []
    splitter = TextSplitter.from_callback(count_tokens, 200, overlap=20)

    class Watched:
        def chunk_indices(self, window):
            given_to_it.append(window)
            return splitter.chunk_indices(window)

        def chunks(self, window):
            given_to_it.append(window)
            return splitter.chunks(window)

    monkeypatch.setattr("routerretriever.datasets.passages._splitter", lambda settings: Watched())
    found = [passage.text for passage in cut(Document("d", "", text), wanted)]
    assert max(count_tokens(window) for window in given_to_it) <= 10 * wanted.tokens
    assert all(count_tokens(passage) <= wanted.tokens for passage in found)
    assert join(found, wanted).split() == text.split()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("How do bees stay warm?", 6),
        ("मधुमक्खियाँ सर्दियों में गर्म कैसे रहती हैं?", 8),
        ("தேனீக்கள் குளிர்காலத்தில்", 2),
        ("كَيْفَ يَبْقَى النَّحْلُ دَافِئًا", 4),
        ("e\u0301te\u0301, été", 3),
        ("蜜蜂怎样保暖？", 7),
        ("か\u3099き", 2),
        ("ผึ้ง", 2),
    ],
)
def test_words_are_counted_with_their_marks(text, count):
    assert count_tokens(text) == count


def test_long_documents_are_cut_found_by_passage_and_told_whole_after_a_restart_too(tmp_path):
    service = WholeService(tmp_path)
    count = filled(service)
    assert count == len(cut(Document("a", "", LONG), CUT)) + 1
    assert len(list(tmp_path.glob("changes/manuals*/*.parquet"))) == 1
    for _ in range(2):
        hits = search(service, highlight=True)
        assert sorted(hit["id"] for hit in hits) == ["a", "a#1"]
        fox = next(hit for hit in hits if hit["id"] == "a")
        assert "fox" in fox["text"]
        assert fox["text"] == cut(Document("a", "", LONG), CUT)[fox["passage"] - 1].text
        assert (fox["title"], fox["metadata"]) == ("ant", {"year": 2001})
        marked = {fox["snippet"]["text"][start:stop] for start, stop in fox["snippet"]["highlights"]}
        assert "fox" in marked
        assert search(service, offset=1, limit=5) == search(service)[1:]
        every = search(service, top_k=50, group_by_parent=False)
        assert len({(hit["id"], hit["passage"]) for hit in every}) == len(every) == count
        assert search(service, min_score=every[0]["score"])[0]["passage"] == every[0]["passage"]
        only = search(service, filter={"field": "year", "gte": 2003})
        assert [(hit["id"], hit["passage"]) for hit in only] == [("a#1", 1)]
        state = service.ask("GET", "/v1/collections/manuals")[1]
        assert (state["documents"], state["passage_count"]) == (2, count)
        assert state["passages"] == {"tokens": 8, "overlap": 2}
        page = service.ask("GET", PATH)[1]
        assert page["total"] == 2
        by_id = {one["id"]: one for one in page["data"]}
        assert by_id["a"] == {**DOCUMENTS[0], "passage_count": count - 1}
        assert service.ask("GET", "/v1/collections/manuals/document?id=a%231")[1]["passage_count"] == 1
        assert service.ask("GET", "/v1/collections/manuals/document?id=a%232")[0] == 404
        service = WholeService(tmp_path, shards=1)  # a restart


def test_ranks_are_those_of_passages_and_the_best_one_is_its_documents(tmp_path):
    service = WholeService(tmp_path)
    count = filled(service)

    def found(**body):
        body = {"query": "about the fox", "collection": "manuals", "fusion": "rrf", **body}
        status, answer = service.ask("POST", "/v1/search", body)
        assert (status, answer["lexical_weight"]) == (200, None)
        return answer["results"]

    every = found(top_k=50, group_by_parent=False)
    assert len(every) == count
    best = {}
    for hit in every:
        best.setdefault(hit["id"], hit)
    assert found() == list(best.values())
    assert found(min_score=every[0]["score"] - 1e-9)[0] == every[0]
    assert found(min_score=0.1) == []
    assert found(offset=1) == list(best.values())[1:]


def test_a_document_goes_and_is_replaced_with_all_of_its_passages(tmp_path):
    service = WholeService(tmp_path)
    filled(service)
    path = "/v1/collections/manuals"
    both = {"documents": [{"id": "a", "text": "a word"}, {"id": "b", "text": LONG}]}
    assert service.ask("POST", PATH, both)[0] == 200
    every = search(service, top_k=50, group_by_parent=False)
    assert [(hit["passage"], hit["text"]) for hit in every if hit["id"] == "a"] == [(1, "a word")]
    # Passage 2 of b is no document, and a#1 is none of a's.
    assert service.ask("POST", f"{PATH}/delete", {"ids": ["b#2", "a"]})[0] == 200
    assert sorted(hit["id"] for hit in search(service)) == ["a#1", "b"]
    assert service.ask("POST", f"{PATH}/delete", {"ids": ["b"]})[0] == 200
    for _ in range(2):
        state = service.ask("GET", path)[1]
        assert (state["documents"], state["passage_count"]) == (1, 1)
        assert [hit["id"] for hit in search(service, group_by_parent=False)] == ["a#1"]
        service = WholeService(tmp_path)


def test_judgements_name_documents(tmp_path):
    service = WholeService(tmp_path)
    filled(service)
    path = "/v1/collections/manuals/calibrate"
    status, learned = service.ask("POST", path, {"queries": [{"query": "the fox", "relevant": ["a"]}]})
    assert (status, learned["ndcg_at_10"]["1.0"]) == (200, 1.0)
    wrong = service.ask("POST", path, {"queries": [{"query": "the fox", "relevant": ["a#2"]}]})
    assert wrong[1]["error"]["param"] == "queries.0.relevant"


@pytest.mark.parametrize(
    ("passages", "expected", "told"),
    [
        ({"tokens": 8, "overlap": 8}, 409, "overlap: 8 is not below tokens: 8; make it smaller"),
        ({"tokens": 4}, 422, "greater than or equal to 8"),
        ({"words": 8}, 422, "there is no such field"),
        (True, 422, "passages"),
    ],
)
def test_wrong_passages_are_refused(tmp_path, passages, expected, told):
    service = WholeService(tmp_path)
    status, answer = service.ask("POST", "/v1/collections", {"name": "x", "passages": passages})
    assert (status, answer["error"]["param"]) == (expected, "passages")
    assert told in answer["error"]["message"]
    assert len(service.ask("GET", "/v1/collections")[1]) == 2


def test_too_many_passages_are_refused_before_anything_is_embedded(tmp_path):
    service = WholeService(tmp_path, passages=10)
    filled(service)
    ways_out = ["send it in parts", "send fewer documents"]
    for ids, way_out in zip(["z", "yz"], ways_out, strict=True):
        documents = [{"id": each, "text": LONG * 3} for each in ids]
        status, answer = service.ask("POST", PATH, {"documents": documents})
        assert (status, answer["error"]["param"]) == (422, "documents")
        assert f"more than 10; {way_out}" in answer["error"]["message"]
    assert service.ask("GET", "/v1/collections/manuals")[1]["change"] == 1


def test_the_answer_says_how_many_documents_the_encoder_reads_in_part(tmp_path, monkeypatch):
    service = WholeService(tmp_path)
    filled(service)
    monkeypatch.setattr(
        WordsEncoder, "are_cut", lambda _, texts, rows, documents: [len(row) > 5 for row in rows]
    )
    status, changed = service.ask("POST", PATH, {"documents": [*DOCUMENTS, {"id": "b", "text": "short"}]})
    assert (status, changed["truncated"]) == (200, 1)
    assert "passages of 8 words are too long; create" in changed["hint"]
    service.ask("POST", "/v1/collections", {"name": "plain"})
    changed = service.ask("POST", "/v1/collections/plain/documents", {"documents": DOCUMENTS})[1]
    assert (changed["truncated"], changed["passage_count"]) == (1, None)
    assert changed["hint"].startswith(
        "the encoder reads 1000 tokens of a text; create the collection with `pass"
    )


def test_the_client_creates_them_and_asks_for_passages(tmp_path):
    async def main():
        client = AsyncClient("http://localhost", transport=sent_to(WholeService(tmp_path).app))
        await client.create_collection("manuals", passages={"tokens": 8, "overlap": 2})
        assert (await client.upsert("manuals", DOCUMENTS)).passage_count > 2
        assert (await client.collection("manuals")).passages.tokens == 8
        assert (await client.document("manuals", "a")).text == LONG
        found = await client.search("fox", "manuals", 20, group_by_parent=False)
        assert len(found.results) == (await client.collection("manuals")).passage_count

    asyncio.run(main())


def test_a_bundle_says_which_collections_are_cut():
    domains = {"long": {"path": "x", "passages": {"tokens": 8, "overlap": 2}}, "short": {"passages": None}}
    assert cut_collections({"recipe": {"domains": domains}}) == {"long": CUT}
    assert cut_collections({}) == {}
