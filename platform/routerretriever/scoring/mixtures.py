"""Encoding the queries of a split by mixtures of experts' adapters, as the service encodes them.

The score table cannot give these vectors: an expert and its neighbour together make another encoder than
either of them. They are artifacts by what they are made from, the weights of every query among it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as parquet

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.step import Step
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import judgements_step
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.hashing import content_hash
from routerretriever.runtime.shards import make_parts
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.worker import MixtureEncoder, embedding_of
from routerretriever.training.expert import Expert
from routerretriever.types import BASE, Vectors


def mixture_step(
    collection: Collection,
    split: str,
    weights: Vectors,
    columns: Sequence[str],
    experts: Mapping[str, Expert],
    encoder: EncoderSettings,
    settings: ScoringSettings,
) -> EncodeMixtures:
    """The step that encodes a split's queries, each by its own mixture of experts.

    Args:
        collection: whose queries.
        split: of this split, in its order.
        weights: of each query [Q, T].
        columns: the T experts that these are of; the bare base may be among them.
        experts: the trained experts by name.
        encoder: the base.
        settings: how the work is shared out.
    """
    mixed = {name: experts[name] for name in columns if name != BASE}
    made_from = content_hash(
        tower_fingerprint(encoder), encoder.dtype, columns, [expert.version for expert in mixed.values()]
    )
    judgements, own = judgements_step(collection, split), np.ascontiguousarray(weights, dtype=np.float32)
    digest = content_hash(made_from, judgements.key, hashlib.sha256(own.tobytes()).hexdigest())
    return EncodeMixtures(
        name=collection.name,
        key=f"mixtures/dataset={collection.name}/split={split}-{digest}",
        inputs=(judgements,),
        split=split,
        weights=own,
        columns=tuple(columns),
        experts={name: expert.key for name, expert in mixed.items()},
        encoder=encoder,
        settings=settings,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeMixtures(Step):
    """Query vectors [Q, d] of a split, as a router that merges weights makes them."""

    stage: ClassVar[str] = "evaluate"

    split: str
    weights: Vectors
    columns: tuple[str, ...]
    experts: Mapping[str, str]
    encoder: EncoderSettings
    settings: ScoringSettings

    @classmethod
    def build_all(cls, steps: Sequence[EncodeMixtures], store: ArtifactStore) -> None:
        """Encode all of them in one Ray Data run; they are of one router."""
        first = steps[0]
        for step in steps:
            store.begin(step.key, {"chunk_size": step.settings.chunk_size})
        make_parts(
            {step.key: step.rows() for step in steps},
            {s.key: {"kind": "mixtures", "split": s.split, "experts": list(s.columns)} for s in steps},
            MixtureEncoder,
            {"encoder": first.encoder, "experts": dict(first.experts), "store": store},
            first.settings,
            store,
            "encoding queries by the router",
        )

    def rows(self) -> list[dict[str, Any]]:
        """The work in chunks of queries, one flat row each."""
        size = self.settings.chunk_size
        return [
            {"key": self.key, "part": f"part-{part:05d}.parquet", "judgements": self.inputs[0].key,
             "start": start, "columns": ",".join(self.columns),
             "weights": self.weights[start : start + size].tobytes()}
            for part, start in enumerate(range(0, len(self.weights), size))
        ]  # fmt: skip

    def read(self, store: ArtifactStore) -> Vectors:
        """The vectors, once they have been made."""
        return embedding_of(parquet.read_table(sorted(store.fetch(self.key).glob("part-*.parquet"))))
