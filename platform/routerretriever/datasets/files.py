"""Files of a collection: plain, gzip or zstd, told apart by their first bytes and not by their names."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from routerretriever.datasets.issues import ENCODING, NO_FILE, TWO_FILES, UNREADABLE, Issue, Report, refuse
from routerretriever.errors import DatasetError

_BUFFER = 1 << 18
SUFFIXES = ("", ".gz", ".zst")
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".ndjson")
ZIPPED_TEXTS = (".docx", ".pptx", ".epub")
"""Files of texts that are zip files."""
TEXT_FILES = (".md", ".markdown", ".txt", ".html", ".htm", ".pdf", *ZIPPED_TEXTS, ".rst", ".ipynb")
DAMAGE = (EOFError, zlib.error, zstandard.ZstdError, OSError)  # a damaged gzip file is an OSError
_GZIP, _ZSTD, _BOM = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
SPLIT_NAMES = {"dev": ("dev", "validation", "valid", "val")}
"""Names under which a split's file is looked for, the best first."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("dev", "devel", "development", "validation", "valid", "val", "eval", "evaluation"), "dev"
    ),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), "test"),
}
"""What splits are called in names and columns of imported files, and what each is called here."""


def known_split(word: str) -> str | None:
    """What a split is called here, as test for "Test set" and "hold-out"; None where the word names none."""
    return SPLIT_WORDS.get(re.sub(r"[\W_]+", "", word.lower()).removesuffix("set"))


def find_files(folder: Path, name: str) -> list[Path]:
    """All forms in which a collection's file is there: as it is, gzipped, compressed by zstd."""
    return [path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]


def find_file(folder: Path, name: str) -> Path | None:
    """A collection's file as it is or compressed; None when there is none."""
    return next(iter(find_files(folder, name)), None)


def find_split(folder: Path, split: str) -> Path | None:
    """A split's judgements; ``validation.tsv`` is dev too."""
    names = SPLIT_NAMES.get(split, (split,))
    return next((path for name in names if (path := find_file(folder, f"qrels/{name}.tsv"))), None)


def require_file(folder: Path, name: str) -> Path:
    """A collection's file as it is or compressed.

    Raises:
        DatasetError: there is none, or there are two that differ.
    """
    paths = find_files(folder, name)
    if not paths:
        refuse(Issue(NO_FILE, folder / name, None, missing_file(folder, name)))
    if different := _different(paths):
        refuse(different)
    return paths[0]


def missing_file(folder: Path, name: str) -> str:
    """What to say of a file that is not there."""
    return f"no such file, nor {name}.gz or {name}.zst; a BEIR folder needs it{import_hint(folder)}"


def check_forms(folder: Path, name: str, report: Report) -> None:
    """Report a file that is there in two forms with different content."""
    if different := _different(find_files(folder, name)):
        report(different)


def require_folder(path: Path) -> None:
    """Check that there is a folder, which may be a collection.

    Raises:
        DatasetError: there is none.
    """
    if path.is_file():
        raise DatasetError(f"{path} is {file_hint(path)}")
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder; name one that holds corpus.jsonl and queries.jsonl")


def file_hint(path: Path) -> str:
    """What to do with a file in the place of a collection."""
    to = f"{path.name.partition('.')[0]}-beir"
    return f"a file, no folder; type `routerretriever datasets import {path} --to {to}`"


def import_hint(folder: Path) -> str:
    """Which import command to type for what lies in a folder, if it looks like data; else nothing."""
    known = (*TABLES, *TEXT_FILES, ".trec")
    if not folder.is_dir():
        return ""
    there = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.removesuffix(".gz").removesuffix(".zst").lower().endswith(known)
        and not path.name.startswith(("corpus.jsonl", "queries.jsonl", "provenance.json"))
        and path.parent.name != "qrels"
    )
    if not there:
        return ""
    shown = ", ".join(there[:3]) + (f" and {len(there) - 3} more" if len(there) > 3 else "")
    to = f"{folder.absolute().name}-beir"
    return f" (found {shown}: type `routerretriever datasets import {folder} --to {to}`)"


def open_plain(path: Path) -> IO[bytes]:
    """Open a file for reading its decompressed bytes; UTF-16 with its mark is read as UTF-8."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_GZIP) or (path.suffix == ".gz" and start):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if start == _ZSTD or (path.suffix == ".zst" and start):
        stream = zstandard.ZstdDecompressor().stream_reader(
            path.open("rb"), read_across_frames=True, closefd=True
        )
        return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, stream), _BUFFER))
    if start.startswith(_UTF16):
        return cast(IO[bytes], io.BufferedReader(_FromUtf16(path.open("rb")), _BUFFER))
    return path.open("rb", buffering=_BUFFER)


class _FromUtf16(io.RawIOBase):
    """A file in UTF-16, as Windows writes it, as UTF-8; halves of characters become U+FFFD."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-16")("replace")
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = self._file.read(_BUFFER)
            self._left = self._decoder.decode(block, final=not block).encode()
            if not block:
                break
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def read_blocks(path: Path) -> Iterator[bytes]:
    """The file's (decompressed) bytes, a megabyte at a time.

    Raises:
        DatasetError: the file is damaged or may not be read.
    """
    try:
        with open_plain(path) as stream:
            while block := stream.read(1 << 20):
                yield block
    except DAMAGE as error:
        refuse(Issue(UNREADABLE, path, None, damage(error)))


def content_digest(path: Path) -> str:
    """SHA-256 of what a file holds, in hex digits, the same compressed or not.

    Raises:
        DatasetError: the file is damaged or may not be read.
    """
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line that is not blank; a byte order mark is dropped."""
    line = 0
    try:
        with open_plain(path) as stream:
            first = next(stream, b"").removeprefix(_BOM)
            for line, raw in enumerate(chain((first,), stream), start=1):
                if raw and not raw.isspace():
                    yield line, raw.rstrip(b"\r\n")
    except DAMAGE as error:
        report(Issue(UNREADABLE, path, line + 1, damage(error)))


def damage(error: Exception) -> str:
    """What to say of a file that cannot be read to its end."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror}); mend its permissions or its disk"
    return f"damaged gzip or zstd ({error}); download or compress the file again"


def not_utf8(path: Path, line: int | None, error: UnicodeDecodeError) -> Issue:
    """The issue of bytes that are not UTF-8."""
    found = f"{error.object[error.start]:#04x} as byte {error.start + 1}"
    return Issue(ENCODING, path, line, f"not UTF-8, found {found}; save it as UTF-8")


def shown(raw: bytes | str) -> str:
    """The start of a line, quoted."""
    text = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _different(paths: list[Path]) -> Issue | None:
    if len(paths) < 2 or len({content_digest(path) for path in paths}) == 1:
        return None
    names = " and ".join(path.name for path in paths)
    return Issue(TWO_FILES, paths[0], None, f"{names} are both there and differ; remove one of them")
