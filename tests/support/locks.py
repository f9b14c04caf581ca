"""The part of ``requirements.lock`` that users need: all but what only tests and checks want.

PYTHONPATH=tests python -m support.locks > requirements-runtime.lock
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_EXTRAS = ("s3", "gcs", "langchain")
MACHINES = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]
"""Whatever one of these needs is pinned, with a marker if another has no release of it."""


def runtime_pins() -> list[str]:
    """Lines of the lock that are reached from the project's own requirements, by what is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in _EXTRAS for one in optional[extra])]
    needed = set().union(*(needed_on(machine, wanted) for machine in MACHINES))
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if canonicalize_name(Requirement(line).name) in needed]


def needed_on(machine: Mapping[str, str], wanted: Iterable[str]) -> set[str]:
    """Names of the packages that these requirements lead to on a machine.

    What a package asks for is read from what is installed here; nothing is known of one that is not.
    """
    todo = [one for one in map(Requirement, wanted) if applies(one, machine)]
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
        todo += [other for other in asked if applies(other, machine, one.extras)]
    return {name for name, _ in seen}


def applies(requirement: Requirement, machine: Mapping[str, str], extras: Iterable[str] = ()) -> bool:
    """Whether a machine needs this of a package that is asked for with these extras."""
    return requirement.marker is None or any(
        requirement.marker.evaluate({**machine, "extra": extra}) for extra in extras or ("",)
    )


if __name__ == "__main__":
    print("\n".join(runtime_pins()))
