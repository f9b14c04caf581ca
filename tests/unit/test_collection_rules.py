"""Rules that hold for any collection, odd or not: checking, reading and BEIR's evaluator agree."""

import gzip
import json
import random
import shutil
import tempfile
import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import pytrec_eval
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routerretriever.cli.main import app
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.collection import Collection, open_collection, sample_domains
from routerretriever.datasets.download import write_split
from routerretriever.datasets.export import export_parquet
from routerretriever.datasets.importing import import_data
from routerretriever.datasets.judgements import Judgements
from routerretriever.datasets.passages import best_passages, parent_of
from routerretriever.datasets.preflight import learned_elsewhere, preflight
from routerretriever.datasets.reading import parse_json
from routerretriever.datasets.settings import DomainSettings, PassageSettings
from routerretriever.datasets.splitting import hold_out
from routerretriever.datasets.statistics import describe
from routerretriever.datasets.texts import close_groups, close_pairs, printable, signatures_of
from routerretriever.errors import DatasetError, RouterRetrieverError
from routerretriever.measures import measure
from routerretriever.training.examples import Examples
from routerretriever.training.settings import TrainingSettings
from typer.testing import CliRunner

HEADER = "query-id\tcorpus-id\tscore\n"
SAMPLE_HASHES = {
    "debate": "7446ca607605110d b0e76f7e479ae8fd fc557c6729501165 b92b4efed058a0fd",
    "garden": "c111b09672cdaf69 39bb6e61022b97e2 60bec93f0ada9758 955b0363b9030033",
    "health": "af120317427024a1 9735802ff788e2e7 50d28b32a811d9a0 c759683c9a197c43",
    "kitchen": "d163c885c7a5c285 cf9612fec426e523 403d67ce6a26807f 173309dabf745d05",
    "shell": "08a8716a984e6516 29f3e819985c4377 447f6f4f314a9b82 88a48a2ebdce99b1",
    "support": "78252693ce3f5800 5204b51d353dda61 7ab372238f88281a 74a5d673a37b3b63",
    "tenancy": "0ffc903656684a14 60c9951f4e4695ff cbfa962e5e7b4609 3e7c7ed91f63894d",
}
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def write(folder, corpus, queries, qrels, **domain):
    (folder / "qrels").mkdir(parents=True)
    for name, records in (("corpus", corpus), ("queries", queries)):
        data = (
            records
            if isinstance(records, bytes)
            else "".join(json.dumps(one) + "\n" for one in records).encode()
        )
        (folder / f"{name}.jsonl").write_bytes(data)
    for split, content in qrels.items():
        data = content if isinstance(content, bytes) else (HEADER + content).encode()
        (folder / "qrels" / f"{split}.tsv").write_bytes(data)
    return Collection("toy", folder, DomainSettings(path="", **domain))


def documents(*texts):
    return [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)]


