"""How the ratio to plain answers grows with one size at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cof.eval.report.document import Cell, Table, Text, markdown
from cof.eval.store import write_atomically
from lab.bench.records import Records, ratios
from lab.bench.report import heading, of_setup
from lab.bench.setups import GROWTH, Setup
from lab.bench.ways import GROWING

LABELS = {
    "image_tokens": "image tokens",
    "length": "words of the question",
    "batch": "images at a time",
    "questions": "questions about each image",
}


def growth(records: Records, shape: str, folder: Path) -> str:
    """Write `growth.md` and `growth.png`; return the table."""
    usual = Setup(shape)
    about = (
        f"The {shape} model; unless the table says otherwise, {usual.image_tokens} image tokens, "
        "one image, one short question."
    )
    text = markdown([Text(heading(records.machine)), Text(about), table(records, shape)])
    write_atomically(folder / "growth.md", text)
    plot(records, shape, folder / "growth.png")
    return text


def measured_setups(records: Records, shape: str, variable: str) -> dict[int, dict[str, Any]]:
    """The ways measured in the setups that differ in `variable` alone, by its values."""
    found = {}
    for value in GROWTH[variable]:
        by_way = of_setup(records, Setup(shape, **{variable: value}))
        if by_way:
            found[by_way["plain"]["words"] if variable == "length" else value] = by_way
    return found


def table(records: Records, shape: str) -> Table:
    """One line for each size and way."""
    head = ("grows", "to", "way", "seconds", "x plain", "floor, x plain", "TFLOP, x plain", "runs")
    rows: list[list[Cell]] = []
    for variable, label in LABELS.items():
        for value, by_way in measured_setups(records, shape, variable).items():
            for way in (way for way in GROWING if way in by_way):
                row, ratio = by_way[way], ratios(by_way[way], by_way["plain"])
                relative = (f"{ratio[name]:.2f}" for name in ("time", "floor_s", "tflops"))
                seconds, runs = f"{row['seconds']:.3f}", len(row["all_seconds"])
                rows.append([label, value, way, seconds, *relative, runs])
    return Table("growth", head, rows)


def plot(records: Records, shape: str, path: Path) -> None:
    """A panel for each size: time relative to plain answers, and its lower bound dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).ravel()
    colors = dict(zip(GROWING[1:], ("tab:gray", "tab:orange", "tab:blue"), strict=True))
    for axes, (variable, label) in zip(panels, LABELS.items(), strict=True):
        measured = measured_setups(records, shape, variable)
        for way, color in colors.items():
            relative = {
                value: ratios(by_way[way], by_way["plain"])
                for value, by_way in measured.items()
                if way in by_way
            }
            times, floors = ([r[name] for r in relative.values()] for name in ("time", "floor_s"))
            axes.plot(list(relative), times, "o-", color=color, label=way)
            axes.plot(list(relative), floors, "--", color=color, linewidth=1)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)
    for axes in panels[::2]:
        axes.set_ylabel("time relative to plain answers")
    panels[0].legend(title="dashed: operations and bytes alone", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120)
