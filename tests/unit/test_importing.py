"""What people have becomes a collection: a small example of every format, and what goes wrong in one."""

import errno
import json
import os
import resource
import shutil
import zipfile
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pptx import Presentation
from routerretriever.cli.main import app
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.importing import import_data
from routerretriever.datasets.tables import read_rows
from routerretriever.datasets.writing import FolderWriter
from routerretriever.errors import DatasetError, RouterRetrieverError
from typer.testing import CliRunner

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def write(folder, **files):
    """Write files by name, with ``__`` for a folder; rows become Parquet, objects JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            parquet.write_table(arrow.Table.from_pylist(content), path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
    return folder


def read(folder):
    """The documents and queries by text, and the judgements of each split by texts."""
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text("utf-8").splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    texts = {one["_id"]: one["text"] for one in lines}
    queries = {one["_id"]: one["text"] for one in asked}
    judged = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:]]
        judged[path.stem] = {
            (queries.get(query, query), texts.get(document, document)): int(grade)
            for query, document, grade in rows
        }
    return [one["text"] for one in lines], list(queries.values()), judged


PAIRS = {("how long", "Ten minutes."): 1, ("how hot", "Very hot."): 1}
TRIPLETS = PAIRS | {("how long", "An hour."): 0, ("how hot", "Cold."): 0}
TEXTS = ["Ten minutes.", "Very hot."]
RECORDS = [{"_id": f"d{number}", "title": "", "text": text} for number, text in enumerate(TEXTS)]
ASKED = [{"_id": "q0", "text": "how long"}, {"_id": "q1", "text": "how hot"}]
JUDGED = [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1.0} for n in range(2)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


EXAMPLES = {
    "hugging face": (
        {
            "corpus/corpus-00000-of-00001.parquet": RECORDS,
            "queries/queries-00000-of-00001.parquet": ASKED,
            "data/test-00000-of-00001.parquet": JUDGED,
            "README.md": "# The data set's card",
            "dataset_infos.json": {"default": {}},
        },
        {"test": PAIRS},
    ),
    "mteb on disk": (
        {
            "corpus/test-00000.parquet": [{"id": one["_id"], "text": one["text"]} for one in RECORDS],
            "queries/test-00000.parquet": [{"id": one["_id"], "text": one["text"]} for one in ASKED],
            "qrels/test-00000.parquet": JUDGED,
            "top_ranked/test-00000.parquet": [{"query-id": "q0", "corpus-ids": ["d0"]}],
            "instruction/test-00000.parquet": [{"query-id": "q0", "instruction": "Find the time."}],
        },
        {"test": PAIRS},
    ),
    "beir with qrels beside": (
        {
            "corpus.jsonl": jsonl(RECORDS),
            "queries.jsonl": jsonl(one | {"answer": "an answer is no document"} for one in ASKED),
            "qrels.tsv": "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\n",
        },
        {"train": PAIRS},
    ),
    "objects by id, as beir's loader gives them": (
        {
            "corpus.json": {one["_id"]: {"title": "", "text": one["text"]} for one in RECORDS},
            "queries.json": {one["_id"]: one["text"] for one in ASKED},
            "qrels/test.json": {"q0": {"d0": 1, "d1": 0}, "q1": {"d1": 1}},
        },
        {"test": PAIRS | {("how long", "Very hot."): 0}},
    ),
    "documents listed by query": (
        {
            "corpus.json": {one["_id"]: one["text"] for one in RECORDS},
            "queries.json": {one["_id"]: one["text"] for one in ASKED},
            "qrels_test.json": {"q0": ["d0"], "q1": ["d1"]},
        },
        {"test": PAIRS},
    ),
    "csv triplets": (
        {
            "a_test.csv": "query,positive,negative_1\n"
            "how long,Ten minutes.,An hour.\nhow hot,Very hot.,Cold.\n"
        },
        {"test": TRIPLETS},
    ),
    "csv of a spreadsheet": (
        {"a.csv": "\ufeffanchor;positive\nhow long;Ten minutes.\nhow hot;Very hot.\n"},
        {"train": PAIRS},
    ),
    "csv that tells its separator": (
        {"a.csv": "\ufeffsep=|\r\nquestion|answer\r\nhow long|Ten minutes.\r\nhow hot|Very hot.\r\n"},
        {"train": PAIRS},
    ),
    "a list of objects, called jsonl": (
        {
            "a.jsonl": json.dumps(
                [{"query": one["text"], "positive": TEXTS[n]} for n, one in enumerate(ASKED)], indent=1
            )
        },
        {"train": PAIRS},
    ),
    "tsv": ({"a.tsv": "question\tanswer\nhow long\tTen minutes.\nhow hot\tVery hot.\n"}, {"train": PAIRS}),
    "n-tuples": (
        {
            "a.jsonl": jsonl(
                [
                    {"query": "how long", "pos": ["Ten minutes."], "neg": ["An hour."]},
                    {"query": "how hot", "pos": ["Very hot."], "neg": ["Cold."]},
                ]
            )
        },
        {"train": TRIPLETS},
    ),
    "numbered columns": (
        {
            "a.csv": "query,positive_1,positive_2,negative_1\n"
            "how long,Ten minutes.,Very hot.,An hour.\nhow hot,,Very hot.,Cold.\n"
        },
        {"train": TRIPLETS | {("how long", "Very hot."): 1}},
    ),
    "lists without names": (
        {"a.jsonl": jsonl([["how long", "Ten minutes.", "An hour."], ["how hot", "Very hot.", "Cold."]])},
        {"train": TRIPLETS},
    ),
    "passages with ids (Tevatron, MIRACL)": (
        {
            "train.jsonl": jsonl(
                {
                    "query_id": f"q{n}",
                    "query": ASKED[n]["text"],
                    "positive_passages": [{"docid": f"d{n}", "title": "", "text": TEXTS[n]}],
                    "negative_passages": [{"docid": f"n{n}", "text": ["An hour.", "Cold."][n]}],
                }
                for n in range(2)
            )
        },
        {"train": TRIPLETS},
    ),
    "contexts (DPR)": (
        {
            "train.json": [
                {
                    "question": ASKED[n]["text"],
                    "answers": ["ten", "very"],
                    "positive_ctxs": [{"passage_id": str(n), "text": TEXTS[n], "score": 0.7}],
                    "negative_ctxs": [],
                    "hard_negative_ctxs": [{"passage_id": "", "text": ["An hour.", "Cold."][n]}],
                }
                for n in range(2)
            ]
        },
        {"train": TRIPLETS},
    ),
    "candidates with a grade each (MS MARCO on the hub)": (
        {
            "train.parquet": [
                {
                    "query": ASKED[n]["text"],
                    "query_id": n,
                    "answers": ["ten"],
                    "passages": {
                        "is_selected": [0, 1],
                        "passage_text": [["An hour.", "Cold."][n], TEXTS[n]],
                        "url": ["a", "b"],
                    },
                }
                for n in range(2)
            ]
        },
        {"train": TRIPLETS},
    ),
    "pairs with ids, a label and a split in each row": (
        {
            "a.csv": "Query ID, Query, Doc ID, Document, Label, Split\n"
            "q0, how long, d0, Ten minutes., True, test\nq0, how long, n0, An hour., False, test\n"
            "q1, how hot, d1, Very hot., 1.0, test\nq1, how hot, n1, Cold., 0, test\n"
        },
        {"test": TRIPLETS},
    ),
    "pairs of sentences with labels": (
        {
            "a.jsonl": jsonl(
                {"sentence1": one["text"], "sentence2": text, "labels": int(n == m)}
                for n, one in enumerate(ASKED)
                for m, text in enumerate(TEXTS)
            )
        },
        {"train": PAIRS | {("how long", "Very hot."): 0, ("how hot", "Ten minutes."): 0}},
    ),
    "columns in JSON": (
        {"a.json": {"question": ["how long", "how hot"], "answer": TEXTS}},
        {"train": PAIRS},
    ),
    "a table of pandas in JSON": (
        {"a.json": {"question": {"0": "how long", "1": "how hot"}, "answer": {"0": TEXTS[0], "1": TEXTS[1]}}},
        {"train": PAIRS},
    ),
    "rows by id in JSON": (
        {"a.json": {f"row{n}": {"question": ASKED[n]["text"], "answer": TEXTS[n]} for n in range(2)}},
        {"train": PAIRS},
    ),
    "splits in JSON": (
        {
            "a.json": {
                "train": [{"question": "how long", "answer": "Ten minutes."}],
                "validation": [{"question": "how hot", "answer": "Very hot."}],
            }
        },
        {"train": {("how long", "Ten minutes."): 1}, "dev": {("how hot", "Very hot."): 1}},
    ),
    "tsv of a spreadsheet": (
        {"a.tsv": 'question\tanswer\n"how long"\t"Ten minutes."\n"how hot"\t"Very hot."\n'.encode("utf-16")},
        {"train": PAIRS},
    ),
    "lists in cells": (
        {
            "a.csv": "query,positive,negatives,score\n"
            'how long,Ten minutes.,"[""An hour.""]",-3.5\n'
            "how hot,Very hot.,\"['Cold.'\n 'An hour.']\",0.25\n"
        },
        {"train": TRIPLETS | {("how hot", "An hour."): 0}},
    ),
    "lists of ids in cells": (
        {
            "corpus.csv": "id,text\n" + "".join(f"{n},{TEXTS[n]}\n" for n in range(2)),
            "train.csv": "id,query,relevant_docs,negative_ids\n"
            "1,how long,[0],[1]\n2,how hot,\"['0', '1']\",\n",
        },
        {"train": PAIRS | {("how hot", "Ten minutes."): 1, ("how long", "Very hot."): 0}},
    ),
    "ids of documents beside the query": (
        {
            "documents/a.parquet": [{"id": one["_id"], "content": one["text"]} for one in RECORDS],
            "examples/a.parquet": [
                {"query": one["text"], "id": one["_id"], "gold_ids": [f"d{n}"]} for n, one in enumerate(ASKED)
            ],
        },
        {"train": PAIRS},
    ),
    "ids of documents beside the text of the query, labelled by hand": (
        {
            "kb.csv": "document_id,title,body\n" + "".join(f"d{n},,{TEXTS[n]}\n" for n in range(2)),
            "labels.csv": "id,question,doc_id,label\n1,how long,d0,1\n2,how hot,d1,1\n3,how hot,d0,0\n",
        },
        {"train": PAIRS | {("how hot", "Ten minutes."): 0}},
    ),
    "qrels without a header or under other names": (
        {
            "docs.csv": "doc_id,title,body\n" + "".join(f"d{n},,{TEXTS[n]}\n" for n in range(2)),
            "topics.jsonl": jsonl({"query_id": one["_id"], "title": one["text"]} for one in ASKED),
            "qrels/eval.tsv": "q0\td0\t1\nq0\td1\t0\n",
            "qrels/testing.csv": "query,document,relevance\nq1,d1,1\n",
        },
        {"dev": {("how long", "Ten minutes."): 1, ("how long", "Very hot."): 0},
         "test": {("how hot", "Very hot."): 1}},
    ),
    "numbers with gaps": (
        {
            "corpus.parquet": [{"id": n, "text": TEXTS[n]} for n in range(2)],
            "queries.parquet": [{"id": float(n), "text": ASKED[n]["text"]} for n in range(2)],
            "qrels.jsonl": jsonl({"query_id": float(n), "doc_id": float(n), "score": 1.0} for n in range(2)),
        },
        {"train": PAIRS},
    ),
    "parquet pairs": (
        {
            "validation-0.parquet": [
                {"question": "how long", "context": "Ten minutes.", "answers": {"text": ["ten"]}},
                {"question": "how hot", "context": "Very hot.", "answers": {"text": ["very"]}},
            ]
        },
        {"dev": PAIRS},
    ),
    "questions and answers": (
        {
            "a.json": [
                {"question": "how long", "answer": "Ten minutes."},
                {"question": "how hot", "answers": ["Very hot."]},
            ]
        },
        {"train": PAIRS},
    ),
    "squad": (
        {
            "train.json": {
                "data": [
                    {
                        "title": "t",
                        "paragraphs": [
                            {"context": "Ten minutes.", "qas": [{"question": "how long", "answers": []}]},
                            {"context": "Very hot.", "qas": [{"question": "how hot", "answers": []}]},
                            {
                                "context": "Very hot.",
                                "qas": [{"question": "how long", "is_impossible": True}],
                            },
                        ],
                    }
                ]
            }
        },
        {"train": PAIRS | {("how long", "Very hot."): 0}},
    ),
    "hotpot": (
        {
            "hotpot_train_v1.1.json": [
                {"_id": "q0", "question": "how long", "answer": "ten", "supporting_facts": [["Long", 0]],
                 "context": [["Long", ["Ten ", "minutes."]], ["Hot", ["Very hot."]]]},
                {"_id": "q1", "question": "how hot", "answer": "very", "supporting_facts": [["Hot", 0]],
                 "context": [["Hot", ["Very hot."]]]},
            ]
        },
        {"train": PAIRS | {("how long", "Very hot."): 0}},
    ),
    "hotpot on the hub": (
        {
            "train-0.parquet": [
                {"id": "q0", "question": "how long", "supporting_facts": {"title": ["Long"], "sent_id": [0]},
                 "context": {"title": ["Long", "Hot"], "sentences": [["Ten minutes."], ["Very hot."]]}},
                {"id": "q1", "question": "how hot", "supporting_facts": {"title": ["Hot"], "sent_id": [0]},
                 "context": {"title": ["Hot"], "sentences": [["Very hot."]]}},
            ]
        },
        {"train": PAIRS | {("how long", "Very hot."): 0}},
    ),
    "musique": (
        {
            "musique_ans_dev.jsonl": jsonl(
                {"id": f"2hop__{n}", "question": ASKED[n]["text"], "answer": "", "paragraphs": [
                    {"idx": m, "title": "t", "paragraph_text": TEXTS[m], "is_supporting": n == m}
                    for m in range(2)
                ]}
                for n in range(2)
            )
        },
        {"dev": PAIRS | {("how long", "Very hot."): 0, ("how hot", "Ten minutes."): 0}},
    ),
    "llama index": (
        {
            "a.json": {
                "queries": {one["_id"]: one["text"] for one in ASKED},
                "corpus": {one["_id"]: one["text"] for one in RECORDS},
                "relevant_docs": {"q0": ["d0"], "q1": ["d1"]},
                "mode": "text",
            }
        },
        {"train": PAIRS},
    ),
    "trec": (
        {
            "topics.txt": "<top>\n<num> Number: 301\n<title> how long\n\n<desc> Description:\nNo.\n</top>\n"
            "<top>\n<num> Number: 302\n<title> how hot\n</top>\n",
            "qrels.test.txt": "301 0 d0 1\n302 Q0 d1 1\n",
            "corpus.jsonl": jsonl({"id": one["_id"], "contents": one["text"]} for one in RECORDS),
        },
        {"test": PAIRS},
    ),
    "trec with documents": (
        {
            "topics.txt": "<top>\n<num> Number: 301\n<title> how long\n<desc> Description:\nNo.\n"
            "<narr> x < y\n</top>\n<top>\n<num> Number: 302\n<title> how hot\n</top>\n",
            "qrels": "301 0 FT-0 1.0\n302\tQ0\tFT-1\t1\n302 0 FT-0 -1\n",
            "docs.trec": "".join(
                f"<DOC>\n<DOCNO> FT-{n} </DOCNO>\n<HEADLINE>h</HEADLINE>\n<TEXT>\n{TEXTS[n]}\n</TEXT>\n"
                "</DOC>\n"
                for n in range(2)
            ),
        },
        {"train": PAIRS | {("how hot", "Ten minutes."): -1}},
    ),
    "trec in xml": (
        {
            "topics.xml": '<?xml version="1.0"?>\n<topics>\n'
            '<topic number="301"><query><![CDATA[how long]]></query></topic>'
            '\n<topic number="302"><query>how hot</query></topic>\n</topics>',
            "qrels.txt": "301 0 d0 1\n302 0 d1 1\n",
            "corpus.jsonl": jsonl({"id": one["_id"], "contents": one["text"]} for one in RECORDS),
        },
        {"train": PAIRS},
    ),
    "trec in xml on one line, without fields": (
        {
            "topics.xml": '<?xml version="1.0"?><topics task="t"><topic number="301">how long</topic>'
            '<topic number="302"> how hot </topic></topics>',
            "qrels.txt": "301 0 d0 1\n302 0 d1 1\n",
            "corpus.jsonl": jsonl({"id": one["_id"], "contents": one["text"]} for one in RECORDS),
        },
        {"train": PAIRS},
    ),
    "ms marco": (
        {
            "collection.tsv": "0\tTen minutes.\n1\tVery hot.\n",
            "queries.dev.small.tsv": "7\thow long\n",
            "queries.train.tsv": "8\thow hot\n",
            "qrels.dev.small.tsv": "7\t0\t0\t1\n",
            "qrels.train.tsv": "8\t0\t1\t1\n",
        },
        {"dev": {("how long", "Ten minutes."): 1}, "train": {("how hot", "Very hot."): 1}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("written", "rows"),
    [
        (
            'id\ttext\n1\t"Hello he said\n2\tfoo\n3\tbar"\n',
            [("1", '"Hello he said'), ("2", "foo"), ("3", 'bar"')],
        ),
        ('id\ttext\n1\t"Hello\nhe said"\n2\tfoo\n', [("1", "Hello\nhe said"), ("2", "foo")]),
        ('id\ttext\n1\t"say ""no"""\n2\t"one\ttab"\n', [("1", 'say "no"'), ("2", "one\ttab")]),
        ('text\n"Hello\nhe said"\nfoo\n', [("Hello\nhe said",), ("foo",)]),
    ],
)
def test_quotes_of_a_tsv_hold_lines_together_where_these_are_no_rows(tmp_path, written, rows):
    path = write(tmp_path / "a", **{"a.tsv": written}) / "a.tsv"
    assert [tuple(row.fields.values()) for row in read_rows(path)] == rows


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_format_gives_the_same_collection(example, tmp_path):
    files, expected = EXAMPLES[example]
    imported = import_data(write(tmp_path / "a", **files), tmp_path / "b")
    texts, queries, judged = read(imported.folder)
    assert judged == expected
    assert set(TEXTS) <= set(texts)
    assert sorted(queries) == ["how hot", "how long"]
    assert imported.counts["documents"] == len(texts) == len(set(texts))
    provenance = json.loads((imported.folder / "provenance.json").read_text())
    assert provenance["files"].keys() == {name for name, _ in imported.files}
    for split in judged:
        assert Collection("b", imported.folder).qrels(split) or len(judged[split]) == 1


