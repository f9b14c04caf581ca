"""Back-ups: a run folder that is restored at another place serves what it served, and goes on from there."""

import json
import shutil
import sqlite3

import numpy as np
import pytest
from routerretriever import RouterRetriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.registry import RegistrySettings
from routerretriever.registry.registry import Registry
from support.paths import ROOT

FIXTURE = ROOT / "tests" / "fixtures" / "format2"
pytestmark = pytest.mark.component


def registry_at(folder):
    return Registry(RegistrySettings(name="tiny"), ArtifactStore.open(str(folder)))


def test_a_back_up_that_is_restored_elsewhere_has_all_versions_and_goes_on(tmp_path):
    before = registry_at(tmp_path / "run")
    bundle = shutil.copytree(FIXTURE / "bundle", tmp_path / "from-elsewhere")  # of the last release
    assert before.register_folder(bundle) == 1
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "evaluation": {"again": True}}))
    assert before.register_folder(bundle) == 2

    # As docs/how-to/back-up-restore-upgrade.md says; the connection is open, as that of a server would be.
    backup = tmp_path / "backup"
    with sqlite3.connect(tmp_path / "run" / "mlflow.db") as source:
        backup.mkdir()
        with sqlite3.connect(backup / "mlflow.db") as target:
            source.backup(target)
    shutil.copytree(tmp_path / "run", backup, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db"))
    shutil.rmtree(tmp_path / "run")
    shutil.move(backup, tmp_path / "restored")

    after = registry_at(tmp_path / "restored")
    assert [one.version for one in after.bundles()] == [2, 1]
    assert after.released() == 2
    assert after.roll_back() == 1
    loaded = RouterRetriever.load(after.bundle_uri, after.tracking_uri)
    expected = json.loads((FIXTURE / "vectors.json").read_text())
    np.testing.assert_allclose(loaded.encode_queries(expected["queries"]), expected["vectors"], atol=1e-6)
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "evaluation": {"again": 2}}))
    assert after.register_folder(bundle) == 3
    RouterRetriever.load("models:/tiny/3", after.tracking_uri)
    assert not (tmp_path / "run").exists()
