"""Links of the documentation that leave docs/: what they lead to becomes part of the site.

Pages link to files of the repository as they would on disk (`../results/tiny/table.md`), so that
they work there too. The site holds those files under their paths in the repository, with the files
that they link to in turn.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?(?=\))")
"""The target of a Markdown link or image, unless it is an address or within the page."""

LOADS = re.compile(r'<(?:script|img|iframe|source)[^>]+src="https?:|<link[^>]+href="https?:')
"""What a browser would fetch from the network to show a page."""

FIRST_SCREEN = "<!-- the first screen of README.md -->"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    waiting = [path for path in waiting if path.is_file()] + [ROOT / "README.md"]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in targets(page):
            if target in seen or not target.is_file():
                continue
            seen.add(target)
            if not target.is_relative_to(DOCS):
                uri = target.relative_to(ROOT).as_posix()
                files.append(File.generated(config, uri, abs_src_path=str(target)))
                if target.suffix == ".md":
                    waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links lead to where the files are in the site."""
    uri = page.file.src_uri
    if FIRST_SCREEN in markdown:
        first = ROOT.joinpath("README.md").read_text("utf-8").split("\n## ")
        screen = relink("\n## ".join(first[:2]), ROOT, uri)
        return markdown.replace(FIRST_SCREEN, screen)
    folder = DOCS if (DOCS / uri).is_file() else ROOT
    return relink(markdown, (folder / uri).parent, uri)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse pages that need the network to be shown.

    Raises:
        PluginError: a page does.
    """
    if found := LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} needs the network: {found[0]}")
    return output


def targets(page: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    links = LINK.finditer(page.read_text("utf-8"))
    paths = [(page.parent / link["path"]).resolve() for link in links]
    return [path for path in paths if path.is_relative_to(ROOT)]


def relink(markdown: str, folder: Path, uri: str) -> str:
    """The links of a text, as written in a folder, as they are in the site's page at `uri`."""

    def replace(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        home = DOCS if target.is_relative_to(DOCS) else ROOT
        start = os.path.dirname(uri) or "."
        return os.path.relpath(target.relative_to(home), start) + (link["anchor"] or "")

    return LINK.sub(replace, markdown)
