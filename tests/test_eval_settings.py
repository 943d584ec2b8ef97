"""Every setting reaches what is run, in every command of the evaluation, and its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import formats
import pytest
from fakes import AnyEngine
from typer.testing import CliRunner

from cof.cli import app
from cof.cli.common import ModelOptions
from cof.eval.data import BENCHMARKS
from cof.eval.store import Store
from cof.pipeline import CoF
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark

OPTIONS: Mapping[str, tuple[str, str]] = {
    "grounder": ("", "--grounder attention"),
    "grounding_prompt": ("", "--grounding-prompt paper"),
    "boxes": ("", "--boxes template"),
    "grounding_max_new_tokens": ("", "--grounding-max-new-tokens 5"),
    "parser": ("", "--parser released"),
    "grounder_layers": ("--grounder attention", "--grounder-layers 0"),
    "min_confidence": ("", "--min-confidence 0.5"),
    "max_plain_confidence": ("", "--max-plain-confidence 0.5"),
    "on_missing": ("", "--on-missing whole"),
    "min_box": ("", "--min-box 0.9"),
    "square": ("", "--square"),
    "expand": ("", "--expand 3"),
    "edge": ("", "--edge snap"),
    "focus": ("", "--focus crop"),
    "strength": ("", "--strength 7"),
    "scope": ("", "--scope text"),
    "layers": ("", "--layers 0"),
    "heads": ("", "--heads 0"),
    "cells": ("", "--cells corners"),
    "guidance": ("--focus contrast", "--guidance 2"),
    "overlay": ("--focus overlay", "--overlay dim"),
}
"""By setting: the options with which it matters, and itself on top of those. The detector is
another model, and has a test of its own."""

FEW_BOXES = {("sweep", "on_missing"), ("vstar", "parser"), ("vstar", "min_confidence")}
"""Where the fake engine's few boxes are read alike either way."""


def scenes(folder: Path) -> Path:
    write_benchmark(folder, "test", num_objects=(4,), scenes=1)
    return folder


DATA = {
    "mme": formats.mme,
    "mmbench": lambda folder: formats.tsv(folder / "dev.tsv", formats.mmbench_rows()),
    "pope": formats.pope,
    "textvqa": formats.textvqa,
    "vstar": formats.vstar,
    "scenes": scenes,
    "hrbench": lambda folder: formats.tsv(folder / "4k.tsv", formats.hrbench_rows()),
    "refcoco": formats.refcoco,
}
QUICK = "--quick --limit 3"
PAPER = "reproduce paper --data {data}"
COMMANDS = {
    "tiny": f"eval tiny {QUICK}",
    "grid": f"eval grid {QUICK} --grounders prompt,attention --focuses attention,contrast,overlay",
    "synthetic": f"eval synthetic {QUICK}",
    "sweep": "sweep tiny --scenes 1 --limit 8 --strengths 2 --expands 1 --scopes text",
    "paper": f"{PAPER} --limit 3",
    **{name: f"eval {name} {{data}}" for name in DATA},
}
NOT_OFFERED = {
    "grid": {"grounder", "focus"},  # all of them are run
    "sweep": {"strength", "expand", "scope", "layers", "heads"},  # it chooses them
}
SETTINGS = ("tiny", "grid", "synthetic", "sweep", "paper", "vstar")
"""The commands that are tried with every setting: those of benchmarks share their code."""


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
        command = f"{COMMANDS[name]} {options}"
        if command not in self.ran:
            number = len(self.ran)
            data, out = self.folder / f"{number}-data", self.folder / f"{number}-out"
            data.mkdir()
            if name in DATA:
                data = DATA[name](data)
            elif name == "paper":
                formats.mme(data / "mme")
                formats.pope(data / "pope")
            engine = AnyEngine(dialect=TINY)
            loaded = lambda own, settings: CoF(engine, Settings(**settings))  # noqa: E731
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ModelOptions, "load", loaded)
                arguments = [*command.format(data=data).split(), "--out", str(out)]
                result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            keys = {r.method for p in out.rglob("*.jsonl") for r in _records(p)}
            self.ran[command] = Ran(tuple(engine.trace), frozenset(keys))
        return self.ran[command]


def _records(path: Path) -> Any:
    other = ("questions.jsonl", "lines.jsonl", "annotations.jsonl")
    if path.name in other or path.name.endswith(".costs.jsonl") or "data" in path.parts:
        return []
    return Store(path).records()


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    return Tool(tmp_path_factory.mktemp("runs"))


def test_every_command_and_setting_is_here() -> None:
    assert OPTIONS.keys() | {"detector"} == {field.name for field in fields(Settings)}
    assert DATA.keys() == BENCHMARKS.keys()


@pytest.mark.parametrize("setting", OPTIONS)
@pytest.mark.parametrize("command", SETTINGS)
def test_every_setting_changes_the_run_and_its_keys(tool: Tool, command: str, setting: str) -> None:
    if setting in NOT_OFFERED.get(command, ()):
        return
    usual, own = OPTIONS[setting]
    if command == "grid":
        usual = ""
        own = "--boxes free" if setting == "boxes" else own  # the grid's are of the template
    before, after = tool.run(command, usual), tool.run(command, f"{usual} {own}")
    assert before.keys != after.keys
    if (command, setting) not in FEW_BOXES:
        assert before.trace != after.trace


@pytest.mark.parametrize("command", NOT_OFFERED)
def test_settings_that_a_command_decides_are_no_options(command: str) -> None:
    for setting in NOT_OFFERED[command]:
        option = f"--{setting}"
        if command == "sweep" and setting in ("layers", "heads"):
            continue  # of the same name, with several values
        result = CliRunner().invoke(app, [*COMMANDS[command].split(), option, "1"])
        assert result.exit_code == 2
        assert "No such option" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_another_grounder_and_focus_are_what_is_run(tool: Tool, command: str) -> None:
    """`--grounder attention --focus crop` crops, at boxes that nobody was asked for."""
    if command == "grid":
        return
    plain, cropped = tool.run(command, ""), tool.run(command, "--grounder attention --focus crop")
    assert any("attention x crop" in key for key in cropped.keys) or command == "refcoco"
    assert any(key.startswith("grounding attention") for key in cropped.keys)
    sizes = [{line.split(")")[0] for line in run.trace} for run in (plain, cropped)]
    if command == "refcoco":  # measures boxes alone
        return
    assert len(sizes[1]) > len(sizes[0])  # images of other sizes arrive


def test_a_detector_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    usual = ["--out", str(tmp_path), "--grounders", "detector", "--detector", "nowhere/x"]
    result = CliRunner().invoke(app, ["eval", "grid", "--quick", "--limit", "1", *usual])
    assert result.exit_code == 2
    assert "nowhere/x" in result.stderr
