"""Old recipe keys. Each is read for one release, with a warning that names the new one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from routerretriever.errors import RecipeError

log = logging.getLogger("routerretriever")


@dataclass(frozen=True)
class Renamed:
    """A key that moved, and how its old values read now."""

    old: str
    """Dotted path."""
    new: str
    """Dotted path."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Old values that have a new name; others stay."""
    added: Mapping[str, Any] = field(default_factory=dict)
    """Keys that a group needs in its new place."""
    divisor: float = 1.0
    """What old numbers are divided by, where they are of another unit now."""


RENAMED = (
    Renamed("routing.mix", "routing.merge", {"adapters": "weights", "vectors": "embeddings"}),
    Renamed("routing.gate.fallback", "routing.fallback.answer"),
    Renamed("routing.gate.shut_quantile", "routing.fallback.unfamiliar_quantile"),
    Renamed("routing.gate.open_quantile", "routing.fallback.familiar_quantile"),
    Renamed("routing.gate", "routing.fallback"),
    Renamed("training.prefix", "training.adapter", added={"kind": "prefix"}),
    Renamed("training.lora", "training.adapter", added={"kind": "lora"}),
    Renamed("encoder.general_prefix", "encoder.adapter"),
    Renamed("single_models", "methods.baselines"),
    Renamed("ddr", "methods.ddr"),
    Renamed("serving.fold_changes", "serving.compact_every"),
    Renamed("serving.index_parts", "serving.index_shards"),
    Renamed("serving.releases.canary_queries", "serving.releases.validation_queries"),
    Renamed("serving.releases.max_canary_loss", "serving.releases.max_validation_loss"),
    # A text counted for as many seconds as 20 tokens do: a short question.
    Renamed("serving.limits.seconds_per_text", "serving.limits.seconds_per_token", divisor=20.0),
    Renamed("serving.placement", "serving.placement", {"packed": "shared", "per_expert": "dedicated"}),
)
"""In the order in which they apply: a group's keys before the group."""


def rename_old_keys(values: dict[str, Any], source: str, table: Sequence[Renamed] = RENAMED) -> None:
    """Rename old keys and values in place.

    Args:
        values: a recipe, unchecked.
        source: where it comes from, for messages.
        table: what was renamed.

    Raises:
        RecipeError: an old key and its new one are both there.
    """
    for renamed in table:
        *groups, key = renamed.old.split(".")
        group = _group(values, groups)
        if key not in group:
            continue
        old = group[key]
        new = _new_value(renamed, old)
        if renamed.old != renamed.new:
            del group[key]
            if not group and renamed.new.split(".")[:-1] != groups:
                _group(values, groups[:-1]).pop(groups[-1])  # nothing of the old group is left
            log.warning(
                "%s: %s is now %s; the next release reads the new key only", source, renamed.old, renamed.new
            )
        if new != old:
            log.warning("%s: %s: %r is now %r; the next release reads the new value only",
                        source, renamed.new, old, new)  # fmt: skip
        if isinstance(new, dict):
            new = {**renamed.added, **new}
        _put(values, renamed, new, source)


def _new_value(renamed: Renamed, old: Any) -> Any:
    if isinstance(old, str):
        return renamed.values.get(old, old)
    if renamed.divisor != 1.0 and isinstance(old, int | float) and not isinstance(old, bool):
        return old / renamed.divisor
    return old


def new_key(dotted: str, table: Sequence[Renamed] = RENAMED) -> str:
    """The present path of a key, given its old or its present one."""
    for renamed in table:
        if dotted == renamed.old or dotted.startswith(f"{renamed.old}."):
            return renamed.new + dotted.removeprefix(renamed.old)
    return dotted


def _group(values: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """The group at a path; an empty one if there is none."""
    node: Any = values
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _put(values: dict[str, Any], renamed: Renamed, value: Any, source: str) -> None:
    *groups, key = renamed.new.split(".")
    node = values
    for part in groups:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise RecipeError(f"{source}: {renamed.new}: {part} is a value, not a group of settings")
    there = node.get(key)
    if isinstance(there, dict) and isinstance(value, dict) and not there.keys() & value.keys():
        there.update(value)
        return
    if renamed.old != renamed.new and key in node:
        raise RecipeError(f"{source}: {renamed.old} is the old name of {renamed.new}; keep only the new one")
    node[key] = value
