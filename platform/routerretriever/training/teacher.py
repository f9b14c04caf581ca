"""Whose scores an expert is held to: the frozen base's, or those of base and BM25 together.

Shapes: B queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus
from routerretriever.index.hybrid import Tops, fuse
from routerretriever.index.lexical import LexicalIndex, open_postings
from routerretriever.index.settings import LexicalSettings

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Teacher:
    """The base, and BM25 at a weight."""

    words: LexicalIndex | None = None
    weight: float = 0.0

    @classmethod
    def open(
        cls, corpus: Corpus, lexical: LexicalSettings | None, weight: float, store: ArtifactStore
    ) -> Teacher:
        """The base alone at weight 0; else with a corpus's words, which are counted if they have not been."""
        if not weight:
            return cls()
        assert lexical is not None, "the recipe says how words are searched"
        return cls(LexicalIndex(open_postings(corpus, lexical, store), lexical), weight)

    def scores(self, base_BC: Tensor, texts: Sequence[str], rows: NDArray[np.int64]) -> Tensor:
        """Scores of candidates.

        Args:
            base_BC: the base's.
            texts: the queries.
            rows: of the candidates in the corpus.
        """
        if self.words is None:
            return base_BC
        fused = [
            hybrid_scores(own_C, self.words.all_scores(text), rows, self.weight)
            for own_C, text in zip(base_BC.cpu().numpy(), texts, strict=True)
        ]
        return torch.from_numpy(np.stack(fused)).to(base_BC.device)


def hybrid_scores(base_C: Scores, bm25_N: Scores, rows: NDArray[np.int64], weight: float) -> Scores:
    """Base and BM25 fused as in hybrid search, on the base's scale: weight 0 gives the base's own scores.

    Args:
        base_C: the base's scores of the candidates.
        bm25_N: BM25 of every document.
        rows: of the candidates among them.
        weight: of BM25.
    """
    top = float(base_C.max())
    fused = fuse(base_C, bm25_N[rows], weight, Tops(top, float(bm25_N.max(initial=0.0))))
    return (fused * (top + 1) - 1).astype(np.float32)
