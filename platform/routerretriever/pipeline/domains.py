"""Adding and removing a domain. The recipe file is the truth; these functions edit it and re-register.

Experts are found by the hash of what they were made from, so a change of domains leaves the others'
weights and registered versions as they are. That is checked before anything is computed.

Changes of one bundle's domains take turns. Each is made to the file as it is when its bundle is registered,
so that what others edit meanwhile stays.
"""

from __future__ import annotations

import errno
import io
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from routerretriever.config.loading import load_recipe, read_yaml
from routerretriever.config.recipe import Recipe
from routerretriever.config.shipped import recipe_file
from routerretriever.errors import RecipeError
from routerretriever.methods.known import DEFAULT
from routerretriever.pipeline.pipeline import Pipeline, Registered, require_trained
from routerretriever.pipeline.places import open_storage, require_lasting_recipe
from routerretriever.registry.turns import turn
from routerretriever.routing.settings import RoutingSettings
from routerretriever.training.expert import verdict_text

_UNBROKEN = 1_000_000
"""Characters of a line that is not broken: lines that nobody changed stay as they are."""
Change = Callable[[Any], None]
"""Edits the values of a recipe file in place."""


def add_domain(recipe_path: Path, name: str, path: str, release: bool = True) -> Registered:
    """Train one new expert, score what is missing, register a new bundle; then add it to the recipe file.

    A domain that the recipe holds for evaluation only can be given an expert the same way; its other settings
    stay.

    Raises:
        RecipeError: the domain has an expert already, other experts would have to be trained anew, or the
            path leads to a collection from the working folder instead of from ``data_root``.
    """

    def add(values: Any) -> None:
        domain = _own_settings(values, name)
        domain["path"] = path
        if "expert" in domain:
            domain["expert"] = True

    with changing_domains(recipe_path) as recipe:
        if name in recipe.expert_domains:
            raise RecipeError(f"{recipe_path}: domains.{name}: has an expert already")
        _require_below_data_root(recipe, name, path)
        return _apply(recipe_path, add, new=(name,), release=release)


def remove_domain(recipe_path: Path, name: str, release: bool = True) -> Registered:
    """Register a bundle without one expert; its collection stays in the recipe, for evaluation.

    Raises:
        RecipeError: the domain has no expert, or other experts would have to be trained anew.
    """

    def remove(values: Any) -> None:
        if _key(values, name) in values["domains"]:
            _own_settings(values, name)["expert"] = False

    with changing_domains(recipe_path) as recipe:
        if name not in (known := recipe.expert_domains):
            raise RecipeError(f"{recipe_path}: domains.{name}: no such expert; there are {', '.join(known)}")
        return _apply(recipe_path, remove, new=(), release=release)


@contextmanager
def changing_domains(recipe_path: Path) -> Iterator[Recipe]:
    """Let nobody else change the domains of the same bundle while a block runs; waits for who does.

    Yields:
        The recipe as it is then.

    Raises:
        RecipeError: the recipe is no file that can be changed.
    """
    require_editable(recipe_path)
    recipe = load_recipe(recipe_path)
    with turn(open_storage(recipe).files, f"domains/{recipe.registry.name}"):
        yield load_recipe(recipe_path)


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

    def change(values: Any) -> None:
        for name, path in paths.items():
            _own_settings(values, name)["path"] = path

    _edit(recipe_path, change)


def set_routing(recipe_path: Path, settings: RoutingSettings) -> None:
    """Write routing settings into a recipe file; those that are the defaults are left out."""

    def change(values: Any) -> None:
        values["routing"] = settings.changed()

    _edit(recipe_path, change)


def _require_below_data_root(recipe: Recipe, name: str, path: str) -> None:
    """Say what to type where a path leads to a folder from the working folder only, as shells complete it."""
    meant, given = Path(recipe.collection_path(path)).absolute(), Path(path).expanduser().absolute()
    if meant.exists() or not given.is_dir():
        return
    root = Path(recipe.data_root).expanduser().absolute()
    below = given.relative_to(root) if given.is_relative_to(root) else given
    raise RecipeError(
        f"domains.{name}.path: no folder {meant}: paths start at data_root, which is {recipe.data_root}; "
        f"give --path {shlex.quote(str(below))}"
    )


