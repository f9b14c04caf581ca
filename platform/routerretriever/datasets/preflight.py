"""Before a run starts: read all that it will read, by the rules of ``checking``, and remember what it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from routerretriever.datasets.checking import CheckReport, check_report
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.statistics import Tokens, reading_notes
from routerretriever.datasets.texts import normal_text
from routerretriever.errors import DatasetError

FEW_QUERIES = 10
"""Fewer dev queries than this are noted."""


@dataclass(frozen=True)
class Report:
    """What a preflight found in collections without an error."""

    checks: dict[str, CheckReport]
    """Collection -> its counts and warnings."""
    hashes: dict[str, dict[str, str]]
    """Collection -> ``corpus`` and each split -> hash at the start."""
    dev_queries: dict[str, int]
    """Collection -> queries that decide when its expert's training ends, where it has an expert."""
    learned_elsewhere: dict[str, dict[str, int]]
    """Collection -> other collection -> test queries of the first that are train queries of the other."""
    reading: dict[str, list[str]] = field(default_factory=dict)
    """Collection -> what the encoder will not see of it."""

    def notes(self, name: str) -> list[str]:
        """One sentence for each kind of warning of a collection: for the training log and the report."""
        found = [f"{each.count} x {each.kind.name}: {each.kind.meaning}" for each in self.checks[name].kinds]
        dev = self.dev_queries.get(name, FEW_QUERIES)
        if dev < FEW_QUERIES:
            found.append(f"dev has {dev} queries: its figures, and where training stops, are largely chance")
        found += [told_elsewhere(*each) for each in self.learned_elsewhere.get(name, {}).items()]
        return found + self.reading.get(name, [])

    def with_reading(self, collections: Iterable[Collection], tokens: Tokens) -> Report:
        """The same, with what an encoder will not see.

        Raises:
            DatasetError: a collection cannot be read any more.
            EncoderError: the encoder knows next to no word of one.
        """
        return replace(self, reading={one.name: reading_notes(one, tokens) for one in collections})

    def require_unchanged(self, collections: Iterable[Collection]) -> None:
        """Compare collections with what they were at the start; files with old stamps are not read again.

        Raises:
            DatasetError: one has changed since.
        """
        for collection in collections:
            now = _hashes(collection, [name for name in self.hashes[collection.name] if name != "corpus"])
            changed = [name for name, value in self.hashes[collection.name].items() if now[name] != value]
            if changed:
                raise DatasetError(
                    f"{collection.folder}: {', '.join(changed)} changed since the run started; leave a "
                    "collection alone while it is used, and run again"
                )


def preflight(collections: Iterable[Collection], needs: Mapping[str, Iterable[str]]) -> Report:
    """Read every split that a run will read, and look up every judgement.

    Args:
        collections: those of the run.
        needs: collection's name -> the splits that the run reads; none means the documents only.

    Raises:
        DatasetError: a collection is flawed; the message names file and line, and how many errors there are.
    """
    checks, hashes, dev_queries = {}, {}, {}
    collections = list(collections)
    for collection in collections:
        splits = tuple(needs.get(collection.name, ()))
        for split in (None, *splits):
            collection.require(split)
        contents, notes = collection.read()
        checks[collection.name] = check_report(collection.folder, notes, contents)
        hashes[collection.name] = _hashes(collection, splits)
        if "dev" in splits:
            dev_queries[collection.name] = len(collection.queries("dev"))
    return Report(checks, hashes, dev_queries, learned_elsewhere(collections, needs))


def learned_elsewhere(
    collections: Sequence[Collection], needs: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, int]]:
    """Test queries that an expert of another collection learns from, as ``Report`` has them.

    Args:
        collections: those that are compared.
        needs: collection's name -> the splits that are.

    Raises:
        DatasetError: a collection is flawed.
    """
    if len(collections) < 2:
        return {}  # there is no other, and to look would read it all
    learned: dict[int, list[str]] = {}
    for one in collections:
        if one.settings.expert and "train" in needs.get(one.name, ()):
            for text in {hash(normal_text(query)) for query in one.queries("train").values()}:
                learned.setdefault(text, []).append(one.name)
    found = {}
    for one in collections:
        if "test" in needs.get(one.name, ()):
            texts = [hash(normal_text(query)) for query in one.queries("test").values()]
            counts = Counter(other for text in texts for other in learned.get(text, ()) if other != one.name)
            if counts:
                found[one.name] = dict(counts)
    return found


def told_elsewhere(other: str, count: int) -> str:
    """What test queries that another collection trains on mean."""
    return (
        f"{count} test queries are train queries of {other}, too: its expert has learned them, and figures "
        "come out too high; cut them there"
    )


def _hashes(collection: Collection, splits: Iterable[str]) -> dict[str, str]:
    return {"corpus": collection.corpus_hash(), **{split: collection.split_hash(split) for split in splits}}
