"""Hybrid searches against scoring every document that is present, one by one."""

import re
import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.datasets.collection import Document
from routerretriever.errors import BadInput
from routerretriever.index.base import Entry, Queries, best_hits
from routerretriever.index.changes import compact, write_change, write_deletion
from routerretriever.index.filters import Column, field_names, field_value, parse_filter
from routerretriever.index.hybrid import Tops, look_depth, rank_all
from routerretriever.index.lexical import LexicalIndex, Postings
from routerretriever.index.live import LiveCollection, Wanted
from routerretriever.index.settings import IndexSettings, LexicalSettings
from routerretriever.index.snippets import snippet
from routerretriever.index.words import Analyzer
from support.corpora import (
    CHANGES,
    CORPUS,
    FILTER,
    PLAIN,
    WORDS,
    expected_scores,
    make_corpus,
    make_document,
    passes,
    plain_bm25,
    write_corpus,
)

NOTHING = np.zeros(0, dtype=np.float32)
CHANGE = st.tuples(
    st.sampled_from(["upsert", "delete", "compact"]),
    st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True),
)


@settings(deadline=None, max_examples=60)
@given(
    changes=st.lists(CHANGE, max_size=5),
    shards=st.integers(1, 3),
    weight=st.floats(0, 0.95),
    depth=st.integers(1, 20),
    filtered=st.booleans(),
    text=st.lists(st.sampled_from([*WORDS, "yak"]), max_size=4).map(" ".join),
    first_look=st.sampled_from([1, 3, 100]),
    floor=st.sampled_from([-1.0, -0.5, 0.1]),
)
def test_hybrid_search_is_fusing_all_documents_that_pass(
    tmp_path_factory, changes, shards, weight, depth, filtered, text, first_look, floor
):
    store, held = make_corpus(tmp_path_factory.mktemp("store"))
    opened = [
        LiveCollection(store, CORPUS, CHANGES, IndexSettings(), i, shards, PLAIN) for i in range(shards)
    ]
    number = 0
    for kind, ids in changes:
        if kind == "compact":
            compact(store, CHANGES)
            continue
        number += 1
        if kind == "delete":
            write_deletion(store, CHANGES, number, [f"d{each}" for each in ids])
            held = {key: value for key, value in held.items() if int(key[1:]) not in ids}
        else:
            new = [make_document(number, each) for each in ids]
            write_change(store, CHANGES, number, [d for d, _ in new], np.stack([v for _, v in new]))
            held |= {document.id: (document, vector) for document, vector in new}
    condition = parse_filter(FILTER) if filtered else None
    query = make_document(99, 0)[1]
    queries = Queries([text], query[None])

    found, looks = [], []
    for each in opened:
        each.refresh()
        looks.append(each.hybrid.look(queries, each.allowed(condition), first_look, floor))
    top = Tops.over([look[0].tops for look in looks])
    for each, look in zip(opened, looks, strict=True):
        wanted = Wanted(text, query, depth, weight, condition, floor=floor)
        (hits,) = each.find("hybrid", [wanted], [top], look)
        found += hits
    found = sorted(found, key=lambda hit: -hit.score)[:depth]

    bm25, cosines, expected = expected_scores({"": held}, text, query, weight, filtered, floor)
    best = sorted(expected.values(), reverse=True)[:depth]
    np.testing.assert_allclose([hit.score for hit in found], best, atol=1e-5)
    for hit in found:
        assert hit.document == held[hit.document.id][0]
        assert hit.score == pytest.approx(expected["", hit.document.id], abs=1e-5)
        assert hit.bm25 == pytest.approx(bm25["", hit.document.id], abs=1e-4)
        assert hit.cosine == pytest.approx(cosines["", hit.document.id], abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    added=st.integers(0, 3),
    shards=st.integers(1, 3),
    offset=st.sampled_from([-200.0, -3.0, 0.0, 100.0]),
    weight=st.floats(0, 0.95),
    depth=st.integers(1, 20),
    filtered=st.booleans(),
    seed=st.integers(0, 50),
)
def test_dot_products_are_fused_between_the_least_and_the_greatest_of_all_documents_that_pass(
    tmp_path_factory, sizes, added, shards, offset, weight, depth, filtered, seed
):
    random = np.random.default_rng(seed)
    query = np.array([1, 0, 2, 0], np.float32)

    def make(number):
        vector = random.normal([offset, 0, 0, 0], 4)
        return make_document(seed, number)[0], vector.astype(np.float32)

    numbers = iter(range(100))
    rows = [[make(next(numbers)) for _ in range(size)] for size in sizes]
    store = write_corpus(tmp_path_factory.mktemp("store"), rows)
    new = [make(next(numbers)) for _ in range(added)]
    if new:
        write_change(store, CHANGES, 1, [document for document, _ in new], np.stack([v for _, v in new]))
    held = {document.id: (document, vector) for part in [*rows, new] for document, vector in part}
    wanted = [Wanted("ant bee", query, depth, weight, parse_filter(FILTER) if filtered else None)]

    opened = [
        LiveCollection(store, CORPUS, CHANGES, IndexSettings(), i, shards, PLAIN) for i in range(shards)
    ]
    looks = [each.look(wanted) for each in opened]
    tops = Tops.over([look.tops for (look,) in looks])
    found = [
        hit
        for each, look in zip(opened, looks, strict=True)
        for hit in each.find("hybrid", wanted, [tops], look)[0]
    ]

    dots = {key: float(vector @ query) for key, (document, vector) in held.items()
            if not filtered or passes(document)}  # fmt: skip
    bm25 = {key: score for key, score in plain_bm25(held, "ant bee").items() if key in dots}
    least, most = min(dots.values(), default=0), max(dots.values(), default=0)
    words = max(bm25.values(), default=0)
    expected = {
        key: weight * (bm25[key] / words if words else 0)
        + (1 - weight) * ((dots[key] - least) / (most - least) if most > least else 1)
        for key in dots
    }
    assert [hit.score for hit in sorted(found, key=lambda hit: -hit.score)[:depth]] == pytest.approx(
        sorted(expected.values(), reverse=True)[:depth], abs=1e-4
    )
    for hit in found:
        assert hit.score == pytest.approx(expected[hit.document.id], abs=1e-4)
        assert hit.cosine == pytest.approx(dots[hit.document.id], rel=1e-4)


