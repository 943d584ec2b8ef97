"""Benchmarks read in the formats they come in: questions, prompts, metrics, and what is refused."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import pytest
from models import checkpoint, picture
from typer.testing import CliRunner, Result

from cof import cli
from cof.cli import evaluate
from cof.errors import CofError
from cof.eval.data import BENCHMARKS
from cof.eval.data.base import Answers, Benchmark
from cof.eval.data.hrbench import HRBench
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.pope import POPE, yes_no_figures
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.scenes import Scenes
from cof.eval.data.textvqa import TextVQA
from cof.eval.data.vstar import VStar
from cof.eval.examples import Example, open_image, select
from cof.eval.rules import RULES, Rules
from cof.geometry.boxes import Frame
from cof.prompting.box_parsing import parse_boxes

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def whole(task: Benchmark) -> Any:
    """A task of whose data nothing is wrong."""
    assert task.check() == []
    return task


def mmbench(folder: Path, rows: list[dict[str, Any]] | None = None, **options: Any) -> MMBench:
    return MMBench(formats.tsv(folder / "dev.tsv", rows or formats.mmbench_rows()), **options)


def without(column: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != column} for row in formats.mmbench_rows()]


def values(
    task: Benchmark, say: Callable[[Example], str], rules: Rules = "official", **other: str
) -> dict[str, float]:
    said: Mapping[str, str] = {e.id: other.get(e.id, say(e)) for e in task.examples}
    figures = task.figures(task.examples, said, rules)
    return {name: figure.value for name, figure in figures.items()}


def right(example: Example) -> str:
    return example.answer


def shows(example: Example, seed: int) -> bool:
    """Whether its image is the picture of a seed."""
    return open_image(example.image).tobytes() == picture((40, 30), seed).tobytes()


# MME


def test_mme_release(tmp_path: Path) -> None:
    inner = formats.mme(tmp_path / "MME_Benchmark")
    task = whole(MME(inner))
    groups = ("color/1", "color/2", "celebrity/a", "code_reasoning/0001")
    assert [e.id for e in task.examples] == [f"{group}-{n}" for group in groups for n in (1, 2)]
    first = task.examples[0]
    assert first.image == inner / "color" / "1.png"
    assert (first.kind, first.group, first.answer) == ("color", "color/1", "yes")
    assert task.examples[4].image == inner / "celebrity" / "images" / "a.jpg"
    # in the archive the tasks lie a folder further down
    assert whole(MME(tmp_path)).examples == task.examples
    (inner / "count").mkdir()
    assert MME(inner).check() == ["count has no questions"]
    hub = whole(MME(formats.mme_parquet(tmp_path / "hub" / "test-0.parquet"))).examples
    groups = ("color/1.png", "OCR/1.png")
    assert [e.id for e in hub] == [f"{group}-{n}" for group in groups for n in (1, 2)]
    assert [shows(e, n // 2) for n, e in enumerate(hub)] == [True] * 4
    assert len({e.image for e in hub}) == 2


def test_mme_result_files_and_images_elsewhere(tmp_path: Path) -> None:
    task = whole(MME(formats.mme_results(tmp_path / "texts")))
    assert [(e.id, e.answer) for e in task.examples] == [("color/1-1", "yes"), ("color/1-2", "no")]
    assert task.examples[0].image == tmp_path / "texts" / "color" / "images" / "1.png"
    (tmp_path / "texts" / "color").rename(tmp_path / "color")
    assert len(MME(task.path).check()) == 1
    assert len(whole(MME(task.path, images=tmp_path)).examples) == 2


def test_mme_texts_as_the_official_script_takes_them(tmp_path: Path) -> None:
    """A byte-order mark, line breaks of other kinds in a question, four questions of one image,
    images that differ in their ending alone, capitals, and the hidden files of macOS."""
    for name in ("a.JPG", "b.jpg", "b.png"):
        formats.save(tmp_path / "color" / name, 1)
    asked = [f"{name}\tIs\u2028it\x0c {n}?\tYes" for n, name in enumerate(["a.jpg"] * 4, 1)]
    asked += [f"b.{end}\tIs it?\t{true}" for true in ("Yes", "No") for end in ("jpg", "png")]
    (tmp_path / "color.txt").write_text("\ufeff" + "\r\n".join(asked), "utf-8")
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "._1.txt").write_bytes(b"\x00\xff")
    task = MME(tmp_path)
    assert task.check() == ["count has no questions"]
    (tmp_path / "count").rename(tmp_path / "others")
    examples = whole(MME(tmp_path)).examples
    assert [e.group for e in examples[::2]] == ["color/a", "color/a (2)", "color/b", "color/b.png"]
    assert examples[0].question == "Is\u2028it\x0c 1?"
    assert [Path(str(e.image)).name for e in examples[3::2]] == ["a.JPG", "b.jpg", "b.png"]
    assert values(MME(tmp_path), lambda _: "yes")["color"] == 100 * 6 / 8 + 100 * 2 / 4


def test_mme_scores(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path))
    perfect = values(task, right)
    assert (perfect["perception"], perfect["cognition"]) == (400, 200)
    always = values(task, lambda _: "yes")
    assert (always["color acc"], always["color acc+"], always["perception"]) == (50, 0, 100)
    mute = values(task, lambda _: "red", "vlmevalkit")
    assert (mute["unparsed"], mute["perception"]) == (100, 0)
    # one image of two with both right, three answers of four
    some = values(task, right, **{"color/2-1": "no"})
    assert (some["color acc"], some["color acc+"], some["color"]) == (75, 50, 125)
    assert some["perception"] == some["color"] + some["celebrity"]


# POPE


def test_pope(tmp_path: Path) -> None:
    task = whole(POPE(formats.pope(tmp_path / "pope")))
    kinds = ("random", "popular", "adversarial")
    assert [e.id for e in task.examples] == [f"{k}-{n}" for k in kinds for n in (1, 2, 3, 4)]
    images = tmp_path / "pope" / "val2014"
    assert task.examples[0].image == images / "COCO_val2014_000000000001.jpg"
    images.rename(tmp_path / "coco")
    assert any("there is no image" in problem for problem in POPE(task.path).check())
    whole(POPE(task.path, images=tmp_path / "coco"))
    hub = whole(POPE(formats.pope_parquet(tmp_path / "test.parquet"))).examples
    assert [e.kind for e in hub] == list(kinds)
    assert len({e.image for e in hub}) == 1
    assert shows(hub[0], 1)


def test_pope_scores(tmp_path: Path) -> None:
    task = POPE(formats.pope(tmp_path))
    perfect = values(task, right, "lmms-eval")
    assert {perfect[name] for name in task.headline} == {100}
    table = values(task, lambda _: "yes")
    assert table["random f1"] == pytest.approx(100 * 2 / 3)
    assert (table["random precision"], table["random recall"]) == (50, 100)
    assert table["mean yes ratio"] == pytest.approx(100)
    # lmms-eval's task `pope` has all kinds in one: 4 hits, 2 false alarms, 2 misses
    said = {"random-1": "no", "random-2": "yes", "popular-3": "no", "adversarial-4": "yes"}
    pooled = values(task, right, "lmms-eval", **said)
    assert pooled["pooled f1"] == pytest.approx(100 * 8 / 12)
    assert pooled["pooled accuracy"] == pytest.approx(100 * 8 / 12)


def test_pope_counts_unparsed_replies_as_each_harness_does() -> None:
    def count(said: list[str | None], true: list[str], rules: Rules) -> dict[str, float]:
        examples = [Example(f"{n}", Path("a"), "?", answer) for n, answer in enumerate(true)]
        read = {f"{n}": answer for n, answer in enumerate(said)}
        figures = yes_no_figures(examples, Answers(examples, {}, read, rules))
        return {name: figure.value for name, figure in figures.items()}

    said, true = ["yes", None, None, "no"], ["yes", "yes", "no", "no"]
    ours, lmms = count(said, true, "vlmevalkit"), count(said, true, "lmms-eval")
    assert (ours["recall"], lmms["recall"]) == (50, 100)
    assert ours["accuracy"] == lmms["accuracy"] == 50
    assert (ours["yes ratio"], lmms["yes ratio"]) == (25, 50)
    assert ours["unparsed"] == 50
    assert count(["no"], ["no"], "official")["f1"] == 0


# MMBench


def test_mmbench_makes_rotations(tmp_path: Path) -> None:
    given = whole(mmbench(tmp_path / "given", formats.mmbench_rows(rotations=True)))
    examples = whole(mmbench(tmp_path / "made")).examples
    assert examples == given.examples
    assert [e.id for e in examples] == ["0", "1000000", "2000000", "3000000", "1", "1000001"]
    turned = examples[1]
    assert turned.options == ("blue", "green", "cyan", "red")
    assert (turned.answer, turned.group, turned.kind, turned.area) == ("A", "0", "kind 0", "all")
    assert len({e.image for e in examples}) == 2
    assert all(shows(e, int(e.group)) for e in examples)


def test_none_is_an_option_and_nan_is_not(tmp_path: Path) -> None:
    rows = formats.mmbench_rows()
    rows[0] |= {"B": "None", "C": "nan", "D": ""}
    task = whole(mmbench(tmp_path, rows))
    assert task.examples[0].options == ("red", "None")
    assert "nan" not in task.examples[-1].prompt


def test_mmbench_images_by_index(tmp_path: Path) -> None:
    rows = formats.mmbench_rows(rotations=True)
    for row in rows:
        if row["index"] >= 10**6:
            row["image"] = str(row["index"] % 10**6)
    assert len(whole(mmbench(tmp_path, rows)).examples) == 6
    rows[1]["image"] = "9"
    (problem,) = mmbench(tmp_path, rows).check()
    assert problem.endswith("dev.tsv, line 4: no image")  # a question has two lines


def test_images_are_found_by_their_place_in_a_table(tmp_path: Path) -> None:
    path = mmbench(tmp_path).path
    # a byte-order mark shifts all places; a blank line is none
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    examples = whole(MMBench(path)).examples
    assert [e.id for e in examples[-2:]] == ["1", "1000001"]
    assert shows(examples[-1], 1)


def test_options_in_vlmevalkits_format(tmp_path: Path) -> None:
    """A gap, options to I, an index with a point, an image's path or a list of one."""
    one, two = formats.mmbench_rows()
    rows = [{**dict.fromkeys("ABCDEFGHI", ""), **row} for row in (one, two)]
    rows[0] |= {"C": "", "index": "0.0", "answer": "D", "image": str([one["image"]])}
    rows[1] |= {letter: letter.lower() for letter in "CDEFGHI"} | {"answer": "I", "image": "0.0"}
    formats.save(tmp_path / "images" / "1.png", 1)
    examples = whole(mmbench(tmp_path, rows, prompt_style="vlmevalkit")).examples
    assert [(e.id, e.options, e.answer) for e in examples[:3]] == [
        ("0", ("red", "blue", "", "cyan"), "D"),
        ("1000000", ("blue", "cyan", "", "red"), "B"),
        ("2000000", ("cyan", "red", "", "blue"), "A"),
    ]
    assert "B. blue\nD. cyan\n" in examples[0].prompt
    assert (examples[3].options[-1], examples[3].answer, len(examples)) == ("i", "I", 3 + 9)
    assert all(shows(example, 0) for example in examples)
    for row in rows:
        row |= {"index": "1.0", "image_path": "1.png"}
        del row["image"]
    assert all(shows(e, 1) for e in whole(mmbench(tmp_path, rows[:1])).examples)
    rows = [{**one, "image": str([one["image"]] * 2)}]
    assert mmbench(tmp_path, rows).check()[0].endswith("about one")


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_base64_as_programs_write_it(tmp_path: Path, kind: str) -> None:
    rows = formats.mmbench_rows()
    rows[0]["image"] = base64.encodebytes(base64.b64decode(rows[0]["image"])).decode()
    rows[1]["image"] = f"data:image/png;base64,{rows[1]['image']}"
    write = formats.tsv if kind == "tsv" else formats.parquet
    examples = whole(MMBench(write(tmp_path / f"dev.{kind}", rows))).examples
    assert all(shows(e, int(e.group)) for e in examples)


