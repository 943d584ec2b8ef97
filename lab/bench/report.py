"""The measurements as tables: ratios, targets and lower bounds; how they grow with each size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cof.eval.json_files import write_atomically
from cof.eval.report.document import Block, Cell, Table, Text, markdown
from lab.bench.records import Records, ratios
from lab.bench.setups import GROWTH, IMAGE_TOKENS, Setup
from lab.bench.ways import GROWING

TARGETS = {
    ("CoF, text", 1, 1): 1.35,
    ("CoF, all", 1, 1): 1.9,
    ("CoF, text", 16, 1): 1.25,
    ("CoF, text", 1, 10): 0.5,
    ("CoF, all", 1, 10): 0.5,
    ("lambda = 1", 1, 1): 1.02,
    ("grounder none", 1, 1): 1.02,
    ("lambda = 1", 16, 1): 1.02,
    ("grounder none", 16, 1): 1.02,
}
"""The way, images and questions about each -> the most that it may cost, relative to plain answers:
of decoders of 1B and more with 576 image tokens and short questions."""

NOTES = """\
`x plain`: the median over rounds of a way's time over the plain answers' in the same round;
`middle half`: the quartiles of these. `floor, x plain`: the same ratio if operations and bytes
alone took time, the slower of both for each pass at the rates above; `launched`: if also no pass
were faster than its launch. `x floor`: seconds over those of the floor. `GPU busy`: the part of
them in which a kernel ran, the rest being Python, launches and the CPU's own work. `four batches`
answers four times as many questions. `questions each`: about each image; `plain` and `naive`
answer each of them from pixels. `passes`: through the decoder. `naive` is what the released code
does: two whole generations with eager attention, without a box template. `one-pass box`: the box
of the attention grounder, from one pass over the question and one over a generic question."""


SHORT = """\
Seconds over those of the floor, which operations and bytes set; in brackets relative to plain
answers, and on a GPU the share in which passes were launched."""

LABELS = {
    "image_tokens": "image tokens",
    "length": "words of the question",
    "batch": "images at a time",
    "questions": "questions about each image",
}


def target(setup: Setup, way: str) -> float | None:
    """The most that a way may cost in a setup, relative to plain answers; None: no target.

    >>> target(Setup("1b"), "CoF, text"), target(Setup("1b", batch=16), "CoF, text")
    (1.35, 1.25)
    >>> target(Setup("0.3b"), "CoF, text")
    """
    usual = setup.shape in ("1b", "7b") and setup.image_tokens == IMAGE_TOKENS
    if not usual or setup.length > 1:
        return None
    return TARGETS.get((way, setup.batch, setup.questions))


def report(records: Records, folder: Path) -> str:
    """Write `table.md` and `summary.md`; return the former."""
    about = Text(heading(records.machine))
    text = markdown([about, _limits(records), table(records), Text(NOTES)])
    write_atomically(folder / "table.md", text)
    shapes = dict.fromkeys(setup.shape for setup in basic(records))
    short: list[Block] = [about, Text(SHORT), *(summary(records, shape) for shape in shapes)]
    write_atomically(folder / "summary.md", markdown(short))
    return text


def heading(machine: Mapping[str, Any]) -> str:
    """Where this was measured, as a line."""
    return (
        f"{machine['device']} ({machine['processor']}, {machine['threads']} threads), "
        f"{machine['dtype']}, torch {machine['torch']}, transformers {machine['transformers']}."
    )


def table(records: Records) -> Table:
    """All ways in the `basic` setups."""
    head = ["model", "image tokens", "images", "questions each", "way", "seconds", "x plain"]
    head += ["middle half", "target", "met", "x floor", "GPU busy", "floor, x plain", "launched"]
    head += ["passes", "TFLOP", "GiB moved", "peak GiB", "runs"]
    rows: list[list[Cell]] = []
    for setup in basic(records):
        launches = records.limits[setup.shape].launch is not None
        for way, row in of_setup(records, setup).items():
            ratio, limit = ratios(row, records.rows[setup, "plain"]), target(setup, way)
            rows.append(
                [
                    setup.shape,
                    setup.image_tokens,
                    setup.batch,
                    setup.questions,
                    way,
                    f"{row['seconds']:.3f}",
                    f"{ratio['time']:.2f}",
                    f"{ratio['time_low']:.2f} to {ratio['time_high']:.2f}",
                    "" if limit is None else f"{limit:g}",
                    "" if limit is None else "yes" if ratio["time"] <= limit else "no",
                    f"{row['seconds'] / row['floor_s']:.2f}",
                    f"{100 * row['gpu_s'] / row['seconds']:.0f} %" if row.get("gpu_s") else "",
                    f"{ratio['floor_s']:.2f}",
                    f"{ratio['launched_floor_s']:.2f}" if launches else "",
                    row["forwards"],
                    f"{row['tflops']:.3g}",
                    f"{row['gib_moved']:.3g}",
                    "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                    len(row["all_seconds"]),
                ]
            )
    return Table("table", head, rows)


def summary(records: Records, shape: str) -> Table:
    """A line for each way and a column for each setup."""
    setups = [setup for setup in basic(records) if setup.shape == shape]
    names = dict.fromkeys(way for setup in setups for way in of_setup(records, setup))
    rows: list[list[Cell]] = [
        [
            way,
            records.rows.get((setups[0], way), {}).get("forwards", ""),
            *(_relative(records, setup, way) for setup in setups),
        ]
        for way in names
    ]
    return Table(shape, [shape, "passes", *map(_title, setups)], rows)


def _relative(records: Records, setup: Setup, way: str) -> str:
    """One way in one setup: its time over its floor; relative to plain answers; on a GPU the share
    in which passes were launched. Empty if it was not measured."""
    row, launch = of_setup(records, setup).get(way), records.limits[setup.shape].launch
    if row is None:
        return ""
    seconds, ratio = row["seconds"], ratios(row, records.rows[setup, "plain"])["time"]
    told = (
        [f"{ratio:.2f}"]
        if launch is None
        else [f"{ratio:.2f}", f"{min(1, row['forwards'] * launch / seconds):.0%}"]
    )
    return f"{seconds / row['floor_s']:.1f} ({', '.join(told)})"


def _title(setup: Setup) -> str:
    images, asked = (
        f"1 {what}" if number == 1 else f"{number} {what}s"
        for number, what in ((setup.batch, "image"), (setup.questions, "question"))
    )
    return f"{images}, {asked} each"


def basic(records: Records) -> list[Setup]:
    """The setups of the table: those with a target, or with more ways than the growth measures."""
    setups = dict.fromkeys(setup for setup, _ in records.rows)
    more = [
        setup
        for setup in setups
        if set(of_setup(records, setup)) - set(GROWING)
        or any(target(setup, way) is not None for way in of_setup(records, setup))
    ]
    return more or list(setups)


def of_setup(records: Records, setup: Setup) -> dict[str, dict[str, Any]]:
    """The ways measured in a setup; empty without a plain answer to compare with."""
    if (setup, "plain") not in records.rows:
        return {}
    return {way: row for (known, way), row in records.rows.items() if known == setup}


def _limits(records: Records) -> Table:
    head = ("model", "TFLOP/s", "GB/s", "ms to launch a pass", "ms to launch the vision tower")
    rows: list[list[Cell]] = []
    for shape, limits in records.limits.items():
        rates = [f"{limits.flops / 1e12:.3g}", f"{limits.bytes / 1e9:.4g}"]
        launches = (limits.launch, limits.vision_launch)
        times = ["" if seconds is None else f"{seconds * 1e3:.1f}" for seconds in launches]
        rows.append([shape, *rates, *times])
    return Table("limits", head, rows)


def growth(records: Records, shape: str, folder: Path) -> str:
    """Write `growth.md` and `growth.png`; return the table."""
    usual = Setup(shape)
    about = (
        f"The {shape} model; unless the table says otherwise, {usual.image_tokens} image tokens, "
        "one image, one short question."
    )
    text = markdown([Text(heading(records.machine)), Text(about), growth_table(records, shape)])
    write_atomically(folder / "growth.md", text)
    _plot_growth(records, shape, folder / "growth.png")
    return text


def measured_setups(records: Records, shape: str, variable: str) -> dict[int, dict[str, Any]]:
    """The ways measured in the setups that differ in `variable` alone, by its values."""
    found = {}
    for value in GROWTH[variable]:
        by_way = of_setup(records, Setup(shape, **{variable: value}))
        if by_way:
            found[by_way["plain"]["words"] if variable == "length" else value] = by_way
    return found


def growth_table(records: Records, shape: str) -> Table:
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


def _plot_growth(records: Records, shape: str, path: Path) -> None:
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
