"""Search by words: the index of this project against bm25s, tantivy and LanceDB.

python -m jobs.benchmarks.lexical --sizes 10000 --sizes 100000
python -m jobs.benchmarks.lexical --sizes 10000 --collections data/scifact --engines ours --engines tantivy

Needs: pip install bm25s tantivy lancedb; what is not installed is left out. Texts are those of
``jobs.benchmarks.data``; queries are eight words of a document, one at a time, the best 100. Building and
searching have a process each, on one thread. Memory is what the searching process gained by opening the index
and asking. A change is 1,000 documents, half of them new, and 500 deletions, until a search shows them.
Quality is nDCG@10 on the test queries of ``--collections``, with English stems; tantivy alone keeps stop
words. Ours and bm25s have k1 0.9 and b 0.4; tantivy and LanceDB have 1.2 and 0.75, which cannot be set.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from routerretriever.datasets.collection import Document, open_collection
from routerretriever.index.base import Entry, Queries
from routerretriever.index.lexical import POSTINGS_FILES, LexicalIndex, Postings
from routerretriever.index.settings import LexicalSettings
from routerretriever.index.words import Analyzer
from routerretriever.measures import mean_ndcg
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.data import made_texts
from jobs.benchmarks.measure import memories_mib, report

_QUERIES = 200
_QUERY_WORDS = 8
_DEPTH = 100
_CHANGED = 1000
_NOTHING = np.zeros(0, dtype=np.float32)
_SETTINGS = LexicalSettings()

Text = tuple[str, str]
"""A document's id and text."""


class Words(Protocol):
    """An index of words in a folder."""

    def find(self, query: str) -> list[tuple[str, float]]:
        """The best documents and their scores."""

    def change(self, documents: Sequence[Text], deleted: Sequence[str]) -> None:
        """Put documents in or replace them, delete others; the next search shows it."""


class Ours:
    """The index of this project: postings on disk, and what came since in memory."""

    @staticmethod
    def build(folder: Path, texts: Iterable[Text]) -> None:
        """Count the words and write them."""
        analyze, ids = Analyzer(_SETTINGS), []

        def words() -> Iterator[list[str]]:
            for document_id, text in texts:
                ids.append(document_id)
                yield analyze(text)

        postings = Postings.build(words())
        for name in POSTINGS_FILES:
            postings.save(name, folder / name)
        (folder / "ids.txt").write_text("\n".join(ids))

    def __init__(self, folder: Path) -> None:
        self._ids = (folder / "ids.txt").read_text().split("\n")
        self._row = {document_id: row for row, document_id in enumerate(self._ids)}
        self._index = LexicalIndex(Postings.load(folder), _SETTINGS)

    def find(self, query: str) -> list[tuple[str, float]]:
        """The best documents and their scores."""
        (hits,) = self._index.search(Queries([query], _NOTHING[None]), _DEPTH)
        return [(self._ids[row], score) for row, score in zip(hits.rows, hits.scores.tolist(), strict=True)]

    def change(self, documents: Sequence[Text], deleted: Sequence[str]) -> None:
        """Append the new rows and hide the old ones."""
        gone = [*deleted, *(document_id for document_id, _ in documents if document_id in self._row)]
        self._index.append(
            [Entry(Document(document_id, "", text), _NOTHING) for document_id, text in documents]
        )
        self._index.delete(np.array([self._row[document_id] for document_id in gone], dtype=np.int64))
        for document_id, _ in documents:
            self._row[document_id] = len(self._ids)
            self._ids.append(document_id)


class Bm25s:
    """bm25s, which makes its index anew for every change."""

    @staticmethod
    def build(folder: Path, texts: Iterable[Text]) -> None:
        """Count the words and write the scores of each in each document."""
        held = list(texts)
        index = _bm25s_of([text for _, text in held])
        index.save(str(folder))
        (folder / "texts.txt").write_text("\n".join(f"{document_id}\t{text}" for document_id, text in held))

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._index = bm25s.BM25.load(str(folder), mmap=True)
        self._path = folder / "texts.txt"
        with self._path.open() as lines:
            self._ids = [line.split("\t", 1)[0] for line in lines]

    def find(self, query: str) -> list[tuple[str, float]]:
        """The best documents and their scores."""
        depth = min(_DEPTH, len(self._ids))
        rows, scores = self._index.retrieve(_bm25s_tokens([query]), k=depth, show_progress=False, n_threads=0)
        return [(self._ids[row], float(score)) for row, score in zip(rows[0], scores[0], strict=True)]

    def change(self, documents: Sequence[Text], deleted: Sequence[str]) -> None:
        """Read all texts again."""
        held = dict(line.split("\t", 1) for line in self._path.read_text().split("\n"))
        held |= dict(documents)
        for document_id in deleted:
            del held[document_id]
        self._ids, self._index = list(held), _bm25s_of(list(held.values()))


