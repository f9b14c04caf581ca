"""Searching 10 thousand to a million documents: time, memory and recall, by vectors, by words and by both.

python -m jobs.benchmarks.search
python -m jobs.benchmarks.search --sizes 1000000 --kinds exact --kinds ivf
python -m jobs.benchmarks.search --sizes 1000000 --kinds exact --modes dense --modes hybrid --modes lexical \
    --filter 0.01
python -m jobs.benchmarks.search --recipe jobs/recipes/sample.yaml

Vectors are made: points around 1,000 random centres, at unit length, which is kinder to approximate indexes
than uniform noise and harder than most text. Texts are those of ``jobs.benchmarks.data``. Queries are
perturbed points with eight words of a document, one at a time; threads are as many as OMP_NUM_THREADS says,
or cores.
``--filter`` gives documents a field and searches with a filter too that leaves this share of them.

Each kind and mode has a process of its own, which holds the collection as an index replica does. Its opening
builds what is not there yet: vectors' index in the first row of a kind, that of words in the first row that
has words. Memory is the whole process's, after the searches, with the pages of files that it has mapped.
Recall is against the first kind's answers in the same mode.
With a recipe, which must have been run, its service searches them too: a client that sends the queries' words
over HTTP, one at a time, to be routed, embedded and searched for.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as parquet
import typer
from pydantic import TypeAdapter
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.build import ServiceFacts
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.artifact import documents_file, documents_table, embeddings_file
from routerretriever.datasets.collection import Document
from routerretriever.index.filters import parse_filter
from routerretriever.index.live import LiveCollection, Wanted
from routerretriever.index.settings import FusionSettings, IndexSettings, LexicalSettings
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up
from routerretriever.types import Mode, Vectors

from jobs.benchmarks.data import made_texts
from jobs.benchmarks.load import Load, run_load
from jobs.benchmarks.measure import memories_mib, report
from jobs.benchmarks.serving import released_beside

_CORPUS = "corpora/made"
_COLLECTION = "made"
_SERVED_SECONDS = 15.0
_SHARD = 50_000
_CENTRES = 1000
_QUERIES = 200
_QUERY_WORDS = 8
_DEPTH = 10
_FIELD = "part"
_WEIGHT = FusionSettings().prior
_MODES = TypeAdapter(list[Mode])


@dataclass(frozen=True)
class Made:
    """A folder with a made corpus, and what is asked of it."""

    folder: str
    texts: list[str]
    vectors: Vectors
    """[n, d]"""


@dataclass(frozen=True)
class Way:
    """How a collection is searched."""

    kind: str
    mode: Mode
    filter: dict[str, Any] | None = None

    @property
    def lexical(self) -> LexicalSettings | None:
        """How its words are indexed, if they are."""
        return None if self.mode == "dense" else LexicalSettings()


@dataclass(frozen=True)
class Searched:
    """What a way took."""

    opening: float
    """Seconds, with the building of what was not there."""
    mib: float
    milliseconds: list[float]
    found: list[list[str]] = field(repr=False)
    """Ids of the best documents of each query."""

    def recall(self, exact: Searched) -> float:
        """Share of the other's documents that are here, too."""
        shares = [
            len({*own} & {*theirs}) / len(theirs)
            for own, theirs in zip(self.found, exact.found, strict=True)
            if theirs
        ]
        return float(np.mean(shares))


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Documents in the collection.")] = None,
    kinds: Annotated[list[str] | None, typer.Option(help="exact comes first, for recall.")] = None,
    modes: Annotated[
        list[str] | None, typer.Option(help="dense, lexical or hybrid; dense alone if not told.")
    ] = None,
    share: Annotated[
        float, typer.Option("--filter", help="Search with a filter too that leaves this share; 0 does not.")
    ] = 0.0,
    dimension: Annotated[int, typer.Option(help="Width of the vectors.")] = 384,
    recipe: Annotated[
        Path | None, typer.Option(help="Search over HTTP too, with this recipe's service.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Build and search each kind of index, in each mode, at each size."""
    set_up(quiet=True)
    variant: Recipe | None = None
    if recipe is not None:
        pipeline = Pipeline(load_recipe(recipe, ["serving.cached_vectors=0", *(overrides or [])]))
        variant = released_beside(pipeline, "search", ServiceFacts({_COLLECTION: _CORPUS}, {}, {}))
    ways = list(_ways(kinds or ["exact", "ivf", "hnsw"], _MODES.validate_python(modes or ["dense"]), share))
    rows, figures = [], []
    for size in sizes or [10_000, 100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            made = make(folder, size, dimension, share)
            firsts: dict[tuple[Mode, bool], Searched] = {}
            for way in ways:
                searched = _in_own_process(made, way)
                recall = searched.recall(firsts.setdefault((way.mode, way.filter is not None), searched))
                p50, p95 = np.quantile(searched.milliseconds, [0.5, 0.95])
                row = [
                    f"{size:,}", way.kind, way.mode, f"{share:g}" if way.filter else "1",
                    f"{searched.opening:.1f}", f"{p50:.2f}", f"{p95:.2f}", f"{searched.mib:.0f}",
                    f"{recall:.3f}",
                ]  # fmt: skip
                measured = {"documents": size, "kind": way.kind, "mode": way.mode,
                            "filter": share if way.filter else None, "open_s": searched.opening,
                            "p50_ms": p50, "p95_ms": p95, "mib": searched.mib, "recall": recall}  # fmt: skip
                if variant is not None:
                    load = _served(variant, made, way)
                    row += [f"{load.quantile(part):.1f}" for part in (0.5, 0.95)]
                    row.append(str(len(load.failures)))
                    measured["http"] = load.figures()
                rows.append(row)
                figures.append(measured)
                log.info("%s", row)
    http_columns = [] if variant is None else ["HTTP p50 ms", "HTTP p95 ms", "failed"]
    report(
        "search",
        f"{dimension} dimensions, the best {_DEPTH}",
        ["documents", "index", "mode", "left", "open s", "p50 ms", "p95 ms", "MiB", "recall", *http_columns],
        rows,
        {"dimension": dimension, "measured": figures},
    )


def _ways(kinds: list[str], modes: list[Mode], share: float) -> Iterator[Way]:
    """Every kind in every mode, without a filter and with it."""
    for kind in kinds:
        for mode in modes:
            yield Way(kind, mode)
            if share:
                yield Way(kind, mode, {"field": _FIELD, "equals": 0})


def _in_own_process(made: Made, way: Way) -> Searched:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(search, made, way).result()


def search(made: Made, way: Way) -> Searched:
    """Open a made collection and ask all of its queries, one at a time."""
    start = time.perf_counter()
    collection = LiveCollection(
        ArtifactStore.open(made.folder),
        _CORPUS,
        "changes/made",
        IndexSettings.model_validate({"kind": way.kind}),
        lexical=way.lexical,
    )
    opening = time.perf_counter() - start
    passing = None if way.filter is None else parse_filter(way.filter)
    found, milliseconds = [], []
    queries = [
        Wanted(text, vector, _DEPTH, _WEIGHT, passing)
        for text, vector in zip(made.texts, made.vectors, strict=True)
    ]
    collection.find(way.mode, queries[-5:])
    for wanted in queries:
        start = time.perf_counter()
        (hits,) = collection.find(way.mode, [wanted])
        milliseconds.append((time.perf_counter() - start) * 1000)
        found.append([hit.document.id for hit in hits])
    return Searched(opening, memories_mib()[0], milliseconds, found)


def _served(recipe: Recipe, made: Made, way: Way) -> Load:
    """Searches over HTTP of what lies in a storage folder."""
    from routerretriever.serving.deployments.run import served

    index = IndexSettings.model_validate({"kind": way.kind})
    corpus = recipe.corpus.model_copy(update={"index": index, "lexical": way.lexical})
    asked: dict[str, Any] = {"collection": _COLLECTION, "top_k": _DEPTH, "mode": way.mode}
    if way.mode == "hybrid":
        asked["weight"] = _WEIGHT
    if way.filter is not None:
        asked["filter"] = way.filter
    with served(Pipeline(recipe.model_copy(update={"storage": made.folder, "corpus": corpus}))) as url:
        bodies = [{"query": text, **asked} for text in made.texts]
        run_load(f"{url}/v1/search", bodies, 1, 2.0)
        return run_load(f"{url}/v1/search", bodies, 1, _SERVED_SECONDS)


def make(folder: str, size: int, dimension: int, share: float = 0.0) -> Made:
    """A corpus, and queries near some of its documents.

    Args:
        folder: where it is written.
        size: how many documents.
        dimension: of their vectors.
        share: of the documents whose field has the value that filters ask for; 0 gives them no field.
    """
    store = ArtifactStore.open(folder)
    random = np.random.default_rng(0)
    centres = random.normal(size=(_CENTRES, dimension)).astype(np.float32)
    texts = made_texts(size)
    every = round(1 / share) if share else 0
    shards: list[int] = []
    near: list[Vectors] = []
    asked: list[str] = []
    for start in range(0, size, _SHARD):
        count = min(_SHARD, size - start)
        vectors = _around(centres[random.integers(_CENTRES, size=count)], random)
        documents = [
            Document(f"d{row}", f"document {row}", text, {_FIELD: row % every} if every else None)
            for row, text in enumerate(islice(texts, count), start)
        ]
        table = documents_table(documents)
        store.put(_CORPUS, documents_file(len(shards)), partial(parquet.write_table, table))
        store.put(_CORPUS, embeddings_file(len(shards)), partial(_save, vectors))
        shards.append(count)
        own = _QUERIES * count // size + 1
        near.append(vectors[:own])
        asked += [" ".join(document.text.split()[:_QUERY_WORDS]) for document in documents[:own]]
    store.commit(_CORPUS, {"kind": "corpus", "dimension": dimension, "shards": shards})
    return Made(folder, asked[:_QUERIES], _around(np.concatenate(near)[:_QUERIES], random, 0.5))


def _around(points: Vectors, random: np.random.Generator, spread: float = 1.0) -> Vectors:
    length = np.linalg.norm(points, axis=1, keepdims=True) / np.sqrt(points.shape[1])
    moved = points + spread * length * random.normal(size=points.shape).astype(np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def _save(vectors: Vectors, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, vectors)


if __name__ == "__main__":
    typer.run(main)
