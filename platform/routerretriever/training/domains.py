"""What one domain brings to a training run: examples, candidate documents, and dev queries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from routerretriever.adapters.tower import QueryTower
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import Corpus, open_corpus
from routerretriever.datasets.judgements import Judgements, load_judgements
from routerretriever.datasets.passages import parent_of
from routerretriever.index.dense import SearchIndex, open_index
from routerretriever.index.settings import IndexSettings
from routerretriever.measures import measure
from routerretriever.training.examples import Batch, Examples
from routerretriever.training.job import TrainingJob, TrainingPart
from routerretriever.training.settings import TrainingSettings
from routerretriever.training.teacher import Teacher, open_teacher
from routerretriever.types import Rows, Values

ADAPTER = "expert"
"""What the adapter in training is called within its trainer."""


def open_domain(
    part: TrainingPart, job: TrainingJob, encoder: QueryTower, store: ArtifactStore, rank: int
) -> TrainingDomain:
    """Open one domain of a job; ``rank`` is the worker's number, and the first alone evaluates on dev."""
    kind = TrainingDomain if job.both_towers is None else OnlineDocuments
    return kind(part, job, encoder, store, rank)


def resolve_objective(settings: TrainingSettings, documents: int) -> str:
    """What ``auto`` means for a collection of this size."""
    if settings.objective != "auto":
        return settings.objective
    return "corpus" if documents <= settings.corpus_objective_limit else "sampled"


class TrainingDomain:
    """A domain whose documents are frozen, and looked up."""

    def __init__(
        self, part: TrainingPart, job: TrainingJob, encoder: QueryTower, store: ArtifactStore, rank: int
    ) -> None:
        settings = job.training
        self.corpus = open_corpus(store, part.corpus_key)
        objective = self.objective(settings)
        train_set = _sample(load_judgements(store, part.train_key), job.queries_per_domain)
        self.dev = _sample(load_judgements(store, part.dev_key), settings.dev_queries)
        self.examples = Examples(train_set, self.corpus, encoder, settings, objective)
        self._modules = part.modules
        needs_index = rank == 0 or objective == "sampled"
        self.index = open_index(self.corpus, IndexSettings(), store) if needs_index else None
        if objective == "sampled" and settings.hard_negatives:
            assert self.index is not None
            self.examples.mine(self.index, encoder, train_set)
        self._teacher: Teacher | None = None
        if settings.needs_teacher:
            self.examples.embed_by_base(encoder, train_set)
            self._teacher = open_teacher(self.corpus, part, settings, store, encoder)
        self._documents: Tensor | None = None
        if objective == "corpus":
            self._documents = torch.from_numpy(self.corpus.matrix()).to(encoder.device)
            self._every_row = np.arange(len(self.corpus))

    def objective(self, settings: TrainingSettings) -> str:
        """What the recipe's objective means for this domain."""
        return resolve_objective(settings, len(self.corpus))

    def enter(self, encoder: QueryTower) -> None:
        """Make the tower ready for this domain's queries."""
        if self._modules:
            encoder.restrict(ADAPTER, self._modules)

    def candidates(self, rows: Rows | None, encoder: QueryTower, tower: nn.Module) -> tuple[Rows, Tensor]:
        """Row numbers [C] and vectors [C, d] of a batch's candidate documents; None means all."""
        if rows is None:
            assert self._documents is not None
            return self._every_row, self._documents
        return rows, torch.from_numpy(self.corpus.lookup(rows)).to(encoder.device)

    def teacher_scores(self, batch: Batch, rows: Rows, candidate_Cd: Tensor) -> Tensor | None:
        """The teacher's scores of a batch's candidates [B, C]; None if the loss has no use for them."""
        if self._teacher is None:
            return None
        assert batch.base_Bd is not None
        base_Bd = torch.from_numpy(batch.base_Bd).to(candidate_Cd.device)
        return self._teacher.scores(base_Bd @ candidate_Cd.detach().T, batch, rows)

    def dev_ndcg(self, encoder: QueryTower, adapter: str) -> float:
        """Mean nDCG@10 of an adapter on the dev queries."""
        return float(self.dev_values(encoder, adapter).mean())

    def dev_values(self, encoder: QueryTower, adapter: str) -> Values:
        """An adapter's nDCG@10 on each of the dev queries [Q]."""
        index = self.dev_index(encoder, adapter)
        self.enter(encoder)
        vectors = encoder.encode_queries(list(self.dev.queries.values()), adapter)
        run = index.run(list(self.dev.queries), vectors, 10, self.dev.own_kept, self.dev.passages)
        return measure(self.dev.qrels, run, list(self.dev.qrels)).ndcg_at_10

    def dev_index(self, encoder: QueryTower, adapter: str) -> SearchIndex:
        """What dev queries search."""
        assert self.index is not None
        return self.index


class OnlineDocuments(TrainingDomain):
    """A domain whose documents are encoded in every step, since the adapter in training changes them too."""

    def __init__(
        self, part: TrainingPart, job: TrainingJob, encoder: QueryTower, store: ArtifactStore, rank: int
    ) -> None:
        super().__init__(part, job, encoder, store, rank)
        assert job.both_towers is not None
        self._dev_rows = _rows_to_search(self.corpus, self.dev, job.both_towers)

    def objective(self, settings: TrainingSettings) -> str:
        """Negatives from the base's own results: all documents would be too many to encode."""
        return "sampled"

    def candidates(self, rows: Rows | None, encoder: QueryTower, tower: nn.Module) -> tuple[Rows, Tensor]:
        """Row numbers [C] and vectors [C, d] of a batch's candidate documents, with gradients."""
        assert rows is not None
        tokens = encoder.tokenize_documents(_texts(self.corpus, rows))
        return rows, encoder.embed_with_gradients(tokens, tower)

    def dev_index(self, encoder: QueryTower, adapter: str) -> SearchIndex:
        """Some of the documents, the relevant ones among them, encoded by the adapter as it is now."""
        vectors = encoder.encode_documents(_texts(self.corpus, self._dev_rows), adapter)
        return SearchIndex.flat(
            list(vectors), [self.corpus.ids[row] for row in self._dev_rows], encoder.dimension
        )


def _rows_to_search(corpus: Corpus, dev: Judgements, wanted: int) -> Rows:
    """Rows of the documents that are relevant for dev queries, filled up to a number with others."""
    judged = {doc for grades in dev.qrels.values() for doc, grade in grades.items() if grade > 0}
    relevant = {
        row for doc, row in corpus.rows.items() if (parent_of(doc) if dev.passages else doc) in judged
    }
    others = np.random.default_rng(0).permutation(len(corpus))
    filling = [row for row in others.tolist() if row not in relevant][: max(0, wanted - len(relevant))]
    return np.array(sorted(relevant) + filling, dtype=np.int64)


def _texts(corpus: Corpus, rows: Rows) -> list[str]:
    ids = [corpus.ids[row] for row in rows]
    documents = corpus.documents(ids)
    return [documents[document_id].content for document_id in ids]


def _sample(judgements: Judgements, limit: int | None) -> Judgements:
    if limit is None or len(judgements.queries) <= limit:
        return judgements
    chosen = np.random.default_rng(0).choice(sorted(judgements.queries), size=limit, replace=False)
    return judgements.subset(chosen.tolist())