def test_datasets_saved_to_disk_are_read(tmp_path):
    table = arrow.Table.from_pylist([{"question": "how long", "answer": "Ten minutes."}])
    for split, write_to in (("train", arrow.ipc.new_stream), ("test", arrow.ipc.new_file)):
        (tmp_path / "a" / split).mkdir(parents=True)
        with write_to(str(tmp_path / "a" / split / "data-00000-of-00001.arrow"), table.schema) as out:
            out.write_table(table)
    write(tmp_path / "a", **{"dataset_dict.json": {"splits": ["train", "test"]}, "train/state.json": {}})
    assert import_data(tmp_path / "a", tmp_path / "b").judgements == {"train": 1, "test": 1}


def test_scores_become_grades_on_demand(tmp_path):
    rows = "sentence1,sentence2,score\na dog,a hound,4.8\na dog,a car,0.2\n"
    imported = import_data(write(tmp_path / "a", **{"a.csv": rows}), tmp_path / "b", relevant_from=3)
    assert read(imported.folder)[2] == {"train": {("a dog", "a hound"): 1, ("a dog", "a car"): 0}}
    assert "query: sentence1, document: sentence2, grade: score" in imported.told()


def test_a_score_that_is_no_number_is_no_limit(tmp_path):
    rows = "sentence1,sentence2,score\na dog,a hound,4.8\n"
    source = write(tmp_path / "a", **{"a.csv": rows})
    with pytest.raises(DatasetError, match="relevant_from: nan is no score"):
        import_data(source, tmp_path / "b", relevant_from=float("nan"))
    assert not (tmp_path / "b").exists()


