"""MME: yes/no questions in pairs about one image, fourteen tasks (arXiv 2306.13394).

Read from the release (`<task>/` with images and `<image>.txt` of `question<TAB>answer` lines,
or with `images/` and `questions_answers_YN/`), from result files (`<task>.txt` of
`image<TAB>question<TAB>answer` lines), or from the hub's parquet files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cof.errors import CofError
from cof.eval.data.base import Answers, Benchmark, split_by
from cof.eval.data.files import Row, first_files
from cof.eval.examples import Example
from cof.eval.figures import Figure, total
from cof.eval.rules import MME as READERS
from cof.eval.rules import Rules
from cof.prompting.dialects import SHORT_ANSWER

_PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR"
PERCEPTION = tuple(_PERCEPTION.split())
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)
ASKS = "Please answer yes or no."


@dataclass(frozen=True)
class MME(Benchmark):
    """A task's score is 100 * (acc + acc+), acc+ being the share of images with both answers
    right; perception (ten tasks) reaches 2000, cognition (four) 800."""

    name = "mme"
    headline = ("perception", "cognition")
    patterns = ("*.parquet", "data/*.parquet")
    need = ("question_id", "image", "question", "answer", "category")

    def read(self, problems: list[str]) -> list[Example]:
        asked: Counter[str] = Counter()
        names: dict[str, str] = {}

        def question(row: Row) -> Iterator[Example]:
            task, group, answer = map(row.text, ("category", "question_id", "answer"))
            answer = answer.lower().rstrip(".")
            if answer not in ("yes", "no"):
                raise CofError("no question with the answer Yes or No")
            if not group.startswith(f"{task}/"):
                group = f"{task}/{group}"
            name = group if row.image else row.text("image")
            if names.setdefault(group, name) != name:  # `a.jpg` beside `a.png`
                group = f"{task}/{name}"
            asked[group] += 1
            pair = (asked[group] + 1) // 2  # the official script takes two at a time
            text = row.text("question")
            folders = (task, f"{task}/images", ".", "images", "../images")
            short = self.prompt_style in ("llava", "lmms-eval")
            yield Example(
                id=f"{group}-{asked[group]}",
                image=self.image_of(row, name, *folders),
                prompt=text.replace(ASKS, "").rstrip() + SHORT_ANSWER if short else text,
                answer=answer,
                kind=task,
                group=f"{group} ({pair})" if pair > 1 else group,
                question=text.replace(ASKS, "").strip(),
            )

        examples = self.collect(question, problems)
        there = split_by("kind", examples)
        empty = (task for task in TASKS if (self._root / task).is_dir() and task not in there)
        problems += [f"{task} has no questions" for task in empty]
        problems += [
            f"{group} has {n} question{'s' * (n > 1)}, and they come in pairs"
            for group, n in asked.items()
            if n % 2
        ]
        return examples

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return READERS[rules](text)

    def figures_of(self, answers: Answers) -> dict[str, Figure]:
        """`perception`, `cognition`, each task's score, acc and acc+ in percent, and `unparsed`
        replies. Sums are over the tasks that the data has."""
        details: dict[str, Figure] = {}
        for task, asked in split_by("kind", answers.examples).items():
            acc, plus = answers.share(asked), answers.share_of_groups(asked)
            details |= {task: total([acc, plus]), f"{task} acc": acc, f"{task} acc+": plus}
        sums = {
            name: total([details[task] for task in tasks if task in details])
            for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION))
            if any(task in details for task in tasks)
        }
        return {**sums, **details, "unparsed": answers.unparsed(answers.examples)}

    @property
    def files(self) -> list[Path]:
        return _texts(self._root) or super().files

    def rows(self, file: Path) -> Iterator[Row]:
        if file.suffix != ".txt" or file == self.path:
            yield from super().rows(file)
            return
        folders = file.relative_to(self._root).parts[:-1]  # none: one text for all images
        task = folders[0] if folders else file.stem
        try:
            lines = file.read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CofError(f"{file} cannot be read: {error}.") from error
        for number, line in enumerate(lines, start=1):
            cells = [file.stem] * bool(folders) + line.split("\t")
            name, question, answer = (*cells, "", "")[:3]
            if line.strip():
                group = f"{task}/{Path(name).stem}"
                fields = {"category": task, "question_id": group, "image": name}
                fields |= {"question": question, "answer": answer}
                yield Row(file, f"line {number}", fields)

    @cached_property
    def _root(self) -> Path:
        """Where the tasks lie; in some archives that is one folder further down."""
        below = (path for path in sorted(self.path.glob("*")) if path.is_dir())
        return next(filter(_texts, (self.path, *below)), self.path)


def _texts(root: Path) -> list[Path]:
    """The files of the tasks: one for all of a task's images, or one for each image."""
    kinds = ("{}.txt", "{}/questions_answers_YN/*.txt", "{}/*.txt")
    patterns = ([kind.format(task) for kind in kinds] for task in TASKS)
    return [file for each in patterns for file in first_files(root, each)]
