"""The client's own wheel: it holds all that the client imports, and asks for little."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib

from support.paths import ROOT
from support.synchronous import WRITTEN, synchronous_client

PACKAGE = ROOT / "platform" / "routerretriever"
PROJECT = tomllib.loads((PACKAGE / "client" / "pyproject.toml").read_text())
FILES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]


def test_it_has_the_packages_version_and_all_of_its_files():
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert PROJECT["project"]["version"] == whole["version"]
    there = {str(path.relative_to(PACKAGE / "client")) for path in (PACKAGE / "client").rglob("*.py")}
    assert there <= set(FILES)
    for source, target in FILES.items():
        assert (PACKAGE / "client" / source).resolve() == (ROOT / "platform" / target).resolve()


def test_the_synchronous_client_is_made_of_the_asynchronous_one():
    assert WRITTEN.read_text() == synchronous_client(), "run `make client`"


def test_what_the_client_imports_of_us_is_in_its_wheel():
    modules = {target.removesuffix(".py").replace("/", ".") for target in FILES.values()}
    for source in FILES:
        if not source.endswith(".py") or source == "../__init__.py":  # the face imports on first use
            continue
        for node in ast.walk(ast.parse((PACKAGE / "client" / source).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("routerretriever"):
                assert node.module in modules, f"{source} imports {node.module}"


def test_the_client_loads_nothing_heavy():
    code = (
        "import sys, routerretriever.client; print({'ray', 'torch', 'mlflow', 'pandas'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "set()"