@pytest.mark.parametrize(
    ("scores", "weight", "expected"),
    [
        ([-9, -5, -3, -20], 0.0, [2, 1, 0, 3]),
        ([104, 98, 96, 95], 0.1, [0, 1, 2, 3]),
    ],
)
def test_where_all_scores_are_known_the_least_of_dot_products_is_the_minimum(scores, weight, expected):
    scores, bm25 = np.array(scores, np.float32), np.array([0, 0, 0, 8], np.float32)
    assert rank_all(scores, bm25, weight, 4, float(scores.min())).rows.tolist() == expected


def words_found(live, text, vector=None):
    return live.find("lexical", [Wanted(text, np.zeros(4, np.float32) if vector is None else vector, 5)])[0]


def test_the_first_lists_are_longer_in_a_large_collection():
    assert [look_depth("convex", documents) for documents in (0, 50_000, 1_000_000)] == [100, 100, 1000]
    assert look_depth("rrf", 1_000_000) == look_depth("rrf", 0) > 1000


def test_documents_that_come_and_go_leave_no_rows_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("routerretriever.index.live._RECLAIM_ROWS", 3)
    store, _ = make_corpus(tmp_path)
    live = LiveCollection(store, CORPUS, CHANGES, IndexSettings(), lexical=PLAIN)
    for number in range(1, 41):
        document, vector = make_document(number, 3)
        write_change(store, CHANGES, number, [document._replace(text=f"ant w{number}")], vector[None])
        live.refresh()
    assert len(live) == 12
    assert len(live.table) < 30
    assert [hit.document.id for hit in words_found(live, "w40")] == ["d3"]
    assert words_found(live, "w39") == []


