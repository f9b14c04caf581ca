"""The round trip: does a query find the document that it was written about?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routerretriever.adapters.tower import QueryTower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.generation.filters import Draft
from routerretriever.generation.settings import FilterSettings
from routerretriever.index.base import Queries
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.floor import with_floor
from routerretriever.index.hybrid import HybridIndex, open_hybrid
from routerretriever.index.settings import CollectionSettings

_BATCH = 256


class RoundTrip:
    """Searches a corpus by vectors of the base, alone or with BM25 at the prior weight."""

    def __init__(
        self,
        corpus: Corpus,
        base: QueryTower,
        settings: CollectionSettings,
        filters: FilterSettings,
        store: ArtifactStore,
    ) -> None:
        """Open the indexes; BM25's is made if it is not there."""
        self._corpus, self._base, self._depth = corpus, base, filters.depth
        self._fusion = settings.fusion
        self._hybrid: HybridIndex | None = None
        if filters.round_trip == "hybrid" and settings.lexical is not None:
            self._fusion = with_floor(settings.fusion, base)
            self._hybrid = open_hybrid(corpus, settings.index, settings.lexical, store)
        else:
            self._dense = DenseIndex(open_index(corpus, settings.index, store), corpus, 0, len(corpus))

    def __call__(self, drafts: Sequence[Draft]) -> list[int | None]:
        """The rank of each query's source document, from 1; None below the depth."""
        ranks: list[int | None] = []
        for start in range(0, len(drafts), _BATCH):
            batch = drafts[start : start + _BATCH]
            texts = [draft.query for draft in batch]
            found = self._search(Queries(texts, self._base.encode_queries(texts)))
            for draft, rows in zip(batch, found, strict=True):
                places = np.flatnonzero(rows == self._corpus.rows[draft.request.document])
                ranks.append(int(places[0]) + 1 if len(places) else None)
        return ranks

    def _search(self, queries: Queries) -> list[np.ndarray]:
        if self._hybrid is None:
            return [hits.rows for hits in self._dense.search(queries, self._depth)]
        looks = self._hybrid.look(queries, floor=self._fusion.floor)
        weights = [self._fusion.prior] * len(looks)
        fused = self._hybrid.fuse(queries, looks, weights, None, self._depth)
        return [each.rows for each in fused]
