"""BM25 over the words of documents that come and go.

    score(q, d) = sum over words w of q: idf(w) * tf / (tf + k1 * (1 - b + b * length(d) / mean length))
    idf(w)      = ln(1 + (N - df + 0.5) / (df + 0.5))

This is BM25 as Lucene computes it (Robertson and Zaragoza, 2009), without the rounding of lengths. N, df and
the mean length are those of the documents that are present, at every moment: a document's score does not
depend on whether it came with the corpus or later, nor on documents that were deleted.

Rows: those of the corpus first, then one for each document that was appended. Knows nothing of ids.

A search counts rare words first. Once the other words together cannot lift a document that has none of the
rare ones into the answer, only documents near its edge are scored by all words (MaxScore: Turtle and Flood,
"Query evaluation: strategies and optimizations", 1995). The answer is that of scoring all documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routerretriever.artifacts.store import ArtifactStore, build_keys
from routerretriever.corpus.artifact import Corpus, open_array
from routerretriever.hashing import content_hash
from routerretriever.index.base import Entry, Hits, Mask, Queries, best_hits
from routerretriever.index.settings import LexicalSettings
from routerretriever.index.words import Analyzer, words_version
from routerretriever.types import Rows, Scores

_ARRAYS = ("starts", "rows", "counts", "lengths")
_WORDS_FILE = "words.txt"
POSTINGS_FILES = (*(f"{name}.npy" for name in _ARRAYS), _WORDS_FILE)
_FEW = 20_000
"""Entries of postings that are counted sooner than it is found out whether they need be."""
_ROUNDING = 1e-5
"""Of a score: more than sums of the same numbers in another order differ by."""


@dataclass(frozen=True)
class Postings:
    """Which documents each word is in, and how often.

    Word w's documents are ``rows[starts[w]:starts[w + 1]]``, ascending; ``counts`` lies beside ``rows``.
    """

    words: dict[str, int]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.float32]
    lengths: NDArray[np.float32]
    """Words of each document [N]."""

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]]) -> Postings:
        """Count the words of documents."""
        words: dict[str, int] = {}
        word_of: list[NDArray[np.int32]] = []
        counts: list[NDArray[np.float32]] = []
        lengths: list[int] = []
        for text in texts:
            counted = Counter(text)
            numbers = [words.setdefault(word, len(words)) for word in counted]
            word_of.append(np.array(numbers, dtype=np.int32))
            counts.append(np.fromiter(counted.values(), dtype=np.float32, count=len(counted)))
            lengths.append(len(text))
        sizes = [len(each) for each in word_of]
        rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        all_words = np.concatenate(word_of) if word_of else np.empty(0, np.int32)
        all_counts = np.concatenate(counts) if counts else np.empty(0, np.float32)
        order = np.argsort(all_words, kind="stable")
        starts = np.zeros(len(words) + 1, dtype=np.int64)
        np.cumsum(np.bincount(all_words, minlength=len(words)), out=starts[1:])
        return cls(words, starts, rows[order], all_counts[order], np.array(lengths, dtype=np.float32))

    def of(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows and counts of a word, empty where nobody has it."""
        number = self.words.get(word)
        if number is None:
            return self.rows[:0], self.counts[:0]
        part = slice(self.starts[number], self.starts[number + 1])
        return self.rows[part], self.counts[part]

    def save(self, name: str, path: Path) -> None:
        """Write one of the files: an array, or the words one a line."""
        if name == _WORDS_FILE:
            path.write_text("\n".join(self.words), encoding="utf-8")
        else:
            with path.open("wb") as file:
                np.save(file, getattr(self, name.removesuffix(".npy")))

    @classmethod
    def load(cls, folder: Path) -> Postings:
        """Read the files that ``save`` wrote; the arrays stay on disk until they are needed."""
        text = (folder / _WORDS_FILE).read_text(encoding="utf-8")
        words = {word: number for number, word in enumerate(text.split("\n"))} if text else {}
        return cls(words, *(open_array(folder / f"{name}.npy") for name in _ARRAYS))


@dataclass(frozen=True)
class _Word:
    """A word of a query, and who has it."""

    rows: NDArray[np.int32]
    counts: NDArray[np.float32]
    most: float
    """What it adds to a score at most."""