@pytest.mark.parametrize(
    ("language", "text", "query"),
    [
        ("english", "The runners were running", "run"),
        ("english", "東京都に住んでいます", "東京"),
        ("english", "ภาษาไทยไม่มีช่องว่าง", "ไทย"),
        ("english", "서울에서 만나요", "서울"),
        ("code", "def parseHttpHeader(raw_bytes)", "http header"),
        ("code", "def parseHttpHeader(raw_bytes)", "raw_bytes"),
        ("german", "Die Häuser", "Haus"),
        ("none", "naïve café", "CAFÉ"),
        ("english", "an eﬃcient workﬂow", "efficient"),
        ("english", "an effi\u00adcient workflow", "efficient"),
        ("english", "ＡＢＣ１２３ and so on …", "abc123"),
        ("english", "press 1\ufe0f\u20e3", "1"),
        ("german", unicodedata.normalize("NFD", "Flüge nach Zürich"), "Zürich"),
        ("none", unicodedata.normalize("NFD", "한국어"), "한국"),
        ("none", "ｶﾞｽ", "ガス"),
        ("none", "น้ำ", "น้ํา"),
        ("hindi", "हिन्दी में समाचार", "हिन्दी"),
        ("tamil", "தமிழ் செய்திகள்", "செய்திகள்"),
        ("arabic", "كِتَاب", "كتاب"),
        ("turkish", "İstanbul çok kalabalık", "istanbul"),
        ("turkish", "IŞIK", "ışık"),
        ("code", "parseहिन्दीNode(…)", "हिन्दी"),
        ("code", "def größeÄndern(maß)", "Größe"),
        ("code", "class ИмяПользователя", "пользователя"),
        ("english", "a week in İzmir", "izmir"),
    ],
)
def test_words_are_found_in_their_language(language, text, query):
    analyze = Analyzer(LexicalSettings(language=language))
    assert set(analyze(query)) & set(analyze(text))
    for _, start, stop in analyze.spans(text):
        assert text[start:stop]


def test_marks_are_part_of_their_words():
    assert Analyzer(LexicalSettings(language="none"))("हिन्दी में कि़") == ["हिन्दी", "में", "कि़"]
    assert Analyzer(PLAIN)("ที่นี่") == ["ที่", "นี่", "ที่นี่"]


def test_identifiers_of_any_script_are_cut_at_their_capitals_only():
    words = Analyzer(LexicalSettings(language="code"))
    assert words("größeÄndern") == ["größeändern", "größe", "ändern"]
    assert words(unicodedata.normalize("NFD", "größe2")) == ["größe2", "größe", "2"]
    assert words("parseHTTPHeader") == ["parsehttpheader", "parse", "http", "header"]
    assert words("имяHTTP_Ответа") == ["имяhttp_ответа", "имя", "http", "ответа"]


def test_a_repeated_character_is_one_of_its_script():
    assert Analyzer(PLAIN)("人々") == ["人", "々", "人々"]


SPELLED = st.sampled_from(
    [*"aeO 1._éＡ京…ﬁ½㌔\u0323\u00ad", "e\u0301", "हिन्", "दी", "か\u3099", "ｶﾞ", "น้ำ", "كِ",
     unicodedata.normalize("NFD", "각")]
)  # fmt: skip


@given(text=st.lists(SPELLED, max_size=30).map("".join), language=st.sampled_from(["none", "code"]))
def test_every_words_place_in_the_text_is_spelled_as_the_word(text, language):
    analyze = Analyzer(LexicalSettings(language=language))
    spans = analyze.spans(text)
    assert analyze(text) == [word for word, _, _ in spans]
    seen = re.sub("[\u00ad\ufe0f]", "", text)
    assert analyze(unicodedata.normalize("NFKC", seen)) == analyze(text)
    for word, start, stop in spans:
        spelled = unicodedata.normalize("NFKC", re.sub("[\u00ad\ufe0f]", "", text[start:stop])).lower()
        assert word in spelled
        # A character may stand for several words, as ½ for 1 and 2, or for parts of an identifier.
        if language == "none" and not re.search("[½㌔ำ]", text[start:stop]):
            assert word == spelled


def test_a_character_with_thousands_of_marks_is_read_at_once():
    started = time.process_time()
    Analyzer(PLAIN).spans("x" + "\u0301\u0323" * 100_000)
    assert time.process_time() - started < 20  # in order by insertion: minutes


