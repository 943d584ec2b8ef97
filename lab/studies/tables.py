"""The studies' own tables, as they stand in `results.json` and in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cof.eval.data.base import Benchmark
from cof.eval.methods import Method, grounding_key
from cof.eval.replies import Replies
from cof.eval.results import judge_box
from cof.eval.sweep import RULE, Choice

StudyTable = dict[str, Any]
"""Its name, title, text, head and rows."""


def tabulate_tried(choices: Mapping[str, Choice]) -> StudyTable:
    """The settings that were tried, by what they were for."""
    first = next(iter(choices.values()))
    n = len(first.questions)
    rows: list[list[Any]] = [["", "plain", n, f"{first.plain:.3f}"]]
    for name, choice in choices.items():
        for key, accuracy in choice.tried.items():
            chosen = " (chosen)" if key == choice.key else ""
            rows.append([name, f"{key}{chosen}", n, f"{accuracy:.3f}"])
    return {
        "name": "tried",
        "title": "Settings tried on the validation questions",
        "text": f"Chosen on validation questions, then frozen: {RULE}.",
        "head": ["for", "settings", "n", "accuracy"],
        "rows": rows,
    }


def tabulate_grid(
    results: Mapping[str, Any], sources: Sequence[str], focuses: Sequence[str]
) -> StudyTable:
    """One row for each grounder, one column for each focus."""
    cells = next(iter(results["tasks"]["scenes"]["groups"].values()))
    rows = [["(plain)", *[f"{cells['plain']['value']:.3f}"] * len(focuses)]]
    for source in sources:
        row = [cells.get(f"{source} x {focus}") for focus in focuses]
        shown = [f"{c['value']:.3f} ({c['difference']:+.3f})" if c else "" for c in row]
        rows.append([source, *shown])
    return {
        "name": "grid",
        "title": "Accuracy, and how much above the plain model",
        "text": "Small details; the settings of each focus are the same for all grounders.",
        "head": ["looking at", *focuses],
        "rows": rows,
    }


def tabulate_boxes(
    task: Benchmark, replies: Replies, methods: Mapping[str, Method]
) -> list[StudyTable]:
    """Whether the plain answer and the box of `cof` are right, together, and what each method makes
    of it: of the first group, questions about one object; empty: there are none.

    Args:
        task: has the groups.
        replies: scored.
        methods: by name, `plain` and `cof` among them.
    """
    answers = replies.answers({name: method.key for name, method in methods.items()})
    boxes = replies.records.get(grounding_key(methods["cof"].settings.grounders[0]), {})
    cells = {
        f"plain {answer}, box {box}": dict.fromkeys(["n", *answers], 0)
        for answer in ("right", "wrong")
        for box in ("right", "wrong")
    }
    for e in next(iter(task.groups(replies.examples).values())):
        if e.single and e.id in boxes:
            right = (answers["plain"][e.id].right, judge_box(e, boxes[e.id])[0])
            answer, box = ("right" if each else "wrong" for each in right)
            cell = cells[f"plain {answer}, box {box}"]
            cell["n"] += 1
            for name, records in answers.items():
                cell[name] += bool(records[e.id].right)
    table = {
        "name": "scenes-two-by-two",
        "title": "right or wrong answers, right or wrong boxes",
        "text": "A box is right when its centre is in the one object asked about. Numbers: how "
        "many of the cell's questions each method answers rightly.",
        "head": ["cell", "n", *answers],
        "rows": [[name, *cell.values()] for name, cell in cells.items()],
    }
    return [table] if any(cell["n"] for cell in cells.values()) else []
