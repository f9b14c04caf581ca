"""Evaluation on test sets: base, every expert alone, routers, and the oracles."""

from __future__ import annotations

from routerretriever.evaluation.evaluate import RIVALS, ROUTED, Evaluation, RoutedBy, evaluate
from routerretriever.evaluation.report import write_reports
from routerretriever.evaluation.tables import as_dict, terminal_table

__all__ = [
    "RIVALS", "ROUTED", "Evaluation", "RoutedBy", "as_dict", "evaluate", "terminal_table", "write_reports",
]  # fmt: skip
