"""Scoring the replies of finished runs again, without the model and without the data."""

from __future__ import annotations

from pathlib import Path

from cof.eval.evaluate import write_results
from cof.eval.report.publish import write_table
from cof.eval.rules import Rules
from cof.eval.runs import Run, explain_damage, find_runs

_COLLECTED = ("about", "methods", "settings", "tasks")


def rescore(out: Path, rules: Rules | None = None) -> list[Path]:
    """Score all runs in a folder again and write their results anew.

    Args:
        out: the folder of a run, or one with several of them in it.
        rules: by which answers are read; None: those of the run.

    Returns:
        The folders of the runs; with the same rules and the same version of this package their
        files are what the run itself wrote.

    Raises:
        CofError: there is no finished run, or files of one are missing or damaged.
    """
    runs = find_runs(out)
    for run in runs:
        with explain_damage(run):
            _rescore(run, rules)
    return [run.folder for run in runs]


def _rescore(run: Run, rules: Rules | None) -> None:
    pairs = {name: run.read_task(name, rules) for name in run.results["tasks"]}
    more = {name: value for name, value in run.results.items() if name not in _COLLECTED}
    results = write_results(
        run.results["about"],
        run.methods,
        {name: task for name, (task, _) in pairs.items()},
        {name: replies for name, (_, replies) in pairs.items()},
        run.folder,
        **more,
    )
    write_table(results, run.folder)
