import pytest
from conftest import free_port, tiny_recipe
from routerretriever.registry import Registry
from routerretriever.registry.mlflow_registry import RegistryError
from routerretriever.storage import ArtifactStore


def test_a_registry_that_is_away_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    recipe = tiny_recipe(tmp_path, registry={"tracking_uri": uri})
    with pytest.raises(RegistryError, match=rf"(?s)tracking_uri: {uri}: .*run the same command"):
        Registry(recipe, ArtifactStore.open(recipe.storage))
