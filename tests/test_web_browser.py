"""The web page in headless Chromium: Debian's chromium and chromium-driver, by Selenium.

    COF_SCREENSHOTS=docs/images python -m pytest tests/test_web_browser.py

draws the documentation's images anew.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from processes import free_port

from cof.geometry.boxes import XYXY
from cof.pipeline import CoF
from cof.web.session import DEMO

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs Debian's chromium and chromium-driver", allow_module_level=True)
if importlib.util.find_spec("gradio") is None:
    pytest.skip("needs Gradio", allow_module_level=True)
pytest.importorskip("selenium")

from selenium.common import WebDriverException  # noqa: E402
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-unsafe-swiftshader",  # for the editor's WebGL
]

SELECT_ALL = (Keys.CONTROL, "a", Keys.NULL)
QUESTION = "What letter is on the green square?"


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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the page, served by `cof web`."""
    port = free_port()
    command = [sys.executable, "-c", WATCHED, "web", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port}/"), line
        yield line.split()[0]
        server.terminate()
        assert "asked for" not in server.stdout.read()


class Visitor:
    """A browser with the page in it."""

    def __init__(self, address: str, folder: Path) -> None:
        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={folder}", "--window-size=1280,1150"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = Chrome(options=options, service=Service(DRIVER))
        self.address = address
        self.driver.get("about:blank")

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.address}{query}")
        self.wait(lambda: self.find(".cof-ask textarea"))

    def find(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def find_all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, css))

    def button(self, text: str) -> Any:
        return self.driver.find_element(By.XPATH, f"//button[contains(., '{text}')]")

    def slider(self, number: int = 0) -> Any:
        return self.find_all(".cof-settings input[type=range]")[number]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Until it is true; what is not there yet is false."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(WebDriverException, KeyError, IndexError):
                if value := condition():
                    return value
            time.sleep(0.1)
        assert condition(), self.find("body").text
        return condition()

    @property
    def answers(self) -> list[str]:
        return list(
            self.run("return [...document.querySelectorAll('.cof-text')].map(e => e.textContent)")
        )

    @property
    def how(self) -> str:
        return str(self.find(".cof-answer:nth-child(2) .cof-note").text)

    @property
    def message(self) -> str:
        return str(self.find(".cof-message").text)

    @property
    def query(self) -> dict[str, str]:
        parsed = parse_qs(urlsplit(self.driver.current_url).query)
        return {name: values[0] for name, values in parsed.items()}

    def choose_file(self, path: Path) -> None:
        self.find(".cof-file input[type=file]").send_keys(str(path))

    def stroke(self, box: XYXY) -> None:
        """Brush from one corner of a box, in 0..1 of the image, to the other."""
        self.wait(self.editor_is_still)
        canvas = self.find(".cof-editor canvas")
        width, height = canvas.size["width"], canvas.size["height"]
        side = 480 * int(self.find(".cof-editor .zoom-number").text.rstrip("%")) / 100
        x, y = (box[0] - 0.5) * side, (box[1] - 0.5) * side
        dx, dy = (box[2] - box[0]) * side, (box[3] - box[1]) * side
        assert abs(x) < width / 2
        assert abs(y) < height / 2
        pen = ActionChains(self.driver, duration=50).move_to_element_with_offset(
            canvas, round(x), round(y)
        )
        pen.click_and_hold()
        for _ in range(5):
            pen.move_by_offset(round(dx / 5), round(dy / 5))
        pen.release().perform()

    def editor_is_still(self) -> bool:
        """Whether the editor has fitted its image into its frame."""
        before = self.find(".cof-editor .zoom-number").text
        time.sleep(1)
        return bool(self.find(".cof-editor .zoom-number").text == before)

    def foreign_requests(self) -> set[str]:
        """Addresses on other machines that the page has asked for."""
        found = set()
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                url = urlsplit(event["params"]["request"]["url"])
                if url.scheme in ("http", "https", "ws", "wss") and url.hostname != "127.0.0.1":
                    found.add(url.geturl())
        return found

    def screenshot(self, name: str) -> Image.Image:
        """What the window shows; kept where the environment asks for it."""
        self.wait(self.editor_is_still)
        image = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        if folder := os.environ.get("COF_SCREENSHOTS"):
            few = image.quantize(256, Image.Quantize.FASTOCTREE, kmeans=2)
            few.save(Path(folder) / f"web-{name}.png", optimize=True)
        return image


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    visitor = Visitor(address, tmp_path_factory.mktemp("chromium"))
    yield visitor
    foreign = visitor.foreign_requests()
    visitor.driver.quit()
    assert not foreign


