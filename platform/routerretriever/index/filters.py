"""Conditions on documents' metadata, checked when they are read and applied before anything is ranked.

    {"field": "year", "gte": 2001, "lt": 2011}          a range, of numbers or of texts
    {"field": "language", "equals": "en"}               also {"in": ["en", "de"]}, {"exists": true}
    {"and": [...]}   {"or": [...]}   {"not": {...}}

``author.name`` is a field of the object in ``author``. A field that holds a list passes when any of its
elements does. Numbers and texts never equal each other.
"""

from __future__ import annotations

import json
import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routerretriever.errors import WrongField
from routerretriever.index.base import Mask

MAX_DEPTH = 8
MAX_CONDITIONS = 256
MAX_VALUES = 10_000

_RANGES: dict[str, Callable[[Any, Any], Any]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
_LEAF = ("equals", "in", "exists", *_RANGES)
_Number = (int, float)
_LARGEST = 2**1023


class _Ordered:
    """The different numbers of a column, or its texts, in ascending order, each with its code."""

    def __init__(self) -> None:
        # Python's own: float64 holds no integers beyond 2**53.
        self._values: list[Any] = []
        self._codes: NDArray[np.int32] = np.empty(0, np.int32)
        self._new: list[tuple[Any, int]] = []

    def add(self, value: Any, code: int) -> None:
        """Take in a value that is not there."""
        self._new.append((value, code))

    def codes(self, name: str, operand: Any) -> NDArray[np.int32]:
        """Codes of the values that are ``gt``, ``gte``, ``lt`` or ``lte`` an operand of their kind."""
        self._sort()
        # What equals the operand is above the place for gte and lt, and below it for gt and lte.
        find = bisect_left if name in ("gte", "lt") else bisect_right
        place = find(self._values, operand)
        return self._codes[place:] if name in ("gt", "gte") else self._codes[:place]

    def _sort(self) -> None:
        if self._new:
            self._new.sort()
            values, codes = zip(*self._new, strict=True)
            places = [bisect_left(self._values, value) for value in values]
            self._codes = np.insert(self._codes, places, codes)
            self._values = sorted([*self._values, *values])  # quick: two ascending runs
            self._new = []


class Column:
    """One metadata field of all rows: a code a row, and the value that each code stands for."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._code_of: dict[Any, int] = {}
        self.codes = np.empty(0, np.int32)
        self.values: list[Any] = []
        self._lists: list[int] = []
        self._numbers, self._texts = _Ordered(), _Ordered()
        self.extend(values)

    def extend(self, values: Sequence[Any]) -> None:
        """Add the next rows' values."""
        code_of, known = self._code_of, len(self._code_of)
        codes = (code_of.setdefault(_key(each), len(code_of)) for each in values)
        self.codes = np.concatenate([self.codes, np.fromiter(codes, np.int32, len(values))])
        new = []
        for code, (kind, value) in enumerate(islice(code_of, known, len(code_of)), start=known):
            if kind == "list":
                self._lists.append(code)
                value = [each for inner, each in value if inner not in ("list", "object")]
            elif _is_number(value):
                self._numbers.add(value, code)
            elif isinstance(value, str):
                self._texts.add(value, code)
            new.append(value)
        self.values += new

    def having(self, keys: AbstractSet[Any]) -> NDArray[np.bool_]:
        """Which values have one of some keys, or are lists of which an element has [values]."""
        passing = np.zeros(len(self.values), dtype=bool)
        found = (self._code_of.get(key) for key in keys)
        passing[[code for code in found if code is not None]] = True
        for code in self._lists:
            passing[code] = any(_key(each) in keys for each in self.values[code])
        return passing

    def existing(self) -> NDArray[np.bool_]:
        """Which values are there at all [values]."""
        passing = np.ones(len(self.values), dtype=bool)
        missing = self._code_of.get(_key(None))
        if missing is not None:
            passing[missing] = False
        return passing

    def within(self, condition: Filter) -> NDArray[np.bool_]:
        """Which values are in a range, or are lists of which an element is [values]."""
        passing = np.zeros(len(self.values), dtype=bool)
        kind = self._texts if isinstance(condition.operand, str) else self._numbers
        passing[kind.codes(condition.operator, condition.operand)] = True
        for code in self._lists:
            passing[code] = condition.passes(self.values[code])
        return passing


def field_names(metadata: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The fields that a filter can ask for, those of objects and of lists of objects among them."""
    for name, value in metadata.items():
        yield before + name
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from field_names(inner, f"{before}{name}.")


def field_value(metadata: Mapping[str, Any], field: str) -> Any:
    """What a field holds; None if it is not there, and all that it holds of a list of objects.

    A field that is called ``a.b`` itself comes before the field ``b`` of ``a``.
    """
    if field in metadata:
        return metadata[field]
    for place, character in enumerate(field):
        if character == "." and (outer := metadata.get(field[:place])) is not None:
            inner = field[place + 1 :]
            value = field_value(outer, inner) if isinstance(outer, dict) else _values_in(outer, inner)
            if value is not None:
                return value
    return None


def _values_in(values: Any, field: str) -> list[Any] | None:
    objects = [each for each in values if isinstance(each, dict)] if isinstance(values, list) else []
    found = [value for each in objects if (value := field_value(each, field)) is not None]
    flat = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return flat if found else None


@dataclass(frozen=True)
class Filter:
    """A condition; make it with ``parse_filter``."""

    operator: str
    field: str = ""
    operand: Any = None
    inner: tuple[Filter, ...] = ()

    def mask(self, column: Callable[[str], Column], rows: int) -> Mask:
        """Which rows pass.

        Args:
            column: gives a metadata field.
            rows: how many there are.
        """
        parts = [each.mask(column, rows) for each in self.inner]
        if self.operator == "and":
            return np.logical_and.reduce(parts) if parts else np.ones(rows, dtype=bool)
        if self.operator == "or":
            return np.logical_or.reduce(parts) if parts else np.zeros(rows, dtype=bool)
        if self.operator == "not":
            return ~parts[0]
        found = column(self.field)
        if self.operator == "in":
            passing = found.having(self.operand)
        elif self.operator == "exists":
            passing = found.existing() == self.operand
        else:
            passing = found.within(self)
        return passing[found.codes] if len(passing) else np.zeros(rows, dtype=bool)

    def passes(self, value: Any) -> bool:
        """Whether a field's value, or any element of a list, is in the range."""
        return any(self._holds(each) for each in (value if isinstance(value, list) else [value]))

    def _holds(self, value: Any) -> bool:
        comparable = (_is_number(value) and _is_number(self.operand)) or (
            isinstance(value, str) and isinstance(self.operand, str)
        )
        return bool(comparable and _RANGES[self.operator](value, self.operand))


def parse_filter(value: Any, place: str = "filter") -> Filter:
    """Read a filter as it comes in JSON.

    Raises:
        WrongField: it is no filter; the place is named.
    """
    try:
        found = _parse(value, place, 1)
    except RecursionError:  # in showing what was found
        raise WrongField(place, f"nested deeper than {MAX_DEPTH} levels; write it flatter") from None
    if _size(found) > MAX_CONDITIONS:
        raise WrongField(place, f"more than {MAX_CONDITIONS} conditions; use `in` for many values")
    return found


def _parse(value: Any, place: str, depth: int) -> Filter:
    if depth > MAX_DEPTH:
        raise WrongField(place, f"nested deeper than {MAX_DEPTH} levels; write it flatter")
    if not isinstance(value, dict):
        raise WrongField(place, f"expected an object, found {_shown(value)}")
    for name in ("and", "or", "not"):
        if name in value:
            if len(value) > 1:
                other = next(key for key in value if key != name)
                raise WrongField(f"{place}.{other}", f"stands beside `{name}`; put both into an `and`")
            return _combination(name, value[name], f"{place}.{name}", depth)
    field = value.get("field")
    if not isinstance(field, str) or not field:
        expected = 'the name of a metadata field, as {"field": "year", "gte": 2001}'
        raise WrongField(f"{place}.field", f"expected {expected}; found {_shown(field)}")
    conditions = [(name, operand) for name, operand in value.items() if name != "field"]
    if not conditions:
        raise WrongField(place, f"no condition on {field!r}; there are {', '.join(_LEAF)}")
    leaves = tuple(_leaf(field, name, operand, f"{place}.{name}") for name, operand in conditions)
    return leaves[0] if len(leaves) == 1 else Filter("and", inner=leaves)


def _combination(name: str, value: Any, place: str, depth: int) -> Filter:
    if name == "not":
        return Filter(name, inner=(_parse(value, place, depth + 1),))
    if not isinstance(value, list) or not value:
        raise WrongField(place, f"expected a list of conditions, found {_shown(value)}")
    return Filter(name, inner=tuple(_parse(each, f"{place}[{i}]", depth + 1) for i, each in enumerate(value)))


def _leaf(field: str, name: str, operand: Any, place: str) -> Filter:
    if name == "exists":
        if not isinstance(operand, bool):
            raise WrongField(place, f"expected true or false, found {_shown(operand)}")
    elif name == "in":
        if not isinstance(operand, list) or not all(_is_scalar(each) for each in operand):
            raise WrongField(place, f"expected a list of texts, numbers or booleans, found {_shown(operand)}")
        if len(operand) > MAX_VALUES:
            raise WrongField(place, f"{len(operand)} values; at most {MAX_VALUES} are allowed")
        operand = frozenset(_key(each) for each in operand)
    elif name == "equals":
        if not _is_scalar(operand):
            raise WrongField(place, f"expected a text, a number or a boolean, found {_shown(operand)}")
        name, operand = "in", frozenset([_key(operand)])
    elif name in _RANGES:
        if not (_is_number(operand) or isinstance(operand, str)):
            raise WrongField(place, f"expected a number or a text, found {_shown(operand)}")
        if isinstance(operand, int) and abs(operand) > _LARGEST:
            raise WrongField(place, "found a number that no other is compared with; it is too large")
    else:
        raise WrongField(place, f"unknown operator; there are {', '.join(_LEAF)}, and `and`, `or`, `not`")
    return Filter(name, field, operand)


def _size(filter: Filter) -> int:
    return 1 + sum(_size(each) for each in filter.inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, _Number) and not isinstance(value, bool) and _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    """A value as its sender wrote it, or the beginning of it."""
    return json.dumps(value)[:80]


def _key(value: Any) -> tuple[str, Any]:
    """A value that can be hashed; 1, true and "1" differ, 1 and 1.0 do not."""
    if isinstance(value, list):
        return "list", tuple(_key(each) for each in value)
    if isinstance(value, dict):
        return "object", str(value)
    return ("number" if _is_number(value) else type(value).__name__), value
