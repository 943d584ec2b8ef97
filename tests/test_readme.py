"""What README and docs show is what is in the repository."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import cof
from cof.families import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *PAGES]
EVERY_TEXT = pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
MAP = README.split("## Files")[1].split("```")[1]

spec: Any = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "hooks" / "tables.py")
tables: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@EVERY_TEXT
def test_tables_are_those_of_the_files(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables.fill_blocks(text) == text, "run `make tables`"
    assert tables.NOT_THERE not in text
    blocks = re.findall(r"^<!-- from ", text, re.MULTILINE)
    assert len(blocks) == len(tables.BLOCK.findall(text)), "a block is misspelt"


TWO_TABLES = (
    "# All\n\n| a | n |\n|---|--:|\n| x | 1 |\n\n"
    "## More\n\n| b | n |\n|---|--:|\n| y | 2 |\n| z | 3 |\n"
)


@pytest.mark.parametrize(
    ("options", "table"),
    [
        ("", TWO_TABLES.removeprefix("# All").strip()),  # the whole file but for its title
        (' "All"', "| a | n |\n|---|--:|\n| x | 1 |"),  # by heading
        (' "a"', "| a | n |\n|---|--:|\n| x | 1 |"),  # by first column
        (' "More" rows="^z"', "| b | n |\n|---|--:|\n| z | 3 |"),
        (' "b" columns="n; b"', "| n | b |\n|--:|---|\n| 2 | y |\n| 3 | z |"),
        (' "Less"', f"*{tables.NOT_THERE} `t.md`.*"),
        (' "More" rows="^q"', "no rows"),
        (' "More" columns="q"', "not in list"),
    ],
)
def test_a_block(options: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.md").write_text(TWO_TABLES, "utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    head = f"before\n<!-- from t.md{options} -->\n"
    refused = "|" not in table and "*" not in table
    with pytest.raises(ValueError, match=table) if refused else contextlib.nullcontext():
        filled = tables.fill_blocks(f"{head}\nold\n\n<!-- end -->\nafter")
        assert filled == f"{head}\n{table}\n\n<!-- end -->\nafter"


@EVERY_TEXT
def test_links_lead_somewhere(page: Path) -> None:
    generated = [ROOT / "docs" / "reference" / f"{name}.md" for name in ("settings", "cli")]
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists() or path in generated, target


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")[1]
    assert not [page for page in PAGES if page.relative_to(ROOT / "docs").as_posix() not in menu]


def test_the_map_names_what_there_is() -> None:
    names = re.findall(r"(?<![\w.])([a-z_]+(?:\.py|/))", MAP)
    assert len(names) > 15
    assert not [n for n in names if not ((ROOT / n).exists() or (ROOT / "cof" / n).exists())]
    packages = [path.parent.name for path in (ROOT / "cof").glob("*/__init__.py")]
    assert not [name for name in packages if f"{name}/" not in MAP]


def test_the_families_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (?:the )?(decoder|Q-Former|cross-attention) \| (.+) \|$", README, re.M)
    adapters = {"qformer": "Q-Former", "decoder": "decoder"}
    told = {(kind, name) for kind, names in rows for name in names.split(", ")}
    known = {(adapters.get(of.adapter, "cross-attention"), of.name) for of in FAMILIES}
    assert told == known


def test_the_readme_is_short() -> None:
    assert len(re.findall(r"\w*[^\W\d_]\w*", README)) < 1200  # numbers in tables are no words


def test_the_changelog_has_this_version() -> None:
    assert f"\n## [{cof.__version__}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert len(paper["authors"]) == 10
    assert paper["url"] == "https://arxiv.org/abs/2412.16869"
