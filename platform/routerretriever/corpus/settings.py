"""How documents are encoded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from routerretriever.settings import PoolSettings


class CorpusSettings(PoolSettings):
    """How documents are turned into the corpus artifact by Ray Data."""

    shard_size: Annotated[int, Field(gt=0, le=1_000_000)] = 2048
    """Documents in one shard, at most; smaller collections are cut into 16 shards. A shard is the unit of
    work that is kept when a run stops."""
