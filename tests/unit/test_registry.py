import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.errors import RegistryError, RouterRetrieverError
from routerretriever.registry.registry import Registry
from routerretriever.serving.deployments.run import free_port
from support.recipes import tiny_recipe


def test_a_registry_that_is_away_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    recipe = tiny_recipe(tmp_path, registry={"tracking_uri": uri})
    with pytest.raises(RegistryError, match=rf"(?s)tracking_uri: {uri}: .*run the same command"):
        Registry(recipe, ArtifactStore.open(recipe.storage))


def test_releases_roll_back_and_challengers_come_and_go(tmp_path):
    recipe = tiny_recipe(tmp_path)
    registry = Registry(recipe, ArtifactStore.open(recipe.storage))
    assert registry.released() is None
    with pytest.raises(RouterRetrieverError, match="nothing was released before"):
        registry.roll_back()
    registry._ensure_model("routerretriever")
    for _ in range(3):
        registry._client.create_model_version("routerretriever", str(tmp_path), tags={"experts": "fruit"})
    registry.release(1)
    registry.release(3)
    registry.release(3)  # changes nothing, and forgets nothing
    assert registry.roll_back() == 1
    assert registry.released() == 1
    assert registry.roll_back() == 3
    assert [bundle.version for bundle in registry.bundles()] == [3, 2, 1]
    with pytest.raises(RouterRetrieverError, match="no version 4"):
        registry.release(4)
    with pytest.raises(RouterRetrieverError, match="no version 4"):
        registry.challenge(4)
    registry.challenge(2)
    assert registry.challenger() == 2
    registry.challenge(None)
    registry.challenge(None)
    assert (registry.challenger(), registry.released()) == (None, 3)