@pytest.fixture
def visitor(browser: Visitor) -> Visitor:
    """On the page, with the first example's answers."""
    browser.open()
    browser.wait(lambda: browser.answers == ["X", "C"])
    return browser


def test_ask(visitor: Visitor, cof: CoF) -> None:
    question = "What letter is on the purple star?"
    expected = cof(DEMO / "scene-4.png", question)
    field = visitor.find(".cof-ask textarea")
    field.send_keys(*SELECT_ALL, question, Keys.ENTER)
    visitor.wait(lambda: visitor.query["question"] == question)
    assert visitor.answers == [expected.plain(), expected.text]
    images = visitor.find_all(".cof-panels img")
    assert [image.get_attribute("alt").split(".")[0].split(":")[0] for image in images] == [
        "What it was made to look at",
        "Attention before",
        "Attention after",
    ]
    field.send_keys(*SELECT_ALL, Keys.BACKSPACE)
    visitor.button("Ask").click()
    visitor.wait(lambda: "question is empty" in visitor.message)
    visitor.button("purple cross").click()
    visitor.wait(lambda: visitor.query["example"] == "scene-3.png")
    expected = cof(DEMO / "scene-3.png", "What digit is on the purple cross?")
    assert visitor.answers == [expected.plain(), expected.text]


def test_answers_follow_the_slider_while_it_is_dragged(visitor: Visitor) -> None:
    slider = visitor.slider()
    width = slider.size["width"]
    thumb = round(width * (16 - 0.5) / 63.5 - width / 2)
    drag = ActionChains(visitor.driver, duration=50).move_to_element_with_offset(slider, thumb, 0)
    drag.click_and_hold()
    for _ in range(10):
        drag.move_by_offset(-round(width / 45), 0)
    drag.perform()
    try:
        visitor.wait(lambda: visitor.answers == ["X", "X"])  # the hand is still on it
        assert float(visitor.query["strength"]) < 4
    finally:
        ActionChains(visitor.driver).release().perform()


def test_by_keyboard(visitor: Visitor, cof: CoF) -> None:
    visitor.slider().send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 2)
    visitor.wait(lambda: visitor.query["strength"] == "1.5")
    visitor.slider(1).send_keys(Keys.ARROW_LEFT)
    visitor.wait(lambda: visitor.query["expand"] == "1.5")
    focus = visitor.find("input[aria-label^='How to look']")
    focus.send_keys(*SELECT_ALL, "overlay", Keys.ENTER)
    visitor.wait(lambda: visitor.query["focus"] == "overlay")
    box = visitor.wait(lambda: visitor.find(".cof-settings textarea"))
    box.send_keys("0.2 0.1 0.4 0.4", Keys.ENTER)
    visitor.wait(lambda: visitor.query["boxes"] == "0.2 0.1 0.4 0.4")
    settings = cof.settings.changed(focus="overlay", expand=1.5, strength=1.5)
    expected = CoF(cof.engine, settings)(
        DEMO / "scene-4.png", QUESTION, boxes=[(0.2, 0.1, 0.4, 0.4)]
    )
    assert visitor.answers == [expected.plain(), expected.text]


def test_draw_a_box(visitor: Visitor, cof: CoF) -> None:
    drawn = (0.3, 0.7, 0.5, 0.9)
    visitor.stroke(drawn)
    visitor.wait(lambda: visitor.how.startswith("your region"))
    boxes = [tuple(map(float, visitor.query["boxes"].split()))]
    assert boxes[0] == pytest.approx(drawn, abs=0.06)  # the brush is thick
    expected = cof(DEMO / "scene-4.png", QUESTION, boxes=boxes)
    assert visitor.answers == ["X", expected.text]

    link, answers = visitor.driver.current_url, visitor.answers
    visitor.driver.get("about:blank")
    visitor.driver.get(link)
    visitor.wait(lambda: visitor.answers)
    assert (visitor.answers, visitor.driver.current_url) == (answers, link)
    visitor.stroke(drawn)
    visitor.wait(lambda: visitor.how.startswith("your region"))
    visitor.find("[aria-label='Clear canvas']").click()
    visitor.wait(lambda: visitor.how.startswith("prompt grounder"))
    visitor.stroke(drawn)
    visitor.wait(lambda: visitor.how.startswith("your region"))


