"""Where a recipe's results go: its storage, and the folders and files that commands write beside it."""

from __future__ import annotations

from pathlib import Path

from routerretriever.artifacts.filesystem import local_path
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.recipe import Recipe
from routerretriever.errors import RecipeError

_RAYS_COPIES = "working_dir_files"
"""Folder in which Ray keeps its copies of submitted jobs' working directories."""


def open_storage(recipe: Recipe) -> ArtifactStore:
    """A recipe's storage, once it has answered.

    Raises:
        RecipeError: it is relative, in a submitted job.
        StorageError: it cannot be opened, or does not answer.
    """
    path = local_path(recipe.storage)
    if path is not None:
        advice = f"name a folder by its full path, or s3:// or gs://: --set storage=$PWD/{path}"
        _refuse_passing("storage", path, advice)
    store = ArtifactStore.open(recipe.storage)
    store.files.require_answer()
    return store


def require_lasting_data(recipe: Recipe) -> None:
    """Refuse to write collections where nobody would find them.

    Raises:
        RecipeError: ``data_root`` is relative, in a submitted job.
    """
    _refuse_passing("data_root", recipe.data_root, "write its full path into the recipe")


def require_lasting_recipe(path: Path) -> None:
    """Refuse to change a recipe file that nobody would see again.

    Raises:
        RecipeError: its path is relative, in a submitted job.
    """
    _refuse_passing("recipe", str(path), f"the command changes it, so name it by its full path: $PWD/{path}")


def _refuse_passing(what: str, place: str, advice: str) -> None:
    here = Path.cwd()
    if _RAYS_COPIES in here.parts and not Path(place).expanduser().is_absolute():
        raise RecipeError(
            f"{what}: {place} is relative, and this job runs in {here}, a copy of the working directory "
            f"that Ray removes; {advice}"
        )
