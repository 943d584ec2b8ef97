"""How the ratio to plain answers grows with one size at a time."""

from __future__ import annotations

from pathlib import Path

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
COLUMNS = ("grows", "to", "way", "seconds", "x plain", "floor, x plain", "TFLOP, x plain", "runs")


def growth(records: Records, shape: str, folder: Path) -> str:
    """Write `growth.md` and `growth.png`; return the table."""
    text = heading(records.machine) + _model(shape) + table(records, shape)
    write_atomically(folder / "growth.md", text)
    plot(records, shape, folder / "growth.png")
    return text


def measured_setups(records: Records, shape: str, variable: str) -> list[Setup]:
    """The measured setups that differ in `variable` alone."""
    setups = [Setup(shape, **{variable: value}) for value in GROWTH[variable]]
    return [setup for setup in setups if of_setup(records, setup)]


def table(records: Records, shape: str) -> str:
    """One line for each size and way."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|--:|---|" + "--:|" * (len(COLUMNS) - 3)]
    for variable, label in LABELS.items():
        for setup in measured_setups(records, shape, variable):
            by_way = of_setup(records, setup)
            for way in (way for way in GROWING if way in by_way):
                row, ratio = by_way[way], ratios(by_way[way], by_way["plain"])
                cells = (
                    label,
                    _value(records, setup, variable),
                    way,
                    f"{row['seconds']:.3f}",
                    f"{ratio['time']:.2f}",
                    f"{ratio['floor_s']:.2f}",
                    f"{ratio['tflops']:.2f}",
                    len(row["all_seconds"]),
                )
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def plot(records: Records, shape: str, path: Path) -> None:
    """A panel for each size: time relative to plain answers, and its lower bound dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True).ravel()
    ways = [way for way in GROWING if way != "plain"]
    for axes, (variable, label) in zip(panels, LABELS.items(), strict=True):
        for way, color in zip(ways, ("tab:gray", "tab:orange", "tab:blue"), strict=True):
            setups = [
                setup
                for setup in measured_setups(records, shape, variable)
                if way in of_setup(records, setup)
            ]
            relative = [
                ratios(records.rows[setup, way], records.rows[setup, "plain"]) for setup in setups
            ]
            values = [_value(records, setup, variable) for setup in setups]
            axes.plot(values, [ratio["time"] for ratio in relative], "o-", color=color, label=way)
            axes.plot(
                values, [ratio["floor_s"] for ratio in relative], "--", color=color, linewidth=1
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)
    for axes in panels[::2]:
        axes.set_ylabel("time relative to plain answers")
    panels[0].legend(title="dashed: operations and bytes alone", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120)


def _value(records: Records, setup: Setup, variable: str) -> int:
    if variable == "length":
        return int(records.rows[setup, "plain"]["words"])
    return int(getattr(setup, variable))


def _model(shape: str) -> str:
    usual = Setup(shape)
    return (
        f"The {shape} model; unless the table says otherwise, {usual.image_tokens} image tokens, "
        "one image, one short question.\n\n"
    )
