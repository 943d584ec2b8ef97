"""The tree in CONTRIBUTING.md: every file of cof/ and lab/ with its lines and its purpose.

`python docs/hooks/tree.py` (`make tables`) writes it anew; a purpose is the first line of the
file's docstring.
"""

from __future__ import annotations

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- tree -->\n", "<!-- end -->"


def write_tree() -> str:
    """The tree as Markdown: one list for each folder."""
    files = sorted([*ROOT.glob("cof/**/*.py"), *ROOT.glob("lab/**/*.py")])
    files = sorted(files, key=lambda file: file.relative_to(ROOT).parent.as_posix())
    parts = []
    for folder, group in groupby(files, key=lambda file: file.relative_to(ROOT).parent):
        lines = [f"**{folder.as_posix()}/**\n"]
        for file in group:
            text = file.read_text("utf-8")
            if text:
                about = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
                lines.append(f"- `{file.name}` {len(text.splitlines())}: {' '.join(about.split())}")
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if "\n- " in part) + "\n"


def fill(page: str) -> str:
    """A page with the tree as it now is."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{write_tree()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text("utf-8")), "utf-8")
