"""The collections of a recipe, each read as its domain says, and the splits that a run reads of them."""

from __future__ import annotations

from collections.abc import Mapping

from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.errors import DatasetError


def open_collections(recipe: Recipe) -> dict[str, Collection]:
    """Every domain's collection, by name.

    Raises:
        DatasetError: a folder is missing or lacks a split that its domain's part needs.
    """
    collections = {
        name: open_collection(name, recipe.domain_path(name), settings)
        for name, settings in recipe.domains.items()
    }
    for name in recipe.expert_domains:
        if "train" not in collections[name].splits():
            raise DatasetError(
                f"domains.{name}: {collections[name].folder} has no train split; "
                "add qrels/train.tsv or set expert: false"
            )
    for name, domain in recipe.domains.items():
        if domain.test_split != "test" and "test" not in collections[name].splits():
            raise DatasetError(
                f"domains.{name}.test_split: {collections[name].folder} has no "
                f"qrels/{domain.test_split}.tsv; name a split that is there"
            )
    for name in recipe.calibrated_domains:
        if "dev" not in collections[name].splits():
            raise DatasetError(
                f"domains.{name}.calibrate: {collections[name].folder} has no dev split; "
                "add qrels/dev.tsv or set calibrate: false"
            )
    return collections


def splits_read(recipe: Recipe, collections: Mapping[str, Collection]) -> dict[str, list[str]]:
    """Collection -> the splits that a run reads of it."""
    calibrated_only = set(recipe.calibrated_domains) - set(recipe.expert_domains)
    return {
        name: [
            *(("train", "dev") if name in recipe.expert_domains else ()),
            *(("dev",) if name in calibrated_only else ()),
            *(("test",) if "test" in collection.splits() else ()),
        ]
        for name, collection in collections.items()
    }
