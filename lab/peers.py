"""Do we read replies and write prompts as lmms-eval and VLMEvalKit do? `make check-peers` tells.

Made-up replies by the thousand by the rules `lmms-eval` and `vlmevalkit`, and prompts in these
styles; lmms-eval's functions for MMBench and HR-Bench are the benchmarks' own, so `official` is
compared with them as well. The tables say how many of each were compared and how many differ, with
the first that does.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lmms_eval.tasks.hrbench import utils as hrbench
from lmms_eval.tasks.mmbench import en_utils as mmbench
from lmms_eval.tasks.mme import utils as mme
from lmms_eval.tasks.pope import utils as pope
from lmms_eval.tasks.refcoco import utils_rec as refcoco
from lmms_eval.tasks.textvqa import utils as textvqa
from lmms_eval.tasks.vstar_bench import utils as vstar
from loguru import logger

from cof.eval import rules
from cof.eval.data.hrbench import HRBench
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.vstar import VStar
from cof.geometry.boxes import Frame, iou, union
from cof.prompting.box_parsing import parse_boxes
from cof.prompting.dialects import OPTION_LETTER, SHORT_ANSWER
from lab.peers_kit import Pair, kit_boxes, kit_prompts, kit_replies
from lab.studies.synthetic import write_synthetic

WORDS = """yes no Yes No not nothing know y n YES none I see a the two 2 red blue cat dog isn't dont
it's A B C D E (A) (B) C. D: :B A, B). answer is Answer: option Choice: **B** (c) d) Yes, no. No,
1,000 3.5 half-way stop! Coca-Cola o'clock banana Z nan because"""
TEXTS = ("red", "blue", "a cat", "Dog", "two", "no", "yes", "the red dog", "3.5", "banana", "It")
STYLE: Any = {"rules": "lmms-eval", "prompt_style": "lmms-eval"}
N = 20_000


def replies(rng: random.Random, n: int) -> Iterator[str]:
    for _ in range(n):
        words = rng.choices(WORDS.split(), k=rng.choice((1, 1, 2, 3, 5, 20)))
        yield rng.choice((" ", " ", ". ", "\n", ", ")).join(words) + rng.choice(("", ".", " "))


def compare_replies(rng: random.Random) -> Iterator[Pair]:
    said = list(replies(rng, N))
    for text in said:
        read, theirs = rules.MME["lmms-eval"](text), mme.parse_pred_ans(text)
        yield "MME", read or "other", theirs, text
        row = pope.pope_process_results({"question_id": 0, "answer": "no"}, [text])["pope_accuracy"]
        yield "POPE", rules.POPE["lmms-eval"](text) == "no", row["score"] == 1, text
        options = rng.sample(TEXTS, rng.choice((2, 3, 4)))
        cells = dict(zip("ABCD", [*options, "nan", "nan"], strict=False))  # as its data have them
        theirs = mmbench.mmbench_evaluator.prefetch_answer({**cells, "prediction": text}) or None
        yield "MMBench", rules.OPTIONS["lmms-eval"](text, options), theirs, (text, options)
        if len(options) == 4:
            ours = rules.OPTIONS["official"](text, options)
            yield "MMBench, official", ours, theirs, (text, options)
        known = dict(zip("ABCD", options, strict=False))
        theirs = hrbench.hrbench_evaluator.can_infer(text.strip(), known)
        ours = rules.HRBENCH["official"](text, options) or (theirs in (False, "Z") and theirs)
        yield "HR-Bench and official", ours, theirs, (text, options)
        ours = rules.VSTAR["lmms-eval"](text, options)
        yield "V*Bench", ours, vstar.extract_answer_letter(text), text
        answers = rng.choices([text, text.upper(), f"the {text}", rng.choice(said)], k=10)
        document = {"question_id": 0, "answers": list(answers)}
        theirs = textvqa.textvqa_process_results(document, [text])["exact_match"]
        yield "TextVQA", round(rules.vqa_accuracy(text, answers), 9), round(theirs, 9), text


