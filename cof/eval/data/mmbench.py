"""MMBench: multiple choice, right only in every rotation of the options (arXiv 2307.06281).

Read from its TSV files (`cof.eval.data.choice.ChoiceTable`), or from the hub's parquet files with
the same columns. Files without rotations (index + k * 10^6) are taken too, and given them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.data.base import Answers, split_by
from cof.eval.data.choice import ROTATION, ChoiceTable, index_of
from cof.eval.data.files import Row
from cof.eval.figures import Figure
from cof.eval.store import Store

_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category", "L2-category")
"""Columns of the data that the server does not want, as LLaVA-1.5's script leaves them out."""


@dataclass(frozen=True)
class MMBench(ChoiceTable):
    """`circular` is the benchmark's figure; `asked once` counts the first rotation alone.

    Questions of a split without answers (test) are asked, and only unparsed replies counted.
    """

    name = "mmbench"
    headline = ("circular", "asked once")
    answered = False
    rotated = True

    def group_of(self, row: Row, options: Sequence[str], answer: str) -> str:
        return str(int(index_of(row)) % ROTATION)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """In percent: `circular`, `asked once`, circular by l2-category and by category, `unparsed`
        (no option was found); of a file with several splits for each, as `dev: circular`."""
        splits = split_by("split", answers.examples)
        if len(splits) > 1:
            return {
                f"{split}: {name}": figure
                for split, asked in splits.items()
                for name, figure in self.figures_of(replace(answers, examples=asked)).items()
            }
        unparsed = {"unparsed": answers.unparsed(answers.examples)}
        known = [e for e in answers.examples if e.answer]
        if not known:
            return unparsed
        figures = {
            "circular": answers.share_of_groups(known),
            "asked once": answers.share([asked[0] for asked in split_by("group", known).values()]),
        }
        for field in ("area", "kind"):
            parts = split_by(field, known)
            figures |= {name: answers.share_of_groups(parts[name]) for name in sorted(parts)}
        return figures | unparsed


def submit_mmbench(task: MMBench, answers: Path, method: str, out: Path) -> int:
    """Write the xlsx file that MMBench's server scores, which alone has the answers of the test
    split: the data's own rows, rotations included if it has them, with the replies of one method
    (by its key) out of a run's `answers.jsonl` as `prediction`.

    Returns:
        How many rows it has.

    Raises:
        CofError: a question lacks an answer, the data has problems, or openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ModuleNotFoundError as error:
        raise CofError("Writing xlsx files takes openpyxl: pip install 'cof[eval]'.") from error
    replies = {id: record for (key, id), record in Store(answers).items() if key == method}
    _ = task.examples  # refuses data with problems
    table = task.collect(lambda row: [row], [])
    missing = [index for index in map(index_of, table) if index not in replies]
    if missing:
        raise CofError(
            f"Without an answer: {len(missing)}, the first is question {missing[0]}: run `cof eval "
            "mmbench` to its end, without --limit and --shard."
        )
    columns = [name for name in table[0].fields if name not in _DROPPED]
    columns.insert(6, "prediction")  # its place in the files that the server knows
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(columns)

    def cell(value: object) -> Any:
        if not isinstance(value, str):
            return value
        text = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        text.data_type = "s"  # also where it begins as a formula does
        return text

    for row in table:
        index = index_of(row)
        shown = {**row.fields, "index": int(index), "prediction": replies[index].text}
        sheet.append([cell(shown[name]) for name in columns])
    book.save(out)
    return len(table)
