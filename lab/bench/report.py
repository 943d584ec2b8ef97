"""The measurements as a table and a chart: ratios, targets and lower bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cof.eval.store import write_atomically
from lab.bench.records import Records, ratios
from lab.bench.setups import IMAGE_TOKENS, Setup
from lab.bench.ways import GROWING

COLUMNS = (
    "model",
    "image tokens",
    "images",
    "questions each",
    "way",
    "seconds",
    "x plain",
    "middle half",
    "target",
    "met",
    "floor, x plain",
    "launched",
    "passes",
    "TFLOP",
    "GiB moved",
    "peak GiB",
    "runs",
)


@dataclass(frozen=True)
class Target:
    """The most that a way may cost, relative to plain answers."""

    way: str
    batch: int
    questions: int
    ratio: float

    def concerns(self, setup: Setup, way: str) -> bool:
        """Targets are for decoders of 1B and more with 576 image tokens and short questions."""
        large = setup.shape in ("1b", "7b") and setup.image_tokens == IMAGE_TOKENS
        return (
            large
            and setup.length == 1
            and (way, setup.batch, setup.questions) == (self.way, self.batch, self.questions)
        )


TARGETS = (
    Target("CoF, text", 1, 1, 1.35),
    Target("CoF, all", 1, 1, 1.9),
    Target("CoF, text", 16, 1, 1.25),
    Target("CoF, text", 1, 10, 0.5),
    Target("CoF, all", 1, 10, 0.5),
    Target("lambda = 1", 1, 1, 1.02),
    Target("grounder none", 1, 1, 1.02),
    Target("lambda = 1", 16, 1, 1.02),
    Target("grounder none", 16, 1, 1.02),
)


def target(setup: Setup, way: str) -> float | None:
    """The most that a way may cost in a setup, relative to plain answers; None: no target.

    >>> target(Setup("1b"), "CoF, text"), target(Setup("1b", batch=16), "CoF, text")
    (1.35, 1.25)
    >>> target(Setup("0.3b"), "CoF, text")
    """
    return next((target.ratio for target in TARGETS if target.concerns(setup, way)), None)


def report(records: Records, folder: Path) -> str:
    """Write `table.md`, `summary.md` and `ratios.png`; return the table."""
    setups = basic(records)
    text = heading(records.machine) + _limits(records) + "\n" + table(records, setups)
    write_atomically(folder / "table.md", text + NOTES)
    parts = [summary(records, shape) for shape in dict.fromkeys(setup.shape for setup in setups)]
    write_atomically(folder / "summary.md", heading(records.machine) + "\n".join(parts))
    plot(records, setups, folder / "ratios.png")
    return text


NOTES = """
`x plain`: the median over rounds of a way's time over the plain answers' in the same round;
`middle half`: the quartiles of these. `floor, x plain`: the same ratio if operations and bytes
alone took time, the slower of both for each pass at the rates above; `launched`: if also no pass
were faster than its launch. `questions each`: about each image; `plain` and `naive`
answer each of them from pixels. `passes`: through the decoder. `naive` is what the released code
does: two whole generations with eager attention, without a box template. `one-pass box`: the box
of the attention grounder, from one pass over the question and one over a generic question.
"""


def heading(machine: Mapping[str, Any]) -> str:
    """Where this was measured, as a line."""
    return (
        f"{machine['device']} ({machine['processor']}, {machine['threads']} threads), "
        f"{machine['dtype']}, torch {machine['torch']}, transformers {machine['transformers']}.\n\n"
    )


def table(records: Records, setups: Sequence[Setup]) -> str:
    """All ways in these setups, as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * 5 + "--:|" * (len(COLUMNS) - 5)]
    for setup in setups:
        for way, row in of_setup(records, setup).items():
            plain = records.rows[setup, "plain"]
            ratio, limit = ratios(row, plain), target(setup, way)
            met = "" if limit is None else "yes" if ratio["time"] <= limit else "no"
            launches = records.limits[setup.shape].launch is not None
            cells = (
                setup.shape,
                setup.image_tokens,
                setup.batch,
                setup.questions,
                way,
                f"{row['seconds']:.3f}",
                f"{ratio['time']:.2f}",
                f"{ratio['time_low']:.2f} to {ratio['time_high']:.2f}",
                "" if limit is None else f"{limit:g}",
                met,
                f"{ratio['floor_s']:.2f}",
                f"{ratio['launched_floor_s']:.2f}" if launches else "",
                row["forwards"],
                f"{row['tflops']:.3g}",
                f"{row['gib_moved']:.3g}",
                "" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}",
                len(row["all_seconds"]),
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def summary(records: Records, shape: str) -> str:
    """Time relative to plain answers, a line for each way and a column for each setup."""
    setups = [setup for setup in basic(records) if setup.shape == shape]
    names = dict.fromkeys(way for setup in setups for way in of_setup(records, setup))
    titles = [_title(setup).split(", ", 2)[2] for setup in setups]
    lines = [f"| {shape} | passes | {' | '.join(titles)} |", "|---|" + "--:|" * (1 + len(setups))]
    for way in names:
        cells = [_relative(records, setup, way) for setup in setups]
        passes = records.rows.get((setups[0], way), {}).get("forwards", "")
        lines.append(f"| {way} | {passes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _relative(records: Records, setup: Setup, way: str) -> str:
    """One way in one setup, with its target; empty if it was not measured."""
    row = of_setup(records, setup).get(way)
    if row is None:
        return ""
    ratio, limit = ratios(row, records.rows[setup, "plain"])["time"], target(setup, way)
    if limit is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (target {limit:g}: {'met' if ratio <= limit else 'missed'})"


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


def plot(records: Records, setups: Sequence[Setup], path: Path) -> None:
    """Bars of time relative to plain answers, with their lower bounds and the targets as marks."""
    from matplotlib.figure import Figure

    shown = [setup for setup in setups if len(of_setup(records, setup)) > 1]
    if not shown:
        return
    counts = [len(of_setup(records, setup)) - 1 for setup in shown]
    figure = Figure(figsize=(8, 1 + 0.24 * sum(counts) + 0.5 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), squeeze=False, height_ratios=counts)[:, 0]
    for axes, setup in zip(panels, shown, strict=True):
        by_way = of_setup(records, setup)
        plain = by_way.pop("plain")
        for place, (way, row) in enumerate(by_way.items()):
            ratio, limit = ratios(row, plain), target(setup, way)
            bar = {"color": "tab:gray" if way == "naive" else "tab:blue", "height": 0.7}
            axes.barh(place, ratio["time"], **bar)
            axes.plot(ratio["floor_s"], place, "|", color="black", markersize=9)
            if limit is not None:
                axes.plot(limit, place, "d", color="tab:orange", markersize=5)
            axes.annotate(f" {ratio['time']:.2f}", (ratio["time"], place), va="center", fontsize=7)
        axes.set_yticks(range(len(by_way)), list(by_way), fontsize=7)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.margins(x=0.08)
        axes.set_title(_title(setup), fontsize=8, loc="left")
        axes.tick_params(axis="x", labelsize=7)
    panels[-1].set_xlabel(
        "time relative to plain answers (line: 1; bar |: operations and bytes alone; "
        "diamond: target)",
        fontsize=8,
    )
    figure.savefig(path, dpi=120)


def _title(setup: Setup) -> str:
    images = "1 image" if setup.batch == 1 else f"{setup.batch} images"
    asked = "1 question" if setup.questions == 1 else f"{setup.questions} questions"
    return f"{setup.shape}, {setup.image_tokens} image tokens, {images}, {asked} each"


def _limits(records: Records) -> str:
    names = ("model", "TFLOP/s", "GB/s", "ms to launch a pass", "ms to launch the vision tower")
    lines = [f"| {' | '.join(names)} |", "|---|" + "--:|" * (len(names) - 1)]
    for shape, limits in records.limits.items():
        launch, vision = (
            "" if seconds is None else f"{seconds * 1e3:.1f}"
            for seconds in (limits.launch, limits.vision_launch)
        )
        cells = (shape, f"{limits.flops / 1e12:.3g}", f"{limits.bytes / 1e9:.4g}", launch, vision)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
