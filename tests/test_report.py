"""Reports: the blocks in every format, the charts, the page, and what stands in it."""

from __future__ import annotations

import base64
import csv
import doctest
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import formats
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cof.cli import app
from cof.engines.fake import FakeEngine
from cof.errors import CofError
from cof.eval import faces
from cof.eval.compare import Comparison
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.vstar import VStar
from cof.eval.paper import parts, run_paper
from cof.eval.report import document, gallery, latex, page, reading, svg
from cof.eval.report.charts import Point, balance, radar, rows
from cof.eval.report.curves import curves, scatter
from cof.eval.report.document import (
    Card,
    Chart,
    Gallery,
    Heading,
    Items,
    Number,
    Picture,
    Table,
    Text,
    csv_text,
    markdown,
)
from cof.eval.report.faces import write_faces_report
from cof.eval.report.page import Section, html
from cof.eval.report.publish import publish
from cof.eval.report.study import write_report
from cof.eval.report.summary import write_summary
from cof.eval.rescore import rescore
from cof.eval.runs import find
from cof.eval.study import Plan
from cof.eval.tasks import Example
from cof.eval.tiny import run_study
from cof.geometry.regions import Region
from cof.prompting.dialects import TINY
from cof.settings import Settings
from cof.types import Request
from cof.viz import overlay

QUIET = Console(quiet=True)
SETTINGS = Settings(expand=1.5, strength=4.0)

TABLE = Table(
    "t",
    ["method", "dev", "test"],
    [["a|b_c", Number(0.5, ".2f", 0.25, 0.75), 3], ["plain", Number(64.26, ".1f", gain=-1.5), "-"]],
    over=[("MMBench", 2)],
    caption="100 % of it.",
)


def says(request: Request) -> str:
    """Boxes for most questions; the highlight turns every answer round."""
    if "bounding box" in request.prompt or "Where?" in request.prompt:
        return "I see none." if "Is it so?" in request.prompt else "[0.25, 0.25, 0.5, 0.5]"
    if "A." in request.prompt:
        return "B" if request.highlight else "A"
    if "there" in request.prompt and request.highlight:
        return "Yes."  # which lmms-eval does not take for a yes
    return "yes" if request.highlight else "<b>no</b>" if "you" in request.prompt else "no"


def comparison(reader: Any, data: Path, out: Path) -> dict[str, Any]:
    task = reader(data)
    run = Comparison.usual(SETTINGS, task, batch_size=4)
    results = run.run(FakeEngine(says), task, out, console=QUIET)
    write_summary(results, out)
    return results


# Blocks in every format


@pytest.mark.parametrize("module", [document, gallery, latex, page, reading, svg])
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_a_table_as_markdown() -> None:
    assert markdown([TABLE]).splitlines() == [
        "| method | MMBench dev | MMBench test |",
        "|---|--:|--:|",
        "| a\\|b_c | 0.50 [0.25, 0.75] | 3 |",
        "| plain | 64.3 (-1.5) | - |",
    ]


def test_a_table_as_csv_has_a_number_to_a_cell_unrounded() -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(TABLE))))
    assert found[0] == {
        "method": "a|b_c",
        "MMBench dev": "0.5",
        "MMBench dev low": "0.25",
        "MMBench dev high": "0.75",
        "MMBench dev gain": "",
        "MMBench test": "3",
    }
    assert found[1]["MMBench dev"] == "64.26"
    assert found[1]["MMBench dev gain"] == "-1.5"


def test_a_table_as_latex() -> None:
    lines = latex.latex(TABLE).splitlines()
    assert r"\caption{100 \% of it.}" in lines
    assert r"\begin{tabular}{lrr}" in lines
    assert lines[lines.index(r"\toprule") + 1 : lines.index(r"\midrule")] == [
        r" & \multicolumn{2}{c}{MMBench} \\",
        r"\cmidrule(lr){2-3}",
        r"method & dev & test \\",
    ]
    assert r"a\textbar{}b\_c & 0.50 {\scriptsize [0.25, 0.75]} & 3 \\" in lines
    assert r"plain & 64.3 {\scriptsize (-1.5)} & -- \\" in lines
    # what is opened is closed, and no character is left that TeX would take for its own
    assert re.findall(r"\\(begin|end)\{(\w+)\}", "".join(lines)) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]


