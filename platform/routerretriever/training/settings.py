"""How one adapter is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from routerretriever.adapters.kinds import AnyAdapterSettings, kind_named
from routerretriever.adapters.lora import LoraSettings
from routerretriever.settings import Fraction, Labels, ResourceAmount, Settings, TextLength
from routerretriever.training.teacher_settings import AnyTeacherSettings

LearningRate = Annotated[float, Field(gt=0, le=10)]
"""AdamW moves a weight by about so much in a step, and weights are well below 1."""
_EVALUATIONS = 20
"""Of a short run, so that the best of its steps is among them."""


class TrainingSettings(Settings):
    """One expert's training run; the same for every domain of a recipe.

    ``objective``:
      * ``corpus``: softmax over every document of the collection (documents are frozen, so this costs one
        matrix product);
      * ``sampled``: the batch's positives, ``hard_negatives`` per query from the base encoder's own
        results, and ``random_negatives`` shared by the batch;
      * ``in_batch``: the batch's other positives only (the paper's);
      * ``auto``: ``corpus`` up to ``corpus_objective_limit`` documents, ``sampled`` beyond.
    """

    objective: Literal["auto", "corpus", "sampled", "in_batch"] = "auto"
    """Which documents a query's positives compete with."""
    corpus_objective_limit: PositiveInt = 200_000
    """Documents up to which ``auto`` takes the ``corpus`` objective."""
    hard_negatives: NonNegativeInt = 16
    """Sampled: negatives of each query, from the base encoder's own results."""
    random_negatives: NonNegativeInt = 1024
    """Sampled: random negatives, shared by the batch."""
    temperature: PositiveFloat = 0.05
    """Similarities are divided by this before the softmax, where unrelated texts are as far apart as by
    all-MiniLM-L6-v2; by less where they are closer, and by more where dot products are larger."""
    learning_rate: LearningRate = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""
    schedule: Literal["constant", "linear"] = "linear"
    """Learning rate after the warmup."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    batch_size: PositiveInt = 32
    """Queries per optimiser step, over all workers of the expert."""
    max_steps: PositiveInt | None = 1000
    """Optimiser steps at most."""
    max_epochs: PositiveInt | None = 20
    """Passes over the train queries at most. An expert's run that this makes shorter than ``max_steps`` is
    evaluated after every twentieth of it, or more often."""
    evaluate_every: PositiveInt = 20
    """Steps between two evaluations on dev."""
    patience: PositiveInt = 10
    """Evaluations on dev without a new best nDCG@10 before training stops."""
    dev_queries: PositiveInt = 400
    """At most this many dev queries are used for early stopping (a fixed sample): an evaluation should cost
    less than the steps between two of them."""
    max_gradient_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass; weights stay in fp32."""
    query_max_length: TextLength = 64
    """Tokens of a training query; longer ones are cut, to bound memory."""
    distillation: NonNegativeFloat = 1.0
    """Weight of the divergence KL(teacher || expert) over the candidate documents, beside the cross-entropy:
    what nobody judged keeps the order that the teacher gives it. 0 leaves it out."""
    distillation_queries: PositiveInt = 1000
    """A domain with more train queries, N, has ``distillation`` times this number / N as the weight: the more
    is judged, the less its teacher has to say."""
    teacher_bm25: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of BM25 beside the base's scores in the teacher; 0 makes the base alone the teacher."""
    teacher: AnyTeacherSettings | None = None
    """A reranker as the teacher of the documents that it scores; the base stays that of all others."""
    mask_above: PositiveFloat | None = None
    """Candidates that the teacher scores above this share of the positive's score may be relevant though
    nobody judged them, and do not compete with it; 1 spares what the teacher puts above the positive."""
    selection: Literal["auto", "cross_validation", "dev", "best_step"] = "auto"
    """How the step and the scale of an expert are chosen, and whether it is deployed.

    * ``cross_validation``: three times, an adapter is trained without a third of all labelled queries (train
      and dev) and measured on them; the expert is then trained on the train queries to the chosen step.
    * ``dev``: the best step on dev, and a scale for it.
    * ``auto``: ``cross_validation`` below ``cross_validate_below`` labelled queries, else ``dev``.
    * ``best_step``: the best step on dev at scale 1, deployed in any case, as before there were scales.

    The first three deploy an expert only if it is better than the base (a paired test on the held-out
    queries). Adapters that cannot be scaled (prefixes) always use ``best_step``."""
    cross_validate_below: PositiveInt = 1000
    """Labelled queries (train and dev) below which ``auto`` cross-validates."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=10)], ...], Field(min_length=1)] = (
        0.25, 0.5, 0.75, 1.0, 1.25,
    )  # fmt: skip
    """Shares of an adapter that can become the expert."""
    confidence: Fraction = 0.9
    """How sure the paired test must be that an expert gains over the base before it is deployed."""
    held_out_fraction: Fraction = 0.0
    """Share of the train queries that no expert trains on, so that they can be scored honestly."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order and samples."""
    soup: PositiveInt = 1
    """The expert is the mean of so many copies' weights (model soups, arXiv 2203.05482). They start alike and
    see the queries in other orders; training takes so many times as long."""
    adapter: AnyAdapterSettings = LoraSettings()
    """What an expert is: one of the adapter kinds, with its settings."""
    workers: PositiveInt = 1
    """Data-parallel workers of one expert."""
    cpus_per_worker: ResourceAmount = 1.0
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: ResourceAmount = 0.0
    """GPUs that Ray reserves for each worker."""
    labels: Labels = Field(default_factory=dict)
    """Labels that a machine must have to hold a worker, as ``{ray.io/market-type: spot}``."""
    at_once: PositiveInt | None = None
    """Experts in training at a time; by default as many as the cluster has room for. Besides its workers each
    keeps two processes on the driver's machine (some 500 MB) and three small ones anywhere."""
    max_failures: NonNegativeInt = 2
    """How often a lost worker or machine is replaced before the domain is given up."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("set max_steps or max_epochs: a run needs an end")
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} does not divide over workers {self.workers}")
        if self.objective == "sampled" and not (self.hard_negatives or self.random_negatives):
            raise ValueError("objective 'sampled' needs hard_negatives or random_negatives above 0")
        if self.soup > 1 and (reason := self.why_not_averaged):
            raise ValueError(
                f"soup: {self.soup}, but {reason}; set soup to 1, or adapter.kind to lora or ia3"
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_of_use(self) -> Self:
        if self.teacher is None:
            return self
        if self.teacher_bm25:
            raise ValueError(
                f"teacher_bm25: {self.teacher_bm25:g}, and there is another teacher; set one of the two"
            )
        if not self.needs_teacher:
            raise ValueError("teacher: without distillation and mask_above it has no use; set one of the two")
        if self.objective == "in_batch":
            raise ValueError(
                "teacher: objective 'in_batch' compares none of the documents that the teacher scores; use "
                "corpus or sampled"
            )
        return self

    @property
    def can_be_scaled(self) -> bool:
        """Whether a share of such an adapter is an adapter too."""
        return kind_named(self.adapter.kind).can_be_scaled

    @property
    def why_not_averaged(self) -> str | None:
        """Why the mean of such adapters is none; None if it is one."""
        if self.can_be_scaled:
            return None
        return (
            f"adapters of kind {self.adapter.kind!r} are not averaged: attention compares a prefix's keys by "
            "a softmax, and mean keys attend to what none of them does"
        )

    def plain(self) -> TrainingSettings:
        """The same without a teacher, as one copy, and with the best step on dev: for what is no domain's
        expert."""
        return self.model_copy(
            update={
                "selection": "best_step", "distillation": 0.0, "teacher_bm25": 0.0, "mask_above": None,
                "teacher": None, "soup": 1,
            }
        )  # fmt: skip

    def steps_per_epoch(self, train_queries: int) -> int:
        """Optimiser steps that show every query once."""
        return -(-train_queries // self.batch_size)

    def for_queries(self, train_queries: int) -> TrainingSettings:
        """What they mean for an expert with so many train queries: weight of the distillation, and length.

        The folds of a cross-validation have other numbers of queries, and the expert's length.
        """
        changed: dict[str, Any] = {}
        if train_queries > self.distillation_queries:
            changed["distillation"] = self.distillation * self.distillation_queries / train_queries
        if self.max_steps is not None and self.max_epochs is not None:
            steps = self.max_epochs * self.steps_per_epoch(train_queries)
            if steps < self.max_steps:
                every = min(self.evaluate_every, max(1, steps // _EVALUATIONS))
                changed |= {"max_steps": steps, "evaluate_every": every}
            changed["max_epochs"] = None
        return self.model_copy(update=changed)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's scores of the candidates have a part in the loss."""
        return bool(self.distillation) or self.mask_above is not None

    def selects_by(self, labelled: int) -> Literal["cross_validation", "dev", "best_step"]:
        """What ``auto`` means for so many labelled queries."""
        if not self.can_be_scaled:
            return "best_step"
        if self.selection != "auto":
            return self.selection
        return "cross_validation" if labelled < self.cross_validate_below else "dev"

    def identity(self) -> dict[str, Any]:
        """The settings that change an expert's weights (resources and retries do not).

        ``distillation_queries`` and ``max_epochs`` do so through ``for_queries``.
        """
        unused = {
            "cpus_per_worker", "gpus_per_worker", "labels", "at_once", "max_failures", "adapter", "teacher",
            "distillation_queries",
        }  # fmt: skip
        if self.selection == "best_step":
            unused |= {"selection", "cross_validate_below", "scales", "confidence"}
        if not self.distillation:
            unused.add("distillation")
        if self.mask_above is None:
            unused.add("mask_above")
        if not (self.needs_teacher and self.teacher_bm25):
            unused.add("teacher_bm25")
        if self.soup == 1:
            unused.add("soup")
        taught = {"teacher": self.teacher.identity()} if self.teacher else {}
        return self.model_dump(exclude=unused) | {self.adapter.kind: self.adapter.identity()} | taught
