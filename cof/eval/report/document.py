"""A report as a list of blocks: built once, written as Markdown, HTML, CSV and LaTeX.

Text is Markdown with `code` and **bold** in it and nothing else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape


def p_value(value: float) -> str:
    """With three digits after the point, tiny ones as a power of ten.

    >>> p_value(0.0421), p_value(0.00003)
    ('0.042', '3.0e-05')
    """
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class Number:
    """A figure in a table.

    Attributes:
        value: itself.
        spec: how it is shown, as for `format`; `p`: as a p-value.
        low, high: its 95 % interval, if it has one.
        gain: how much it is above the plain model's, if that is shown beside it.
    """

    value: float
    spec: str = ".3f"
    low: float | None = None
    high: float | None = None
    gain: float | None = None

    def __str__(self) -> str:
        """
        >>> str(Number(0.5, ".3f", 0.41, 0.59)), str(Number(64.3, ".1f", gain=-1.2))
        ('0.500 [0.410, 0.590]', '64.3 (-1.2)')
        """
        return "".join(self.parts)

    @property
    def parts(self) -> tuple[str, str]:
        """The figure, and what is shown beside it with the blank between them; or nothing."""
        if self.spec == "p":
            return p_value(self.value), ""
        shown = format(self.value, self.spec)
        if self.low is not None and self.high is not None:
            return shown, f" [{format(self.low, self.spec)}, {format(self.high, self.spec)}]"
        return shown, "" if self.gain is None else f" ({self.gain:+.1f})"


Cell = str | int | Number


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its CSV and LaTeX files; unique in the report.
        head: names of the columns; the first one is aligned to the left.
        rows: their cells.
        over: titles over several columns each, as `(title, how many)`, from the second column on.
        caption: of the LaTeX table.
    """

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    over: Sequence[tuple[str, int]] = ()
    caption: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the whole report's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of what is explained, by name."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing.

    Attributes:
        name: of its file; unique in the report.
        title: what it shows.
        svg: the `<svg>` element.
    """

    name: str
    title: str
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Card:
    """One question in a gallery.

    Attributes:
        outcome: `fixed` or `broken`.
        kind: of the question; may be empty.
        question: what was asked, and options if it had any.
        truth: the true answer.
        answers: each method's answer, by name, and whether it is right.
        note: about the boxes.
        image: a WebP file, boxes drawn; None: the image is no longer there.
        image_wh: its size in pixels.
    """

    outcome: str
    kind: str
    question: str
    truth: str
    answers: Sequence[tuple[str, str, bool]]
    note: str
    image: bytes | None = field(default=None, repr=False)
    image_wh: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Gallery:
    """Questions that were fixed or broken, with their images."""

    cards: Sequence[Card]


Block = Heading | Text | Items | Table | Chart | Gallery


def markdown(blocks: Iterable[Block], charts: str = "") -> str:
    """The report as Markdown.

    Args:
        blocks: the report.
        charts: folder of the charts, as seen from the file.
    """
    return "\n\n".join(part for part in (_markdown(block, charts) for block in blocks)) + "\n"


def csv_text(content: Table) -> str:
    """A table as CSV: a number to a cell, unrounded; intervals and gains in columns of their own.

    >>> print(csv_text(Table("t", ["method", "n"], [["plain", Number(0.5, ".1f", 0.4, 0.6)]])))
    method,n,n low,n high
    plain,0.5,0.4,0.6
    <BLANKLINE>
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [[row[place] for row in content.rows] for place in range(len(content.head))]
    wide = [_extras(column) for column in columns]
    titles = _full_titles(content)
    writer.writerow(
        name
        for title, extras in zip(titles, wide, strict=True)
        for name in (title, *(f"{title} {extra}" for extra in extras))
    )
    for row in content.rows:
        cells: list[object] = []
        for cell, extras in zip(row, wide, strict=True):
            cells.append(cell.value if isinstance(cell, Number) else cell)
            cells += [getattr(cell, extra, None) for extra in extras]
        writer.writerow("" if cell is None else cell for cell in cells)
    return file.getvalue()


def _extras(column: Sequence[Cell]) -> list[str]:
    return [
        name
        for name in ("low", "high", "gain")
        if any(getattr(cell, name, None) is not None for cell in column)
    ]


def _full_titles(content: Table) -> list[str]:
    """Names of the columns with the titles over them."""
    over = [title for title, columns in content.over for _ in range(columns)]
    titles = ["", *over] if over else [""] * len(content.head)
    return [f"{above} {name}".strip() for above, name in zip(titles, content.head, strict=True)]


def _markdown(block: Block, charts: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Items):
        return "\n".join(f"- **{name}**: {text}" for name, text in block.items)
    if isinstance(block, Table):
        titles = _full_titles(block)
        lines = ["| " + " | ".join(titles) + " |", "|---" + "|--:" * (len(titles) - 1) + "|"]
        return "\n".join(lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in block.rows])
    if isinstance(block, Chart):
        return f"![{block.title}]({charts}{block.name}.svg)"
    return "\n\n".join(_card(card) for card in block.cards)


def _cell(cell: Cell) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")


def _card(card: Card) -> str:
    answers = "; ".join(f"{name}: {text!r}" for name, text, _ in card.answers)
    asked = " ".join(card.question.split())
    line = f"- {card.outcome}: *{asked}* Truth: {card.truth!r}; {answers}. {card.note}".rstrip()
    return escape(line, quote=False)  # answers may hold what looks like HTML
