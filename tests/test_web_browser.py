"""The web page, reports and answers in headless Chromium, by Playwright.

The browser is the file that COF_CHROMIUM names, Debian's chromium, or what `playwright install
chromium` left. Where none of these can be had, npm's @sparticuz/chromium holds one.

    COF_SCREENSHOTS=docs/images python -m pytest tests/test_web_browser.py

draws the documentation's images anew.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from PIL import Image
from processes import free_port

from cof.eval.report.publish import publish
from cof.geometry.boxes import XYXY
from cof.pipeline import CoF
from cof.web.session import DEMO

if importlib.util.find_spec("gradio") is None:
    pytest.skip("needs Gradio", allow_module_level=True)
pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect, sync_playwright

QUESTION = "What letter is on the green square?"
RESULTS = Path(__file__).parents[1] / "results" / "tiny-early"

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = os.environ.get("COF_CHROMIUM") or shutil.which("chromium") or own
        if not Path(path).is_file():
            pytest.skip("needs Chromium: Debian's, `playwright install chromium` or COF_CHROMIUM")
        flags = ["--enable-unsafe-swiftshader"]  # for the editor's WebGL
        yield playwright.chromium.launch(executable_path=path, args=flags)


@pytest.fixture(scope="module")
def cof() -> CoF:
    return CoF.from_pretrained("tiny-early")


WATCHED = """
import sys

def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in (None, "", "localhost", "127.0.0.1", "::1"):
        print("asked for", host, flush=True)

sys.addaudithook(watch)
from cof.cli import main
main()
"""
"""`cof`, telling which other machines it reaches for."""

TWO_FRAMES = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"

WATCH_MOVES = """() => {
    const [file, editor] = [".cof-file", ".cof-editor"].map(css => document.querySelector(css));
    const top = () => editor.getBoundingClientRect().y, begin = top();
    window.moves = [];
    new ResizeObserver(() => top() == begin || moves.push(top())).observe(file);
}"""
"""Notes where the editor is moved to by the file above it."""


@pytest.fixture(scope="module")
def address(chromium: Browser) -> Iterator[str]:
    """Of the page, served by `cof web`."""
    command = [sys.executable, "-c", WATCHED, "web", "--port", str(free_port())]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes) as server:
        yield next(line for line in server.stdout if line.startswith("http://")).split()[0]
        server.terminate()
        said = server.stdout.read()
        assert not re.findall(r"^(?:asked for|[\w.]+Error\b).*", said, re.MULTILINE)


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


class Visitor:
    """A browser's window with the page in it, which notes all errors and foreign requests."""

    def __init__(self, chromium: Browser, address: str, **options: Any) -> None:
        window = {"width": 1280, "height": 1150}
        self.page = chromium.new_context(**{"viewport": window, **options}).new_page()
        self.address, self.wrong = address, []
        self.find, self.button = self.page.locator, self.page.get_by_role("button").filter
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.note(said.text, said.type == "error"))
        self.page.on(
            "request", lambda asked: self.note(asked.url, asked.url[:4] in ("http", "ws:/"))
        )

    def note(self, text: str, wrong: bool) -> None:
        if wrong and "//127.0.0.1:" not in text:
            self.wrong.append(text)

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.address}{query}")

    @property
    def answers(self) -> list[str]:
        return self.find(".cof-text").all_inner_texts()

    def asks(self, **values: str) -> None:
        """Wait until the address has these values."""
        self.page.wait_for_url(lambda url: values.items() <= query(url).items(), timeout=60_000)

    def how(self, text: str) -> None:
        """Wait until CoF's answer came about so."""
        expect(self.find(".cof-answer:nth-child(2) .cof-note").first).to_contain_text(text)

    def says(self, text: str) -> None:
        expect(self.find(".cof-message")).to_contain_text(text)

    def choose_file(self, path: Path) -> None:
        self.find(".cof-file input[type=file]").set_input_files(path)

    def slider(self, number: int = 0, kind: str = "range") -> Any:
        return self.find(f".cof-settings input[type={kind}]").nth(number)

    def image_xyxy(self) -> XYXY:
        """Of the editor's image of 480 x 480, in the window's pixels, once it is fitted and drawn:
        until then Gradio takes a press for a place that is up to a fifth of the image off."""
        zoom, percent = self.find(".cof-editor .zoom-number"), ""
        while not (percent == (percent := zoom.inner_text()) and "50%" <= percent < "90%"):
            self.page.wait_for_timeout(1000)  # less: of the empty canvas; 100%: not yet fitted
            self.page.evaluate(TWO_FRAMES)
        half = 240 * int(percent.rstrip("%")) / 100
        at = self.find(".cof-editor canvas").first.bounding_box()
        x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
        return x - half, y - half, x + half, y + half

    def stroke(self, box: XYXY) -> None:
        """Brush from one corner of a box, in 0..1 of the image, to the other."""
        x1, y1, x2, _ = self.image_xyxy()
        mouse, side = self.page.mouse, x2 - x1
        mouse.move(x1 + box[0] * side, y1 + box[1] * side)
        mouse.down()
        mouse.move(x1 + box[2] * side, y1 + box[3] * side, steps=5)
        mouse.up()

    def screenshot(self, name: str) -> Image.Image:
        """What the window shows; kept where the environment asks for it."""
        self.image_xyxy()
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        if folder := os.environ.get("COF_SCREENSHOTS"):
            few = image.quantize(256, Image.Quantize.FASTOCTREE, kmeans=2)
            few.save(Path(folder) / f"web-{name}.png", optimize=True)
        return image


