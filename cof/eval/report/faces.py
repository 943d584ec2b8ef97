"""The faces' tables as Markdown; every number in them is one of `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cof.eval.report.tables import p_value, table
from cof.eval.store import write_atomically
from cof.tiny.scenes import SIDE

TITLES = {"mme": "MME-like", "pope": "POPE-like", "mmbench": "MMBench-like"}
ABLATION = {
    "plain": "plain",
    "whole": "reweight only",
    "cof": "ground + reweight (CoF)",
    "oracle": "true regions + reweight",
    "random": "random boxes + reweight",
}
"""Method -> its row in the second table."""

Numbers = Mapping[str, Any]


def write_faces_report(results: Numbers, out: Path) -> None:
    """`results.json` and `table.md` in a folder."""
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_atomically(out / "table.md", markdown(results))


def markdown(results: Numbers) -> str:
    """The whole report."""
    about, plan, choice = results["about"], results["plan"], results["choice"]
    counts = "; ".join(
        f"{TITLES[face]}: {numbers['questions']} questions about {numbers['images']} scenes"
        for face, numbers in results["faces"].items()
    )
    scale = SIDE / plan["side"]
    small = "" if scale == 1 else f", details at {scale:.2f} of the size that was trained"
    limit = "" if plan["limit"] is None else f" (limited to about {plan['limit']} each)"
    validation = plan["validation_scenes"] * len(plan["num_objects"])
    sections = [
        "# The embedded benchmark's three faces",
        f"Model `{about['model']}` ({about['dtype']}), prompts as of `{about['prompt_style']}`, "
        f"greedy decoding. {counts}{limit}; {', '.join(map(str, plan['num_objects']))} objects"
        f"{small}. "
        "Answers are read by the benchmarks' official rules.",
        f"lambda = {choice['strength']:g}, alpha = {choice['expand']:g}, scope "
        f"`{choice['scope']}`, for all rows. Lambda, then alpha, was chosen among "
        f"{len(choice['validation']) - 1} settings: {choice['rule']} ({validation} scenes for each "
        "face). It was frozen before the test scenes were read.",
        "Figures as the papers quote them: MME's score is acc + acc+ summed over the tasks that "
        "scenes can give (200 each), POPE's is F1, MMBench's circular accuracy. Brackets: 95 % "
        "intervals over scenes, not questions (bootstrap; of a share of right ones Wilson's). p: "
        "McNemar's exact test (over questions; for acc+ over pairs, for circular accuracy over "
        "questions with all their rotations), not corrected for the number of tests.",
        "## Table I: with and without CoF",
        first_table(results),
        "## Table II: what does it",
        second_table(results),
        "Where a question has no region of its own (an object that is not there), *true regions* "
        "and *random boxes* are the whole image. On questions about existence, POPE's among them, "
        "these two rows therefore tell the model something of the answer; on the others they do "
        "not.",
        "## All figures",
        _values(results, "figures"),
        "## By num_objects and difficulty",
        "Share of questions answered rightly, the same question about the same scene once. "
        "Difficulty: one step for more than 8 objects, one for a small object.",
        _values(results, "levels"),
        "## Stage 1",
        "\n".join(_stage_one(face, numbers) for face, numbers in results["faces"].items()),
        "## Replies in which no answer was found",
        _unparsed(results),
    ]
    return "\n\n".join(sections) + "\n"


def first_table(results: Numbers) -> str:
    """Plain, CoF and what lies between them, for every figure."""
    rows = []
    for title, figure, methods in _figures(results, "figures"):
        plain, cof = methods["plain"], methods["cof"]
        counts = ["", "", ""]
        if "p" in cof:
            counts = [str(cof["fixed"]), str(cof["broken"]), p_value(cof["p"])]
        n = str(plain["n"]) if "n" in plain else ""
        cells = [_shown(plain), _shown(cof), _gain(cof)]
        rows.append([f"{title}, {figure}", n, *cells, *counts])
    head = ["figure", "n", "plain", "CoF", "difference", "fixed", "broken", "p"]
    return table(head, rows)


def second_table(results: Numbers) -> str:
    """The headline figures by row of the ablation, with the difference to the plain model."""
    chosen = [
        (f"{title}, {figure}", methods)
        for title, figure, methods in _figures(results, "figures")
        if figure in ("score", "circular") or figure.endswith(" f1")
    ]
    rows = []
    for method, name in ABLATION.items():
        cells = []
        for _, methods in chosen:
            numbers = methods[method]
            gain = "" if method == "plain" else f" ({_gain(numbers)})"
            cells.append(f"{100 * numbers['value']:.1f}{gain}")
        rows.append([name, *cells])
    return table(["row", *(figure for figure, _ in chosen)], rows)


def _figures(results: Numbers, part: str) -> list[tuple[str, str, Numbers]]:
    return [
        (TITLES[face], figure, methods)
        for face, numbers in results["faces"].items()
        for figure, methods in numbers[part].items()
    ]


def _values(results: Numbers, part: str) -> str:
    names = list(results["methods"])
    rows = [
        [f"{title}, {figure}", *(_shown(methods[name]) for name in names)]
        for title, figure, methods in _figures(results, part)
    ]
    return table(["figure", *names], rows)


def _stage_one(face: str, numbers: Numbers) -> str:
    line = f"- {TITLES[face]}: {100 * numbers['found']:.1f} % of the replies held a box."
    for row in numbers["grounding"].values():
        line += (
            f" Of {row['n_single']} questions about one known object: centre inside "
            f"{row['centre_hit']:.3f}, mean IoU {row['mean_iou']:.3f}, IoU >= 0.5 "
            f"{row['iou_50']:.3f}."
        )
    return line


def _unparsed(results: Numbers) -> str:
    names = list(results["methods"])
    rows = [
        [TITLES[face], *(str(numbers["unparsed"][name]) for name in names)]
        for face, numbers in results["faces"].items()
    ]
    return table(["face", *names], rows)


def _shown(numbers: Numbers) -> str:
    low, high = (100 * numbers[name] for name in ("low", "high"))
    return f"{100 * numbers['value']:.1f} [{low:.1f}, {high:.1f}]"


def _gain(numbers: Numbers) -> str:
    low, high = (100 * numbers[f"difference_{name}"] for name in ("low", "high"))
    return f"{100 * numbers['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
