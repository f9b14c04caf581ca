import numpy as np
import pytest
from routerretriever.measures import mean_ndcg, measure
from routerretriever.storage import ArtifactMissing, ArtifactStore, StorageError


@pytest.mark.parametrize("uri", ["folder", "memory://store"])
def test_an_artifact_is_there_once_it_is_committed(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("ROUTERRETRIEVER_CACHE", str(tmp_path / "cache"))
    store = ArtifactStore.open(str(tmp_path / uri) if "://" not in uri else f"{uri}-{tmp_path.name}")
    store.put("kind/one", "sub/file.txt", lambda path: path.write_text("hello"))
    assert store.has("kind/one", "sub/file.txt")
    assert not store.exists("kind/one")
    with pytest.raises(ArtifactMissing, match="kind/one"):
        store.fetch("kind/one")
    store.commit("kind/one", {"kind": "test", "name": "ünï"})
    assert store.manifest("kind/one") == {"kind": "test", "name": "ünï"}
    assert (store.fetch("kind/one") / "sub/file.txt").read_text() == "hello"
    store.delete("kind/one")
    assert not store.exists("kind/one")


def test_a_failed_write_leaves_nothing(tmp_path):
    store = ArtifactStore.open(str(tmp_path))

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.put("a", "file", fail)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_damaged_manifest_is_named(tmp_path):
    store = ArtifactStore.open(str(tmp_path))
    store.put("a", "artifact.json", lambda path: path.write_text("{"))
    with pytest.raises(StorageError, match="damaged"):
        store.manifest("a")


def test_measures_are_trec_evals():
    qrels = {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
    run = {"q1": {"x": 3.0, "a": 2.0, "b": 1.0}, "q2": {"x": 1.0}}
    measured = measure(qrels, run, ["q2", "q1", "unknown"])
    # Linear gains: (2/log2(3) + 1/log2(4)) / (2/log2(2) + 1/log2(3))
    np.testing.assert_allclose(measured.ndcg_at_10, [0, 0.6696, 0], atol=1e-4)
    np.testing.assert_allclose(measured.recall_at_100, [0, 1, 0])
    np.testing.assert_allclose(measured.average_precision, [0, (1 / 2 + 2 / 3) / 2, 0])
    np.testing.assert_array_equal(measured.first_relevant_rank, [np.inf, 2, np.inf])
    np.testing.assert_array_equal(measured.reciprocal_rank_at_10, [0, 0.5, 0])
    assert mean_ndcg(qrels, run) == pytest.approx(0.6696 / 2, abs=1e-4)
