"""The round trip: does a query find the document that it was written about, and does a teacher agree?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routerretriever.adapters.tower import QueryTower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.generation.filters import Draft
from routerretriever.generation.protocol import Teacher
from routerretriever.generation.settings import FilterSettings
from routerretriever.index.base import Queries
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.hybrid import HybridIndex, open_hybrid
from routerretriever.index.settings import CollectionSettings
from routerretriever.runtime.progress import track
from routerretriever.types import Rows

_BATCH = 256
_TEACHER_BATCH = 32
"""Queries that a teacher is asked about at a time, each with all its documents."""


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
            self._fusion = settings.fusion.for_encoder(base)
            self._hybrid = open_hybrid(corpus, settings.index, settings.lexical, store)
        else:
            self._dense = DenseIndex(open_index(corpus, settings.index, store), corpus, 0, len(corpus))

    def __call__(self, drafts: Sequence[Draft]) -> list[int | None]:
        """The rank of each query's source document, from 1; None below the depth."""
        ranks: list[int | None] = []
        for draft, rows in zip(drafts, self.candidates(drafts, self._depth), strict=True):
            places = np.flatnonzero(rows == self._corpus.rows[draft.request.document])
            ranks.append(int(places[0]) + 1 if len(places) else None)
        return ranks

    def candidates(self, drafts: Sequence[Draft], depth: int) -> list[Rows]:
        """Rows of the first documents that each query finds, the best first: at most ``depth`` each."""
        found: list[Rows] = []
        for start in range(0, len(drafts), _BATCH):
            texts = [draft.query for draft in drafts[start : start + _BATCH]]
            found += self._search(Queries(texts, self._base.encode_queries(texts)), depth)
        return found

    def _search(self, queries: Queries, depth: int) -> list[Rows]:
        if self._hybrid is None:
            return [hits.rows for hits in self._dense.search(queries, depth)]
        looks = self._hybrid.look(queries, floor=self._fusion.floor)
        weights = [self._fusion.prior] * len(looks)
        fused = self._hybrid.fuse(queries, looks, weights, None, depth)
        return [each.rows for each in fused]


class TeacherTrip:
    """What a teacher says of the source document, among the first documents of a round trip."""

    def __init__(self, trip: RoundTrip, corpus: Corpus, teacher: Teacher, depth: int) -> None:
        """Nothing is asked yet.

        Args:
            trip: finds the documents that the teacher scores.
            corpus: theirs.
            teacher: scores them.
            depth: a source that the teacher ranks below it is not found.
        """
        self._trip, self._corpus, self._teacher, self._depth = trip, corpus, teacher, depth

    def __call__(self, drafts: Sequence[Draft]) -> list[int | None]:
        """The rank that the teacher gives each query's source document, from 1; None below the depth.

        Raises:
            TeacherError: its scores cannot be had.
        """
        starts = range(0, len(drafts), _TEACHER_BATCH)
        ranks: list[int | None] = []
        for start in track(starts, "teacher reads queries", len(starts)):
            ranks += self._ranks(drafts[start : start + _TEACHER_BATCH])
        return ranks

    def _ranks(self, drafts: Sequence[Draft]) -> list[int | None]:
        sources = [self._corpus.rows[draft.request.document] for draft in drafts]
        found = self._trip.candidates(drafts, self._teacher.depth)
        listed = [np.union1d(rows, [source]) for rows, source in zip(found, sources, strict=True)]
        documents = [[self._corpus.document(int(row)).content for row in rows] for rows in listed]
        scores = self._teacher.score([draft.query for draft in drafts], documents)
        ranks = [
            1 + int((own > own[rows == source]).sum())
            for own, rows, source in zip(scores, listed, sources, strict=True)
        ]
        return [rank if rank <= self._depth else None for rank in ranks]
