"""A report as a list of blocks: built once, written as Markdown, HTML and CSV.

Text is Markdown with `code` in it and nothing else.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from cof.errors import CofError


@dataclass(frozen=True)
class Number:
    """A figure in a table.

    Attributes:
        value: itself.
        spec: how it is shown, as for `format`; `p`: as a p-value.
        low, high: its 95 % interval, if it has one.
    """

    value: float
    spec: str = ".3f"
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, row: Any, spec: str, name: str = "") -> Number:
        """With its interval, out of a row of `cof.eval.figures.compare`."""
        low, high = (row[f"{name}_{end}" if name else end] for end in ("low", "high"))
        return cls(row[name or "value"], spec, low, high)

    def __str__(self) -> str:
        """
        >>> str(Number(0.5, ".3f", 0.41, 0.59)), str(Number(0.0421, "p")), str(Number(3e-5, "p"))
        ('0.500 [0.410, 0.590]', '0.042', '3.0e-05')
        """
        return "".join(self.parts)

    @property
    def parts(self) -> tuple[str, str]:
        """The figure, and its interval with the blank between them; or nothing."""
        spec = self.spec
        if spec == "p":
            spec = ".1e" if self.value < 0.001 else ".3f"
        interval = "" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return format(self.value, spec), interval


Cell = str | int | Number


@dataclass(frozen=True)
class Table:
    """A table, whose CSV file has its name, unique in the run; the first column is aligned to the
    left."""

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


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

    items: Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing, as an `<svg>` element, whose file has its name, unique in the run."""

    name: str
    title: str
    svg: str = field(repr=False)


@dataclass(frozen=True)
class Card:
    """A question that was fixed or broken, with its image.

    Attributes:
        outcome: `fixed` or `broken`.
        kind: of the question; may be empty.
        question: what was asked, and options if it had any.
        truth: the true answer.
        answers: each method's answer, by name, and whether it is right.
        image: an address that holds it, boxes drawn; empty: it is no longer there.
    """

    outcome: str
    kind: str
    question: str
    truth: str
    answers: Sequence[tuple[str, str, bool]]
    image: str = field(default="", repr=False)


Block = Heading | Text | Items | Table | Chart | Card


def markdown(blocks: Iterable[Block], charts: str = "", deeper: int = 0) -> str:
    """The report as Markdown.

    Args:
        blocks: the report.
        charts: what stands before the charts' names, as seen from the file.
        deeper: added to the level of every heading.
    """
    return "\n\n".join(_markdown(block, charts, deeper) for block in blocks) + "\n"


def _markdown(block: Block, charts: str, deeper: int) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * (level + deeper)} {text}"
        case Text(text):
            return text
        case Items(items):
            return "\n".join(f"- **{name}**: {text}" for name, text in items)
        case Table(_, head, rows):
            shown = [
                [str(c).replace("|", "\\|").replace("\n", " ") for c in r] for r in (head, *rows)
            ]
            lines = [" | ".join(row) for row in shown]
            rule = f"|---{'|--:' * (len(head) - 1)}|"
            return "\n".join([f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])])
        case Chart(name, title):
            return f"![{title}]({charts}{name}.svg)"
        case Card(outcome, _, question, truth, answers):
            asked = " ".join(question.split())
            given = "; ".join(f"{name}: {text!r}" for name, text, _ in answers)
            # answers may hold what looks like HTML
            return escape(f"- {outcome}: *{asked}* Truth: {truth!r}; {given}.", quote=False)


def html(title: str, lead: str, sections: Sequence[tuple[str, str, Sequence[Block]]]) -> str:
    """The report as one page that needs nothing else: no network, no scripts, light and dark.

    Args:
        title: of the whole.
        lead: a line below it.
        sections: of each run the id of its anchor, the title over it, and all else.

    Raises:
        CofError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise CofError("The page of a report takes jinja2: pip install 'cof[eval]'.") from error

    def inline(text: Any) -> Markup:
        """Markdown's `code` as HTML; all else escaped."""
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(str(text))))

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["inline"] = inline
    source = Path(__file__).with_name("page.html").read_text("utf-8")
    return environment.from_string(source).render(title=title, lead=lead, sections=sections)


def csv_text(table: Table) -> str:
    """A table as CSV: a number to a cell, unrounded; intervals in columns of their own.

    >>> print(csv_text(Table("t", ["method", "n"], [["plain", Number(0.5, ".1f", 0.4, 0.6)]])))
    method,n,n low,n high
    plain,0.5,0.4,0.6
    <BLANKLINE>
    """
    columns: list[list[object]] = []
    for place, name in enumerate(table.head):
        cells = [row[place] for row in table.rows]
        columns.append([name, *(getattr(cell, "value", cell) for cell in cells)])
        for end in ("low", "high"):
            bounds = [getattr(cell, end, None) for cell in cells]
            if any(bound is not None for bound in bounds):
                columns.append([f"{name} {end}", *bounds])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(zip(*columns, strict=True))
    return file.getvalue()
