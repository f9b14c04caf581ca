from types import SimpleNamespace

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, documents_file, documents_table, embeddings_file
from routerretriever.corpus.build import ShardEncoder, shard_size
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, StorageError
from routerretriever.index.dense import open_index
from routerretriever.index.settings import IndexSettings
from support.corpora import make_document

SHARDS = (5, 1, 7)


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "embeddings").mkdir()
    random, start = np.random.default_rng(0), 0
    for shard, size in enumerate(SHARDS):
        ids = [f"d{row}" for row in range(start, start + size)]
        parquet.write_table(arrow.table({"id": ids}), tmp_path / documents_file(shard))
        np.save(tmp_path / embeddings_file(shard), random.standard_normal((size, 8), dtype=np.float32))
        start += size
    return Corpus("corpora/some", tmp_path, SHARDS, 8)


@pytest.mark.parametrize("depth", [1, 6, 13, 50])
def test_exact_search_over_shards_is_search_over_all(corpus, tmp_path, depth):
    index = open_index(corpus, IndexSettings(), ArtifactStore.open(str(tmp_path)))
    queries = np.random.default_rng(1).standard_normal((4, 8), dtype=np.float32)
    scores, rows = index.search(queries, depth)
    products = queries @ corpus.matrix().T
    expected = np.argsort(-products, axis=1)[:, :depth]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), rtol=1e-5)
    found = index.run(["d3", "q"], queries[:2], 2)
    assert len(found["q"]) == 2
    assert "d3" not in found["d3"]


def test_a_worker_whose_machine_does_not_share_the_storage_says_so(tmp_path):
    worker = ShardEncoder(EncoderSettings(name="fake"), ArtifactStore.open(str(tmp_path)))
    with pytest.raises(StorageError, match=r"storage: .*/documents/.* is not there on .*all machines share"):
        worker.work({"key": "corpora/some", "shard": 0})


def test_a_document_whose_vector_is_no_number_is_named_and_nothing_is_kept(tmp_path, monkeypatch):
    store = ArtifactStore.open(str(tmp_path))
    table = documents_table([make_document(0, number)[0] for number in range(3)])
    store.put("corpora/some", documents_file(0), lambda path: parquet.write_table(table, path))
    vectors = np.ones((3, 4), dtype=np.float32)
    vectors[1, 2] = np.nan
    monkeypatch.setattr(
        "routerretriever.adapters.tower.load_tower",
        lambda settings: SimpleNamespace(settings=settings, encode_documents=lambda texts: vectors),
    )
    worker = ShardEncoder(EncoderSettings(name="fake", dtype="fp16"), store)
    with pytest.raises(EncoderError, match=r"corpora/some: document 'd1' .*fp16: set encoder.dtype to bf16"):
        worker.work({"key": "corpora/some", "shard": 0})
    assert not store.has("corpora/some", embeddings_file(0))


def test_exact_search_holds_no_copy_of_the_embeddings(corpus, tmp_path):
    index = open_index(corpus, IndexSettings(), ArtifactStore.open(str(tmp_path)))
    assert all(isinstance(shard, np.memmap) for shard in index.index.shards)


def test_mapped_documents_leave_nothing_on_the_disk_while_they_are_read(corpus, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert [corpus.document(row).id for row in (0, 5, 12, 0)] == ["d0", "d5", "d12", "d0"]
    assert not list(scratch.iterdir())  # a process killed now would leave it for ever


@pytest.mark.parametrize(
    ("documents", "most", "size"),
    [
        (0, 2048, 128),
        (100, 2048, 128),
        (1400, 2048, 128),
        (5183, 2048, 324),
        (200_000, 2048, 2048),
        (1400, 10, 10),
    ],
)
def test_a_small_collection_is_shared_out_and_a_large_one_cut_as_the_recipe_says(documents, most, size):
    assert shard_size(documents, most) == size
