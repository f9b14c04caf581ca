"""Back-ups: a run folder that is restored at another place serves what it served, and goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import routerretriever
from routerretriever import RouterRetriever
from routerretriever.artifacts.filesystem import FileSystem
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.cli.main import main
from routerretriever.config.registry import RegistrySettings
from routerretriever.errors import ArtifactDamaged, BadInput, NotFound, Refused
from routerretriever.registry.backup import back_up, restore
from routerretriever.registry.registry import Registry
from support.paths import ROOT, files_below
from support.recipes import save_recipe, tiny_recipe

FIXTURE = ROOT / "tests" / "fixtures" / "format2"
pytestmark = pytest.mark.component


def registry_at(folder: Path, tracking_uri: str | None = None) -> Registry:
    settings = RegistrySettings(name="tiny", tracking_uri=tracking_uri)
    return Registry(settings, ArtifactStore.open(str(folder)))


def another_bundle(folder: Path, number: int) -> Path:
    """A bundle of the last release, which differs from others by a figure."""
    bundle = shutil.copytree(FIXTURE / "bundle", folder / f"bundle-{number}")
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "evaluation": {"again": number}}))
    return bundle


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """Two versions, the documents that they search, changes to them, a note, and what can be made again."""
    root = tmp_path_factory.mktemp("made")
    made = registry_at(root / "run")
    assert [made.register_folder(another_bundle(root, number)) for number in (1, 2)] == [1, 2]
    shutil.copytree(FIXTURE / "storage", root / "run", dirs_exist_ok=True)
    made.store.put("changes/fruit-1", "1.parquet", lambda path: path.write_bytes(b"a change"))
    made.store.write_pointer("served", {"version": 2})
    made.store.put("scores/a", "part-0.parquet", lambda path: path.write_bytes(b"scores"))
    made.store.commit("scores/a", {})
    made.store.files.write("leases/registry/tiny", b"somebody's")
    return root / "run"


@pytest.fixture
def registry(made_once, tmp_path):
    """A copy, whose database names the files that it was copied from."""
    return registry_at(shutil.copytree(made_once, tmp_path / "run"))


def locations(database: Path) -> set[str]:
    """Every place below an ``mlflow-artifacts`` that MLflow's database names, in whatever table."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        cells = {
            cell for table in tables for row in connection.execute(f'SELECT * FROM "{table}"') for cell in row
        }
    return {
        cell for cell in cells if isinstance(cell, str) and cell.startswith("file:") and "mlflow-" in cell
    }


@pytest.mark.parametrize("name", ["backup", "backup.tar", "backup.tar.gz"])
@pytest.mark.parametrize("minimal", [False, True], ids=["whole", "minimal"])
def test_a_back_up_that_is_restored_elsewhere_has_all_versions_and_goes_on(registry, tmp_path, name, minimal):
    written = back_up(registry, tmp_path / "safe" / name, minimal)
    assert written.left_out is None
    shutil.rmtree(tmp_path / "run")
    assert restore(written.place, tmp_path / "new place" / "run") == written.files

    after = registry_at(tmp_path / "new place" / "run")
    assert [one.version for one in after.bundles()] == [2, 1]
    assert after.released() == 2
    assert after.roll_back() == 1
    loaded = RouterRetriever.load(after.bundle_uri, after.tracking_uri)
    expected = json.loads((FIXTURE / "vectors.json").read_text())
    np.testing.assert_allclose(loaded.encode_queries(expected["queries"]), expected["vectors"], atol=1e-6)
    for key in json.loads((FIXTURE / "bundle" / "bundle.json").read_text())["corpora"].values():
        assert after.store.exists(key) == registry_at(FIXTURE / "storage").store.exists(key)
    assert after.store.local_file("changes/fruit-1", "1.parquet").read_bytes() == b"a change"
    assert after.store.read_pointer("served") == {"version": 2}
    assert after.store.exists("scores/a") != minimal
    assert not after.store.holds("leases/registry/tiny")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_files_that_are_links_to_each_other_are_restored_with_their_content(registry, tmp_path, name):
    """As programs leave them that look for equal files, to save room."""
    changes, again = tmp_path / "run" / "changes" / "fruit-1", tmp_path / "again" / "changes" / "fruit-1"
    os.link(changes / "1.parquet", changes / "2.parquet")
    (changes / "3.parquet").symlink_to("1.parquet")
    restore(back_up(registry, tmp_path / name).place, tmp_path / "again")
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        f"{number}.parquet": b"a change" for number in (1, 2, 3)
    }


