"""Retrieval collections as BEIR folders, read as streams.

A folder holds ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/{train,dev,test}.tsv``, each as it is or
compressed by gzip or zstd. Reading stops at the first error; ``checking`` lists them all. Nothing here knows
about encoders, training or where a collection came from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from routerretriever.datasets.contents import SPLITS, Contents, read_contents, split_files
from routerretriever.datasets.files import content_digest, file_hint, find_file, import_hint, require_file
from routerretriever.datasets.issues import SAME_ID, Issue, Notes, raise_error, refuse
from routerretriever.datasets.passages import cut, passage_ids
from routerretriever.datasets.reading import Record, read_records
from routerretriever.datasets.settings import DomainSettings
from routerretriever.datasets.splitting import hold_out
from routerretriever.errors import BadInput, DatasetError
from routerretriever.hashing import content_hash

DEV_FRACTION = 0.1
"""Share of the train queries that becomes dev where a collection has no dev of its own."""

BEIR_NAMES = (
    "arguana",
    "climate-fever",
    "cqadupstack",
    "dbpedia-entity",
    "fever",
    "fiqa",
    "hotpotqa",
    "msmarco",
    "nfcorpus",
    "nq",
    "nq-train",
    "quora",
    "scidocs",
    "scifact",
    "trec-covid",
    "webis-touche2020",
)
"""Collections that BEIR publishes; see ``download``."""

_SAMPLE = Path(__file__).parent / "sample"


Document = Record
"""One document of a corpus, or one passage of it."""

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> grade."""


_DEFAULTS = DomainSettings(path="")


