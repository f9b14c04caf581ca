"""Words and vectors in one ranking, exactly as if every document had been scored by both.

Convex combination (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", arXiv
2210.11934), with each query's maxima over the documents that it may find, 0 as the least BM25, and the floor
of ``encoder/spread.py`` as the least cosine:

    fused = w * bm25 / max bm25 + (1 - w) * (cosine - floor) / (max cosine - floor)

Dot products of vectors that are not of unit length have no floor. Their least over the same documents takes
its place; they are called cosines here, too.

Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009) adds up ranks instead, and knows no weight:

    fused = 1 / (60 + rank by bm25) + 1 / (60 + rank by cosine)

A rank is 1 + the number of documents that score higher, out of all that the query may find; equal scores
have equal ranks. Only ranks to ``RRF_DEPTH`` count, as in search engines, which fuse the first documents of
each side. BM25 ranks none without a word of the query. Documents that neither side ranks are not found.

Both indexes give their best documents, and what only one of them found is scored by the other. A document
that neither gave fuses to at most what both lists' last scores fuse to; while that could still enter the
answer, the lists are made longer (the threshold algorithm of Fagin, Lotem and Naor, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.encoder.spread import LEAST_COSINE
from routerretriever.index.base import Hits, Index, Mask, Queries, best_hits
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import IndexSettings, LexicalSettings
from routerretriever.types import Fusion, Rows, Scores, Values, Vectors

RRF_K = 60
"""What reciprocal rank fusion adds to every rank, as its authors and the search engines do."""
RRF_DEPTH = 1000
"""The last rank that counts on either side."""
LOOK_DEPTH = 100
"""How long the two lists are at first, at least, for convex combination."""
_LOOKED_AT = 1000
"""One in so many documents is in the first lists of a large collection: making them longer later goes through
all of its vectors again."""
_UNIT_LENGTH = 0.01
"""How far from 1 the length of a vector may be that was normalised in half precision."""
_TELLING = 10
"""Documents of each query that tell whether vectors are of unit length."""


Score = Callable[[Scores, Scores], Scores]
"""Fused scores [n] by cosines [n] and BM25 [n] of documents; minus infinity of those that are not found."""


class Tops(NamedTuple):
    """The greatest scores of any document that a query may find, and the least cosine."""

    cosine: float = -math.inf
    bm25: float = 0.0
    least: float = LEAST_COSINE
    """The least possible cosine; of dot products, the least that there is."""

    @classmethod
    def over(cls, parts: Sequence[Tops]) -> Tops:
        """Those of several parts of what is searched together."""
        return cls(
            max(part.cosine for part in parts),
            max(part.bm25 for part in parts),
            min(part.least for part in parts),
        )


class Ranking(NamedTuple):
    """The greatest scores of the documents that a query may find, ascending: ranks are counted on them."""

    cosines: Scores
    bm25: Scores

    @classmethod
    def over(cls, parts: Sequence[Ranking]) -> Ranking:
        """Those of several parts of what is searched together."""
        cosines, bm25 = (np.sort(np.concatenate(side))[-RRF_DEPTH:] for side in zip(*parts, strict=True))
        return cls(cosines, bm25)


Whole = Tops | Ranking
"""What fusing must know of everything that a query searches, by convex combination or by reciprocal ranks."""


def whole_of(parts: Sequence[Whole]) -> Whole:
    """The same of several parts, all of one kind."""
    tops = [part for part in parts if isinstance(part, Tops)]
    return Tops.over(tops) if tops else Ranking.over([part for part in parts if isinstance(part, Ranking)])


def look_depth(fusion: Fusion, documents: int) -> int:
    """How long the two lists are at first, among so many documents that may be found."""
    # One more than ranks that count shows whether the last is shared by documents that were not seen.
    return max(LOOK_DEPTH, documents // _LOOKED_AT) if fusion == "convex" else RRF_DEPTH + 1


@dataclass(frozen=True)
class Look:
    """What both indexes found first, for one query."""

    dense: Hits
    lexical: Hits
    dense_of_lexical: Scores
    """Cosines of the lexical hits."""
    lexical_of_dense: Scores
    """BM25 of the dense hits."""
    least: float = LEAST_COSINE
    """See ``Tops``."""
    length: int = LOOK_DEPTH
    """How long the two lists are, unless there was no more to find."""

    @property
    def tops(self) -> Tops:
        """The greatest scores; the least where nothing was found."""
        cosine, bm25 = (
            float(hits.scores[0]) if len(hits.scores) else least
            for hits, least in zip((self.dense, self.lexical), Tops()[:2], strict=True)
        )
        return Tops(cosine, bm25, self.least)

    def whole(self, fusion: Fusion) -> Whole:
        """What this kind of fusion must know, where these indexes are all that is searched."""
        if fusion == "convex":
            return self.tops
        return Ranking.over([Ranking(self.dense.scores, self.lexical.scores)])


@dataclass(frozen=True)
class Fused:
    """One query's documents, best first, with the scores of both sides."""

    rows: Rows
    scores: Scores
    cosines: Scores
    bm25: Scores


