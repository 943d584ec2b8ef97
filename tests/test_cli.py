"""The command line on a fake engine: one object with --json, one sentence on errors."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from fakes import FakeEngine
from models import checkpoint
from PIL import Image
from typer.testing import CliRunner, Result

import cof
from cof import Contrast, Prompt, cli
from cof.errors import CofError, CofWarning
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.options import options_of
from cof.pipeline import CoF
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.types import Request

QUESTION = "What digit is on the red star?"


def reply(request: Request) -> str:
    if request.prompt == QUESTION:
        return "[7]" if request.highlight else "1"
    return "[0.2, 0.2, 0.4, 0.6]"


class Loaded:
    """Stands in for loading a model, and remembers with what it was asked for."""

    def __init__(self) -> None:
        self.engine = FakeEngine(reply, dialect=TINY)

    def __call__(self, model: str | None, engine_options: dict[str, Any], **options: Any) -> CoF:
        loading = ("preset", "dtype", "device_map", "engine", "quantization")
        own = {name: options.pop(name) for name in loading if name in options}
        self.model, self.options, self.settings = model, own | engine_options, options
        return CoF(self.engine, Settings(expand=1.0).changed(**options))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    stand_in = Loaded()
    monkeypatch.setattr(CoF, "from_pretrained", stand_in)
    return stand_in


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(path)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(result: Result) -> str:
    """The one sentence of a refusal."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert isinstance(result.exception, SystemExit)
    return lines[0]


def test_json_is_one_object(loaded: Loaded, image: str) -> None:
    result = run("ask", image, QUESTION, "--compare", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    shown = json.loads(result.stdout)
    assert len(loaded.engine.calls) == 3
    assert list(shown)[:3] == ["answer", "plain_answer", "boxes"]
    assert {"found", "grounder", "grounding_text", "confidence", "reason"} <= shown.keys()
    assert (shown["answer"], shown["plain_answer"]) == ("[7]", "1")
    assert shown["boxes"] == [[0.2, 0.2, 0.4, 0.6]]
    assert shown["found"] is True
    assert shown["settings"] == Settings(expand=1.0).as_dict()
    assert set(shown["timings"]) == {"ground_s", "answer_s"}
    told = run("ask", image, QUESTION, "--compare", "--grounder", "prompt+whole").stdout
    for part in ("[7]", "0.200  0.200  0.400  0.600", "confidence 0.50", "found by"):
        assert part in told


def test_options_of_the_methods(loaded: Loaded, image: str) -> None:
    arguments = shlex.split(
        "--grounder prompt --focus contrast --strength 3 --expand 2 --set guidance=2"
        " --set layers=0-2,5 --set scope=text --set released=true --set boxes=template"
        " --set grounding-prompt=paper"
    )
    result = run("ask", image, QUESTION, *arguments, "--json")
    assert result.exit_code == 0, result.output
    settings = Settings(
        Prompt("paper", boxes="template"),
        Contrast(3.0, "text", layers=(0, 1, 2, 5), guidance=2.0),
        expand=2.0,
        released=True,
    )
    assert json.loads(result.stdout)["settings"] == json.loads(json.dumps(settings.as_dict()))


def test_how_a_model_is_loaded(loaded: Loaded, image: str) -> None:
    arguments = shlex.split(
        "--model m --preset paper --dtype bfloat16 --device cpu --load engine=vllm"
        " --load quantization=4bit --load tensor-parallel-size=2"
    )
    expected = {"preset": "paper", "dtype": "bfloat16", "device_map": "cpu"}
    for command in ("ask", "ground"):
        assert run(command, image, QUESTION, *arguments).exit_code == 0
        own = {"engine": "vllm", "quantization": "4bit", "tensor_parallel_size": 2} | expected
        assert (loaded.model, loaded.options, loaded.settings) == ("m", own, {})
        assert run(command, image, QUESTION).exit_code == 0
        assert (loaded.model, loaded.options) == ("tiny", dict.fromkeys(expected))


def test_a_newcomer_reads_all_options_at_once() -> None:
    command = typer.main.get_command(cli.app).commands["eval"].commands["mme"]  # type: ignore[attr-defined]
    options = [each for each in command.params if each.param_type_name == "option"]
    assert len(options) <= 21  # and --help


@pytest.mark.parametrize("between", [" ", ","])
def test_boxes(loaded: Loaded, image: str, between: str) -> None:
    one, two = (box.replace(" ", between).split() for box in ("0.1 0.2 0.5 0.6", ".5 0.5 1 1e0"))
    result = run("ask", "--box", *one, "--box", *two, image, QUESTION, "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["boxes"] == [[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]]
    assert shown["settings"]["grounder"] == "given"
    assert len(loaded.engine.calls) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("ask absent.png ?", "no image file"),
        ("ground absent.png ?", "no image file"),
        ("ask IMAGE ' '", "question is empty"),
        ("ask IMAGE ? --box 1 2 3 4", "outside 0..1"),
        ("ask IMAGE ? --box 0.1 0.2 0.3", "four numbers"),
        ("ask IMAGE ? --box 0 0 1 1 --mask m.png", "give one of them"),
        ("ask IMAGE ? --strength nan", "lambda"),
        ("ask IMAGE ? --set scope", "--set takes NAME=VALUE, such as scope="),
        ("ask IMAGE ? --set scpoe=text", "did you mean scope?"),
        ("ask IMAGE ? --focus crop --strength 2", "focus attention"),
        ("ground IMAGE ? --set boxes=odd", "free, template"),
        ("ask IMAGE ? --grounder given", "--box"),
        ("ask IMAGE ? --save /absent/a.png", "no folder"),
        ("ask IMAGE ? --save /", "end it in .png, .jpg or .webp"),
        ("ask https://example.org/a.png ?", "--allow-url"),
        # a scripted engine has no states to read
        ("ground IMAGE ? --grounder attention", "use grounder 'prompt'"),
        ("ask IMAGE ? --grounder detector", "--set detector=ID"),
        ("ask IMAGE ? --grounder detector --set detector=/nowhere", "/nowhere"),
    ],
)
def test_refusals(loaded: Loaded, image: str, arguments: str, says: str) -> None:
    assert says in refused(run(*shlex.split(arguments.replace("IMAGE", image))))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("command", ["ask --help", "settings", "ask IMAGE Какая?"])