def compare_boxes(rng: random.Random, folder: Path) -> Iterator[Pair]:
    grounding = RefCOCO(folder, **STYLE)
    for _ in range(N):
        x, y, *corners = [round(rng.random(), 2) for _ in range(10)]
        true, first = (x / 2, y / 2, x / 2 + 0.5, y / 2 + 0.5), corners[:4]
        text = rng.choice((f"{first}", f"It is at {first}, or {corners[4:]}", f"{first}"[1:-1]))
        boxes = parse_boxes(text, Frame(0.0, 0.0, 1.0, 1.0)).boxes
        found = grounding.judged_boxes(text, boxes)
        theirs = refcoco.compute_accuracy(true, refcoco.parse_float_sequence_within(text))
        yield "RefCOCO", bool(found) and iou(union(found), true) >= 0.5, theirs, (text, true)


def compare_prompts(rng: random.Random, folder: Path) -> Iterator[Pair]:
    write_synthetic(folder, num_objects=(4,), scenes=1)
    short = {"pre_prompt": "", "post_prompt": SHORT_ANSWER}
    yes_no = ((MME, mme.mme_doc_to_text, mme.replace_prompt), (POPE, pope.pope_doc_to_text, ""))
    for reader, ask, ends in yes_no:
        for e in reader(folder / reader.name, **STYLE).examples:
            yield (
                f"prompts of {reader.name}",
                e.prompt,
                ask({"question": e.question + ends}, short),
                e.id,
            )
    rest = dict.fromkeys(("category", "L2-category", "index", "source", "split"), "")
    letter = {"post_prompt": OPTION_LETTER}
    for number in range(N // 10):
        question, hint = f"What is {number}?", rng.choice(("Look.", ""))
        options = rng.sample(TEXTS, rng.choice((2, 3, 4)))
        cells = dict(zip("ABCD", options, strict=False))
        document: Any = {"question": question, "hint": hint or "nan", **rest, **cells}
        ours = MMBench(folder, **STYLE).ask(question, options, hint)
        yield "prompts of MMBench", ours, mmbench.mmbench_doc_to_text(document, letter), question
        ours, theirs = HRBench(folder, **STYLE).ask(question, options), hrbench.hrbench_doc_to_text
        yield "prompts of HR-Bench", ours, theirs(document), question
        shown = "".join(f"\n({letter}) {option}" for letter, option in cells.items())
        theirs = vstar.vstar_doc_to_text({"text": f"{question}{shown}{OPTION_LETTER}"}, letter)
        yield "prompts of V*Bench", VStar(folder, **STYLE).ask(question, options), theirs, question


def compare_kit(rng: random.Random, folder: Path) -> Iterator[Pair]:
    said = list(replies(rng, N))
    corners = ([round(rng.random() / 2, 2) for _ in range(4)] for _ in range(2 * N))
    ends = ([x, y, round(x + w + 0.01, 2), round(y + h + 0.01, 2)] for x, y, w, h in corners)
    boxes = (box[2:] + box[:2] if rng.random() < 0.3 else box for box in ends)  # some reversed
    shown = [f"It is at {box}, or {next(boxes)}" for box in boxes]
    yield from kit_replies(rng, said, TEXTS)
    yield from kit_boxes(shown, folder)
    yield from kit_prompts(rng, folder, TEXTS, N // 10)


def count_differences(title: str, pairs: Iterable[Pair]) -> int:
    """Print a table of what was compared; returns how many differ."""
    table = dict[str, list[Any]]()
    for what, ours, theirs, of in pairs:
        row = table.setdefault(what, [0, 0, ""])
        row[0] += 1
        if ours != theirs:
            row[1:] = row[1] + 1, row[2] or f"{of!r}: {ours!r}, there {theirs!r}"
    print(f"{title:24}{'compared':>9}{'differ':>8}")
    for what, (n, different, first) in table.items():
        print(f"{what:24}{n:9,}{different:8,}  {first}")
    return sum(row[1] for row in table.values())


def main() -> None:
    logger.remove()  # lmms-eval's
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        place = (rng, Path(name))
        pairs = chain(compare_replies(rng), compare_boxes(*place), compare_prompts(*place))
        differ = count_differences("lmms-eval", pairs)
        differ += count_differences("VLMEvalKit", compare_kit(*place))
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