def test_a_restored_database_names_the_files_beside_it_also_while_the_old_ones_are_there(
    registry, made_once, tmp_path
):
    restore(back_up(registry, tmp_path / "backup").place, tmp_path / "restored")
    old, new = made_once.as_uri(), (tmp_path / "restored").as_uri()
    before = locations(tmp_path / "run" / "mlflow.db")
    assert len(before) >= 5
    assert locations(tmp_path / "restored" / "mlflow.db") == {place.replace(old, new) for place in before}
    after = registry_at(tmp_path / "restored")
    assert after.roll_back() == 1
    assert after.register_folder(another_bundle(tmp_path, 3)) == 3
    RouterRetriever.load("models:/tiny/3", after.tracking_uri)
    assert {place.split("mlflow-")[0] for place in locations(tmp_path / "restored" / "mlflow.db")} == {
        f"{new}/"
    }


def test_a_back_up_may_be_taken_while_others_write(registry, tmp_path, monkeypatch):
    """A change is replaced by a checkpoint, and an artifact is finished, between the list and the copies."""
    registry.store.put("scores/b", "part-0.parquet", lambda path: path.write_bytes(b"more"))
    list_files = FileSystem.list_files
    meanwhile = []

    def list_then_write(files: FileSystem, folder: str) -> list[str]:
        listed = list_files(files, folder)
        if folder == "scores" and not meanwhile:
            meanwhile.append("once")
            store = registry.store
            store.put("changes/fruit-1", "checkpoint-1", lambda path: path.write_bytes(b"a change"))
            store.remove_file("changes/fruit-1", "1.parquet")
            store.commit("scores/b", {})
        return listed

    monkeypatch.setattr(FileSystem, "list_files", list_then_write)
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as open_elsewhere:
        open_elsewhere.execute("SELECT 1 FROM experiments").fetchone()
        written = back_up(registry, tmp_path / "backup")
    monkeypatch.undo()
    restore(written.place, tmp_path / "restored")
    after = registry_at(tmp_path / "restored").store
    assert meanwhile
    assert after.local_file("changes/fruit-1", "checkpoint-1").read_bytes() == b"a change"
    assert after.verify("scores/b")
    assert [name for name in after.names("changes/fruit-1") if name == "1.parquet"] == []


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_a_back_up_that_is_interrupted_leaves_nothing_and_may_be_taken_again(
    registry, tmp_path, monkeypatch, name
):
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSystem, "list_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        back_up(registry, tmp_path / "safe" / name)
    monkeypatch.undo()
    assert list((tmp_path / "safe").iterdir()) == []
    (tmp_path / "safe" / f".{name}.new").mkdir()  # of one that was killed
    back_up(registry, tmp_path / "safe" / name)
    assert [path.name for path in (tmp_path / "safe").iterdir()] == [name]


