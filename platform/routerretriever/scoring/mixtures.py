"""Encoding the queries of a split by mixtures of experts' adapters, as the service encodes them.

The score table cannot give these vectors: an expert and its neighbour together make another encoder than
either of them. They are artifacts by what they are made from, the weights of every query among it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from routerretriever.adapters.files import tower_fingerprint
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import store_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.hashing import content_hash
from routerretriever.scoring.settings import ScoringSettings
from routerretriever.scoring.worker import MixtureEncoder, Vectors, embedding_of, make_parts
from routerretriever.training.experts import Expert
from routerretriever.types import BASE


def encode_mixtures(
    collections: Sequence[Collection],
    split: str,
    weights: Mapping[str, Vectors],
    columns: Sequence[str],
    experts: Mapping[str, Expert],
    encoder: EncoderSettings,
    settings: ScoringSettings,
    store: ArtifactStore,
) -> dict[str, Vectors]:
    """Query vectors [Q, d] by collection; only what storage lacks is encoded.

    Args:
        collections: whose queries.
        split: of this split, in its order.
        weights: collection -> weights [Q, T] of each query.
        columns: the T experts that these are of; the bare base may be among them.
        experts: the trained experts by name.
        encoder: the base.
        settings: how the work is shared out.
        store: where experts and vectors lie.
    """
    mixed = {name: experts[name] for name in columns if name != BASE}
    made_from = content_hash(
        tower_fingerprint(encoder), encoder.dtype, columns, [expert.version for expert in mixed.values()]
    )
    keys: dict[str, str] = {}
    parts: dict[str, list[dict[str, Any]]] = {}
    for collection in collections:
        judgements, own = store_judgements(store, collection, split), weights[collection.name]
        own = np.ascontiguousarray(own, dtype=np.float32)
        digest = content_hash(made_from, judgements, hashlib.sha256(own.tobytes()).hexdigest())
        keys[collection.name] = key = f"mixtures/dataset={collection.name}/split={split}-{digest}"
        parts[key] = [
            {"key": key, "part": f"part-{part:05d}.parquet", "judgements": judgements, "start": start,
             "columns": ",".join(columns), "weights": own[start : start + settings.chunk_size].tobytes()}
            for part, start in enumerate(range(0, len(own), settings.chunk_size))
        ]  # fmt: skip

    make_parts(
        parts,
        {key: {"kind": "mixtures", "split": split, "experts": list(columns)} for key in parts},
        MixtureEncoder,
        {"encoder": encoder, "experts": {n: e.key for n, e in mixed.items()}, "store": store},
        settings,
        store,
        f"encoding {split} queries by the router",
    )
    return {
        name: embedding_of(parquet.read_table(sorted(store.fetch(key).glob("part-*.parquet"))))
        for name, key in keys.items()
    }