@pytest.fixture
def open_window(chromium: Browser, address: str) -> Iterator[Callable[..., Visitor]]:
    """Windows on the page, with the first example's answers."""
    visitors = []

    def open_window(**options: Any) -> Visitor:
        visitors.append(visitor := Visitor(chromium, address, **options))
        visitor.open()
        expect(visitor.find(".cof-text")).to_have_text(["X", "C"])
        return visitor

    yield open_window
    for visitor in visitors:
        assert not visitor.wrong
        visitor.page.context.close()


@pytest.fixture
def visitor(open_window: Callable[..., Visitor]) -> Visitor:
    return open_window()


def test_ask(visitor: Visitor, cof: CoF) -> None:
    question = "What letter is on the purple star?"
    expected = cof(DEMO / "scene-4.png", question)
    field = visitor.find(".cof-ask textarea")
    field.fill(question)
    field.press("Enter")
    visitor.asks(question=question)
    assert visitor.answers == [expected.plain(), expected.text]
    titles = [re.compile(words) for words in ("What it was", "Attention before", "Attention after")]
    expect(visitor.find(".cof-panels figcaption")).to_have_text(titles)
    field.fill("")
    visitor.button(has_text="Ask").click()
    visitor.says("question is empty")
    visitor.button(has_text="purple cross").click()
    visitor.asks(example="scene-3.png")
    expected = cof(DEMO / "scene-3.png", "What digit is on the purple cross?")
    assert visitor.answers == [expected.plain(), expected.text]


