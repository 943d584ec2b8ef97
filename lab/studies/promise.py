"""Is a promise kept? `python -m lab.studies.promise RUN`: thresholds of a part, tried on the rest.

Reads a finished run (`make eval`), and writes RUN/promise.json: for each promised share, how often
thresholds chosen on one half of the images broke more of the other half's right answers.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from cof.eval.gate import RightAnswer, choose_threshold, right_answers
from cof.eval.json_files import write_atomically
from cof.eval.runs import find_runs

PROMISED, SPLITS = (0.01, 0.02, 0.03, 0.05), 100


def main(folder: Path, name: str = "scenes", method: str = "cof") -> None:
    """Split the right answers of a run by image, again and again."""
    (run,) = (run for run in find_runs(folder) if run.folder == folder)
    _, replies = run.read_task(name)
    keys = {name: run.methods[name].key for name in ("plain", method)}
    plain, looked = replies.answers(keys).values()
    answers: dict[str, list[RightAnswer]] = defaultdict(list)
    for answer in right_answers(replies.examples, plain, looked):
        answers[answer.cluster].append(answer)
    rng, images, rows = random.Random(0), sorted(answers), []
    for promised in PROMISED:
        thresholds, shares = [], []
        for _ in range(SPLITS):
            rng.shuffle(images)
            half = len(images) // 2
            known = [answer for image in images[:half] for answer in answers[image]]
            thresholds.append(choose_threshold(known, promised))
            shares.append(fmean(_broken(answers[i], thresholds[-1]) for i in images[half:]))
        kept = sum(share <= promised for share in shares) / SPLITS
        row = {"promised": promised, "kept": kept, "images": half}
        rows.append(row | {"threshold": round(fmean(thresholds), 3), "share": fmean(shares)})
        print(json.dumps(rows[-1]))
    write_atomically(folder / "promise.json", json.dumps(rows, indent=1) + "\n")


def _broken(answers: list[RightAnswer], threshold: float) -> float:
    return fmean(answer.broken and answer.confidence <= threshold for answer in answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
