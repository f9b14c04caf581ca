"""The collection that comes of it: a BEIR folder like any other, and what became of every query."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from routerretriever.datasets.collection import Collection
from routerretriever.datasets.files import require_file
from routerretriever.datasets.passages import parent_of
from routerretriever.errors import DatasetError
from routerretriever.generation.filters import Draft, reasons
from routerretriever.generation.sources import RealQueries, held_out, parents

PROVENANCE = "provenance.json"
DROPPED = "generated-dropped.jsonl"
_ENOUGH_REAL = 20
"""So many labelled queries are dev by themselves; fewer are helped out by generated ones."""


@dataclass(frozen=True)
class Generated:
    """A collection with generated queries."""

    folder: Path
    facts: dict[str, Any]
    """Its provenance."""

    @property
    def kept(self) -> int:
        """Generated queries in it."""
        return int(self.facts["counts"]["kept"])

    def rows(self) -> list[tuple[str, int]]:
        """What became of the queries, for a table."""
        counts, dropped = self.facts["counts"], self.facts["dropped"]
        kept = [("train", counts["train"]), ("dev, generated", counts["dev_generated"])]
        return [*kept, *((f"dropped: {reason}", count) for reason, count in dropped.items())]


def read_generated(folder: Path, key: str) -> Generated | None:
    """A folder that was generated from exactly this; None if there is no such folder.

    Raises:
        DatasetError: the folder is something else.
    """
    if not folder.exists():
        return None
    try:
        facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    if not isinstance(facts, dict) or facts.get("key") != key:
        raise DatasetError(
            f"{folder}: there already, made from something else, and never written over; name a new folder "
            "or remove it"
        )
    return Generated(folder, facts)


def write_generated(
    collection: Collection,
    real: RealQueries,
    drafts: Sequence[Draft],
    folder: Path,
    dev_fraction: float,
    facts: Mapping[str, Any],
) -> Generated:
    """Write the new folder; it appears whole or not at all.

    Args:
        collection: the documents.
        real: queries of people, which become dev and test.
        drafts: the generated ones, kept and dropped.
        folder: the new folder.
        dev_fraction: share of generated queries that dev gets; none if there are enough of people.
        facts: for the provenance.

    Raises:
        DatasetError: too few queries are left.
    """
    cut = collection.settings.passages is not None
    kept = [draft for draft in drafts if not draft.problem]
    if not kept:
        told = ", ".join(f"{reason} {count}" for reason, count in reasons(drafts).items())
        raise DatasetError(
            f"{collection.folder}: none of {len(drafts)} generated queries is left (dropped: {told}); bring "
            "examples or a better writer, or loosen generation.filters"
        )
    sources = list(dict.fromkeys(draft.request.document for draft in kept))
    dev_sources: set[str] = set()
    held_by = "queries of people"
    if len(real.dev) < _ENOUGH_REAL:
        wanted = set(sources)
        of = parents((one for one in collection.documents() if one.id in wanted), cut)
        dev_sources, held_by = held_out(sources, of, dev_fraction)
    split_of = {source: "dev" if source in dev_sources else "train" for source in sources}
    counts = Counter(split_of[draft.request.document] for draft in kept)
    provenance = {
        "generated_by": "routerretriever datasets generate",
        **facts,
        "source": str(collection.folder),
        "held_out_by": held_by,
        "counts": {
            "calls": len(drafts), "kept": len(kept), "train": counts["train"],
            "dev_generated": counts["dev"], "dev_of_people": len(real.dev), "test": len(real.test),
        },
        "dropped": reasons(drafts),
    }  # fmt: skip
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / folder.name
        (made / "qrels").mkdir(parents=True)
        corpus = require_file(collection.folder, "corpus.jsonl")
        shutil.copyfile(corpus, made / corpus.name)
        _write_queries(made, real, kept, split_of, cut)
        _write_lines(made / DROPPED, (_told(draft) for draft in drafts if draft.problem))
        text = json.dumps(provenance, indent=2, ensure_ascii=False)
        (made / PROVENANCE).write_text(text + "\n", encoding="utf-8")
        made.rename(folder)
    return Generated(folder, provenance)


def _write_queries(
    folder: Path, real: RealQueries, kept: Sequence[Draft], split_of: Mapping[str, str], cut: bool
) -> None:
    records: dict[str, dict[str, Any]] = {
        identifier: {"_id": identifier, "text": text}
        for identifier, text in {**real.dev, **real.test}.items()
    }
    judged: dict[str, list[tuple[str, str, int]]] = {"train": [], "dev": [], "test": []}
    for split, qrels in (("dev", real.dev_qrels), ("test", real.test_qrels)):
        judged[split] += [(query, doc, grade) for query, own in qrels.items() for doc, grade in own.items()]
    for number, draft in enumerate(kept):
        identifier, source = f"generated-{number:05d}", draft.request.document
        while identifier in records:
            identifier += "-"
        metadata = {"source": source, "type": draft.request.type, "rank": draft.rank}
        records[identifier] = {"_id": identifier, "text": draft.query, "metadata": metadata}
        judged[split_of[source]].append((identifier, parent_of(source) if cut else source, 1))
    _write_lines(folder / "queries.jsonl", records.values())
    for split, rows in judged.items():
        if rows:
            lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in rows)
            text = "query-id\tcorpus-id\tscore\n" + lines
            (folder / "qrels" / f"{split}.tsv").write_text(text, encoding="utf-8")


def _told(draft: Draft) -> dict[str, Any]:
    return {"text": draft.query, "source": draft.request.document, "type": draft.request.type,
            "reason": draft.problem}  # fmt: skip


def _write_lines(path: Path, records: Any) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
