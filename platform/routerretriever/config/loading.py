"""Reading a recipe: a YAML file, ``--set`` overrides, and messages that name the wrong field."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from routerretriever.config.recipe import Recipe
from routerretriever.config.renamed import new_key, rename_old_keys
from routerretriever.config.shipped import recipe_file, shipped_recipes
from routerretriever.errors import RecipeError, first_line
from routerretriever.settings import Settings

Checked = TypeVar("Checked", bound=Settings)
_GROUPS = ("dict_type", "model_type", "model_attributes_type")
"""What pydantic calls a value where a group of settings should be."""
_LONGEST = 80
"""Characters of a wrong value that are shown."""


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
        return kind.model_validate_json(json.dumps(values, default=_as_written), strict=True)
    except (TypeError, RecursionError) as error:
        raise RecipeError(f"{source}: {error}; write text, numbers, lists and groups only") from None
    except ValidationError as error:
        lines = _explain_all([dict(problem) for problem in error.errors()], values, kind.model_json_schema())
        raise RecipeError(f"{source}: {len(lines)} wrong setting(s)\n" + "\n".join(lines)) from None
    except ValueError as error:  # of json: an anchor holds itself
        raise RecipeError(f"{source}: {error}; an anchor (&) must not hold itself (*)") from None


def _as_written(value: object) -> str:
    """YAML reads 2026-01-31 as a date; no setting is one, so text is meant."""
    if isinstance(value, date):
        return str(value)
    raise TypeError(f"found a {type(value).__name__}")


def _explain_all(
    problems: Sequence[dict[str, Any]], values: dict[str, Any], schema: dict[str, Any]
) -> list[str]:
    """A line for every wrong setting. Where one may be several things, pydantic complains for each."""
    places = [_path_of(problem, values) for problem in problems]
    told: dict[tuple[str | int, ...], list[str]] = {}
    for problem, path in zip(problems, places, strict=True):
        # That a group is none of the other kinds says nothing beside what is wrong in it.
        is_one_of_several = len(path) < len(problem["loc"]) and problem["loc"][-1] != "[key]"
        if not (is_one_of_several and any(other[: len(path)] == path != other for other in places)):
            told.setdefault(path, []).append(_explain(problem, path, schema))
    lines = []
    for path, (first, *others) in told.items():
        field = ".".join(map(str, path))
        lines.append("  " + ", or ".join([first, *(other.removeprefix(f"{field}: ") for other in others)]))
    return lines


def _path_of(problem: dict[str, Any], values: dict[str, Any]) -> tuple[str | int, ...]:
    """The keys that lead to a wrong setting: pydantic's own place names the kinds of a union, too."""
    *place, last = problem["loc"] or [""]
    node: Any = values
    path: list[str | int] = []
    for part in (*place, last):
        if part in node if isinstance(node, dict) else isinstance(node, list) and isinstance(part, int):
            path.append(part)
            node = node[part]
    return (*path, last) if problem["type"] == "missing" else tuple(path)


def _explain(problem: dict[str, Any], path: Sequence[str | int], schema: dict[str, Any]) -> str:
    field = ".".join(str(part) for part in path)
    kind, found = problem["type"], _shown(problem["input"])
    if kind == "extra_forbidden":
        return f"{field}: unknown key; {_advice(str(path[-1]), _keys_at(schema, problem['loc'][:-1]))}"
    if kind == "missing":
        return f"{field}: missing"
    if kind == "union_tag_not_found":
        key = problem["ctx"]["discriminator"].strip("'")
        return f"{field}.{key}: missing; choose from {', '.join(_tags_at(schema, path))}"
    if kind == "union_tag_invalid":
        key, known = (problem["ctx"][name] for name in ("discriminator", "expected_tags"))
        tag = problem["ctx"]["tag"]
        return f"{field}.{key.strip(chr(39))}: choose from {known} (found {tag!r})"
    if kind in _GROUPS:
        return f"{field + ': ' if field else ''}needs a group of settings (found {found})"
    message = problem["msg"].removeprefix("Value error, ")
    if not field or kind == "value_error":
        return f"{field + ': ' if field else ''}{message}"
    return f"{field}: {message} (found {found})"


