"""Recipes that come with the package: ``sample`` stands for its file ``sample.yaml``."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """Where they lie: inside an installed package, in ``jobs/recipes`` of a checkout."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parents[1] / "jobs" / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Their files by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def recipe_file(path: str | Path) -> Path:
    """The file that a recipe argument names: a path, or, if there is no such file, a shipped recipe."""
    path = Path(path)
    return path if os.path.exists(path) else shipped_recipes().get(str(path), path)
