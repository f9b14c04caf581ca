"""Workers that are loops in the test's own process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def work_here(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Have these modules work on their shards one after the other, without Ray."""

    def run_shards(
        shards: Iterable[dict[str, Any]], worker: Any, constructor: Mapping[str, Any], *_: object
    ) -> None:
        made = worker(**constructor)
        for shard in shards:
            made.work(shard)

    for module in modules:
        monkeypatch.setattr(f"routerretriever.{module}.run_shards", run_shards)