def test_stop_words_are_left_out_only_when_asked():
    assert len(Analyzer(LexicalSettings(stop_words=False))("what is the fox")) == 4
    assert Analyzer(LexicalSettings())("what is the fox") == ["fox"]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "filter"),
        ({}, "filter.field"),
        ({"field": "a"}, "filter"),
        ({"field": "a", "near": 3}, "filter.near"),
        ({"field": "a", "gte": None}, "filter.gte"),
        ({"field": "a", "exists": 1}, "filter.exists"),
        ({"field": "a", "in": "x"}, "filter.in"),
        ({"and": []}, "filter.and"),
        ({"and": [{"field": "a", "equals": 1}, {"not": {"field": 3}}]}, "filter.and[1].not.field"),
        ({"or": [{"field": "a", "equals": 1}], "field": "b"}, "filter.field"),
        ({"field": "a", "gt": float("nan")}, "filter.gt"),
        ({"field": "a", "equals": float("inf")}, "filter.equals"),
        ({"field": "a", "in": [1, float("-inf")]}, "filter.in"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_place(value, place):
    with pytest.raises(BadInput) as refused:
        parse_filter(value)
    assert refused.value.field == place


def test_a_filter_keeps_values_apart_in_lists_too_and_needs_no_look_at_every_value():
    rows = [[1], [True], ["1"], [["x"], None, "y"], [1.0, 2], {"x": 1}, None, 1, "y", *map(str, range(2, 9))]
    column = Column(rows)

    def passing(**condition):
        mask = parse_filter({"field": "a", **condition}).mask(lambda _: column, len(rows))
        return [rows[row] for row in np.flatnonzero(mask)]

    assert passing(equals=1) == [[1], [1.0, 2], 1]
    assert passing(equals=True) == [[True]]
    assert passing(equals="1") == [["1"]]
    assert passing(**{"in": ["y", 2]}) == [[["x"], None, "y"], [1.0, 2], "y"]
    assert passing(equals="['x']") == passing(equals="{'x': 1}") == passing(**{"in": []}) == []
    assert passing(gte=2) == [[1.0, 2]]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("author.name", "Ada"),
        ("a.b", "itself"),
        ("a.b.c", 3),
        ("editors.name", ["Bob", "Cy"]),
        ("editors.tags", ["x", "y", "z"]),
        ("author.name.first", None),
        ("author.", None),
        (".name", None),
        ("nobody.name", None),
    ],
)
def test_a_field_may_lie_in_objects(field, expected):
    metadata = {
        "author": {"name": "Ada"},
        "a.b": "itself",
        "a": {"b": {"c": 3}},
        "editors": [{"name": "Bob", "tags": ["x", "y"]}, "nobody", {"name": "Cy", "tags": "z"}],
    }
    assert field_value(metadata, field) == expected
    assert (field in set(field_names(metadata))) == (expected is not None)


@given(
    st.recursive(
        st.integers() | st.text("ab.", max_size=2),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3)
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_field_that_is_named_has_a_value(metadata):
    for field in field_names(metadata):
        assert field_value(metadata, field) is not None


def test_documents_are_filtered_by_fields_of_objects_as_they_come(tmp_path):
    store, held = make_corpus(tmp_path)
    live = LiveCollection(store, CORPUS, CHANGES, IndexSettings())

    def passing(**condition):
        return int(live.allowed(parse_filter({"field": "author.name", **condition})).sum())

    assert passing(exists=True) == 0
    new = [
        Document("new", "", "ant", {"author": {"name": "Ada"}}),
        Document("other", "", "bee", {"author": {}}),
    ]
    write_change(store, CHANGES, 1, new, np.stack([vector for _, vector in list(held.values())[:2]]))
    live.refresh()
    assert (passing(equals="Ada"), passing(equals="Bob"), passing(exists=True)) == (1, 0, 1)
    again = LiveCollection(store, CORPUS, CHANGES, IndexSettings())
    again.refresh()
    assert again.allowed(parse_filter({"field": "author.name", "in": ["Ada"]})).sum() == 1


def test_only_fields_that_rows_have_are_kept_ready_and_at_most_64(tmp_path):
    store, _ = make_corpus(tmp_path)
    live = LiveCollection(store, CORPUS, CHANGES, IndexSettings())

    def passing(field):
        return int(live.allowed(parse_filter({"field": field, "exists": True})).sum())

    assert passing("year") > 0
    assert {passing(f"nope{number}") for number in range(300)} == {0}
    assert len(live.table.columns) == 2  # year, and what no row has
    document, vector = make_document(1, 99)
    many = document._replace(metadata={f"field{number}": number for number in range(100)})
    write_change(store, CHANGES, 1, [many], vector[None])
    live.refresh()
    assert {passing(f"field{number}") for number in range(100)} == {1}
    assert passing("nope0") == 0
    assert passing("year") > 0
    assert len(live.table.columns) == 64
    write_change(store, CHANGES, 2, [many._replace(id="other")], vector[None])
    live.refresh()
    assert [passing(name) for name in ("field0", "field99", "nope0")] == [2, 2, 0]


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(2**53 - 2, 2**53 + 2), st.floats(-3, 3),
    st.floats(), st.sampled_from(["", "n/a", "2", "2024-01-01", "é", "z"]),
)  # fmt: skip
ROWS = st.lists(st.one_of(VALUE, st.lists(VALUE, max_size=3)), max_size=20)
OPERAND = st.one_of(
    st.integers(-3, 3), st.integers(2**53 - 2, 2**53 + 2), st.floats(-3, 3), st.sampled_from(["", "2", "é"])
)


