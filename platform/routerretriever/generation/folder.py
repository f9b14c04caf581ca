"""The collection that comes of it: a BEIR folder like any other, and what became of every query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routerretriever.datasets.collection import Collection, Qrels
from routerretriever.datasets.passages import parent_of
from routerretriever.datasets.variant import read_provenance, write_variant
from routerretriever.errors import DatasetError
from routerretriever.generation.filters import Draft, reasons
from routerretriever.generation.sources import RealQueries, held_out, parents

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
    facts = read_provenance(folder)
    if facts.get("key") != key:
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
    queries, qrels = _queries(real, kept, split_of, cut)
    dropped = (_told(draft) for draft in drafts if draft.problem)
    write_variant(collection, folder, queries, qrels, provenance, {DROPPED: dropped})
    return Generated(folder, provenance)


def _queries(
    real: RealQueries, kept: Sequence[Draft], split_of: Mapping[str, str], cut: bool
) -> tuple[list[dict[str, Any]], dict[str, Qrels]]:
    people = {**real.dev, **real.test}
    records: list[dict[str, Any]] = [{"_id": query, "text": text} for query, text in people.items()]
    qrels: dict[str, Qrels] = {"train": {}, "dev": dict(real.dev_qrels), "test": real.test_qrels}
    for number, draft in enumerate(kept):
        identifier, source = f"generated-{number:05d}", draft.request.document
        while identifier in people:
            identifier += "-"
        metadata = {"source": source, "type": draft.request.type, "rank": draft.rank}
        records.append({"_id": identifier, "text": draft.query, "metadata": metadata})
        qrels[split_of[source]][identifier] = {parent_of(source) if cut else source: 1}
    return records, qrels


def _told(draft: Draft) -> dict[str, Any]:
    return {"text": draft.query, "source": draft.request.document, "type": draft.request.type,
            "reason": draft.problem}  # fmt: skip
