"""The Markdown pages of the project, and what is in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")})

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *(?P=ticks) *$", re.M | re.S
)
_MARK = re.compile(r"<!-- test: (.*?) -->\s*$")
_CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_COMMAND = re.compile(r"(?:routerretriever [a-z]|python |make |ray [a-z]|serve [a-z]|pip |--set )")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: what language it says it is in, and what a ``<!-- test: ... -->`` above it says."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        before = text[: found.start()]
        mark = _MARK.search(before.rstrip(" "))
        indent = found["indent"]
        lines = "\n".join(line.removeprefix(indent) for line in found["text"].split("\n"))
        yield Block(page, before.count("\n") + 1, found["language"], lines, mark[1] if mark else "")


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Where the links of a page lead."""
    return _LINK.findall(prose(page))


def inline_code(page: Path) -> list[str]:
    """What stands in backquotes within sentences."""
    return [" ".join(each.split()) for each in _CODE.findall(prose(page))]


def inline_commands(page: Path) -> list[str]:
    """Commands that are named within sentences, and settings that they replace."""
    return [code for code in inline_code(page) if _COMMAND.match(code)]


def shell_lines(block: Block) -> list[str]:
    """What a block has a shell do: joined lines, without here-documents."""
    text = re.sub(r"<<-?\s*'?(\w+)'?(.*?)\n.*?^\1$", r"\2", block.text, flags=re.M | re.S)
    text = text.replace("\\\n", " ")
    lines = [line.strip() for line in text.split("\n")]
    return list(_whole(line for line in lines if line))


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Lines, joined while a quotation is open."""
    begun = ""
    for line in lines:
        begun = f"{begun} {line}".strip()
        try:
            shlex.split(begun, comments=True)
        except ValueError:
            continue
        yield begun
        begun = ""
    assert not begun, f"a quotation is not closed: {begun}"


def anchors(page: Path) -> set[str]:
    """Names of the headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", each.lower()).strip()) for each in headings}
