"""Recipes that run in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routerretriever.config.loading import parse_recipe
from routerretriever.config.recipe import Recipe
from ruamel.yaml import YAML

TINY_TRAINING: dict[str, Any] = {
    "max_steps": 6,
    "evaluate_every": 2,
    "batch_size": 8,
    "learning_rate": 0.01,
    # A single run for each expert: the cheapest way to have one.
    "selection": "best_step",
    "distillation": 0,
}


def tiny_recipe(root: Path, **changes: Any) -> Recipe:
    """Two experts and a zero-shot collection on the fake encoder; ``changes`` replace settings."""
    values: dict[str, Any] = {
        "name": "tiny",
        "storage": str(root / "storage"),
        "data_root": str(root / "data"),
        "domains": {
            "fruit": {"path": "fruit"},
            "metal": {"path": "metal"},
            "sport": {"path": "sport", "expert": False},
        },
        "encoder": {"name": "fake", "query_max_length": 64, "document_max_length": 64},
        # One worker a pool: starting a second takes longer than all there is to do.
        "corpus": {"shard_size": 10, "workers": 1},
        "scoring": {"workers": 1},
        "training": TINY_TRAINING,
        "serving": {"port": 0},
    }
    return parse_recipe({**values, **changes})


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other settings. A setting inside another is named with two underscores between."""
    values = recipe.model_dump(mode="json")
    for name, value in changes.items():
        *path, last = name.split("__")
        section = values
        for step in path:
            section = section[step]
        section[last] = value
    return parse_recipe(values)


def save_recipe(recipe: Recipe, path: Path) -> Path:
    """Write the recipe as a user would, and give its path."""
    with path.open("w") as file:
        YAML().dump(recipe.model_dump(mode="json"), file)
    return path