def test_an_instruction_is_asked_with_its_input(tmp_path):
    rows = [
        {"instruction": "greet", "input": "", "output": "Hello."},
        {"instruction": "translate", "input": "hot", "output": "caliente"},
    ]
    imported = import_data(write(tmp_path / "a", **{"a.json": rows}), tmp_path / "b")
    assert read(imported.folder)[1] == ["greet", "translate\nhot"]


def test_files_of_text_are_read_beside_tables_that_mean_nothing(tmp_path):
    page = "---\ntitle: 'Baking bread'\n---\nKnead it."
    files = {
        "a.md": page,
        "b.csv": "year,count\n2001,3\n",
        "c.json": "[1, 2]",
        "d.json": "// no JSON",
        "e.zip": "PK",
    }
    imported = import_data(write(tmp_path / "a", **files), tmp_path / "b")
    (document,) = Collection("b", imported.folder).documents()
    assert document[1:3] == ("Baking bread", "Knead it.")
    assert (imported.skipped, imported.beside) == (["b.csv", "c.json", "d.json"], ["e.zip"])


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_an_archive_is_read_as_the_folder_in_it(tmp_path, kind):
    files, judged = EXAMPLES["beir with qrels beside"]
    write(tmp_path / "a" / "bread", **files)
    archive = Path(shutil.make_archive(str(tmp_path / "bread"), kind, tmp_path / "a"))
    imported = import_data(archive, tmp_path / "made" / "b")
    assert read(imported.folder)[2] == judged
    assert ("bread/corpus.jsonl", "corpus") in imported.files
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["b"]


