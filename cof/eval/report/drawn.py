"""The charts of a run, out of its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cof.eval.data.mme import COGNITION, PERCEPTION
from cof.eval.report.cells import Numbers
from cof.eval.report.charts import Point, balance, radar, rows
from cof.eval.report.curves import curves, scatter
from cof.eval.report.document import Block, Text
from cof.eval.store import ENCODING, GROUNDING

_LINES = ("plain", "whole", "cof", "oracle", "random")
_MOST_ROWS = 24  # groups in one chart


def of_study(results: Numbers) -> list[Block]:
    """Of the embedded benchmark: by kind, by num_objects, by lambda, changes, and cost."""
    test, plan = results["test"], results["plan"]
    groups = test["groups"]
    main = "fine" if "fine" in groups else "all"
    kinds = {name: row for name, row in groups.items() if "," not in name and name != "all"}
    found: list[Block] = [rows("kinds", "Accuracy by kind of question", _points(kinds, _LINES))]
    levels = [n for n in plan["num_objects"] if f"{main}, {n} objects" in groups]
    if len(levels) > 1:
        by_clutter = {
            method: [_point(groups[f"{main}, {n} objects"][method], n) for n in levels]
            for method in _LINES
        }
        found.append(
            curves(
                "num_objects",
                f"Accuracy against num_objects ({_told(main)})",
                by_clutter,
                across="objects in the scene",
                up="accuracy",
            )
        )
    gains = _gains(results["choice"])
    if gains:
        found.append(
            curves(
                "lambda",
                "Gain against lambda (validation scenes, all questions)",
                gains,
                across="lambda",
                up="accuracy gained over plain",
                log=True,
            )
        )
    shown = {name: row for name, row in groups[main].items() if "(own lambda)" not in name}
    found.append(_balance(main, shown))
    points = {name: _point(row) for name, row in shown.items()}
    seconds = results["seconds"]["test"]
    return found + _cost(points, test.get("methods", {}), seconds, test["questions"], main)


def of_comparison(results: Numbers) -> list[Block]:
    """Of a comparison on a benchmark: by kind, MME's radar, changes, and cost."""
    groups = results.get("groups", {})
    if not groups:
        return []
    found: list[Block] = []
    tasks = _mme(results)
    if tasks:
        found.append(radar("radar", "MME's tasks, acc + acc+ (rim: 200)", tasks, 200))
    if 2 < len(groups) <= _MOST_ROWS:
        found.append(
            rows("kinds", "Accuracy by kind of question", _points(groups, results["methods"]))
        )
    found += _by_rules(results)
    found.append(_balance("all", groups["all"]))
    points = {name: _point(row) for name, row in groups["all"].items()}
    n = results["questions"]
    return found + _cost(points, results["methods"], results["seconds"], n, "all")


def of_face(face: str, numbers: Numbers, methods: Mapping[str, str]) -> list[Block]:
    """Of one of the embedded benchmark's faces: by figure, by num_objects, changes, and cost.

    Args:
        face: `mme`, `pope` or `mmbench`.
        numbers: what `results.json` holds of it.
        methods: names and keys.
    """
    figures, levels = numbers["figures"], numbers["levels"]
    shares = {name: row for name, row in figures.items() if "n" in row["plain"]}
    tasks = [name for name in figures if f"{name}+" in figures]  # MME's acc and acc+
    found: list[Block] = []
    if len(tasks) > 2:
        scores = {
            method: {
                task.removesuffix(" acc"): 100
                * (figures[task][method]["value"] + figures[f"{task}+"][method]["value"])
                for task in tasks
            }
            for method in methods
        }
        found.append(radar(f"{face}-radar", "Tasks, acc + acc+ (rim: 200)", scores, 200))
    found.append(
        rows(
            f"{face}-figures",
            "Share of right answers",
            {
                name: {method: _share(row[method]) for method in methods}
                for name, row in shares.items()
            },
        )
    )
    num_objects = {name: int(name.split()[0]) for name in levels if name.endswith(" objects")}
    if len(num_objects) > 1:
        by_clutter = {
            method: [_share(levels[name][method], n) for name, n in num_objects.items()]
            for method in methods
        }
        title = "Accuracy against num_objects"
        found.append(
            curves(
                f"{face}-num_objects",
                title,
                by_clutter,
                across="objects in the scene",
                up="accuracy",
            )
        )
    found.append(_balance("all", levels["all"], f"{face}-changes"))
    points = {name: _share(row) for name, row in levels["all"].items()}
    n = numbers["questions"]
    return found + _cost(points, methods, numbers["seconds"], n, "all", f"{face}-cost")


