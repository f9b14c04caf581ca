"""How one adapter is trained."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from routerretriever.adapters.kinds import AnyAdapterSettings
from routerretriever.adapters.lora import LoraSettings
from routerretriever.settings import Fraction, ResourceAmount, Settings


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
    """Similarities are divided by this before the softmax."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's weight decay."""
    schedule: Literal["constant", "linear"] = "linear"
    """Learning rate after the warmup."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate rises to its peak."""
    batch_size: PositiveInt = 32
    """Queries per optimiser step, over all workers of the expert."""
    max_steps: PositiveInt | None = 400
    """Optimiser steps at most."""
    max_epochs: PositiveInt | None = None
    """Passes over the train queries at most."""
    evaluate_every: PositiveInt = 20
    """Steps between two looks at dev nDCG@10."""
    patience: PositiveInt = 5
    """Looks at dev without a new best before training stops."""
    dev_queries: PositiveInt = 400
    """At most this many dev queries are used for early stopping (a fixed sample): a look at dev should cost
    less than the steps between two looks."""
    max_gradient_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass; weights stay in fp32."""
    query_max_length: PositiveInt = 64
    """Tokens of a training query; longer ones are cut, to bound memory."""
    held_out_fraction: Fraction = 0.0
    """Share of the train queries that no expert trains on, so that they can be scored honestly."""
    seed: int = 0
    """Seed of initial weights, order and samples."""
    adapter: AnyAdapterSettings = LoraSettings()
    """What an expert is: one of the adapter kinds, with its settings."""
    workers: PositiveInt = 1
    """Data-parallel workers of one expert."""
    cpus_per_worker: ResourceAmount = 1.0
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: ResourceAmount = 0.0
    """GPUs that Ray reserves for each worker."""
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
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that change an expert's weights (resources and retries do not)."""
        unused = {"cpus_per_worker", "gpus_per_worker", "at_once", "max_failures", "adapter"}
        return self.model_dump(exclude=unused) | {self.adapter.kind: self.adapter.identity()}