def test_a_nul_that_slipped_in_is_no_reason_to_refuse_a_text(tmp_path):
    imported = import_data(write(tmp_path / "a", **{"a.txt": "bread " * 50 + "\0"}), tmp_path / "b")
    assert imported.counts["documents"] == 1


class Named(zipfile.ZipInfo):
    """A file whose name is in some encoding, which is not told."""

    encoding = "utf-8"

    def _encodeFilenameFlags(self):
        return self.filename.encode(self.encoding), 0


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("资料/护照.txt", "utf-8"), ("Größe.txt", "utf-8"), ("Übung.txt", "cp437")],
)
def test_names_in_a_zip_are_read_though_their_encoding_is_not_told(tmp_path, name, encoding):
    info = Named(name)
    info.encoding = encoding
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "text")
    imported = import_data(tmp_path / "a.zip", tmp_path / "b")
    (document,) = Collection("b", imported.folder).documents()
    assert (document.id, document.title) == (name, Path(name).stem)


@pytest.mark.parametrize(
    ("name", "encoding"), [("资料/护照.txt", "gbk"), ("旅券.txt", "cp932"), ("паспорт.txt", "cp866")]
)
def test_names_in_a_zip_that_cannot_be_known_are_told(tmp_path, name, encoding):
    info = Named(name)
    info.encoding = encoding
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "text")
    with pytest.raises(
        DatasetError, match=r"a\.zip: names of files are in an encoding that it does not tell"
    ):
        import_data(tmp_path / "a.zip", tmp_path / "b")


def test_what_is_wrong_in_an_archive_is_told_with_its_place(tmp_path):
    write(tmp_path / "a", **{"a.csv": "query,positive\na,b,c\n"})
    archive = Path(shutil.make_archive(str(tmp_path / "bread"), "zip", tmp_path / "a"))
    with pytest.raises(DatasetError, match=rf"^{archive}/a\.csv:2: 3 columns, the header has 2"):
        import_data(archive, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_lies_beside_tables_is_named(tmp_path):
    files = {"corpus.jsonl": jsonl(RECORDS), "queries.csv": "", "README.md": "x", "qrels.tar.gz": "x"}
    told = import_data(write(tmp_path / "a", **files), tmp_path / "b").told()
    assert "beside the data: README.md, qrels.tar.gz (unpack it first), queries.csv (without a row)" in told


def test_tables_that_mean_nothing_are_named_and_one_alone_is_refused(tmp_path):
    files, _ = EXAMPLES["mteb on disk"]
    source = write(tmp_path / "a", **files)
    told = import_data(source, tmp_path / "b").told()
    unread = "instruction/test-00000.parquet, top_ranked/test-00000.parquet"
    assert f"not read, for their columns mean nothing here: {unread}" in told
    with pytest.raises(
        DatasetError, match="columns query-id, corpus-ids mean nothing here; name them in the first line"
    ):
        import_data(source / "top_ranked" / "test-00000.parquet", tmp_path / "c")


def pdf(text):
    """A PDF of one page."""
    stream = f"BT /F1 12 Tf 40 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return data + end % (table, len(data))


def docx(path, heading, *paragraphs):
    """A Word file with a heading."""
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    body = f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{heading}</w:t></w:r></w:p>'
    body += "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    styles = '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" ContentType="application/vnd.'
            'openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType="application/xml'
            f'"/><Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        )
        for name, target, relation in (
            ("_rels/.rels", "word/document.xml", "officeDocument"),
            ("word/_rels/document.xml.rels", "styles.xml", "styles"),
        ):
            archive.writestr(
                name,
                f'<Relationships xmlns="{package}/relationships"><Relationship Id="rId1" '
                f'Type="{office}/{relation}" Target="{target}"/></Relationships>',
            )
        archive.writestr("word/document.xml", f"<w:document {word}><w:body>{body}</w:body></w:document>")
        archive.writestr("word/styles.xml", f"<w:styles {word}>{styles}</w:styles>")


def pptx(path):
    """Two slides: a text with notes, and a table."""
    slides = Presentation()
    first = slides.slides.add_slide(slides.slide_layouts[1])
    first.shapes.title.text, first.placeholders[1].text = "Oven care", "Clean it weekly."
    first.notes_slide.notes_text_frame.text = "Mention the warranty."
    second = slides.slides.add_slide(slides.slide_layouts[5])
    second.shapes.title.text = "Heat"
    table = second.shapes.add_table(1, 2, 0, 5_000_000, 1000, 1000).table
    table.cell(0, 0).text, table.cell(0, 1).text = "bread", "230"
    slides.save(path)


def epub(path):
    """A book of one chapter."""
    package = "http://www.idpf.org/2007/opf"
    container = "urn:oasis:names:tc:opendocument:xmlns:container"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "META-INF/container.xml",
            f'<container xmlns="{container}"><rootfiles><rootfile full-path="a.opf"/></rootfiles>'
            "</container>",
        )
        archive.writestr(
            "a.opf",
            f'<package xmlns="{package}"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Baking'
            '</dc:title></metadata><manifest><item id="c" href="c.xhtml" media-type="application/xhtml+xml"/>'
            '</manifest><spine><itemref idref="c"/></spine></package>',
        )
        archive.writestr("c.xhtml", "<html><body><h1>Dough</h1><p>Knead it.</p></body></html>")


