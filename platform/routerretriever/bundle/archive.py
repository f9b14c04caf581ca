"""A bundle, with the encoded documents that it searches, as one file for another site."""

from __future__ import annotations

import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from routerretriever.artifacts.store import MANIFEST, ArtifactStore
from routerretriever.bundle.manifest import MANIFEST_FILE, read_manifest
from routerretriever.datasets.archives import require_safe_tar
from routerretriever.errors import NO_ROOM, ArtifactDamaged, BadInput, BundleError, Refused

_BUNDLE = "bundle"
ARCHIVE_MODES = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz"}
"""How an archive of each ending is written by ``tarfile``."""
_DAMAGE = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
    tarfile.TarError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What one wrong byte can raise in unpacking, and in reading what was unpacked."""
_KEY = re.compile(r"corpora/[A-Za-z0-9._-]+")


def pack(bundle: Path, to: Path, store: ArtifactStore | None) -> Path:
    """Write an archive.

    Args:
        bundle: a bundle's folder.
        to: the new file, ``.tar`` or ``.tar.gz``.
        store: where the encoded documents lie that go with it; None leaves them out.

    Raises:
        Refused: the file is there already.
        BadInput: its name is that of another kind of file.
        ArtifactMissing: storage lacks documents that the bundle searches.
    """
    mode = ARCHIVE_MODES.get(to.suffix)
    if mode is None:
        raise BadInput(f"--to {to}: end its name with .tar or .tar.gz")
    if to.exists():
        raise Refused(f"--to {to}: is there already")
    manifest = read_manifest(bundle)
    folders = {key: store.fetch(key) for key in manifest["corpora"].values()} if store is not None else {}
    fresh = to.with_name(f".{to.name}.new")
    try:
        with tarfile.open(fresh, mode, dereference=True) as archive:  # type: ignore[call-overload]
            # Files that storage holds as links would be links to files that the other site has not.
            for name, folder in {_BUNDLE: bundle, **folders}.items():
                archive.add(folder, name, filter=_anonymous)
        fresh.rename(to)
    finally:
        fresh.unlink(missing_ok=True)
    return to


def unpack(archive: Path, into: Path, store: ArtifactStore) -> Path:
    """Read an archive: the bundle's files into an empty folder, its documents into storage.

    Returns:
        The bundle's folder, checked.

    Raises:
        BadInput: the file is no archive of a bundle, or this Python cannot unpack it safely.
        BundleError: a file is missing or altered, or the base encoder here is not the bundle's.
    """
    if not archive.is_file():
        found = "is a folder; name the file that `export` wrote" if archive.is_dir() else "no such file"
        raise BadInput(f"{archive}: {found}")
    require_safe_tar(archive)
    bundle = into / _BUNDLE
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(into, filter="data")  # refuses what points outside
        json.loads((bundle / MANIFEST_FILE).read_bytes())  # if it cannot be read, the archive is to blame
        keys = list(read_manifest(bundle)["corpora"].values())
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise BadInput(
            f"{archive}: no archive of a bundle, as `export` writes it, or damaged; copy it here again"
        ) from None
    _take_corpora(into, keys, store)
    return bundle


def _take_corpora(into: Path, keys: Sequence[str], store: ArtifactStore) -> None:
    # What was unpacked is laid out as storage is.
    unpacked = ArtifactStore.open(str(into))
    for key in keys:
        if not _KEY.fullmatch(key):
            raise BundleError(f"the bundle names {key!r} as documents, which is no key of any")
        if store.verify(key) or not unpacked.exists(key):
            continue
        try:
            folder, manifest = unpacked.fetch(key), unpacked.manifest(key)
        except ArtifactDamaged as damage:
            raise BundleError(f"the archive is damaged: {', '.join(damage.names)} of {key}") from None
        manifest.pop("files", None)
        with suppress(FileNotFoundError):
            (folder / MANIFEST).unlink()  # what is finished is told last
        store.put_folder(key, folder)
        store.commit(key, manifest)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