def fuse(cosines: Scores, bm25: Scores, weight: float, tops: Tops) -> Scores:
    """Fused scores, to 1; below 0 where a cosine is below the floor.

    Args:
        cosines: of the documents [n].
        bm25: of the same documents [n].
        weight: of BM25, 0 to 1.
        tops: the greatest of both of any document that the query may find, and the least cosine.
    """
    words = bm25 / tops.bm25 if tops.bm25 > 0 else np.zeros_like(bm25)
    # Where even the best cosine is below the floor, all count from -1.
    least = tops.least if tops.cosine > tops.least else LEAST_COSINE
    span = tops.cosine - least
    meaning = (cosines - least) / span if span > 0 else np.ones_like(cosines)
    fused: Scores = (weight * words + (1 - weight) * meaning).astype(np.float32)
    return fused


def fuse_ranks(cosines: Scores, bm25: Scores, ranking: Ranking) -> Scores:
    """Fused scores by reciprocal ranks, to 2 / (``RRF_K`` + 1); minus infinity where neither side has a rank.

    Args:
        cosines: of the documents [n].
        bm25: of the same documents [n].
        ranking: the ``RRF_DEPTH`` greatest of both of all documents that the query may find.
    """
    words = np.where(bm25 > 0, _reciprocal_ranks(bm25, ranking.bm25), 0)
    fused = _reciprocal_ranks(cosines, ranking.cosines) + words
    return np.where(fused > 0, fused, -np.inf).astype(np.float32)


def _reciprocal_ranks(scores: Scores, ascending: Scores) -> Values:
    ranks = 1 + len(ascending) - np.searchsorted(ascending, scores, side="right")
    return np.where(ranks <= RRF_DEPTH, 1 / (RRF_K + ranks), 0)


def are_cosines(vectors: Vectors) -> bool:
    """Whether inner products with documents' vectors [n, d] are cosines: each has unit length or none."""
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(((np.abs(lengths - 1) < _UNIT_LENGTH) | (lengths == 0)).all())


def holds_cosines(corpus: Corpus) -> bool:
    """Whether inner products with the documents of a corpus are cosines; see ``are_cosines``."""
    return are_cosines(corpus.lookup(np.arange(min(len(corpus), LOOK_DEPTH))))


def rank_all(cosines: Scores, bm25: Scores, weight: float, depth: int, least: float = LEAST_COSINE) -> Hits:
    """One query's best documents by convex combination, where both scores of all documents [N] are known.

    With all weight on BM25, only documents that share a word with the query are found.

    Args:
        cosines: of all documents [N].
        bm25: of the same documents [N].
        weight: of BM25, 0 to 1.
        depth: how many documents are wanted.
        least: the least cosine; see ``Tops``.
    """
    if weight == 1:
        rows = np.flatnonzero(bm25)
        return best_hits(rows, bm25[rows], depth)
    scores = fuse(cosines, bm25, weight, Tops(float(cosines.max()), float(bm25.max()), least))
    return best_hits(np.arange(len(scores)), scores, depth)


