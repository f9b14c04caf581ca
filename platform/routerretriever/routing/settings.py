"""Which router is fitted, and how it weighs the experts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from routerretriever.settings import Fraction, Settings


class FallbackSettings(Settings):
    """Out-of-domain fallback: how an unfamiliar query is recognised and who then answers it.

    What is familiar is calibrated per dataset on its own training queries, each left out once.
    """

    answer: Literal["auto", "uniform", "both", "base"] = "auto"
    """Who answers an unfamiliar query: all experts alike (``uniform``), the bare base, or ``both`` by halves.

    ``auto`` chooses the answer, the two quantiles and the slack by leaving each domain out once: its queries,
    routed without its expert, are to lose no more than 0.3 nDCG@10 points to the base, and all domains
    together no more than 0.2 to routing without a fallback."""
    familiarity: Literal["distance", "neighbours"] = "distance"
    """What makes a query familiar: how much nearer it is to a domain than to all training queries together,
    for a single domain also the built-in sample's (relative Mahalanobis ``distance``, arXiv 2106.09022), or
    its similarity to the nearest ``neighbours``."""
    neighbours: PositiveInt = 8
    """Training queries that a query is compared with by its ``neighbours``."""
    unfamiliar_quantile: Fraction = 0.01
    """A query less familiar than this share of the training queries is unfamiliar."""
    familiar_quantile: Fraction = 0.5
    """A query more familiar than this share of the training queries is familiar."""
    # Above, every query is familiar, until bounds are no numbers.
    slack: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Lowers the unfamiliar bound by this many times its distance to the familiar one."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.unfamiliar_quantile >= self.familiar_quantile:
            raise ValueError("unfamiliar_quantile must be below familiar_quantile")
        chosen = {"unfamiliar_quantile", "familiar_quantile", "slack"}
        if self.answer == "auto" and (given := self.changed() & chosen):
            raise ValueError(
                f"{', '.join(sorted(given))}: answer 'auto' chooses it; set answer to 'base' or 'uniform' too"
            )
        return self

    def changed(self) -> set[str]:
        """Names of the settings that are not the defaults."""
        return set(self.model_dump(exclude_defaults=True))


class RoutingSettings(Settings):
    """How a query is turned into weights over the experts. See ``routerretriever.routing``.

    The defaults were chosen by ``tune-router`` on dev queries of six collections. The paper's router is
    ``router: pilots, features: embedding, mixing: hard, fallback: null``.
    """

    router: Literal[
        "pilots", "posterior", "neighbours", "utility", "centroids", "expert_classifier",
        "classification_head", "dataset", "fixed", "uniform",
    ] = "posterior"  # fmt: skip
    """Kind of router that is fitted."""
    features: Literal["embedding"] | NonNegativeInt = 0
    """What the router reads: the base embedding, or the mean hidden state entering layer n (0: the input
    embeddings, no transformer layer is run)."""
    mixing: Literal["hard", "soft"] = "soft"
    """``hard`` gives all weight to the best expert; ``soft`` spreads it by a softmax of the scores."""
    # Below, all weight is on the best expert, until scores divided by it are no numbers.
    temperature: Annotated[float, Field(ge=1e-6)] = 2.0
    """Sharpness of soft mixing: scores are divided by this before the softmax. Log-probabilities go with
    values around 1, similarities and utilities with values around 0.05."""
    merge: Literal["weights", "embeddings"] = "weights"
    """What is mixed by weight. The experts' adapters, inside every layer: one encoding a query, however many
    experts it has. Or the vectors that each expert makes of the query: an encoding for each, which different
    processes can make. With all weight on one expert they are the same."""
    min_share: Fraction = 0.2
    """Experts with less than this share of the best one's weight are left out, and need not be run."""
    fallback: FallbackSettings | None = FallbackSettings()
    """Who answers out-of-domain queries; null routes every query as if it were of some domain."""
    ties: Literal["own", "drop", "first", "all"] = "own"
    """Pilots: who gets a query on which several experts are equally good."""
    clusters: PositiveInt = 1
    """Pilots: k-means centroids per (dataset, best expert) group; 1 is the paper's choice."""
    aggregate: Literal["mean", "nearest"] = "mean"
    """Pilots: mean similarity to an expert's pilots (the paper), or its nearest pilot."""
    neighbours: PositiveInt = 32
    """Neighbours: scored queries that a query's utilities are predicted from."""
    references: PositiveInt = 1000
    """Neighbours and fallback: queries kept of each dataset; they are part of the bundle."""
    include_base: bool = False
    """Let the bare base encoder compete as if it were an expert."""
    expert: str | None = None
    """Fixed: the one expert that answers everything."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of samples, clusters and fits."""

    @property
    def chooses_fallback(self) -> bool:
        """Whether the fallback is to be chosen by leaving domains out."""
        return self.fallback is not None and self.fallback.answer == "auto"

    def changed(self) -> dict[str, Any]:
        """The settings that are not the defaults, as a recipe would give them."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _fixed_names_its_expert(self) -> Self:
        if (self.router == "fixed") != (self.expert is not None):
            raise ValueError("expert: set it with router 'fixed', and only then")
        return self
