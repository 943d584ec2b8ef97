"""MME: yes/no questions in pairs about one image, fourteen tasks (arXiv 2306.13394).

Read from the release (`<task>/` with images and `<image>.txt` of `question<TAB>answer` lines,
or with `images/` and `questions_answers_YN/`), from result files (`<task>.txt` of
`image<TAB>question<TAB>answer` lines), or from the hub's parquet files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cof.errors import CofError
from cof.eval.data.base import Benchmark, Replies, image_path, split_by
from cof.eval.data.files import Row, collect
from cof.eval.examples import Example
from cof.eval.figures import Figure, total
from cof.eval.rules import MME as READERS
from cof.eval.rules import Rules
from cof.prompting.dialects import SHORT_ANSWER

# fmt: off
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene",
              "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation",
             "code_reasoning")
# fmt: on
ASKS = "Please answer yes or no."


@dataclass(frozen=True)
class MME(Benchmark):
    """A task's score is 100 * (acc + acc+), acc+ being the share of images with both answers
    right; perception (ten tasks) reaches 2000, cognition (four) 800."""

    name: ClassVar[str] = "mme"
    headline: ClassVar[tuple[str, ...]] = ("perception", "cognition")
    patterns: ClassVar[tuple[str, ...]] = ("*.parquet", "data/*.parquet")

    def read(self, problems: list[str]) -> list[Example]:
        asked: Counter[str] = Counter()

        def question(row: Row) -> Iterator[Example]:
            task, group, answer = map(row.text, ("category", "question_id", "answer"))
            answer = answer.lower().rstrip(".")
            if answer not in ("yes", "no"):
                raise CofError("no question with the answer Yes or No")
            if not group.startswith(f"{task}/"):
                group = f"{task}/{group}"
            asked[group] += 1
            text = row.text("question")
            short = self.prompt_style in ("llava", "lmms-eval")
            yield Example(
                id=f"{group}-{asked[group]}",
                image=self.image_of(row, group) if row.image else Path(row.text("image")),
                prompt=text.replace(ASKS, "").rstrip() + SHORT_ANSWER if short else text,
                answer=answer,
                kind=task,
                group=group,
                question=text.replace(ASKS, "").strip(),
            )

        # in some archives the tasks lie one folder further down
        folders = [self.path, *(path for path in sorted(self.path.glob("*")) if path.is_dir())]
        root = next(filter(_tasks, folders), self.path)
        tasks = _tasks(root)
        if tasks:
            rows = (self._lines(root, task, file) for task in tasks for file in tasks[task])
            examples = collect(question, problems, *rows)
        else:
            need = ("question_id", "image", "question", "answer", "category")
            examples = self.collect(question, problems, need)
        there = split_by("kind", examples)
        problems += [f"{task} has no questions" for task in tasks if task not in there]
        problems += [
            f"{group} has {n} question{'s' * (n > 1)} instead of two"
            for group, n in asked.items()
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
        details: dict[str, Figure] = {}
        for task, asked in split_by("kind", examples).items():
            acc, plus = answers.share(asked), answers.share_of_groups(asked)
            details |= {task: total([acc, plus]), f"{task} acc": acc, f"{task} acc+": plus}
        sums = {
            name: total([details[task] for task in tasks if task in details])
            for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION))
            if any(task in details for task in tasks)
        }
        return {**sums, **details, "unparsed": answers.unparsed(examples)}

    def _lines(self, root: Path, task: str, file: Path) -> Iterator[Row]:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CofError(f"{file} cannot be read: {error}.") from error
        base = self.images or root
        for number, line in enumerate(lines, start=1):
            cells = line.split("\t") if file.parent == root else [file.stem, *line.split("\t")]
            name, question, answer = (*cells, "", "")[:3]
            image = image_path([base / task, base / task / "images", root / task], name)
            fields = {"category": task, "question_id": f"{task}/{Path(name).stem}", "image": image}
            if line.strip():
                yield Row(
                    file, f"line {number}", {**fields, "question": question, "answer": answer}
                )


def _tasks(root: Path) -> dict[str, list[Path]]:
    """The tasks in a folder, each with its texts: one of all images, or one for each image."""
    found = {}
    for task in (*PERCEPTION, *COGNITION):
        texts, apart = root / task, root / task / "questions_answers_YN"
        if (root / f"{task}.txt").is_file():
            found[task] = [root / f"{task}.txt"]
        elif texts.is_dir():
            found[task] = sorted((apart if apart.is_dir() else texts).glob("*.txt"))
    return found
