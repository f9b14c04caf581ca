import gzip
import importlib
import inspect
import json
import os
import random
import sys
import types
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.artifacts.step import build_missing
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.checking import check_collection, relative
from routerretriever.datasets.collection import (
    BEIR_NAMES,
    Collection,
    Document,
    open_collection,
    sample_domains,
)
from routerretriever.datasets.download import download, write_split
from routerretriever.datasets.files import import_hint
from routerretriever.datasets.judgements import judgements_step, load_judgements
from routerretriever.datasets.splitting import hold_out, split_train
from routerretriever.errors import DatasetError, RouterRetrieverError

HEADER = "query-id\tcorpus-id\tscore\n"
CORPUS = [
    {"_id": "d1", "title": "Bread", "text": "Knead it."},
    {"_id": "d2", "text": "Let it rise."},
    {"_id": "d3", "title": "Oven", "text": ""},
]
QUERIES = [{"_id": f"q{number}", "text": f"question {number}"} for number in (3, 1, 2)]
QRELS = {"train": "q1\td1\t2\nq1\td2\t0\n", "dev": "q2\td2\t1\n", "test": "q3\td3\t1\n"}


def put(path, content, gzipped=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    if gzipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def make(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, gzipped=False):
    put(folder / "corpus.jsonl", corpus if isinstance(corpus, bytes | str) else lines(corpus), gzipped)
    put(folder / "queries.jsonl", queries if isinstance(queries, bytes | str) else lines(queries), gzipped)
    for split, content in qrels.items():
        put(folder / "qrels" / f"{split}.tsv", HEADER + content, gzipped)
    return Collection("toy", folder)


def make_train_only(folder, size=40, reverse=False):
    ids = [f"q{number}" for number in range(size)]
    if reverse:
        ids.reverse()
    queries = [{"_id": query, "text": f"about {query}"} for query in ids]
    return make(folder, queries=queries, qrels={"train": "".join(f"{query}\td1\t1\n" for query in ids)})


@pytest.fixture
def toy(tmp_path):
    return make(tmp_path / "toy")


# --- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzipped", [False, True])
def test_reads_documents_queries_and_qrels(tmp_path, gzipped):
    collection = make(tmp_path, gzipped=gzipped)
    documents = list(collection.documents())
    assert documents == [
        Document("d1", "Bread", "Knead it."),
        Document("d2", "", "Let it rise."),
        Document("d3", "Oven", ""),
    ]
    assert [document.content for document in documents] == ["Bread Knead it.", "Let it rise.", "Oven"]
    assert collection.qrels("train") == {"q1": {"d1": 2, "d2": 0}}
    assert collection.queries("test") == {"q3": "question 3"}
    assert collection.splits() == ("train", "dev", "test")


def test_documents_are_streamed(tmp_path):
    collection = make(tmp_path, corpus=lines(CORPUS[:1]) + "broken\n")
    stream = collection.documents()
    assert inspect.isgenerator(stream)
    assert next(stream).id == "d1"  # the broken line behind it was not read yet
    with pytest.raises(DatasetError, match=r"corpus\.jsonl:2: not JSON"):
        next(stream)


def test_queries_keep_file_order_and_test_keeps_those_judged_only_0(tmp_path):
    collection = make(tmp_path, qrels={"test": "q1\td1\t1\nq2\td1\t0\nq3\td1\t0\nq3\td2\t1\n"})
    assert list(collection.queries("test")) == ["q3", "q1", "q2"]
    assert collection.qrels("test") == {"q1": {"d1": 1}, "q2": {"d1": 0}, "q3": {"d1": 0, "d2": 1}}
    train = make(tmp_path / "train", qrels={"train": "q1\td1\t1\nq2\td1\t0\n", "dev": "q3\td1\t1\n"})
    assert train.qrels("train") == {"q1": {"d1": 1}}


def test_windows_line_ends_and_unicode_separators_are_read(tmp_path):
    text = "one\u2028line"
    corpus = json.dumps({"_id": "d1", "text": text}, ensure_ascii=False) + "\r\n"
    collection = make(tmp_path, corpus=corpus, qrels={})
    put(tmp_path / "qrels/test.tsv", (HEADER + "q1\td1\t1").replace("\n", "\r\n"))
    assert [document.text for document in collection.documents()] == [text]
    assert collection.qrels("test") == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1\td1", "not three columns"),
        ("q1 d1 1", "not three columns"),
        ("q1\t\t1", "not three columns"),
        ("q1\td1\t1\tmore", "not three columns"),
        ("q1\td1\t0.5", "not an integer, found '0.5'"),
        ("q1\td1\tyes", "not an integer"),
        ("q1\td2\t1", "a second score"),
    ],
)
def test_a_malformed_judgement_is_refused_with_its_line(tmp_path, line, message):
    collection = make(tmp_path, qrels={"test": f"q1\td2\t0\n{line}\n"})
    with pytest.raises(DatasetError, match=rf"qrels/test\.tsv:3: .*{message}"):
        collection.qrels("test")


