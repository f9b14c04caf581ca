"""Which index searches the documents' vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    PositiveInt,
)

from routerretriever.settings import Settings


class IndexSettings(Settings):
    """FAISS index of a corpus. ``exact`` is a flat inner-product index."""

    kind: Literal["exact", "ivf", "hnsw"] = "exact"
    ivf_lists: PositiveInt | None = None
    """Number of inverted lists; by default about 4 * sqrt(documents)."""
    ivf_probes: PositiveInt = 32
    hnsw_links: PositiveInt = 32
    hnsw_ef_construction: PositiveInt = 200
    hnsw_ef_search: PositiveInt = 128
