"""Tables for papers: LaTeX with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Iterator

from cof.eval.report.document import Cell, Number, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def latex(content: Table) -> str:
    r"""A `table` environment; the preamble needs `\usepackage{booktabs}`.

    >>> print(latex(Table("t", ["method", "n"], [["CoF & co", 3]], caption="All.")))
    \begin{table}
    \centering
    \caption{All.}
    \label{tab:t}
    \begin{tabular}{lr}
    \toprule
    method & n \\
    \midrule
    CoF \& co & 3 \\
    \bottomrule
    \end{tabular}
    \end{table}
    <BLANKLINE>
    """
    lines = [r"\begin{table}", r"\centering"]
    if content.caption:
        lines.append(rf"\caption{{{escape(content.caption)}}}")
    lines += [
        rf"\label{{tab:{content.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(content.head) - 1)}}}",
        r"\toprule",
        *_over(content),
        " & ".join(map(escape, content.head)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_cell, row)) + r" \\" for row in content.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""Text as LaTeX shows it.

    >>> escape("50 % of a_b, IoU >= 0.5")
    '50 \\% of a\\_b, IoU \\textgreater{}= 0.5'
    """
    return "".join(_SPECIAL.get(character, character) for character in text)


def _over(content: Table) -> Iterator[str]:
    """The line of titles over several columns, and the rules below them."""
    if not content.over:
        return
    cells, rules, column = [""], [], 2
    for title, columns in content.over:
        cells.append(rf"\multicolumn{{{columns}}}{{c}}{{{escape(title)}}}")
        if title:
            rules.append(rf"\cmidrule(lr){{{column}-{column + columns - 1}}}")
        column += columns
    yield " & ".join(cells) + r" \\"
    yield " ".join(rules)


def _cell(cell: Cell) -> str:
    if not isinstance(cell, Number):
        return "--" if cell == "-" else escape(str(cell))
    shown, beside = cell.parts
    figure = f"${shown}$" if shown[:1] in "+-" else shown  # a true minus sign
    return figure + (rf" {{\scriptsize {beside.strip()}}}" if beside else "")