def test_slides_and_books_are_documents(tmp_path):
    source = write(tmp_path / "a", **{"b.md": "text"})
    pptx(source / "oven.pptx")
    epub(source / "book.epub")
    imported = import_data(source, tmp_path / "b")
    found = {one.id: one for one in Collection("b", imported.folder).documents()}
    assert found["oven.pptx"].title == "Oven care"
    assert found["oven.pptx"].text == (
        "Clean it weekly.\n\n### Notes:\nMention the warranty.\n\n# Heat\n| bread | 230 |\n| --- | --- |"
    )
    assert found["book.epub"].title == "Baking"
    assert found["book.epub"].text.endswith("# Dough\n\nKnead it.")


def test_a_folder_of_files_gives_documents_with_their_titles(tmp_path):
    page = "<html><body><h1>Flour</h1><p>Rye &amp; wheat.</p><script>no()</script></body></html>"
    source = write(
        tmp_path / "a",
        **{
            "guide/bread.md": "# Bread\n\nKnead it.\n",
            "flour.html": page,
            "oven.pdf": pdf("Heat the oven first."),
            "notes of 2023.txt": "notes from year 2023",  # four words, and no judgement
            "site/index.html": "<title>Dough\n at home</title><nav>Menu</nav><h1>Dough</h1>Fold it.",
            "salt.rst": "====\nSalt\n====\n\nA pinch.\n",
            "sugar.md": "Sugar\n=====\nNone.",
        },
    )
    docx(source / "yeast.docx", "Yeast", "It rises in warm water.", "Not in hot water.")
    imported = import_data(source, tmp_path / "b")
    found = {one.id: one for one in Collection("b", imported.folder).documents()}
    assert found.keys() == {
        "guide/bread.md", "flour.html", "oven.pdf", "notes%20of%202023.txt", "yeast.docx", "site/index.html",
        "salt.rst", "sugar.md",
    }  # fmt: skip
    assert found["site/index.html"].title == "Dough at home"
    assert found["salt.rst"][1:3] == ("Salt", "A pinch.")
    assert found["sugar.md"][1:3] == ("Sugar", "None.")
    assert found["guide/bread.md"][1:3] == ("Bread", "Knead it.")
    assert found["flour.html"][1:3] == ("Flour", "Rye & wheat.")
    assert found["oven.pdf"][1:3] == ("oven", "Heat the oven first.")
    assert found["yeast.docx"].title == "Yeast"
    assert found["yeast.docx"].text.split("\n\n") == ["It rises in warm water.", "Not in hot water."]
    assert found["yeast.docx"].metadata == {"file": "yeast.docx"}
    assert "no judgements in it" in imported.told()


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ('<meta charset="iso-8859-2">', "iso-8859-2", "Zażółć gęślą jaźń, proszę. " * 4),
        (
            '<meta content="text/html; charset=ISO-8859-1">',
            "cp1252",
            "L’été où Noël a gelé coûte 5 €. " * 200,
        ),
        ('<?xml version="1.0" encoding="windows-1252"?>', "cp1252", "L’été où Noël a gelé. " * 200),
        ('<meta charset="utf-16">', "utf-8", "Grüße"),
        ('<meta charset="no-such">', "utf-8", "Grüße"),
        ('<meta charset="iso-8859-1">', "utf-8-sig", "Grüße"),
    ],
)
def test_a_page_is_read_in_the_encoding_that_it_names(tmp_path, declared, encoding, text):
    page = f"{declared}<title>t</title><p>{text}".encode(encoding)
    imported = import_data(write(tmp_path / "a", **{"page.html": page}), tmp_path / "b")
    (found,) = Collection("b", imported.folder).documents()
    assert found.text.split()[-len(text.split()) :] == text.split()


def test_a_notebook_is_its_texts_and_code_without_what_the_code_gave(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Bread\n", "\n", "Knead it."]},
        {"cell_type": "code", "source": ["oven.heat()"], "outputs": [{"text": "x" * 100_000}]},
        {"cell_type": "markdown", "source": "Prêt."},  # after all that tells the encoding
    ]
    notebook = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}, ensure_ascii=False)
    imported = import_data(write(tmp_path / "a", **{"bread.ipynb": notebook}), tmp_path / "b")
    (found,) = Collection("b", imported.folder).documents()
    assert found[:3] == ("bread.ipynb", "Bread", "Knead it.\n\n```python\noven.heat()\n```\n\nPrêt.")


def test_links_that_are_not_followed_are_named(tmp_path):
    source = write(tmp_path / "a", **{"b.md": "text", ".git/c.md": "hidden"})
    write(tmp_path / "other", **{"d.md": "text"})
    (source / "linked").symlink_to(tmp_path / "other")
    (source / "gone.md").symlink_to("nowhere.md")
    (source / "again.md").symlink_to("b.md")
    imported = import_data(source, tmp_path / "b")
    assert imported.counts["documents"] == 2
    assert "not read, beside the data: gone.md, linked\n" in imported.told()


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    source = write(tmp_path / "a", **{"b.md": "text", "locked/c.md": "text"})
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DatasetError, match=r"locked: cannot be read \(Permission denied\); mend"):
        import_data(source, tmp_path / "b")


def test_scanned_pages_are_counted(tmp_path):
    imported = import_data(write(tmp_path / "a", **{"scan.pdf": pdf(""), "b.md": "text"}), tmp_path / "b")
    assert "1 files without text: are they scanned pages?" in imported.told()