def test_any_console_will_do(
    loaded: Loaded, image: str, command: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded.engine = FakeEngine(lambda request: "Ж \u4e2d")
    console, save = io.BytesIO(), Path(image).with_name("drawn.png")
    words = command.replace("IMAGE", image).split()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(console, encoding))
    monkeypatch.setattr("sys.argv", ["cof", *words, *(["--save", str(save)] * (len(words) == 3))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.stdout.flush()
    assert (ended.value.code, save.exists()) == (0, len(words) == 3)
    assert "Какая?" not in words or rb"\u0416 \u4e2d" in console.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_console_that_fails_costs_no_picture(
    loaded: Loaded, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = lambda *_: Path("/dev/full").write_text("7")  # noqa: E731
    monkeypatch.setattr(sys.modules["cof.cli.ask"], "_print_answer", full)
    save = Path(image).with_name("drawn.png")
    assert "No space left" in refused(run("ask", image, QUESTION, "--save", str(save)))
    assert save.exists()


def failing(error: BaseException) -> FakeEngine:
    def fail(request: Request) -> str:
        raise error

    return FakeEngine(fail)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CofError("Do this."), "Do this."),
        (MemoryError(), "Out of memory: use a smaller model"),
        (OSError(28, "No space left on device", "look.png"), "look.png: No space left on device."),
    ],
)
def test_errors_while_running(loaded: Loaded, image: str, error: BaseException, says: str) -> None:
    loaded.engine = failing(error)
    assert says in refused(run("ask", image, QUESTION))


def test_a_defect_is_not_hidden(loaded: Loaded, image: str) -> None:
    loaded.engine = failing(ZeroDivisionError())
    assert isinstance(run("ask", image, QUESTION).exception, ZeroDivisionError)


def test_warnings_are_notes_and_leave_json_alone(loaded: Loaded, image: str) -> None:
    def warned(request: Request) -> str:
        warnings.warn("It is cropped away.", CofWarning, stacklevel=1)
        warnings.warn("a third party's chatter", FutureWarning, stacklevel=1)
        return "7"

    loaded.engine = FakeEngine(warned)
    result = run("ask", image, QUESTION, "--json", "--grounder", "whole")
    assert json.loads(result.stdout)["answer"] == "7"
    assert result.stderr == "Note: It is cropped away.\n"


@pytest.mark.parametrize(
    ("reply", "boxes", "says"),
    [
        ("[0.2, 0.2, 0.4, 0.6]", [[0.2, 0.2, 0.4, 0.6]], "0.200  0.200  0.400  0.600"),
        ("[bold]no idea", [], "no four numbers"),
    ],
)
def test_ground(loaded: Loaded, image: str, reply: str, boxes: list[Any], says: str) -> None:
    loaded.engine = FakeEngine(lambda request: reply)
    shown = json.loads(run("ground", image, QUESTION, "--json").stdout)
    assert (shown["boxes"], shown["found"]) == (boxes, bool(boxes))
    assert shown["confidence"] == pytest.approx(0.5)
    text = run("ground", image, QUESTION).stdout
    assert says in text
    assert reply in text
    assert len(loaded.engine.calls) == 2