@dataclass(frozen=True)
class Collection:
    """One collection; make it with ``open_collection``. Files are read anew when they have changed."""

    name: str
    folder: Path
    settings: DomainSettings = _DEFAULTS

    @property
    def uncut(self) -> Collection:
        """The same with whole documents, as the files name them, whatever passages the settings ask for."""
        return replace(self, settings=self.settings.model_copy(update={"passages": None}))

    def documents(self, stride: int = 1, limit: int | None = None) -> Iterator[Document]:
        """Stream the corpus, or its passages; texts are never held in memory.

        Args:
            stride: look only at every so manyth document, as a sample.
            limit: end after so many documents; by default at the end of the corpus.

        Raises:
            DatasetError: a line is flawed, or an id comes twice. Documents without any text pass: BEIR's
                collections have them.
        """
        path = require_file(self.folder, "corpus.jsonl")
        seen: set[str] = set()
        for line, record in islice(read_records(path, raise_error, stride=stride), limit):
            if record.id in seen:
                refuse(
                    Issue(
                        SAME_ID, path, line, f"document id {record.id!r} stands twice; rename or remove one"
                    )
                )
            seen.add(record.id)
            if self.settings.passages:
                yield from cut(record, self.settings.passages)
            else:
                yield record

    def queries(self, split: str) -> dict[str, str]:
        """Query id -> text of the split's queries, in the order of ``queries.jsonl``.

        Raises:
            DatasetError: the collection is flawed, or cannot give this split.
            BadInput: there is no such split name.
        """
        judged = self._split(split)
        return {query: text for query, text in self.require(split).queries.items() if query in judged}

    def qrels(self, split: str) -> Qrels:
        """Query id -> document id -> grade.

        Train and dev have the queries with a relevant document (grade above 0) that exists; copies of a
        judged document have its grade. Test is as BEIR's evaluator reads it: queries judged 0 only count 0,
        and so does what is judged relevant and does not exist. Without ``qrels/dev.tsv``, dev is a tenth of
        the train queries, groups kept together (see ``groups``), and train is the rest. With ``passages``,
        train names passages, dev and test their parents.

        Raises:
            DatasetError: the collection is flawed, or cannot give this split.
            BadInput: there is no such split name.
        """
        return {query: dict(judged) for query, judged in self._split(split).items()}

    def document_qrels(self, split: str) -> Qrels:
        """``qrels``, but with whole documents in every split.

        Raises:
            DatasetError: the collection is flawed, or cannot give this split.
            BadInput: there is no such split name.
        """
        return {query: dict(judged) for query, judged in self._documents_of(split).items()}

    def as_trained(self, grades: Qrels) -> Qrels:
        """Judgements of documents as training takes them: of all their passages, where documents are cut."""
        return _by_passage(grades, self.require(None)) if self.settings.passages else grades

    def groups(self, *splits: str) -> dict[str, str]:
        """Query -> the first id of its group; a group that is parted has queries held out that were seen.

        Queries with equal texts are in one, and those written about one document: the one that ``source`` in
        their metadata names, if they are judged for it.

        Args:
            splits: whose queries; at least one.

        Raises:
            DatasetError: the collection is flawed, or cannot give these splits.
        """
        judged = {query: own for split in splits for query, own in self._documents_of(split).items()}
        return self.require(splits[0]).groups(judged)

    def own_kept(self, split: str) -> frozenset[str]:
        """The queries of a split whose results keep the document of the query's own id.

        For all others such a document is left out: that is BEIR's rule, and that of ``ignore_identical_ids``.
        """
        rule, survey = self.settings.ignore_identical_ids, self.require(split).survey
        if rule is True:
            return frozenset()
        kept = survey.same_id_only if rule == "auto" else survey.same_id_only | survey.same_as_query
        return frozenset(kept & self._split(split).keys())

    def own_left_out(self, *splits: str) -> frozenset[str]:
        """The queries of some splits with a document of their own id that results leave out and none judged
        relevant: it competes with none of the relevant ones."""
        judged = {query: own for split in splits for query, own in self._documents_of(split).items()}
        survey = self.require(splits[0]).survey
        kept = frozenset[str]().union(*(self.own_kept(split) for split in splits))
        same = (survey.same_as_query | survey.same_id_only) & judged.keys() - kept
        return frozenset(query for query in same if not judged[query].get(query))

    def copies(self) -> list[list[str]]:
        """Groups of documents with equal content, the first of the corpus first."""
        return [[identifier for _, identifier in group] for group in self.require(None).survey.copies]

    def splits(self) -> tuple[str, ...]:
        """The splits that the collection can give, a held-out dev included."""
        there = split_files(self.folder, self.settings)
        return tuple(split for split in SPLITS if split in there or (split == "dev" and "train" in there))

    def corpus_hash(self) -> str:
        """Sixteen hex digits over the corpus's bytes, the same compressed or not, and how it is cut.

        Raises:
            DatasetError: the corpus is missing or damaged.
        """
        digest = _hash_file(*_stamp(require_file(self.folder, "corpus.jsonl")))
        passages = self.settings.passages
        return content_hash(digest, passages.model_dump()) if passages else digest

    def split_hash(self, split: str) -> str:
        """Sixteen hex digits over the split's queries and judgements, the same in any file order.

        Raises:
            DatasetError: the split cannot be read.
            BadInput: there is no such split name.
        """
        parts: list[object] = [self.queries(split), self._split(split)]
        if kept := self.own_kept(split):
            parts.append(sorted(kept))
        return content_hash(*parts)

    def read(self) -> tuple[Contents, Notes]:
        """All files as they are now, and what was noted; nothing is raised for what is noted."""
        return _read(self, self._stamps())

    def require(self, split: str | None) -> Contents:
        """The files, if documents, queries and one split's judgements (``None``: no split) have no error.

        Raises:
            DatasetError: there is one, or the collection cannot give this split.
            BadInput: there is no such split name.
        """
        if split not in (None, *SPLITS):
            raise BadInput(f"split: no split is named {split!r}; there are {', '.join(SPLITS)}")
        if split is not None and split not in self.splits():
            there = ", ".join(self.splits()) or "none"
            name = self.settings.test_split if split == "test" else split
            raise DatasetError(
                f"{self.folder / 'qrels'}: no {name} split (found: {there}); add {name}.tsv"
                f"{'' if self.splits() else import_hint(self.folder)}"
            )
        contents, notes = self.read()
        # Train and dev are checked together: one may be held out of the other.
        used = {None: (), "test": ("test",)}.get(split, ("train", "dev"))
        not_used = {file.path for name, file in contents.files.items() if name not in used}
        notes.raise_first_error(self.folder, not_used)
        return contents

    def _split(self, split: str) -> Qrels:
        grades = self._documents_of(split)
        return self.as_trained(grades) if split == "train" else grades

    def _documents_of(self, split: str) -> Qrels:
        contents = self.require(split)
        if split == "test":
            grades = contents.files[split].grades
            return _with_copies(grades, contents) if self.settings.copies == "alike" else grades
        if split in contents.files and (split == "dev" or "dev" in contents.files):
            grades = _with_copies(contents.files[split].relevant(contents.survey.missing), contents)
        else:
            train = contents.files["train"].relevant(contents.survey.missing)
            held = hold_out(train, DEV_FRACTION, "dev", contents.groups(train))
            own = {query: judged for query, judged in train.items() if (query in held) == (split == "dev")}
            grades = _with_copies(own, contents)
        return grades

    def _stamps(self) -> tuple[tuple[Path, int, int], ...]:
        paths = [*split_files(self.folder, self.settings).values()]
        paths += [require_file(self.folder, name) for name in ("queries.jsonl", "corpus.jsonl")]
        return tuple(_stamp(path) for path in sorted(paths))


