"""Bundles and storage that the last release wrote are opened by this one.

``tests/fixtures/format2`` was written at commit c9735a2, by ``Pipeline(tiny_recipe(root)).register()`` on the
first five words of each collection, with ``run_shards`` replaced by a loop and the experts' adapters saved as
they start, untrained. It holds the bundle, the corpus, expert and test scores of one collection, and the
vectors that the bundle gave for some queries.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from routerretriever import RouterRetriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.manifest import read_validation_queries
from routerretriever.corpus.artifact import open_corpus
from routerretriever.training.expert import open_expert

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format2"


def keys(kind):
    storage = FIXTURE / "storage"
    return sorted(str(p.parent.relative_to(storage)) for p in (storage / kind).rglob("artifact.json"))


def test_a_bundle_of_the_last_release_gives_the_same_vectors():
    bundle = RouterRetriever.load(str(FIXTURE / "bundle"))
    assert bundle.experts == ["fruit", "metal"]
    assert bundle.fusion is None
    expected = json.loads((FIXTURE / "vectors.json").read_text())
    vectors = bundle.encode_queries(expected["queries"])
    np.testing.assert_allclose(vectors, expected["vectors"], atol=1e-6)
    queries = read_validation_queries(FIXTURE / "bundle")
    assert sorted(queries) == ["fruit", "metal"]
    assert queries["fruit"][0].relevant == {"d2": 1}


def test_storage_of_the_last_release_is_sound_and_readable():
    store = ArtifactStore.open(str(FIXTURE / "storage"))
    (corpus_key,), (expert_key,) = keys("corpora"), keys("experts")
    corpus = open_corpus(store, corpus_key)
    assert len(corpus) == 10
    assert corpus.documents(["d0"])["d0"].title == "apple"
    assert open_expert(store, expert_key).domain == "fruit"
    assert len(keys("scores")) == 2
    for key in keys("scores"):
        assert store.verify(key)
        scores = parquet.read_table(sorted(store.fetch(key).glob("part-*.parquet")))
        assert scores.num_rows == store.manifest(key)["queries"]