def test_trecs_minus_one_blank_lines_and_other_column_names_are_read(tmp_path):
    collection = make(tmp_path, qrels={})
    put(tmp_path / "qrels/test.tsv", "query\tdocument\tgrade\nq1\td1\t-1\n\nq1\td2\t2\n \n")
    assert collection.qrels("test") == {"q1": {"d1": 0, "d2": 2}}
    assert found(tmp_path) == []


def test_a_missing_header_is_refused(tmp_path):
    collection = make(tmp_path, qrels={})
    put(tmp_path / "qrels/test.tsv", "q1\td1\t1\n")
    with pytest.raises(
        DatasetError, match=r"test\.tsv:1: not a header, found 'q1.*query-id, corpus-id, score"
    ):
        collection.qrels("test")


def test_a_judged_query_must_be_there_once(tmp_path):
    with pytest.raises(DatasetError, match=r"test\.tsv:2: query 'q9' is not in queries\.jsonl"):
        make(tmp_path / "a", qrels={"test": "q9\td1\t1\n"}).queries("test")
    with pytest.raises(DatasetError, match=r"queries\.jsonl:4: id 'q3' is line 1's already"):
        make(tmp_path / "b", queries=[*QUERIES, QUERIES[0]]).queries("test")


def test_a_split_that_is_not_there(tmp_path, toy):
    with pytest.raises(
        RouterRetrieverError, match="no split is named 'valid'; there are train, dev, test"
    ) as caught:
        toy.queries("valid")
    assert not isinstance(caught.value, DatasetError)
    with pytest.raises(RouterRetrieverError, match="no split is named"):
        toy.split_hash("valid")
    test_only = make(tmp_path / "test_only", qrels={"test": QRELS["test"]})
    assert test_only.splits() == ("test",)
    for split in ("train", "dev"):
        with pytest.raises(DatasetError, match=rf"no {split} split \(found: test\)"):
            test_only.qrels(split)
    with pytest.raises(DatasetError, match="no query with a relevant document"):
        make(tmp_path / "empty", qrels={"test": ""}).qrels("test")


def test_a_damaged_gzip_file_is_named(tmp_path):
    collection = make(tmp_path, gzipped=True)
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DatasetError, match=r"corpus\.jsonl\.gz:\d+: damaged gzip"):
        list(collection.documents())
    with pytest.raises(DatasetError, match=r"corpus\.jsonl\.gz: damaged gzip"):
        collection.corpus_hash()


# --- held-out dev ----------------------------------------------------------------------------------


def test_dev_is_held_out_of_train_where_it_is_missing(tmp_path):
    collection = make_train_only(tmp_path)
    assert collection.splits() == ("train", "dev")
    train, dev = collection.qrels("train"), collection.qrels("dev")
    assert (len(train), len(dev)) == (36, 4)
    assert not train.keys() & dev.keys()
    assert collection.queries("dev").keys() == dev.keys()
    assert set(dev) == hold_out((f"q{number}" for number in range(40)), 0.1, "dev")