class HybridIndex:
    """A dense and a lexical index over the same rows."""

    def __init__(self, dense: DenseIndex, lexical: Index) -> None:
        self.dense, self.lexical = dense, lexical
        self._has_cosines = True

    def look(
        self,
        queries: Queries,
        allowed: Mask | None = None,
        depth: int = LOOK_DEPTH,
        floor: float = LEAST_COSINE,
    ) -> list[Look]:
        """Both indexes' best rows, each scored by the other, too.

        Args:
            queries: the queries [B].
            allowed: which rows may be found; by default all.
            depth: how many rows of each.
            floor: the least cosine that fusing reckons with; dot products have their own.
        """
        looks = []
        # One query after the other: an index of words keeps what it knows of the last one.
        found = self.dense.search(queries, depth, allowed)
        least = self._least(queries, found, allowed, floor)
        for place, dense in enumerate(found):
            query = queries.only(place)
            (lexical,) = self.lexical.search(query, depth, allowed)
            (bm25,) = self.lexical.score(query, [dense.rows])
            (cosines,) = self.dense.score(query, [lexical.rows])
            looks.append(Look(dense, lexical, cosines, bm25, least[place], depth))
        return looks

    def _least(
        self, queries: Queries, found: Sequence[Hits], allowed: Mask | None, floor: float
    ) -> list[float]:
        """The least cosine of each query; see ``Tops``. Infinite where nothing was found."""
        if self._has_cosines:  # dot products stay what they are
            rows = np.concatenate([hits.rows[:_TELLING] for hits in found])
            self._has_cosines = are_cosines(self.dense.vectors(rows))
        if self._has_cosines:
            return [floor if len(hits.rows) else math.inf for hits in found]
        farthest = self.dense.search(Queries(queries.texts, -queries.vectors), 1, allowed)
        return [-float(hits.scores[0]) if len(hits.scores) else math.inf for hits in farthest]

    def fuse(
        self,
        queries: Queries,
        looks: Sequence[Look],
        weights: Sequence[float],
        wholes: Sequence[Whole] | None,
        depth: int,
        allowed: Mask | None = None,
    ) -> list[Fused]:
        """The best rows by convex combination, or by reciprocal ranks where ``wholes`` are for that; exact.

        Args:
            queries: the queries [B].
            looks: what ``look`` gave for them.
            weights: the weight of BM25 for each; reciprocal ranks have none.
            wholes: what fusing each must know of everything that is searched; None for convex combination
                where these indexes are all of it.
            depth: how many rows are wanted.
            allowed: which rows may be found; by default all.
        """
        found = []
        wholes = [look.tops for look in looks] if wholes is None else wholes
        for place, (look, weight, whole) in enumerate(zip(looks, weights, wholes, strict=True)):
            query = queries.only(place)
            if isinstance(whole, Ranking):
                found.append(self._best(query, look, partial(fuse_ranks, ranking=whole), depth, allowed))
            elif weight == 1:
                (best,) = self.by_words(query, depth, allowed)
                found.append(replace(best, scores=best.bm25 / max(whole.bm25, 1e-9)))
            else:
                score = partial(fuse, weight=weight, tops=whole)
                found.append(self._best(query, look, score, depth, allowed))
        return found

    def _best(self, query: Queries, look: Look, score: Score, depth: int, allowed: Mask | None) -> Fused:
        """One query's best rows; its lists are made longer until none can be missing."""
        if depth > look.length:
            (look,) = self.look(query, allowed, depth, look.least)
        while True:
            fused = _combine(look, score, depth)
            if not _may_be_missing(look, score, fused, depth):
                return fused
            (look,) = self.look(query, allowed, look.length * 4, look.least)

    def by_words(self, queries: Queries, depth: int, allowed: Mask | None = None) -> list[Fused]:
        """The best rows by BM25 alone, with their cosines."""
        lexical = self.lexical.search(queries, depth, allowed)
        cosines = self.dense.score(queries, [hits.rows for hits in lexical])
        return [
            Fused(hits.rows, hits.scores, own, hits.scores)
            for hits, own in zip(lexical, cosines, strict=True)
        ]


def open_hybrid(
    corpus: Corpus, index: IndexSettings, lexical: LexicalSettings, store: ArtifactStore
) -> HybridIndex:
    """The indexes of a whole corpus; what is missing of them is made."""
    dense = DenseIndex(open_index(corpus, index, store), corpus, 0, len(corpus))
    return HybridIndex(dense, LexicalIndex(open_postings(corpus, lexical, store), lexical))


def _union(look: Look) -> tuple[Rows, Scores, Scores]:
    """All rows of both lists, once, with cosines and BM25."""
    rows, first = np.unique(np.concatenate([look.dense.rows, look.lexical.rows]), return_index=True)
    cosines = np.concatenate([look.dense.scores, look.dense_of_lexical])[first]
    bm25 = np.concatenate([look.lexical_of_dense, look.lexical.scores])[first]
    return rows, cosines, bm25


def _combine(look: Look, score: Score, depth: int) -> Fused:
    rows, cosines, bm25 = _union(look)
    scores = score(cosines, bm25)
    order = np.lexsort((rows, -scores))[: min(depth, int(np.isfinite(scores).sum()))]
    return Fused(rows[order], scores[order], cosines[order], bm25[order])


def _may_be_missing(look: Look, score: Score, fused: Fused, depth: int) -> bool:
    """Whether a row that neither list holds could be among the best."""
    if len(look.dense.rows) < look.length:
        return False  # the dense list holds every row that is allowed
    cosine = look.dense.scores[-1:]
    has_more_words = len(look.lexical.rows) == look.length
    bm25 = look.lexical.scores[-1:] if has_more_words else np.zeros(1, np.float32)
    bound = float(score(cosine, bm25)[0])
    return bound > (float(fused.scores[-1]) if len(fused.rows) == depth else -math.inf)