def test_a_back_up_that_lost_or_altered_a_file_is_named_and_restores_nothing(registry, tmp_path):
    backup = back_up(registry, tmp_path / "backup").place
    (backup / "notes" / "served.json").write_text("{}")
    (backup / "scores" / "a" / "part-0.parquet").unlink()
    with pytest.raises(ArtifactDamaged, match=r"notes/served\.json, scores/a/part-0\.parquet"):
        restore(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not list(tmp_path.glob(".restored*"))


@pytest.mark.parametrize("damage", ["cut off", "altered"])
def test_an_archive_that_is_damaged_is_named_and_restores_nothing(registry, tmp_path, damage):
    backup = back_up(registry, tmp_path / "backup.tar.gz").place
    whole = backup.read_bytes()
    half = len(whole) // 2
    kept = whole[:-200] if damage == "cut off" else whole[:half] + bytes(64) + whole[half + 64 :]
    backup.write_bytes(kept)
    # Which file the altered bytes are of depends on what there is to back up.
    told = r"backup\.tar\.gz: (no archive, or damaged|missing|has no sound backup\.json)"
    with pytest.raises((BadInput, ArtifactDamaged), match=told):
        restore(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_what_cannot_be_backed_up_or_restored_is_told_before_anything_is_written(registry, tmp_path):
    before = files_below(tmp_path)
    with pytest.raises(Refused, match="lies in the storage"):
        back_up(registry, tmp_path / "run" / "backup")
    with pytest.raises(Refused, match="is there already"):
        back_up(registry, tmp_path / "run")
    with pytest.raises(NotFound, match="nothing is there"):
        back_up(registry_at(tmp_path / "empty"), tmp_path / "backup")
    with pytest.raises(Refused, match="is not empty"):
        restore(FIXTURE / "bundle", tmp_path / "run")
    with pytest.raises(BadInput, match=r"no sound backup\.json"):
        restore(FIXTURE / "bundle", tmp_path / "restored")
    with pytest.raises(BadInput, match="no such file or folder"):
        restore(tmp_path / "nowhere", tmp_path / "restored")
    with pytest.raises(BadInput, match=r"no archive, or damaged \(file could not .*\); take") as bad:
        restore(tmp_path / "run" / "mlflow.db", tmp_path / "restored")
    assert len(str(bad.value).splitlines()) == 1
    with pytest.raises(BadInput, match=r"end its name with \.tar or \.tar\.gz"):
        back_up(registry, tmp_path / "backup.zip")
    remote = Registry(
        RegistrySettings(name="tiny", tracking_uri="http://mlflow:5000"), ArtifactStore("memory://bucket")
    )
    with pytest.raises(Refused, match="versioning"):
        back_up(remote, tmp_path / "backup")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql+psycopg2://me:hidden@db/mlflow", "pg_dump"),
        ("mysql://db/mlflow", "mysqldump"),
        ("http://mlflow:5000", "dump its database"),
        ("sqlite:////srv/mlflow.db", ".backup"),
    ],
)
def test_a_registry_that_lies_elsewhere_is_told_with_what_copies_it(tmp_path, uri, told):
    registry = registry_at(tmp_path / "run", uri)
    registry.store.write_pointer("served", {"version": 2})
    written = back_up(registry, tmp_path / "backup")
    assert written.left_out is not None
    assert told in written.left_out
    assert "hidden" not in written.left_out
    assert restore(written.place, tmp_path / "restored") == written.files
    assert registry_at(tmp_path / "restored").store.read_pointer("served") == {"version": 2}


def test_the_commands_and_the_calls_do_the_same(registry, tmp_path, monkeypatch, capsys):
    recipe = tiny_recipe(tmp_path, storage=str(tmp_path / "run"), registry={"name": "tiny"})
    path = save_recipe(recipe, tmp_path / "recipe.yaml")

    def typed(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["routerretriever", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    said = typed("backup", str(path), "--to", str(tmp_path / "typed.tar.gz"))
    assert "typed.tar.gz" in said
    called = routerretriever.backup(recipe, tmp_path / "called.tar.gz")
    assert f"({called.files} files)" in said
    said = typed("restore", str(tmp_path / "typed.tar.gz"), "--to", str(tmp_path / "a"))
    assert f"--set storage={tmp_path / 'a'}" in said
    assert routerretriever.restore(str(called.place), str(tmp_path / "b")) == called.files
    assert files_below(tmp_path / "a").keys() == files_below(tmp_path / "b").keys()
