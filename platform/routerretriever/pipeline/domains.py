"""Adding and removing a domain. The recipe file is the truth; these functions edit it and re-register.

Experts are found by the hash of what they were made from, so a change of domains leaves the others'
weights and registered versions as they are. That is checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.config.shipped import recipe_file
from routerretriever.errors import RecipeError
from routerretriever.methods.known import DEFAULT
from routerretriever.pipeline.pipeline import Pipeline, Registered, require_trained
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import verdict_text


def add_domain(recipe_path: Path, name: str, path: str, release: bool = True) -> Registered:
    """Train one new expert, score what is missing, register a new bundle; then add it to the recipe file.

    A domain that the recipe holds for evaluation only can be given an expert the same way.

    Raises:
        RecipeError: the domain has an expert already, or other experts would have to be trained anew.
    """
    known, yaml, values = _read(recipe_path)
    if name in known:
        raise RecipeError(f"{recipe_path}: domains.{name}: has an expert already")
    values["domains"][name] = {"path": path}
    return _apply(recipe_path, yaml, values, new=(name,), release=release)


def remove_domain(recipe_path: Path, name: str, release: bool = True) -> Registered:
    """Register a bundle without one expert; its collection stays in the recipe, for evaluation.

    Raises:
        RecipeError: the domain has no expert, or other experts would have to be trained anew.
    """
    known, yaml, values = _read(recipe_path)
    if name not in known:
        raise RecipeError(f"{recipe_path}: domains.{name}: no such expert; there are {', '.join(known)}")
    values["domains"][name]["expert"] = False
    return _apply(recipe_path, yaml, values, new=(), release=release)


def register_with(recipe: Recipe, paths: Mapping[str, str]) -> Registered:
    """Train some domains' experts on other collections, and register a bundle that is not released.

    No recipe file is changed.

    Args:
        recipe: the recipe as it is.
        paths: domain -> its new collection.

    Raises:
        RecipeError: other experts would have to be trained anew.
    """
    return _register(with_collections(recipe, paths), new=tuple(paths), release=False)


def with_collections(recipe: Recipe, paths: Mapping[str, str]) -> Recipe:
    """A recipe some of whose domains have other collections."""
    changed = {name: recipe.domains[name].model_copy(update={"path": path}) for name, path in paths.items()}
    return recipe.model_copy(update={"domains": {**recipe.domains, **changed}})


def set_collections(recipe_path: Path, paths: Mapping[str, str]) -> None:
    """Write domains' collections into a recipe file; nothing is registered.

    Raises:
        RecipeError: the recipe comes with the package.
    """
    _, yaml, values = _read(recipe_path)
    for name, path in paths.items():
        values["domains"][name]["path"] = path
    with _draft(recipe_path, yaml, values):
        pass


def set_routing(recipe_path: Path, settings: RoutingSettings) -> None:
    """Write routing settings into a recipe file; those that are the defaults are left out."""
    _, yaml, values = _read(recipe_path)
    values["routing"] = settings.changed()
    with _draft(recipe_path, yaml, values):
        pass


def _apply(recipe_path: Path, yaml: YAML, values: Any, new: Sequence[str], release: bool) -> Registered:
    with _draft(recipe_path, yaml, values) as draft:
        return _register(load_recipe(draft, source=recipe_path), new, release)


def _register(recipe: Recipe, new: Sequence[str], release: bool) -> Registered:
    # Other methods train on all domains, so a new set trains them anew: left to the next full run.
    methods = recipe.methods.model_copy(
        update={name: None for name in recipe.methods.named() if name not in (recipe.deploy, DEFAULT)}
    )
    pipeline = Pipeline(recipe.model_copy(update={"methods": methods}))
    require_trained(pipeline, except_for=new)
    registered = pipeline.register(release)
    experts = pipeline.deployed.deployment().experts if new else {}
    told = [verdict_text(experts[name]) for name in new if name in experts]
    return replace(registered, verdict="\n".join(text for text in told if text) or None)


@contextmanager
def _draft(recipe_path: Path, yaml: YAML, values: Any) -> Iterator[Path]:
    """The new recipe in a file beside the old one, which it replaces unless the block fails."""
    draft = recipe_path.with_name(f".{recipe_path.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            yaml.dump(values, file)
        yield draft
        draft.replace(recipe_path)
    finally:
        draft.unlink(missing_ok=True)


def _read(recipe_path: Path) -> tuple[list[str], YAML, Any]:
    """The domains that have an expert, and the file in a form that can be edited and written back."""
    require_editable(recipe_path)
    known = load_recipe(recipe_path).expert_domains
    yaml = YAML()  # keeps comments and order
    return known, yaml, yaml.load(recipe_path.read_text(encoding="utf-8"))


def is_shipped(recipe_path: Path) -> bool:
    """Whether a recipe comes with the package, and is no file of the user's own."""
    return recipe_file(recipe_path) != recipe_path


def require_editable(recipe_path: Path) -> None:
    """Refuse a recipe that is no file of the user's own.

    Raises:
        RecipeError: it comes with the package.
    """
    if is_shipped(recipe_path):
        shipped = recipe_file(recipe_path)
        raise RecipeError(f"{recipe_path}: comes with the package, which is not edited; copy {shipped} first")
