"""The part of ``requirements.lock`` that users need: all but what only tests and checks want.

PYTHONPATH=tests python -m support.locks > requirements-runtime.lock
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_EXTRAS = ("s3", "gcs", "langchain")
_MACHINES = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]
"""Whatever one of these needs is pinned; pip leaves out what a machine does not need."""


def runtime_pins() -> list[str]:
    """Lines of the lock that are reached from the project's own requirements, by what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in _EXTRAS for one in optional[extra])]
    todo = [Requirement(text) for text in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            asked = [Requirement(text) for text in metadata.requires(one.name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another kind of machine
        todo += [other for other in asked if _applies(other, one.extras)]
    reached = {name for name, _ in seen}
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if canonicalize_name(Requirement(line).name) in reached]


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(
        requirement.marker.evaluate({**machine, "extra": extra})
        for machine in _MACHINES
        for extra in (extras or {""})
    )


if __name__ == "__main__":
    print("\n".join(runtime_pins()))
