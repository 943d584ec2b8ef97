"""A study: methods chosen on validation questions, frozen, and measured on test questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cof.engines.base import Engine
from cof.eval.data.base import Benchmark
from cof.eval.evaluate import Evaluation
from cof.eval.sweep import Methods, Round, choose


@dataclass(frozen=True)
class Study:
    """Methods to choose among, and methods to compare then.

    Attributes:
        name: of the study, for its report.
        rounds: see `cof.eval.sweep.choose`.
        compare: the choice -> the methods that are measured on the test questions, by name.
        batch_size: questions in one forward pass.
        max_new_tokens: the longest answer.
        seed: of the control's boxes and of the bootstrap.
    """

    name: str
    rounds: Sequence[Round]
    compare: Callable[[Methods], Methods]
    batch_size: int = 48
    max_new_tokens: int = 16
    seed: int = 0

    def run(
        self,
        engine: Engine,
        validation: Mapping[str, Benchmark],
        test: Mapping[str, Benchmark],
        out: Path,
        *,
        console: Console,
        **more: Any,
    ) -> dict[str, Any]:
        """Choose, freeze, and measure; a run that was interrupted goes on.

        Returns:
            The content of `results.json`.
        """
        how = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        choice = choose(engine, validation, self.rounds, out, console=console, **how)
        evaluation = Evaluation(self.compare(choice.chosen), seed=self.seed, **how)
        more |= {"study": self.name, "choice": choice.as_dict()}
        return evaluation.run(engine, test, out, console=console, **more)
