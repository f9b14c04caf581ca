"""Where things lie in the checkout and in the virtual environment."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
RECIPES = ROOT / "jobs" / "recipes"
SAMPLE = RECIPES / "sample.yaml"


def files_below(folder: Path) -> dict[str, int]:
    """When each file was last written, in nanoseconds."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