def open_collection(name: str, path: str | Path, settings: DomainSettings | None = None) -> Collection:
    """Open a recipe's domain.

    Args:
        name: the domain's name.
        path: a BEIR folder, or ``sample:<domain>`` for the built-in sample.
        settings: how it is read; its own ``path`` is ignored.

    Raises:
        DatasetError: there is no such folder or sample, or it has no corpus or queries file.
    """
    field = f"domains.{name}.path"
    read_as = (settings or DomainSettings(path="")).model_copy(update={"path": ""})
    if str(path).startswith("sample:"):
        domain = str(path).removeprefix("sample:")
        if domain not in sample_domains():
            there = ", ".join(sample_domains())
            raise DatasetError(f"{field}: no built-in sample {domain!r}; there are {there}")
        return Collection(name, _SAMPLE / domain, read_as)
    folder = Path(path).expanduser().absolute()  # workers run in other folders
    plain = folder.name.removesuffix("-generated")
    known = plain in BEIR_NAMES
    option = " --generated" if plain != folder.name else ""
    command = f"`routerretriever datasets download {plain}{option}`"
    if folder.is_file():
        raise DatasetError(f"{field}: {folder} is {file_hint(folder)}")
    if not folder.is_dir():
        remedy = f"download it with {command}, or mend the path" if known else "mend the path"
        raise DatasetError(f"{field}: no folder {folder}; {remedy}")
    for file in ("corpus.jsonl", "queries.jsonl"):
        if not find_file(folder, file):
            inner = sorted(path.parent.name for path in folder.glob("*/corpus.jsonl*"))
            remedy = f"remove it and run {command}" if known else "add it, or mend the path"
            if inner:
                remedy = f"name one of the collections in it: {', '.join(inner)}"
            elif hint := import_hint(folder):
                remedy = f"import it{hint}"
            raise DatasetError(f"{field}: no {file} (or {file}.gz) in {folder}; {remedy}")
    return Collection(name, folder, read_as)


def sample_domains() -> list[str]:
    """Names of the built-in sample's collections."""
    return sorted(path.parent.name for path in _SAMPLE.glob("*/corpus.jsonl"))


@functools.lru_cache(maxsize=64)
def _read(collection: Collection, _stamps: tuple[tuple[Path, int, int], ...]) -> tuple[Contents, Notes]:
    notes = Notes()
    return read_contents(collection.folder, collection.settings, SPLITS, notes), notes


def _with_copies(grades: Qrels, contents: Contents) -> Qrels:
    copies = contents.survey.copies_of()
    if not copies:
        return grades
    alike: Qrels = {}
    for query, judged in grades.items():
        best: dict[str, int] = {}
        for document, grade in judged.items():
            if document in copies:
                first = copies[document][0]
                best[first] = max(grade, best.get(first, 0))
        alike[query] = {**judged, **{copy: grade for first, grade in best.items() for copy in copies[first]}}
    return alike


def _by_passage(grades: Qrels, contents: Contents) -> Qrels:
    passages, copies = contents.survey.passages, contents.survey.copies_of()

    def count(document: str) -> int:
        return next(passages[one] for one in copies.get(document, [document]) if one in passages)

    return {
        query: {
            passage: grade
            for document, grade in judged.items()
            for passage in passage_ids(document, count(document))
        }
        for query, judged in grades.items()
    }


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, _mtime: int, _size: int) -> str:
    return content_digest(path)[:16]
