"""The score table: how well every expert, and the bare base, answers every query of a split."""

from __future__ import annotations

from routerretriever.scoring.mixtures import encode_mixtures
from routerretriever.scoring.table import ScoreTable, SplitScores, build_scores, score_key

__all__ = ["ScoreTable", "SplitScores", "build_scores", "encode_mixtures", "score_key"]
