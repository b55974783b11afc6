"""What the documentation shows: its pages, the commands in their blocks and in their text, and its links."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "cluster/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]

_SHELL = {"sh", "bash", "console"}
_MARK = re.compile(r"<!-- not run: (\S.*?) -->")
_FENCE = re.compile(r" *```(\w*)")


@dataclass(frozen=True)
class Command:
    """A command line of a block; `why_not_run` is the reason in the mark before the block."""

    page: str
    line: int
    words: tuple[str, ...]
    why_not_run: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Block:
    """A fenced or indented block: its language ("" for an indented one), first line's number, lines, and the line before it."""

    page: str
    language: str
    line: int
    lines: tuple[str, ...]
    before: str


def commands() -> list[Command]:
    """Every command of every block that is indented or fenced as a shell's. Blocks of other text are fenced with their language."""
    return [command for page in PAGES for block in blocks(page) if block.language in {"", *_SHELL} for command in _commands(block)]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced and indented blocks of a page, in order."""
    name, before, lines = str(page.relative_to(ROOT)), "", page.read_text(encoding="utf-8").splitlines()
    i = 0
    while i < len(lines):
        start, fence = i, _FENCE.match(lines[i])
        if fence:
            i = next(k for k in range(start + 1, len(lines)) if lines[k].strip() == "```")
            yield Block(name, fence[1] or "unnamed", start + 2, tuple(lines[start + 1 : i]), before)
            before = ""
        elif lines[i].startswith("    ") and not lines[i - 1].strip():
            assert not re.match(r"- |\d+\. |  ", before), f"{name}:{start + 1}: within a list this is no block of code"
            while i + 1 < len(lines) and (lines[i + 1].startswith("    ") or not lines[i + 1].strip()):
                i += 1
            yield Block(name, "", start + 1, tuple(line[4:] for line in lines[start : i + 1]), before)
            before = ""
        elif lines[i].strip():
            before = lines[i]
        i += 1


def inline_code(page: Path) -> Iterator[str]:
    """The code spans in the text of a page."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"(?<!`)`([^`\n]+)`", text)


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures."""
    text = re.sub(r"^ *```.*?^ *```$|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def _commands(block: Block) -> Iterator[Command]:
    mark = _MARK.fullmatch(block.before.strip())
    pending, first = "", block.line
    for number, line in enumerate(block.lines, block.line):
        first = first if pending else number
        if line.endswith("\\"):
            pending += line[:-1]
            continue
        try:
            words = shlex.split(pending + line, comments=True)
        except ValueError as error:
            raise ValueError(f"{block.page}:{number}: no command line: {error}; fence other text") from error
        pending = ""
        if words:
            yield Command(block.page, first, tuple(words), mark[1] if mark else None)
