"""Tests run in any order and in any process: none imports another, and none a private name of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support.paths import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))


def imported(path: Path) -> list[tuple[str, str]]:
    """Modules that a file imports, with the name that it takes from each ("" for the module itself)."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_a_test_imports_no_other_test_and_no_private_name(path):
    for module, name in imported(path):
        last = module.rpartition(".")[2]
        assert last != "conftest", "fixtures come by name, everything else from tests/support"
        assert not last.startswith("test_"), f"{module}: what two tests need lies in tests/support"
        assert not module.startswith((".", "tests")), f"{module}: tests/ is on the path"
        if module.startswith("routerretriever"):
            assert not name.startswith("_"), f"{module}.{name} is that module's own"


def test_helpers_hold_no_tests():
    for path in (ROOT / "tests" / "support").glob("*.py"):
        names = {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert not {name for name in names if name.startswith("test_")}, path