class LexicalIndex:
    """BM25 over a corpus's postings and the documents appended since.

    Appended documents lie in parts of their own. Each is more than twice as long as the next, so that there
    are few of them and each document is counted a few times only.
    """

    def __init__(self, base: Postings, settings: LexicalSettings) -> None:
        self._settings = settings
        self._analyze = Analyzer(settings)
        self._base = base
        self._parts = [base]
        self._tail_words: list[list[str]] = []
        self._present = np.ones(len(base.lengths), dtype=bool)
        self._count()

    def __len__(self) -> int:
        return len(self._present)

    def append(self, documents: Sequence[Entry]) -> None:
        """Documents become the next rows."""
        if not documents:
            return
        self._tail_words += [self._analyze(entry.document.content) for entry in documents]
        new = len(documents)
        while len(self._parts) > 1 and len(self._parts[-1].lengths) <= 2 * new:
            new += len(self._parts.pop().lengths)
        self._parts.append(Postings.build(self._tail_words[-new:]))
        self._present = np.concatenate([self._present, np.ones(len(documents), dtype=bool)])
        self._count()

    def delete(self, rows: Rows) -> None:
        """Documents are gone; their rows stay."""
        self._present[rows] = False
        self._count()

    def truncate(self, rows: int) -> None:
        """Forget the rows from this number on; only appended ones can be."""
        self._tail_words = self._tail_words[: rows - len(self._base.lengths)]
        self._parts = [self._base, *([Postings.build(self._tail_words)] if self._tail_words else [])]
        self._present = self._present[:rows]
        self._count()

    def _count(self) -> None:
        """What BM25 needs to know of all documents that are present."""
        self._firsts = np.cumsum([0, *(len(part.lengths) for part in self._parts)])
        self._lengths = np.concatenate([part.lengths for part in self._parts])
        self._documents = int(self._present.sum())
        total = float(self._lengths[self._present].sum(dtype=np.float64))
        self._mean_length = max(total / max(self._documents, 1), 1e-9)
        self._none_gone = self._documents == len(self._present)
        k1, b = self._settings.k1, self._settings.b
        self._norms: Scores = (k1 * (1 - b + b * self._lengths / self._mean_length)).astype(np.float32)
        self._last: tuple[str, list[_Word]] | None = None

    def search(self, queries: Queries, depth: int, allowed: Mask | None = None) -> list[Hits]:
        """The best documents that share a word with each query."""
        found = []
        for text in queries.texts:
            words = self._words(text)
            if sum(len(word.rows) for word in words) > _FEW:
                rows = self._contenders(words, depth, allowed)
                found.append(best_hits(rows, self._scores(words, rows), depth))
            else:
                scores = self.all_scores(text)
                rows = np.flatnonzero(scores if allowed is None else scores * allowed)
                found.append(best_hits(rows, scores[rows], depth))
        return found

    def score(self, queries: Queries, rows: Sequence[Rows]) -> list[Scores]:
        """Scores of given documents for each query; 0 where no word is shared."""
        return [
            self._scores(self._words(text), wanted) for text, wanted in zip(queries.texts, rows, strict=True)
        ]

    def all_scores(self, text: str) -> Scores:
        """BM25 of every row [N]; 0 for those that are gone."""
        scores = np.zeros(len(self._present), dtype=np.float32)
        for word in self._words(text):
            scores[word.rows] += self._gains(word)
        return scores

    def _words(self, text: str) -> list[_Word]:
        """The words of a query that somebody has; the last query's are kept."""
        if self._last is None or self._last[0] != text:
            words = []
            for word, repeated in Counter(self._analyze(text)).items():
                rows, counts = self._having(word)
                if not self._none_gone:
                    here = self._present[rows]
                    rows, counts = rows[here], counts[here]
                if len(rows):
                    idf = np.log1p((self._documents - len(rows) + 0.5) / (len(rows) + 0.5))
                    words.append(_Word(rows, counts, float(repeated * idf)))
            self._last = text, words
        return self._last[1]

    def _gains(self, word: _Word, part: slice | NDArray[np.int64] = slice(None)) -> Scores:
        """What a word adds to the scores of those who have it, or of some of them."""
        counts = word.counts[part]
        gains = np.float32(word.most) * (counts / (counts + self._norms[word.rows[part]]))
        return gains.astype(np.float32, copy=False)

    def _contenders(self, words: Sequence[_Word], depth: int, allowed: Mask | None) -> Rows:
        """Rows among which the best are, and few others."""
        ordered = sorted(words, key=lambda word: -word.most)
        rounding = _ROUNDING * sum(word.most for word in ordered)
        counted = np.zeros(len(self._present), dtype=np.float32)
        rows = np.empty(0, dtype=np.int64)
        for place, word in enumerate(ordered, start=1):
            counted[word.rows] += self._gains(word)
            rest = ordered[place:]
            if rest and len(rest[0].rows) < _FEW:
                continue
            rows = np.flatnonzero(counted if allowed is None else counted * allowed)
            if len(rows) <= depth:
                continue
            scores = counted[rows]
            edge = float(np.partition(scores, -depth)[-depth])
            missing = sum(word.most for word in rest) + rounding
            if missing < edge or not rest:
                return rows[scores >= edge - missing]
        return rows

    def _scores(self, words: Sequence[_Word], rows: Rows) -> Scores:
        """Scores of some rows, as ``all_scores`` has them."""
        scores = np.zeros(len(rows), dtype=np.float32)
        sought = rows.astype(np.int32)  # as the postings are, which would be copied otherwise
        for word in words:
            places = np.searchsorted(word.rows, sought)
            places[places == len(word.rows)] = 0
            having = word.rows[places] == sought
            scores[having] += self._gains(word, places[having])
        return scores

    def _having(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Rows and counts of a word in all parts, gone ones among them."""
        found = [
            (rows + first if first else rows, counts)
            for first, part in zip(self._firsts.tolist(), self._parts, strict=False)
            for rows, counts in [part.of(word)]
            if len(rows)
        ]
        if len(found) == 1:
            return found[0]
        rows, counts = zip(*(found or [self._base.of(word)]), strict=True)
        return np.concatenate(rows), np.concatenate(counts)


def open_postings(corpus: Corpus, settings: LexicalSettings, store: ArtifactStore) -> Postings:
    """The postings of a corpus: an artifact, keyed by the corpus and by what cuts its words."""
    if not len(corpus):
        return Postings.build([])
    version = words_version(settings.language)
    digest = content_hash(settings.model_dump(include={"language", "stop_words"}), version)
    key = f"indexes/{corpus.key.split('/')[-1]}-words-{digest}"

    def build(_: list[str]) -> None:
        analyze = Analyzer(settings)
        built = Postings.build(analyze(document.content) for document in corpus.stream())
        for name in POSTINGS_FILES:
            store.put(key, name, partial(built.save, name))
        store.commit(key, {"kind": "words", "corpus": corpus.key, "settings": settings.model_dump()})

    build_keys(store, [key], build)
    return Postings.load(store.fetch(key))
