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
    """``exact`` compares with every document; ``ivf`` and ``hnsw`` are approximate and faster."""
    ivf_lists: PositiveInt | None = None
    """Number of inverted lists; by default about 4 * sqrt(documents)."""
    ivf_probes: PositiveInt = 32
    """IVF: inverted lists searched for each query."""
    hnsw_links: PositiveInt = 32
    """HNSW: links of each document (M)."""
    hnsw_ef_construction: PositiveInt = 200
    """HNSW: candidates kept while the graph is built."""
    hnsw_ef_search: PositiveInt = 128
    """HNSW: candidates kept while it is searched."""
