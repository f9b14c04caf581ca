"""Evaluation on test sets: base, every expert alone, the router, and the oracles."""

from __future__ import annotations

from routerretriever.evaluation.evaluate import PAPER, ROUTED, Evaluation, evaluate, write_reports

__all__ = ["PAPER", "ROUTED", "Evaluation", "evaluate", "write_reports"]
