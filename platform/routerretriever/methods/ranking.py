"""What systems find on test queries, made when somebody asks: an evaluation keeps measures, not results.

Shapes: Q queries, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from routerretriever.evaluation.system import Rank
from routerretriever.index.base import Queries
from routerretriever.index.dense import as_run, search_depth
from routerretriever.index.hybrid import open_hybrid
from routerretriever.measures import Run
from routerretriever.methods.base import Workspace
from routerretriever.types import Values, Vectors

VectorsOf = Callable[[str], Vectors]
"""Given a test set: the vectors [Q, d] of its queries, in its order."""


def dense_rank(workspace: Workspace, vectors: VectorsOf) -> Rank:
    """The documents nearest to query vectors, searched as the score table was."""

    def rank(dataset: str, query_ids: Sequence[str], depth: int) -> Run:
        own = vectors(dataset)[_rows(workspace, dataset, query_ids)]
        return search_test(workspace, dataset, query_ids, own, depth)

    return rank


def search_test(
    workspace: Workspace, dataset: str, query_ids: Sequence[str], vectors_Qd: Vectors, depth: int
) -> Run:
    """The documents nearest to the vectors of test queries."""
    collection = workspace.collections[dataset]
    kept, passages = collection.own_kept("test"), collection.settings.passages is not None
    return workspace.open_index(dataset).run(list(query_ids), vectors_Qd, depth, kept, passages)


def hybrid_rank(workspace: Workspace, vectors: VectorsOf, weights: Callable[[str], Values]) -> Rank:
    """Words beside query vectors; ``weights`` gives each query's weight [Q] of BM25."""

    def rank(dataset: str, query_ids: Sequence[str], depth: int) -> Run:
        collection, lexical = workspace.collections[dataset], workspace.lexical[dataset]
        assert lexical is not None
        corpus, rows = workspace.open_corpus(dataset), _rows(workspace, dataset, query_ids)
        hybrid = open_hybrid(corpus, workspace.corpus.index, lexical, workspace.store)
        texts = collection.queries("test")
        queries = Queries([texts[query] for query in query_ids], vectors(dataset)[rows])
        passages, own = collection.settings.passages is not None, weights(dataset)[rows].tolist()
        looks = hybrid.look(queries, floor=workspace.fusion.floor)
        found = hybrid.fuse(queries, looks, own, None, search_depth(depth, passages))
        hits = [
            [(corpus.ids[row], score) for row, score in zip(each.rows, each.scores.tolist(), strict=True)]
            for each in found
        ]
        return as_run(query_ids, hits, depth, collection.own_kept("test"), passages)

    return rank


def _rows(workspace: Workspace, dataset: str, query_ids: Sequence[str]) -> np.ndarray:
    places = {query: row for row, query in enumerate(workspace.test_queries(dataset))}
    return np.array([places[query] for query in query_ids], dtype=np.int64)