def _by_rules(results: Numbers) -> list[Block]:
    """The headline figures on which the rule sets disagree."""
    found: list[Block] = []
    for figure in results["headline"]:
        values = {
            rules: {
                method: Point(metrics[figure])
                for method, metrics in by_method.items()
                if figure in metrics
            }
            for rules, by_method in results["metrics"].items()
        }
        known = {rules: methods for rules, methods in values.items() if methods}
        if len(known) > 1 and any(methods != values["official"] for methods in known.values()):
            name = f"rules-{figure.replace(' ', '-')}"
            found.append(rows(name, f"{figure} under each rule set", known))
    return found


def _mme(results: Numbers) -> dict[str, dict[str, float]]:
    """Each method's score in each of MME's tasks, if there are enough for a radar."""
    if results["about"]["benchmark"] != "mme":
        return {}
    by_method = results["metrics"][results["rules"]]
    tasks = [task for task in (*PERCEPTION, *COGNITION) if task in next(iter(by_method.values()))]
    if len(tasks) < 3:
        return {}
    return {
        method: {task: metrics[task] for task in tasks} for method, metrics in by_method.items()
    }


def _balance(group: str, methods: Numbers, name: str = "changes") -> Block:
    counts = {
        method: (row["fixed"], row["broken"]) for method, row in methods.items() if "fixed" in row
    }
    return balance(name, f"Questions fixed and broken ({_told(group)})", counts)


def _cost(
    points: Mapping[str, Point],
    keys: Mapping[str, str],
    seconds: Mapping[str, float],
    n: int,
    group: str,
    name: str = "cost",
) -> list[Block]:
    """Accuracy against what a question takes alone: its picture, stage 1 if the method asks it,
    and the answer."""
    if not all(key in seconds for key in (*keys.values(), GROUNDING)) or not keys:
        return []
    parts = {
        method: [key, ENCODING, *([GROUNDING] if method.startswith("cof") else [])]
        for method, key in keys.items()
        if method in points
    }
    placed = {
        method: replace(points[method], at=1000 * sum(seconds.get(key, 0.0) for key in needed) / n)
        for method, needed in parts.items()
    }
    title = f"Accuracy against cost ({_told(group)})"
    note = (
        "Cost: wall-clock time of encoding the pictures, of stage 1 where the method asks for a "
        "box, and of the answers, by the number of questions; measured in batches, in which "
        "questions about one picture share its encoding."
    )
    if ENCODING not in seconds:
        note += " How long the encoding took was not recorded, so it is left out."
    return [scatter(name, title, placed, across="ms a question", up="accuracy"), Text(note)]


def _gains(choice: Numbers) -> dict[str, list[Point]]:
    """What each lambda gains on validation, all else as chosen."""
    cells, chosen = choice["validation"], choice["cof"]
    plain = next(cell for cell in cells if cell["where"] == "plain")
    same = [
        cell
        for cell in cells
        if cell["where"] != "plain"
        and all(cell[name] == chosen[name] for name in ("expand", "scope"))
    ]
    found: dict[str, list[Point]] = {}
    for cell in sorted(same, key=lambda cell: cell["strength"]):
        gain = (cell["right"] - plain["right"]) / cell["n"]
        found.setdefault(cell["where"], []).append(Point(gain, at=cell["strength"]))
    return {where: points for where, points in found.items() if len(points) > 1}


def _points(groups: Mapping[str, Numbers], methods: Iterable[str]) -> dict[str, dict[str, Point]]:
    return {group: {name: _point(row[name]) for name in methods} for group, row in groups.items()}


def _point(row: Numbers, at: float = 0.0) -> Point:
    return Point(row["accuracy"], row["accuracy_low"], row["accuracy_high"], at)


def _share(row: Numbers, at: float = 0.0) -> Point:
    return Point(row["value"], row["low"], row["high"], at)


def _told(group: str) -> str:
    return {"all": "all questions", "fine": "fine details"}.get(group, group)


def headline(methods: Numbers, group: str) -> Sequence[Block]:
    """What CoF does, in a sentence."""
    if "cof" not in methods or "difference" not in methods["cof"]:
        return []
    cof, plain = methods["cof"], methods["plain"]
    verdict = (
        "an effect at the 5 % level" if cof["p"] < 0.05 else "no effect that this run can tell"
    )
    return [
        Text(
            f"**CoF answers {100 * cof['accuracy']:.1f} % rightly, the plain model "
            f"{100 * plain['accuracy']:.1f} %** ({_told(group)}, n = {cof['n']}): "
            f"{cof['fixed']} fixed, {cof['broken']} broken, p = {cof['p']:.3g}, {verdict}. The "
            f"difference is {100 * cof['difference']:+.1f} points "
            f"[{100 * cof['difference_low']:+.1f}, {100 * cof['difference_high']:+.1f}]."
        )
    ]
