"""Whether Python names things that there are, and calls them as they can be called, without running it."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
import types
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self, get_origin, get_type_hints


@dataclass(frozen=True)
class Instance:
    """An object that is not there, of a known class."""

    of: type


def check_python(text: str) -> None:
    """Import what the text imports, look up its names and attributes, and bind the arguments of its calls.

    What a value is follows from constructors and from return annotations; where these do not say, nothing
    is looked up in it.
    """
    tree = ast.parse(text)
    assert sorted(_undefined(tree)) == [], "names that nothing defines"
    _Checker().visit(tree)


def _undefined(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    return used - bound - set(dir(builtins))


class _Checker(ast.NodeVisitor):
    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.known[alias.asname or alias.name] = _module(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = _module(node.module or "")
        for alias in node.names:
            self.known[alias.asname or alias.name] = _attribute(module, alias.name)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._bind(target, value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self._bind(item.optional_vars, self._value(item.context_expr))
        for line in node.body:
            self.visit(line)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._value(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._value(node)

    def _bind(self, target: ast.expr | None, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.known[target.id] = value

    def _value(self, node: ast.expr) -> Any:
        """What an expression is: an object, an ``Instance``, or None if it cannot be told."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            return _attribute(self._value(node.value), node.attr)
        if isinstance(node, ast.Call):
            for each in (*node.args, *(keyword.value for keyword in node.keywords)):
                self._value(each)
            return _result(self._value(node.func), node)
        self.generic_visit(node)
        return None


def _module(name: str) -> Any:
    """A module of ours. Others are only looked for, as some take long to import."""
    if name.startswith("routerretriever"):
        return importlib.import_module(name)
    assert find_spec(name), f"{name}: no such module"
    return None


def _attribute(owner: Any, name: str) -> Any:
    if owner is None:
        return None
    if not isinstance(owner, Instance):
        assert hasattr(owner, name), f"{owner} has no {name}"
        return getattr(owner, name)
    member = inspect.getattr_static(owner.of, name, None)
    if isinstance(member, property):
        return _returned(member.fget, owner.of)
    if isinstance(member, types.FunctionType):
        return types.MethodType(member, owner)
    fields = {*get_type_hints(owner.of), *getattr(owner.of, "model_fields", ())}
    there = member is not None or name in fields or f"self.{name}" in inspect.getsource(owner.of)
    assert there, f"{owner.of.__name__} has no {name}"
    return None


def _result(function: Any, call: ast.Call) -> Any:
    if function is None or any(keyword.arg is None for keyword in call.keywords):
        return None
    try:
        inspect.signature(function).bind(*call.args, **{str(each.arg): each.value for each in call.keywords})
    except TypeError as error:
        raise AssertionError(f"{ast.unparse(call)}: {error}") from None
    if isinstance(function, type):
        return Instance(function)
    return _returned(function, getattr(function, "__self__", None))


def _imported_for_types(function: Any) -> dict[str, Any]:
    """What the function's module imports for its annotations alone, which a running program would not."""
    tree = ast.parse(inspect.getsource(sys.modules[function.__module__]))
    checker = _Checker()
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            checker.visit(node)
    return checker.known


def _returned(function: Any, owner: Any) -> Instance | None:
    kind = get_type_hints(function, localns=_imported_for_types(function)).get("return")
    if kind is Self:
        kind = owner.of if isinstance(owner, Instance) else owner
    kind = get_origin(kind) or kind
    return (
        Instance(kind) if isinstance(kind, type) and kind.__module__.startswith("routerretriever") else None
    )