def queries(*texts):
    return [{"_id": f"q{number}", "text": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("domain", sample_domains())
def test_keys_of_earlier_runs_stay_valid(domain):
    one = open_collection(domain, f"sample:{domain}")
    assert " ".join([one.corpus_hash(), *map(one.split_hash, one.splits())]) == SAMPLE_HASHES[domain]


def test_harmless_differences_are_read(tmp_path):
    corpus = b'\xef\xbb\xbf{"_id": 7, "title": null, "text": "a \\ud83d"}\n'
    one = write(tmp_path / "a", corpus, queries("x"), {"validation": "q0\t7\t+1.0\n"})
    for name, compress in (("corpus.jsonl", gzip.compress), ("queries.jsonl", zstandard.compress)):
        (one.folder / name).write_bytes(compress((one.folder / name).read_bytes()))
    (found,) = one.documents()
    assert (found.id, found.title, found.text) == ("7", "", "a \ufffd")
    assert one.qrels("dev") == {"q0": {"7": 1}}
    assert {each.kind.name for each in check_collection(one.folder).kinds} >= {
        "lone-surrogate",
        "integer-id",
        "other-name",
    }


@pytest.mark.parametrize(("rule", "kept"), [("auto", {"1"}), (True, set()), (False, {"0", "1"})])
def test_own_documents_stay_where_only_the_id_is_the_querys(tmp_path, rule, kept):
    corpus = [{"_id": "0", "text": "Same  Text"}, {"_id": "1", "text": "other"}]
    asked = [{"_id": "0", "text": "same text"}, {"_id": "1", "text": "question"}]
    one = write(tmp_path / "a", corpus, asked, {"test": "0\t1\t1\n1\t0\t1\n"}, ignore_identical_ids=rule)
    assert one.own_kept("test") == kept
    plain = Collection("toy", one.folder, DomainSettings(path="", ignore_identical_ids=True))
    assert (one.split_hash("test") == plain.split_hash("test")) == (not kept)


def test_missing_documents_are_left_out_of_train_and_count_in_test(tmp_path):
    lines = "".join(f"q{number}\td0\t1\n" for number in range(1, 12))
    qrels = {"train": lines + "q1\tgone\t1\n", "dev": "q12\td0\t1\n", "test": "q0\td0\t1\n"}
    one = write(tmp_path / "a", documents("a"), queries(*map(str, range(13))), qrels)
    assert one.qrels("train")["q1"] == {"d0": 1}
    (one.folder / "qrels/test.tsv").write_text(HEADER + "q0\tgone\t1\n")
    with pytest.raises(DatasetError, match=r"1 of 1 judged documents are not in the corpus"):
        one.qrels("test")
    assert one.qrels("train")["q1"] == {"d0": 1}  # its own file is sound


def test_copies_are_judged_alike_in_training(tmp_path):
    qrels = {"train": "q0\td0\t2\n", "dev": "q1\td2\t1\n", "test": "q2\td0\t1\n"}
    one = write(tmp_path / "a", documents("a", "a", "b"), queries("x", "y", "z"), qrels)
    assert one.qrels("train") == {"q0": {"d0": 2, "d1": 2}}
    assert one.qrels("test") == {"q2": {"d0": 1}}
    assert one.copies() == [["d0", "d1"]]
    alike = Collection("toy", one.folder, DomainSettings(path="", copies="alike"))
    assert alike.qrels("test") == {"q2": {"d0": 1, "d1": 1}}


def test_thousands_of_copies_take_little_memory(tmp_path):
    count = 3000
    qrels = {"train": "q0\td5\t1\nq0\td7\t2\n", "dev": f"q1\td{count}\t1\n"}
    one = write(tmp_path / "a", documents(*["same"] * count, "other"), queries("x", "y"), qrels)
    one.read()
    tracemalloc.start()
    try:
        assert one.qrels("train") == {"q0": {f"d{number}": 2 for number in range(count)}}
        assert tracemalloc.get_traced_memory()[1] < 2000 * count
    finally:
        tracemalloc.stop()


class Everything:
    """A corpus, its encoder and its index, whose best documents are the first ones for every query."""

    def __init__(self, count):
        self.rows = {f"d{number}": number for number in range(count)}
        self.most_found = 0

    def __len__(self):
        return len(self.rows)

    def tokenize_queries(self, texts, _):
        return [[1] for _ in texts]

    def encode_queries(self, texts):
        return np.zeros((len(texts), 2), dtype=np.float32)

    def search(self, vectors, depth):
        self.most_found = max(self.most_found, len(vectors) * depth)
        return None, np.tile(np.arange(min(depth, len(self))), (len(vectors), 1))


def test_one_query_with_thousands_of_positives_is_searched_for_deeply_alone():
    world, number = Everything(2000), 5000
    grades = {f"q{query}": {f"d{query % 3}": 1} for query in range(number)}
    grades["q7"] = {f"d{document}": 1 for document in range(1500)}
    train = Judgements(dict.fromkeys(grades, "text"), grades)
    examples = Examples(train, world, world, TrainingSettings(hard_negatives=2), "sampled")
    examples.mine(world, world, train)
    assert world.most_found < number * 1500 / 4
    assert [rows.tolist() for rows in examples.hard[:3]] == [[1, 2], [0, 2], [0, 1]]
    assert examples.hard[7].tolist() == [1500, 1501]


def test_a_copy_of_a_positive_is_no_negative(tmp_path):
    one = write(
        tmp_path / "c",
        documents("same", "other", "same", "third", "same"),
        queries("find same", "find other", "find third"),
        {"train": "q0\td0\t1\nq1\td1\t1\n", "dev": "q2\td3\t1\n"},
    )
    train = Judgements(one.queries("train"), one.qrels("train"))
    world = Everything(5)
    examples = Examples(
        train, world, world, TrainingSettings(hard_negatives=5, random_negatives=64), "sampled"
    )
    examples.mine(world, world, train)
    batch = examples.batch(0, 0, 1)
    for target, positives in zip(batch.target_rows, batch.positive_rows, strict=True):
        # Copies may be drawn at random or for another query; the loss leaves a query's positives out.
        assert positives.tolist() == ([0, 2, 4] if target in (0, 2, 4) else [1])
    assert [sorted(rows.tolist()) for rows in examples.hard] == [[1, 3], [0, 2, 3, 4]]


@pytest.mark.parametrize(
    ("text", "again"), [("Where", " where"), ("Größe", normalize("NFD", "Größe")), ("ＡＢＣ　１", "abc 1")]
)
def test_a_leak_by_text_is_counted_and_refused_on_demand(tmp_path, text, again):
    qrels = {"train": "q0\td0\t1\n", "dev": "q1\td0\t1\n", "test": "q2\td0\t1\n"}
    one = write(tmp_path / "a", documents("a"), queries(text, "y", again), qrels)
    assert check_collection(one.folder).equal_queries == {"test in train": 1}
    assert preflight([one], {"toy": ["train", "test"]}).notes("toy")
    strict = Collection("toy", one.folder, DomainSettings(path="", equal_texts="refuse"))
    with pytest.raises(DatasetError, match=r"test\.tsv:2: query 'q2' asks what 'q0' of train asks"):
        preflight([strict], {"toy": ["test"]})


def test_test_queries_that_another_domains_expert_learns_are_told(tmp_path):
    qrels = {"train": "q0\td0\t1\nq1\td0\t1\n", "dev": "q2\td0\t1\n", "test": "q3\td0\t1\nq4\td0\t1\n"}
    asked = {"one": "abcde", "two": "fDghi", "three": "dklmn"}
    made = {name: write(tmp_path / name, documents("x"), queries(*texts), qrels, expert=name != "three")
            for name, texts in asked.items()}  # fmt: skip
    collections = [replace(one, name=name) for name, one in made.items()]
    needs = {"one": ["train", "test"], "two": ["train", "test"], "three": ["test"]}
    report = preflight(collections, needs)
    assert report.learned_elsewhere == {"one": {"two": 1}}
    assert any("1 test queries are train queries of two" in note for note in report.notes("one"))
    command = [*("datasets", "check"), *(str(tmp_path / name) for name in asked)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0
    # Of a folder alone it is not known that it gets no expert.
    assert f"{tmp_path / 'one'}: 1 test queries are train queries of {tmp_path / 'two'}" in told.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found[str(tmp_path / "one")]["equal_queries"][f"test in train of {tmp_path / 'three'}"] == 1


def test_a_collection_alone_is_not_read_for_the_queries_of_others(tmp_path):
    gone = Collection("gone", tmp_path / "gone", DomainSettings(path=""))
    assert learned_elsewhere([gone], {"gone": ["train", "test"]}) == {}


def test_another_split_may_play_test(tmp_path):
    lines = "".join(f"q{number}\td0\t1\n" for number in range(1, 11))
    qrels = {"train": lines, "dev": "q0\td0\t1\n"}
    one = write(tmp_path / "a", documents("a"), queries(*map(str, range(11))), qrels, test_split="dev")
    assert one.splits() == ("train", "dev", "test")
    assert one.qrels("test") == {"q0": {"d0": 1}}
    assert len(one.qrels("dev")) == 1
    assert not one.qrels("dev").keys() & {"q0"}


def test_a_change_during_a_run_is_noticed(tmp_path):
    one = write(tmp_path / "a", documents("a"), queries("x"), {"test": "q0\td0\t1\n"})
    report = preflight([one], {"toy": ["test"]})
    report.require_unchanged([one])
    (one.folder / "corpus.jsonl").write_text(json.dumps({"_id": "d0", "text": "changed"}) + "\n")
    with pytest.raises(DatasetError, match="corpus changed since the run started"):
        report.require_unchanged([one])


def test_passages_name_their_parent_and_the_best_counts(tmp_path):
    text = " ".join(f"word{number}." for number in range(60))
    qrels = {"train": "q0\td0\t2\n", "dev": "q1\td1\t1\n"}
    settings = {"passages": PassageSettings(tokens=20, overlap=5)}
    one = write(tmp_path / "a", documents(text, "short"), queries("x", "y"), qrels, **settings)
    cut = [document.id for document in one.documents()]
    assert len(cut) > 4
    assert {parent_of(identifier) for identifier in cut} == {"d0", "d1"}
    assert one.qrels("train") == {
        "q0": {identifier: 2 for identifier in cut if parent_of(identifier) == "d0"}
    }
    assert one.corpus_hash() != Collection("toy", one.folder).corpus_hash()
    assert best_passages({"q": {"a#1": 0.1, "a#2": 0.9, "b#c#1": 0.5}}, 2) == {"q": {"a": 0.9, "b#c": 0.5}}


@FUZZ
@given(st.dictionaries(st.text(max_size=4), st.sampled_from("abcd"), min_size=2, max_size=30))
def test_groups_stay_together_and_single_ones_change_nothing(groups):
    if len(set(groups.values())) > 1:
        held = hold_out(groups, 0.3, "dev", groups)
        assert 0 < len(held) < len(groups)
        assert not {groups[query] for query in held} & {groups[query] for query in groups.keys() - held}
    assert hold_out(groups, 0.3, "dev", {query: query for query in groups}) == hold_out(groups, 0.3, "dev")


@pytest.mark.parametrize(
    ("sizes", "held"), [([60, *[1] * 40], 10), ([95, *[1] * 5], 5), ([60, 40], 40), ([48, 50, 2], 2)]
)
def test_a_group_that_is_too_large_is_not_held_out(sizes, held):
    for trial in range(20):
        pairs = [(group, number) for group, size in enumerate(sizes) for number in range(size)]
        groups = {f"{trial}-{group}-{number}": str(group) for group, number in pairs}
        assert len(hold_out(groups, 0.1, "dev", groups)) == held


def test_split_keeps_paraphrases_together_on_demand(tmp_path):
    texts = [f"how do I reset password number {number} of my account" for number in range(3)] * 3
    texts += [
        f"{word} {word}s" for word in ("kettle", "ladder", "bridge", "valve", "lamp", "pillow", "engine")
    ]
    qrels = {"train": "".join(f"q{number}\td0\t1\n" for number in range(len(texts)))}
    one = write(tmp_path / "a", documents("a"), queries(*texts), qrels)
    new = Collection("new", write_split(one, tmp_path / "b", 0.3, close=0.6))
    sides = {split for split in new.splits() for text in new.queries(split).values() if "password" in text}
    assert len(sides) == 1
    assert len(set(close_groups({str(number): text for number, text in enumerate(texts)}, 0.6).values())) == 8


def test_close_texts_are_grouped_as_by_comparing_all_that_share_a_band():
    draw = random.Random(0)
    known = ["account", "password", "order", "ticket", "server", "backup", "when", "where", "is", "my", "the"]
    templates = [draw.choices(known, k=8) for _ in range(5)]
    texts = {}
    for number in range(150):
        own = list(draw.choice(templates))
        for _ in range(draw.randint(0, 4)):
            own[draw.randrange(8)] = draw.choice(known)
        texts[f"q{number:03d}"] = " ".join(own)
    signatures = signatures_of(list(texts.values()))
    ids, close = list(texts), {name: name for name in texts}
    for one, other in combinations(range(len(ids)), 2):
        is_equal = signatures[one] == signatures[other]
        if is_equal.reshape(32, 4).all(axis=1).any() and is_equal.mean() >= 0.6:
            low, high = sorted((close[ids[one]], close[ids[other]]))
            close = {name: low if group == high else group for name, group in close.items()}
    assert close_groups(texts, 0.6) == close
    assert 5 < len(set(close.values())) < 100


def test_texts_that_are_all_alike_are_compared_with_one_of_them():
    texts = [f"how do I reset the password of my account {number}" for number in range(500)]
    signatures = signatures_of(texts)
    signatures[:] = signatures[0]
    pairs = list(close_pairs(np.arange(500), signatures, 90))
    assert pairs == [(0, number) for number in range(1, 500)]


def write_generated(folder, documents_asked, **domain):
    """A collection of train queries alone, each written about one document: by number."""
    asked = [
        {"_id": f"q{number}", "text": f"question {number}", "metadata": {"source": f"d{document}"}}
        for number, document in enumerate(documents_asked)
    ]
    train = "".join(f"q{number}\td{document}\t1\n" for number, document in enumerate(documents_asked))
    texts = [f"text {document}" for document in range(max(documents_asked) + 1)]
    return write(folder, documents(*texts), asked, {"train": train}, **domain)


def test_queries_written_about_one_document_are_held_out_together(tmp_path):
    one = write_generated(tmp_path / "a", [number // 4 for number in range(60)])
    written = Collection("new", write_split(one, tmp_path / "b", test_fraction=0.2))
    close = Collection("new", write_split(one, tmp_path / "c", test_fraction=0.2, close=0.99))
    for collection in (one, written, close):
        sides = [
            {document for own in collection.qrels(split).values() for document in own}
            for split in collection.splits()
        ]
        assert len(set().union(*sides)) == sum(map(len, sides)) == 15
    assert written.splits() == ("train", "dev", "test")


def test_a_test_document_that_train_queries_were_written_about_is_counted(tmp_path):
    one = write_generated(tmp_path / "a", [0, 0, 1, 2, 2, 3])
    people = [{"_id": name, "text": f"{name} asks"} for name in ("p0", "p1", "p2", "p3")]
    # Written about no document that it is judged for: where it came from, as imports may say.
    imported = {"_id": "p4", "text": "imported", "metadata": {"source": "d4"}}
    (one.folder / "queries.jsonl").write_text(
        (one.folder / "queries.jsonl").read_text()
        + "".join(json.dumps(each) + "\n" for each in [*people, imported])
    )
    qrels = one.folder / "qrels"
    with (one.folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "d4", "text": "text 4"}) + "\n")
    train = "q0\td0\t1\nq2\td1\t1\nq3\td2\t1\np4\td3\t1\n"
    (qrels / "train.tsv").write_text(HEADER + train)
    (qrels / "dev.tsv").write_text(HEADER + "q4\td2\t1\n")
    (qrels / "test.tsv").write_text(HEADER + "p0\td4\t1\np1\td1\t2\np2\td0\t0\np2\td3\t1\np3\td0\t1\n")
    (shared,) = [each for each in check_collection(one.folder).kinds if each.kind.name == "shared-source"]
    assert shared.count == 3
    assert {(each.path.name, each.line) for each in shared.first} == {
        ("dev.tsv", 2), ("test.tsv", 3), ("test.tsv", 6),
    }  # fmt: skip
    assert "query 'p1' asks for document 'd1', about which 'q2' of train was written" in [
        each.message for each in shared.first
    ]


def test_queries_about_one_document_alone_are_no_train_and_dev(tmp_path):
    one = write_generated(tmp_path / "a", [0, 0, 0])
    kinds = [each.kind for each in check_collection(one.folder).kinds]
    assert [kind.name for kind in kinds if kind.severity == "error"] == ["no-dev"]
    with pytest.raises(DatasetError, match="all 3 queries ask the same, or about one document, and no dev"):
        one.qrels("train")


def test_any_text_is_printed_as_text():
    assert printable("[/INST] a\x1b[31m\n\u202eb \ud83d é") == "[/INST] a\\u001b[31m \\u202eb \ufffd é"
    assert printable("می\u200cخواهم 👩\u200d👧") == "می\u200cخواهم 👩\u200d👧"


ids = st.sampled_from(["0", "1", "2", "d0", "d1"])
words = st.sampled_from(["a", "b", "A ", "", "\ud83d", "[/x]"])
records = st.lists(
    st.fixed_dictionaries(
        {"_id": ids | st.integers(0, 3) | st.none(), "text": words}, optional={"title": words | st.none()}
    ),
    max_size=5,
)
asked_records = st.builds(
    lambda found, sources: [
        {**one, "metadata": {"source": source}} for one, source in zip(found, sources, strict=False)
    ],
    records,
    st.lists(ids, min_size=5, max_size=5),
)
judgements = st.lists(
    st.builds("\t".join, st.tuples(ids, ids, st.sampled_from(["0", "1", "2", "1.0", "0.5", "-1"]))),
    max_size=5,
).map(lambda lines: "".join(f"{line}\n" for line in lines))
splits = st.dictionaries(st.sampled_from(["train", "dev", "test", "validation"]), judgements, max_size=3)


@FUZZ
@given(records, records | asked_records, splits)
def test_what_check_passes_can_be_read_and_what_it_refuses_cannot(corpus, asked, qrels):
    folder = Path(tempfile.mkdtemp())
    try:
        one = write(folder / "c", corpus, asked, qrels)
        report = check_collection(one.folder)
        try:
            preflight([one], {"toy": one.splits() or ("test",)})
            list(one.documents())
            for split in one.splits():
                assert one.queries(split).keys() == one.qrels(split).keys()
                one.split_hash(split)
        except DatasetError as error:
            assert not report.ok, f"check passes: {error}"
            assert str(folder) in str(error)
        else:
            assert report.ok, report.issues
    finally:
        shutil.rmtree(folder)


def crlf(data):
    return data.replace(b"\n", b"\r\n")


def with_mark(data):
    return b"\xef\xbb\xbf" + data


forms = st.tuples(
    st.sampled_from([bytes, crlf]),
    st.sampled_from([bytes, with_mark]),
    st.sampled_from([bytes, gzip.compress, zstandard.compress]),
)
"""Each is made of what the one before gives; ``bytes`` changes nothing."""


@FUZZ
@given(records, records | asked_records, splits, st.data())
def test_in_which_form_files_are_written_changes_nothing_of_what_is_read(corpus, asked, qrels, data):
    folder = Path(tempfile.mkdtemp())
    try:
        plain, odd = (write(folder / name, corpus, asked, qrels) for name in "ab")
        for path in sorted(path for path in odd.folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            for form in data.draw(forms):
                content = form(content)
            path.write_bytes(content)
        one, other = check_collection(plain.folder), check_collection(odd.folder)
        assert one.ok == other.ok, (one.issues, other.issues)
        if one.ok:
            assert list(plain.documents()) == list(odd.documents())
            assert plain.splits() == odd.splits()
            for split in plain.splits():
                assert plain.queries(split) == odd.queries(split)
                assert plain.qrels(split) == odd.qrels(split)
            assert plain.corpus_hash() == odd.corpus_hash()
    finally:
        shutil.rmtree(folder)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud83d", 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(json_values)
def test_lines_are_parsed_as_by_pythons_json(value):
    raw = json.dumps(value).encode()
    assert repr(parse_json(raw)) == repr(json.loads(raw))


garbage = st.binary(max_size=60) | st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace"))


@FUZZ
@given(garbage, garbage, garbage, st.sampled_from(["", ".gz", ".zst"]))
def test_no_bytes_make_anything_but_an_error_of_ours(corpus, asked, qrels, suffix):
    folder = Path(tempfile.mkdtemp())
    try:
        one = write(folder / "c", corpus, asked, {"test": qrels})
        for path in list(one.folder.rglob("*.*")):
            path.rename(path.with_name(path.name + suffix))
        check_collection(one.folder)
        for read in (
            lambda: list(one.documents()),
            lambda: one.qrels("test"),
            one.corpus_hash,
            lambda: describe(one.folder),
            lambda: export_parquet(one.folder, folder / "exported"),
            lambda: write_split(one, folder / "split"),
        ):
            try:
                read()
            except RouterRetrieverError as error:
                assert str(one.folder) in str(error)
    finally:
        shutil.rmtree(folder)


@FUZZ
@given(
    garbage,
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "topics.txt", "a.md", "a.gz"]),
)
def test_no_bytes_make_an_import_fail_but_by_an_error_of_ours(data, name):
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / name).write_bytes(data)
        import_data(folder / name, folder / "out")
    except RouterRetrieverError as error:
        assert str(folder) in str(error)
        assert not (folder / "out").exists()
    finally:
        shutil.rmtree(folder)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5)


