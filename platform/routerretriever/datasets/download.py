"""Make collection folders: fetch BEIR's, or write a collection out with its splits made explicit.

A folder is made beside its place and moved there when it is whole, so nobody meets half of one, and
nothing that exists is written over.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from routerretriever.datasets.collection import BEIR_NAMES, DEV_FRACTION, Collection
from routerretriever.datasets.contents import split_files
from routerretriever.datasets.files import find_file, require_file
from routerretriever.datasets.splitting import hold_out
from routerretriever.datasets.texts import close_groups, joined_groups
from routerretriever.errors import DatasetError

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets/{name}.zip"


def download(name: str, folder: Path) -> Path:
    """Fetch one of BEIR's collections, unless it is there already.

    Args:
        name: one of ``BEIR_NAMES``. ``cqadupstack`` is a folder of twelve collections.
        folder: where collections are kept; the new one is ``folder / name``.

    Returns:
        The collection's folder.

    Raises:
        DatasetError: the name is unknown, the download failed, or its place is taken by something else.
    """
    if name not in BEIR_NAMES:
        raise DatasetError(f"{name}: BEIR has no such collection; there are {', '.join(BEIR_NAMES)}")
    target = folder / name
    if _is_complete(target):
        return target
    if target.exists():
        raise DatasetError(f"{target}: no corpus.jsonl and queries.jsonl in it; remove it and download again")
    from beir.util import download_and_unzip

    url = BEIR_URL.format(name=name)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
        try:
            fetched = Path(download_and_unzip(url, scratch))
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DatasetError(
                f"{name}: {url} could not be fetched ({type(error).__name__}: {error}); check the network "
                f"and the disk and try again, or unzip it by hand as {target}"
            ) from error
        if not _is_complete(fetched):
            raise DatasetError(f"{name}: {url} holds no corpus.jsonl and queries.jsonl; get it elsewhere")
        fetched.rename(target)
    return target


def write_split(
    collection: Collection, folder: Path, test_fraction: float = 0.0, close: float | None = None
) -> Path:
    """Write a collection into a new folder, with a file for every split, the held-out dev included.

    Queries without a relevant document lose their judgements.

    Args:
        collection: the one to copy.
        folder: the new folder.
        test_fraction: for a collection without test: share of the train queries (those that are not dev)
            to hold out as test. Queries with equal texts, or written about one document, stay together.
        close: keep queries together too whose texts are so similar (Jaccard similarity of trigrams); dev is
            then held out anew where it has no file of its own.

    Raises:
        DatasetError: the folder exists, there is no train split, or there is a test split already.
        BadInput: the fraction is out of range.
    """
    if folder.exists():
        raise DatasetError(f"{folder}: there already, and never written over; name a new folder")
    splits = collection.splits()
    if "train" not in splits:
        raise DatasetError(f"{collection.folder / 'qrels'}: no train.tsv to hold queries out of; add one")
    if test_fraction and "test" in splits:
        raise DatasetError(f"{collection.folder}: has a test split; leave out test_fraction {test_fraction}")
    qrels = {split: collection.qrels(split) for split in splits}
    groups = _groups(collection, close)
    if close is not None and "dev" not in split_files(collection.folder, collection.settings):
        both = {**qrels["train"], **qrels["dev"]}
        held = hold_out(both, DEV_FRACTION, "dev", groups)
        qrels["train"] = {query: grades for query, grades in both.items() if query not in held}
        qrels["dev"] = {query: grades for query, grades in both.items() if query in held}
    if test_fraction:
        train = qrels["train"]
        test = hold_out(train, test_fraction, "test", groups)
        qrels["train"] = {query: grades for query, grades in train.items() if query not in test}
        qrels["test"] = {query: grades for query, grades in train.items() if query in test}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        copy = Path(scratch) / folder.name
        (copy / "qrels").mkdir(parents=True)
        for name in ("corpus.jsonl", "queries.jsonl"):
            shutil.copy(require_file(collection.folder, name), copy)
        for split, queries in qrels.items():
            write_qrels(copy / "qrels" / f"{split}.tsv", queries)
        copy.rename(folder)
    return folder


def write_qrels(path: Path, qrels: dict[str, dict[str, int]]) -> None:
    """Write one split's judgements."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("query-id\tcorpus-id\tscore\n")
        for query, grades in qrels.items():
            stream.writelines(f"{query}\t{document}\t{grade}\n" for document, grade in grades.items())


def _groups(collection: Collection, close: float | None) -> dict[str, str]:
    """Query of train or dev -> its group; of two with a similarity of ``close`` or more it is one."""
    groups = collection.groups("train", "dev")
    if close is None:
        return groups
    texts = {**collection.queries("train"), **collection.queries("dev")}
    return joined_groups(groups, close_groups(texts, close))


def _is_complete(folder: Path) -> bool:
    inner = [path for path in folder.glob("*") if path.is_dir()]
    return _is_collection(folder) or (bool(inner) and all(_is_collection(path) for path in inner))


def _is_collection(folder: Path) -> bool:
    return all(find_file(folder, name) for name in ("corpus.jsonl", "queries.jsonl"))
