"""BEIR's published generated queries as train queries of one of its collections.

They were written by docT5query, the data of GPL (Wang et al., arXiv 2112.07577), and lie on the Hugging Face
hub, a repository ``BeIR/<name>-generated-queries`` a collection: one file ``train.jsonl.gz``, a row a query
with ``_id`` (of the document), ``title``, ``text`` and ``query``.
RouterRetriever (arXiv 2409.02685) trains with them where a collection has few train queries or none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.datasets.collection import DEV_FRACTION, Collection, Qrels
from routerretriever.datasets.download import download
from routerretriever.datasets.files import read_lines, require_file
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.reading import read_records
from routerretriever.datasets.settings import DomainSettings
from routerretriever.datasets.splitting import hold_out
from routerretriever.datasets.texts import normal_text
from routerretriever.datasets.variant import read_provenance, write_variant
from routerretriever.errors import DatasetError, first_line
from routerretriever.hashing import file_hash

REPOSITORY = "BeIR/{name}-generated-queries"
FILE = "train.jsonl.gz"
_MAKER = "routerretriever datasets download --generated"
_SEVERAL = "cqadupstack"
"""Twelve collections in one, whose documents the published queries do not tell apart."""


@dataclass(frozen=True)
class WithGenerated:
    """A collection with published generated queries."""

    folder: Path
    facts: Mapping[str, Any]
    """Its provenance."""

    def told(self) -> str:
        """What is in it, and what was dropped, on one line."""
        counts = ", ".join(f"{split} {count}" for split, count in self.facts["queries"].items())
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.facts["dropped"].items())
        return f"{self.folder} (queries: {counts}; generated ones dropped: {dropped or 'none'})"


@dataclass(frozen=True)
class _Row:
    line: int
    document: str
    query: str


def download_generated(name: str, folder: Path) -> WithGenerated:
    """Fetch a collection of BEIR and its generated queries, unless they are there already.

    Args:
        name: one of ``BEIR_NAMES`` but ``cqadupstack``.
        folder: where collections are kept; the new one is ``folder / f"{name}-generated"``, and the one
            without generated queries is ``folder / name``.

    Raises:
        DatasetError: a download failed, the hub has no such queries, or a place is taken by something else.
    """
    if name == _SEVERAL:
        raise DatasetError(
            f"{name}: twelve collections in one, and their generated queries are not published apart"
        )
    target = folder / f"{name}-generated"
    if target.exists():
        facts = read_provenance(target)
        if facts.get("generated_by") != _MAKER:
            raise DatasetError(
                f"{target}: there already, made by something else; remove it, or use another --to"
            )
        return WithGenerated(target, facts)
    source = download(name, folder)
    file, commit = _fetch(name)
    published = {"repository": REPOSITORY.format(name=name), "commit": commit, "file": FILE}
    # Test stays as it is published: copies of judged documents get no grade here.
    collection = Collection(name, source, DomainSettings(path="", copies="apart"))
    return add_generated(collection, file, target, published)


def add_generated(
    collection: Collection, file: Path, folder: Path, published: Mapping[str, Any]
) -> WithGenerated:
    """Write a new folder: the collection, with a file's generated queries as train queries beside its own.

    Dropped are queries that people ask in any split, queries that came before, and those about documents
    that are not in the corpus. Dev of people stays dev, and no query about its documents is trained on. A
    collection without dev gets a tenth of the generated queries, those of held-out documents. Documents that
    test queries ask for are not spared: the publishers wrote about the whole corpus.

    Args:
        collection: one of BEIR.
        file: rows as the module says.
        folder: the new folder.
        published: where the file came from, for the provenance.

    Raises:
        DatasetError: a row is flawed, or queries of fewer than two documents are left.
    """
    splits = collection.splits()
    qrels: dict[str, Qrels] = {split: collection.qrels(split) for split in splits}
    people = list(read_records(require_file(collection.folder, "queries.jsonl"), raise_error, True))
    dropped: Counter[str] = Counter()
    rows = _usable(file, collection, {normal_text(record.text) for _, record in people}, dropped)
    if "dev" in qrels:
        of_dev = {document for own in qrels["dev"].values() for document, grade in own.items() if grade > 0}
        dropped["about a document of dev"] += sum(row.document in of_dev for row in rows)
        rows = [row for row in rows if row.document not in of_dev]
    if len({row.document for row in rows}) < 2:
        raise DatasetError(f"{file}: queries of fewer than two documents of {collection.folder} are left")
    taken = {record.id for _, record in people}
    ids = {row.line: _free(f"generated-{row.line:07d}", taken) for row in rows}
    held: set[str] = set()
    if "dev" not in qrels:
        documents = {ids[row.line]: row.document for row in rows}
        held = hold_out(documents, DEV_FRACTION, "dev", documents)
    for row in rows:
        split = "dev" if ids[row.line] in held else "train"
        qrels.setdefault(split, {})[ids[row.line]] = {row.document: 1}
    facts = {
        "generated_by": _MAKER,
        "source": str(collection.folder),
        "published": {**published, "sha256": file_hash(file)},
        "held_out_by": "document" if held else "queries of people",
        "queries": {split: len(own) for split, own in sorted(qrels.items())},
        "generated": {"train": len(rows) - len(held), "dev": len(held)},
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
    }

    def records() -> Iterator[dict[str, Any]]:
        for _, record in people:
            metadata = {"metadata": record.metadata} if record.metadata else {}
            yield {"_id": record.id, "text": record.text, **metadata}
        for row in rows:
            yield {"_id": ids[row.line], "text": row.query, "metadata": {"source": row.document}}

    write_variant(collection, folder, records(), qrels, facts)
    return WithGenerated(folder, facts)


def _usable(file: Path, collection: Collection, asked: set[str], dropped: Counter[str]) -> list[_Row]:
    """The rows that are kept; reasons against the others are counted."""
    documents = {document.id for document in collection.uncut.documents()}
    met: set[str] = set()
    kept = []
    for row in _rows(file):
        normal = normal_text(row.query)
        if not normal:
            dropped["empty"] += 1
        elif row.document not in documents:
            dropped["of an unknown document"] += 1
        elif normal in asked:
            dropped["asked by people"] += 1
        elif normal in met:
            dropped["duplicate"] += 1
        else:
            met.add(normal)
            kept.append(row)
    return kept


def _rows(file: Path) -> Iterator[_Row]:
    for line, raw in read_lines(file, raise_error):
        try:
            row = json.loads(raw)
            document, query = row["_id"], row["query"]
        except (ValueError, KeyError, TypeError):
            document = query = None
        if not isinstance(document, str) or not isinstance(query, str):
            raise DatasetError(
                f'{file}:{line}: no JSON object with "_id" and "query"; this is not how BEIR publishes '
                "generated queries; remove the file from the hub's cache and download again"
            )
        yield _Row(line, document, " ".join(query.split()))


def _free(identifier: str, taken: set[str]) -> str:
    while identifier in taken:
        identifier += "-"
    return identifier


def _fetch(name: str) -> tuple[Path, str]:
    """The published file in the hub's cache, and its commit.

    Raises:
        DatasetError: the hub did not give it.
    """
    from huggingface_hub import hf_hub_download

    repository = REPOSITORY.format(name=name)
    try:
        path = Path(hf_hub_download(repository, FILE, repo_type="dataset"))
    except Exception as error:  # of many kinds: the hub's, the HTTP client's, the disk's
        reason = first_line(error)
        raise DatasetError(
            f"{name}: the hub did not give {FILE} of {repository} ({reason}); check the network, or "
            "https://huggingface.co/BeIR for the collections that have generated queries"
        ) from None
    return path, path.parent.name
