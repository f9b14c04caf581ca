"""One collection of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from routerretriever.settings import PlaceName, Settings

SplitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class PassageSettings(Settings):
    """Long documents are cut into passages; the best passage is the document's score (MaxP)."""

    tokens: Annotated[int, Field(ge=8, le=8192)] = 200
    """Longest passage, in words and punctuation marks; word pieces are a few more."""
    overlap: Annotated[int, Field(ge=0)] = 40
    """What two neighbouring passages share at most, in the same units."""

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> PassageSettings:
        if self.overlap >= self.tokens:
            raise ValueError(f"overlap: {self.overlap} is not below tokens: {self.tokens}; make it smaller")
        return self


class DomainSettings(Settings):
    """One collection: a BEIR folder (relative paths start at ``data_root``) or ``sample:<name>``."""

    path: PlaceName
    """The folder, or ``sample:<name>``."""
    expert: bool = True
    """``false`` makes the collection evaluation-only (zero-shot): only its test split is used."""
    test_split: SplitName = "test"
    """The split that plays test: a file of ``qrels/`` without ``.tsv``. With ``dev``, dev is held out of
    train."""
    ignore_identical_ids: Literal["auto"] | bool = "auto"
    """Leave a document with the query's own id out of the results: always (as BEIR does), never, or, with
    ``auto``, where its text is the query's too."""
    equal_texts: Literal["warn", "refuse"] = "warn"
    """What to do where a dev or test query has the same text as a query of another split."""
    copies: Literal["apart", "alike"] = "apart"
    """Whether copies of a test query's judged document get its grade; ``apart`` gives BEIR's figures.
    For training and dev they always get it."""
    passages: PassageSettings | None = None
    """Cut documents into passages; by default each is encoded whole, up to the encoder's length."""

    @model_validator(mode="after")
    def _test_is_not_train(self) -> DomainSettings:
        if self.test_split == "train" and self.expert:
            raise ValueError(
                "test_split: train is what the expert learns from; set expert: false, or name another"
            )
        return self
