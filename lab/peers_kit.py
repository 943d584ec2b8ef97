"""VLMEvalKit's own functions beside our rules and prompts `vlmevalkit`, for `lab.peers`.

They are those of the package `ms-vlmeval` 0.0.20, ModelScope's build of VLMEvalKit, older than the
commit that we follow: it does not read "the answer is B" yet, so replies that say so are left out.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from cof.eval import rules
from cof.eval.data.hrbench import HRBench
from cof.eval.data.mmbench import MMBench
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.vstar import VStar
from cof.geometry.boxes import Frame
from cof.prompting.box_parsing import parse_boxes

STYLE: Any = {"rules": "vlmevalkit", "prompt_style": "vlmevalkit"}
LATER = re.compile(r"(?i)answer\s+is\s+\**[ABCD]")
WHOLE = Frame(0.0, 0.0, 1.0, 1.0)


def _import(*paths: str) -> list[Any]:
    """Modules of VLMEvalKit, without the `__init__` files on the way: these import all models."""
    spec = find_spec("vlmeval")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("no VLMEvalKit: `make check-peers` installs it")
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.dataset.utils", "vlmeval.utils"):
        package: Any = ModuleType(name)
        package.__path__ = [str(Path(spec.submodule_search_locations[0], *name.split(".")[1:]))]
        package.__getattr__ = lambda _: None  # judges and progress bars
        sys.modules[name] = package
    return [import_module(f"vlmeval.{path}") for path in paths]


MATCHING, *DATA = _import(
    *("utils.matching_util", "dataset.utils.yorn", "dataset.utils.vqa_eval"),
    *("dataset.refcoco", "dataset.image_mcq"),
)
YES_NO, VQA, REFCOCO, CHOICE = DATA

Pair = tuple[str, Any, Any, object]
"""What is compared, ours, theirs, and of what."""


def kit_replies(rng: random.Random, said: Sequence[str], texts: Sequence[str]) -> Iterator[Pair]:
    """Readings of replies; options are taken from `texts`."""
    for text in said:
        theirs = YES_NO.YOrN_Extraction(text).lower()
        for name, reader in (("MME", rules.MME), ("POPE", rules.POPE)):
            yield name, reader["vlmevalkit"](text) or "unknown", theirs, text
        if not LATER.search(text):
            options = rng.sample(texts, rng.choice((2, 3, 4)))
            theirs = MATCHING.can_infer(text, dict(zip("ABCD", options, strict=False)))
            theirs = None if theirs in (False, "Z") else theirs
            for name, readers in (
                ("MMBench", rules.OPTIONS),
                ("HR-Bench", rules.HRBENCH),
                ("V*Bench", rules.VSTAR),
            ):
                yield name, readers["vlmevalkit"](text, options), theirs, (text, options)
        answers = rng.choices([text, text.upper(), f"the {text}", rng.choice(said)], k=10)
        row = VQA.process_line({"answer": str(answers), "prediction": text})
        ours = rules.vqa_accuracy(text, answers, "vlmevalkit")
        yield "TextVQA", round(ours, 9), round(float(np.mean(row["match"])), 9), (text, answers)


def kit_boxes(said: Sequence[str], folder: Path) -> Iterator[Pair]:
    """The box read out of replies with one box or more, in 0..1."""
    task = RefCOCO(folder, **STYLE)
    for text in said:
        (box,) = task.judged_boxes(text, parse_boxes(text, WHOLE).boxes)
        data = REFCOCO.RefCOCODataset
        theirs = data._to_absolute(data._parse_prediction(text), 1.0, 1.0)
        yield "RefCOCO", list(box), theirs.tolist(), text


def kit_prompts(rng: random.Random, folder: Path, texts: Sequence[str], n: int) -> Iterator[Pair]:
    """Multiple-choice prompts of made-up questions."""
    data = object.__new__(CHOICE.ImageMCQDataset)  # which would be downloaded
    data.meta_only = True
    for number in range(n):
        question, hint = f"What is {number}?", rng.choice(("Look.", None))
        options = rng.sample(texts, rng.choice((2, 3, 4)))
        cells = dict(zip("ABCD", options, strict=False))
        row = pd.Series({"question": question, "hint": hint, "image_path": "a.png", **cells})
        theirs = data.build_prompt(row)[-1]["value"]
        for reader in (MMBench, HRBench, VStar):
            ours = reader(folder, **STYLE).ask(question, options, hint or "")
            yield f"prompts of {reader.name}", ours, theirs, question