def _shown(value: object) -> str:
    """A value as a recipe would say it, cut if it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _advice(key: str, known: Iterable[str]) -> str:
    """The name that a mistyped key is nearest to, or else all that there are."""
    near = get_close_matches(key, known := sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _keys_at(schema: dict[str, Any], path: Sequence[str | int]) -> set[str]:
    """The keys that a group of settings can have."""
    return {key for node in _nodes_at(schema, path) for key in node.get("properties", {})}


def _tags_at(schema: dict[str, Any], path: Sequence[str | int]) -> list[str]:
    """The kinds that a group of settings chooses from by one of its keys."""
    return [
        tag for node in _nodes_at(schema, path) for tag in node.get("discriminator", {}).get("mapping", {})
    ]


def _nodes_at(schema: dict[str, Any], path: Sequence[str | int]) -> list[dict[str, Any]]:
    """The parts of a JSON schema that say what may stand at a place; unions have several."""
    nodes = list(_branches(schema, schema))
    for part in path:
        if kinds := [kind for node in nodes if (kind := _kind(node, part))]:
            nodes = [branch for kind in kinds for branch in _branches({"$ref": kind}, schema)]
            continue
        inner = [
            branch
            for node in nodes
            for below in (
                node.get("properties", {}).get(part),
                node.get("additionalProperties"),
                *node.get("patternProperties", {}).values(),
            )
            if isinstance(below, dict)
            for branch in _branches(below, schema)
        ]
        nodes = inner or nodes  # the path may name a member of a union, which is no key
    return nodes


def _kind(node: dict[str, Any], part: str | int) -> str | None:
    """Where a schema has the kind of settings that one of a union's keys has chosen."""
    kinds: dict[str | int, str] = node.get("discriminator", {}).get("mapping", {})
    return kinds.get(part)


def _branches(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a schema, and those that it refers to or chooses from."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    yield node
    for each in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from _branches(each, schema)


def load_recipe(
    path: str | Path, overrides: list[str] | None = None, source: str | Path | None = None
) -> Recipe:
    """Read and check a recipe file.

    Args:
        path: the YAML file, or the name of a recipe that comes with the package.
        overrides: ``dotted.key=value`` settings that replace the file's; values are read as YAML.
        source: what messages call the file; by default its path.

    Raises:
        RecipeError: the file is missing, no YAML, or a setting is wrong.
    """
    file = recipe_file(path)
    if not os.path.exists(file):  # never fails, as the method of Path does on names that are too long
        known = ", ".join(shipped_recipes())
        # `serve run` and jobs read recipes in another folder than the one in which a person types.
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise RecipeError(f"{path}: no such file{where}, and no recipe of the package; its own are {known}")
    values = read_settings(file)
    rename_old_keys(values, str(source or path))
    for override in overrides or []:
        _apply_override(values, override)
    return parse_recipe(values, source=str(source or path))


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
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise RecipeError(f"{path}: {reason}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is no UTF-8 text; save it as UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = path if mark is None else f"{path}:{mark.line + 1}"
        raise RecipeError(f"{place}: not readable as YAML: {_yaml_problem(error)}") from None
    except RecursionError:
        raise RecipeError(f"{path}: not readable as YAML: too many levels") from None
    if values is None:
        raise RecipeError(f"{path}: is empty; needs a mapping of settings")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: needs a mapping of settings, found {type(values).__name__}")
    return values


class _NamesAreText(SafeConstructor):
    """Reads keys as they are written. YAML takes 0123 for a number and 2026-01-31 for a date, but a domain
    may be called so; and 1 and "1" would be two keys of one name."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        """A mapping, its keys text."""
        self.flatten_mapping(node)  # first, since << is no name
        for key, _ in node.value:
            if isinstance(key, ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a YAML text says, its keys as they are written.

    Raises:
        YAMLError: it is no YAML.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _NamesAreText
    return reader.load(text)


def _yaml_problem(error: YAMLError) -> str:
    """What is wrong, in one line; ruamel's own messages have up to twelve."""
    if not isinstance(error, MarkedYAMLError) or error.problem is None:
        return first_line(error)
    problem = str(error.problem).partition(" with value ")[0]  # of a key that comes twice; it may be a secret
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    return f"{problem}; indent with spaces, not tabs" if r"'\t'" in problem else problem


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip()
    if not equals or not all(dotted.split(".")):
        raise RecipeError(f"--set {override}: write it as dotted.key=value")
    # The same YAML as the file's: YAML 1.1, which OmegaConf reads, takes `no` for false and 010 for 8.
    try:
        value = read_yaml(text)
    except YAMLError as error:
        raise RecipeError(
            f"--set {override}: the value is not readable as YAML: {_yaml_problem(error)}"
        ) from None
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