def test_splits_in_one_file_are_reported_apart(tmp_path: Path) -> None:
    rows = [{**r, "split": s} for r, s in zip(formats.mmbench_rows(), ("dev", "test"), strict=True)]
    table = values(mmbench(tmp_path, rows), lambda e: e.answer if e.split == "dev" else "C")
    assert (table["dev: circular"], table["test: circular"]) == (100, 0)
    assert "circular" not in table


def test_mmbench_scores(tmp_path: Path) -> None:
    task = mmbench(tmp_path)
    assert values(task, right)["circular"] == 100
    always_b = values(task, lambda _: "B")
    assert (always_b["asked once"], always_b["circular"]) == (50, 0)
    some = values(
        task, lambda e: e.options["ABCD".index(e.answer)], "vlmevalkit", **{"1000001": "?"}
    )
    assert (some["circular"], some["kind 0"], some["kind 1"], some["all"]) == (50, 100, 0, 50)
    assert some["unparsed"] == pytest.approx(100 / 6)
    test = whole(mmbench(tmp_path / "test", without("answer")))
    assert values(test, lambda _: "A") == {"unparsed": 0}


# HR-Bench, V*Bench, TextVQA, RefCOCO


def test_hrbench(tmp_path: Path) -> None:
    task = whole(HRBench(formats.tsv(tmp_path / "4k.tsv", formats.hrbench_rows())))
    assert len(task.examples) == 8
    figures = {"average": 87.5, "cross": 100, "single": 75, "circular": 50, "unparsed": 0}
    assert values(task, right, **{"0": "C"}) == figures


