"""The registry on MLflow: what it writes, and that reading writes nothing."""

import logging
import os
import shutil
import sqlite3
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import routerretriever
from routerretriever import RouterRetriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.registry import RegistrySettings
from routerretriever.errors import (
    BadInput,
    BundleError,
    NotFound,
    Refused,
    RegistryError,
    RouterRetrieverError,
    StorageError,
)
from routerretriever.registry.connection import (
    open_to_read,
    open_to_write,
    present_location,
    reached,
    warn_of_local_artifacts,
)
from routerretriever.registry.loading import fetch_bundle
from routerretriever.registry.pyfunc import texts_of
from routerretriever.registry.recording import RunRecord
from routerretriever.registry.registry import Registry
from routerretriever.runtime.haproxy import free_port
from routerretriever.serving.deployments.releases import store_bundle, validate
from routerretriever.serving.ports import Rejection, ValidatedBundle
from support.recipes import tiny_recipe

NAME = "tiny"
pytestmark = pytest.mark.component


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """A fresh MLflow database, which takes seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_to_write(f"sqlite:///{path}").search_registered_models()
    return path


def open_registry(root, **settings):
    settings = RegistrySettings(**{"name": NAME, **settings})
    return Registry(settings, ArtifactStore.open(str(root / "storage")))


@pytest.fixture
def add_versions(empty_database):
    return partial(_add_versions, empty_database)


def _add_versions(empty_database, registry, *recipes):
    path = Path(registry.tracking_uri.removeprefix("sqlite:///"))
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(empty_database, path)
    bundle = path.parent / "model" / "artifacts" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "bundle.json").write_text('{"experts": []}')
    client = open_to_write(registry.tracking_uri)
    registry.ensure_model(NAME, "a model")
    for recipe in recipes:
        tags = {"experts": "fruit", **({"recipe": recipe} if recipe else {})}
        client.create_model_version(NAME, str(path.parent / "model"), tags=tags)


def test_a_bundle_is_checked_by_its_copy_in_storage_while_the_registry_is_away(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = tiny_recipe(tmp_path, registry={"name": NAME, "tracking_uri": f"http://127.0.0.1:{free_port()}"})
    store = ArtifactStore.open(str(tmp_path / "storage"))
    store_bundle(store, "bundles/b", Path(__file__).parents[1] / "fixtures" / "format2" / "bundle", 1)
    checked = validate(recipe, store, 1, "bundles/b")
    assert isinstance(checked, ValidatedBundle)
    assert store.manifest(checked.bundle_key)["version"] == 1
    assert isinstance(validate(recipe, store, 1), Rejection)
    assert isinstance(validate(recipe, store, 1, "bundles/gone"), Rejection)


def test_a_release_is_noted_in_storage_for_when_the_registry_is_away(tmp_path, add_versions, monkeypatch):
    registry = open_registry(tmp_path)
    add_versions(registry, "mine", "mine")
    note = RegistrySettings(name=NAME).released_note
    for version in (1, 2):
        registry.release(version)
        assert registry.store.read_pointer(note) == {"version": version}
    registry.roll_back()
    assert registry.store.read_pointer(note) == {"version": 1}

    def full(*_):
        raise StorageError("no space left")

    monkeypatch.setattr(ArtifactStore, "write_pointer", full)
    registry.release(2)
    assert registry.released() == 2


def everything(folder):
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_registry_that_is_away_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError, match=rf"tracking_uri: {uri}: .*mend the address$"):
        open_registry(tmp_path, tracking_uri=uri).bundles()
    # Only at the end of a run is there anything that could be lost.
    with (
        pytest.raises(RegistryError, match=r"mend the address; all that was made lies in storage"),
        reached(uri, patient=True),
    ):
        open_to_read(uri)


def test_what_a_run_would_end_on_is_known_before_it_begins(tmp_path):
    open_registry(tmp_path).require_answer()
    missing = tmp_path / "missing"
    with pytest.raises(RegistryError, match=f"no folder {missing}; make it first"):
        open_registry(tmp_path, tracking_uri=f"sqlite:///{missing}/mlflow.db").require_answer()
    with pytest.raises(RegistryError, match="foo://x"):
        open_registry(tmp_path, tracking_uri="foo://x").require_answer()


@pytest.mark.parametrize("name", ["a%20b", "a?b=c"])
def test_a_storage_that_cannot_hold_mlflows_database_is_told_at_once(tmp_path, name):
    with pytest.raises(BadInput, match=r"storage: .*name another folder, or an MLflow server"):
        open_registry(tmp_path / name)
    open_registry(tmp_path / name, tracking_uri="http://mlflow.example.org")


@pytest.mark.parametrize("name", ["100%", "a#b [1]"])
def test_a_storage_of_another_name_has_its_registry_in_it(tmp_path, name):
    registry = open_registry(tmp_path / name)
    bundle = tmp_path / "bundle"
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "format2" / "bundle", bundle)
    assert registry.register_folder(bundle) == registry.released()
    fetched = fetch_bundle(registry.bundle_uri, tmp_path / "got", registry.tracking_uri)
    assert (fetched / "bundle.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {name, "bundle", "got"}


def test_releases_roll_back_and_challengers_come_and_go(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    assert registry.released() is None
    assert (registry.bundle_uri, registry.version_uri(2)) == (f"models:/{NAME}@champion", f"models:/{NAME}/2")
    with pytest.raises(RouterRetrieverError, match="nothing was released before"):
        registry.roll_back()
    with pytest.raises(NotFound, match="nothing is registered yet"):
        registry.release(1)
    add_versions(registry, "", "", "")
    assert registry.release(1) is None
    assert registry.release(3) == 1
    assert registry.release(3) == 3  # changes nothing, and forgets nothing
    assert registry.roll_back() == 1
    assert registry.released() == 1
    assert registry.roll_back() == 3
    assert [bundle.version for bundle in registry.bundles()] == [3, 2, 1]
    with pytest.raises(NotFound, match=r"no version 4 in .*; the newest is 3"):
        registry.release(4)
    with pytest.raises(NotFound, match="no version 4"):
        registry.challenge(4)
    with pytest.raises(Refused, match=r"version 3 of .* is released, so it has all"):
        registry.challenge(3)
    assert registry.challenger() is None
    registry.challenge(2)
    assert registry.challenger() == 2
    assert registry.challenge(None) == 2
    assert registry.challenge(None) is None
    assert (registry.challenger(), registry.released()) == (None, 3)
    registry.challenge(2)
    registry.release(2)
    assert (registry.challenger(), registry.released()) == (None, 2)


def test_there_is_no_way_back_to_what_is_released_already(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    add_versions(registry, "", "")
    registry.release(1)
    registry.release(2)
    open_to_write(registry.tracking_uri).set_registered_model_alias(NAME, "champion", "1")  # by hand
    with pytest.raises(Refused, match=r"is version 1 already.*--version N"):
        registry.roll_back()
    assert registry.released() == 1


def test_a_version_whose_files_are_gone_or_damaged_is_not_released(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    add_versions(registry, "", "")
    registry.release(1)
    (tmp_path / "storage" / "model" / "artifacts" / "bundle" / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="damaged; register it again"):
        registry.release(2)
    shutil.rmtree(tmp_path / "storage" / "model")
    with pytest.raises(BadInput, match="restore it from a back-up"):
        registry.release(2)
    assert registry.released() == 1


def test_versions_release_and_rollback_are_calls_too(tmp_path, add_versions):
    recipe = tiny_recipe(tmp_path, registry={"name": NAME})
    add_versions(open_registry(tmp_path), "", "")
    assert [one.version for one in routerretriever.versions(recipe)] == [2, 1]
    assert routerretriever.release(recipe, 1) is None
    assert routerretriever.release(recipe, 2) == 1
    assert routerretriever.rollback(recipe) == 1


def test_the_alias_of_another_recipe_is_moved_only_when_told_to(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    add_versions(registry, "ours", "theirs", "")
    registry.release(1)
    with pytest.raises(Refused, match=r"version 1, made by recipe 'ours'; version 2 .*'theirs'.*--take-over"):
        registry.release(2)
    assert registry.released() == 1
    assert registry.release(2, take_over=True) == 1
    registry.release(3)  # as old as before recipes were noted
    assert registry.released() == 3


def test_reading_creates_nothing_and_changes_nothing(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    (tmp_path / "storage").mkdir(exist_ok=True)
    before = everything(tmp_path)
    assert (registry.bundles(), registry.released(), registry.challenger()) == ([], None, None)
    assert everything(tmp_path) == before
    add_versions(registry, "ours")
    state = mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)
    level = logging.getLogger("mlflow").level
    before = everything(tmp_path)
    reader = open_registry(tmp_path)
    assert [bundle.recipe for bundle in reader.bundles()] == ["ours"]
    assert reader.released() is None
    with pytest.raises(NotFound, match="not in the registry"):
        RouterRetriever.load(f"models:/{NAME}@champion", registry.tracking_uri)
    assert everything(tmp_path) == before
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), dict(os.environ)) == state
    assert logging.getLogger("mlflow").level == level


def test_a_database_of_another_mlflow_is_refused_until_it_is_migrated(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    with pytest.raises(NotFound, match="no database to migrate"):
        registry.migrate()
    add_versions(registry, "ours")
    assert registry.migrate() is False
    with sqlite3.connect(tmp_path / "storage" / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'c48cb773bb87'")
    before = everything(tmp_path)
    for read in (registry.bundles, registry.released):
        with pytest.raises(Refused, match=r"revision c48cb773bb87.*routerretriever migrate"):
            read()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("patient", [False, True])
def test_a_package_that_mlflow_lacks_for_a_bucket_is_told_with_what_to_install(patient):
    with (
        pytest.raises(RegistryError, match=r"boto3.*routerretriever\[s3\]") as raised,
        reached("http://m", patient),
    ):
        raise ModuleNotFoundError("No module named 'boto3'", name="boto3")
    assert ("all that was made lies in storage" in str(raised.value)) is patient


@pytest.mark.parametrize(
    ("server", "location", "told"),
    [
        ("http://mlflow:5000", "/srv/mlruns/1", True),
        ("http://mlflow:5000", "file:///srv/mlruns/1", True),
        ("http://mlflow:5000", "mlflow-artifacts:/1", False),
        ("http://mlflow:5000", "s3://bucket/mlflow/1", False),
        ("file:///srv/mlruns", "/srv/mlruns/1", False),
        ("postgresql://db/mlflow", "/srv/mlruns/1", False),  # of a machine's own, as it may share the folder
    ],
)
def test_a_server_whose_artifacts_stay_on_the_machine_that_registers_is_told_of(
    caplog, monkeypatch, server, location, told
):
    monkeypatch.setattr(logging.getLogger("routerretriever"), "propagate", True)
    warn_of_local_artifacts(location, server)
    assert ("written to /srv/mlruns/1 on the machine that registers" in caplog.text) is told


def test_a_folder_of_another_machine_is_not_looked_for_in_a_back_up(tmp_path):
    location = str(tmp_path / "gone" / "mlruns")
    with pytest.raises(BadInput, match="--artifacts-destination"):
        present_location(location, "http://mlflow:5000")
    with pytest.raises(BadInput, match="restore it from a back-up"):
        present_location(location, f"sqlite:///{tmp_path}/mlflow.db")


def test_a_server_behind_a_proxy_is_left_to_mlflow(monkeypatch):
    port = free_port()
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistryError, match="no server answers there"):
        open_to_read(f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert open_to_read(f"http://127.0.0.1:{port}") is not None
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(RegistryError, match="no server answers there"):
        open_to_read(f"http://127.0.0.1:{port}")


def test_no_password_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://anna:planted@127.0.0.1:{free_port()}"
    with pytest.raises(RegistryError) as told:
        open_registry(tmp_path, tracking_uri=uri).bundles()
    assert "planted" not in str(told.value)
    with pytest.raises(RegistryError) as told:
        open_registry(tmp_path, tracking_uri="postgresql://anna:planted@127.0.0.1:1/x").bundles()
    assert "planted" not in str(told.value)
    recipe = tiny_recipe(tmp_path, registry={"tracking_uri": uri})
    assert "planted" not in recipe.model_dump_json()
    assert recipe.registry.tracking_uri == uri


def test_a_recipe_registers_under_its_own_name_unless_it_names_another(tmp_path):
    assert tiny_recipe(tmp_path).registry.name == "tiny"
    assert tiny_recipe(tmp_path, registry={"alias": "live"}).registry.name == "tiny"
    assert tiny_recipe(tmp_path, registry={"name": "shared"}).registry.name == "shared"


def test_files_of_a_moved_or_copied_storage_are_found_where_it_is_now(tmp_path, monkeypatch):
    (tmp_path / "old/mlflow-artifacts/models/m").mkdir(parents=True)
    location = (tmp_path / "old/mlflow-artifacts/models/m").as_uri()
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    assert present_location(location, uri) == location
    shutil.copytree(tmp_path / "old", tmp_path / "new")  # the old one goes on, and is no part of the copy
    assert present_location(location, uri) == (tmp_path / "new/mlflow-artifacts/models/m").as_uri()
    shutil.rmtree(tmp_path / "old")
    assert present_location(location, uri) == (tmp_path / "new/mlflow-artifacts/models/m").as_uri()
    monkeypatch.chdir(tmp_path)
    assert present_location(location, "sqlite:///new/mlflow.db") == present_location(location, uri)
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(BadInput, match=r"mlflow-artifacts/models/m: .*restore"):
        present_location(location, uri)
    assert present_location("s3://bucket/m", uri) == "s3://bucket/m"


def test_a_pyfunc_takes_texts_or_a_table_with_a_text_column():
    assert texts_of(["a", "b"]) == ["a", "b"]
    assert texts_of("a") == ["a"]
    assert texts_of(pd.DataFrame({"id": ["q1"], "text": ["a"]})) == ["a"]
    assert texts_of(pd.DataFrame(["a"])) == ["a"]
    with pytest.raises(BadInput, match=r"no column 'text' \(found: id, query\)"):
        texts_of(pd.DataFrame({"id": ["q1"], "query": ["a"]}))
    with pytest.raises(BadInput, match="row 1: found int"):
        texts_of(["a", 2])


def test_runs_that_register_at_once_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr("routerretriever.registry.turns._POLL_SECONDS", 0.01)
    inside, most = [], []

    def register():
        with open_registry(tmp_path).alone():
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_bundles_and_experts_share_no_registered_model(tmp_path, add_versions):
    registry = open_registry(tmp_path)
    add_versions(registry, "mine")
    client = open_to_write(registry.tracking_uri)
    bundle = Path(__file__).parents[1] / "fixtures" / "format2" / "bundle"
    other = open_registry(tmp_path, name=f"{NAME}-expert-fruit")
    other.require_answer()
    registry.ensure_model(f"{NAME}-expert-fruit", "an expert")
    client.create_model_version(f"{NAME}-expert-fruit", "here", tags={"domain": "fruit"})
    for register in (other.require_answer, lambda: other.register_folder(bundle)):
        with pytest.raises(
            Refused, match=r"registry\.name: tiny-expert-fruit is .* expert, of domain 'fruit'"
        ):
            register()
    registry.ensure_model(f"{NAME}-expert-metal", "bundles")
    client.create_model_version(f"{NAME}-expert-metal", "here", tags={"recipe": "theirs"})
    parts = SimpleNamespace(experts={"metal": SimpleNamespace(domain="metal")})
    with pytest.raises(Refused, match=r"'metal' would be registered as tiny-expert-metal, .* 'theirs'"):
        registry.register_bundle(parts, RunRecord())
    registry.require_answer()


@pytest.mark.parametrize("tags", [[], [{}], [{"domain": "fruit"}, {"recipe": "mine"}]])
def test_a_registered_model_that_holds_both_already_is_gone_on_with(tmp_path, add_versions, tags):
    add_versions(open_registry(tmp_path))
    registry = open_registry(tmp_path, name=f"{NAME}-expert-fruit")
    client = open_to_write(registry.tracking_uri)
    registry.ensure_model(f"{NAME}-expert-fruit", "both")
    for each in tags:
        client.create_model_version(f"{NAME}-expert-fruit", "here", tags=each)
    registry.require_answer()