@FUZZ
@given(
    st.dictionaries(names, texts, min_size=1, max_size=4),
    st.dictionaries(names, texts, min_size=1, max_size=4),
    st.data(),
)
def test_import_then_export_is_the_identity(corpus, asked, data):
    pairs = data.draw(
        st.sets(st.tuples(st.sampled_from(sorted(asked)), st.sampled_from(sorted(corpus))), min_size=1)
    )
    lines = "".join(f"{query}\t{document}\t1\n" for query, document in sorted(pairs))
    folder = Path(tempfile.mkdtemp())
    try:
        one = write(
            folder / "a",
            [
                {"_id": key, "title": "t", "text": text, "metadata": {"of": text, "n": [1, None]}}
                for key, text in corpus.items()
            ],
            [{"_id": key, "text": text} for key, text in asked.items()],
            {"test": lines},
        )
        import_data(export_parquet(one.folder, folder / "b"), folder / "c")
        again = Collection("toy", folder / "c")
        assert list(again.documents()) == list(one.documents())
        assert again.split_hash("test") == one.split_hash("test")
    finally:
        shutil.rmtree(folder)


@FUZZ
@given(st.dictionaries(ids, st.dictionaries(ids, st.integers(0, 2), min_size=1), min_size=1), st.data())
def test_measures_are_beirs_with_queries_judged_0_only(judged, data):
    folder = Path(tempfile.mkdtemp())
    if not any(any(grades.values()) for grades in judged.values()):
        return
    try:
        lines = "".join(f"q{q}\t{d}\t{g}\n" for q, grades in judged.items() for d, g in grades.items())
        asked = [{"_id": f"q{query}", "text": query} for query in judged]
        corpus = [{"_id": one, "text": f"text {one}"} for one in ("0", "1", "2", "d0", "d1")]
        one = write(folder / "c", corpus, asked, {"test": lines})
        qrels = one.qrels("test")
        run = {query: {d: data.draw(st.floats(0, 1)) for d in ("0", "1", "2", "d0", "d1")} for query in qrels}
        # What beir.retrieval.evaluation does with the file as its loader reads it.
        raw = {f"q{query}": dict(grades) for query, grades in judged.items()}
        scores = pytrec_eval.RelevanceEvaluator(raw, {"ndcg_cut.10"}).evaluate(run)
        expected = round(sum(each["ndcg_cut_10"] for each in scores.values()) / len(scores), 5)
        assert round(float(measure(qrels, run, list(qrels)).ndcg_at_10.mean()), 5) == expected
    finally:
        shutil.rmtree(folder)


def test_a_check_takes_little_memory_for_each_query(tmp_path):
    count = 10_000
    one = write(
        tmp_path / "a",
        documents(*(f"document {number}" for number in range(count))),
        queries(*(f"query {number}" for number in range(count))),
        {"train": "".join(f"q{number}\td{number}\t1\n" for number in range(count))},
    )
    tracemalloc.start()
    try:
        assert check_collection(one.folder).ok
        assert tracemalloc.get_traced_memory()[1] < 850 * count
    finally:
        tracemalloc.stop()