def _bm25s_tokens(texts: list[str]) -> Any:
    import bm25s
    import Stemmer

    return bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)


def _bm25s_of(texts: list[str]) -> Any:
    import bm25s

    index = bm25s.BM25(k1=_SETTINGS.k1, b=_SETTINGS.b)
    index.index(_bm25s_tokens(texts), show_progress=False)
    return index


class Tantivy:
    """tantivy, Lucene's relative in Rust."""

    @staticmethod
    def build(folder: Path, texts: Iterable[Text]) -> None:
        """Write segments."""
        import tantivy

        fields = tantivy.SchemaBuilder()
        fields.add_text_field("id", stored=True, tokenizer_name="raw")
        fields.add_text_field("text", tokenizer_name="en_stem")
        index = tantivy.Index(fields.build(), path=str(folder))
        _tantivy_write(index, texts, [])

    def __init__(self, folder: Path) -> None:
        import tantivy

        self._index = tantivy.Index.open(str(folder))

    def find(self, query: str) -> list[tuple[str, float]]:
        """The best documents and their scores."""
        searcher = self._index.searcher()
        parsed = self._index.parse_query(_plain(query), ["text"])
        hits = searcher.search(parsed, _DEPTH).hits
        return [(searcher.doc(place)["id"][0], score) for score, place in hits]

    def change(self, documents: Sequence[Text], deleted: Sequence[str]) -> None:
        """Delete by id, add, commit."""
        _tantivy_write(self._index, documents, [*deleted, *(document_id for document_id, _ in documents)])


def _tantivy_write(index: Any, texts: Iterable[Text], gone: Sequence[str]) -> None:
    import tantivy

    writer = index.writer(heap_size=200_000_000, num_threads=1)
    for document_id in gone:
        writer.delete_documents("id", document_id)
    for document_id, text in texts:
        writer.add_document(tantivy.Document(id=document_id, text=text))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()


class Lance:
    """LanceDB's full-text search."""

    @staticmethod
    def build(folder: Path, texts: Iterable[Text]) -> None:
        """Write rows, then their index."""
        import lancedb
        import pyarrow as arrow

        schema = arrow.schema([("id", arrow.string()), ("text", arrow.string())])

        def batches() -> Iterator[arrow.RecordBatch]:
            rest = iter(texts)
            while some := list(islice(rest, 10_000)):
                yield arrow.RecordBatch.from_pylist([{"id": i, "text": t} for i, t in some], schema=schema)

        table = lancedb.connect(str(folder)).create_table("words", batches(), schema=schema)
        table.create_fts_index(
            "text", language="English", stem=True, remove_stop_words=True, with_position=False
        )

    def __init__(self, folder: Path) -> None:
        import lancedb

        self._table = lancedb.connect(str(folder)).open_table("words")

    def find(self, query: str) -> list[tuple[str, float]]:
        """The best documents and their scores."""
        found = (
            self._table.search(_plain(query), query_type="fts")
            .select(["id", "_score"])
            .limit(_DEPTH)
            .to_list()
        )
        return [(row["id"], row["_score"]) for row in found]

    def change(self, documents: Sequence[Text], deleted: Sequence[str]) -> None:
        """Merge rows, delete others, and take both into the index."""
        rows = [{"id": document_id, "text": text} for document_id, text in documents]
        merging = self._table.merge_insert("id").when_matched_update_all()
        merging.when_not_matched_insert_all().execute(rows)
        self._table.delete(f"id in ({', '.join(repr(document_id) for document_id in deleted)})")
        self._table.optimize()


def _plain(query: str) -> str:
    """A query without what a query language would read as its own."""
    return re.sub(r"[^\w\s]|\b(?:AND|OR|NOT|IN|TO)\b", " ", query)