def test_markdown_is_read_again_as_it_was_written() -> None:
    blocks = [
        Heading("A title", 1),
        Text("Some `code` and **bold**."),
        Items([("plain", "as it is"), ("cof", "own boxes")]),
        Table("x-1", ["a", "b"], [["1|2", ""], ["", "-"]]),
        Heading("Below", 2),
        Table("x-2", ["c"], [["d"]]),
    ]
    text = markdown(blocks)
    assert markdown(reading.blocks_of(text, "x")) == text
    assert reading.blocks_of(text, "x")[3] == blocks[3]


# Charts


def points(*values: float) -> dict[str, Point]:
    return {f"m{n}": Point(v, v - 0.1, v + 0.1, n + 1) for n, v in enumerate(values)}


CHARTS = {
    "rows": rows("a", "Rows & more", {"one <1>": points(0.5, 0.6), "two": points(0.1, 0.9)}),
    "one value": rows("a", "One", {"one": {"plain": Point(1.0)}}),
    "radar": radar("a", "Radar", {"plain": {"x_y": 10, "z": 200, "w": 0, "long " * 9: 50}}, 200),
    "scatter": scatter("a", "Cost", points(0.2, 0.3), across="ms", up="accuracy"),
    "free": scatter("a", "Free", {"plain": Point(0.5)}, across="ms", up="accuracy"),
    "curves": curves(
        "a",
        "Curves",
        {"cof": [Point(0.1, at=1.5), Point(-0.2, at=32)], "plain": [Point(0, at=2)]},
        across="lambda",
        up="gain",
        log=True,
    ),
    "balance": balance("a", "Changes", {"cof": (3, 0), "whole": (0, 0)}),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_well_formed_and_within_their_frame(name: str) -> None:
    chart = CHARTS[name]
    root = ElementTree.fromstring(chart.svg)
    assert root.get("aria-label") == chart.title
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert "nan" not in chart.svg.lower()
    for element in root.iter():
        for attribute, most in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            value = element.get(attribute)
            assert value is None or -1 <= float(value) <= most + 1, (element.tag, attribute, value)
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", element.get("points", "")):
            assert -1 <= float(x) <= width + 1
            assert -1 <= float(y) <= height + 1


def place(chart: Chart, told: str) -> tuple[float, float]:
    """Where the dot lies that says so."""
    name = "{http://www.w3.org/2000/svg}"
    for dot in ElementTree.fromstring(chart.svg).iter(f"{name}circle"):
        if dot.findtext(f"{name}title", "").startswith(told):
            return float(dot.get("cx", "")), float(dot.get("cy", ""))
    raise AssertionError(f"nothing says {told}")


def test_points_lie_where_their_values_are() -> None:
    chart = scatter("a", "Cost", points(0.2, 0.4), across="ms", up="accuracy")
    (x1, y1), (x2, y2) = place(chart, "m0: 0.2 [0.1, 0.3]"), place(chart, "m1: 0.4")
    assert (y1 - y2) / (x2 - x1) > 0
    zero = 2 * x1 - x2  # costs are 1 and 2 and the axis begins at 0
    assert zero == pytest.approx(44)
    logs = CHARTS["curves"]
    left, right = place(logs, "cof: 0.1")[0], place(logs, "cof: -0.2")[0]
    (middle, _) = place(logs, "plain")
    assert left < middle < right
    around = radar("a", "Radar", {"plain": {"up": 200, "right": 100, "down": 0, "left": 50}}, 200)
    (ux, uy), (rx, ry) = place(around, "plain, up"), place(around, "plain, right")
    assert (rx - ux) == pytest.approx((ry - uy) / 2, abs=0.2)  # half as far out as up is
    assert place(around, "plain, down") == (ux, ry)


def test_bars_are_as_long_as_their_counts() -> None:
    root = ElementTree.fromstring(balance("a", "Changes", {"cof": (4, 1), "other": (2, 0)}).svg)
    told = {
        bar.findtext("{*}title"): float(bar.get("width", "")) for bar in root.findall("{*}rect")
    }
    assert told["cof: 4 fixed"] == pytest.approx(4 * told["cof: 1 broken"], abs=0.2)
    assert told["cof: 4 fixed"] == pytest.approx(2 * told["other: 2 fixed"], abs=0.2)
    assert told["other: 0 broken"] == 0


# The page


def test_the_page_escapes_and_needs_nothing_else() -> None:
    evil = "<script>alert('x')</script> & \"q\""
    card = Card("fixed", evil, evil, evil, [("plain", evil, False)], evil)
    blocks = [
        Heading(evil),
        Text(evil),
        Items([(evil, evil)]),
        Table("t", [evil], [[evil]], over=[], caption=evil),
        CHARTS["rows"],
        Picture("a.png", b"data"),
        Gallery([card]),
    ]
    text = html(evil, evil, [Section("a", evil, blocks), Section("b", "second", [])])
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"https?://[^\"'\s<]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert not re.search(r"<(link|iframe|object|script|base|form)\b", text)
    sources = re.findall(r"\b(?:src|href)=\"([^\"]*)\"", text)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert 'href="#a"' in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_long_tables_are_folded_and_figures_stand_to_the_right() -> None:
    many = Table("t", ["n", "what", "p"], [[n, "words", Number(0.5, "p")] for n in range(40)])
    text = html("a", "b", [Section("s", "t", [many, TABLE])])
    assert text.count("<summary>40 rows</summary>") == 1
    assert '<td class="words">words</td><td class="">0.500</td>' in text
    assert '<th class="over" colspan="2">MMBench</th>' in text
    assert "0.50<small> [0.25, 0.75]</small>" in text


# Runs


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("vstar")
    return folder, comparison(VStar, formats.vstar(folder / "data"), folder / "out")


def moved(compared: tuple[Path, dict[str, Any]], to: Path) -> Path:
    shutil.copytree(compared[0], to, dirs_exist_ok=True)
    return to / "out"


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r"data:image/webp;base64,([\w+/=]+)", text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_report_of_a_comparison(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, results = moved(compared, tmp_path), compared[1]
    changed = results["changed"]["cof"]
    written = publish(out)
    assert (written.runs, written.without_picture) == (1, 0)
    assert written.shown == len(changed["fixed"]) + len(changed["broken"]) > 0
    text = (out / "report.html").read_text("utf-8")
    shown = pictures(text)
    assert len(shown) == written.shown
    assert {picture.size for picture in shown} == {(420, 315)}  # of 40 x 30
    row = results["groups"]["all"]["cof"]
    assert f"{row['fixed']} fixed, {row['broken']} broken" in text
    for what in ("scope=all", "torch", "lmms-eval", "spread", "mean IoU", "unparsed", "official"):
        assert what in text
    with (out / "report" / "out-questions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for line in rows:
        wanted = results["groups"][line["questions"]][line["method"]]
        assert float(line["accuracy"]) == wanted["accuracy"]
        assert int(line["unparsed"]) == wanted["unparsed"]
        if line["method"] != "plain":
            assert float(line["against plain low"]) == wanted["difference_low"]
            assert float(line["p"]) == wanted["p"]
    assert {line["method"] for line in rows} == set(results["methods"])
    assert (out / "report" / "out-cost.svg").is_file()
    assert "![Accuracy against cost (all questions)](report/out-cost.svg)" in (
        out / "report.md"
    ).read_text("utf-8")
    for path in written.files:
        assert path.is_file()
        assert str(tmp_path) not in path.read_text("utf-8")


def test_the_same_results_give_the_same_report(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    first, second = moved(compared, tmp_path / "1"), moved(compared, tmp_path / "2")
    files = [publish(out).files for out in (first, second, second)]
    for one, *others in zip(*files, strict=True):
        assert all(one.read_bytes() == other.read_bytes() for other in others)
    assert [run.kind for run in find(first)] == ["comparison"]  # not its own report


def test_boxes_are_drawn(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The box found, where the model was made to look, and the true region; none is forgotten."""
    out, changed = moved(compared, tmp_path), compared[1]["changed"]["cof"]
    publish(out)
    lines = map(json.loads, (out / "lines.jsonl").read_text("utf-8").splitlines())
    by_id = {line["question"]["id"]: line for line in lines}
    ids = gallery.in_turn([Example(id, Path(), "", "") for id in changed["fixed"]])
    image = Image.open(next((tmp_path / "data").rglob("*.jpg"))).convert("RGB")
    shown = pictures((out / "report.html").read_text("utf-8"))
    assert ids
    for example, found in zip(ids, shown, strict=False):
        line = by_id[example.id]
        looked = Region(boxes=tuple(map(tuple, line["answers"]["cof"]["boxes"])))
        boxes, true = line["grounding"]["boxes"], line["question"]["region"]
        off = [
            distance(found, overlay(image, *shapes[:1], found=shapes[1], true=shapes[2]))
            for shapes in (
                (looked, boxes, true),
                (None, boxes, true),
                (looked, [], true),
                (looked, boxes, None),
            )
        ]
        assert off[0] < min(off[1:]) - 0.1


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of pixels, 0..255."""
    resized = second.resize(first.size, Image.Resampling.LANCZOS)
    pixels = [np.asarray(image.convert("RGB"), dtype=float) for image in (first, resized)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def test_pictures_that_are_gone(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = moved(compared, tmp_path)
    shutil.rmtree(tmp_path / "data")
    written = publish(out)
    assert written.without_picture == written.shown > 0
    text = (out / "report.html").read_text("utf-8")
    assert f"{written.shown} of the {written.shown} pictures are no longer there." in text
    assert pictures(text) == []
    result = CliRunner().invoke(app, ["report", str(out)])
    assert f"{written.shown} of {written.shown} pictures are no longer where" in result.output


def test_pictures_are_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "er")
    comparison(VStar, formats.vstar(tmp_path / "data"), tmp_path / "linked" / "out")
    for way in ("linked", "deep/er"):
        written = publish(tmp_path / way / "out")
        assert written.shown > written.without_picture == 0


def test_replies_that_are_gone(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = moved(compared, tmp_path)
    (out / "answers.jsonl").unlink()
    written = publish(out)
    assert written.shown == 0
    assert "The replies are not there" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize("what", ["model", "method"])
def test_replies_of_another_run_are_not_shown(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path, what: str
) -> None:
    out = moved(compared, tmp_path)
    if what == "model":
        about = json.loads((out / "run.json").read_text("utf-8"))
        (out / "run.json").write_text(json.dumps(about | {"weights": "others"}), "utf-8")
    else:
        text = (out / "answers.jsonl").read_text("utf-8")
        (out / "answers.jsonl").write_text(text.replace("lambda=4", "lambda=5"), "utf-8")
    assert publish(out).shown == 0
    text = (out / "report.html").read_text("utf-8")
    assert "The replies are not there" in text
    assert "fixed and broken" in text  # the charts are


def test_how_many_questions_are_shown(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, changed = moved(compared, tmp_path), compared[1]["changed"]["cof"]
    assert publish(out, most=1).shown == sum(map(bool, changed.values()))
    assert publish(out, most=0).shown == 0


def test_the_gallery_takes_kinds_in_turn() -> None:
    kinds = ("a", "a", "a", "b", "c", "b")
    examples = [Example(str(n), Path("x"), "?", "y", kind=kind) for n, kind in enumerate(kinds)]
    assert [example.id for example in gallery.in_turn(examples)] == ["0", "3", "4", "1", "5", "2"]


def test_pictures_in_a_data_file_are_shown_too(tmp_path: Path) -> None:
    path = formats.tsv(tmp_path / "data" / "dev.tsv", formats.mmbench_rows())
    comparison(MMBench, path, tmp_path / "out")
    written = publish(tmp_path / "out")
    assert written.shown > written.without_picture == 0
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert len(pictures(text)) == written.shown
    assert "B. blue" in text


def test_mme_has_a_radar_and_answers_stay_text(tmp_path: Path) -> None:
    results = comparison(MME, formats.mme(tmp_path / "data"), tmp_path / "out")
    publish(tmp_path / "out")
    assert not list((tmp_path / "out" / "report").glob("*-rules-*.svg"))  # they agree
    chart = (tmp_path / "out" / "report" / "out-radar.svg").read_text("utf-8")
    for method in results["methods"]:
        score = results["metrics"]["official"][method]["code_reasoning"]
        assert f"{method}, code_reasoning: {score:.1f}" in chart
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<b>" not in text
    assert "&lt;b&gt;no" in text
    assert "<b>" not in (tmp_path / "out" / "report.md").read_text("utf-8")


def test_where_the_rule_sets_disagree_a_chart_shows_it(tmp_path: Path) -> None:
    results = comparison(POPE, formats.pope(tmp_path / "data"), tmp_path / "out")
    names = {path.name for path in publish(tmp_path / "out").files}
    metrics = results["metrics"]
    for figure in results["headline"]:
        of_rules = [
            [metrics[rules][method][figure] for method in metrics[rules]] for rules in metrics
        ]
        assert of_rules[0] != of_rules[2]
        assert f"out-rules-{figure.replace(' ', '-')}.svg" in names


def test_several_runs_and_the_papers_tables(tmp_path: Path) -> None:
    formats.mme(tmp_path / "data" / "mme")
    formats.pope(tmp_path / "data" / "pope")
    engine = FakeEngine(says, name="llava-hf/llava-1.5-13b-hf")
    out = tmp_path / "out"
    run_paper(engine, SETTINGS, parts(tmp_path / "data"), out / "paper", console=QUIET)
    (out / "other").mkdir()
    Image.new("RGB", (3, 3)).save(out / "other" / "plot.png")
    (out / "other" / "table.md").write_text("# Another\n\n| a |\n|---|\n| 7 |\n", "utf-8")
    assert [(run.kind, run.name) for run in find(out)] == [
        ("other", "other"),
        ("paper", "paper"),
        ("comparison", "paper-mme"),
        ("comparison", "paper-pope"),
    ]
    publish(out)
    headline = (out / "report" / "paper-mme-headline.tex").read_text("utf-8")
    assert r"\caption{mme.}" in headline
    assert r"\label{tab:paper-mme-headline}" in headline
    tex = (out / "report" / "paper-table-1.tex").read_text("utf-8")
    assert r" & \multicolumn{2}{c}{MME} & \multicolumn{2}{c}{MMBench}" in tex
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5} \cmidrule(lr){6-8}" in tex
    assert "plain, paper & 1531.3 & 295.4 & 67.7 & 67.0 & 87.1 & 86.2 & 84.5 & 2219.2" in tex
    ablation = (out / "report" / "paper-table-2.tex").read_text("utf-8")
    assert "yes &  & paper & 1527.2 & 306.8 & 68.5 & 69.1" in ablation
    text = (out / "report.html").read_text("utf-8")
    assert "data:image/png;base64," in text
    assert ">mme (paper/mme)<" in text  # runs with equal titles are told apart
    order = [text.index(f'<section id="{name}"') for name in ("paper", "paper-mme", "other")]
    assert order == sorted(order)
    assert "![other/plot.png](other/plot.png)" in (out / "report.md").read_text("utf-8")


def test_report_of_the_embedded_benchmarks_study(tmp_path: Path) -> None:
    plan = replace(Plan.quick(), scenes=1, validation_scenes=1, num_objects=(4, 8), batch_size=20)
    engine = FakeEngine(says, dialect=TINY)
    results = run_study(engine, plan, tmp_path, console=QUIET)
    write_report(results, tmp_path)
    written = publish(tmp_path)
    changed = results["test"]["changed"]["cof"]
    assert written.shown == min(12, len(changed["fixed"])) + min(12, len(changed["broken"])) > 0
    names = {path.name for path in written.files}
    slug = find(tmp_path)[0].name
    for chart in ("kinds", "num_objects", "lambda", "changes", "cost"):
        assert f"{slug}-{chart}.svg" in names
    text = (tmp_path / "report.html").read_text("utf-8")
    assert len(pictures(text)) == written.shown
    # results of another version, which lack something, are shown as their tables stand
    del results["choice"]["validation"]
    (tmp_path / "results.json").write_text(json.dumps(results), "utf-8")
    assert publish(tmp_path).shown == 0
    assert f"{slug}-table-1.csv" in {path.name for path in publish(tmp_path).files}
    (tmp_path / "table.md").unlink()
    with pytest.raises(CofError, match="results of another version of cof"):
        publish(tmp_path)


def test_report_of_the_three_faces(tmp_path: Path) -> None:
    engine, plan = FakeEngine(says, dialect=TINY), faces.Plan.quick()
    results = faces.run_faces(engine, SETTINGS, plan, tmp_path, console=QUIET)
    write_faces_report(results, tmp_path)
    assert [run.kind for run in find(tmp_path)] == ["faces"]
    written = publish(tmp_path, most=3)
    changed = [numbers["changed"]["cof"] for numbers in results["faces"].values()]
    assert written.shown == sum(min(3, len(ids)) for face in changed for ids in face.values()) > 0
    assert written.without_picture == 0
    slug, names = find(tmp_path)[0].name, {path.name for path in written.files}
    assert f"{slug}-mme-radar.svg" in names
    for face in ("mme", "pope", "mmbench"):
        for chart in ("figures", "num_objects", "changes", "cost"):
            assert f"{slug}-{face}-{chart}.svg" in names
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "POPE-like: what CoF changed" in text
    first = results["faces"]["pope"]["figures"]["random f1"]["plain"]["value"]
    assert f"{100 * first:.1f}" in text


# The commands


def test_commands(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = moved(compared, tmp_path)
    run = CliRunner()
    shown = run.invoke(app, ["report", str(out), "--most", "1"])
    assert shown.exit_code == 0, shown.output
    assert f"{out / 'report.html'}: 1 run, 0." in shown.output
    before = (out / "report.html").read_bytes()
    scored = run.invoke(app, ["rescore", str(out), "--rules", "vlmevalkit"])
    assert scored.exit_code == 0, scored.output
    assert json.loads((out / "results.json").read_text("utf-8"))["rules"] == "vlmevalkit"
    after = (out / "report.html").read_bytes()
    assert before != after
    assert b"rules <code>vlmevalkit</code>" in after


def test_refusals(tmp_path: Path) -> None:
    for arguments, message in (
        (("report", tmp_path), "There is no finished run in"),
        (("report", tmp_path / "none"), "There is no folder"),
        (("rescore", tmp_path), "There is no finished run in"),
        (("rescore", tmp_path, "--rules", "mine"), "There are no rules 'mine'; there are official"),
    ):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    (tmp_path / "table.md").write_text("# Something\n", "utf-8")
    with pytest.raises(CofError, match="keeps replies that can be scored again"):
        rescore(tmp_path)
