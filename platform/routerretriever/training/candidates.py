"""What a reranker says of the base's best documents for each train query, on Ray Data, resumable by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from routerretriever.artifacts.step import Step, alike
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, open_corpus
from routerretriever.corpus.build import EncodeCorpus
from routerretriever.datasets.judgements import Judgements, judgements_key, judgements_step, load_judgements
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.hashing import content_hash
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.index.settings import IndexSettings
from routerretriever.runtime.shards import ShardWorker, make_parts
from routerretriever.training.own_documents import document_rows, own_rows
from routerretriever.training.rerankers import TRIAL, Candidates, open_reranker
from routerretriever.training.teacher_settings import AnyTeacherSettings, EndpointTeacher
from routerretriever.types import Rows, Scores


@dataclass(frozen=True)
class ScoredCandidates:
    """One query's documents: the base's best and the positives."""

    query_id: str
    rows: Rows
    """In the corpus, ascending: [D]."""
    scores: Scores
    """The reranker's, on its own scale: [D]."""
    base_low: float
    """The base's least score of its own best documents."""
    base_high: float


def candidates_step(corpus: EncodeCorpus, split: str, teacher: AnyTeacherSettings) -> ScoreCandidates:
    """The step that has a teacher score candidates of a split's queries."""
    collection = corpus.collection
    digest = content_hash(corpus.key, judgements_key(collection, split), teacher.identity())
    return ScoreCandidates(
        name=f"{split} of {collection.name}",
        key=f"candidates/{collection.name}-{split}-{digest}",
        inputs=(corpus, judgements_step(collection, split)),
        corpus=corpus,
        split=split,
        teacher=teacher,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCandidates(Step):
    """A teacher's scores of the candidates of a split's queries."""

    stage: ClassVar[str] = "teach"

    corpus: EncodeCorpus
    split: str
    teacher: AnyTeacherSettings

    @property
    def queries(self) -> int:
        """How many there are."""
        return len(self.corpus.collection.queries(self.split))

    def work(self) -> str:
        """Pairs."""
        return f"{self.queries} queries x {self.teacher.depth} documents, and positives"

    def asks_for(self) -> str:
        """Workers."""
        return self.teacher.pool.describe()

    @classmethod
    def build_all(cls, steps: Sequence[ScoreCandidates], store: ArtifactStore) -> None:
        """Score all of them, in one Ray Data run for each encoder and teacher.

        Raises:
            TeacherError: the teacher cannot score; no worker was started.
            WorkerFailed: it stopped; what was scored before is kept.
        """
        for (encoder, teacher), own in alike(steps, lambda step: (step.corpus.encoder, step.teacher)):
            if isinstance(teacher, EndpointTeacher):
                # A wrong url is one line at once; a cross-encoder was tried when the run began.
                open_reranker(teacher).score([TRIAL])
            for step in own:
                store.begin(step.key, {"shard_size": teacher.shard_size})
            make_parts(
                {step.key: step.rows() for step in own},
                {step.key: step.manifest() for step in own},
                _CandidateScorer,
                {"encoder": encoder, "teacher": teacher, "store": store},
                teacher.pool,
                store,
                "scoring candidates",
            )

    def rows(self) -> list[dict[str, Any]]:
        """The work in shards of queries, one flat row each."""
        queries, size = self.queries, self.teacher.shard_size
        return [
            {"key": self.key, "part": f"part-{part:05d}.parquet", "judgements": self.inputs[1].key,
             "corpus": self.corpus.key, "start": start, "stop": min(start + size, queries)}
            for part, start in enumerate(range(0, queries, size))
        ]  # fmt: skip

    def manifest(self) -> dict[str, Any]:
        """What the artifact is committed with."""
        return {"kind": "candidates", "collection": self.corpus.collection.name, "split": self.split,
                "corpus": self.corpus.key, "queries": self.queries,
                "teacher": self.teacher.model_dump(mode="json")}  # fmt: skip


def read_candidates(store: ArtifactStore, key: str) -> Iterator[ScoredCandidates]:
    """What a finished step has scored."""
    for path in sorted(store.fetch(key).glob("part-*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            yield ScoredCandidates(
                row["query_id"],
                np.array(row["rows"], dtype=np.int64),
                np.array(row["scores"], dtype=np.float32),
                row["base_low"],
                row["base_high"],
            )


class _CandidateScorer(ShardWorker):
    """A Ray Data actor: queries of a shard in, scored candidates in storage."""

    def __init__(self, encoder: EncoderSettings, teacher: AnyTeacherSettings, store: ArtifactStore) -> None:
        from routerretriever.adapters.tower import load_tower

        # As in training, where the base is the teacher of all other documents.
        self._base = load_tower(encoder.model_copy(update={"dtype": "fp32"}))
        self._reranker = open_reranker(teacher)
        self._depth = teacher.depth
        self._store = store
        self._open = lru_cache(maxsize=2)(self._open_collection)

    def work(self, row: dict[str, Any]) -> None:
        """Score the candidates of queries ``start`` to ``stop`` of a split."""
        judgements, corpus, index = self._open(row["judgements"], row["corpus"])
        chunk = judgements.subset(list(judgements.queries)[int(row["start"]) : int(row["stop"])])
        vectors = self._base.encode_queries(list(chunk.queries.values()))
        owns = [own_rows(query_id, chunk, corpus) for query_id in chunk.queries]  # none of the results
        _, found = index.search(vectors, self._depth + max(1, *map(len, owns)))
        listed: list[Rows] = []
        base: list[tuple[float, float]] = []
        for query_id, vector, best, own in zip(chunk.queries, vectors, found, owns, strict=True):
            best = best[(best >= 0) & ~np.isin(best, own)][: self._depth]
            scores = corpus.lookup(best) @ vector
            base.append((float(scores.min()), float(scores.max())))
            listed.append(np.union1d(best, _positives(query_id, chunk, corpus)).astype(np.int64))
        questions = [
            Candidates(query, [corpus.document(int(each)).content for each in rows])
            for query, rows in zip(chunk.queries.values(), listed, strict=True)
        ]
        table = arrow.table(
            {
                "query_id": list(chunk.queries),
                "rows": arrow.array([rows.tolist() for rows in listed], arrow.list_(arrow.int64())),
                "scores": arrow.array(
                    [scores.tolist() for scores in self._reranker.score(questions)],
                    arrow.list_(arrow.float32()),
                ),
                "base_low": [low for low, _ in base],
                "base_high": [high for _, high in base],
            }
        )
        self._store.put(row["key"], row["part"], partial(parquet.write_table, table))

    def _open_collection(
        self, judgements_key: str, corpus_key: str
    ) -> tuple[Judgements, Corpus, SearchIndex]:
        corpus = open_corpus(self._store, corpus_key)
        return (
            load_judgements(self._store, judgements_key),
            corpus,
            open_index(corpus, IndexSettings(), self._store),
        )


def _positives(query_id: str, judgements: Judgements, corpus: Corpus) -> list[int]:
    relevant = [document for document, grade in judgements.qrels[query_id].items() if grade > 0]
    # Where documents are cut, train judges passages and dev judges documents.
    rows = [
        [corpus.rows[one]] if one in corpus.rows else document_rows(one, judgements.passages, corpus).tolist()
        for one in relevant
    ]
    return [row for own in rows for row in own]
