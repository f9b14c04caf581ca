"""Write a BEIR folder row by row; what comes without an id gets one, and equal texts become one record."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import IO, Any

from routerretriever.datasets.reading import mend
from routerretriever.errors import DatasetError

_SEPARATOR = re.compile(r"[\t\r\n]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)
_KINDS = {bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
"""What values of metadata are called; all others are written as text."""


class FolderWriter:
    """A BEIR folder in the making. Memory: some bytes for every record and every judgement."""

    def __init__(self, folder: Path) -> None:
        (folder / "qrels").mkdir(parents=True)
        self.folder = folder
        self.counts = {"documents": 0, "queries": 0, "merged": 0, "without_text": 0}
        self.judgements: dict[str, int] = {}
        self.metadata: dict[str, set[str]] = {}
        """Field of the documents' metadata -> the kinds of its values."""
        self._corpus = (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n")
        self._queries = (folder / "queries.jsonl").open("w", encoding="utf-8", newline="\n")
        self._qrels: dict[str, IO[str]] = {}
        self._made: dict[bytes, bytes] = {}
        """Of the id of every record that is written -> of its content."""
        self._judged: dict[bytes, int] = {}
        self._raised: dict[str, dict[tuple[str, str], int]] = {}
        """Split -> pairs that came again with a higher grade."""

    def document(
        self,
        text: str,
        title: str = "",
        identifier: str | None = None,
        metadata: dict[str, Any] | None = None,
        place: str = "",
    ) -> str:
        """Add a document; returns its id. The same one is written once, however often it comes.

        Raises:
            DatasetError: its id came before with another text; the message starts with ``place``.
        """
        record: dict[str, Any] = {"title": title, "text": text}
        if metadata:
            record["metadata"] = metadata
            for name, value in metadata.items():
                if value is not None:
                    self.metadata.setdefault(name, set()).add(_KINDS.get(type(value), "text"))
        return self._record(self._corpus, "documents", "d", record, identifier, f"{title}\0{text}", place)

    def query(
        self,
        text: str,
        identifier: str | None = None,
        metadata: dict[str, Any] | None = None,
        place: str = "",
    ) -> str:
        """Add a query; returns its id.

        Raises:
            DatasetError: its id came before with another text.
        """
        record: dict[str, Any] = {"text": text}
        if metadata:
            record["metadata"] = metadata
        return self._record(self._queries, "queries", "q", record, identifier, text, place)

    def judge(self, split: str, query: str, document: str, grade: int, place: str) -> None:
        """Add a judgement; of several for a pair the highest grade counts.

        Raises:
            DatasetError: an id cannot be written into a tab-separated file.
        """
        for identifier in (query, document):
            if not identifier or _SEPARATOR.search(identifier):
                raise DatasetError(f"{place}: the id {identifier!r} is empty or holds a tab; give another")
        pair = _digest(f"{split}\0{query}\0{document}")
        if pair in self._judged:
            if grade > self._judged[pair]:
                self._judged[pair] = grade
                self._raised.setdefault(split, {})[query, document] = grade
            return
        self._judged[pair] = grade
        if split not in self._qrels:
            path = self.folder / "qrels" / f"{split}.tsv"
            self._qrels[split] = path.open("w", encoding="utf-8", newline="\n")
            self._qrels[split].write("query-id\tcorpus-id\tscore\n")
        self._qrels[split].write(f"{query}\t{document}\t{grade}\n")
        self.judgements[split] = self.judgements.get(split, 0) + 1

    def close(self) -> None:
        """Finish all files."""
        for stream in (self._corpus, self._queries, *self._qrels.values()):
            stream.close()
        for split, raised in self._raised.items():
            self._rewrite(self.folder / "qrels" / f"{split}.tsv", raised)

    def _rewrite(self, path: Path, raised: dict[tuple[str, str], int]) -> None:
        new = path.with_suffix(".new")
        with (
            path.open(encoding="utf-8", newline="\n") as old,
            new.open("w", encoding="utf-8", newline="\n") as out,
        ):
            for line in old:
                query, document, grade = line.rstrip("\n").split("\t")
                out.write(f"{query}\t{document}\t{raised.get((query, document), grade)}\n")
        new.replace(path)

    def _record(
        self,
        stream: IO[str],
        what: str,
        letter: str,
        record: dict[str, Any],
        identifier: str | None,
        key: str,
        place: str,
    ) -> str:
        content = _digest(f"{letter}\0{key}")
        own = _digest(f"{letter}-id\0{identifier}") if identifier else content
        identifier = identifier or f"{letter}{content.hex()}"
        earlier = self._made.setdefault(own, content)
        if earlier is not content:
            if earlier != content:
                raise DatasetError(
                    f"{place}: the id {identifier[:60]!r} came before with another text; give each an "
                    "id of its own, or import the folders of several collections one by one"
                )
            self.counts["merged"] += 1
            return identifier
        stream.write(mend(_ENCODER.encode({"_id": identifier, **record})) + "\n")
        self.counts[what] += 1
        return identifier


def _digest(text: str) -> bytes:
    # 80 bits: among a thousand million texts the chance of one collision is below one in a million.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).digest()
