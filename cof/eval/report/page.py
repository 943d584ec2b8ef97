"""A report as one HTML page that needs nothing else: no network, no scripts, light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.report.document import Block


def html(title: str, lead: str, sections: Sequence[tuple[str, str, Sequence[Block]]]) -> str:
    """The page.

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
