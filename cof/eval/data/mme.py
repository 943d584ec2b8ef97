"""MME: yes/no questions in pairs about one image, fourteen tasks (arXiv 2306.13394).

Read from the release (`<task>/` with images and `<image>.txt` of `question<TAB>answer` lines,
or with `images/` and `questions_answers_YN/`), from result files (`<task>.txt` of
`image<TAB>question<TAB>answer` lines), or from the hub's parquet files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from cof.errors import CofError
from cof.eval.data.base import Benchmark, Replies, image_path, shared, unparsed
from cof.eval.data.files import data_files, read_rows
from cof.eval.examples import Embedded, Example
from cof.eval.figures import Figure, find_clusters, group_right, share, total
from cof.eval.rules import MME as READERS
from cof.eval.rules import Rules
from cof.prompting.dialects import SHORT_ANSWER

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
ASKS = "Please answer yes or no."


@dataclass(frozen=True)
class MME(Benchmark):
    """A task's score is 100 * (acc + acc+), acc+ being the share of images with both answers
    right; perception (ten tasks) reaches 2000, cognition (four) 800."""

    name: ClassVar[str] = "mme"
    headline: ClassVar[tuple[str, ...]] = ("perception", "cognition")

    def read(self, problems: list[str]) -> list[Example]:
        examples = list(self._parquet(problems) if self._is_parquet else self._folder(problems))
        problems += [
            f"{group} has {n} question{'s' * (n > 1)} instead of two"
            for group, n in Counter(example.group for example in examples).items()
            if n != 2
        ]
        return examples

    def parse(self, example: Example, text: str, rules: Rules) -> str | None:
        return READERS[rules](text)

    def figures(
        self, examples: Sequence[Example], replies: Replies, rules: Rules
    ) -> dict[str, Figure]:
        """`perception`, `cognition`, each task's score, acc and acc+ in percent, and `unparsed`
        replies. Sums are over the tasks that the data has."""
        answers = self.read_answers(examples, replies, rules)
        clusters = find_clusters(examples)
        details: dict[str, Figure] = {}
        for task in dict.fromkeys(example.kind for example in examples):
            asked = [e for e in examples if e.kind == task]
            right = {e.id: answers[e.id] == e.answer for e in asked}
            acc = share(right, clusters)
            plus = share(group_right(asked, right), clusters)
            details |= {task: total([acc, plus]), f"{task} acc": acc, f"{task} acc+": plus}
        sums = {
            name: total([details[task] for task in tasks if task in details])
            for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION))
            if any(task in details for task in tasks)
        }
        return {**sums, **details, "unparsed": unparsed(answers, clusters)}

    def _prompt(self, question: str) -> str:
        if self.prompt_style in ("llava", "lmms-eval"):
            return question.replace(ASKS, "").rstrip() + SHORT_ANSWER
        return question

    def _example(
        self, task: str, image: Path | Embedded, group: str, number: int, question: str, answer: str
    ) -> Example:
        return Example(
            id=f"{group}-{number}",
            image=image,
            prompt=self._prompt(question),
            answer=answer.lower(),
            kind=task,
            group=group,
            question=question.replace(ASKS, "").strip(),
        )

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix == ".parquet" or not self._tasks

    @cached_property
    def _root(self) -> Path:
        """Where the tasks lie; in some archives that is one folder further down."""
        folders = [self.path, *sorted(p for p in self.path.glob("*") if p.is_dir())]
        return next((folder for folder in folders if _tasks(folder)), self.path)

    @property
    def _tasks(self) -> list[str]:
        return _tasks(self._root)

    def _folder(self, problems: list[str]) -> Iterator[Example]:
        for task in self._tasks:
            lines = self._result_lines(task) or self._release_lines(task)
            if not lines:
                problems.append(f"{task} has no questions")
            numbers: Counter[str] = Counter()
            for where, name, line in lines:
                cells = line.split("\t")
                if name is None:
                    name, cells = cells[0], cells[1:]
                if len(cells) < 2 or cells[1].strip().lower() not in ("yes", "no"):
                    problems.append(f"{where}: no question with the answer Yes or No")
                    continue
                base = self.images or self._root
                image = image_path([base / task, base / task / "images", self._root / task], name)
                group = f"{task}/{Path(name).stem}"
                numbers[group] += 1
                question, answer = cells[0].strip(), cells[1].strip()
                yield self._example(task, image, group, numbers[group], question, answer)

    def _result_lines(self, task: str) -> list[tuple[str, str | None, str]]:
        path = self._root / f"{task}.txt"
        return [(where, None, line) for where, line in _lines(path)] if path.is_file() else []

    def _release_lines(self, task: str) -> list[tuple[str, str | None, str]]:
        folder = self._root / task
        texts = folder / "questions_answers_YN"
        files = sorted((texts if texts.is_dir() else folder).glob("*.txt"))
        return [(where, file.stem, line) for file in files for where, line in _lines(file)]

    def _parquet(self, problems: list[str]) -> Iterator[Example]:
        files = data_files(
            self.path, [["*.parquet"], ["data/*.parquet"]], "task folders or parquet files"
        )
        known: dict[str, Embedded] = {}
        numbers: Counter[str] = Counter()
        need = ("question_id", "image", "question", "answer", "category")
        for file in files:
            for row in read_rows(file, need, problems):
                task, group = row.text("category"), row.text("question_id")
                if not group.startswith(f"{task}/"):
                    group = f"{task}/{group}"
                answer = row.text("answer").rstrip(".")
                if row.image is None or answer.lower() not in ("yes", "no"):
                    problems.append(f"{row.where}: no question with the answer Yes or No")
                    continue
                numbers[group] += 1
                image = shared(known, group, row.image)
                yield self._example(
                    task, image, group, numbers[group], row.text("question"), answer
                )


def _tasks(folder: Path) -> list[str]:
    return [
        task
        for task in (*PERCEPTION, *COGNITION)
        if (folder / task).is_dir() or (folder / f"{task}.txt").is_file()
    ]


def _lines(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CofError(f"{path} cannot be read: {error}.") from error
    where = f"{path.parent.name}/{path.name}"
    return [(f"{where}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
