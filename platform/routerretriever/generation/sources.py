"""Which documents are asked about, and which of them only dev may see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from routerretriever.datasets.collection import Collection, Document, Qrels
from routerretriever.datasets.passages import parent_of
from routerretriever.datasets.splitting import first_by_hash, hold_out
from routerretriever.datasets.texts import normal_text, words
from routerretriever.errors import DatasetError
from routerretriever.generation.prompts import Request, shorten
from routerretriever.generation.settings import GenerationSettings, QueryType

_FEWEST_PARENTS = 5
"""Below this many files, passages are held out, not files: there would be too little to choose from."""


@dataclass(frozen=True)
class RealQueries:
    """What people have asked of a collection already. None of it is trained on."""

    dev: dict[str, str] = field(default_factory=dict)
    dev_qrels: Qrels = field(default_factory=dict)
    test: dict[str, str] = field(default_factory=dict)
    test_qrels: Qrels = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [*self.dev.values(), *self.test.values()]

    def judged(self) -> set[str]:
        """Documents that are relevant to one of them."""
        both = (*self.dev_qrels.values(), *self.test_qrels.values())
        return {document for judged in both for document, grade in judged.items() if grade > 0}


def real_queries(collection: Collection) -> RealQueries:
    """The labelled queries of a collection: those of train and dev become dev, test stays test."""
    whole = collection.uncut
    found = {split: (whole.queries(split), whole.qrels(split)) for split in whole.splits()}
    none: tuple[dict[str, str], Qrels] = ({}, {})
    train, dev, test = (found.get(split, none) for split in ("train", "dev", "test"))
    return RealQueries({**train[0], **dev[0]}, {**train[1], **dev[1]}, *test)


def parents(documents: Iterable[Document], cut: bool) -> dict[str, str]:
    """Document -> what it was cut from: its own id if it is whole.

    Args:
        documents: of a corpus.
        cut: whether the collection's settings cut them into passages.
    """
    found = {}
    for document in documents:
        parent = (document.metadata or {}).get("parent")
        found[document.id] = parent_of(document.id) if cut else str(parent or document.id)
    return found


def choose(collection: Collection, real: RealQueries, settings: GenerationSettings) -> list[Request]:
    """The queries that are to be written, in the order of their documents' hashes.

    Left out are documents that real queries are judged for, with all passages of the same file, copies, and
    documents of a few words.

    Raises:
        DatasetError: no document is left.
    """
    cut = collection.settings.passages is not None
    taken = _taken(collection, real, cut)
    count = documents = 0
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for document in collection.documents():
        documents += 1
        parent = parents([document], cut)[document.id]
        text = shorten(document.title, document.text, settings.document_words)
        if len(words(text)) < settings.min_document_words or parent in taken:
            continue
        count += 1
        # The menu on each page is a passage of each page, under its page's title.
        own = text if parent == document.id else shorten("", document.text, settings.document_words)
        key = normal_text(own)
        if key not in seen:
            seen.add(key)
            texts[document.id] = text
    if not texts:
        reason = f"all are shorter than {settings.min_document_words} words"
        if count == 0 and taken:
            reason = "each is either too short, or judged for a query that people asked"
        raise DatasetError(
            f"{collection.folder}: none of {documents} documents can be asked about: {reason}; add documents"
        )
    chosen = first_by_hash(texts, settings.documents, f"generation {settings.seed}")
    types = settings.mixed_types
    each = min(settings.queries_per_document, len(types))
    requests = []
    for place, document_id in enumerate(chosen):
        for number in range(each):
            type_: QueryType = types[(place * each + number) % len(types)]
            requests.append(Request(document_id, type_, texts[document_id]))
    return requests


def held_out(sources: Sequence[str], parent: Mapping[str, str], fraction: float) -> tuple[set[str], str]:
    """The source documents whose queries are for dev, and what was kept together: documents or passages.

    Passages of one file stay together, so that no train query comes from a file of dev. Where there are only
    a few files, single passages are held out.

    Raises:
        DatasetError: there are no two to keep apart.
    """
    groups = {source: parent.get(source, source) for source in sources}
    by = "document"
    if len(set(groups.values())) < _FEWEST_PARENTS:
        groups, by = {source: source for source in sources}, "passage"
    if len(set(groups.values())) < 2:
        raise DatasetError(
            f"queries of {len(set(sources))} document are left, and dev needs documents of its own; "
            "add documents, raise generation.documents, or loosen generation.filters"
        )
    return hold_out(groups, fraction, "dev", groups), by


def _taken(collection: Collection, real: RealQueries, cut: bool) -> set[str]:
    judged = real.judged()
    if not judged or cut:
        return judged  # judgements name whole documents
    of = parents(collection.documents(), cut)
    return {of.get(document, document) for document in judged}
