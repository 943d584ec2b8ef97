"""The file that MMBench's server scores: for the test split, whose answers only it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cof.errors import CofError
from cof.eval.data.choice import index_of
from cof.eval.data.mmbench import MMBench
from cof.eval.store import Store

_DROPPED = ("hint", "category", "source", "image", "comment", "l2-category", "L2-category")
"""Columns of the data that the server does not want, as LLaVA-1.5's script leaves them out."""


def submit_mmbench(task: MMBench, answers: Path, method: str, out: Path) -> int:
    """Write the xlsx file: the data's own rows, rotations included, with one method's replies as
    `prediction`.

    Args:
        task: the split; its file needs rotations of its own where the server is to see them.
        answers: the `answers.jsonl` of a run on it.
        method: key of the method in it, such as `plain`.
        out: the file; its folder must be there.

    Returns:
        How many rows it has.

    Raises:
        CofError: some of the questions lack an answer, the data has problems, or openpyxl is not
            installed.
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
