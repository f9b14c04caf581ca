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
_INLINE = re.compile(r"`(routerretriever [a-z][^`\n]*(?:\n[^`\n]+)?)`")
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


def inline_commands(page: Path) -> list[str]:
    """Commands that are named within sentences."""
    return [" ".join(each.split()) for each in _INLINE.findall(prose(page))]


def shell_lines(block: Block) -> list[str]:
    """What a block has a shell do: joined lines, without comments, prompts and here-documents."""
    text = re.sub(r"<<-?\s*'?(\w+)'?(.*?)\n.*?^\1$", r"\2", block.text, flags=re.M | re.S)
    text = text.replace("\\\n", " ")
    lines = [line.strip() for line in text.split("\n")]
    if block.language in ("console", ""):  # with what is printed
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        plain = [] if block.language else [line for line in lines if line.startswith("routerretriever ")]
        return prompted or plain
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