ENGINES: dict[str, Any] = {"ours": Ours, "bm25s": Bm25s, "tantivy": Tantivy, "lancedb": Lance}


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Documents in the index.")] = None,
    engines: Annotated[list[str] | None, typer.Option(help="ours, bm25s, tantivy, lancedb.")] = None,
    collections: Annotated[list[Path] | None, typer.Option(help="BEIR folders for quality.")] = None,
) -> None:
    """Build, ask and change each index, in processes of their own."""
    set_up(quiet=True)
    if unknown := set(engines or ()) - ENGINES.keys():
        raise typer.BadParameter(f"no engine {sorted(unknown)[0]!r}; there are {', '.join(ENGINES)}")
    chosen = [
        name for name in engines or ENGINES if name == "ours" or importlib.util.find_spec(name) is not None
    ]
    os.environ |= {"OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    folders = collections or []
    quality = {name: {folder.name: _alone(ndcg_of, name, folder) for folder in folders} for name in chosen}
    rows, figures = [], []
    for size in sizes or [10_000, 100_000]:
        for name in chosen:
            with tempfile.TemporaryDirectory() as folder:
                built = _alone(build, name, folder, size)
                measured = {"documents": size, "engine": name, **built, **_alone(ask, name, folder, size)}
            rows.append([
                f"{size:,}", name, f"{60 * size / measured['build_s']:,.0f}", f"{measured['disk_mib']:.0f}",
                f"{measured['mib']:.0f}", f"{measured['per_second']:.0f}", f"{measured['change_s']:.2f}",
                *(f"{100 * each:.1f}" for each in quality[name].values()),
            ])  # fmt: skip
            figures.append({**measured, "ndcg_at_10": quality[name]})
            log.info("%s", rows[-1])
    report(
        "lexical",
        f"the best {_DEPTH} by words",
        ["documents", "engine", "indexed a minute", "MiB on disk", "MiB in memory", "queries/s", "change s",
         *(f"nDCG@10 x 100: {folder.name}" for folder in folders)],
        rows,
        {"measured": figures},
    )  # fmt: skip


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def build(name: str, folder: str, size: int) -> dict[str, float]:
    """Index made texts; seconds without those of making the texts."""
    made = [(f"d{number}", text) for number, text in enumerate(made_texts(size))]
    start = time.perf_counter()
    ENGINES[name].build(Path(folder), made)
    seconds = time.perf_counter() - start
    on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"build_s": seconds, "disk_mib": on_disk / 2**20}


def ask(name: str, folder: str, size: int) -> dict[str, float]:
    """Open an index, ask, then change it."""
    queries = [" ".join(text.split()[:_QUERY_WORDS]) for text in islice(made_texts(size), _QUERIES)]
    new = [(f"new{n}", text) for n, text in enumerate(made_texts(_CHANGED // 2, seed=1))]
    replaced = [(f"d{n}", text) for n, text in enumerate(made_texts(_CHANGED // 2, seed=2))]
    deleted = [f"d{n}" for n in range(_CHANGED, _CHANGED + _CHANGED // 2)]
    before = memories_mib()[0]
    index: Words = ENGINES[name](Path(folder))
    for query in queries[:5]:
        index.find(query)
    start = time.perf_counter()
    for query in queries:
        assert index.find(query), f"{name}: nothing found for {query!r}"
    seconds = time.perf_counter() - start
    mib = memories_mib()[0] - before
    start = time.perf_counter()
    index.change([*new, *replaced], deleted)
    found = {document_id for document_id, _ in index.find(new[0][1])}
    changing = time.perf_counter() - start
    assert "new0" in found, f"{name}: a new document is not found"
    return {"mib": mib, "per_second": len(queries) / seconds, "change_s": changing}


def ndcg_of(name: str, folder: Path) -> float:
    """Mean over the test queries of a collection."""
    collection = open_collection(folder.name, folder)
    with tempfile.TemporaryDirectory() as scratch:
        texts = [(document.id, document.content) for document in collection.documents()]
        ENGINES[name].build(Path(scratch), texts)
        index: Words = ENGINES[name](Path(scratch))
        run = {query_id: dict(index.find(text)) for query_id, text in collection.queries("test").items()}
    return mean_ndcg(collection.qrels("test"), run)


if __name__ == "__main__":
    typer.run(main)
