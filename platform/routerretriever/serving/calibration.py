"""The weight of words in a created collection, learned from queries whose relevant documents are known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routerretriever.client.schemas import JudgedQuery
from routerretriever.errors import WrongField
from routerretriever.index.fusion_weights import GRID
from routerretriever.index.live import Wanted
from routerretriever.measures import measure
from routerretriever.serving.ports import CollectionRef, IndexPort
from routerretriever.types import Vectors

_DEPTH = 10
_QUERIES_AT_ONCE = 16


@dataclass(frozen=True)
class Judged:
    """A query of a collection, embedded, and the ids of its relevant documents."""

    text: str
    vector: Vectors
    relevant: frozenset[str]


async def require_documents(index: IndexPort, ref: CollectionRef, queries: Sequence[JudgedQuery]) -> None:
    """See that all relevant documents are there.

    Raises:
        WrongField: one is not; the query is named.
    """
    places = {name: row for row, query in reversed(list(enumerate(queries))) for name in query.relevant}
    names = sorted(places)
    for start in range(0, len(names), _QUERIES_AT_ONCE):
        some = names[start : start + _QUERIES_AT_ONCE]
        found = await asyncio.gather(*(index.document(ref, name) for name in some))
        for name, document in zip(some, found, strict=True):
            if document is None:
                raise WrongField(f"queries.{places[name]}.relevant", f"there is no document {name!r}")


async def measure_weights(
    index: IndexPort, ref: CollectionRef, queries: Sequence[Judged], floor: float
) -> NDArray[np.float64]:
    """nDCG@10 of each query at each weight of BM25 that is compared [Q, W]."""
    ids = [str(row) for row in range(len(queries))]
    qrels = {i: dict.fromkeys(query.relevant, 1) for i, query in zip(ids, queries, strict=True)}
    runs: list[dict[str, dict[str, float]]] = [{} for _ in GRID]
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        some = queries[start : start + _QUERIES_AT_ONCE]
        wanted = [
            Wanted(query.text, query.vector, _DEPTH, weight, floor=floor) for query in some for weight in GRID
        ]
        found = iter(await index.find((ref,), "hybrid", wanted))
        for i in ids[start : start + _QUERIES_AT_ONCE]:
            for run in runs:
                # By rank: pytrec_eval orders equal scores by their ids.
                run[i] = {hit.document.id: float(-rank) for rank, (_, hit) in enumerate(next(found))}
    return np.stack([measure(qrels, run, ids).ndcg_at_10 for run in runs], axis=1)
