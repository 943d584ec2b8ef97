"""With lmms-eval itself: the command, and its functions beside our `lmms-eval` rules."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from models import checkpoint
from rich.console import Console

from cof.eval.data.base import Answers
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE, yes_no_figures
from cof.eval.evaluate import Evaluation
from cof.eval.examples import Example
from cof.eval.methods import PLAIN, Method
from cof.eval.rules import MME as MME_READERS
from cof.eval.rules import OPTIONS, vqa_accuracy
from cof.eval.rules import POPE as POPE_READERS
from cof.eval.store import Store
from cof.pipeline import CoF
from lab.studies.synthetic import write_synthetic

pytestmark = [
    pytest.mark.skipif(
        find_spec("lmms_eval") is None, reason='needs lmms-eval: pip install ".[lmms]"'
    ),
    pytest.mark.filterwarnings("ignore"),  # those of lmms-eval and its many packages
]

PIECES = (
    *("yes", "no", "Yes", "No", "not", "nothing", "know", "y", "n", "YES", "none", "I", "see"),
    *("a", "the", "two", "2", "red", "blue", "cat", "dog", "there", "isn't", "dont", "it's"),
    *("A", "B", "C", "D", "E", "(A)", "(B)", "C.", "D:", ":B", "A,", "B).", "answer", "is"),
    *("Yes,", "no.", "No,", "1,000", "3.5", "half-way", "stop!", "Coca-Cola", "o'clock", ""),
)
OPTION_TEXTS = ("red", "blue", "a cat", "Dog", "two", "no", "yes", "the red dog", "3.5")
TASK = """
task: scenes_mme
dataset_path: {data}
dataset_kwargs:
  load_from_disk: true
test_split: test
output_type: generate_until
doc_to_visual: !function utils.mme_doc_to_visual
doc_to_text: !function utils.mme_doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 3
  temperature: 0
  do_sample: false
process_results: !function utils.mme_process_results
metric_list:
  - metric: mme_perception_score
    aggregation: !function utils.mme_aggregate_results
    higher_is_better: true
lmms_eval_specific_kwargs:
  default:
    pre_prompt: ""
    post_prompt: "\\nAnswer the question using a single word or phrase."
