"""How heavy the pages of the documentation are to read: python -m benchmarks.docs_stats README.md docs

A row a page: words a paragraph (median and longest), numbers in 100 words of prose, the longest table cell in
words, lines over 110 characters. `tests/test_docs.py` holds the limits.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LINE = 110
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s")


@dataclass(frozen=True)
class PageStats:
    """The measures of one page.

    Attributes:
        paragraphs: Words of each paragraph, in the page's order; an item of a list is a paragraph.
        numbers: Words of the prose that hold a digit; what stands in backticks or in a link's address is
            not counted.
        cells: Words of each table cell.
        long_lines: Numbers of the lines over 110 characters, the first line being 1.
    """

    paragraphs: tuple[int, ...]
    numbers: int
    cells: tuple[int, ...]
    long_lines: tuple[int, ...]

    @property
    def median_paragraph(self) -> float:
        """Words of the median paragraph; 0 for a page without prose."""
        return statistics.median(self.paragraphs) if self.paragraphs else 0.0

    @property
    def numbers_per_100_words(self) -> float:
        """Numbers in 100 words of prose."""
        return 100 * self.numbers / max(1, sum(self.paragraphs))


def measure(text: str) -> PageStats:
    """Measure a page of Markdown; code blocks, headings and HTML comments are no prose."""
    lines = text.splitlines()
    prose = list(paragraphs(text))
    numbers = sum(bool(re.search(r"\d", word)) for words in prose for word in visible(words).split())
    return PageStats(
        paragraphs=tuple(len(visible(words, code=True).split()) for words in prose),
        numbers=numbers,
        cells=tuple(len(visible(cell, code=True).split()) for cell in cells(text)),
        long_lines=tuple(number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE),
    )


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and list items of a page, each on one line."""
    block: list[str] = []
    for line in [*_without_code(text).splitlines(), ""]:
        ends = not line.strip() or line.startswith(("#", "|", "!["))
        if block and (ends or ITEM.match(line)):
            yield " ".join(block)
            block = []
        if not ends:
            block.append(ITEM.sub("", line).strip())


def cells(text: str) -> Iterator[str]:
    """Cells of a page's tables, without the rules under their heads."""
    for line in _without_code(text).splitlines():
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            yield from (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])


def visible(text: str, code: bool = False) -> str:
    """What a reader sees of a line: the words of links; backticked code as a word each, or not at all."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"`[^`]*`", "code" if code else "", text)


def _without_code(text: str) -> str:
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.MULTILINE)


def pages(roots: Sequence[str]) -> list[Path]:
    """The Markdown files that are named, or lie below the folders that are."""
    found = [sorted(Path(root).rglob("*.md")) if Path(root).is_dir() else [Path(root)] for root in roots]
    return [page for part in found for page in part]


def table(roots: Sequence[str]) -> str:
    """One line a page."""
    lines = [f"{'page':44s} {'median':>6s} {'longest':>7s} {'num/100':>7s} {'cell':>4s} {'long lines':>10s}"]
    for page in pages(roots):
        stats = measure(page.read_text(encoding="utf-8"))
        longest, cell = max(stats.paragraphs, default=0), max(stats.cells, default=0)
        lines.append(
            f"{page!s:44s} {stats.median_paragraph:6.1f} {longest:7d} {stats.numbers_per_100_words:7.1f} "
            f"{cell:4d} {len(stats.long_lines):10d}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(sys.argv[1:] or ["README.md", "docs"]))
