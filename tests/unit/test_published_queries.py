"""BEIR's published generated queries: from the hub's file to train queries of a collection."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.config.loading import load_recipe
from routerretriever.datasets.checking import check_collection
from routerretriever.datasets.collection import open_collection
from routerretriever.datasets.published import add_generated, download_generated
from routerretriever.datasets.texts import normal_text
from routerretriever.datasets.variant import read_provenance
from routerretriever.errors import DatasetError
from support.collections import WORDS, write_collection
from support.hub import Hub
from support.paths import ROOT

COMMIT = "a" * 40
NAME = "datasets/BeIR/arguana-generated-queries"


def rows(documents=28, each=2):
    return [
        {"_id": f"d{number}", "title": "t", "text": "t", "query": f"what of {number} in {way}"}
        for number in range(documents)
        for way in range(each)
    ]


def write_rows(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in content).encode())
    )
    return folder / "train.jsonl.gz"


def add(root, content, splits=("test",)):
    collection = open_collection("fruit", write_collection(root / "fruit", WORDS["fruit"], splits=splits))
    made = add_generated(collection, write_rows(root / "hub", content), root / "new", {"commit": COMMIT})
    return open_collection("new", made.folder), made


def download(root, url):
    """What the command prints, and its errors, in a process whose hub is ours."""
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(root / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = "from routerretriever.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "datasets", "download", "arguana", "--generated", "--to", str(root)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_makes_a_collection_that_trains_and_asks_the_hub_once(tmp_path):
    write_collection(tmp_path / "arguana", WORDS["fruit"], splits=("test",))
    write_rows(tmp_path / "published", rows())
    with Hub(NAME, {COMMIT: tmp_path / "published"}) as hub:
        done = download(tmp_path, hub.url)
        assert done.returncode == 0, done.stderr
        assert hub.fetched == ["train.jsonl.gz"]
    folder = tmp_path / "arguana-generated"
    assert "(queries: dev 6, test 7, train 50; generated ones dropped: none)" in done.stdout
    assert check_collection(folder).ok
    facts = read_provenance(folder)
    assert facts["published"]["commit"] == COMMIT
    assert facts["published"]["repository"] == NAME.removeprefix("datasets/")
    assert download_generated("arguana", tmp_path).told() in done.stdout  # the hub is gone


def test_a_hub_without_these_queries_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("404: no such repository\nRequest ID: 1")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    write_collection(tmp_path / "arguana", WORDS["fruit"], splits=("test",))
    with pytest.raises(DatasetError) as refused:
        download_generated("arguana", tmp_path)
    told = str(refused.value)
    assert told.startswith(
        "arguana: the hub did not give train.jsonl.gz of BeIR/arguana-generated-queries (404"
    )
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "arguana-generated").exists()


def test_every_dropped_query_is_counted_by_its_reason(tmp_path):
    extra = [
        {"_id": "d3", "query": "Where is ELDER  with apple"},  # q3, a test query
        {"_id": "d9", "query": "WHAT of 1 in 0"},
        {"_id": "nowhere", "query": "what is nowhere"},
        {"_id": "d1", "query": "  "},
    ]
    collection, made = add(tmp_path, [*rows(), *extra])
    assert made.facts["dropped"] == {
        "asked by people": 1, "duplicate": 1, "empty": 1, "of an unknown document": 1,
    }  # fmt: skip
    assert made.facts["generated"] == {"train": 50, "dev": 6}
    assert collection.qrels("test") == open_collection("f", tmp_path / "fruit").qrels("test")
    test = {normal_text(text) for text in collection.queries("test").values()}
    for split in ("train", "dev"):
        assert not test & {normal_text(text) for text in collection.queries(split).values()}


def test_dev_of_people_stays_and_no_query_about_its_documents_is_trained_on(tmp_path):
    collection, made = add(tmp_path, rows(), splits=("train", "dev", "test"))
    plain = open_collection("fruit", tmp_path / "fruit")
    assert collection.qrels("dev") == plain.qrels("dev")
    asked = {document for own in plain.qrels("dev").values() for document in own}
    train = collection.qrels("train")
    assert plain.qrels("train").items() <= train.items()
    generated = {query: own for query, own in train.items() if query.startswith("generated")}
    assert not asked & {document for own in generated.values() for document in own}
    assert made.facts["dropped"] == {"about a document of dev": 2 * len(asked)}
    assert made.facts["held_out_by"] == "queries of people"


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 27), st.integers(0, 3)), min_size=2, max_size=60))
def test_train_and_dev_never_share_a_document(tmp_path_factory, pairs):
    if len({number for number, _ in pairs}) < 2:
        return
    content = [{"_id": f"d{number}", "query": f"what of {number} in {way}"} for number, way in pairs]
    collection, made = add(tmp_path_factory.mktemp("pairs"), content)
    train, dev = ({d for own in collection.qrels(split).values() for d in own} for split in ("train", "dev"))
    assert train
    assert dev
    assert not train & dev
    assert sum(made.facts["generated"].values()) == len(set(pairs))


@pytest.mark.parametrize("row", [{"query": "no document"}, {"_id": 3, "query": "a number"}, ["list"]])
def test_a_row_of_another_layout_names_its_line(tmp_path, row):
    with pytest.raises(DatasetError, match=r"train\.jsonl\.gz:57: no JSON object with \"_id\" and \"query\""):
        add(tmp_path, [*rows(), row])
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="twelve collections"):
        download_generated("cqadupstack", tmp_path)
    with pytest.raises(DatasetError, match="fewer than two documents"):
        add(tmp_path, rows(documents=1))
    (tmp_path / "fiqa-generated").mkdir()
    with pytest.raises(DatasetError, match="made by something else"):
        download_generated("fiqa", tmp_path)
    with pytest.raises(DatasetError, match="`routerretriever datasets download quora --generated`"):
        open_collection("quora", tmp_path / "quora-generated")


def test_the_papers_recipe_needs_no_train_split_by_hand():
    recipe = load_recipe(ROOT / "jobs" / "recipes" / "beir-contriever.yaml")
    paths = {name: domain.path for name, domain in recipe.domains.items()}
    assert (paths["arguana"], paths["quora"]) == ("arguana-generated", "quora-generated")


def test_the_papers_recipe_measures_ms_marco_on_dev_and_stops_on_queries_of_train(tmp_path):
    domain = load_recipe(ROOT / "jobs" / "recipes" / "beir-contriever.yaml").domains["msmarco"]
    folder = write_collection(tmp_path / "msmarco", WORDS["fruit"])
    published = open_collection("msmarco", folder)
    used = open_collection("msmarco", folder, domain)
    assert used.qrels("test") == published.qrels("dev")
    assert used.qrels("dev").items() < published.qrels("train").items()
    assert not used.qrels("dev").keys() & used.qrels("train").keys()