"""
FUNCTIONS = "from lmms_eval.tasks.mme.utils import *"


def replies(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        words = rng.choices(PIECES, k=rng.choice((1, 1, 2, 3, 5)))
        found.append(rng.choice((" ", " ", ". ", "\n", ", ")).join(words) + rng.choice(("", ".")))
    return found


def test_mme_answers() -> None:
    from lmms_eval.tasks.mme.utils import parse_pred_ans

    for reply in replies(5000, 1):
        theirs = parse_pred_ans(reply)
        assert MME_READERS["lmms-eval"](reply) == (None if theirs == "other" else theirs), reply


def test_mme_score(tmp_path: Path) -> None:
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

    write_synthetic(tmp_path, num_objects=(4, 8), scenes=2)
    task = MME(tmp_path / "mme")
    said = dict(zip((e.id for e in task.examples), replies(len(task.examples), 2), strict=True)) | {
        e.id: e.answer for e in task.examples[::2]
    }
    found = [
        mme_process_results(
            {"question_id": e.group, "category": e.kind, "answer": e.answer}, [said[e.id]]
        )["mme_perception_score"]
        for e in task.examples
    ]
    ours = task.figures(task.examples, said, "lmms-eval")["perception"].value
    assert ours == pytest.approx(mme_aggregate_results(found))
    assert ours > 200


def test_pope_answers_and_figures() -> None:
    from lmms_eval.tasks.pope import utils as theirs

    rng = random.Random(3)
    said = [rng.choice((reply, "yes", "No ", "Yes")) for reply in replies(5000, 3)]
    true = [rng.choice(("yes", "no")) for _ in said]
    rows = [
        theirs.pope_process_results({"question_id": n, "answer": answer}, [reply])["pope_accuracy"]
        for n, (answer, reply) in enumerate(zip(true, said, strict=True))
    ]
    read = [POPE_READERS["lmms-eval"](reply) for reply in said]
    for row, answer, reply in zip(rows, read, said, strict=True):
        expected = row["prediction"] if row["prediction"] in ("yes", "no") else None
        assert answer == expected, reply
    examples = [Example(str(n), Path(str(n)), "", of) for n, of in enumerate(true)]
    answers = {str(n): answer for n, answer in enumerate(read)}
    figures = yes_no_figures(examples, Answers(examples, {}, answers, "lmms-eval"))
    ours = {name: figure.value for name, figure in figures.items()}
    for name, function in (
        ("accuracy", theirs.pope_aggregate_accuracy),
        ("precision", theirs.pope_aggregate_precision),
        ("recall", theirs.pope_aggregate_recall),
        ("f1", theirs.pope_aggregate_f1_score),
        ("yes ratio", theirs.pope_aggregate_yes_ratio),
    ):
        assert ours[name] == pytest.approx(100 * function(rows)), name


def test_mmbench_options() -> None:
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    rng = random.Random(4)
    evaluator = MMBench_Evaluator()
    for reply in replies(5000, 4):
        options = rng.sample(OPTION_TEXTS, rng.choice((2, 3, 4)))
        theirs = evaluator.can_infer(reply, dict(zip("ABCD", options, strict=False)))
        assert OPTIONS["lmms-eval"](reply, options) == (theirs or None), (reply, options)


def test_textvqa_accuracy() -> None:
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results

    rng = random.Random(5)
    said = replies(3000, 5)
    for reply in said:
        answers = rng.choices([reply, reply.upper(), f"the {reply}", rng.choice(said)], k=10)
        document = {"question_id": 0, "answers": list(answers)}
        theirs = textvqa_process_results(document, [reply])["exact_match"]
        assert vqa_accuracy(reply, answers) == pytest.approx(theirs), (reply, answers)


def test_prompts(tmp_path: Path) -> None:
    """Our prompt_style `lmms-eval` is what its tasks ask."""
    from lmms_eval.tasks.mmbench.en_utils import mmbench_doc_to_text
    from lmms_eval.tasks.mme.utils import mme_doc_to_text
    from lmms_eval.tasks.pope.utils import pope_doc_to_text

    write_synthetic(tmp_path, num_objects=(4,), scenes=1)
    short = {
        "pre_prompt": "",
        "post_prompt": "\nAnswer the question using a single word or phrase.",
    }
    for example in MME(tmp_path / "mme", prompt_style="lmms-eval").examples:
        document = {"question": f"{example.question} Please answer yes or no."}
        assert example.prompt == mme_doc_to_text(document, short)
    for example in POPE(tmp_path / "pope", prompt_style="lmms-eval").examples:
        assert example.prompt == pope_doc_to_text({"question": example.question}, short)
    letter = "\nAnswer with the option's letter from the given choices directly."
    for example in MMBench(tmp_path / "mmbench", prompt_style="lmms-eval").examples:
        rest = dict.fromkeys(("category", "L2-category", "index", "source", "split"), "")
        document = {"question": example.question, "hint": "nan", **rest}
        document |= dict(zip("ABCD", example.options, strict=True))
        assert example.prompt == mmbench_doc_to_text(document, {"post_prompt": letter})


@pytest.mark.parametrize(
    ("options", "where"), [("strength=500,released=true", "cof"), ("grounder=none", "plain")]
)
def test_command(tmp_path: Path, options: str, where: Any) -> None:
    """A local task offline: the same answers as our own runner's, and its score."""
    write_synthetic(tmp_path / "data", num_objects=(4,), scenes=2)
    model = str(checkpoint("llava"))
    task = MME(tmp_path / "data" / "mme", "lmms-eval", "lmms-eval")
    _save(task.examples, tmp_path)
    command = [sys.executable, "-m", "lmms_eval", "--model", "cof", "--batch_size", "4"]
    command += ["--model_args", f"pretrained={model},{options}", "--tasks", "scenes_mme"]
    command += ["--include_path", str(tmp_path / "task"), "--device", "cpu", "--log_samples"]
    done = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("*_samples_scenes_mme.jsonl")
    lines = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    theirs = {line["doc_id"]: line["filtered_resps"] for line in lines}

    cof = CoF.from_pretrained(model)
    settings = cof.settings.changed(strength=500, released=True)
    methods = {"plain": PLAIN, "cof": Method(settings)}
    evaluation = Evaluation(methods, max_new_tokens=3)
    ours_at, quiet = tmp_path / "ours", Console(quiet=True)
    numbers = evaluation.run(cof.engine, {"mme": task}, ours_at, console=quiet)["tasks"]["mme"]
    store = Store(tmp_path / "ours" / "answers.jsonl")
    ours = {
        name: [store[method.key, example.id].text.strip() for example in task.examples]
        for name, method in methods.items()
    }
    assert ours["cof"] != ours["plain"]
    assert [theirs[number] for number in range(len(lines))] == ours[where]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    scores = json.loads(results.read_text("utf-8"))["results"]["scenes_mme"]
    score = scores["mme_perception_score,none"]
    assert numbers["metrics"]["lmms-eval"][where]["perception"] == pytest.approx(score)


def _save(examples: Sequence[Example], folder: Path) -> None:
    """The questions as a data set and a task of lmms-eval."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    rows = [
        {
            "question_id": example.group,
            "image": str(example.image),
            "question": f"{example.question} Please answer yes or no.",
            "answer": example.answer.capitalize(),
            "category": example.kind,
        }
        for example in examples
    ]
    columns = {name: Value("string") for name in rows[0]} | {"image": Image()}
    data = folder / "task" / "data"
    (folder / "task").mkdir()
    DatasetDict({"test": Dataset.from_list(rows, Features(columns))}).save_to_disk(str(data))
    (folder / "task" / "scenes_mme.yaml").write_text(TASK.format(data=data), "utf-8")
    (folder / "task" / "utils.py").write_text(FUNCTIONS + "\n", "utf-8")
