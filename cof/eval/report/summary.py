"""A comparison on a benchmark for people: tables, and all figures as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from cof.eval.report.cells import Numbers, accuracy_cell, centre_cell, difference_cells
from cof.eval.report.document import Block, Cell, Heading, Items, Number, Table, Text, markdown
from cof.eval.store import write_atomically


def write_summary(results: Numbers, out: Path) -> None:
    """`results.json`, `table.md` and `metrics.csv` in a folder."""
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "table.md", markdown(blocks(results)))
    write_atomically(out / "metrics.csv", metrics_csv(results))


def blocks(results: Numbers) -> list[Block]:
    """The whole report; every number in it is one of `results`."""
    about = results["about"]
    part, parts = results["shard"]
    shard = f"Shard {part} of {parts}. " if parts > 1 else ""
    limit = "" if about["limit"] is None else f" (limited to the first {about['limit']} or so)"
    found: list[Block] = [
        Heading(about["benchmark"], 1),
        Text(
            f"{shard}{results['questions']} questions{limit} about {results['images']} images, "
            f"model `{about['model']}` ({about['dtype']}), prompts of `{about['prompt_style']}`, "
            f"answers read by the rules `{results['rules']}`, greedy decoding."
        ),
    ]
    if results["methods"]:
        found += [Items(list(results["methods"].items())), *_headline(results)]
    if "groups" in results:
        found += [
            Heading("Question by question, against the plain model"),
            _groups(results),
            Text(
                "Brackets: 95 % intervals (Wilson; bootstrap over images for differences). p: "
                "McNemar's exact test, not corrected for the number of tests."
            ),
        ]
    if results["methods"]:
        found += [Heading("How much the rule set matters"), *_spread(results)]
        found += [Heading("All figures"), _metrics(results)]
    return [*found, Heading("Stage 1"), _grounding(results)]


def metrics_csv(results: Numbers) -> str:
    """One line for each rule set, method and metric."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["benchmark", "rules", "method", "metric", "value"])
    for rules, methods in results["metrics"].items():
        for method, metrics in methods.items():
            for metric, value in metrics.items():
                writer.writerow([results["about"]["benchmark"], rules, method, metric, value])
    return file.getvalue()


def _headline(results: Numbers) -> list[Block]:
    by_method = results["metrics"][results["rules"]]
    names = [m for m in results["headline"] if m in next(iter(by_method.values()))]
    rows: list[list[Cell]] = []
    for method, metrics in by_method.items():
        plain = None if method == "plain" else by_method["plain"]
        cells = [
            Number(metrics[name], ".1f", gain=plain and metrics[name] - plain[name])
            for name in names
        ]
        rows.append([method, *cells])
    return [Table("headline", ["method", *names], rows)] if names else []


def _spread(results: Numbers) -> list[Block]:
    """The headline figures under every rule set; the last column is the widest gap."""
    rows: list[list[Cell]] = []
    for method in results["methods"]:
        for name in results["headline"]:
            values = [results["metrics"][rules][method].get(name) for rules in results["metrics"]]
            known = [value for value in values if value is not None]
            if known:
                cells = [Number(value, ".1f") for value in (*known, max(known) - min(known))]
                rows.append([method, name, *cells])
    head = ["method", "figure", *results["metrics"], "spread"]
    return [Table("rules", head, rows)] if rows else []


def _metrics(results: Numbers) -> Table:
    by_method = results["metrics"][results["rules"]]
    rows: list[list[Cell]] = [
        [name, *(Number(metrics[name], ".1f") for metrics in by_method.values())]
        for name in next(iter(by_method.values()))
    ]
    return Table("figures", ["figure", *by_method], rows)


def _groups(results: Numbers) -> Table:
    rows: list[list[Cell]] = [
        [group, method, row["n"], accuracy_cell(row), *difference_cells(row), row["unparsed"]]
        for group, methods in results["groups"].items()
        for method, row in methods.items()
    ]
    head = ["questions", "method", "n", "accuracy", "against plain", "fixed", "broken", "p"]
    return Table("questions", [*head, "unparsed"], rows)


def _grounding(results: Numbers) -> Text:
    lines = [f"{100 * results['found']:.1f} % of the replies held a box."]
    for row in results["grounding"].values():
        lines.append(
            f"Of {row['n_single']} questions about one known object: centre inside "
            f"{centre_cell(row)}, mean IoU {row['mean_iou']:.3f}, "
            f"IoU >= 0.5 {row['iou_50']:.3f} (a missing box counts as a miss with IoU 0)."
        )
    return Text(" ".join(lines))
