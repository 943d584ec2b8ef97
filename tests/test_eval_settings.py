"""Every setting reaches what is run, in every command of the evaluation, and its records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine
from typer.testing import CliRunner

from cof.cli import app
from cof.cli.common import Model
from cof.eval.store import Store
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import options_of
from cof.pipeline import CoF
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark

OPTIONS: Mapping[str, tuple[str, str]] = {
    "grounder": ("", "--grounder attention"),
    "grounding_prompt": ("", "--set grounding_prompt=paper"),
    "boxes": ("", "--set boxes=template"),
    "grounding_max_new_tokens": ("", "--set grounding_max_new_tokens=5"),
    "grounder_layers": ("--grounder attention", "--set grounder_layers=0"),
    "grounder_heads": ("--grounder attention", "--set grounder_heads=0"),
    "average": ("--grounder attention", "--set average=arithmetic"),
    "states": ("--grounder relevance", "--set states=keys"),
    "min_confidence": ("", "--set min_confidence=0.5"),
    "max_plain_confidence": ("", "--set max_plain_confidence=0.5"),
    "min_box": ("", "--set min_box=0.9"),
    "expand": ("", "--expand 3"),
    "released": ("", "--set released=true"),
    "focus": ("", "--focus crop"),
    "strength": ("", "--strength 7"),
    "scope": ("", "--set scope=text"),
    "layers": ("", "--set layers=0"),
    "heads": ("", "--set heads=0"),
    "guidance": ("--focus contrast", "--set guidance=2"),
    "overlay": ("--focus overlay", "--set overlay=dim"),
}
"""By option: the options with which it matters, and itself on top of those. The detector is
another model, and has a test of its own."""

ALIKE = {
    *(("vstar", name) for name in ("min_confidence", "average")),
    *((command, "states") for command in ("paper", "sweep", "vstar")),
    ("sweep", "max_plain_confidence"),
}
"""Where the fake engine's boxes, heads or states are read alike either way, or, of a sweep with a
threshold, the plain answer and that of looking are asked anyway."""


def scenes(folder: Path) -> Path:
    write_benchmark(folder, "test", num_objects=(4,), scenes=1)
    return folder


def paper(folder: Path) -> Path:
    formats.mme(folder / "mme")
    formats.pope(folder / "pope")
    return folder


COMMANDS: Mapping[str, tuple[str, Callable[[Path], Path]]] = {
    "sweep": ("sweep scenes {data} --share 1 --limit 8 --try expand=1.3", scenes),
    "paper": ("reproduce paper --data {data} --limit 3", paper),
    "vstar": ("eval vstar {data}", formats.vstar),
}
"""And what makes their data; those of other benchmarks share the code of the last."""

CHOSEN = {"expand"}  # by this `cof sweep`


@dataclass(frozen=True)
class Ran:
    trace: tuple[str, ...]
    keys: frozenset[str]


class Tool:
    """Runs commands with a fake engine in the model's place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: dict[str, Ran] = {}

    def run(self, name: str, options: str) -> Ran:
        """The requests of a run, and the keys in its records."""
        words, make = COMMANDS[name]
        command = f"{words} {options}"
        if command not in self.ran:
            number = len(list(self.folder.iterdir()))
            data, out = self.folder / f"{number}-data", self.folder / f"{number}-out"
            data.mkdir()
            data = make(data)
            engine = AnyEngine(dialect=TINY)
            loaded = lambda own: CoF(engine, Settings(**own.settings))  # noqa: E731
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Model, "pipeline", loaded)
                arguments = [*command.format(data=data).split(), "--out", str(out)]
                result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            keys = {r.method for p in out.rglob("*.jsonl") for r in _records(p)}
            self.ran[command] = Ran(tuple(engine.trace), frozenset(keys))
        return self.ran[command]


def _records(path: Path) -> Any:
    if path.name in ("questions.jsonl", "annotations.jsonl") or "data" in path.parts:
        return []
    return list(Store(path).values())


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    return Tool(tmp_path_factory.mktemp("runs"))


def test_every_command_and_setting_is_here() -> None:
    owners = (Settings, *GROUNDERS.values(), *FOCUSES.values())
    names = {each.name for owner in owners for each in options_of(owner)}
    # all methods of a run have one system message (test_runner)
    assert OPTIONS.keys() | {"detector", "system"} == names | {"grounder", "focus"}


@pytest.mark.parametrize("setting", OPTIONS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_changes_the_run_and_its_keys(tool: Tool, command: str, setting: str) -> None:
    if command == "sweep" and setting in CHOSEN:
        return
    usual, own = OPTIONS[setting]
    before, after = tool.run(command, usual), tool.run(command, f"{usual} {own}")
    assert before.keys != after.keys
    if (command, setting) not in ALIKE:
        assert before.trace != after.trace


@pytest.mark.parametrize("command", COMMANDS)
def test_another_grounder_and_focus_are_what_is_run(tool: Tool, command: str) -> None:
    """`--grounder attention --focus crop` crops, at boxes that nobody was asked for."""
    plain, cropped = tool.run(command, ""), tool.run(command, "--grounder attention --focus crop")
    assert any("attention x crop" in key for key in cropped.keys)
    assert any(key.startswith("grounding attention") for key in cropped.keys)
    sizes = [{line.split(")")[0] for line in run.trace} for run in (plain, cropped)]
    assert len(sizes[1]) > len(sizes[0])  # images of other sizes arrive