def test_held_out_dev_does_not_depend_on_file_order(tmp_path):
    forward, backward = make_train_only(tmp_path / "a"), make_train_only(tmp_path / "b", reverse=True)
    assert forward.qrels("dev").keys() == backward.qrels("dev").keys()
    assert forward.split_hash("dev") == backward.split_hash("dev")


def test_dev_cannot_be_held_out_of_one_query(tmp_path):
    assert len(make_train_only(tmp_path / "two", size=2).qrels("dev")) == 1
    for split in ("train", "dev"):
        with pytest.raises(DatasetError, match=r"train\.tsv: 1 query .* needs 2 or more"):
            make_train_only(tmp_path / "one", size=1).qrels(split)


ids_and_fraction = st.tuples(
    st.sets(st.text(max_size=6), min_size=2, max_size=40), st.floats(min_value=0.001, max_value=0.999)
)


@settings(max_examples=30, deadline=None)
@given(ids_and_fraction, st.randoms(use_true_random=False))
def test_hold_out_is_exact_and_independent_of_order(case, shuffler):
    ids, fraction = case
    held = hold_out(ids, fraction, "dev")
    assert len(held) == min(max(round(len(ids) * fraction), 1), len(ids) - 1)
    assert held < ids
    shuffled = sorted(ids)
    shuffler.shuffle(shuffled)
    assert hold_out(shuffled * 2, fraction, "dev") == held


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text(max_size=6), min_size=20, max_size=40), st.text(max_size=6))
def test_hold_out_hardly_moves_when_a_query_is_added(ids, added):
    before, after = hold_out(ids, 0.2, "dev"), hold_out(ids | {added}, 0.2, "dev")
    assert len((before ^ after) - {added}) <= 1


def test_hold_out_depends_on_the_salt_and_is_pinned():
    ids = [f"q{number}" for number in range(100)]
    assert sorted(hold_out(ids, 0.05, "dev")) == ["q20", "q39", "q47", "q80", "q99"]
    assert hold_out(ids, 0.5, "dev") != hold_out(ids, 0.5, "held_out")


def test_samples_of_a_split_are_nested_and_kept_apart_in_storage(tmp_path):
    collection = make_train_only(tmp_path / "one", size=40)
    store = ArtifactStore.open(str(tmp_path / "storage"))
    steps = [judgements_step(collection, "train", limit) for limit in (5, 20, None)]
    build_missing(steps, store)
    keys = [step.key for step in steps]
    small, large, whole = (load_judgements(store, key) for key in keys)
    assert (len(small.queries), len(large.queries)) == (5, 20)
    assert small.queries.items() < large.queries.items() < whole.queries.items()
    assert small.qrels.keys() == small.queries.keys()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_hold_out_refuses_a_fraction_out_of_range(fraction):
    with pytest.raises(RouterRetrieverError, match="fraction"):
        hold_out(["a", "b"], fraction, "dev")


def test_hold_out_refuses_fewer_than_two_ids():
    with pytest.raises(RouterRetrieverError, match=r"query_ids: .* found 1"):
        hold_out(["a", "a"], 0.5, "dev")


