"""Put the benchmarks' figures into the pages beside this file, as ``make docs`` does; a test holds them.

A benchmark leaves ``runs/benchmarks/NAME.json``. To publish one, keep it under a name that a page asks for:

    python docs/benchmarks/generate.py runs/benchmarks/search.json search

A page asks for it between ``<!-- figures: search -->`` and ``<!-- end of figures -->``.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
KEPT = ("command", "hardware", "date", "commit", "title", "columns", "rows", "ratios")
"""What is published of a benchmark's file; its recipe, for one, holds paths of the machine."""
_BLOCK = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page with figures, as it ought to be."""
    made = {}
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if _BLOCK.search(text):
            made[page] = _BLOCK.sub(lambda found: found[1] + figures(read(found[2])) + found[3], text)
    return made


def read(name: str) -> dict[str, Any]:
    """The published figures of a benchmark."""
    found: dict[str, Any] = json.loads((FOLDER / "figures" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def figures(found: dict[str, Any]) -> str:
    """A benchmark's table and ratios, and how, where and when they were measured, as Markdown."""
    rows, ratios = found["rows"], found.get("ratios", {})
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(found["columns"]))]
    lines = ["", _line(found["columns"]), _line(["---:" if each else "---" for each in right])]
    lines += [_line(row) for row in rows]
    if ratios:
        lines += ["", *(f"- {what}: {ratio:.2f}" for what, ratio in ratios.items())]
    date = datetime.fromisoformat(found["date"])
    told = f"`{found['command']}`, {date.day} {date:%B %Y}, commit {found['commit']}; {found['hardware']}."
    return "\n".join([*lines, "", told, "", ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+]?[\d,.]+( ?[%x])?|–|", str(cell)) is not None


def publish(path: Path, name: str) -> None:
    """Keep what pages show of a benchmark's file."""
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: found[key] for key in KEPT if key in found}
    target = FOLDER / "figures" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        publish(Path(sys.argv[1]), sys.argv[2])
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(f"wrote {page}", file=sys.stderr)
