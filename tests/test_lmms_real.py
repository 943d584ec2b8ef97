"""With lmms-eval itself: its command, and its figures (`lab.peers` compares replies, prompts)."""

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
from cof.eval.data.mme import MME
from cof.eval.data.pope import yes_no_figures
from cof.eval.evaluate import Evaluation
from cof.eval.examples import Example
from cof.eval.methods import PLAIN, Method
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


def test_mme_score(tmp_path: Path) -> None:
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

    from lab.peers import replies

    write_synthetic(tmp_path, num_objects=(4, 8), scenes=2)
    task = MME(tmp_path / "mme")
    texts = replies(random.Random(2), len(task.examples))
    said = {e.id: text for e, text in zip(task.examples, texts, strict=True)}
    said |= {e.id: e.answer for e in task.examples[::2]}
    found = [
        mme_process_results(
            {"question_id": e.group, "category": e.kind, "answer": e.answer}, [said[e.id]]
        )["mme_perception_score"]
        for e in task.examples
    ]
    ours = task.figures(task.examples, said, "lmms-eval")["perception"].value
    assert ours == pytest.approx(mme_aggregate_results(found))
    assert ours > 200


def test_pope_figures() -> None:
    from lmms_eval.tasks.pope import utils as theirs

    from lab.peers import replies

    rng = random.Random(3)
    said = [rng.choice((reply, "yes", "No ", "Yes")) for reply in replies(rng, 5000)]
    true = [rng.choice(("yes", "no")) for _ in said]
    rows = [
        theirs.pope_process_results({"question_id": n, "answer": answer}, [reply])["pope_accuracy"]
        for n, (answer, reply) in enumerate(zip(true, said, strict=True))
    ]
    examples = [Example(str(n), Path(str(n)), "", of) for n, of in enumerate(true)]
    answers = {str(n): POPE_READERS["lmms-eval"](reply) for n, reply in enumerate(said)}
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
