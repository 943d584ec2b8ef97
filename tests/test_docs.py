"""Every snippet of the documentation runs, in the order of its page.

Python blocks share a namespace; lines `# -> ...` are what the block prints. In bash blocks `cof`
runs for real, `pip`, `make` and `python -m` are checked to exist. A page has a folder of its own,
where `llava-hf/llava-1.5-7b-hf` is a tiny random model and benchmarks hold a few questions. A block
below `<!-- not run: reason -->` is only parsed; those of docs/serving.md that ask a server run in
tests/test_serve.py.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import formats
import pytest
import typer
from models import checkpoint
from typer.testing import CliRunner

from cof.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

BLOCK = re.compile(
    r"^(?:<!-- (?P<tag>not run: [^>]+) -->\n)?```(?P<kind>python|bash)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)

SERVER = "127.0.0.1:8000"

EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


@dataclass(frozen=True)
class Snippet:
    """A block of code, and the line it begins at."""

    kind: str
    code: str
    line: int
    runs: bool

    @property
    def expected(self) -> list[str]:
        """The lines that it says it prints."""
        return re.findall(r"^ *# -> (.*)$", self.code, re.MULTILINE)


def snippets(page: Path) -> list[Snippet]:
    text = page.read_text("utf-8")
    return [
        Snippet(of["kind"], of["code"], text.count("\n", 0, of.start("code")), not of["tag"])
        for of in BLOCK.finditer(text)
    ]


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a bash block, word by word, without comments and assignments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                del command[0]
            if command:
                yield command


def parse(arguments: list[str]) -> None:
    """Have the command line read the arguments of `cof` without running anything."""
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="cof")
    while hasattr(command, "resolve_command"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = typer.Context(command, info_name=name, parent=context)
    with command.make_context(name, list(arguments), parent=context.parent):
        pass


def check(command: list[str], *, runs: bool) -> None:
    """Run a command of `cof`; of others see that what they name exists."""
    program, *arguments = command
    if program == "cof":
        if runs and arguments[0] not in ("serve", "web"):  # which wait for requests
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
        else:
            parse(arguments)
    elif program == "pip":
        named = re.findall(r"\[(.+?)\]", " ".join(arguments))
        for extra in ",".join(named).split(",") if named else ():
            assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), f"no extra {extra}"
    elif program == "make":
        for target in arguments:
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no target {target}"
    elif program == "docker":
        assert (ROOT / "Dockerfile").is_file()
    elif program == "python" and arguments[0] == "-m":
        assert not runs or find_spec(arguments[1]) is not None, f"no module {arguments[1]}"
        for path in arguments[2:]:
            assert not path.startswith("tests/") or (ROOT / path).exists(), f"no {path}"
    else:
        assert not runs, f"say how to check {program!r}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the snippets find around them."""
    (tmp_path / "cof").symlink_to(ROOT / "cof")
    shutil.copy(ROOT / "cof" / "demo" / "scene-4.png", tmp_path / "photo.jpg")
    model = tmp_path / "llava-hf" / "llava-1.5-7b-hf"
    shutil.copytree(checkpoint("llava"), model)
    config = (model / "config.json").read_text("utf-8")  # for the paper's prompt, in bytes
    longer = config.replace('"max_position_embeddings": 512', '"max_position_embeddings": 1024')
    (model / "config.json").write_text(longer, "utf-8")
    (tmp_path / "questions.jsonl").write_text('{"image": "photo.jpg", "question": "What is it?"}')
    formats.mme(tmp_path / "MME_Benchmark_release_version")
    formats.pope(tmp_path / "POPE")
    formats.tsv(tmp_path / "mmbench_test.tsv", formats.mmbench_rows())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])


@EVERY_PAGE
@pytest.mark.usefixtures("folder")
def test_snippets_run(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        try:
            if snippet.kind == "bash":
                for command in commands(snippet.code):
                    check(command, runs=snippet.runs)
            else:
                run_python(snippet, page, names)
        except Exception as error:
            raise AssertionError(f"{page.relative_to(ROOT)}:{snippet.line + 1}") from error


def test_snippets_say_what_they_print() -> None:
    """Else a formatter that rewrites comments would switch the comparison off."""
    saying = {page.name for page in PAGES if any(of.expected for of in snippets(page))}
    assert saying >= {"README.md", "use.md", "extend.md"}


def run_python(snippet: Snippet, page: Path, names: dict[str, Any]) -> None:
    """Run a block, and compare what it prints with what it says it prints."""
    code = compile("\n" * snippet.line + snippet.code, str(page), "exec", dont_inherit=True)
    if not snippet.runs or (page.name == "serving.md" and SERVER in snippet.code):
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    assert not snippet.expected or printed.getvalue().splitlines() == snippet.expected


def all_commands(command: Any, name: str = "cof") -> dict[str, Any]:
    """The command, and those below it, by what one types."""
    found = {name: command}
    for child, below in getattr(command, "commands", {}).items():
        found |= all_commands(below, f"{name} {child}")
    return found


@EVERY_PAGE
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    known = all_commands(typer.main.get_command(app))
    parameters = [each for command in known.values() for each in command.params]
    options = {name for each in parameters for name in (*each.opts, *each.secondary_opts)}
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text("utf-8")):
        if (words := code.split())[0] != "cof" and not re.fullmatch(r"--[a-z-]+", words[0]):
            continue
        for option in re.findall(r"(?<!\S)--[a-z][a-z_-]*", code):
            assert option in {*options, "--help", "--model_args"}, f"no option {option}"
        name = "cof"
        for word in words[1:] if words[0] == name else ():
            if not hasattr(known[name], "commands") or not re.fullmatch(r"[a-z]+", word):
                break
            name = f"{name} {word}"
            assert name in known, f"no command {code}"


def test_the_tree_names_every_file() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    files = [*ROOT.glob("cof/**/*.py"), *ROOT.glob("lab/**/*.py")]
    missing = [f.name for f in files if f.stat().st_size and f"- `{f.name}` " not in page]
    assert not missing, "run make tables"
