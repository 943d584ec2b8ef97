"""How answers show themselves in notebooks, and the notebook in examples/."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from fakes import FakeEngine
from matplotlib import pyplot
from models import checkpoint, picture
from PIL import Image

from cof import CoF, CofError, Settings
from cof.answer import Answer
from cof.engines.transformers.engine import TransformersEngine
from cof.types import Decoding
from cof.viz.panels import panel_size

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
BOX = (0.25, 0.25, 0.75, 0.5)


def asked(
    question: str = "which digit?", reply: str = "7", wh: tuple[int, int] = (80, 40), **region: Any
) -> Answer:
    cof = CoF(FakeEngine(lambda request: reply), Settings(expand=1.0))
    return cof(Image.new("RGB", wh), question, **(region or {"boxes": [BOX]}))


class Reader(HTMLParser):
    """The tags of a page, and its text cell by cell."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.image: dict[str, str | None] = {}
        self.feed(answer._repr_html_())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.image = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


class TestHTML:
    def test_it_tells_the_answer_and_how_it_came_about(self) -> None:
        cof = CoF(FakeEngine(lambda request: "7" if request.highlight else "[0.1, 0.1, 0.5, 0.5]"))
        page = Reader(cof(picture((80, 40)), "which digit?"))
        told = dict(zip(page.cells[::2], page.cells[1::2], strict=True))
        assert told["question"] == "which digit?"
        assert told["CoF"] == "7"
        assert told["grounder"] == "prompt"
        assert told["confidence of the box"] == "50%"
        assert "plain" not in told

    def test_its_image_has_the_boxes(self) -> None:
        head, data = str(Reader(asked(wh=(80, 40))).image["src"]).split(",")
        assert head == "data:image/webp;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        assert shown.size == panel_size((80, 40))
        assert (np.asarray(shown).max(-1) > 128).any(), "the box is drawn on black"

    def test_the_plain_answer_is_told_once_it_was_asked_for(self) -> None:
        engine = FakeEngine(lambda request: "7" if request.highlight else "9")
        answer = CoF(engine)(Image.new("RGB", (64, 64)), "which digit?", boxes=[BOX])
        before = len(engine.calls)
        assert "plain" not in Reader(answer).cells
        assert len(engine.calls) == before, "showing an answer runs no model"
        assert answer.plain() == "9"
        cells = Reader(answer).cells
        assert cells[cells.index("plain") + 1] == "9"

    def test_all_text_is_escaped(self) -> None:
        evil = '<script>alert("1")</script>" onerror="x'
        answer = replace(asked(evil, evil), reason=evil, grounder=evil)
        page = Reader(answer)
        assert set(page.tags) == {"div", "img", "table", "tr", "th", "td"}
        assert set(page.image) == {"src", "alt", "style"}
        assert page.cells.count(evil) == 4
        refused = Reader(replace(answer, error=evil))
        assert set(refused.tags) == {"div", "table", "tr", "th", "td"}

    def test_an_answer_of_the_plain_model_says_so(self) -> None:
        cof = CoF(FakeEngine(lambda request: "7"), Settings(grounder="none"))
        cells = Reader(cof(Image.new("RGB", (64, 64)), "?")).cells
        assert cells[cells.index("plain") + 1] == "7"
        assert "CoF" not in cells


class TestPlot:
    @pytest.fixture(autouse=True)
    def _close(self) -> Iterator[None]:
        yield
        pyplot.close("all")

    def test_without_an_engine_it_is_the_image_with_the_boxes(self) -> None:
        (ax,) = asked(wh=(80, 40)).plot()
        assert ax.get_xlim() == (0, 80)
        assert ax.get_ylim() == (40, 0)

    def test_with_the_engine_attention_stands_beside_it(self) -> None:
        engine = TransformersEngine.from_pretrained(checkpoint("llava"))
        cof = CoF(engine, Settings(strength=8.0))
        answer = cof(picture((60, 40)), "?", boxes=[BOX], decoding=Decoding(max_new_tokens=2))
        axes = answer.plot(engine)
        assert len({id(ax.figure) for ax in axes}) == 1
        titles = [ax.get_title() for ax in axes]
        assert len(titles) == 3
        share = [float(re.findall(r"([\d.]+)%", title)[0]) for title in titles[1:]]
        assert share[1] > share[0], "attention in the box grows"

    @pytest.mark.parametrize("wh", [(80, 40), (2000, 10), (10, 2000)])
    def test_any_text_and_image_can_be_drawn(self, wh: tuple[int, int]) -> None:
        (ax,) = asked("Is it $5 or $\\frac$?", "$5_{", wh=wh).plot()
        ax.figure.canvas.draw()

    def test_a_refused_query_cannot_be_plotted(self) -> None:
        with pytest.raises(CofError, match="refused: too big"):
            replace(asked(), error="too big").plot()


NOTEBOOK = ROOT / "examples" / "look_closer.ipynb"


def test_the_notebook_runs_and_says_what_its_text_says(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [cell.outputs or cell.execution_count for cell in notebook.cells if "outputs" in cell]
    assert kept
    assert not any(kept), "it is kept without outputs"
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": ROOT}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    told = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "plain: X   CoF: C" in told
    assert "lambda  1: X" in told
    assert "lambda 16: C" in told
    right = re.findall(r"truth (\w)  plain (\w)  CoF (\w)", told)
    fixed = [cof == truth != plain for truth, plain, cof in right]
    broken = [plain == truth != cof for truth, plain, cof in right]
    assert (len(right), sum(fixed), broken.index(True), sum(broken)) == (6, 4, 2, 1)
    shown = [output.data for output in outputs if "data" in output]
    assert sum("text/html" in data for data in shown) == 2
    assert sum("image/png" in data for data in shown) == 2  # the scene, and the plot
