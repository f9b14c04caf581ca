"""The steps of the Dockerfile, followed in an empty folder with packages that are here already."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration


def test_the_images_steps_leave_a_program_that_runs(tmp_path):
    """Needs the package index: building the wheel does."""
    environment = own_environment(tmp_path / "environment")
    folder, project = tmp_path / "image", without_ignored(tmp_path / "project")
    folder.mkdir()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "COPY":
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                put(project / source, folder, target)
        elif instruction == "RUN":
            subprocess.run(rest.split(), cwd=folder, env=environment, check=True, timeout=600)
    version = run("routerretriever --version", tmp_path, environment)
    assert version.startswith("routerretriever ")
    where = "import routerretriever; print(routerretriever.__file__)"
    assert str(tmp_path / "environment") in run(f"python -c '{where}'", tmp_path, environment)
    planned = run("routerretriever run sample --dry-run --set storage=runs", tmp_path, environment)
    assert "7 test sets" in planned


def own_environment(folder: Path) -> dict[str, str]:
    """A virtual environment that sees the packages of this one, but not the project itself."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "installed.pth").write_text(sysconfig.get_paths()["purelib"])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "VIRTUAL_ENV": str(folder), "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}


def without_ignored(target: Path) -> Path:
    """What Docker would be sent of the project: the files that git knows, less those of .dockerignore."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return target


def put(source: Path, folder: Path, target: str) -> None:
    """What COPY does: a file into a folder, or a folder's content into another."""
    if source.is_dir():
        shutil.copytree(source, folder / target)
    else:
        shutil.copy(source, folder / target)


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command, and give what it printed."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
