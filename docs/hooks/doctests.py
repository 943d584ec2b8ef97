"""Docstrings for the site: their worked examples as code, whatever stands around them."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

DOCTEST = re.compile(r"^ *>>> .*(?:\n *\S.*)*", re.MULTILINE)
"""An example: from its first prompt to a blank line."""

HEADING = re.compile(r"^(Examples?):(?=\s*$)", re.MULTILINE)
"""The title of a section of examples."""


class Doctests(griffe.Extension):
    """Examples become code blocks, and the titles above them bold words."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fence_doctests(obj.docstring.value)


def fence_doctests(docstring: str) -> str:
    """The docstring with its examples between fences.

    >>> fence_doctests("Twice.\\n\\n    >>> 2 * 3\\n    6")
    'Twice.\\n\\n```pycon\\n>>> 2 * 3\\n6\\n```'
    """
    fenced = DOCTEST.sub(lambda found: f"```pycon\n{dedent(found[0])}\n```", docstring)
    return HEADING.sub(r"**\1:**", fenced)