def _apply(recipe_path: Path, change: Change, new: Sequence[str], release: bool) -> Registered:
    """Register what a change makes of the recipe, then write it into the file.

    The file is read again for it, as registering can take hours in which others edit it.
    """
    with _changed(recipe_path, change) as draft:
        recipe = load_recipe(draft, source=recipe_path)
    registered = _register(recipe, new, release)
    _edit(recipe_path, change)
    return registered


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


def _own_settings(values: Any, name: str) -> Any:
    """A domain's settings in a recipe file, to be edited; those of a new domain are empty.

    What an anchor lends to other domains is copied first, so that these stay as they are.
    """
    domains, key = values["domains"], _key(values, name)
    settings = domains.setdefault(key, {})
    if isinstance(settings, CommentedMap) and settings.yaml_anchor() is not None:
        domains[key] = own = CommentedMap(settings.items())
        if settings.fa.flow_style():
            own.fa.set_flow_style()
    return domains[key]


def _key(values: Any, name: str) -> Any:
    """What a recipe file calls a domain: YAML reads ``2024`` as a number, and the recipe as text."""

    def written(key: Any) -> Any:
        text = io.StringIO()
        YAML().dump({key: 0}, text)
        return read_yaml(text.getvalue())

    return next((key for key in values["domains"] if written(key) == {name: 0}), name)


def _edit(recipe_path: Path, change: Change) -> None:
    """Make a change to a recipe file, unless that would make it wrong."""
    with _changed(recipe_path, change) as draft:
        load_recipe(draft, source=recipe_path)
        with _writing(recipe_path):
            _replace(recipe_path.resolve(), draft)


def _replace(file: Path, draft: Path) -> None:
    try:
        draft.replace(file)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        file.write_bytes(draft.read_bytes())  # mounted by itself, as into a container


@contextmanager
def _changed(recipe_path: Path, change: Change) -> Iterator[Path]:
    """The recipe as it is now with a change, in a file beside it for as long as a block runs."""
    require_editable(recipe_path)
    load_recipe(recipe_path)  # says in one line what is wrong with it
    yaml = YAML()  # keeps comments and order
    yaml.preserve_quotes, yaml.width = True, _UNBROKEN
    file = recipe_path.resolve()  # a link stays one
    with file.open(encoding="utf-8") as lines:
        values = yaml.load(lines)
    line_end = lines.newlines if isinstance(lines.newlines, str) else None
    change(values)
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}.new")
    with _writing(recipe_path):
        with suppress(PermissionError):  # of the file, which another may replace
            file.open("r+b").close()
        opened = draft.open("x", encoding="utf-8", newline=line_end)
    try:
        with _writing(recipe_path), opened:
            shutil.copymode(file, draft)  # before anything is in it: a recipe may hold a password
            yaml.dump(values, opened)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _writing(recipe_path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"{recipe_path}: cannot be changed: {error.strerror}; the command changes it, so name a file "
            "that may be replaced, in a folder that may be written"
        ) from None


def is_shipped(recipe_path: Path) -> bool:
    """Whether a recipe comes with the package, and is no file of the user's own."""
    return recipe_file(recipe_path) != recipe_path


def require_editable(recipe_path: Path) -> None:
    """Refuse a recipe that is no file of the user's own, or one that goes with a submitted job.

    Raises:
        RecipeError: it comes with the package, or lies in Ray's copy of the working directory.
    """
    if is_shipped(recipe_path):
        shipped = recipe_file(recipe_path)
        raise RecipeError(f"{recipe_path}: comes with the package, which is not edited; copy {shipped} first")
    require_lasting_recipe(recipe_path)
