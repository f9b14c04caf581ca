"""The base encoder against its known score, on collections that are not shipped.

ROUTERRETRIEVER_DATA=/path/to/collections pytest tests/end_to_end/test_known_scores.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray
from routerretriever.cluster import connect
from routerretriever.config import CorpusSettings, EncoderSettings, IndexSettings
from routerretriever.corpus import build_corpora, open_index
from routerretriever.datasets import open_collection
from routerretriever.encoder import load_encoder
from routerretriever.measures import mean_ndcg
from routerretriever.storage import ArtifactStore

DATA = os.environ.get("ROUTERRETRIEVER_DATA")
pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(not DATA, reason="ROUTERRETRIEVER_DATA names no folder of collections"),
    pytest.mark.timeout(3600),
]


@pytest.fixture
def cluster():
    connect()
    yield
    ray.shutdown()


def test_minilm_on_scifact_is_correct_to_the_digit(cluster, tmp_path):
    # Storage that holds the embeddings already saves ten minutes on a core.
    store = ArtifactStore.open(os.environ.get("ROUTERRETRIEVER_STORAGE", str(tmp_path)))
    collection = open_collection("scifact", Path(DATA) / "scifact")
    settings = EncoderSettings()
    corpus = build_corpora([collection], settings, CorpusSettings(), store)["scifact"]
    queries = collection.queries("test")
    vectors = load_encoder(settings).encode_queries(list(queries.values()))
    run = open_index(corpus, IndexSettings(), store).run(list(queries), vectors, 10)
    assert round(100 * mean_ndcg(collection.qrels("test"), run), 2) == 64.51
