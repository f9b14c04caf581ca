"""A bundle as one file: packed at one site, registered at another."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import routerretriever
from routerretriever import RouterRetriever
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.bundle.archive import pack, unpack
from routerretriever.commands import open_registry
from routerretriever.config.registry import RegistrySettings
from routerretriever.datasets.importing import import_data
from routerretriever.errors import ArtifactMissing, BadInput, BundleError, NotFound, Refused
from routerretriever.hashing import file_hash
from routerretriever.registry.backup import restore
from routerretriever.registry.registry import Registry
from support.paths import ROOT
from support.recipes import tiny_recipe

FIXTURE = ROOT / "tests" / "fixtures" / "format2"
KEY = "corpora/fruit-1a83c01bc225e8ee"


@pytest.fixture
def bundle(tmp_path):
    """The last release's bundle, with the one corpus that its storage has."""
    folder = tmp_path / "old"
    (folder / "router").parent.mkdir()
    for path in (FIXTURE / "bundle").rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(FIXTURE / "bundle")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["corpora"] = {"fruit": KEY}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def there(tmp_path):
    """The storage of the site that packs."""
    return ArtifactStore.open(str(FIXTURE / "storage"))


def test_what_was_packed_comes_out_at_another_site(bundle, there, tmp_path):
    archive = pack(bundle, tmp_path / "out.tar.gz", there)
    with tarfile.open(archive) as opened:
        assert {member.uname for member in opened} == {""}
        assert not any(member.name.startswith("/") for member in opened)
    here = ArtifactStore.open(str(tmp_path / "here"))
    for _ in range(2):  # a second time adds nothing
        into = tmp_path / f"into-{_}"
        into.mkdir()
        unpacked = unpack(archive, into, here)
        assert RouterRetriever.load(str(unpacked)).experts == ["fruit", "metal"]
    assert here.verify(KEY)
    assert here.manifest(KEY) == there.manifest(KEY)
    with pytest.raises(Refused, match="is there already"):
        pack(bundle, archive, there)


def test_documents_that_storage_holds_as_links_are_packed_as_files(bundle, tmp_path):
    large = shutil.copytree(FIXTURE / "storage" / KEY, tmp_path / "large disk")
    shard = next(large.glob("documents/*"))
    shard.rename(large / "moved")
    shard.symlink_to(large / "moved")
    (tmp_path / "there" / "corpora").mkdir(parents=True)
    (tmp_path / "there" / KEY).symlink_to(large)
    archive = pack(bundle, tmp_path / "out.tar", ArtifactStore.open(str(tmp_path / "there")))
    shutil.rmtree(large)
    here = ArtifactStore.open(str(tmp_path / "here"))
    (tmp_path / "into").mkdir()
    unpack(archive, tmp_path / "into", here)
    assert here.verify(KEY)


def test_a_python_that_cannot_unpack_safely_is_told(bundle, tmp_path, monkeypatch):
    """As Debian 12's own, 3.11.2. It may write archives, and read zip files and folders."""
    archive = pack(bundle, tmp_path / "out.tar", None)
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "data", "data")
    monkeypatch.delattr(tarfile, "data_filter")
    for unpacks in (
        lambda: unpack(archive, tmp_path / "into", ArtifactStore.open(str(tmp_path / "here"))),
        lambda: restore(archive, tmp_path / "restored"),
        lambda: import_data(tmp_path / "data.tar.gz", tmp_path / "imported"),
    ):
        with pytest.raises(BadInput, match=r"cannot unpack tar files safely; use 3\.11\.4"):
            unpacks()
    assert not (tmp_path / "restored").exists()


def test_documents_may_stay_at_home_and_are_missed_if_they_are_not_there(bundle, tmp_path):
    empty = ArtifactStore.open(str(tmp_path / "empty"))
    with pytest.raises(ArtifactMissing):
        pack(bundle, tmp_path / "out.tar", empty)
    assert not list(tmp_path.glob("*out.tar*"))
    archive = pack(bundle, tmp_path / "out.tar", None)
    (tmp_path / "into").mkdir()
    unpack(archive, tmp_path / "into", empty)
    assert not empty.exists(KEY)


def test_what_is_no_archive_or_a_harmful_one_is_refused(bundle, there, tmp_path):
    with pytest.raises(BadInput, match=r"\.tar or \.tar\.gz"):
        pack(bundle, tmp_path / "out.zip", None)
    into, here = tmp_path / "into", ArtifactStore.open(str(tmp_path / "here"))
    into.mkdir()
    (tmp_path / "no.tar").write_text("no")
    refused = {"no.tar": "no archive of a bundle", "nowhere.tar": "no such file", "into": "is a folder"}
    for name, told in refused.items():
        with pytest.raises(BadInput, match=told):
            unpack(tmp_path / name, into, here)
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../evil")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(BadInput, match="no archive of a bundle"):
        unpack(tmp_path / "evil.tar", into, here)
    assert not (tmp_path / "evil").exists()
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "corpora": {"fruit": "../../evil"}}))
    with pytest.raises(BundleError, match=r"'\.\./\.\./evil' as documents"):
        unpack(pack(bundle, tmp_path / "key.tar", None), into, here)


