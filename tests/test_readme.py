"""What README and docs show is what is in the repository."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cof
from cof.families import FAMILIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def hook(name: str) -> Any:
    """A module of docs/hooks/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = hook("tables")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [*TEXTS, *PAGES], ids=named)
def test_tables_are_those_of_the_files(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables.fill_blocks(text) == text, "run `make tables`"
    blocks = re.findall(r"^<!-- from ", text, re.MULTILINE)
    assert len(blocks) == len(tables.BLOCK.findall(text)), "a block is misspelt"


def test_every_table_is_there() -> None:
    texts = {page: page.read_text("utf-8") for page in [*TEXTS, *PAGES]}
    assert not [named(page) for page, text in texts.items() if tables.NOT_THERE in text]


class TestTables:
    TEXT = (
        "# All\n\n| a | n |\n|---|--:|\n| x | 1 |\n\n"
        "## More\n\n| b | n |\n|---|--:|\n| y | 2 |\n| z | 3 |\n"
    )

    @pytest.fixture
    def fill(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
        (tmp_path / "t.md").write_text(self.TEXT, "utf-8")
        monkeypatch.setattr(tables, "ROOT", tmp_path)

        def fill(options: str) -> str:
            block = f"<!-- from t.md{options} -->\n\nold\n\n<!-- end -->"
            filled: str = tables.fill_blocks(f"before\n{block}\nafter")
            assert filled.startswith(f"before\n<!-- from t.md{options} -->\n")
            assert filled.endswith("<!-- end -->\nafter")
            return filled.split("-->\n")[1].split("<!--")[0].strip()

        return fill

    def test_the_whole_file(self, fill: Callable[[str], str]) -> None:
        assert fill("") == self.TEXT.removeprefix("# All").strip()

    @pytest.mark.parametrize("name", [' "All"', ' "a"'])
    def test_by_heading_or_first_column(self, fill: Callable[[str], str], name: str) -> None:
        assert fill(name) == "| a | n |\n|---|--:|\n| x | 1 |"

    def test_rows_and_columns(self, fill: Callable[[str], str]) -> None:
        assert fill(' "More" rows="^z"') == "| b | n |\n|---|--:|\n| z | 3 |"
        assert fill(' "b" columns="n; b"') == "| n | b |\n|--:|---|\n| 2 | y |\n| 3 | z |"

    def test_what_is_not_there(self, fill: Callable[[str], str]) -> None:
        assert fill(' "Less"').startswith(f"*{tables.NOT_THERE} `t.md`")
        with pytest.raises(ValueError, match="no rows"):
            fill(' "More" rows="^q"')
        with pytest.raises(ValueError, match="not in list"):
            fill(' "More" columns="q"')


@pytest.mark.parametrize("page", [*TEXTS, *PAGES], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    generated = [ROOT / "docs" / "reference" / f"{name}.md" for name in ("settings", "cli")]
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists() or path in generated, target


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")[1]
    missing = [page for page in PAGES if page.relative_to(ROOT / "docs").as_posix() not in menu]
    assert not missing


def test_the_map_names_files_that_exist() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    names = re.findall(r"(?<![\w.])([a-z_]+(?:\.py|/))", tree)
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "cof" / name).exists(), name


def test_the_map_names_every_package() -> None:
    tree = README.split("## Files")[1].split("```")[1]
    packages = [path.parent.name for path in (ROOT / "cof").glob("*/__init__.py")]
    assert not [name for name in packages if f"{name}/" not in tree]


def test_the_families_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (?:the )?(decoder|Q-Former|cross-attention) \| (.+) \|$", README, re.M)
    adapters = {"qformer": "Q-Former", "decoder": "decoder"}
    told = {(kind, name) for kind, names in rows for name in names.split(", ")}
    known = {(adapters.get(of.adapter, "cross-attention"), of.name) for of in FAMILIES}
    assert told == known


def test_the_readme_is_short() -> None:
    assert len(re.findall(r"\w*[^\W\d_]\w*", README)) < 1300  # numbers in tables are no words


def test_the_changelog_has_this_version() -> None:
    assert f"\n## [{cof.__version__}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert len(paper["authors"]) == 10
    assert paper["url"] == "https://arxiv.org/abs/2412.16869"
