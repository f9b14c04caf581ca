"""Searching 10 thousand to a million vectors: time and recall of the three kinds of index.

python -m jobs.benchmarks.search
python -m jobs.benchmarks.search --sizes 1000000 --kinds exact --kinds ivf
python -m jobs.benchmarks.search --recipe jobs/recipes/sample.yaml

Vectors are made: points around 1,000 random centres, at unit length, which is kinder to approximate indexes
than uniform noise and harder than most text. Queries are perturbed points, one at a time; threads are as many
as OMP_NUM_THREADS says, or cores.
With a recipe, which must have been run, its service searches them too: a client that sends the recipe's dev
queries over HTTP, one at a time, to be routed, embedded and searched for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import typer
from numpy.typing import NDArray
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.build import ServiceFacts
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.artifact import Corpus, documents_file, embeddings_file, open_corpus
from routerretriever.index.dense import open_index
from routerretriever.index.settings import IndexSettings
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up

from jobs.benchmarks.load import Load, run_load
from jobs.benchmarks.measure import report
from jobs.benchmarks.serving import dev_queries, released_beside

_CORPUS = "corpora/made"
_COLLECTION = "made"
_SERVED_SECONDS = 15.0
_SHARD = 50_000
_CENTRES = 1000
_QUERIES = 200
_DEPTH = 10

Vectors = NDArray[np.float32]


def main(
    sizes: Annotated[list[int] | None, typer.Option(help="Vectors in the index.")] = None,
    kinds: Annotated[list[str] | None, typer.Option(help="exact comes first, for recall.")] = None,
    dimension: Annotated[int, typer.Option(help="Width of the vectors.")] = 384,
    recipe: Annotated[
        Path | None, typer.Option(help="Search over HTTP too, with this recipe's service.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Build and search each kind of index at each size."""
    set_up(quiet=True)
    over_http: Callable[[str, IndexSettings], Load] | None = None
    if recipe is not None:
        pipeline = Pipeline(load_recipe(recipe, ["serving.cached_vectors=0", *(overrides or [])]))
        variant = released_beside(pipeline, "search", ServiceFacts({_COLLECTION: _CORPUS}, {}, {}))
        over_http = partial(_served, variant, dev_queries(pipeline))
    rows, figures = [], []
    for size in sizes or [10_000, 100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            store = ArtifactStore.open(folder)
            corpus, queries = _made(store, size, dimension)
            exact: NDArray[np.int64] | None = None
            for kind in kinds or ["exact", "ivf", "hnsw"]:
                start = time.perf_counter()
                settings = IndexSettings.model_validate({"kind": kind})
                index = open_index(corpus, settings, store)
                building = time.perf_counter() - start
                found, milliseconds = _searched(index, queries)
                del index
                exact = found if exact is None else exact
                recall = np.mean(
                    [len(np.intersect1d(*pair)) / _DEPTH for pair in zip(found, exact, strict=True)]
                )
                p50, p95 = np.quantile(milliseconds, [0.5, 0.95])
                row = [f"{size:,}", kind, f"{building:.1f}", f"{p50:.2f}", f"{p95:.2f}", f"{recall:.3f}"]
                measured = {"vectors": size, "kind": kind, "build_s": building, "p50_ms": p50, "p95_ms": p95,
                            "recall": recall}  # fmt: skip
                if over_http is not None:
                    load = over_http(folder, settings)
                    row += [f"{load.quantile(share):.1f}" for share in (0.5, 0.95)]
                    row.append(str(len(load.failures)))
                    measured["http"] = load.figures()
                rows.append(row)
                figures.append(measured)
                log.info("%s", row)
    http_columns = [] if over_http is None else ["HTTP p50 ms", "HTTP p95 ms", "failed"]
    report(
        "search",
        f"{dimension} dimensions, the best {_DEPTH}",
        ["vectors", "index", "build s", "p50 ms", "p95 ms", "recall", *http_columns],
        rows,
        {"dimension": dimension, "measured": figures},
    )


def _served(recipe: Recipe, queries: list[str], storage: str, index: IndexSettings) -> Load:
    """Searches over HTTP of what lies in a storage folder."""
    from routerretriever.serving.deployments.run import served

    corpus = recipe.corpus.model_copy(update={"index": index, "lexical": None})
    with served(Pipeline(recipe.model_copy(update={"storage": storage, "corpus": corpus}))) as url:
        bodies = [{"query": query, "collection": _COLLECTION, "top_k": _DEPTH} for query in queries]
        run_load(f"{url}/v1/search", bodies, 1, 2.0)
        return run_load(f"{url}/v1/search", bodies, 1, _SERVED_SECONDS)


def _made(store: ArtifactStore, size: int, dimension: int) -> tuple[Corpus, Vectors]:
    """A corpus, and queries near some of its vectors."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(_CENTRES, dimension)).astype(np.float32)
    shards: list[int] = []
    queries = []
    for start in range(0, size, _SHARD):
        count = min(_SHARD, size - start)
        vectors = _around(centres[random.integers(_CENTRES, size=count)], random)
        texts = [f"document {row}" for row in range(start, start + count)]
        documents = arrow.table({"id": texts, "title": texts, "text": texts})
        store.put(_CORPUS, documents_file(len(shards)), partial(parquet.write_table, documents))
        store.put(_CORPUS, embeddings_file(len(shards)), partial(_save, vectors))
        shards.append(count)
        queries.append(vectors[: _QUERIES * count // size + 1])
    store.commit(_CORPUS, {"kind": "corpus", "dimension": dimension, "shards": shards})
    return open_corpus(store, _CORPUS), _around(np.concatenate(queries)[:_QUERIES], random, 0.5)


def _around(points: Vectors, random: np.random.Generator, spread: float = 1.0) -> Vectors:
    length = np.linalg.norm(points, axis=1, keepdims=True) / np.sqrt(points.shape[1])
    moved = points + spread * length * random.normal(size=points.shape).astype(np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def _save(vectors: Vectors, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, vectors)


def _searched(index: Any, queries: Vectors) -> tuple[NDArray[np.int64], list[float]]:
    found, milliseconds = [], []
    index.search(queries[:5], _DEPTH)
    for query in queries:
        start = time.perf_counter()
        _, rows = index.search(query[None], _DEPTH)
        milliseconds.append((time.perf_counter() - start) * 1000)
        found.append(rows[0])
    return np.stack(found), milliseconds


if __name__ == "__main__":
    typer.run(main)
