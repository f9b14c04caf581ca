"""Which queries are scored, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveInt,
)

from routerretriever.settings import PoolSettings


class ScoringSettings(PoolSettings):
    """Which queries are scored with every expert, and how.

    ``source``: ``train`` (the paper's), ``dev``, or ``held_out`` (train queries that no expert saw; needs
    ``training.held_out_fraction`` above 0).
    """

    source: Literal["train", "dev", "held_out"] = "train"
    """Split whose queries are scored."""
    depth: Annotated[int, Field(ge=10, le=10_000)] = 100
    """Documents retrieved per query; the rank of the first relevant one is known up to here."""
    chunk_size: PositiveInt = 1024
    """Queries in one chunk, the unit of work that is kept when a run stops."""