@pytest.mark.parametrize("mixed", [False, True])
def test_hrbench_questions_with_the_same_words_keep_their_own_images(
    tmp_path: Path, mixed: bool
) -> None:
    rows = [{**row, "question": "What colour is the cup?"} for row in formats.hrbench_rows()]
    if mixed:
        rows = [row for cycle in range(4) for row in (rows[cycle], rows[4 + cycle])]
    task = HRBench(formats.tsv(tmp_path / "4k.tsv", rows))
    assert sorted(Counter(example.group for example in task.examples).values()) == [4, 4]
    assert all(shows(example, int(example.id) // 4) for example in task.examples)


def test_vstar(tmp_path: Path) -> None:
    task = whole(VStar(formats.vstar(tmp_path)))
    first, last = task.examples[0], task.examples[-1]
    assert first.region == pytest.approx((0.25, 0.2, 0.5, 0.7))
    assert (first.single, last.single, last.region) == (True, False, (0, 0, 1, 1))
    assert [e.answer for e in task.examples] == ["A", "D", "C", "B", "A", "B"]
    always_a = values(task, lambda _: "A")
    assert (always_a["direct_attributes"], always_a["relative_position"]) == (25, 50)
    assert always_a["circular"] == 0


def test_textvqa(tmp_path: Path) -> None:
    task = whole(TextVQA(formats.textvqa(tmp_path)))
    (example,) = task.examples
    assert example.image == tmp_path / "train_images" / "abc.jpg"
    assert example.answer == "Coca-Cola"
    for text, accuracy in (("coca cola.", 100), ("Pepsi", 60), ("water", 0)):
        assert values(task, lambda _, text=text: text)["accuracy"] == pytest.approx(accuracy)
        assert task.score(example, text).right == (accuracy >= 50)
    path = task.path / "TextVQA_0.5.1_val.json"
    record = json.loads(path.read_text("utf-8"))["data"][0]
    record["answers"] = [{"answer": each, "answer_id": 1} for each in record["answers"]]
    formats.data(path, record)
    assert whole(TextVQA(tmp_path)).examples == [example]
    formats.data(path, {**record, "answers": ["go", {"text": "go"}]})
    assert TextVQA(tmp_path).check() == [
        f"{tmp_path.name}/{path.name}, record 1: answers 2 is no text: {{'text': 'go'}}"
    ]
    assert task.score(example, "").parsed is None


def test_refcoco(tmp_path: Path) -> None:
    first, second = whole(RefCOCO(formats.refcoco(tmp_path))).examples
    assert (first.prompt, first.region) == ("the dog", (0.25, 0.5, 0.75, 1.0))
    assert (second.prompt, second.region) == ("it", (0.0, 0.0, 0.5, 0.25))
    hub = whole(RefCOCO(formats.refcoco_parquet(tmp_path / "val.parquet")))
    assert [e.region for e in hub.examples] == [(0.25, 0.5, 0.75, 1.0)] * 2


@pytest.mark.parametrize(
    ("reply", "first", "lmms_eval"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", True, True),
        ("[0.3, 0.4, 0.1, 0.2]", True, False),  # its IoU with any box is 0 there
        ("0.1, 0.2, 0.3, 0.4", True, False),
        ("[0.1, 0.2, 0.3, 0.4] and [0.5, 0.5, 0.9, 0.9]", True, True),
        ("nowhere", False, False),
    ],
)
def test_boxes_by_the_rules_of_refcoco(
    tmp_path: Path, reply: str, first: bool, lmms_eval: bool
) -> None:
    boxes = parse_boxes(reply, Frame(0.0, 0.0, 1.0, 1.0)).boxes
    expected = {"official": boxes, "llava": boxes, "vlmevalkit": boxes[:1]}
    expected["lmms-eval"] = boxes[:1] if lmms_eval else ()
    task = RefCOCO(tmp_path)
    judged = {rules: replace(task, rules=rules).judged_boxes(reply, boxes) for rules in RULES}
    assert judged == expected


# Prompts

MADE: dict[str, Callable[[Path], Path]] = {
    "mme": formats.mme,
    "pope": formats.pope,
    "mmbench": lambda folder: mmbench(folder).path,
    "textvqa": formats.textvqa_ocr,
    "hrbench": lambda folder: formats.tsv(folder / "4k.tsv", formats.hrbench_rows()),
    "vstar": formats.vstar,
}
OPTIONS = "A. red\nB. blue\nC. green\nD. cyan"
CHOOSE = "Please select the correct answer from the options above. \n"


@pytest.mark.parametrize(
    ("name", "styles", "prompt"),
    [
        ("mme", "llava lmms-eval", f"Is it red?{SHORT}"),
        ("mme", "official vlmevalkit tiny", "Is it red? Please answer yes or no."),
        ("pope", "llava lmms-eval", f"Is there a dog in the image?{SHORT}"),
        ("pope", "official vlmevalkit", "Is there a dog in the image?"),
        ("pope", "tiny", "Is there a dog in the image? Please answer yes or no."),
        ("mmbench", "llava tiny", f"HINT\nASK\n{OPTIONS}{LETTER}"),
        ("mmbench", "official", f"HINT ASK There are several options:\n{OPTIONS}"),
        ("mmbench", "lmms-eval", f"HINT ASK There are several options:\n{OPTIONS}\n{LETTER}"),
        ("mmbench", "vlmevalkit", f"Hint: HINT\nQuestion: ASK\nOptions:\n{OPTIONS}\n{CHOOSE}"),
        ("hrbench", "llava tiny", f"ASK\n{OPTIONS}{LETTER}"),
        ("hrbench", "official vlmevalkit", f"Question: ASK\nOptions:\n{OPTIONS}\n{CHOOSE}"),
        ("hrbench", "lmms-eval", f"ASK\n{OPTIONS}\nAnswer the option letter directly."),
        ("vstar", "llava tiny", f"ASK\n{OPTIONS}{LETTER}"),
        ("vstar", "official", "ASK"),
        ("vstar", "lmms-eval", f"ASK\n{OPTIONS}{LETTER}{LETTER}"),
        ("vstar", "vlmevalkit", f"Question: ASK\nOptions:\n{OPTIONS}\n{CHOOSE}"),
        ("textvqa", "llava vlmevalkit tiny", f"what brand is it?{SHORT}"),
        ("textvqa", "llava-ocr", f"what brand is it?\nReference OCR token: Coca, Cola{SHORT}"),
        ("textvqa", "lmms-eval", f"What brand is it?{SHORT}"),
        ("textvqa", "official", "what brand is it?"),
    ],
)
def test_prompt_styles(tmp_path: Path, name: str, styles: str, prompt: str) -> None:
    question = {"mme": "Is it red?", "pope": "Is there a dog in the image?"}
    question |= {"mmbench": 'Which "one"\nis it?', "textvqa": "what brand is it?"}
    question |= {"hrbench": "What about 0?", "vstar": "How?"}
    prompt = prompt.replace("HINT", "Look\tat it.").replace("ASK", question[name])
    task = BENCHMARKS[name](MADE[name](tmp_path))
    for style in styles.split():
        first = whole(replace(task, prompt_style=style)).examples[0]  # type: ignore[arg-type]
        assert (first.prompt, first.question) == (prompt, question[name])


def test_a_question_without_a_hint(tmp_path: Path) -> None:
    asked = [mmbench(tmp_path, prompt_style=style).examples[4] for style in ("llava", "official")]
    assert asked[0].prompt == f"Is it so?\nA. true\nB. false{LETTER}"
    assert asked[1].prompt == "Is it so? There are several options:\nA. true\nB. false"


# What is wrong with data


Broken = tuple[Benchmark, list[str]]
"""A data set, and what is wrong with it."""


def broken_mme(folder: Path) -> Broken:
    formats.mme(folder)
    (folder / "color" / "1.txt").write_text("Is it red?\tYes\n", "utf-8")
    (folder / "color" / "2.png").unlink()
    (folder / "celebrity" / "questions_answers_YN" / "a.txt").write_text("Who?\tMe\n", "utf-8")
    (folder / "code_reasoning" / "0001.txt").write_bytes(b"\xff\xfe")
    return MME(folder), [
        "color/1 has 1 question, and they come in pairs",
        "there is no image",
        "a.txt, line 1: no question with the answer Yes or No",
        "celebrity has no questions",
        "0001.txt cannot be read",
        "code_reasoning has no questions",
    ]


def broken_pope(folder: Path) -> Broken:
    path = formats.pope(folder) / "coco_pope_popular.json"
    lines = path.read_text("utf-8").splitlines()
    lines[1:3] = [lines[0], '{"question_id": 3}']
    path.write_text("\n".join(lines)[:-20], "utf-8")
    image = folder / "val2014" / "COCO_val2014_000000000001.jpg"
    image.write_bytes(image.read_bytes()[:200])
    return POPE(folder), [
        "line 3: lacks text, label, image",
        "line 4: no JSON (truncated?)",
        "id popular-1 comes more than once",
        "cannot be decoded",
    ]


def broken_mmbench(folder: Path) -> Broken:
    rows = formats.mmbench_rows()
    rows[0]["answer"] = "E"
    rows[1]["image"] = rows[1]["image"][:-7]
    task = mmbench(folder, rows)
    with task.path.open("a", encoding="utf-8") as file:
        file.write("2\tIs it tru")
    return task, [
        "line 2: the answer 'E' is no option",
        "columns instead of 11 (truncated?)",
        "the image cannot be read",
    ]


def without_column(folder: Path) -> Broken:
    return mmbench(folder, without("B")), ["dev.tsv: lacks B; it has index, question, hint, A, C"]


def broken_hrbench(folder: Path) -> Broken:
    rows = formats.hrbench_rows()
    rows[1]["answer"], rows[2]["answer"] = "", "AB"
    task = HRBench(formats.tsv(folder / "4k.tsv", rows))
    return task, [f"4k.tsv, line {n}: the answer {a!r} is no" for n, a in ((3, ""), (4, "AB"))]


def broken_vstar(folder: Path) -> Broken:
    formats.vstar(folder)
    (folder / "direct_attributes" / "sa_1.json").write_text('{"question": "How?"}', "utf-8")
    (folder / "relative_position" / "sa_1.json").write_text("{", "utf-8")
    return VStar(folder), ["direct_attributes/sa_1.json: lacks options, bbox", "is damaged"]


def without_recognised_text(folder: Path) -> Broken:
    task = TextVQA(formats.textvqa(folder), prompt_style="llava-ocr")
    return task, ["no recognised text (TextVQA_Rosetta_OCR_v0.2_val.json)"]


def broken_textvqa(folder: Path) -> Broken:
    path = formats.textvqa(folder) / "TextVQA_0.5.1_val.json"
    path.write_text('{"data": [1, {"question_id": 7}]}', "utf-8")
    lacks = "image_id, question, answers"
    return TextVQA(path), [f"1: lacks question_id, {lacks}", f"2: lacks {lacks}"]


def broken_refcoco(folder: Path) -> Broken:
    path = formats.refcoco(folder)
    first = json.loads(path.read_text("utf-8").splitlines()[0])
    wrong: list[dict[str, Any]] = [{"bbox": ["nan", 0, 9, 9]}, {"width": "wide", "height": 30}]
    wrong += [{"bbox": [9, 9, 0, 0]}, {"img_path": ""}, {"img_path": "gone.jpg"}]
    formats.json_lines(path, [{**first, **other} for other in wrong])
    boxes = [f"line {n}: bbox is no box in pixels" for n in (1, 2, 3)]
    return RefCOCO(path), [*boxes, "line 4: no image and expression", "line 5: the size of"]


def broken_annotations(folder: Path) -> Broken:
    good = {"id": "color/1", "region": [0.1, 0.2, 0.5, 0.6], "num_objects": None, "single": True}
    wrong: list[dict[str, Any]] = [{"region": [10, 20, 50, 60]}, {"region": [0.1, 0.2]}]
    wrong += [{"region": "middle"}, {"num_objects": "many"}, {"single": "yes"}]
    path = formats.mme(folder) / "annotations.jsonl"
    formats.json_lines(path, [good, *({**good, "id": "color/2", **other} for other in wrong)])
    lines = [f"annotations.jsonl, line {n}" for n in (3, 4, 5, 6)]
    return MME(folder), ["line 2: Box (10, 20, 50, 60) is outside 0..1: give fractions", *lines]


BROKEN = [broken_mme, broken_pope, broken_mmbench, without_column, broken_hrbench, broken_vstar]
BROKEN += [without_recognised_text, broken_textvqa, broken_refcoco, broken_annotations]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_check_reports_every_problem(tmp_path: Path, broken: Callable[[Path], Broken]) -> None:
    task, expected = broken(tmp_path)
    problems = task.check()
    for sentence in expected:
        assert any(sentence in problem for problem in problems), (sentence, problems)
    assert len(problems) == len(expected)
    with pytest.raises(CofError, match="--check"):
        _ = task.examples


def test_annotations(tmp_path: Path) -> None:
    path = broken_annotations(tmp_path)[0].path / "annotations.jsonl"
    path.write_text(path.read_text("utf-8").partition("\n")[0], "utf-8")
    regions = [e.region for e in whole(MME(tmp_path)).examples[:3]]
    assert regions == [(0.1, 0.2, 0.5, 0.6)] * 2 + [None]


def test_empty_and_missing_data(tmp_path: Path) -> None:
    for benchmark in (MME, POPE, MMBench, HRBench, VStar, TextVQA, RefCOCO, Scenes):
        with pytest.raises(CofError, match="holds no data"):
            _ = benchmark(tmp_path).examples
        with pytest.raises(CofError, match=r"There is no .*nowhere"):
            benchmark(tmp_path / "nowhere")
    (tmp_path / "dev.tsv").touch()
    assert any("it has no columns" in problem for problem in MMBench(tmp_path).check())
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CofError, match=r"test\.parquet cannot be read"):
        _ = POPE(tmp_path / "test.parquet").examples


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = formats.pope_parquet(tmp_path / "test.parquet")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CofError, match=r"pip install 'cof\[eval\]'"):
        _ = POPE(path).examples


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rules": "mine"}, "There are no rules"),
        ({"prompt_style": "mine"}, "There is no prompt style"),
        ({"prompt_style": "llava-ocr"}, "mme has no recognised text"),
        ({"shard": (3, 2)}, "A shard is i/n"),
        ({"images": Path("nowhere")}, "There is no"),
        ({"share": 0.0}, "validation part's"),
        ({"share": 1.5}, "validation part's"),
    ],
)
def test_options_of_benchmarks(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CofError, match=message):
        MME(tmp_path, **wrong)


