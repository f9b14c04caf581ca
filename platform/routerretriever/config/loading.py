"""Reading a recipe: a YAML file, ``--set`` overrides, and messages that name the wrong field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from routerretriever.config.recipe import Recipe
from routerretriever.config.renamed import new_key, rename_old_keys
from routerretriever.config.shipped import recipe_file, shipped_recipes
from routerretriever.errors import RecipeError
from routerretriever.settings import Settings

Checked = TypeVar("Checked", bound=Settings)


def parse_recipe(values: dict[str, Any], source: str = "recipe") -> Recipe:
    """Check a recipe's values.

    Raises:
        RecipeError: a line for every field that is wrong, with what was found.
    """
    return parse_settings(Recipe, values, source)


def parse_settings(kind: type[Checked], values: dict[str, Any], source: str) -> Checked:
    """Check values against a kind of settings.

    Raises:
        RecipeError: a line for every field that is wrong, with what was found.
    """
    try:
        # Through JSON, so that the strict check still takes a list where a tuple is meant.
        return kind.model_validate_json(json.dumps(values), strict=True)
    except TypeError as error:
        raise RecipeError(f"{source}: {error}") from None
    except ValidationError as error:
        lines = [_explain(dict(problem)) for problem in error.errors()]
        raise RecipeError(f"{source}: {len(lines)} wrong setting(s)\n" + "\n".join(lines)) from None


def _explain(problem: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"] if part not in ("constrained-str", "[key]"))
    if problem["type"] == "extra_forbidden":
        return f"  {field}: unknown key"
    if problem["type"] == "missing":
        return f"  {field}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not field or problem["type"] == "value_error":
        return f"  {field + ': ' if field else ''}{message}"
    return f"  {field}: {message} (found {problem['input']!r})"


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file, or the name of a recipe that comes with the package.
        overrides: ``dotted.key=value`` settings that replace the file's; values are read as YAML.

    Raises:
        RecipeError: the file is missing, no YAML, or a setting is wrong.
    """
    file = recipe_file(path)
    if not file.exists():
        known = ", ".join(shipped_recipes())
        # `serve run` and jobs read recipes in another folder than the one in which a person types.
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise RecipeError(f"{path}: no such file{where}, and no recipe of the package; its own are {known}")
    values = read_settings(file)
    rename_old_keys(values, str(path))
    for override in overrides or []:
        _apply_override(values, override)
    return parse_recipe(values, source=str(path))


def recipe_schema() -> str:
    """The recipe's JSON schema, with a description of every setting; editors complete and check by it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, unchecked.

    Raises:
        RecipeError: the file is missing or no YAML mapping.
    """
    try:
        values = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: needs a mapping of settings, found {type(values).__name__}")
    return values


def _read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise RecipeError(f"--set {override}: write it as dotted.key=value")
    # The same YAML as the file's: YAML 1.1, which OmegaConf reads, takes `no` for false and 010 for 8.
    try:
        value = _read_yaml(text)
    except YAMLError as error:
        raise RecipeError(f"--set {override}: the value is not readable as YAML: {error}") from None
    for part in reversed(dotted.split(".")):
        value = {part: value}
    rename_old_keys(value, f"--set {override}")
    *parents, _ = new_key(dotted).split(".")
    node = values
    for parent in parents:
        node.update({name: other for name, other in value.items() if name != parent})
        node, value = node.setdefault(parent, {}), value[parent]
        if not isinstance(node, dict):
            raise RecipeError(f"--set {override}: {parent} is a value, not a group of settings")
    node.update(value)