def test_split_train_keeps_order_and_may_hold_out_nothing():
    ids = [f"q{number}" for number in range(20)]
    random.Random(0).shuffle(ids)
    kept, held = split_train(ids, 0.25)
    assert set(held) == hold_out(ids, 0.25, "held_out")
    assert sorted(ids.index(query) for query in kept) == [ids.index(query) for query in kept]
    assert sorted(kept + held) == sorted(ids)
    assert split_train(ids, 0) == (ids, [])
    assert split_train(["only"], 0) == (["only"], [])
    groups = {query: str(int(query[1:]) // 2) for query in ids}
    kept, held = split_train(ids, 0.25, groups)
    assert not {groups[query] for query in kept} & {groups[query] for query in held}


# --- hashes ----------------------------------------------------------------------------------------


def test_hashes_are_equal_gzipped_or_not(tmp_path, toy):
    zipped = make(tmp_path / "zipped", gzipped=True)
    assert zipped.corpus_hash() == toy.corpus_hash()
    assert [zipped.split_hash(split) for split in toy.splits()] == [toy.split_hash(s) for s in toy.splits()]
    assert len({toy.corpus_hash(), *(toy.split_hash(split) for split in toy.splits())}) == 4
    assert all(len(digest) == 16 for digest in (toy.corpus_hash(), toy.split_hash("test")))


def test_hashes_see_a_changed_file_of_the_same_size(toy):
    corpus, test, dev = toy.corpus_hash(), toy.split_hash("test"), toy.split_hash("dev")
    for name, old, new in (("corpus.jsonl", "Knead", "Bread"), ("qrels/test.tsv", "d3\t1", "d3\t2")):
        path = toy.folder / name
        stamp = path.stat().st_mtime_ns + 10**9
        path.write_text(path.read_text().replace(old, new))
        os.utime(path, ns=(stamp, stamp))
    assert toy.corpus_hash() != corpus
    assert toy.split_hash("test") != test
    assert toy.split_hash("dev") == dev


def test_hashes_are_computed_once(toy, monkeypatch):
    module = importlib.import_module("routerretriever.datasets.collection")
    before = toy.corpus_hash(), toy.split_hash("test")
    monkeypatch.setattr(module, "content_digest", None)
    monkeypatch.setattr(module, "read_contents", None)
    again = Collection(toy.name, toy.folder)
    assert (again.corpus_hash(), again.split_hash("test")) == before


# --- opening ---------------------------------------------------------------------------------------


def test_open_collection_names_what_is_missing(tmp_path, toy, monkeypatch):
    assert open_collection("kitchen", str(toy.folder)) == Collection("kitchen", toy.folder)
    with pytest.raises(DatasetError, match=r"^domains\.kitchen\.path: no folder /.*/nowhere; mend the path$"):
        open_collection("kitchen", tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert f"--to {tmp_path.name}-beir`" in import_hint(Path("."))
    archive = tmp_path / "kitchen.tar.gz"
    archive.touch()
    told = (
        r"kitchen\.tar\.gz is a file, no folder; type `routerretriever datasets import .* --to kitchen-beir`"
    )
    with pytest.raises(DatasetError, match=rf"^domains\.kitchen\.path: /.*{told}$"):
        open_collection("kitchen", archive)
    with pytest.raises(DatasetError, match=rf"^/.*{told}$"):
        check_collection(archive)
    with pytest.raises(DatasetError, match=r"no folder .*`routerretriever datasets download scifact`"):
        open_collection("kitchen", tmp_path / "scifact")
    (toy.folder / "queries.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"domains\.kitchen\.path: no queries\.jsonl \(or .*gz\) in /"):
        open_collection("kitchen", toy.folder)
    with pytest.raises(DatasetError, match=r"queries\.jsonl: no such file"):
        toy.queries("test")
    with pytest.raises(DatasetError, match=r"no corpus\.jsonl .* name one of the collections in it: toy"):
        open_collection("kitchen", tmp_path)
    (tmp_path / "fiqa").mkdir()
    with pytest.raises(DatasetError, match="remove it and run `routerretriever datasets download fiqa`"):
        open_collection("kitchen", tmp_path / "fiqa")


def test_open_collection_makes_paths_absolute(tmp_path, toy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_collection("kitchen", "toy").folder == toy.folder


@pytest.mark.parametrize("domain", ["attic", "", "../sample/kitchen"])
def test_an_unknown_sample_names_the_known_ones(domain):
    with pytest.raises(DatasetError, match=r"domains\.x\.path: no built-in sample .* debate, garden, health"):
        open_collection("x", f"sample:{domain}")


def test_sample_domains():
    assert sample_domains() == ["debate", "garden", "health", "kitchen", "shell", "support", "tenancy"]


@pytest.mark.parametrize("domain", sample_domains())
def test_the_sample_is_whole(domain):
    collection = open_collection(domain, f"sample:{domain}")
    report = check_collection(collection.folder)
    assert report.issues == []
    assert report.ok
    assert (report.documents, report.queries) == (100, 150)
    assert len(list(collection.documents())) == 100
    assert [len(collection.queries(split)) for split in collection.splits()] == [80, 25, 45]


# --- checking --------------------------------------------------------------------------------------


def found(folder, severity="error"):
    report = check_collection(folder)
    counts = [issue.kind.severity for issue in report.issues]
    assert (report.errors, report.warnings) == (counts.count("error"), counts.count("warning"))
    assert report.ok == (report.errors == 0)
    return [
        (relative(folder, issue), issue.line, issue.message)
        for issue in report.issues
        if issue.kind.severity == severity
    ]


def assert_only_error(folder, file, line, message):
    (error,) = found(folder)
    assert error[:2] == (file, line)
    assert message in error[2]


@pytest.mark.parametrize("gzipped", [False, True])
def test_check_of_a_sound_collection(tmp_path, gzipped):
    make(tmp_path, gzipped=gzipped)
    report = check_collection(tmp_path)
    assert report.issues == []
    assert report.ok
    assert (report.documents, report.queries) == (3, 3)
    assert report.judgements == {"train": 2, "dev": 1, "test": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"_id": "x", ', "not JSON (Expecting"),
        (b'["x", "text"]', 'not a JSON object, found \'["x"'),
        (b'{"text": "a"}', "no \"_id\", found ['text']"),
        (b'{"_id": "", "text": "a"}', '"_id" is empty'),
        (b'{"_id": 7.5, "text": "a"}', "\"_id\" is not text, found '7.5'"),
        (b'{"_id": "x"}', 'no "text"'),
        (b'{"_id": "x", "text": null}', '"text" is null; write ""'),
        (b'{"_id": "x", "text": "caf\xe9"}', "not UTF-8, found 0xe9 as byte 26"),
    ],
)
@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_check_finds_a_bad_line(tmp_path, name, line, message):
    make(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert_only_error(tmp_path, name, 4, message)


def test_check_finds_a_title_that_is_no_string(tmp_path):
    make(tmp_path, corpus=[*CORPUS, {"_id": "d4", "title": ["a"], "text": "b"}])
    assert_only_error(tmp_path, "corpus.jsonl", 4, '"title" is not a string')


def test_check_lists_every_flaw_of_a_line(tmp_path):
    make(tmp_path, corpus=[*CORPUS, {"_id": 4.5, "title": 5}])
    assert [line for _, line, _ in found(tmp_path)] == [4, 4, 4]


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_check_finds_duplicate_ids(tmp_path, name):
    make(tmp_path)
    path = tmp_path / name
    first = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + first + "\n")
    assert_only_error(tmp_path, name, 4, "is line 2's already")


def test_check_finds_empty_texts(tmp_path):
    make(
        tmp_path,
        corpus=[*CORPUS, {"_id": "d4", "title": " ", "text": ""}],
        queries=[*QUERIES, {"_id": "q4", "text": "\n"}],
        qrels={**QRELS, "test": "q3\td3\t1\nq4\td3\t1\n"},
    )
    assert_only_error(tmp_path, "queries.jsonl", 4, "empty text; fill in or remove 'q4'")
    ((file, line, message),) = found(tmp_path, "warning")
    assert (file, line) == ("corpus.jsonl", 4)
    assert "empty title and text; fill in or remove 'd4'" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q9\td1\t1", "query 'q9' is not in queries.jsonl"),
        ("q3 d1 1", "not three columns"),
        ("q3\td1\t1.5", "not an integer"),
        ("q3\td3\t2", "'q3' and 'd3': a second score: they are judged in line 2"),
        ("q1\td3\t1", "query 'q1' is in two splits, see qrels/train.tsv, line 2"),
        (b"q3\td\xff\t1", "not UTF-8, found 0xff as byte 5"),
    ],
)
def test_check_finds_a_bad_judgement(tmp_path, line, message):
    make(tmp_path)
    path = tmp_path / "qrels" / "test.tsv"
    path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    assert_only_error(tmp_path, "qrels/test.tsv", 3, message)


def test_check_names_a_query_in_two_splits_once(tmp_path):
    make(tmp_path, qrels={**QRELS, "test": "q1\td1\t1\nq1\td2\t1\nq3\td1\t1\n"})
    assert_only_error(tmp_path, "qrels/test.tsv", 2, "two splits")


def test_check_finds_a_missing_header_and_empty_files(tmp_path):
    make(tmp_path)
    put(tmp_path / "qrels/test.tsv", QRELS["test"])
    errors = found(tmp_path)
    assert errors[0][:2] == ("qrels/test.tsv", 1)
    assert "not a header" in errors[0][2]
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        put(tmp_path / name, "")
    assert [(file, line) for file, line, _ in found(tmp_path)] == [
        ("qrels/test.tsv", 1),
        ("queries.jsonl", None),
        ("corpus.jsonl", None),
        ("qrels/test.tsv", None),
    ]


def test_check_finds_a_damaged_gzip_file(tmp_path):
    make(tmp_path, gzipped=True)
    put(tmp_path / "corpus.jsonl.gz", "no gzip")
    file, line, message = found(tmp_path)[0]
    assert (file, line) == ("corpus.jsonl.gz", 1)
    assert "damaged gzip" in message


def test_check_finds_missing_files(tmp_path):
    assert [(file, line) for file, line, _ in found(tmp_path)] == [
        ("queries.jsonl", None),
        ("corpus.jsonl", None),
        ("qrels", None),
    ]
    with pytest.raises(DatasetError, match="no such folder"):
        check_collection(tmp_path / "nowhere")


def test_notes_that_macos_keeps_beside_files_are_no_splits(tmp_path):
    make(tmp_path / "a")
    for path in (tmp_path / "a").rglob("*.*"):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert not any("._" in file for file, _, _ in found(tmp_path / "a", "warning"))


def test_check_warns_of_missing_splits(tmp_path):
    make(tmp_path / "none", qrels={})
    assert_only_error(tmp_path / "none", "qrels", None, "no split, so nothing to train on or to measure")
    make_train_only(tmp_path / "train_only")
    dev, test = found(tmp_path / "train_only", "warning")
    assert dev == ("qrels/dev.tsv", None, "no dev split; a tenth of the train queries is held out for it")
    assert "no test split" in test[2]
    make_train_only(tmp_path / "tiny", size=1)
    assert_only_error(tmp_path / "tiny", "qrels/train.tsv", None, "too small")


def test_check_warns_of_queries_without_judgement(tmp_path):
    make(tmp_path, qrels={"train": QRELS["train"], "dev": QRELS["dev"], "test": "q1\td3\t1\nq3\td3\t0\n"})
    assert [line for _, line, _ in found(tmp_path)] == [2]
    assert found(tmp_path, "warning") == [("qrels/test.tsv", 3, "query 'q3' has no judgement above 0")]


def test_check_limit_cuts_the_list_and_not_the_counts(tmp_path):
    make(tmp_path, corpus=lines(CORPUS) + "bad\n" * 10)
    report = check_collection(tmp_path, limit=3)
    assert [defect.line for defect in report.issues] == [4, 5, 6]
    assert report.errors == 10
    assert not check_collection(tmp_path, limit=0).ok


# --- making folders --------------------------------------------------------------------------------


@pytest.fixture
def beir(monkeypatch):
    """A stand-in for beir.util, whose import alone takes seconds; ``fetch`` is to be set."""
    module = types.ModuleType("beir.util")
    module.download_and_unzip = lambda url, out_dir: module.fetch(url, out_dir)
    monkeypatch.setitem(sys.modules, "beir", types.ModuleType("beir"))
    monkeypatch.setitem(sys.modules, "beir.util", module)
    return module


def test_download_fetches_once(tmp_path, beir):
    urls = []

    def fetch(url, out_dir):
        urls.append(url)
        make(Path(out_dir) / "scifact")
        return f"{out_dir}/scifact"

    beir.fetch = fetch
    folder = tmp_path / "new" / "data"
    assert download("scifact", folder) == folder / "scifact"
    assert download("scifact", folder) == folder / "scifact"
    assert urls == ["https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/scifact.zip"]
    assert [path.name for path in folder.iterdir()] == ["scifact"]
    assert open_collection("scifact", folder / "scifact").queries("test") == {"q3": "question 3"}


def test_download_takes_a_folder_of_collections(tmp_path, beir):
    def fetch(url, out_dir):
        for name in ("android", "english"):
            make(Path(out_dir) / "cqadupstack" / name)
        return f"{out_dir}/cqadupstack"

    beir.fetch = fetch
    folder = download("cqadupstack", tmp_path)
    beir.fetch = None
    assert download("cqadupstack", tmp_path) == folder
    assert (folder / "android" / "corpus.jsonl").is_file()


@pytest.mark.parametrize("error", [ConnectionError("no route"), zipfile.BadZipFile("File is not a zip file")])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, beir, error):
    def fetch(url, out_dir):
        put(Path(out_dir) / "fiqa.zip", "half")
        raise error

    beir.fetch = fetch
    with pytest.raises(
        DatasetError, match=r"fiqa: https://.*fiqa\.zip could not be fetched .* check the network"
    ):
        download("fiqa", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_a_collection_in_it_is_refused(tmp_path, beir):
    def fetch(url, out_dir):
        put(Path(out_dir) / "fiqa" / "corpus.jsonl", "")
        return f"{out_dir}/fiqa"

    beir.fetch = fetch
    with pytest.raises(DatasetError, match=r"holds no corpus\.jsonl and queries\.jsonl"):
        download("fiqa", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_download_touches_nothing_that_is_there(tmp_path):
    put(tmp_path / "fiqa" / "notes.txt", "mine")
    with pytest.raises(DatasetError, match="remove it and download again"):
        download("fiqa", tmp_path)
    assert (tmp_path / "fiqa" / "notes.txt").read_text() == "mine"


def test_download_lists_the_names_it_knows(tmp_path):
    with pytest.raises(DatasetError, match=r"sciphact: BEIR has no such collection; .*scidocs, scifact"):
        download("sciphact", tmp_path)
    assert list(BEIR_NAMES) == sorted(BEIR_NAMES)


def test_write_split_makes_the_held_out_dev_visible(tmp_path):
    original = make_train_only(tmp_path / "original")
    written = Collection("toy", write_split(original, tmp_path / "new" / "written"))
    assert sorted(path.name for path in (written.folder / "qrels").iterdir()) == ["dev.tsv", "train.tsv"]
    assert written.corpus_hash() == original.corpus_hash()
    for split in ("train", "dev"):
        assert written.split_hash(split) == original.split_hash(split)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["written"]


def test_write_split_can_hold_out_a_test_part(tmp_path):
    original = make_train_only(tmp_path / "original")
    written = Collection("toy", write_split(original, tmp_path / "written", test_fraction=0.25))
    assert [len(written.qrels(split)) for split in ("train", "dev", "test")] == [27, 4, 9]
    assert written.qrels("dev") == original.qrels("dev")
    assert check_collection(written.folder).issues == []


def test_write_split_copies_gzipped_files_and_grades(tmp_path):
    original = make(tmp_path / "original", gzipped=True)
    written = Collection("toy", write_split(original, tmp_path / "written"))
    assert (written.folder / "corpus.jsonl.gz").is_file()
    assert written.qrels("train") == {"q1": {"d1": 2, "d2": 0}}
    assert written.split_hash("test") == original.split_hash("test")


def test_write_split_refusals(tmp_path, toy):
    with pytest.raises(DatasetError, match="never written over"):
        write_split(toy, toy.folder)
    with pytest.raises(DatasetError, match=r"leave out test_fraction 0\.5"):
        write_split(toy, tmp_path / "new", test_fraction=0.5)
    test_only = make(tmp_path / "test_only", qrels={"test": QRELS["test"]})
    with pytest.raises(DatasetError, match=r"no train\.tsv"):
        write_split(test_only, tmp_path / "new")
    with pytest.raises(RouterRetrieverError, match=r"fraction: 1\.5"):
        write_split(make_train_only(tmp_path / "train_only"), tmp_path / "new", test_fraction=1.5)
    assert not (tmp_path / "new").exists()
