"""Whose scores an expert is held to: the frozen base's, those of base and BM25 together, or a reranker's.

Shapes: B queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from routerretriever.adapters.tower import QueryTower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.encoder.spread import LEAST_COSINE, cosine_floor, spread_of
from routerretriever.index.hybrid import Tops, fuse, holds_cosines
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.training.candidates import ScoredCandidates, read_candidates
from routerretriever.training.examples import Batch
from routerretriever.training.job import TrainingPart
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import Rows, Scores


class Teacher:
    """The base alone."""

    def scores(self, base_BC: Tensor, batch: Batch, rows: Rows) -> Tensor:
        """Scores of candidates [B, C].

        Args:
            base_BC: the base's.
            batch: the queries.
            rows: of the candidates in the corpus, ascending and unique: [C].
        """
        return base_BC


@dataclass(frozen=True)
class WordsTeacher(Teacher):
    """The base, and BM25 at a weight."""

    words: LexicalIndex
    weight: float
    floor: float | None = LEAST_COSINE
    """The least cosine; None where the base's scores are dot products, whose least is the query's minimum."""

    def scores(self, base_BC: Tensor, batch: Batch, rows: Rows) -> Tensor:
        """Base and BM25 fused; see ``hybrid_scores``."""
        fused = [
            hybrid_scores(
                own_C,
                self.words.all_scores(text),
                rows,
                self.weight,
                float(own_C.min()) if self.floor is None else self.floor,
            )
            for own_C, text in zip(base_BC.cpu().numpy(), batch.texts, strict=True)
        ]
        return torch.from_numpy(np.stack(fused)).to(base_BC.device)


@dataclass(frozen=True)
class RerankingTeacher(Teacher):
    """A reranker on the documents that it has scored, the base on all others.

    A reranker cannot score a whole corpus. Were the others left out, nothing would hold their order, which is
    what the divergence is for; so they keep the base as their teacher. Both are on the base's scale, and what
    the base does not rank high stays below what the reranker has seen.
    """

    listed: Mapping[str, tuple[Rows, Scores]]
    """Query id -> rows, ascending, and scores of its documents, on the base's scale."""

    def scores(self, base_BC: Tensor, batch: Batch, rows: Rows) -> Tensor:
        """The base's scores, with the reranker's in their places."""
        scores_BC = base_BC.cpu().numpy().copy()
        for own_C, query_id in zip(scores_BC, batch.query_ids, strict=True):
            listed, scores = self.listed[query_id]
            _, columns, places = np.intersect1d(rows, listed, assume_unique=True, return_indices=True)
            own_C[columns] = scores[places]
        return torch.from_numpy(scores_BC).to(base_BC.device)


def open_teacher(
    corpus: Corpus, part: TrainingPart, settings: TrainingSettings, store: ArtifactStore, base: QueryTower
) -> Teacher:
    """The teacher that settings name; a corpus's words are counted if it needs them."""
    if part.candidate_keys:
        return RerankingTeacher(
            {
                scored.query_id: (scored.rows, on_base_scale(scored))
                for key in part.candidate_keys
                for scored in read_candidates(store, key)
            }
        )
    if not settings.teacher_bm25:
        return Teacher()
    assert part.lexical is not None, "the recipe says how words are searched"
    words = LexicalIndex(open_postings(corpus, part.lexical, store), part.lexical)
    floor = cosine_floor(spread_of(base)) if holds_cosines(corpus) else None
    return WordsTeacher(words, settings.teacher_bm25, floor)


def on_base_scale(scored: ScoredCandidates) -> Scores:
    """A reranker's scores of one query's documents, min-max normalised and put where the base's were.

    Rerankers give logits, probabilities or cosines. The least and greatest of a query's scores become 0 and
    1, as in JaColBERTv2.5 (arXiv 2407.20750), and then the base's least and greatest score of its own best
    documents. So ``temperature`` and ``mask_above`` mean the same with every teacher.
    """
    low, high = float(scored.scores.min()), float(scored.scores.max())
    share = (scored.scores - low) / (high - low) if high > low else np.ones_like(scored.scores)
    return (scored.base_low + share * (scored.base_high - scored.base_low)).astype(np.float32)


def hybrid_scores(
    base_C: Scores, bm25_N: Scores, rows: Rows, weight: float, least: float = LEAST_COSINE
) -> Scores:
    """Base and BM25 fused as in hybrid search, on the base's scale: weight 0 gives the base's own scores.

    Args:
        base_C: the base's scores of the candidates.
        bm25_N: BM25 of every document.
        rows: of the candidates among them.
        weight: of BM25.
        least: the least score that the base can give.
    """
    top = float(base_C.max())
    if top < least:
        least = LEAST_COSINE  # as fusing has it; above the greatest, the least would turn all round
    fused = fuse(base_C, bm25_N[rows], weight, Tops(top, float(bm25_N.max(initial=0.0)), least))
    return (fused * (top - least) + least).astype(np.float32)