def test_answers_follow_the_slider_while_it_is_dragged(visitor: Visitor) -> None:
    at, mouse = visitor.slider().bounding_box(), visitor.page.mouse
    x, y = at["x"] + at["width"] * (16 - 0.5) / 63.5, at["y"] + at["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x - at["width"] * 10 / 45, y, steps=10)
    expect(visitor.find(".cof-text")).to_have_text(["X", "X"])  # the hand is still on it
    visitor.page.wait_for_url(lambda url: float(query(url)["strength"]) < 4)
    mouse.up()


def test_by_keyboard(visitor: Visitor, cof: CoF) -> None:
    for key in ("Home", "ArrowRight", "ArrowRight"):
        visitor.slider().press(key)
    visitor.asks(strength="1.5")
    visitor.slider(1).press("ArrowLeft")
    visitor.asks(expand="1.5")
    focus = visitor.find("input[aria-label^='How to look']").first
    focus.fill("overlay")
    focus.press("Enter")
    visitor.asks(focus="overlay")
    box = visitor.find(".cof-settings textarea")
    box.fill("0.2 0.1 0.4 0.4")
    box.press("Enter")
    visitor.asks(boxes="0.2 0.1 0.4 0.4")
    settings = cof.settings.changed(focus="overlay", expand=1.5)
    boxes = [(0.2, 0.1, 0.4, 0.4)]
    expected = CoF(cof.engine, settings)(DEMO / "scene-4.png", QUESTION, boxes=boxes)
    assert visitor.answers == [expected.plain(), expected.text]


def test_the_focus_is_seen(visitor: Visitor) -> None:
    fields = visitor.find(".cof-page :is(input, textarea):visible").all()
    visitor.page.keyboard.press("Tab")  # as who has no mouse
    seen = []
    for field in fields:
        field.focus()
        seen.append(field.evaluate("e => getComputedStyle(e).outlineStyle"))
    assert seen == ["solid"] * 8


def test_a_number_is_typed(visitor: Visitor) -> None:
    """What Gradio makes of it as the field is left is what the answer is for."""
    field = visitor.slider(kind="number")
    for typed, taken in [("", "0.5"), ("1000", "64"), ("-3", "0.5")]:
        field.fill(typed)
        visitor.how(f"λ\u00a0{taken}")
        field.press("Tab")
        expect(field).to_have_value(taken)


def test_draw_a_box(visitor: Visitor, cof: CoF) -> None:
    drawn = (0.3, 0.7, 0.5, 0.9)
    visitor.stroke(drawn)
    visitor.page.wait_for_url(lambda url: "boxes" in query(url), timeout=60_000)
    boxes = [tuple(map(float, query(visitor.page.url)["boxes"].split()))]
    assert boxes[0] == pytest.approx(drawn, abs=0.06)  # the brush is thick
    expected = cof(DEMO / "scene-4.png", QUESTION, boxes=boxes)
    assert visitor.answers == ["X", expected.text]

    link, answers = visitor.page.url, visitor.answers
    visitor.page.goto("about:blank")
    visitor.page.goto(link)
    visitor.how("your region")
    assert (visitor.answers, visitor.page.url) == (answers, link)
    visitor.stroke(drawn)
    visitor.page.get_by_label("Clear canvas").click()
    visitor.how("prompt grounder")
    visitor.stroke(drawn)
    visitor.how("your region")
    visitor.page.get_by_label("Erase").click()
    visitor.stroke(drawn)
    visitor.how("prompt grounder")


def test_the_image_is_in_the_middle_and_nothing_lies_on_it(visitor: Visitor) -> None:
    x1, _, x2, y2 = visitor.image_xyxy()
    frame, brushes = (
        visitor.find(css).first.bounding_box()
        for css in (".cof-editor", ".cof-editor .toolbar-wrap:has([aria-label=Brush])")
    )
    assert (x1 + x2) / 2 == pytest.approx(frame["x"] + frame["width"] / 2, abs=1)
    assert brushes["y"] >= y2 - 1
    # it would bring back the image before, and the answers would not be about it
    expect(visitor.page.get_by_role("button", name=re.compile("Undo|Redo"))).to_have_count(0)


def test_a_link_shows_two_settings_and_how_to_get_them(visitor: Visitor, cof: CoF) -> None:
    visitor.open(
        "?example=scene-4.png&question=What+letter+is+on+the+green+square%3F&grounder=attention"
        "&strength=16&compare=True&other_grounder=prompt%2Battention&other_focus=crop"
    )
    other = cof.settings.changed(grounder="prompt+attention", focus="crop")
    expected = [
        CoF(cof.engine, settings)(DEMO / "scene-4.png", QUESTION).text
        for settings in (cof.settings.changed(grounder="attention"), other)
    ]
    expect(visitor.find(".cof-text")).to_have_text(["X", *expected])
    visitor.asks(other_expand="1.6")  # which the link leaves out
    visitor.button(has_text="Reproduce this").click()
    told = visitor.find(".cof-results textarea")
    expect(told).to_have_count(2)
    link, commands = told.all()
    expect(link).to_have_value(visitor.page.url)
    assert re.findall("^cof ask", commands.input_value(), re.MULTILINE) == ["cof ask"] * 2


def test_a_link_to_what_is_not_here(visitor: Visitor, cof: CoF, tmp_path: Path) -> None:
    visitor.open("?image=photo.png&question=What+digit+is+on+the+orange+star%3F&boxes=0+0+1+0.5")
    visitor.says("This link is about photo.png")
    expect(visitor.find(".cof-editor")).not_to_contain_text("select the draw tool")
    path = tmp_path / "photo.png"
    shutil.copy(DEMO / "scene-5.png", path)
    visitor.choose_file(path)
    visitor.how("your region")
    expected = cof(path, "What digit is on the orange star?", boxes=[(0, 0, 1, 0.5)])
    assert visitor.answers == [expected.plain(), expected.text]
    visitor.open("?example=scene-99.png&question=Why%3F")
    visitor.says("no example 'scene-99.png'")
    visitor.open("?example=scene-1.png&question=Why%3F&strength=much")
    visitor.says("strength must be a number")


def test_files(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "huge.png").write_bytes(b"x" * (10 * 2**20 + 1))
    Image.open(DEMO / "scene-5.png").resize((1600, 300)).save(tmp_path / "wide.png")
    visitor.choose_file(tmp_path / "notes.txt")
    visitor.says("notes.txt is not an image of the kinds PNG")
    visitor.choose_file(tmp_path / "huge.png")
    toast = visitor.find("[data-testid=toast-body]")
    expect(toast).to_contain_text("maximum allowed size of 10.0 Mb")
    assert visitor.answers == ["X", "C"]  # of the image before, which is still there
    visitor.button(has_text="Ask").click()
    expect(visitor.find(".cof-message")).to_have_count(0)
    visitor.page.evaluate(WATCH_MOVES)
    visitor.choose_file(tmp_path / "wide.png")
    visitor.asks(image="wide.png")
    assert visitor.find(".cof-panels img").first.bounding_box()["width"] > 600
    assert visitor.page.evaluate("moves") == []
    visitor.wrong.clear()  # Gradio asks how far the upload that it has refused is


def test_two_visitors_at_once_do_not_mix(open_window: Callable[..., Visitor], cof: CoF) -> None:
    plans = {
        open_window(): ("scene-1.png", "What letter is on the red triangle?", 2),
        open_window(): ("scene-6.png", "What digit is on the blue diamond?", 6),
    }
    for who, (_, question, _) in plans.items():
        who.button(has_text=question[-18:]).click()
    for who, (name, _, _) in plans.items():
        who.asks(example=name)
    for who, (_, _, steps) in plans.items():
        for _ in range(steps):
            who.slider().press("ArrowRight")
    for who, (name, question, steps) in plans.items():
        who.asks(example=name, question=question, strength=f"{16 + steps / 2:g}")
        settings = cof.settings.changed(strength=16 + steps / 2)
        expected = CoF(cof.engine, settings)(DEMO / name, question)
        assert who.answers == [expected.plain(), expected.text]


def test_light_and_dark(open_window: Callable[..., Visitor]) -> None:
    light, dark = (
        open_window(color_scheme=scheme).screenshot(scheme).convert("L").resize((1, 1))
        for scheme in ("light", "dark")
    )
    assert dark.getpixel((0, 0)) < 80 < 180 < light.getpixel((0, 0))


def test_on_a_phone(open_window: Callable[..., Visitor]) -> None:
    visitor = open_window(viewport={"width": 390, "height": 1640}, is_mobile=True)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == 390
    # every control lies within the screen, the answers between the question and the sliders
    controls = visitor.find("button, input, textarea, img, canvas").all()
    assert max(at["x"] + at["width"] for each in controls if (at := each.bounding_box())) <= 390
    places = visitor.find(".cof-ask textarea"), visitor.find(".cof-text").first, visitor.slider()
    tops = [place.bounding_box()["y"] for place in places]
    assert tops == sorted(tops)
    visitor.screenshot("phone")


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_that_open_offline(chromium: Browser, cof: CoF, tmp_path: Path, width: int) -> None:
    shutil.copy(RESULTS / "results.json", tmp_path)
    publish(tmp_path)
    answer = cof(DEMO / "scene-4.png", QUESTION)._repr_html_()
    page = f'<meta name="viewport" content="width=device-width">{answer}'
    (tmp_path / "answer.html").write_text(page, "utf-8")
    visitor = Visitor(chromium, tmp_path.as_uri(), viewport={"width": width, "height": 900})
    for name in ("report", "answer"):
        visitor.open(f"/{name}.html")
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
    visitor.open("/report.html")
    letters = visitor.find(".chart text").first.evaluate("e => e.getBoundingClientRect().height")
    assert letters >= 9
    assert not visitor.wrong
    visitor.page.context.close()


def test_a_report_on_paper(chromium: Browser, tmp_path: Path) -> None:
    shutil.copy(RESULTS / "results.json", tmp_path)
    publish(tmp_path)
    a4 = {"width": 718, "height": 1047}  # without margins, in CSS pixels
    visitor = Visitor(chromium, tmp_path.as_uri(), viewport=a4, color_scheme="dark")
    visitor.open("/report.html")
    visitor.page.emulate_media(media="print")
    cut = "all => all.filter(each => each.scrollWidth > each.clientWidth).length"
    assert visitor.find(".scroll, .chart").evaluate_all(cut) == 0
    paper = visitor.find("body").evaluate("e => getComputedStyle(e).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    visitor.page.context.close()
