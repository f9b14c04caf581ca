"""Words and vectors in one ranking, exactly as if every document had been scored by both.

Convex combination (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", arXiv
2210.11934), with theoretical minima, -1 for the cosine and 0 for BM25, and each query's maxima over the
documents that it may find:

    fused = w * bm25 / max bm25 + (1 - w) * (cosine + 1) / (max cosine + 1)

Dot products of vectors that are not of unit length have no such minimum. Their least over the same documents
takes the place of -1; they are called cosines here, too.

Both indexes give their best documents, and what only one of them found is scored by the other. A document
that neither gave fuses to at most what both lists' last scores fuse to; while that could still enter the
answer, the lists are made longer (the threshold algorithm of Fagin, Lotem and Naor, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.index.base import Hits, Index, Mask, Queries, Rows, Scores, Vectors, best_hits
from routerretriever.index.dense import DenseIndex, open_index
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import IndexSettings, LexicalSettings

LOOK_DEPTH = 100
"""How long the two lists are at first; the model of weights sees as much."""
LEAST_COSINE = -1.0
_UNIT_LENGTH = 0.01
"""How far from 1 the length of a vector may be that was normalised in half precision."""
_TELLING = 10
"""Documents of each query that tell whether vectors are of unit length."""


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

    @property
    def tops(self) -> Tops:
        """The greatest scores; the least where nothing was found."""
        cosine, bm25 = (
            float(hits.scores[0]) if len(hits.scores) else least
            for hits, least in zip((self.dense, self.lexical), Tops()[:2], strict=True)
        )
        return Tops(cosine, bm25, self.least)


@dataclass(frozen=True)
class Fused:
    """One query's documents, best first, with the scores of both sides."""

    rows: Rows
    scores: Scores
    cosines: Scores
    bm25: Scores


def fuse(cosines: Scores, bm25: Scores, weight: float, tops: Tops) -> Scores:
    """Fused scores, 0 to 1.

    Args:
        cosines: of the documents [n].
        bm25: of the same documents [n].
        weight: of BM25, 0 to 1.
        tops: the greatest of both of any document that the query may find, and the least cosine.
    """
    words = bm25 / tops.bm25 if tops.bm25 > 0 else np.zeros_like(bm25)
    least, span = tops.least, tops.cosine - tops.least
    meaning = (cosines - least) / span if span > 0 else np.ones_like(cosines)
    fused: Scores = (weight * words + (1 - weight) * meaning).astype(np.float32)
    return fused


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

    def look(self, queries: Queries, allowed: Mask | None = None, depth: int = LOOK_DEPTH) -> list[Look]:
        """Both indexes' best rows, each scored by the other, too."""
        looks = []
        # One query after the other: an index of words keeps the scores of the last one.
        found = self.dense.search(queries, depth, allowed)
        least = self._least(queries, found, allowed)
        for place, dense in enumerate(found):
            query = queries.only(place)
            (lexical,) = self.lexical.search(query, depth, allowed)
            (bm25,) = self.lexical.score(query, [dense.rows])
            (cosines,) = self.dense.score(query, [lexical.rows])
            looks.append(Look(dense, lexical, cosines, bm25, least[place]))
        return looks

    def _least(self, queries: Queries, found: Sequence[Hits], allowed: Mask | None) -> list[float]:
        """The least cosine of each query; see ``Tops``. Infinite where nothing was found."""
        if self._has_cosines:  # dot products stay what they are
            rows = np.concatenate([hits.rows[:_TELLING] for hits in found])
            self._has_cosines = are_cosines(self.dense.vectors(rows))
        if self._has_cosines:
            return [LEAST_COSINE if len(hits.rows) else math.inf for hits in found]
        farthest = self.dense.search(Queries(queries.texts, -queries.vectors), 1, allowed)
        return [-float(hits.scores[0]) if len(hits.scores) else math.inf for hits in farthest]

    def fuse(
        self,
        queries: Queries,
        looks: Sequence[Look],
        weights: Sequence[float],
        tops: Sequence[Tops] | None,
        depth: int,
        allowed: Mask | None = None,
        length: int = LOOK_DEPTH,
    ) -> list[Fused]:
        """The best rows by convex combination, exact.

        Args:
            queries: the queries [B].
            looks: what ``look`` gave for them.
            weights: the weight of BM25 for each.
            tops: of each, over everything that is searched; None if these indexes are all of it.
            depth: how many rows are wanted.
            allowed: which rows may be found; by default all.
            length: how long the lists of ``looks`` are.
        """
        found = []
        tops = [look.tops for look in looks] if tops is None else tops
        for place, (look, weight, top) in enumerate(zip(looks, weights, tops, strict=True)):
            query = queries.only(place)
            if weight == 1:
                (best,) = self.by_words(query, depth, allowed)
                found.append(replace(best, scores=best.bm25 / max(top.bm25, 1e-9)))
                continue
            reach = max(length, depth)
            if reach > length:
                look = self.look(query, allowed, reach)[0]
            while True:
                fused = _combine(look, weight, top, depth)
                if not _may_be_missing(look, weight, top, fused, depth, reach):
                    break
                reach *= 4
                look = self.look(query, allowed, reach)[0]
            found.append(fused)
        return found

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


def _combine(look: Look, weight: float, top: Tops, depth: int) -> Fused:
    rows, cosines, bm25 = _union(look)
    scores = fuse(cosines, bm25, weight, top)
    order = np.lexsort((rows, -scores))[:depth]
    return Fused(rows[order], scores[order], cosines[order], bm25[order])


def _may_be_missing(look: Look, weight: float, top: Tops, fused: Fused, depth: int, length: int) -> bool:
    """Whether a row that neither list holds could be among the best."""
    if len(look.dense.rows) < length:
        return False  # the dense list holds every row that is allowed
    cosine = look.dense.scores[-1:]
    bm25 = look.lexical.scores[-1:] if len(look.lexical.rows) == length else np.zeros(1, np.float32)
    bound = float(fuse(cosine, bm25, weight, top)[0])
    return len(fused.rows) < depth or bound > float(fused.scores[-1])
