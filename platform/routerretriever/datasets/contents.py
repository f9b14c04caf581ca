"""What a collection's files say together: every rule that needs more than one line, in one place.

``read_contents`` is what reading, ``checking`` and ``preflight`` share. They differ in the splits that they
ask for, and in what they do when they are told of an issue.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from routerretriever.datasets import issues
from routerretriever.datasets.files import check_forms, find_file, find_split, import_hint, missing_file
from routerretriever.datasets.issues import Issue, Kind, Report
from routerretriever.datasets.passages import cut, parent_of
from routerretriever.datasets.reading import read_judgements, read_records
from routerretriever.datasets.settings import DomainSettings
from routerretriever.datasets.survey import Survey, repeated_positions, report_same_ids, survey_corpus
from routerretriever.datasets.texts import joined_groups, normal_text

SPLITS = ("train", "dev", "test")
MISSING_SHARE = 0.1
"""More judged documents than this that do not exist are a mistake in the ids, not a few lost documents."""


@dataclass
class QrelsFile:
    """One file of judgements."""

    path: Path
    grades: dict[str, dict[str, int]] = field(default_factory=dict)
    """Query -> document -> grade."""

    @cached_property
    def lines(self) -> dict[tuple[str, str], int]:
        """Pair -> its first line. Read when an issue wants it: for millions of pairs it takes much memory."""
        lines: dict[tuple[str, str], int] = {}
        for line, (query, document, _) in read_judgements(self.path, lambda _: None):
            lines.setdefault((query, document), line)
        return lines

    def __len__(self) -> int:
        """How many pairs are judged."""
        return sum(map(len, self.grades.values()))

    def relevant(self, missing: Set[str] = frozenset()) -> dict[str, dict[str, int]]:
        """Query -> document -> grade, for queries with a grade above 0; missing documents are left out."""
        grades = {
            query: {document: grade for document, grade in judged.items() if document not in missing}
            for query, judged in self.grades.items()
        }
        return {query: judged for query, judged in grades.items() if any(judged.values())}

    def relevant_queries(self, missing: Set[str] = frozenset()) -> Iterator[str]:
        """The queries of ``relevant``, one by one."""
        for query, judged in self.grades.items():
            if any(grade and document not in missing for document, grade in judged.items()):
                yield query

    def line_of(self, query: str) -> int:
        """Where a query is judged first."""
        return min(self.lines[query, document] for document in self.grades[query])


@dataclass
class Contents:
    """What was read."""

    queries: dict[str, str]
    """Texts of the judged queries, in the order of the file."""
    query_lines: dict[str, int]
    """Every query -> its line."""
    files: dict[str, QrelsFile]
    """Split -> its judgements, for the splits that were asked for and have a file."""
    survey: Survey
    sources: dict[str, str] = field(default_factory=dict)
    """Judged query -> what ``source`` in its metadata names."""
    equal_queries: dict[tuple[str, str], int] = field(default_factory=dict)
    """(Split, other split) -> its queries whose text is a query of the other's too."""

    def groups(self, judged: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
        """Query -> the first id of its group: of all with an equal text, or written about one document.

        Args:
            judged: query -> document -> grade.
        """
        about = {query: self.source_of(query, own) for query, own in judged.items()}
        return joined_groups(
            {query: normal_text(self.queries[query]) for query in judged if query in self.queries},
            {query: document for query, document in about.items() if document is not None},
        )

    def source_of(self, query: str, judged: Mapping[str, int]) -> str | None:
        """The document that a query was written about: what ``source`` names, if it is judged for it.

        A source may be a passage of the document.
        """
        source = self.sources.get(query)
        if source is None:
            return None
        return next((document for document in (source, parent_of(source)) if document in judged), None)


def split_files(folder: Path, settings: DomainSettings) -> dict[str, Path]:
    """Split -> its file. A split that plays test plays nothing else."""
    found = {split: find_split(folder, split) for split in ("train", "dev")}
    found["test"] = find_split(folder, settings.test_split)
    return {
        split: path
        for split, path in found.items()
        if path is not None and (split == "test" or path != found["test"])
    }


def unread_judgements(folder: Path, there: Mapping[str, Path]) -> list[Path]:
    """Files of judgements that play no split, given those that do."""
    played = tuple(f"{path.name.partition('.')[0]}." for path in there.values())
    beside = sorted([*folder.glob("*.tsv*"), *folder.glob("qrels/*.tsv*")])
    return [path for path in beside if path.is_file() and not path.name.startswith((*played, "._"))]


def read_contents(
    folder: Path, settings: DomainSettings, splits: Iterable[str], report: Report, whole: bool = False
) -> Contents:
    """Read queries, judgements and corpus, and look every judgement up.

    Args:
        folder: the collection.
        settings: which split plays test, and so on.
        splits: those to be read; dev is held out of train where it has no file.
        report: told of every issue.
        whole: report what does not concern a run too: unused queries, missing splits, files beside.
    """
    there = split_files(folder, settings)
    wanted = set(splits)
    if "dev" in wanted and "dev" not in there:
        wanted.add("train")
    if "train" in wanted:
        wanted.add("dev")  # they are each other's rest, or must not overlap
    files = {
        split: read_qrels(there[split], report) for split in SPLITS if split in wanted and split in there
    }
    texts, query_lines, sources = _read_queries(folder, files.values(), report)
    survey = _survey(folder, settings, files, texts, report)
    contents = Contents(texts, query_lines, files, survey, sources)
    _look_up(contents, report)
    _compare_splits(contents, settings, report)
    _compare_sources(contents, report)
    _compare_ids(contents, settings, report)
    for split, file in files.items():
        if next(file.relevant_queries(), None) is None:
            text = "no query with a relevant document; add lines with a score above 0"
            report(Issue(issues.EMPTY_SPLIT, file.path, None, text))
        elif split == "train" and "dev" not in there:
            _report_no_dev(contents, file, report)
    if whole:
        _report_missing_splits(folder, there, report)
        _report_unused(folder, contents, report)
    _report_copies(folder, contents, report)
    return contents


def read_qrels(path: Path, report: Report) -> QrelsFile:
    """Read one file of judgements; a pair that is judged twice keeps its first grade."""
    check_forms(path.parent, path.name.removesuffix(".gz").removesuffix(".zst"), report)
    file = QrelsFile(path)
    previous = ""
    for line, (query, document, grade) in read_judgements(path, report):
        if query == previous:
            query = previous  # one string for all lines of a query
        previous = query
        judged = file.grades.setdefault(query, {})
        if document not in judged:
            judged[document] = grade
        else:
            first = file.lines[query, document]
            kind = issues.SAME_JUDGEMENT if judged[document] == grade else issues.TWO_GRADES
            again = "judged alike" if kind is issues.SAME_JUDGEMENT else "a second score: they are judged"
            report(Issue(kind, path, line, f"{query!r} and {document!r}: {again} in line {first}; keep one"))
    for query, judged in file.grades.items():
        if not any(judged.values()):
            text = f"query {query!r} has no judgement above 0"
            report(Issue(issues.ONLY_ZERO, path, file.line_of(query), text))
    return file


def _open(folder: Path, name: str, report: Report) -> Path | None:
    path = find_file(folder, name)
    if path is None:
        report(Issue(issues.NO_FILE, folder / name, None, missing_file(folder, name)))
    else:
        check_forms(folder, name, report)
    return path


def _read_queries(
    folder: Path, files: Iterable[QrelsFile], report: Report
) -> tuple[dict[str, str], dict[str, int], dict[str, str]]:
    # Id -> the same id, so that every id is held as one string.
    judged = {query: query for file in files for query in file.grades}
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    sources: dict[str, str] = {}
    path = _open(folder, "queries.jsonl", report)
    if path is None:
        return texts, lines, sources
    for line, record in read_records(path, report, queries=True):
        query = judged.get(record.id)
        report_same_ids(path, lines, line, query or record.id, report)
        if query:
            texts.setdefault(query, record.text)
            source = (record.metadata or {}).get("source")
            if isinstance(source, str):
                sources.setdefault(query, source)
    if judged and not lines:  # documents alone can be searched
        report(Issue(issues.NO_LINE, path, None, "no usable line; write one JSON object a line"))
    return texts, lines, sources


def _survey(
    folder: Path,
    settings: DomainSettings,
    files: Mapping[str, QrelsFile],
    queries: Mapping[str, str],
    report: Report,
) -> Survey:
    wanted = {document for file in files.values() for judged in file.grades.values() for document in judged}
    path = _open(folder, "corpus.jsonl", report)
    if path is None:
        return Survey(missing=wanted)
    passages = settings.passages
    count: Callable[..., int] | None = None if passages is None else lambda one: len(cut(one, passages))
    return survey_corpus(path, wanted, queries, report, count)


def _look_up(contents: Contents, report: Report) -> None:
    for file in contents.files.values():
        missing = 0
        for query, document in ((query, one) for query, judged in file.grades.items() for one in judged):
            # Without any usable line the file itself was the issue.
            if contents.query_lines and query not in contents.query_lines:
                text = f"query {query!r} is not in queries.jsonl; add it or cut this line"
                report(Issue(issues.NO_QUERY, file.path, file.lines[query, document], text))
            if contents.survey.documents and document in contents.survey.missing:
                missing += 1
                text = f"document {document!r} is not in the corpus; add it or cut this line"
                report(Issue(issues.NO_DOCUMENT, file.path, file.lines[query, document], text))
        if missing > MISSING_SHARE * len(file):
            text = f"{missing} of {len(file)} judged documents are not in the corpus; mend the ids"
            report(Issue(issues.NO_DOCUMENTS, file.path, None, text))


def _compare_splits(contents: Contents, settings: DomainSettings, report: Report) -> None:
    leak: Kind = issues.LEAK if settings.equal_texts == "warn" else issues.LEAK_REFUSED
    asked_again = _asked_again(contents)
    seen: dict[str, tuple[str, str]] = {}
    for split, file in contents.files.items():
        counted = {other: 0 for other in contents.files if other != split}
        for query in file.grades:
            for other in counted:
                earlier = contents.files[other]
                if query in earlier.grades and SPLITS.index(other) < SPLITS.index(split):
                    place = f"qrels/{earlier.path.name}, line {earlier.line_of(query)}"
                    message = f"query {query!r} is in two splits, see {place}; keep it in one"
                    report(Issue(issues.TWO_SPLITS, file.path, file.line_of(query), message))
            if query not in asked_again:
                continue
            text = normal_text(contents.queries[query])
            first_split, first = seen.setdefault(text, (split, query))
            if first_split != split and first != query:
                counted[first_split] += 1
                message = f"query {query!r} asks what {first!r} of {first_split} asks"
                report(Issue(leak, file.path, file.line_of(query), message))
        contents.equal_queries |= {(split, other): count for other, count in counted.items() if count}


def _compare_sources(contents: Contents, report: Report) -> None:
    """Report dev and test queries whose relevant documents a train query was written about."""
    train = contents.files.get("train")
    if train is None:
        return
    written: dict[str, str] = {}
    for query, judged in train.grades.items():
        if (source := contents.source_of(query, judged)) is not None:
            written.setdefault(source, query)
    for split in ("dev", "test"):
        if split not in contents.files:
            continue
        file = contents.files[split]
        for query, judged in file.grades.items():
            shared = next((one for one, grade in judged.items() if grade > 0 and one in written), None)
            if shared is not None:
                text = (
                    f"query {query!r} asks for document {shared!r}, about which {written[shared]!r} of train "
                    "was written"
                )
                report(Issue(issues.SHARED_SOURCE, file.path, file.lines[query, shared], text))


def _asked_again(contents: Contents) -> set[str]:
    """Judged queries whose text may be that of another; by hash, so to be compared again."""
    hashes, asked = array("q"), list(contents.queries)
    for number, text in enumerate(contents.queries.values()):
        normal = normal_text(text)
        hashes.append(hash(normal) if normal else number)  # queries without text ask nothing
    return {asked[number] for number in repeated_positions(hashes) if contents.queries[asked[number]].strip()}


def _compare_ids(contents: Contents, settings: DomainSettings, report: Report) -> None:
    rule, survey = settings.ignore_identical_ids, contents.survey
    for file in contents.files.values():
        for query, judged in file.grades.items():
            same = query in survey.same_as_query
            if rule is not False and judged.get(query, 0) > 0 and (same or rule is True):
                text = f"document {query!r} has its query's id and is left out, though it is judged relevant"
                report(Issue(issues.SAME_ID_LEFT_OUT, file.path, file.lines[query, query], text))
            elif rule == "auto" and query in survey.same_id_only:
                text = f"document {query!r} has its query's id and another text; it stays in the results"
                report(Issue(issues.SAME_ID_KEPT, file.path, file.line_of(query), text))


def _report_no_dev(contents: Contents, train: QrelsFile, report: Report) -> None:
    """Dev is held out of train, where nothing that belongs together is parted."""
    if not contents.sources and _ask_apart(contents, train.relevant_queries(contents.survey.missing)):
        return  # groups of a million queries would take much memory
    grades = train.relevant(contents.survey.missing)
    if len(grades) < 2:
        found = f"{len(grades)} query with a relevant document"
    elif len(set(contents.groups(grades).values())) < 2:
        found = f"all {len(grades)} queries ask the same, or about one document"
    else:
        return
    text = (
        f"{found}, and no dev.tsv; dev is held out of train, which is too small for it and needs 2 or more "
        "of different texts and documents: add queries or write qrels/dev.tsv"
    )
    report(Issue(issues.NO_DEV, train.path, None, text))


def _ask_apart(contents: Contents, queries: Iterable[str]) -> bool:
    """Whether two of the queries have different texts."""
    texts = (normal_text(contents.queries[query]) for query in queries if query in contents.queries)
    first = next(texts, None)
    return any(text != first for text in texts)


def _report_missing_splits(folder: Path, there: Mapping[str, Path], report: Report) -> None:
    qrels, unread = folder / "qrels", unread_judgements(folder, there)
    if not there:
        found = "".join(f"; found {path.relative_to(folder).as_posix()}: " for path in unread[:1])
        advice = f"{found}move it to qrels/test.tsv or qrels/train.tsv" if found else import_hint(folder)
        report(
            Issue(issues.NO_SPLITS, qrels, None, f"no split, so nothing to train on or to measure{advice}")
        )
        return
    for path in unread:
        report(Issue(issues.UNREAD_SPLIT, path, None, "not read; no split has this name"))
    for split, path in there.items():
        name = path.name.partition(".")[0]
        if split == "dev" and name != "dev":
            report(Issue(issues.OTHER_NAME, path, None, f"read as {split}"))
    notes = {
        "train": "no train split; set expert: false, for no expert can be trained",
        "dev": "no dev split; a tenth of the train queries is held out for it"
        if "train" in there
        else "no dev split, and no train split to hold it out of",
        "test": "no test split; this collection cannot be evaluated",
    }
    for split in SPLITS:
        if split not in there:
            report(Issue(issues.NO_SPLIT, qrels / f"{split}.tsv", None, notes[split]))


def _report_unused(folder: Path, contents: Contents, report: Report) -> None:
    path = find_file(folder, "queries.jsonl")
    if path is None or not contents.files:
        return
    for query, line in contents.query_lines.items():
        if not any(query in file.grades for file in contents.files.values()):
            text = f"query {query!r} has no judgement; it is never used"
            report(Issue(issues.UNUSED, path, line, text))


def _report_copies(folder: Path, contents: Contents, report: Report) -> None:
    path = find_file(folder, "corpus.jsonl")
    for group in contents.survey.copies:
        first_line, first = group[0]
        for line, identifier in group[1:]:
            text = f"document {identifier!r} has the text of {first!r}, line {first_line}"
            report(Issue(issues.COPY, path or folder, line, text))
