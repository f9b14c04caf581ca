"""The lock file pins what the project asks for, and nothing that only one kind of machine can install."""

from __future__ import annotations

import ast
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.locks import MACHINES, applies, needed_on, runtime_pins
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
PINS = {canonicalize_name(line.name): Version(str(line.specifier).removeprefix("==")) for line in LINES}


def test_every_dependency_is_pinned_within_its_bounds():
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
    missing = [str(one) for one in wanted if canonicalize_name(one.name) not in PINS]
    assert missing == []
    outside = [str(one) for one in wanted if PINS[canonicalize_name(one.name)] not in one.specifier]
    assert outside == []


def test_lower_bounds_are_what_the_other_dependencies_allow():
    """As far as what is installed tells: of a dependency that is installed in its oldest release."""
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    least = {
        canonicalize_name(one.name): Version(part.version)
        for one in wanted
        for part in one.specifier
        if part.operator in (">=", "==")
    }
    for one in wanted:
        if Version(metadata.version(one.name)) != least[canonicalize_name(one.name)]:
            continue
        for other in map(Requirement, metadata.requires(one.name) or []):
            bound = least.get(canonicalize_name(other.name))
            if bound is not None and applies(other, MACHINES[0], one.extras):
                assert bound in other.specifier, f"{one.name}, as old as is allowed, needs {other}"


def test_what_the_package_imports_is_asked_for_by_more_than_the_tests():
    groups = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    wanted = {name: {canonicalize_name(Requirement(one).name) for one in own} for name, own in groups.items()}
    of_tests = wanted.pop("dev").difference(*wanted.values())
    modules: set[str] = set()
    for path in (ROOT / "platform").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    packages = metadata.packages_distributions()
    imported = {canonicalize_name(one) for module in modules for one in packages.get(module, ())}
    assert imported & of_tests == set()
    assert "numpy" in imported


def test_what_only_examples_need_is_pinned_apart_and_changes_nothing():
    lines = [Requirement(line) for line in (ROOT / "requirements-examples.lock").read_text().splitlines()]
    own = {canonicalize_name(line.name): Version(str(line.specifier).removeprefix("==")) for line in lines}
    assert not own.keys() & PINS.keys()
    for text in PROJECT["optional-dependencies"]["examples"]:
        wanted = Requirement(text)
        assert own[canonicalize_name(wanted.name)] in wanted.specifier
    # As far as it is installed. Without one of these, tests of a framework were skipped.
    needed = needed_on(MACHINES[0], PROJECT["optional-dependencies"]["examples"])
    assert needed - own.keys() - PINS.keys() <= {"setuptools"}  # no lock names it, as `pip freeze` does not


def test_pins_are_releases_that_every_machine_can_install():
    assert [str(line) for line in LINES if len(line.specifier) != 1 or "==" not in str(line.specifier)] == []
    assert {name for name, version in PINS.items() if version.local} == set()
    assert len(PINS) == len(LINES)


def test_pins_have_the_markers_of_what_needs_them():
    optional = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(text for extra in optional for text in extra)]
    for machine in MACHINES:
        installed = {
            canonicalize_name(line.name) for line in LINES if not line.marker or line.marker.evaluate(machine)
        }
        assert installed - needed_on(machine, wanted) == set(), f"add a marker: {machine} may have no release"
        assert (needed_on(machine, wanted) & PINS.keys()) - installed == set(), f"needed on {machine}"


def test_what_users_need_is_locked_without_test_tools():
    """If this fails: PYTHONPATH=tests python -m support.locks > requirements-runtime.lock"""
    pinned = (ROOT / "requirements-runtime.lock").read_text().splitlines()
    assert pinned == runtime_pins()
    names = {canonicalize_name(Requirement(line).name) for line in pinned}
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} <= names
    assert {"s3fs", "gcsfs"} <= names
    assert {"boto3", "google-cloud-storage"} <= names  # with which MLflow opens artifacts in a bucket
    assert not names & {"pytest", "ruff", "mypy", "hypothesis", "moto", "schemathesis", "coverage"}


def test_a_python_of_another_version_is_told_before_an_environment_is_made(tmp_path):
    python = tmp_path / "python3"
    changed = "import sys; sys.version_info = (3, 10, 4); exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "{changed}" "$2"\n')
    python.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "sample", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"{python} is Python 3.10; name one of 3.11 to 3.13: make sample PYTHON=python3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()
