"""What a trainer sees of a domain: tokenised train queries, the rows of their positives, mined negatives."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.judgements import Judgements
from routerretriever.encoder.encoder import Encoder
from routerretriever.errors import DatasetError
from routerretriever.index.dense import SearchIndex
from routerretriever.training.objective import draw_targets
from routerretriever.training.own_documents import own_rows
from routerretriever.training.settings import TrainingSettings
from routerretriever.types import Rows, Vectors

_MINED_AT_ONCE = 1024
"""Queries whose negatives are searched together, about as deep as each of them needs."""


@dataclass(frozen=True)
class Batch:
    """Queries of one step, with the documents that are candidates for them."""

    tokens: list[list[int]]
    target_rows: Rows
    positive_rows: list[Rows]
    candidate_rows: Rows | None
    """None means every document of the corpus."""
    base_Bd: Vectors | None = None
    """The queries by the bare base, for the teacher."""
    texts: list[str] = field(default_factory=list)
    """The queries' own words."""
    query_ids: list[str] = field(default_factory=list)
    left_out_rows: list[Rows] = field(default_factory=list)
    """What is no candidate for a query: the document of its own id, where results leave it out."""


class Examples:
    """A domain's train queries; batches depend on seed and step alone, so that a resumed run repeats them."""

    def __init__(
        self, train: Judgements, corpus: Corpus, encoder: Encoder, settings: TrainingSettings, objective: str
    ) -> None:
        """Tokenise the queries, and find their documents in the corpus.

        Raises:
            DatasetError: a query is judged for a document that the corpus lacks.
        """
        self.settings = settings
        self._objective = objective
        self._documents = len(corpus)
        self._ids = list(train.queries)
        self._texts = list(train.queries.values())
        self._tokens = encoder.tokenize_queries(list(train.queries.values()), settings.query_max_length)
        self._positives: list[Rows] = []
        self._left_out: list[Rows] = []
        self._grades: list[NDArray[np.int64]] = []
        for query_id in self._ids:
            judged = {doc: grade for doc, grade in train.qrels[query_id].items() if grade > 0}
            unknown = [doc for doc in judged if doc not in corpus.rows]
            if unknown:
                raise DatasetError(
                    f"query {query_id!r} is judged for document {unknown[0]!r}, which the corpus lacks; "
                    "`routerretriever datasets check` lists all defects"
                )
            rows = np.array([corpus.rows[doc] for doc in judged], dtype=np.int64)
            order = np.argsort(rows)
            self._positives.append(rows[order])
            self._left_out.append(np.setdiff1d(own_rows(query_id, train, corpus), rows))
            self._grades.append(np.array(list(judged.values()), dtype=np.int64)[order])
        self.hard: list[Rows] = []
        self._base: Vectors | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def mine(self, index: SearchIndex, encoder: Encoder, train: Judgements) -> None:
        """Find each query's hard negatives: what the bare base ranks high and nobody judged relevant.

        The document of the query's own id is none where results leave it out.
        """
        wanted = self.settings.hard_negatives
        vectors = encoder.encode_queries(list(train.queries.values()))
        others = [np.concatenate(rows) for rows in zip(self._positives, self._left_out, strict=True)]
        counts = np.array([len(rows) for rows in others])
        self.hard = [np.empty(0, dtype=np.int64)] * len(others)
        # One query with thousands of positives must be searched as deep; beside it only its like are.
        order = np.argsort(counts, kind="stable")
        for some in (order[start : start + _MINED_AT_ONCE] for start in range(0, len(order), _MINED_AT_ONCE)):
            _, found = index.search(vectors[some], wanted + int(counts[some].max()))
            for query, rows in zip(some.tolist(), found, strict=True):
                self.hard[query] = rows[(rows >= 0) & ~np.isin(rows, others[query])][:wanted]

    def embed_by_base(self, encoder: Encoder, train: Judgements) -> None:
        """Embed the queries by the bare base, once, for the teacher."""
        self._base = encoder.encode_queries(list(train.queries.values()))

    def steps_per_epoch(self) -> int:
        """Optimiser steps that show every query once."""
        return self.settings.steps_per_epoch(len(self))

    def batch(self, step: int, rank: int, workers: int, copy: int = 0) -> Batch:
        """One worker's share of the batch of a step; steps go on without end.

        Args:
            step: of the optimiser.
            rank: the worker's number.
            workers: how many share the batch.
            copy: of a soup; each has an order and samples of its own.
        """
        epoch, position = divmod(step, self.steps_per_epoch())
        own = [copy] if copy else []  # a single copy's numbers are as they were before there were soups
        order = np.random.default_rng([self.settings.seed, 1, epoch, *own]).permutation(len(self))
        size = self.settings.batch_size
        # A last batch with fewer queries than workers repeats them.
        members = np.resize(order[position * size :], max(workers, min(size, len(order) - position * size)))
        random = np.random.default_rng([self.settings.seed, 2, step, rank, *own])
        return self._batch(members[rank::workers], random)

    def _batch(self, members: NDArray[np.int64], random: np.random.Generator) -> Batch:
        positives = [self._positives[member] for member in members]
        targets = draw_targets(positives, [self._grades[member] for member in members], random)
        candidates: Rows | None = None
        if self._objective != "corpus":
            drawn = [targets]
            if self._objective == "sampled":
                drawn += [self.hard[member] for member in members if self.hard]  # none are mined of 0
                drawn.append(random.integers(0, self._documents, self.settings.random_negatives))
            candidates = np.unique(np.concatenate(drawn))
        base = None if self._base is None else self._base[members]
        tokens = [self._tokens[member] for member in members]
        texts = [self._texts[member] for member in members]
        ids = [self._ids[member] for member in members]
        left_out = [self._left_out[member] for member in members]
        return Batch(tokens, targets, positives, candidates, base, texts, ids, left_out)
