"""Words and vectors in one ranking, exactly as if every document had been scored by both.

Convex combination (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval", arXiv
2210.11934), with theoretical minima, -1 for the cosine and 0 for BM25, and each query's maxima over the
documents that it may find:

    fused = w * bm25 / max bm25 + (1 - w) * (cosine + 1) / (max cosine + 1)

Both indexes give their best documents, and what only one of them found is scored by the other. A document
that neither gave fuses to at most what both lists' last scores fuse to; while that could still enter the
answer, the lists are made longer (the threshold algorithm of Fagin, Lotem and Naor, 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routerretriever.index.base import Hits, Index, Mask, Queries, Rows, Scores, best_hits

LOOK_DEPTH = 100
"""How long the two lists are at first; the model of weights sees as much."""
RRF_CONSTANT = 60


@dataclass(frozen=True)
class Look:
    """What both indexes found first, for one query."""

    dense: Hits
    lexical: Hits
    dense_of_lexical: Scores
    """Cosines of the lexical hits."""
    lexical_of_dense: Scores
    """BM25 of the dense hits."""

    @property
    def top_cosine(self) -> float:
        """The greatest cosine; -1 if nothing was found."""
        return float(self.dense.scores[0]) if len(self.dense.scores) else -1.0

    @property
    def top_bm25(self) -> float:
        """The greatest BM25; 0 if no word was found."""
        return float(self.lexical.scores[0]) if len(self.lexical.scores) else 0.0


@dataclass(frozen=True)
class Fused:
    """One query's documents, best first, with the scores of both sides."""

    rows: Rows
    scores: Scores
    cosines: Scores
    bm25: Scores


def fuse(cosines: Scores, bm25: Scores, weight: float, top_cosine: float, top_bm25: float) -> Scores:
    """Fused scores, 0 to 1.

    Args:
        cosines: of the documents [n].
        bm25: of the same documents [n].
        weight: of BM25, 0 to 1.
        top_cosine: the greatest cosine of any document that the query may find.
        top_bm25: the greatest BM25, likewise.
    """
    words = bm25 / top_bm25 if top_bm25 > 0 else np.zeros_like(bm25)
    meaning = (cosines + 1) / (top_cosine + 1) if top_cosine > -1 else np.ones_like(cosines)
    fused: Scores = (weight * words + (1 - weight) * meaning).astype(np.float32)
    return fused


def rank_all(cosines: Scores, bm25: Scores, weight: float, depth: int) -> Hits:
    """One query's best documents by convex combination, where both scores of all documents [N] are known.

    With all weight on BM25, only documents that share a word with the query are found.
    """
    if weight == 1:
        rows = np.flatnonzero(bm25)
        return best_hits(rows, bm25[rows], depth)
    scores = fuse(cosines, bm25, weight, float(cosines.max()), float(bm25.max()))
    return best_hits(np.arange(len(scores)), scores, depth)


class HybridIndex:
    """A dense and a lexical index over the same rows."""

    def __init__(self, dense: Index, lexical: Index) -> None:
        self.dense, self.lexical = dense, lexical

    def look(self, queries: Queries, allowed: Mask, depth: int = LOOK_DEPTH) -> list[Look]:
        """Both indexes' best rows, each scored by the other, too."""
        dense = self.dense.search(queries, depth, allowed)
        lexical = self.lexical.search(queries, depth, allowed)
        cosines = self.dense.score(queries, [hits.rows for hits in lexical])
        bm25 = self.lexical.score(queries, [hits.rows for hits in dense])
        return [Look(*each) for each in zip(dense, lexical, cosines, bm25, strict=True)]

    def fuse(
        self,
        queries: Queries,
        looks: Sequence[Look],
        weights: Sequence[float],
        tops: Sequence[tuple[float, float]],
        depth: int,
        allowed: Mask,
        length: int = LOOK_DEPTH,
    ) -> list[Fused]:
        """The best rows by convex combination, exact.

        Args:
            queries: the queries [B].
            looks: what ``look`` gave for them.
            weights: the weight of BM25 for each.
            tops: the greatest cosine and BM25 for each, over all shards of the collection.
            depth: how many rows are wanted.
            allowed: which rows may be found.
            length: how long the lists of ``looks`` are.
        """
        found = []
        for place, (look, weight, top) in enumerate(zip(looks, weights, tops, strict=True)):
            query = Queries([queries.texts[place]], queries.vectors[place : place + 1])
            if weight == 1:
                found.append(self._by_words(query, top[1], depth, allowed))
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

    def _by_words(self, query: Queries, top_bm25: float, depth: int, allowed: Mask) -> Fused:
        hits = self.lexical.search(query, depth, allowed)[0]
        cosines = self.dense.score(query, [hits.rows])[0]
        return Fused(hits.rows, hits.scores / max(top_bm25, 1e-9), cosines, hits.scores)


def _union(look: Look) -> tuple[Rows, Scores, Scores]:
    """All rows of both lists, once, with cosines and BM25."""
    rows, first = np.unique(np.concatenate([look.dense.rows, look.lexical.rows]), return_index=True)
    cosines = np.concatenate([look.dense.scores, look.dense_of_lexical])[first]
    bm25 = np.concatenate([look.lexical_of_dense, look.lexical.scores])[first]
    return rows, cosines, bm25


def _combine(look: Look, weight: float, top: tuple[float, float], depth: int) -> Fused:
    rows, cosines, bm25 = _union(look)
    scores = fuse(cosines, bm25, weight, *top)
    order = np.lexsort((rows, -scores))[:depth]
    return Fused(rows[order], scores[order], cosines[order], bm25[order])


def _may_be_missing(
    look: Look, weight: float, top: tuple[float, float], fused: Fused, depth: int, length: int
) -> bool:
    """Whether a row that neither list holds could be among the best."""
    if len(look.dense.rows) < length:
        return False  # the dense list holds every row that is allowed
    cosine = look.dense.scores[-1:]
    bm25 = look.lexical.scores[-1:] if len(look.lexical.rows) == length else np.zeros(1, np.float32)
    bound = float(fuse(cosine, bm25, weight, *top)[0])
    return len(fused.rows) < depth or bound > float(fused.scores[-1])


def reciprocal_rank_fusion(look: Look, depth: int, constant: int = RRF_CONSTANT) -> Fused:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009) of the two lists as they are."""
    rows, cosines, bm25 = _union(look)
    scores = np.zeros(len(rows), dtype=np.float32)
    for hits in (look.dense, look.lexical):
        scores[np.searchsorted(rows, hits.rows)] += 1 / (constant + np.arange(1, len(hits.rows) + 1))
    order = np.lexsort((rows, -scores))[:depth]
    return Fused(rows[order], scores[order], cosines[order], bm25[order])