def test_altered_documents_are_not_taken(bundle, there, tmp_path):
    stage = ArtifactStore.open(str(tmp_path / "stage"))
    stage.put_folder(KEY, there.fetch(KEY))
    shard = tmp_path / "stage" / KEY / "embeddings" / "00000.npy"
    with tarfile.open(tmp_path / "out.tar", "w") as archive:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
        archive.add(bundle, "bundle")
        archive.add(tmp_path / "stage" / KEY, KEY)
    here = ArtifactStore.open(str(tmp_path / "here"))
    (tmp_path / "into").mkdir()
    with pytest.raises(BundleError, match=r"archive is damaged: embeddings/00000\.npy"):
        unpack(tmp_path / "out.tar", tmp_path / "into", here)
    assert not here.exists(KEY)


@pytest.mark.parametrize("name", ["out.tar.gz", "out.tar"])
def test_a_wrong_byte_is_one_line(bundle, there, tmp_path, name):
    archive = pack(bundle, tmp_path / name, there)
    sound = archive.read_bytes()
    told = []
    for place in range(20, len(sound), len(sound) // 40):
        wrong = bytearray(sound)
        wrong[place] ^= 0xD5
        archive.write_bytes(wrong)
        into = tmp_path / f"into-{place}"
        into.mkdir()
        try:
            unpack(archive, into, ArtifactStore.open(str(into / "here")))
        except (BadInput, BundleError) as error:
            told.append(str(error))
    assert told
    assert not [line for line in told if "\n" in line]


def test_a_damaged_manifest_is_one_line(bundle, tmp_path):
    manifest = (bundle / "bundle.json").read_bytes()
    without = manifest.replace(b'"files"', b'"filet"')
    for number, wrong in enumerate((manifest[:-9], b"\xff" + manifest, without)):
        (bundle / "bundle.json").write_bytes(wrong)
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w") as opened:
            opened.add(bundle, "bundle")
        (tmp_path / f"into-{number}").mkdir()
        with pytest.raises(BadInput, match="damaged; copy it here again"):
            unpack(archive, tmp_path / f"into-{number}", ArtifactStore.open(str(tmp_path / "here")))


@pytest.mark.component
def test_an_imported_bundle_is_registered_once_and_loads_the_same(bundle, there, tmp_path):
    archive = pack(bundle, tmp_path / "out.tar", there)
    (tmp_path / "into").mkdir()
    registry = Registry(RegistrySettings(name="other"), ArtifactStore.open(str(tmp_path / "storage")))
    unpacked = unpack(archive, tmp_path / "into", registry.store)
    assert [registry.register_folder(unpacked), registry.register_folder(unpacked)] == [1, 1]
    assert registry.released() == 1
    assert registry.bundles()[0].experts == "fruit, metal"
    loaded = RouterRetriever.load(registry.bundle_uri, registry.tracking_uri)
    expected = json.loads((FIXTURE / "vectors.json").read_text())
    np.testing.assert_allclose(loaded.encode_queries(expected["queries"]), expected["vectors"], atol=1e-6)
    assert file_hash(unpacked / "bundle.json") == file_hash(bundle / "bundle.json")


@pytest.mark.component
def test_an_imported_bundle_keeps_the_figures_of_its_evaluation(bundle, tmp_path):
    figures = {"fruit": 0.75, "metal": 0.5}
    evaluation = {
        "deployed": "routed",
        "datasets": list(figures),
        "with_expert": ["fruit"],
        "queries": dict.fromkeys(figures, 8),
        "ndcg_at_10": {"routed": figures, "base": dict.fromkeys(figures, 0.25)},
        "mean_ndcg_at_10": {"routed": {"with_expert": 0.75, "zero_shot": 0.5}},
    }
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "evaluation": evaluation}))
    registry = Registry(RegistrySettings(name="other"), ArtifactStore.open(str(tmp_path / "storage")))
    registry.register_folder(bundle)
    assert registry.bundles()[0].ndcg_at_10 == figures


@pytest.mark.component
def test_a_bundle_goes_from_site_to_site_by_calls(bundle, there, tmp_path):
    sites = [tiny_recipe(tmp_path / name) for name in ("here", "elsewhere")]
    first = routerretriever.import_bundle(sites[0], pack(bundle, tmp_path / "old.tar", there))
    archive = routerretriever.export(sites[0], tmp_path / "out.tar", version=1)
    assert routerretriever.import_bundle(sites[1], archive, release=False) == first == "models:/tiny/1"
    assert [open_registry(each).released() for each in sites] == [1, None]
    assert not routerretriever.migrate(sites[0])
    with pytest.raises(NotFound, match="no such expert; there are fruit, metal"):
        routerretriever.export_expert(sites[0], "stone", tmp_path / "stone")