def test_long_files_become_passages_that_know_their_file(tmp_path):
    text = " ".join(f"word{number}" for number in range(50))
    imported = import_data(write(tmp_path / "a", **{"x.md": text}), tmp_path / "b", passage_tokens=20)
    found = list(Collection("b", imported.folder).documents())
    assert [one.id for one in found] == ["x.md#1", "x.md#2", "x.md#3"]
    assert {one.metadata["parent"] for one in found} == {"x.md"}
    assert {word for one in found for word in one.text.split()} == set(text.split())


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.epub"])
@pytest.mark.parametrize("data", [b"\0", b"%PDF-1.4 and no more", b"PK\x03\x04 and no more"])
def test_a_broken_file_is_named_and_leaves_nothing(tmp_path, name, data):
    with pytest.raises(DatasetError, match=f"{name}: cannot be converted"):
        import_data(write(tmp_path / "a", **{name: data}), tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    rows = [{"query": f"query {number}", "positive": f"text {number} " * 50} for number in range(3000)]
    source = write(tmp_path / "a", **{"a.jsonl": jsonl(rows)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # as a disk that is full after so much
    try:
        with pytest.raises(
            DatasetError, match=rf"^{tmp_path}/b: cannot be written \(File too large\), nothing"
        ):
            import_data(source, tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_an_import_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "a", **EXAMPLES["csv triplets"][0])
    half_written = []

    def interrupt(*_):
        half_written.extend(tmp_path.rglob("corpus.jsonl"))
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWriter, "judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_data(source, tmp_path / "b")
    assert [path.parents[1].name.startswith(".b-") for path in half_written] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


FLAWED = "question,answer,split\nhow,so,train\nhow,so,test\n"


def test_a_corrected_import_replaces_one_that_failed_its_check(tmp_path):
    write(tmp_path, **{"a.csv": FLAWED})
    command = ["datasets", "import", str(tmp_path / "a.csv"), "--to", str(tmp_path / "b")]
    assert CliRunner().invoke(app, command).exit_code == 1
    write(tmp_path, **{"a.csv": FLAWED.replace("how,so,test", "why,for,test\nwho,he,train")})
    assert CliRunner().invoke(app, command).exit_code == 0
    assert read(tmp_path / "b")[1] == ["how", "why", "who"]
    with pytest.raises(DatasetError, match="there already"):
        import_data(tmp_path / "a.csv", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b"]


@pytest.mark.parametrize("name", ["qrels/test.tsv", "qrels/dev.tsv", "notes.txt"])
def test_an_import_that_somebody_works_on_is_never_replaced(tmp_path, name):
    source = write(tmp_path, **{"a.csv": FLAWED}) / "a.csv"
    folder = import_data(source, tmp_path / "b").folder
    stamp = (folder / "provenance.json").stat().st_mtime_ns
    path = write(folder, **{name: "mine"}) / name
    os.utime(path, ns=(stamp + 1, stamp + 1))
    with pytest.raises(DatasetError, match="there already"):
        import_data(source, folder)
    assert path.read_text() == "mine"


def test_documents_without_judgements_are_never_replaced(tmp_path):
    source = write(tmp_path / "a", **{"a.md": "text"})
    import_data(source, tmp_path / "b")
    with pytest.raises(DatasetError, match="there already"):
        import_data(source, tmp_path / "b")


def test_files_whose_names_differ_a_little_get_ids_of_their_own(tmp_path):
    source = write(tmp_path / "a", **{"a b.txt": "one", "a_b.txt": "two", "a%20b.txt": "three"})
    (tmp_path / "a" / os.fsdecode(b"\xe9.txt")).write_text("no name in UTF-8")
    imported = import_data(source, tmp_path / "b")
    assert len({one.id for one in Collection("b", imported.folder).documents()}) == 4


def test_equal_records_are_merged_and_other_columns_are_kept(tmp_path):
    rows = [
        {"_id": "1", "text": "one", "source": "a", "metadata": {"year": 1}},
        {"_id": "1", "text": "one", "source": "a", "metadata": {"year": 1}},
        {"_id": "2", "text": "two", "source": "\ud83d"},
    ]
    imported = import_data(write(tmp_path / "a", **{"corpus.jsonl": jsonl(rows)}), tmp_path / "b")
    assert imported.counts == {"documents": 2, "queries": 0, "merged": 1, "without_text": 0}
    found = list(Collection("b", imported.folder).documents())
    assert [one.metadata for one in found] == [{"year": 1, "source": "a"}, {"source": "\ufffd"}]


@pytest.mark.parametrize(("name", "separator"), [("corpus.csv", ","), ("corpus.tsv", "\t"), ("faq.csv", ";")])
def test_columns_of_plain_numbers_are_numbers_in_metadata(tmp_path, name, separator):
    asked = ["question", "answer"] if name == "faq.csv" else ["_id", "text"]
    header = [*asked, "Views", "Price", "Team", "Zip", "Part", "Order", "customerId", "Mixed"]
    rows = [
        ["one", "two", "140", "12.50", "a", "10115", "007", "1" * 16, "7", "5"],
        ["three", "four", " -3 ", "", "b", "20095", "7", "2", "8", "n/a"],
    ]
    content = "".join(separator.join(row) + "\n" for row in (header, *rows))
    imported = import_data(write(tmp_path / "a", **{name: content}), tmp_path / "b")
    one, other = [document.metadata for document in Collection("b", imported.folder).documents()]
    texts = {"Team": "a", "Zip": "10115", "Part": "007", "Order": "1" * 16, "customerId": "7", "Mixed": "5"}
    assert one == {"Views": 140, "Price": 12.5, **texts}
    assert (other["Views"], "Price" in other, other["Mixed"]) == (-3, False, "n/a")
    assert "metadata: Views (number), Price (number), Team (text), Zip (text)" in imported.told()


def test_kinds_of_metadata_are_told_as_the_file_has_them(tmp_path):
    rows = [
        {"_id": "1", "text": "one", "year": 2024, "tags": ["a"], "open": True},
        {"_id": "2", "text": "two", "year": "2024", "open": None},
    ]
    told = import_data(write(tmp_path / "a", **{"corpus.jsonl": jsonl(rows)}), tmp_path / "b").told()
    assert "metadata: year (number or text), tags (list), open (true or false)" in told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "query,positive\na,b,c\n", "a.csv:2: 3 columns, the header has 2"),
        ("a.csv", "query,positive\nhow,\n", 'a.csv:2: "query" or "positive" is empty'),
        ("a.csv", "query,positive,score\nhow,x,0.8\n", "a.csv:2: the grade '0.8' is not an integer"),
        ("a.jsonl", '{"query": "a", "positive": "b"}\n{"query": 1', "a.jsonl:2: not JSON"),
        ("a.jsonl", '["query alone"]\n', "a.jsonl:1: not a JSON object"),
        ("a.json", '{"data": [1]}', "a.json: item 1 is not an object"),
        ("a.json", {"queries": [], "corpus": {}, "relevant_docs": {}}, "is not an object by id"),
        ("a.tsv", "1\tone\n2\n", "a.tsv:2: 1 columns, not 2"),
        ("qrels.txt", "301 0 d1 1\n301 0 d1 1\n301 0 d2 1\n301 0\n", "qrels.txt:4: 2 columns, not 4; a TREC"),
        ("topics.txt", "<top>\n<title> how\n</top>", "topics.txt, topic 1: no <num>"),
        ("a.txt", b"\xff", "a.txt: not UTF-8 at byte 1"),
        ("a.txt", "Мой паспорт".encode("utf-16-le"), "a.txt: holds many NUL characters, as UTF-16 does"),
        ("a.md", "Паспорт, как".encode("utf-16-be"), "a.md: holds many NUL characters"),
        ("a.html", "<p>Мой паспорт</p>".encode("utf-16-le"), "a.html: holds many NUL characters"),
        ("a.txt", "旅券を紛失".encode("iso2022_jp"), "a.txt: holds an escape sequence, as ISO-2022 does"),
        ("a.txt", "여권".encode("iso2022_kr"), "a.txt: holds an escape sequence, as ISO-2022 does"),
        ("a.csv", "_id,text\n1,Да\n".encode("utf-16-le"), "a.csv:1: holds the character NUL"),
        ("a.csv", 'query,positive\n"how\nlong",\n', 'a.csv:2: "query" or "positive" is empty'),
        ("a.csv", 'query,positive\nhow,so\n\n"why\n\nnot"\n', "a.csv:4: 1 columns, the header has 2"),
        ("a.tsv", 'query\tpositive\n"a\nb"\t"so"\n"why"\t\n', 'a.tsv:4: "query" or "positive" is empty'),
        (
            "a.csv",
            'query,positive\nhow,so\nwhy,"not\nwho,he\n',
            "a.csv:3: not readable as CSV (unexpected end of data); close what a quote opens",
        ),
        (
            "a.csv",
            'query,positive\nwhy,"not\nwho,he\nhow,"so"\n',
            "a.csv:2: not readable as CSV (',' expected after '\"')",
        ),
        ("a.csv", 'query,positive\nwhy,"say \\"no\\""\n', 'write a quote within quotes twice: ""'),
        ("a.csv", "sep=;\nquery;positive\na;b;c\n", "a.csv:3: 3 columns, the header has 2"),
        ("a.jsonl", '[{"query": 1}]\n[{"query": 2}]\n', "a.jsonl:1: not a JSON object"),
        ("a.csv", "query,answer,label\nhow,so,billing\n", "or give a column that is no grade another name"),
        ("a.bin", "x", "nothing that can be imported (found a.bin)"),
        ("a.zip", "x", "(found a.zip (unpack it first))"),
        ("a.rar", "x", "(found a.rar (unpack it first))"),
        ("a.csv", "query,positive,positive\na,b,c\n", "a.csv:1: two columns are named 'positive'"),
        (
            "a.csv",
            "query,positive\na,b\nh\xf6w,so\n".encode("latin-1"),
            "a.csv:3: not UTF-8, found 0xf6 as byte 2",
        ),
        ("collection.tsv", b"1\tcaf\xe9\n", "collection.tsv:1: not UTF-8"),
        ("qrels.txt", "q0 0 d0 0.5\n", "qrels.txt:1: the grade '0.5' is not an integer"),
        ("qrels.txt", "q0 0 d0 high\n", "qrels.txt:1: the grade is no number, found 'high'"),
        ("a.trec", "<DOC>\n<TEXT>x</TEXT>\n</DOC>\n", "a.trec:1: a document without <DOCNO>"),
        ("a.trec", "<DOC>\n<DOCNO>1</DOCNO>\n", "a.trec:1: <DOC> is never closed"),
        (
            "a.jsonl",
            jsonl([{"query": "a", "documents": ["b"]}]),
            'a.jsonl:1: no grade for each of "documents"',
        ),
        (
            "a.jsonl",
            jsonl([{"query": "a", "positive": {"url": "b"}}]),
            'a.jsonl:1, "positive": no text among url',
        ),
        (
            "corpus.jsonl",
            jsonl([RECORDS[0], RECORDS[0] | {"text": "x"}]),
            "corpus.jsonl:2: the id 'd0' came before",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, name, content, message):
    with pytest.raises(DatasetError) as caught:
        import_data(write(tmp_path / "a", **{name: content}), tmp_path / "b")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("end", ["txt", "md", "json"])
def test_files_that_cannot_be_read_are_named_together(tmp_path, end):
    files = {f"{number}.{end}": b"caf\xe9" for number in range(7)}
    source = write(tmp_path / "a", **files, **{"b.md": "read"})
    if end == "json":
        (source / "a.csv").write_text("query,positive\nhow,so\n")
    with pytest.raises(DatasetError) as caught:
        import_data(source, tmp_path / "b")
    message = str(caught.value)
    assert message.count(": not UTF-8 at byte 4; save it as UTF-8") == 5
    assert f"4.{end}: not UTF-8" in message
    assert message.endswith("; and 2 more files")
    assert len(message.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"])
@pytest.mark.parametrize(
    "data", [b"", b"x" * 2000, b"PK\x03\x04" + b"x" * 2000, b"\x1f\x8b\x08" + b"x" * 200]
)
def test_a_damaged_archive_is_one_line(tmp_path, name, data):
    source = write(tmp_path, **{name: data}) / name
    with pytest.raises(DatasetError, match=f"{name}: not a readable .* archive") as caught:
        import_data(source, tmp_path / "b")
    assert len(str(caught.value).splitlines()) == 1


def test_splits_go_by_their_common_names_and_are_names_of_files(tmp_path):
    source = write(tmp_path / "a", **{"a.tsv": "query\tpositive\nhow\tso\n"})
    assert import_data(source, tmp_path / "b", "validation").judgements == {"dev": 1}
    with pytest.raises(DatasetError, match=r"split: '\.\./x' cannot be a file's name"):
        import_data(source, tmp_path / "c", "../x")


SPLIT_COLUMNS = {
    "a.csv": "question,answer,split\nhow,so,{}\nwhy,for,{}\nwho,he,{}\n",
    "qrels.tsv": "query-id\tcorpus-id\tsplit\nq0\td0\t{}\nq1\td1\t{}\nq2\td2\t{}\n",
    "queries.csv": "query,gold_ids,split\nhow,d0,{}\nwhy,d1,{}\nwho,d2,{}\n",
}


@pytest.mark.parametrize(("name", "rows"), SPLIT_COLUMNS.items())
def test_a_split_that_a_row_names_is_never_taken_for_another(tmp_path, name, rows):
    known = write(tmp_path / "a", **{name: rows.format("Test set", "hold-out", "validation")})
    assert import_data(known, tmp_path / "b").judgements == {"test": 2, "dev": 1}
    unknown = write(tmp_path / "c", **{name: rows.format("", "unseen", "later")})
    with pytest.raises(DatasetError) as caught:
        import_data(unknown, tmp_path / "d")
    assert f"{name}:3: \"split\" names no split that is known: 'unseen', 'later'" in str(caught.value)
    assert "write one of train, training, dev" in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_judgements_that_name_no_split_beside_others_that_do_are_never_trained_on(tmp_path):
    files, _ = EXAMPLES["beir with qrels beside"]
    judged = {f"qrels/{name}.tsv": files["qrels.tsv"] for name in ("train", "dl-2019")}
    source = write(tmp_path / "a", **{**files, "qrels.tsv": ""}, **judged)
    with pytest.raises(DatasetError, match=r"dl-2019\.tsv: its name tells no split, as that of train"):
        import_data(source, tmp_path / "b")
    assert import_data(source, tmp_path / "b", "test").judgements == {"test": 2, "train": 2}


@pytest.mark.parametrize("name", ["data_hold-out.tsv", "held_out.tsv", "testset.tsv", "my holdout/a.tsv"])
def test_names_of_files_tell_held_out_data(tmp_path, name):
    source = write(tmp_path / "a", **{name: "query\tpositive\nhow\tso\n"})
    assert import_data(source, tmp_path / "b").judgements == {"test": 1}


def test_lists_by_split_may_be_called_in_words(tmp_path):
    rows = {
        "Train set": [{"query": "how", "positive": "so"}],
        "hold-out": [{"query": "why", "positive": "x"}],
    }
    source = write(tmp_path / "a", **{"a.json": rows})
    assert import_data(source, tmp_path / "b").judgements == {"train": 1, "test": 1}
    named = write(tmp_path / "c", **{"a.tsv": "query\tpositive\nhow\tso\n"})
    assert import_data(named, tmp_path / "d", "hold-out").judgements == {"test": 1}


def test_nested_questions_keep_their_splits(tmp_path):
    article = {"paragraphs": [{"context": "Ten minutes.", "qas": [{"question": "how long"}]}]}
    source = write(tmp_path / "a", **{"a.json": {"train": [article], "test": [article]}})
    assert import_data(source, tmp_path / "b").judgements == {"train": 1, "test": 1}


def test_the_command_says_what_it_understood_and_checks(tmp_path):
    files, _ = EXAMPLES["csv triplets"]
    source = write(tmp_path / "a", **files)
    done = CliRunner().invoke(app, ["datasets", "import", str(source), "--to", str(tmp_path / "b")])
    assert done.exit_code == 0
    assert "a_test.csv: read as pairs" in done.output
    assert "0 errors" in done.output
    documents = write(tmp_path / "c", **{"a.md": "text"})
    done = CliRunner().invoke(app, ["datasets", "import", str(documents), "--to", str(tmp_path / "d")])
    assert done.exit_code == 0
    assert "add queries and qrels" in done.output


def test_an_import_without_a_document_fails_and_can_be_corrected(tmp_path):
    source = write(tmp_path / "a", **{"queries.csv": "id,query\nq0,how long\n", "kb.csv": "sku,words\n1,x\n"})
    command = ["datasets", "import", str(source), "--to", str(tmp_path / "b")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "no documents in it: give their table columns such as _id and text" in done.output
    assert "searchable" not in done.output
    write(source, **{"kb.csv": "id,text\n1,x\n"})
    assert CliRunner().invoke(app, command).exit_code == 0


@pytest.mark.parametrize(
    "command",
    [["export", "{}/b", "--to", "{}/new"], ["split", "{}/b", "{}/new", "--test-fraction", "0"]],
    ids=["export", "split"],
)
def test_judgements_that_a_new_collection_does_not_have_are_named(tmp_path, command):
    files, _ = EXAMPLES["beir with qrels beside"]
    folder = import_data(write(tmp_path / "a", **files), tmp_path / "b").folder
    (folder / "qrels" / "dl-2019.tsv").write_text(files["qrels.tsv"])
    done = CliRunner().invoke(app, ["datasets", *(word.format(tmp_path) for word in command)])
    assert done.exit_code == 0
    assert "left out, for they are no train, dev or test: qrels/dl-2019.tsv" in done.output
    assert not list((tmp_path / "new" / "qrels").glob("dl*"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(
    ["_id", "text", "title", "query", "positive", "negative_1", "answers", "score", "query-id", "corpus-id",
     "paragraphs", "queries", "corpus", "relevant_docs", "metadata", "data", "context", "supporting_facts"]
)  # fmt: skip


@FUZZ
@given(
    st.lists(st.dictionaries(columns, json_values, max_size=5) | json_values, max_size=3),
    st.sampled_from(["a.jsonl", "a.json", "queries.jsonl", "corpus.json"]),
)
def test_no_rows_make_an_import_fail_but_by_an_error_of_ours(tmp_path_factory, rows, name):
    folder = tmp_path_factory.mktemp("fuzz")
    content = jsonl(rows) if name.endswith("l") else json.dumps(rows)
    try:
        imported = import_data(write(folder, **{name: content}), folder / "out")
    except RouterRetrieverError as error:
        assert str(folder) in str(error)
        assert not (folder / "out").exists()
    else:
        (imported.folder / "corpus.jsonl").read_text("utf-8")


@FUZZ
@given(
    st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
    st.sampled_from(["a.pdf", "a.docx", "a.pptx", "a.epub", "a.html", "a.rst", "topics.txt", "qrels.txt"]),
    st.sampled_from([b"", b"%PDF-1.4\n", b"PK\x03\x04", b"<html>", b"<top>\n<num>", b"<topic number='1'>",
                     b"1 0 2 3\n"]),
)  # fmt: skip
def test_no_file_of_text_makes_an_import_fail_but_by_an_error_of_ours(tmp_path_factory, data, name, start):
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        import_data(write(folder, **{name: start + data}), folder / "out")
    except RouterRetrieverError as error:
        assert str(folder) in str(error)
        assert not (folder / "out").exists()
