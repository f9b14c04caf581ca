"""Evaluation on test sets: base, every expert alone, the router, and the oracles."""

from __future__ import annotations

from routerretriever.evaluation.evaluate import Evaluation, evaluate, write_reports

__all__ = ["Evaluation", "evaluate", "write_reports"]