def test_a_link_shows_two_settings_and_how_to_get_them(visitor: Visitor, cof: CoF) -> None:
    visitor.open(
        "?example=scene-4.png&question=What+letter+is+on+the+green+square%3F&grounder=attention"
        "&strength=16&compare=True&other_grounder=prompt%2Battention&other_focus=crop"
    )
    visitor.wait(lambda: len(visitor.answers) == 3)
    other = cof.settings.changed(grounder="prompt+attention", focus="crop")
    expected = [
        CoF(cof.engine, settings)(DEMO / "scene-4.png", QUESTION).text
        for settings in (cof.settings.changed(grounder="attention"), other)
    ]
    assert visitor.answers == ["X", *expected]
    visitor.button("Reproduce this").click()
    fields = visitor.wait(
        lambda: visitor.driver.find_elements(By.CSS_SELECTOR, ".cof-results textarea")
    )
    link, commands = (field.get_attribute("value") for field in fields)
    assert link == visitor.driver.current_url
    assert [line.split()[:2] for line in commands.splitlines()] == [["cof", "ask"]] * 2


def test_a_link_to_what_is_not_here(visitor: Visitor, cof: CoF, tmp_path: Path) -> None:
    visitor.open("?image=photo.png&question=What+digit+is+on+the+orange+star%3F&boxes=0+0+1+0.5")
    visitor.wait(lambda: "This link is about photo.png" in visitor.message)
    path = tmp_path / "photo.png"
    shutil.copy(DEMO / "scene-5.png", path)
    visitor.choose_file(path)
    visitor.wait(lambda: visitor.how.startswith("your region"))
    expected = cof(path, "What digit is on the orange star?", boxes=[(0, 0, 1, 0.5)])
    assert visitor.answers == [expected.plain(), expected.text]
    visitor.open("?example=scene-99.png&question=Why%3F")
    visitor.wait(lambda: "no example 'scene-99.png'" in visitor.message)
    visitor.open("?example=scene-1.png&question=Why%3F&strength=1000")
    visitor.wait(lambda: "from 0.5 to 64, not 1000" in visitor.message)


def test_bad_files(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "huge.png").write_bytes(b"x" * (10 * 2**20 + 1))
    visitor.choose_file(tmp_path / "notes.txt")
    visitor.wait(lambda: "notes.txt is not an image of the kinds PNG" in visitor.message)
    visitor.choose_file(tmp_path / "huge.png")
    toast = visitor.wait(lambda: visitor.find("[data-testid=toast-body]").text)
    assert "maximum allowed size of 10.0 Mb" in toast
    assert visitor.answers == ["X", "C"]  # of the image before, which is still there
    visitor.button("Ask").click()
    visitor.wait(lambda: not visitor.find_all(".cof-message"))


def test_two_visitors_at_once_do_not_mix(
    visitor: Visitor, address: str, cof: CoF, tmp_path: Path
) -> None:
    other = Visitor(address, tmp_path / "other")
    try:
        other.open()
        plans = {
            visitor: ("scene-1.png", "What letter is on the red triangle?", 2),
            other: ("scene-6.png", "What digit is on the blue diamond?", 6),
        }

        def visit(who: Visitor) -> None:
            name, question, steps = plans[who]
            who.button(question[-18:]).click()
            who.wait(lambda: who.query["example"] == name)
            who.slider().send_keys(*[Keys.ARROW_RIGHT] * steps)
            who.wait(lambda: who.query["strength"] == f"{16 + steps / 2:g}")

        with ThreadPoolExecutor(2) as both:
            list(both.map(visit, plans))
        for who, (name, question, steps) in plans.items():
            settings = cof.settings.changed(strength=16 + steps / 2)
            expected = CoF(cof.engine, settings)(DEMO / name, question)
            assert who.answers == [expected.plain(), expected.text]
            assert (who.query["example"], who.query["question"]) == (name, question)
        assert not other.foreign_requests()
    finally:
        other.driver.quit()


def test_light_and_dark(visitor: Visitor) -> None:
    def brightness() -> float:
        image = visitor.screenshot(scheme).convert("L").resize((1, 1))
        return float(image.getpixel((0, 0)))

    scheme = "light"
    light = brightness()
    scheme = "dark"
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        visitor.open()
        visitor.wait(lambda: visitor.answers == ["X", "C"])
        assert brightness() < 80 < 180 < light
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_on_a_phone(visitor: Visitor) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        visitor.open()
        visitor.wait(lambda: visitor.answers == ["X", "C"])
        assert visitor.run("return document.documentElement.scrollWidth") == 390
        # every control lies within the screen, the answers between the question and the sliders
        rights = visitor.run(
            "return [...document.querySelectorAll('button, input, textarea, img, canvas')]"
            ".map(e => e.getBoundingClientRect()).filter(r => r.width).map(r => r.right)"
        )
        assert max(rights) <= 390
        tops = [visitor.find(css).rect["y"] for css in (".cof-ask textarea", ".cof-text")]
        assert tops[0] < tops[1] < visitor.slider().rect["y"]
        phone["height"] = 1640
        visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        visitor.screenshot("phone")
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
