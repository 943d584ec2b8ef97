"""Draw the training of the embedded model from its log."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

SPEAK = ("glyph", "color", "shape", "size", "existence", "position", "verify", "choice")
BOX = ("x1", "y1", "x2", "y2")
EARLY = 500  # the step of `tiny-early`


def draw(speak: Path, out: Path) -> None:
    """Plot accuracy over steps in two panels: answers, and box coordinates (within 0.04); of a step
    that is logged twice the last line counts."""
    import matplotlib.pyplot as plt

    logged = map(json.loads, speak.read_text("utf-8").splitlines())
    rows = sorted({row["step"]: row for row in logged}.items())
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    panels = (
        ("Answers (first token, training scenes)", SPEAK),
        ("Coordinates within 0.04 (earlier ones given)", (*BOX, "look")),
    )
    for axis, (title, names) in zip(axes, panels, strict=True):
        for name in names:
            known = [(step, row[name]) for step, row in rows if name in row]
            axis.plot(*zip(*known, strict=True), label=name, lw=1.6)
        axis.set(title=title, xlabel="step", ylim=(0, 1.02))
        axis.axvline(EARLY, color="gray", lw=1, ls=":")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--out", type=Path, default=Path("results/tiny"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.run / "speak.jsonl", args.out / "speak.jsonl")
    draw(args.out / "speak.jsonl", args.out / "training.png")


if __name__ == "__main__":
    main()
