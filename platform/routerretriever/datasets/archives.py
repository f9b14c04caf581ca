"""Archives of data: zip and tar files, unpacked for as long as they are read."""

from __future__ import annotations

import platform
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from routerretriever.errors import BadInput, DatasetError

_FORMATS = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "gztar",
    ".tgz": "gztar",
    ".tar.bz2": "bztar",
    ".tbz2": "bztar",
    ".tar.xz": "xztar",
    ".txz": "xztar",
}
"""How names end, and what ``shutil`` calls the format."""
_DAMAGE = (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
"""What damaged archives raise; zipfile has a RuntimeError for passwords."""


@contextmanager
def unpacked(source: Path, beside: Path) -> Iterator[Path]:
    """What an archive holds, or the file or folder itself if it is none.

    Args:
        source: a file or folder.
        beside: the folder in which room is taken meanwhile; made if it is missing.

    Raises:
        BadInput: it is a tar file, and this Python cannot unpack these safely.
        DatasetError: it is no archive of the kind that its name says. Errors of the data in it name the
            archive, and the place in it.
        OSError: there is no room for it.
    """
    kind = next((kind for end, kind in _FORMATS.items() if source.name.lower().endswith(end)), None)
    if kind is None or not source.is_file():
        yield source
        return
    beside.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=beside, prefix=f".{source.name}-") as folder:
        try:
            if kind == "zip":
                _unzip(source, folder)
            else:
                require_safe_tar(source)
                shutil.unpack_archive(source, folder, kind, filter="data")
        except _DAMAGE as error:
            raise DatasetError(
                f"{source}: not a readable {kind} archive ({error}); fetch it again, or unpack it"
            ) from None
        try:
            yield Path(folder)
        except DatasetError as error:
            raise DatasetError(str(error).replace(folder, str(source))) from None


def require_safe_tar(archive: Path) -> None:
    """Refuse tar files on a Python that does not see what in them points outside, as Debian 12's own.

    Raises:
        BadInput: this is one.
    """
    if not hasattr(tarfile, "data_filter"):
        raise BadInput(
            f"{archive}: Python {platform.python_version()} cannot unpack tar files safely; use 3.11.4 or "
            "later, or give what is in it as a folder, where that is taken"
        )


def _unzip(source: Path, folder: str) -> None:
    """Unpack with the names that the files had: macOS writes UTF-8 and does not say so.

    Raises:
        DatasetError: names are in another encoding, which is not told.
    """
    try:
        archive = zipfile.ZipFile(source, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        archive = zipfile.ZipFile(source)  # takes it for DOS's
        foreign = next((name for name in archive.namelist() if not _is_western(name)), None)
        if foreign is not None:
            archive.close()
            raise DatasetError(
                f"{source}: names of files are in an encoding that it does not tell, as {foreign!r}; unpack "
                "it where they are right, and import the folder"
            ) from None
    with archive:
        archive.extractall(folder)


def _is_western(name: str) -> bool:
    """Whether a name in DOS's encoding is of letters: what was Chinese has frames and signs."""
    return all(char.isascii() or char.isalpha() for char in name)