@given(rows=ROWS, later=ROWS, name=st.sampled_from(["gt", "gte", "lt", "lte"]), operand=OPERAND)
def test_a_range_passes_what_it_passes_value_by_value(rows, later, name, operand):
    condition = parse_filter({"field": "a", name: operand})
    column = Column(rows)
    condition.mask(lambda _: column, len(rows))  # brings the values in order
    column.extend(later)
    mask = condition.mask(lambda _: column, len(rows + later))
    assert mask.tolist() == [condition.passes(value) for value in rows + later]


@given(rows=ROWS, wanted=st.booleans())
def test_a_field_exists_where_it_has_a_value(rows, wanted):
    mask = parse_filter({"field": "a", "exists": wanted}).mask(lambda _: Column(rows), len(rows))
    assert mask.tolist() == [(value is not None) == wanted for value in rows]


def test_a_range_over_texts_or_mixed_values_compares_few_of_them():
    compared = 0

    class Text(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __lt__(self, other):
            nonlocal compared
            compared += 1
            return str.__lt__(self, other)

        __gt__ = __ge__ = __le__ = __lt__

    column = Column([*(Text(f"{number:05}") for number in range(10_000)), 7, 8])
    condition = parse_filter({"field": "a", "gte": Text("05000")})
    condition.mask(lambda _: column, 10_002)  # brings the values in order
    compared = 0
    assert condition.mask(lambda _: column, 10_002).sum() == 5_000
    numbers = parse_filter({"field": "a", "gte": 8})
    assert numbers.mask(lambda _: column, 10_002).sum() == 1
    assert compared < 100


def test_a_filter_deeper_or_larger_than_allowed_is_refused():
    deep = {"field": "a", "equals": 1}
    for _ in range(10):
        deep = {"not": deep}
    with pytest.raises(BadInput, match="nested deeper"):
        parse_filter(deep)
    with pytest.raises(BadInput, match="more than 256 conditions"):
        parse_filter({"or": [{"field": "a", "equals": number} for number in range(300)]})


def test_a_weight_of_one_finds_only_documents_with_the_words_and_zero_finds_what_vectors_find(tmp_path):
    store, held = make_corpus(tmp_path)
    live = LiveCollection(store, CORPUS, CHANGES, IndexSettings(), lexical=PLAIN)
    vector = held["d1"][1]
    words, vectors = live.find("hybrid", [Wanted("ant bee", vector, 5, weight) for weight in (1.0, 0.0)])
    assert [hit.document for hit in words] == [hit.document for hit in words_found(live, "ant bee", vector)]
    assert [hit.document for hit in vectors] == [hit.document for hit in live.search(vector[None], [5])[0]]


@given(text=st.text(alphabet="ab 京都,", max_size=80), query=st.text(alphabet="ab 京", max_size=9))
def test_a_snippet_marks_words_of_the_query_in_a_part_of_the_text(text, query):
    analyze = Analyzer(PLAIN)
    found = snippet(text, query, analyze, 20)
    assert found.text in text
    assert len(found.text) <= 20
    assert all(stop <= start for (_, stop), (start, _) in pairwise(found.highlights))
    for start, stop in found.highlights:
        assert analyze(found.text[start:stop])[0] in analyze(query)
    assert bool(found.highlights) == bool(set(analyze(text)) & set(analyze(query)))


def test_a_snippet_from_the_end_of_a_text_without_spaces_shows_the_words():
    text = "京都の天気" * 60 + "親指の痛み" + "夜" * 20
    found = snippet(text, "親指", Analyzer(PLAIN))
    assert text.endswith(found.text)
    assert "親指の痛み" in found.text
    assert [found.text[start:stop] for start, stop in found.highlights] == ["親指"]


@pytest.mark.parametrize("character", ["👨\u200d👩\u200d👧", "ที่", "e\u0301", "👍🏽", "क्षि"])
def test_a_snippet_ends_with_a_whole_character(character):
    for before in range(5):
        found = snippet("x" * before + " " + character * 100, "x" * before, Analyzer(PLAIN), 30)
        assert found.text.lstrip("x ").replace(character, "") == ""
        assert len(found.text) > 20


def test_highlights_of_a_snippet_do_not_overlap():
    code = Analyzer(LexicalSettings(language="code"))
    found = snippet("def parse_header(header):", "parse_header header", code)
    assert [found.text[start:stop] for start, stop in found.highlights] == ["parse_header", "header"]


def test_a_snippet_of_a_text_of_nothing_but_the_query_is_made_word_by_word():
    looked = 0

    class Counted(str):
        __slots__ = ()

        def __hash__(self):
            nonlocal looked
            looked += 1
            return super().__hash__()

    class Words:
        def __call__(self, text):
            return [Counted("a")]

        def spans(self, text):
            return [(Counted("a"), place, place + 1) for place in range(0, len(text), 2)]

    found = snippet("a " * 1000, "a", Words())
    assert (len(found.text), len(found.highlights)) == (240, 120)
    assert looked < 1000 * 10


def test_a_snippet_of_a_long_text_looks_at_its_first_20_000_characters_only():
    looked = []

    class Words(Analyzer):
        def spans(self, text):
            looked.append(len(text))
            return super().spans(text)

    words = Words(PLAIN)
    there = "x " * 9_900 + "fox " + "x " * 200_000
    found = snippet(there, "fox", words)
    assert [found.text[start:stop] for start, stop in found.highlights] == ["fox"]
    beyond = "x" * 19_990 + " " + "foxes" * 100_000  # cut, it must not count as another word
    found = snippet(beyond, "foxesfoxe foxes", words)
    assert (found.text, found.highlights) == (beyond[:240], ())
    assert looked == [20_000, 20_000]


def test_a_snippet_passes_over_a_word_longer_than_itself():
    found = snippet("fox" * 20 + " fox " + "fox" * 20, "fox " + "fox" * 20, Analyzer(PLAIN), 10)
    assert [found.text[start:stop] for start, stop in found.highlights] == ["fox"]


def test_a_snippet_shows_where_most_words_are():
    text = "fox " + "x " * 200 + "the quick foxes jump"
    found = snippet(text, "quick fox", Analyzer(LexicalSettings()), 30)
    assert [found.text[start:stop] for start, stop in found.highlights] == ["quick", "foxes"]


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9), min_size=1, max_size=40),
    later=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9), max_size=6),
    query=st.lists(st.sampled_from("abcdefghi"), max_size=6).map(" ".join),
    depth=st.integers(1, 12),
    gone=st.sets(st.integers(0, 39), max_size=8),
    hidden=st.sets(st.integers(0, 45), max_size=20),
    filtered=st.booleans(),
)
def test_documents_that_are_passed_over_are_not_among_the_best(
    texts, later, query, depth, gone, hidden, filtered
):
    """However few documents are scored by all words, the answer is that of scoring all."""
    index = LexicalIndex(Postings.build(texts), LexicalSettings(stop_words=False, language="none"))
    index.append([Entry(Document(f"n{row}", "", " ".join(text)), NOTHING) for row, text in enumerate(later)])
    index.delete(np.array(sorted(row for row in gone if row < len(texts)), dtype=np.int64))
    allowed = np.array([row not in hidden for row in range(len(index))]) if filtered else None
    scores = index.all_scores(query)
    rows = np.flatnonzero(scores if allowed is None else scores * allowed)
    expected = best_hits(rows, scores[rows], depth)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("routerretriever.index.lexical._FEW", 0)
        (found,) = index.search(Queries([query], NOTHING[None]), depth, allowed)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    (again,) = index.score(Queries([query], NOTHING[None]), [np.arange(len(index))])
    np.testing.assert_array_equal(again, scores)
