"""A run's results as tables; every number in them is one of `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text
from cof.eval.rules import SOURCES

Numbers = Mapping[str, Any]

MEANING = {
    "plain": "the model as it is",
    "whole": "every image token raised (the paper's Table II, reweight alone)",
    "cof": "looks at what its own grounder finds",
    "attention": "looks where its attention goes, at the same strength",
    "two looks": "looks at both, and keeps the answer whose first token is more probable",
    "cof, if unsure": "cof where the plain answer's confidence is at most the limit, else plain",
    "oracle": "looks at the true region",
    "random": "looks at a box of the true region's size elsewhere, the control",
}

STATISTICS = (
    "Brackets: 95 % intervals. Questions about one image, rotations of a question and an MME pair "
    "are one cluster, in intervals (shares: Wilson for the effective number of questions; others "
    "and differences: bootstrap over clusters) and in p (exact sign-flip test over clusters, not "
    "corrected for the number of tests). fixed, broken: what only the method, or only the plain "
    "model, gets right."
)


def result_blocks(results: Numbers) -> list[Block]:
    """The whole report of a run."""
    about, tasks = results["about"], results["tasks"]
    first = next(iter(tasks.values()))
    counts = "; ".join(
        f"{_named(name, tasks)}{numbers['questions']} questions about {numbers['images']} images"
        for name, numbers in tasks.items()
    )
    limit = f" (limited to about {about['limit']})" if about["limit"] is not None else ""
    weights = f"weights {about['weights']}, " if about.get("weights") else ""
    blocks: list[Block] = [
        Heading(results.get("study") or first["benchmark"], 1),
        Text(
            f"{counts}{limit}. Model `{about['model']}` ({weights}{about['dtype']}), prompt style "
            f"`{about['prompt_style']}`, answers read by the rules `{first['rules']}` "
            f"({SOURCES[first['rules']]}), greedy decoding."
        ),
    ]
    if "choice" in results:
        blocks.append(_choice_text(results["choice"]))
    if results["methods"]:
        blocks.append(
            Items(
                [
                    (name, f"{MEANING[name]}; `{key}`" if name in MEANING else f"`{key}`")
                    for name, key in results["methods"].items()
                ]
            )
        )
    if "grid" in results:
        blocks += [Heading("Accuracy, and how much above the plain model"), grid_table(results)]
    for name, numbers in tasks.items():
        blocks += _task_blocks(name, numbers, results)
    return [*blocks, Text(STATISTICS)]


def _task_blocks(name: str, numbers: Numbers, results: Numbers) -> list[Block]:
    title = _named(name, results["tasks"])
    blocks: list[Block] = []
    headline = [metric for metric in numbers["headline"] if metric in numbers["figures"]]
    if headline:
        blocks += [
            Heading(f"{title}headline figures"),
            figure_table(f"{name}-headline", numbers, headline),
        ]
    if numbers["groups"]:
        blocks += [Heading(f"{title}accuracy by group"), group_accuracies(name, numbers)]
        blocks += [Heading(f"{title}against the plain model"), group_differences(name, numbers)]
    if numbers["figures"]:
        rest = [metric for metric in numbers["figures"] if metric not in headline]
        if rest:
            blocks += [Heading(f"{title}other figures"), _values(name, numbers, rest)]
        rules = Items([(name, text) for name, text in SOURCES.items()])
        blocks += [Heading(f"{title}how much the rule set matters"), rules, *_spread(name, numbers)]
    if numbers["grounding"]:
        blocks += [Heading(f"{title}where it looks (stage 1)"), *_grounding(name, numbers)]
    if numbers["two_by_two"]:
        blocks += [
            Heading(f"{title}right or wrong answers, right or wrong boxes"),
            Text(
                "A box is right when its centre is in the one object asked about. Numbers: how "
                "many of the cell's questions each method answers rightly."
            ),
            _two_by_two(name, numbers),
        ]
    if numbers["costs"]:
        blocks += [Heading(f"{title}cost"), _costs(name, numbers), _cost_text(results)]
    errors = {method: n for method, n in numbers["errors"].items() if n}
    if errors:
        refused = ", ".join(f"{method} {n}" for method, n in errors.items())
        blocks.append(Text(f"Questions that could not be asked, and count as wrong: {refused}."))
    return blocks


def figure_table(name: str, numbers: Numbers, metrics: Sequence[str]) -> Table:
    """Figures of every method with intervals, and differences from the plain model."""
    rows: list[list[Cell]] = []
    for metric in metrics:
        for method, row in numbers["figures"][metric].items():
            rows.append([metric, method, _interval(row, ".1f"), *_difference(row, "+.1f")])
    return Table(name, ["figure", "method", "value", "against plain", "fixed", "broken", "p"], rows)


def group_accuracies(name: str, numbers: Numbers, groups: Sequence[str] = ()) -> Table:
    """Accuracy of every method by group; the last column counts replies without an answer."""
    chosen = groups or list(numbers["groups"])
    methods = list(next(iter(numbers["groups"].values())))
    rows: list[list[Cell]] = []
    for group in chosen:
        row = numbers["groups"][group]
        unparsed = "/".join(str(cell["unparsed"]) for cell in row.values())
        n = next(iter(row.values()))["n"]
        rows.append([group, n, *(_interval(row[method], ".3f") for method in methods), unparsed])
    return Table(f"{name}-accuracy", ["accuracy", "n", *methods, "unparsed"], rows)


def group_differences(name: str, numbers: Numbers, groups: Sequence[str] = ()) -> Table:
    """Every method against the plain model, by group."""
    rows: list[list[Cell]] = [
        [group, method, *_difference(row, "+.3f")]
        for group in groups or list(numbers["groups"])
        for method, row in numbers["groups"][group].items()
        if "difference" in row
    ]
    head = ["against plain", "method", "difference", "fixed", "broken", "p"]
    return Table(f"{name}-difference", head, rows)


def grid_table(results: Numbers) -> Table:
    """One row for each grounder, one column for each focus."""
    grid, numbers = results["grid"], next(iter(results["tasks"].values()))
    group = next(iter(numbers["groups"]))
    cells = numbers["groups"][group]
    rows: list[list[Cell]] = [
        ["(plain)", *[Number(cells["plain"]["value"])] * len(grid["focuses"])]
    ]
    for source in grid["sources"]:
        row: list[Cell] = [source]
        for focus in grid["focuses"]:
            cell = cells.get(f"{source} x {focus}")
            row.append(f"{cell['value']:.3f} ({cell['difference']:+.3f})" if cell else "")
        rows.append(row)
    return Table("grid", ["looking at", *grid["focuses"]], rows)


def _choice_text(choice: Numbers) -> Text:
    chosen = "; ".join(f"{name}: `{key}`" for name, key in choice["chosen"].items())
    return Text(
        f"Chosen on {choice['questions']} validation questions and then frozen ({choice['rule']}): "
        f"{chosen}."
    )


def _values(name: str, numbers: Numbers, metrics: Sequence[str]) -> Table:
    methods = list(numbers["figures"][metrics[0]])
    rows: list[list[Cell]] = [
        [metric, *(_interval(numbers["figures"][metric][method], ".1f") for method in methods)]
        for metric in metrics
    ]
    return Table(f"{name}-figures", ["figure", *methods], rows)


def _spread(name: str, numbers: Numbers) -> list[Block]:
    """The headline figures under every rule set; the last column is the widest gap."""
    rows: list[list[Cell]] = []
    for method in next(iter(numbers["metrics"].values())):
        for metric in numbers["headline"]:
            values = [by_rules[method].get(metric) for by_rules in numbers["metrics"].values()]
            known = [value for value in values if value is not None]
            if known:
                cells = [Number(value, ".1f") for value in (*known, max(known) - min(known))]
                rows.append([method, metric, *cells])
    head = ["method", "figure", *numbers["metrics"], "spread"]
    return [Table(f"{name}-rules", head, rows)] if rows else []


def _grounding(name: str, numbers: Numbers) -> list[Block]:
    rows: list[list[Cell]] = []
    for step, groups in numbers["grounding"].items():
        for group, row in groups.items():
            rows.append(
                [
                    step.removeprefix("grounding "),
                    group,
                    row["found"]["n"],
                    _interval(row["found"], ".3f"),
                    row["centre"]["n"] if "centre" in row else "",
                    *(
                        _interval(row[figure], ".3f") if figure in row else ""
                        for figure in ("centre", "mean_iou", "iou_50")
                    ),
                ]
            )
    head = ["looking at", "questions", "n", "a box found", "n, one object", "centre inside"]
    return [
        Table(f"{name}-stage-1", [*head, "mean IoU", "IoU >= 0.5"], rows),
        Text(
            "Centre and IoU: of questions about one known object; a missing box counts as a miss "
            "with IoU 0."
        ),
    ]


def _two_by_two(task: str, numbers: Numbers) -> Table:
    cells = numbers["two_by_two"]
    methods = list(next(iter(cells.values()))["right"])
    rows: list[list[Cell]] = [
        [name, cell["n"], *(cell["right"][method] for method in methods)]
        for name, cell in cells.items()
    ]
    return Table(f"{task}-two-by-two", ["cell", "n", *methods], rows)


def _costs(name: str, numbers: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [
            method,
            Number(1000 * row["seconds"] / numbers["questions"], ".1f"),
            "" if row["ratio"] is None else Number(row["ratio"], ".2f"),
            "" if row["passes"] is None else Number(row["passes"], ".1f"),
        ]
        for method, row in numbers["costs"].items()
    ]
    return Table(f"{name}-cost", ["method", "ms a question", "x plain", "passes"], rows)


def _cost_text(results: Numbers) -> Text:
    about = results["about"]
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    return Text(
        "With the encoding of the image and stage 1; images are encoded once for all methods, and "
        "the decoder's state after an image is reused as far as the bias allows. Passes: through "
        f"the decoder, for a whole batch of up to {about['batch_size']}, on {about['device']}; "
        f"{versions}."
    )


def _interval(row: Numbers, spec: str) -> Number:
    return Number(row["value"], spec, row["low"], row["high"])


def _difference(row: Numbers, spec: str) -> list[Cell]:
    """Difference from the plain model, fixed, broken and p; blank for the plain model itself."""
    if "difference" not in row:
        return ["", "", "", ""]
    difference = Number(row["difference"], spec, row["difference_low"], row["difference_high"])
    if "p" not in row:
        return [difference, "", "", ""]
    return [difference, row["fixed"], row["broken"], Number(row["p"], "p")]


def _named(name: str, tasks: Numbers) -> str:
    return f"{name}: " if len(tasks) > 1 else ""
