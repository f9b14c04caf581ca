"""Expected figures of a reproduction."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    model_validator,
)

from routerretriever.settings import DomainName, Settings
from routerretriever.types import BASE


class ReproductionCase(Settings):
    """Figures that a recipe is to give. See ``routerretriever.studies.reproduction``."""

    recipe: str
    """A recipe's path, relative to the file."""
    changes: tuple[str, ...] = ()
    """``dotted.key=value`` settings that replace the recipe's."""
    measure: Literal["ndcg_at_10", "recall_at_100", "average_precision", "reciprocal_rank_at_10"] = (
        "ndcg_at_10"
    )
    """Measure that is compared."""
    tolerance: PositiveFloat
    """A figure this close, up or down, is OK."""
    wide_tolerance: PositiveFloat
    """A figure this close is OKish; one further off fails."""
    expected: Annotated[
        dict[str, Annotated[dict[DomainName, float], Field(min_length=1)]], Field(min_length=1)
    ]
    """Way of answering, as the evaluation names them -> test set -> the measure times 100."""

    @model_validator(mode="after")
    def _wider(self) -> Self:
        if self.wide_tolerance < self.tolerance:
            raise ValueError("wide_tolerance must not be below tolerance")
        return self

    @property
    def needs_base_only(self) -> bool:
        """Whether no expert has a part in it."""
        return set(self.expected) == {BASE}


class ReproductionFile(Settings):
    """Cases by name."""

    cases: Annotated[dict[DomainName, ReproductionCase], Field(min_length=1)]
    """Cases by name."""
