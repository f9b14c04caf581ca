"""How documents are encoded."""

from __future__ import annotations

from pydantic import PositiveInt

from routerretriever.settings import PoolSettings


class CorpusSettings(PoolSettings):
    """How documents are turned into the corpus artifact by Ray Data."""

    shard_size: PositiveInt = 2048
    """Documents in one shard, at most; smaller collections are cut into 16 shards. A shard is the unit of
    work that is kept when a run stops."""
