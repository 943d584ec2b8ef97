"""The figures of the embedded benchmark's three faces, by picture, so that they have intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cof.eval.clusters import Figure, share, total
from cof.eval.data.pope import KINDS
from cof.eval.store import Record
from cof.eval.tasks import Example
from cof.tiny.faces import DIFFICULTIES

Said = Mapping[str, Record]
"""What a method said, by question."""


@dataclass(frozen=True)
class Drawn:
    """Of a question: its scene, which is its picture, and how difficult it is."""

    scene: str
    difficulty: str


def drawn(folder: Path, examples: Sequence[Example]) -> dict[str, Drawn]:
    """By question and by group, from a face's `annotations.jsonl`."""
    lines = (folder / "annotations.jsonl").read_text("utf-8").splitlines()
    known = {
        fields["id"]: Drawn(str(fields["scene"]), fields["difficulty"])
        for fields in map(json.loads, lines)
    }
    found: dict[str, Drawn] = {}
    for example in examples:
        found[example.id] = known.get(example.id) or known[example.group]
        if example.group:
            found[example.group] = found[example.id]
    return found


def mme(examples: Sequence[Example], said: Said, places: Mapping[str, Drawn]) -> dict[str, Figure]:
    """`score` (acc + acc+ summed over the tasks, 2 each), and each task's acc and acc+."""
    pictures = {id: place.scene for id, place in places.items()}
    found: dict[str, Figure] = {}
    for task in dict.fromkeys(example.kind for example in examples):
        rows = [example for example in examples if example.kind == task]
        found[f"{task} acc"] = share(_right(rows, said), pictures)
        found[f"{task} acc+"] = share(_together(rows, said), pictures)
    return {"score": total(list(found.values()))} | found


def pope(examples: Sequence[Example], said: Said, places: Mapping[str, Drawn]) -> dict[str, Figure]:
    """Of each kind of negatives F1 (`yes` being the positive answer), accuracy and yes ratio."""
    pictures = {id: place.scene for id, place in places.items()}
    found: dict[str, Figure] = {}
    for kind in KINDS:
        rows = [example for example in examples if example.kind == kind]
        if not rows:
            continue
        counts: dict[str, tuple[float, float]] = {}
        for row in rows:
            # F1 = 2 hits / (yes said + yes true), a ratio of counts
            yes, true = said[row.id].parsed == "yes", row.answer == "yes"
            part, whole = counts.get(pictures[row.id], (0, 0))
            counts[pictures[row.id]] = (part + 2 * (yes and true), whole + yes + true)
        asserted = {row.id: said[row.id].parsed == "yes" for row in rows}
        found[f"{kind} f1"] = Figure((counts,))
        found[f"{kind} accuracy"] = share(_right(rows, said), pictures)
        found[f"{kind} yes ratio"] = Figure(share(asserted, pictures).ratios)
    return found


def mmbench(
    examples: Sequence[Example], said: Said, places: Mapping[str, Drawn]
) -> dict[str, Figure]:
    """`circular` (right in every rotation of the options), `asked once`, circular by category."""
    pictures = {id: place.scene for id, place in places.items()}
    first = {example.group: example for example in reversed(examples)}
    found = {
        "circular": share(_together(examples, said), pictures),
        "asked once": share(_right(list(first.values()), said), pictures),
    }
    for kind in sorted({example.kind for example in examples}):
        rows = [example for example in examples if example.kind == kind]
        found[f"{kind}, circular"] = share(_together(rows, said), pictures)
    return found


FIGURES: Mapping[
    str, Callable[[Sequence[Example], Said, Mapping[str, Drawn]], dict[str, Figure]]
] = {"mme": mme, "pope": pope, "mmbench": mmbench}
"""Face -> its figures, headline first."""


def levels(
    examples: Sequence[Example], said: Said, places: Mapping[str, Drawn]
) -> dict[str, Figure]:
    """Accuracy over all questions of a face, by num_objects and by difficulty.

    POPE asks about the same objects in all of its kinds; they count here once.
    """
    asked: dict[tuple[str, str], Example] = {}
    for example in examples:
        asked.setdefault((places[example.id].scene, example.prompt), example)
    rows = list(asked.values())
    pictures = {id: place.scene for id, place in places.items()}
    found = {"all": share(_right(rows, said), pictures)}
    for n in sorted({row.num_objects for row in rows if row.num_objects}):
        chosen = [row for row in rows if row.num_objects == n]
        found[f"{n} objects"] = share(_right(chosen, said), pictures)
    for level in DIFFICULTIES:
        chosen = [row for row in rows if places[row.id].difficulty == level]
        if chosen:
            found[level] = share(_right(chosen, said), pictures)
    return found


def _right(examples: Sequence[Example], said: Said) -> dict[str, bool]:
    return {example.id: bool(said[example.id].right) for example in examples}


def _together(examples: Sequence[Example], said: Said) -> dict[str, bool]:
    """By group, whether all of its questions are right."""
    found: dict[str, bool] = {}
    for example in examples:
        found[example.group] = found.get(example.group, True) and bool(said[example.id].right)
    return found
