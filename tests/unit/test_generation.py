"""From documents to a collection: filters, what is held out, resuming, and the folder that comes of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import parse_settings
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.settings import DomainSettings
from routerretriever.datasets.texts import first_words, words
from routerretriever.datasets.variant import read_provenance
from routerretriever.errors import DatasetError, RecipeError, WriterError
from routerretriever.generation.filters import Draft, apply_filters, longest_run, reasons
from routerretriever.generation.folder import read_generated, write_generated
from routerretriever.generation.generate import Generation
from routerretriever.generation.prompts import Request
from routerretriever.generation.settings import FilterSettings, GenerationSettings
from routerretriever.generation.sources import RealQueries, choose, held_out, real_queries
from routerretriever.generation.step import read_drafts, write_step
from routerretriever.pipeline import documents as pipeline_documents
from routerretriever.pipeline.documents import (
    add_from_documents,
    estimate_documents,
    generation,
    import_documents,
    with_examples,
)
from support.collections import WORDS, documents_alone, write_collection, write_collections
from support.recipes import TINY_TRAINING, save_recipe, tiny_recipe
from support.workers import work_here
from support.writers import endpoint

SETTINGS = {"min_document_words": 1, "documents": 20, "shard_size": 5, "writer": {"kind": "extract"}}


def settings(**changes) -> GenerationSettings:
    return parse_settings(GenerationSettings, {**SETTINGS, **changes}, "generation")


@pytest.fixture
def documents(tmp_path):
    return documents_alone(tmp_path / "fruit")


@pytest.fixture
def inline(monkeypatch):
    """Shards are worked on in this process, without Ray."""
    work_here(monkeypatch, "generation.step", "corpus.build")


def draft(query, text="apple is a fruit", number=0, **rest) -> Draft:
    return Draft(Request(f"d{number}", "question", text), query, **rest)


def test_every_dropped_query_has_its_reason():
    long_run = "one two three four five six seven eight"
    drafts = [
        draft("what is an apple"),
        draft("", problem="no answer in time"),
        draft("apple"),
        draft("so many words " * 20),
        draft("again and again and again and again"),
        draft("where is the real one"),
        draft("что такое яблоко"),
        draft(f"say {long_run}", text=f"He said: {long_run}!"),
        draft("What is an  APPLE"),
        draft("nobody finds this"),
    ]

    def ranks(kept):
        return [None if "nobody" in one.query else 3 for one in kept]

    found = apply_filters(drafts, ["Where is the real one"], FilterSettings(), ranks)
    assert [one.problem for one in found] == [
        "", "no answer in time", "too short", "too long", "repeats itself", "asked by people", "other script",
        "copied", "near-duplicate", "source not found",
    ]  # fmt: skip
    assert found[0].rank == 3
    assert sum(reasons(found).values()) == 9


def test_scripts_are_told_apart_and_languages_are_not():
    german = "Der Apfel wächst am Baum und wird im Herbst reif"
    drafts = [draft("when is the apple ripe", text=german), draft("когда созревает яблоко", text=german)]
    found = apply_filters(drafts, [], FilterSettings(), None)
    assert [one.problem for one in found] == ["", "other script"]


def test_a_teacher_is_asked_about_what_the_round_trip_keeps_and_may_drop_it():
    drafts = [draft(f"{word} tree in the garden") for word in ("apple", "unseen", "disliked", "plum")]
    asked = []

    def teacher(kept):
        asked.extend(one.query.split()[0] for one in kept)
        return [None if "disliked" in one.query else 2 for one in kept]

    def ranks(kept):
        return [None if "unseen" in one.query else 7 for one in kept]

    own = FilterSettings(similarity=1.0)
    found = apply_filters(drafts, [], own, ranks, teacher)
    assert [one.problem for one in found] == ["", "source not found", "teacher prefers others", ""]
    assert asked == ["apple", "disliked", "plum"]
    assert found[0].rank == 7
    assert reasons(apply_filters(drafts, [], own, ranks)) == {"source not found": 1}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("蜜蜂怎样在冬天保暖？", ""),
        ("ผึ้งอบอุ่นได้อย่างไรในฤดูหนาว", ""),
        ("蜂", "too short"),
        ("蜜蜂怎样在冬天保暖" * 10, "too long"),
        ("保暖保暖保暖保暖保暖保暖", "repeats itself"),
        ("群在冬天会聚成一团并用飞行肌颤抖取", "copied"),
    ],
)
def test_words_are_counted_where_there_are_no_spaces(query, problem):
    text = "蜂群在冬天会聚成一团，并用飞行肌颤抖取暖。外面的蜜蜂轮流进入中间。"
    if "ผ" in query:
        text = "ในฤดูหนาวผึ้งจะรวมกลุ่มกันและสั่นกล้ามเนื้อปีกเพื่อสร้างความร้อน"
    written = Draft(Request("d", "question", text.replace("，", "")), query)
    assert [one.problem for one in apply_filters([written], [], FilterSettings(), None)] == [problem]


@pytest.mark.parametrize(
    ("query", "text", "problem"),
    [
        ("चेन्नई नगर में वर्षा जल", "चेन्नई नगर में वर्षा जल का संग्रह अनिवार्य है", ""),  # five words in a row
        ("சென்னை நகரத்தில் மழை நீர்", "சென்னை நகரத்தில் மழை நீர் சேகரிப்பு கட்டாயம்", ""),
        (normalize("NFD", "hồ sơ đã nộp ở đâu thì trả"), "khi hồ sơ đã nộp ở đâu thì trả ở đó", "copied"),
        ("パスワードリセット", "暗証番号を忘れた場合の再設定の手続きについて説明します。", ""),
        ("ＷＩＮＤＯＷＳ　ＵＰＤＡＴＥ", "the last windows update fails with an error", ""),
    ],
)
def test_words_are_compared_with_their_marks_however_they_are_encoded(query, text, problem):
    found = apply_filters([draft(query, text)], [], FilterSettings(), None)
    assert [one.problem for one in found] == [problem]


@given(st.text(alphabet=st.characters(max_codepoint=0x0DFF)), st.integers(0, 9))
def test_words_are_what_stands_between_spaces(text, count):
    assert words(text) == text.split()
    assert first_words(text, count) == " ".join(text.split()[:count])


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), max_size=8))
def test_the_longest_run_is_the_longest_common_piece(query, document):
    pieces = [query[i:j] for i in range(len(query)) for j in range(i + 1, len(query) + 1)]
    common = [len(p) for p in pieces if any(document[k : k + len(p)] == p for k in range(len(document)))]
    assert longest_run(" ".join(query), " ".join(document)) == max(common, default=0)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=2, max_size=40),
    st.floats(0.05, 0.9),
)
def test_train_and_dev_never_share_a_file(pairs, fraction):
    parent = {f"d{number}": f"file{own}" for number, own in pairs}
    if len(parent) < 2:
        return
    dev, by = held_out(list(parent), parent, fraction)
    assert 0 < len(dev) < len(parent)
    if by == "document":
        assert not {parent[one] for one in dev} & {parent[one] for one in parent if one not in dev}


def test_a_larger_number_of_documents_keeps_the_smaller_ones(documents):
    few, many = (choose(documents, RealQueries(), settings(documents=n)) for n in (5, 12))
    assert [one.document for one in many][:5] == [one.document for one in few]
    assert len({one.document for one in many}) == 12
    assert {one.type for one in many} == {"question", "keywords", "claim", "title", "conversational"}


def test_a_passage_that_stands_on_each_page_is_asked_about_once(tmp_path):
    source = tmp_path / "pages"
    source.mkdir()
    menu = " ".join(f"Entry number {number} of the menu." for number in range(40))
    for name in ("fig", "plum", "pear"):
        (source / f"{name}.md").write_text(f"# {name}\n\n{menu}\n\nHow to dry a {name} on the roof. " * 2)
    passages = open_collection("pages", import_documents(source, tmp_path / "documents"))
    asked = [one.text.partition(". ")[2] for one in choose(passages, RealQueries(), settings(documents=99))]
    assert len(asked) == len(set(asked)) < len(list(passages.documents()))


def test_queries_per_document_have_different_types(documents):
    requests = choose(documents, RealQueries(), settings(documents=3, queries_per_document=2))
    assert len(requests) == 6
    assert len({(one.document, one.type) for one in requests}) == 6


def test_documents_of_real_queries_are_not_asked_about(tmp_path):
    collection = open_collection("fruit", write_collection(tmp_path / "fruit", WORDS["fruit"]))
    real = real_queries(collection)
    assert len(real.dev) == 21
    assert len(real.test) == 7
    with pytest.raises(DatasetError, match="judged for a query"):
        choose(collection, real, settings())
    only_test = RealQueries(test=real.test, test_qrels=real.test_qrels)
    asked = {one.document for one in choose(collection, only_test, settings(documents=100))}
    assert not asked & only_test.judged()
    assert len(asked) == 21


def test_an_interrupted_writer_goes_on_and_pays_for_nothing_twice(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        own = {"kind": "endpoint", "url": server.url, "model": "m", "concurrency": 1, "token_budget": 1300}
        generation = settings(writer=own)
        requests = choose(documents, RealQueries(), generation)
        first = write_step(documents, requests, generation)
        with pytest.raises(WriterError, match="token_budget"):
            type(first).build_all([first], store)
        paid = len(server.requests)
        assert 0 < paid < len(requests)
        richer = settings(writer={**own, "token_budget": 10_000})
        second = write_step(documents, requests, richer)
        assert second.key == first.key
        assert second.spent(store) == 100 * paid
        type(second).build_all([second], store)
        drafts, tokens = read_drafts(store, second)
        assert len(server.requests) == len(requests) == len(drafts)
        assert tokens == 100 * len(requests)
        more = write_step(documents, choose(documents, RealQueries(), settings(documents=25)), richer)
        assert len(more.missing(store)) == 5


def test_answers_of_no_use_count_for_the_budget_in_all_later_runs(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        server.answer = lambda prompt: " "
        own = settings(writer={"kind": "endpoint", "url": server.url, "model": "m", "token_budget": 2000})
        step = write_step(documents, choose(documents, RealQueries(), own), own)
        for _ in range(4):
            with pytest.raises(WriterError):
                type(step).build_all([step], store)
            assert step.spent(store) == 100 * len(server.requests) <= 2000
        with pytest.raises(WriterError, match=r"token_budget: 2000 tokens, 1\d00 of them spent"):
            type(step).build_all([step], store)
        assert len(step.missing(store)) == len(step.requests)


def test_more_documents_ask_and_pay_for_the_new_ones_alone(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        for number in (7, 16, 3):  # neither is a multiple of the shard's size
            own = settings(documents=number, writer={"kind": "endpoint", "url": server.url, "model": "m"})
            step = write_step(documents, choose(documents, RealQueries(), own), own)
            type(step).build_all([step], store)
            drafts, tokens = read_drafts(store, step)
            assert all(one.query for one in drafts)
            assert (len(drafts), tokens) == (number, 100 * number)
    assert len(server.requests) == 16


@pytest.fixture
def flaky(documents, tmp_path, inline):
    """A run over 20 documents by an endpoint that the test may break: 2 first calls, then shards of 5."""
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        own = {"kind": "endpoint", "url": server.url, "model": "m", "attempts": 1, "concurrency": 1}
        generation = settings(writer=own)
        step = write_step(documents, choose(documents, RealQueries(), generation), generation)
        yield server, step, store


def test_an_outage_ends_the_run_in_one_line_and_the_next_one_asks_only_what_failed(flaky):
    server, step, store = flaky
    server.fails = lambda number: number in {4, 5, 9}
    with pytest.raises(
        WriterError, match=r"3 of 20 requests gave no query \(status 500\); run the same"
    ) as said:
        type(step).build_all([step], store)
    assert "\n" not in str(said.value)
    assert not store.exists(step.key)
    server.fails = lambda number: False
    type(step).build_all([step], store)
    drafts, tokens = read_drafts(store, step)
    assert all(one.query for one in drafts)
    # One that was answered before shows that the endpoint works now.
    assert len(server.requests) == 20 + 1 + 3
    assert tokens == 100 * 21


def test_an_endpoint_that_stays_away_loses_no_query_however_often_it_is_tried(flaky):
    server, step, store = flaky
    server.fails = lambda number: number > 4
    with pytest.raises(WriterError, match="none of 5 requests in a row"):
        type(step).build_all([step], store)
    asked = len(server.requests)
    for again in range(4):
        with pytest.raises(WriterError, match="a trial call failed"):
            type(step).build_all([step], store)
        assert len(server.requests) <= asked + 2 * (again + 1)
    server.fails = lambda number: False
    type(step).build_all([step], store)
    assert all(one.query for one in read_drafts(store, step)[0])


def test_documents_that_fail_a_third_time_while_others_are_answered_are_dropped(flaky):
    server, step, store = flaky
    poison = {one.text for one in step.requests[4::2]}
    server.fails = lambda number: any(
        text in server.requests[number]["messages"][-1]["content"] for text in poison
    )
    step.settings.writer.url  # noqa: B018
    for _ in range(2):
        with pytest.raises(WriterError, match=r"8 of 20 requests gave no query"):
            type(step).build_all([step], store)
    type(step).build_all([step], store)
    problems = [one.problem for one in read_drafts(store, step)[0]]
    assert problems == ["", "", "", "", *["status 500", ""] * 8]


def test_a_last_document_without_an_answer_keeps_no_command_from_its_end(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        for number in (5, 6):
            own = settings(documents=number, writer={"kind": "endpoint", "url": server.url, "model": "m"})
            step = write_step(documents, choose(documents, RealQueries(), own), own)
            last = step.requests[5].text if number == 6 else "none"
            server.answer = lambda prompt, last=last: "" if last in prompt else "two words"
            type(step).build_all([step], store)
    assert [one.problem for one in read_drafts(store, step)[0]] == [*[""] * 5, "empty answer"]


def test_drafts_in_a_damaged_or_lost_file_are_asked_again_and_the_others_not(flaky):
    server, step, store = flaky
    type(step).build_all([step], store)
    folder = Path(store.location(step.drafts_key))
    for number, damage in enumerate((Path.unlink, lambda path: path.write_bytes(b"")), 1):
        store.delete(step.key)
        damage(sorted(folder.iterdir())[1])  # one of three shards of 5
        type(step).build_all([step], store)
        assert all(one.query for one in read_drafts(store, step)[0])
        assert len(server.requests) == 20 + 5 * number
    assert step.missing(store) == []


def test_drafts_of_an_earlier_version_are_read(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        own = settings(documents=7, writer={"kind": "endpoint", "url": server.url, "model": "m"})
        step = write_step(documents, choose(documents, RealQueries(), own), own)
        columns = ("number", "document", "type", "query", "tokens", "problem")
        for name, start, stop in (("one.parquet", 0, 4), ("partial-two.parquet", 4, 6)):
            rows = [
                dict(zip(columns, (number, *one.id, f"old {number}", 70, ""), strict=True))
                for number, one in enumerate(step.requests[start:stop])
            ]
            table = arrow.Table.from_pylist(rows)
            store.put(step.drafts_key, name, partial(parquet.write_table, table))
        type(step).build_all([step], store)
        drafts, tokens = read_drafts(store, step)
    assert [one.query for one in drafts[:6]] == ["old 0", "old 1", "old 2", "old 3", "old 0", "old 1"]
    # One that was answered before shows that the endpoint works.
    assert len(server.requests) == 1 + 1
    assert tokens == 6 * 70 + 2 * 100


def test_what_the_first_calls_gave_is_kept_and_counted(documents, tmp_path, inline):
    recipe = tiny_recipe(tmp_path)
    store = ArtifactStore.open(recipe.storage)
    with endpoint() as server:
        own = settings(
            writer={"kind": "endpoint", "url": server.url, "model": "m"},
            filters={"round_trip": "none", "similarity": 1.0},
        )
        made = Generation(documents, store, recipe.encoder, recipe.corpus, own).run(tmp_path / "new")
        assert len(server.requests) == 20
    assert made.facts["tokens"] == 2000


def test_a_shard_without_any_query_ends_the_run_in_one_line(documents, tmp_path, inline):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        server.answer = lambda prompt: ""
        own = settings(writer={"kind": "endpoint", "url": server.url, "model": "m"})
        step = write_step(documents, choose(documents, RealQueries(), own), own)
        with pytest.raises(WriterError, match="none of 5 requests in a row"):
            type(step).build_all([step], store)
        server.answer = None
        type(step).build_all([step], store)
    assert all(one.query for one in read_drafts(store, step)[0])


def test_the_folder_is_a_collection_like_any_other(documents, tmp_path):
    kept = [draft(f"where is fig number {n}", number=n) for n in range(20)]
    dropped = [draft("bad", number=20, problem="too short")]
    made = write_generated(documents, RealQueries(), kept + dropped, tmp_path / "new", 0.2, {"key": "k"})
    assert check_collection(made.folder, 5).errors == 0
    collection = open_collection("new", made.folder)
    train, dev = ({d for own in collection.qrels(split).values() for d in own} for split in ("train", "dev"))
    assert not train & dev
    assert (len(train), len(dev)) == (16, 4)
    assert made.rows() == [("train", 16), ("dev, generated", 4), ("dropped: too short", 1)]
    assert read_provenance(made.folder)["held_out_by"] == "document"
    assert read_generated(made.folder, "k") == made
    with pytest.raises(DatasetError, match="made from something else"):
        read_generated(made.folder, "other")


def test_real_queries_become_dev_and_test_stays(tmp_path):
    collection = open_collection("fruit", write_collection(tmp_path / "fruit", WORDS["fruit"]))
    real = real_queries(collection)
    made = write_generated(collection, real, [draft("what else is there")], tmp_path / "new", 0.2, {})
    there = open_collection("new", made.folder)
    assert there.queries("dev") == real.dev
    assert there.queries("test") == collection.queries("test")
    assert there.qrels("test") == collection.qrels("test")
    assert list(there.queries("train").values()) == ["what else is there"]


def test_the_new_folder_is_read_by_the_settings_of_the_old(tmp_path):
    folder = write_collection(tmp_path / "fruit", WORDS["fruit"])
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "final.tsv")
    own = DomainSettings(path="", test_split="final")
    collection = open_collection("fruit", folder, own)
    drafts = [draft("what else is there")]
    made = write_generated(collection, real_queries(collection), drafts, tmp_path / "new", 0.2, {})
    there = open_collection("new", made.folder, own)
    assert there.split_hash("test") == collection.split_hash("test")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_split_that_plays_test_has_no_room_for_generated_queries(tiny_data, split):
    folder = tiny_data / "data" / "fruit"
    (folder / "qrels" / "test.tsv").replace(folder / "qrels" / f"{split}.tsv")
    domains = {"fruit": {"path": "fruit", "test_split": split, "expert": False}, "metal": {"path": "metal"}}
    with pytest.raises(DatasetError, match=rf"^domains\.fruit\.test_split: {split} is test here") as error:
        generation(tiny_recipe(tiny_data, domains=domains), "fruit")
    assert f"rename {folder / 'qrels' / split}.tsv to test.tsv" in str(error.value)


def test_nothing_left_is_said_with_the_reasons(documents, tmp_path):
    with pytest.raises(DatasetError, match=r"none of 1 generated queries is left.*too short 1"):
        write_generated(documents, RealQueries(), [draft("x", problem="too short")], tmp_path / "n", 0.2, {})
    assert not (tmp_path / "n").exists()


def test_an_estimate_pays_for_no_call_twice_and_spends_the_budget(documents, tmp_path):
    recipe = tiny_recipe(tmp_path)
    store = ArtifactStore.open(recipe.storage)

    def generation(budget):
        writer = {"kind": "endpoint", "url": server.url, "model": "m", "concurrency": 1}
        own = settings(writer={**writer, "token_budget": budget})
        return Generation(documents, store, recipe.encoder, recipe.corpus, own)

    with endpoint() as server:
        estimate = generation(10_000).estimate()
        assert len(server.requests) == 5
        assert (estimate.documents, estimate.calls, estimate.written, estimate.tokens) == (20, 20, 5, 1500)
        assert "20 calls, 5 of them made already" in estimate.told()
        assert len(estimate.examples) == 5
        assert generation(10_000).step.spent(store) == 500
        with pytest.raises(WriterError, match="500 of them spent"):
            generation(501).estimate()
        assert len(server.requests) == 5
        for _ in range(4):
            last = generation(10_000).estimate()
        assert len(server.requests) == 20
        assert (last.written, last.tokens, last.seconds) == (20, 0, 0)


def test_a_wrong_endpoint_is_one_line_before_any_worker_starts(documents, tmp_path):
    recipe = tiny_recipe(tmp_path)
    store = ArtifactStore.open(recipe.storage)
    with endpoint() as server:
        server.html = True
        own = settings(writer={"kind": "endpoint", "url": server.url, "model": "m", "attempts": 1})
        generation = Generation(documents, store, recipe.encoder, recipe.corpus, own)
        with pytest.raises(WriterError, match=r"answered text/html, no completion.*ends in /v1"):
            generation.run(tmp_path / "new")


def test_examples_come_from_a_file(tmp_path):
    recipe, path = tiny_recipe(tmp_path), tmp_path / "examples.jsonl"
    path.write_text('{"query": "where is fig"}\n{"query": "plum", "document": "plum jam"}\n')
    assert [one.query for one in with_examples(recipe, path).generation.examples] == ["where is fig", "plum"]
    path.write_text('{"query": "where is fig"}\nplum\n')
    with pytest.raises(RecipeError, match=r"examples\.jsonl:2: not a JSON object"):
        with_examples(recipe, path)
    path.write_text('{"query": "one"}\n' * 9)
    with pytest.raises(RecipeError, match="9 examples; give 1 to 8"):
        with_examples(recipe, path)


def test_imported_documents_are_kept_and_others_refused(tmp_path):
    source = tmp_path / "files"
    with pytest.raises(DatasetError, match="no such file"):
        import_documents(source, tmp_path / "documents")
    source.mkdir()
    with pytest.raises(DatasetError, match="nothing that can be imported"):
        import_documents(source, tmp_path / "documents")
    (source / "fig.md").write_text("# Fig\n\n" + "A fig is a fruit of the garden. " * 60)
    folder = import_documents(source, tmp_path / "documents")
    assert len(list(open_collection("documents", folder).documents())) > 1
    assert import_documents(source, folder) == folder
    (source / "plum.md").write_text("# Plum\n\nA plum.")
    with pytest.raises(DatasetError, match="imported from other files"):
        import_documents(source, folder)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    folder = import_documents(archive, tmp_path / "unpacked")
    assert import_documents(archive, folder) == folder


def test_imported_documents_are_kept_whatever_the_bytes_of_their_names(tmp_path):
    source = tmp_path / "files"
    source.mkdir()
    Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.md")).write_text("# Coffee\n\nGrind it.")
    folder = import_documents(source, tmp_path / "documents")
    assert import_documents(source, folder) == folder


@pytest.mark.parametrize("round_trip", ["hybrid", "base"])
def test_a_generation_from_documents_to_the_folder(documents, tmp_path, inline, round_trip):
    recipe = tiny_recipe(tmp_path)
    store = ArtifactStore.open(recipe.storage)
    filters = {"round_trip": round_trip, "depth": 10, "similarity": 1.0}
    with endpoint() as server:
        server.fails = lambda number: number % 3 == 0
        own = settings(writer={"kind": "endpoint", "url": server.url, "model": "m"}, filters=filters)
        generation = Generation(documents, store, recipe.encoder, recipe.corpus, own)
        made = generation.run(tmp_path / "new")
        asked = len(server.requests)
        assert generation.run(tmp_path / "new") == made
        stricter = settings(
            writer={"kind": "endpoint", "url": server.url, "model": "m"}, filters={**filters, "depth": 1}
        )
        fewer = Generation(documents, store, recipe.encoder, recipe.corpus, stricter).run(tmp_path / "strict")
        assert len(server.requests) == asked
    assert 0 < fewer.kept <= made.kept <= 20
    assert made.kept + sum(made.facts["dropped"].values()) == made.facts["counts"]["calls"] == 20
    if round_trip == "base":  # random vectors alone find fewer
        assert fewer.kept < made.kept
        assert set(fewer.facts["dropped"]) == {"source not found"}
    there = open_collection("new", made.folder)
    assert len(there.queries("train")) + len(there.queries("dev")) == made.kept
    assert there.corpus_hash() == documents.corpus_hash()


class Teacher:
    """Likes the documents of even numbers, and says how it was asked."""

    depth = 15

    def __init__(self) -> None:
        self.asked = []

    def check(self) -> None:
        assert not self.asked

    def identity(self):
        return {"likes": "even numbers"}

    def score(self, queries, documents):
        self.asked += [len(own) for own in documents]
        return [np.array([1.0 - int(one.split()[-1]) % 2 for one in own]) for own in documents]


def test_a_query_is_kept_only_if_the_teacher_ranks_its_source_high_too(documents, tmp_path, inline):
    recipe, store = tiny_recipe(tmp_path), ArtifactStore.open(str(tmp_path / "storage"))
    own = settings(filters={"depth": 4, "similarity": 1.0})
    plain = Generation(documents, store, recipe.encoder, recipe.corpus, own)
    teacher = Teacher()
    taught = replace(plain, teacher=teacher)
    every, fewer = plain.run(tmp_path / "plain"), taught.run(tmp_path / "taught")
    assert teacher.asked == [15] * every.kept
    dropped = fewer.facts["dropped"]["teacher prefers others"]
    assert (dropped, fewer.kept) == (every.kept - fewer.kept, every.kept - dropped)
    queries = read_queries(fewer.folder)
    assert queries
    assert all(int(one["metadata"]["source"][1:]) % 2 == 0 for one in queries)
    assert ("dropped: teacher prefers others", dropped) in fewer.rows()
    assert read_provenance(fewer.folder)["teacher"] == {"likes": "even numbers"}
    assert "teacher" not in read_provenance(every.folder)
    assert taught.key() != plain.key()


def test_without_a_round_trip_the_teacher_is_not_asked(documents, tmp_path, inline):
    recipe, store = tiny_recipe(tmp_path), ArtifactStore.open(str(tmp_path / "storage"))
    own = settings(filters={"round_trip": "none", "similarity": 1.0})
    teacher = Teacher()
    Generation(documents, store, recipe.encoder, recipe.corpus, own, teacher).run(tmp_path / "new")
    assert teacher.asked == []


def test_the_teacher_of_a_recipe_s_experts_reads_the_generated_queries(documents, tmp_path, inline):
    def rerank(body):
        return [{"index": number, "score": len(text)} for number, text in enumerate(body["texts"])]

    filters = {"depth": 4, "similarity": 1.0}
    with endpoint("rerank", rerank) as server:
        teacher = {"kind": "endpoint", "url": server.url, "api": "tei", "model": "m", "depth": 12}
        recipe = tiny_recipe(
            tmp_path,
            training={**TINY_TRAINING, "distillation": 1.0, "teacher": teacher},
            generation={**SETTINGS, "filters": filters},
        )
        made = pipeline_documents.generation_for(recipe, documents).run(tmp_path / "new")
    assert made.facts["dropped"]["teacher prefers others"] > 0
    assert read_provenance(made.folder)["teacher"]["model"] == "m"
    tried, *asked = [len(body["texts"]) for body in server.requests]
    assert tried == 2
    assert set(asked) == {12}


def read_queries(folder):
    return [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]


def test_files_become_a_collection_and_the_domain_is_added(tmp_path, inline, monkeypatch):
    files = tmp_path / "files"
    files.mkdir()
    for number in range(12):
        text = f"Tool {number} is made of {WORDS['metal'][number % 8]} and has {number} parts."
        (files / f"{number}.md").write_text(f"# Manual {number}\n\n{text}")
    write_collections(tmp_path)
    own = {"writer": {"kind": "extract"}, "filters": {"round_trip": "none", "similarity": 1.0}}
    path = save_recipe(tiny_recipe(tmp_path, generation=own), tmp_path / "recipe.yaml")
    added = []
    monkeypatch.setattr(pipeline_documents, "add_domain", lambda *given: added.append(given) or "registered")
    assert estimate_documents(path, "tools", files, None).calls == 12
    with pytest.raises(RecipeError, match="fruit, metal are not trained"):
        add_from_documents(path, "tools", files)  # `add_domain` would say so after hours of generation
    monkeypatch.setattr(pipeline_documents, "require_trained", lambda _: None)
    assert not (tmp_path / "data" / "generated").exists()
    for _ in range(2):  # the second time all of it is there
        generated, registered = add_from_documents(path, "tools", files, release=False)
    assert registered == "registered"
    assert added == [(path, "tools", "generated/tools", False)] * 2
    assert generated.folder == tmp_path / "data" / "generated" / "tools"
    made = open_collection("tools", generated.folder)
    assert generated.kept == 12
    assert next(made.documents()).metadata["parent"].endswith(".md")
    with pytest.raises(RecipeError, match="has an expert already"):
        add_from_documents(path, "fruit", files)
    with pytest.raises(RecipeError, match="has an expert already"):
        estimate_documents(path, "fruit", files, None)


def test_a_domain_is_searched_as_its_own_settings_say(tmp_path):
    write_collections(tmp_path)
    domains = {
        "fruit": {"path": "fruit", "lexical": {"language": "code"}},
        "metal": {"path": "metal"},
        "sport": {"path": "sport", "expert": False, "lexical": None},
    }
    recipe = tiny_recipe(tmp_path, domains=domains)
    found = {name: pipeline_documents.generation(recipe, name).corpus.lexical for name in domains}
    assert found["fruit"].language == "code"
    assert found["metal"] == recipe.corpus.lexical
    assert found["sport"] is None