def test_no_bars_for_the_embedded_models(
    loaded: Loaded, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    monkeypatch.setattr(os, "environ", {n: of for n, of in os.environ.items() if n != name})
    for model, bars in (("large/model", None), ("tiny", "1")):
        assert run("ask", image, QUESTION, "--model", model).exit_code == 0
        assert os.environ.get(name) == bars


def test_models_lists_families_and_the_papers_settings() -> None:
    result = run("models")
    assert result.exit_code == 0
    for part in ("llava", "instructblip", "blip-2", "LLaVA-1.5-13B", "4.5", "22", "1.3"):
        assert part in result.stdout


def test_save(loaded: Loaded, image: str, tmp_path: Path) -> None:
    target, heights = tmp_path / "overlay.png", []
    for question in (QUESTION, QUESTION * 30):
        result = run(*("ask", image, question, "--save", str(target), "--max-new-tokens", "5"))
        assert result.exit_code == 0
        assert "plain" not in result.stdout
        with Image.open(target) as picture:
            assert picture.format == "PNG"
            heights.append(picture.height)
    assert heights[0] < heights[1]  # the question is in it
    assert [decoding.max_new_tokens for _, decoding in loaded.engine.calls[1::2]] == [5, 5]


def test_a_real_model(image: str, tmp_path: Path) -> None:
    """Tiny and random; attention is drawn before and after."""
    target, model = str(tmp_path / "overlay.png"), ("--model", str(checkpoint("llava")))
    assert "tensor_p" in refused(run("ask", image, QUESTION, *model, "--load", "tensor_p=2"))
    box = ("--box", ".1", ".2", ".6", ".9", "--max-new-tokens", "2")
    assert run("ask", image, QUESTION, *model, *box, "--save", target).exit_code == 0
    with Image.open(target) as drawn:
        assert drawn.width > 2 * drawn.height  # three panels
    shown = json.loads(run("ask", image, QUESTION, *model, "--json").stdout)
    assert shown["settings"] == json.loads(json.dumps(Settings().as_dict()))
    assert 0 < shown["confidence"] < 1


@pytest.mark.parametrize("found", [True, False])
def test_demo(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "scene.png")
    item = {"image": "scene.png", "question": QUESTION}
    items = [item | {"answer": truth} for truth in ("[7]", "4")]
    (tmp_path / "questions.json").write_text(json.dumps(items))
    monkeypatch.setattr("cof.web.session.DEMO", tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    if not found:
        loaded.engine = FakeEngine(lambda request: "no idea", dialect=TINY)
    result = run("demo", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    pictures = [tmp_path / "out" / f"{number + 1:02}-scene.png" for number in range(len(items))]
    for picture in pictures:
        Image.open(picture).verify()
    told = ("[7]", "truth", "confidence 50%") if found else ("none",)  # there is no box
    for part in (QUESTION, "plain", *told, *map(str, pictures)):
        assert part in result.stdout
    assert f"Right: plain 0 of 2, CoF {int(found)} of 2." in result.stdout
    assert "scene.png" in refused(run("demo", "--out", str(tmp_path / "scene.png" / "out")))


def test_settings_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text, shown = run("settings").stdout, json.loads(run("settings", "--json").stdout)
    for kind, registry in (("grounder", GROUNDERS), ("focus", FOCUSES), ("settings", None)):
        for name, owner in (registry or {"options": Settings}).items():
            told = shown[kind][name]
            assert told["help"] in text
            for each in options_of(owner):
                assert each.name in text
                assert each.help
                assert each.help in text
                assert told["options"][each.name]["default"] == each.default
    assert shown["focus"]["attention"]["options"]["scope"]["choices"] == ["all", "text"]


def test_version() -> None:
    assert run("--version").stdout == f"cof {cof.__version__}\n"


def test_help_tells_defaults_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    shown = " ".join(run("ask", "--help").output.replace("│", "").split())
    for part in ("[default: by device]", "[default: GPU if any]"):
        assert part in shown
    for panel in ("Looking closer", "Model"):
        assert f"─ {panel} ─" in shown


def test_help_loads_no_torch() -> None:
    code = (
        "import sys; from cof.cli import app; app(['ask', '--help'], standalone_mode=False);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_choices_are_completed() -> None:
    environment = {
        "_COF_COMPLETE": "complete_bash",
        "COMP_WORDS": "cof ask --focus cro",
        "COMP_CWORD": "3",
    }
    result = CliRunner().invoke(cli.app, [], prog_name="cof", env=environment)
    assert result.stdout.split() == ["crop"]
