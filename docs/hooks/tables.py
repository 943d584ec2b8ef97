"""Tables of figures come from the files that the measuring commands wrote.

A page holds a block such as

    <!-- from results/tiny/table.md "headline figures" rows="^fine" columns="method; value" -->
    <!-- end -->

and `python docs/hooks/tables.py README.md docs` (`make tables`) writes the table between the two
lines: the first one under that heading, or whose first column has that name; without a name the
whole file, but for its title. `rows` is a regular expression that a row must match, `columns` are
those that are kept. The documentation site fills the blocks anew whenever it is built, and
tests/test_readme.py compares them with the files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(
    r"(?P<head>^<!-- from (?P<source>[^\s>]+)"
    r'(?: "(?P<name>[^"]+)")?(?: rows="(?P<rows>[^"]+)")?(?: columns="(?P<columns>[^"]+)")? -->\n)'
    r"(?P<body>.*?)(?P<end>^<!-- end -->$)",
    re.DOTALL | re.MULTILINE,
)
"""A block; what is above it in the page does not matter."""


NOT_THERE = "Not measured yet: this table will come from"


def fill_blocks(text: str) -> str:
    """The page with its tables as they now are in the files.

    A table that is not there yet leaves a sentence that says so.

    Raises:
        ValueError: a table has no such column or row.
    """
    return BLOCK.sub(lambda block: f"{block['head']}{_body(block)}{block['end']}", text)


def _body(block: re.Match[str]) -> str:
    file = ROOT / block["source"]
    text = file.read_text("utf-8") if file.is_file() else ""
    if text and block["name"] is None:
        return f"\n{re.sub('^# .*', '', text).strip()}\n\n"
    for name, table in named_tables(text):
        if block["name"] in (name, table[0][0].strip()):
            return f"\n{_markdown(_select(table, block))}\n\n"
    return f"\n*{NOT_THERE} `{block['source']}`.*\n\n"


def named_tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each table of a Markdown file, cell by cell, with the last heading above it."""
    heading = ""
    for part in re.split(r"\n{2,}", text):
        lines = part.strip().splitlines()
        if lines and lines[0].startswith("#"):
            heading = lines[0].lstrip("# ")
        table = [line for line in lines if line.startswith("|")]
        if len(table) > 1:
            yield heading, [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]


def _select(table: list[list[str]], block: re.Match[str]) -> list[list[str]]:
    head, rule, *rows = [[cell.strip() for cell in row] for row in table]
    if block["rows"]:
        rows = [row for row in rows if re.search(block["rows"], " | ".join(row))]
    places = range(len(head))
    if block["columns"]:
        places = [head.index(name) for name in block["columns"].split("; ")]
    if not rows:
        raise ValueError(f"{block['source']} has no rows {block['rows']!r}")
    return [[row[place] for place in places] for row in (head, rule, *rows)]


def _markdown(table: list[list[str]]) -> str:
    head, rule, *rows = table
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs: the tables of a page are those of the files."""
    return fill_blocks(markdown)


def pages(paths: list[str]) -> list[Path]:
    """The Markdown files that are named, or lie in folders that are."""
    found = [Path(path) for path in paths]
    return [file for path in found for file in ([path] if path.is_file() else path.rglob("*.md"))]


if __name__ == "__main__":
    for page in pages(sys.argv[1:]):
        before = page.read_text("utf-8")
        if (after := fill_blocks(before)) != before:
            page.write_text(after, "utf-8")
            print(page)