def test_shards_and_limits_leave_groups_whole(tmp_path: Path) -> None:
    task = mmbench(tmp_path)
    examples = task.examples
    parts = [replace(task, shard=(part, 2)).examples for part in (1, 2)]
    assert [len(part) for part in parts] == [4, 2]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in examples)
    assert replace(task, limit=1).examples == select(examples, 4, (1, 1)) == examples[:4]
    assert replace(task, limit=5).examples == examples
    pope = POPE(formats.pope(tmp_path / "pope"), limit=4).examples  # of every kind some
    assert [e.id for e in pope] == ["random-1", "random-2", "popular-1", "adversarial-1"]
    with pytest.raises(CofError, match="no questions for this limit and shard"):
        _ = replace(task, shard=(3, 3)).examples


# The command


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])


def test_every_benchmark_has_a_command() -> None:
    assert set(evaluate.BENCHMARKS) == set(BENCHMARKS)


def test_the_command_measures(tmp_path: Path) -> None:
    """A random model; what papers quote is printed."""
    data, out = formats.mme(tmp_path / "mme"), tmp_path / "out"
    options = f"--model {checkpoint('llava')} --max-new-tokens 2 --limit 4 --out {out}"
    result = invoke("mme", data, *options.split())
    assert result.exit_code == 0, result.output
    numbers = json.loads((out / "results.json").read_text("utf-8"))["tasks"]["mme"]
    assert numbers["questions"] == 4
    for metric in numbers["headline"]:
        shown = numbers["metrics"]["official"]["plain"].get(metric)
        assert shown is None or f"{shown:.1f}" in result.output


def test_the_command_checks_data(tmp_path: Path) -> None:
    formats.pope(tmp_path)
    good = invoke("pope", tmp_path, "--check")
    assert (good.exit_code, good.output) == (0, f"{tmp_path}: no problems.\n")
    (tmp_path / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    assert "has the problems listed above (1)." in invoke("pope", tmp_path, "--check").stderr
    (tmp_path / "coco_pope_random.json").write_text("{}\n", "utf-8")
    bad = invoke("pope", tmp_path, "--check")
    assert bad.exit_code == 2
    assert "line 1: lacks text, label, image" in bad.stdout
    assert "there is no image" in bad.stdout
    assert "has the problems listed above (2)." in bad.stderr
    refused = invoke("pope", tmp_path, "--model", "nowhere")  # before the model is looked for
    assert refused.exit_code == 2
    assert "--check" in refused.stderr
    assert "nowhere" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--rules mine", "There are no rules 'mine'"),
        ("--shard half", "--shard takes i/n, such as 2/4, not 'half'."),
        ("--images nowhere", "There is no"),
    ],
)
def test_the_command_refuses(tmp_path: Path, options: str, message: str) -> None:
    result = invoke("mme", formats.mme(tmp_path), *options.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
