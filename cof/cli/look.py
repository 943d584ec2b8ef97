"""`cof demo` and `cof scenes`: what can be tried without data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cof.cli.common import Model, sentences, with_model
from cof.options import indices


@sentences
@with_model("tiny-early")
def demo(
    model: Model,
    out: Annotated[Path, "Folder for the images."] = Path("cof-demo"),
) -> None:
    """Ask an embedded model about small details, plainly and with CoF, and draw the boxes."""
    from rich.progress import track

    from cof.viz.page import same_answer, save_overlay
    from cof.web.session import DEMO, load_examples

    items = load_examples()
    out.mkdir(parents=True, exist_ok=True)
    cof = model.pipeline()
    table = Table("question", "truth", "plain", "CoF", "box", "image", show_lines=True)
    right = {"plain": 0, "CoF": 0}
    progress = Console(stderr=True)
    for number, item in enumerate(track(items, "asking", console=progress, transient=True), 1):
        answer, truth = cof(DEMO / item["image"], item["question"]), item["answer"]
        drawing = out / f"{number:02d}-{Path(item['image']).stem}.png"
        save_overlay(drawing, cof.engine, answer, plain=answer.plain(), truth=truth)
        cells = [Text(item["question"]), Text(truth)]
        for who, text in (("plain", answer.plain()), ("CoF", answer.text)):
            good = same_answer(text, truth)
            right[who] += good
            cells.append(Text(text, style="green" if good else "red"))
        found = "found" if answer.confidence is None else f"confidence {answer.confidence:.0%}"
        image = Text(str(drawing), overflow="fold")
        table.add_row(*cells, found if answer.boxes else "none", image)
    console = Console()
    console.print(table)
    told = ", ".join(f"{who} {count} of {len(items)}" for who, count in right.items())
    console.print(
        f"Right: {told}.\nThese images were selected. To measure on others: `cof scenes DIR`, then "
        "`cof eval scenes DIR`."
    )


@sentences
def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files.")],
    split: Annotated[str, "validation, test or headline."] = "test",
    num_objects: Annotated[str, "Numbers of objects in a scene."] = "4,8,12,16",
    scenes: Annotated[int, typer.Option(help="Scenes for each number.")] = 32,
    side: Annotated[int, typer.Option(help="In pixels; above 160 details are smaller.")] = 160,
) -> None:
    """Draw the embedded benchmark: images/*.png and questions.jsonl, the same every time."""
    from cof.tiny.benchmark import write_benchmark

    levels = indices("--num-objects", num_objects) or ()
    path = write_benchmark(out, split, num_objects=levels, scenes=scenes, side=side)
    typer.echo(f"{len(path.read_text('utf-8').splitlines())} questions in {path}")
