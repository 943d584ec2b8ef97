"""A report as one HTML page that needs nothing else: no network, no scripts, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.report.document import Block, Cell, Chart, Number

_MOST_ROWS = 30  # of a table that is shown at once


@dataclass(frozen=True)
class Section:
    """A run in the page.

    Attributes:
        id: of its anchor.
        title: over it.
        blocks: all but its title.
    """

    id: str
    title: str
    blocks: Sequence[Block]


def html(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page.

    Args:
        title: of the whole.
        lead: a line below it.
        sections: the runs.

    Raises:
        CofError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise CofError("The page of a report takes jinja2: pip install 'cof[eval]'.") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"inline": _inline, "cell": _cell, "base64": _base64, "words": _is_words}
    source = Path(__file__).with_name("page.html").read_text("utf-8")
    shown = [
        {"id": section.id, "title": section.title, "blocks": _group(section.blocks)}
        for section in sections
    ]
    return environment.from_string(source).render(
        title=title, lead=lead, sections=shown, most_rows=_MOST_ROWS
    )


def _group(blocks: Iterable[Block]) -> list[tuple[str, Any]]:
    """Blocks with their kinds; charts that follow one another stand side by side."""
    grouped: list[tuple[str, Any]] = []
    for block in blocks:
        if not isinstance(block, Chart):
            grouped.append((type(block).__name__, block))
        elif grouped and grouped[-1][0] == "charts":
            grouped[-1][1].append(block)
        else:
            grouped.append(("charts", [block]))
    return grouped


def _inline(text: str) -> Any:
    r"""Markdown's `code`, **bold** and *slanted* words as HTML; all else escaped.

    >>> str(_inline("**a < b**, `x*y*z`"))
    '<strong>a &lt; b</strong>, <code>x*y*z</code>'
    """
    from markupsafe import Markup

    parts = re.split(r"(`[^`]+`)", escape(text))
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"<code>{part[1:-1]}</code>"
        else:
            bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
            parts[place] = re.sub(r"\*(\S(?:.*?\S)?)\*", r"<em>\1</em>", bold)
    return Markup("".join(parts))


def _is_words(cell: Cell) -> bool:
    """Whether a cell is no figure."""
    return isinstance(cell, str) and not re.fullmatch(r"([-+]?\d.*)?-?", cell)


def _cell(cell: Cell) -> Any:
    from markupsafe import Markup

    if isinstance(cell, Number):
        shown, beside = cell.parts
        return Markup(escape(shown) + (f"<small>{escape(beside)}</small>" if beside else ""))
    return _inline(str(cell))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
