"""Settings of the methods beside the experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
)

from routerretriever.adapters.prefix import PrefixSettings
from routerretriever.settings import DomainName, Settings


class JointSettings(Settings):
    """One adapter for all domains: the single model that a mixture of experts has to beat.

    It is trained as the experts are and shown in the evaluation; it is not deployed.
    """

    kind: Literal["joint", "average"] = "joint"
    """Trained on all domains in turns, or the plain mean of the experts' weights."""
    equal_data: bool = True
    """Joint: no more train queries of a domain than the smallest has (the paper's), or else all."""
    max_steps: PositiveInt | None = None
    """Joint: replaces ``training.max_steps``, which is meant for one domain."""


class GeneralPrefixSettings(Settings):
    """The general prefix of Dynamic Dense Retrieval, trained on queries and documents alike.

    What is not said here is as in ``training``. Documents are encoded in every step, so a step costs far more
    than one of an expert, and batches are small.
    """

    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)] | None = None
    """Domains it is trained on, in turns; by default all that have an expert. A change of these makes another
    prefix, and all documents are encoded anew: name them if domains will be added."""
    learning_rate: PositiveFloat = 7e-3
    batch_size: PositiveInt = 8
    hard_negatives: PositiveInt = 5
    """For each query, from the base encoder's own results; the batch's other documents are negatives too."""
    max_steps: PositiveInt = 200
    evaluate_every: PositiveInt = 40
    dev_documents: PositiveInt = 1000
    """Documents of each domain that dev queries search while it is trained: the relevant ones, and others."""


class DdrSettings(Settings):
    """Dynamic Dense Retrieval (arXiv 2602.22547): prefixes by domain label, weighed in each layer.

    It is trained as the experts are, where nothing else is said, and evaluated beside them.
    """

    general: GeneralPrefixSettings | None = None
    """None leaves it out: domain prefixes are put before the bare base, and documents are encoded no second
    time. For a base that is a retriever already; the paper's is not."""
    prefix: PrefixSettings = PrefixSettings()
    labels: dict[DomainName, Annotated[tuple[DomainName, ...], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """What each collection is about; there is a module for every label of a domain that is trained on. A
    domain that is not named has its own name as its label, a zero-shot collection any label."""
    top_k: PositiveInt = 2
    """Modules that DDR-topk keeps."""
    deployed: Literal["soft", "top_k", "prior"] = "soft"
    """What a service with ``deploy: ddr`` answers with. ``prior`` needs the collection's name as the model of
    a request, and answers others with all modules."""
    learning_rate: PositiveFloat = 0.03
    max_steps: PositiveInt | None = None
    """Replaces ``training.max_steps``, which is meant for one domain."""
    evaluate_every: PositiveInt | None = None
    """Replaces ``training.evaluate_every``: a look at dev is one at all domains here."""
