"""Benchmarks read in the formats they come in: questions, prompts, metrics, and what is refused."""

from __future__ import annotations

import base64
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import formats
import numpy as np
import pytest
from models import picture as noise

from cof.errors import CofError
from cof.eval.data.base import Benchmark, select
from cof.eval.data.hrbench import HRBench
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import COGNITION, MME, PERCEPTION
from cof.eval.data.pope import POPE, yes_no_figures
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.textvqa import NEEDED, TextVQA
from cof.eval.data.vstar import VStar
from cof.eval.examples import Example
from cof.eval.figures import find_clusters
from cof.eval.images import open_image
from cof.eval.rules import RULES, Rules


def replies(examples: Sequence[Example], say: Callable[[Example], str]) -> dict[str, str]:
    return {example.id: say(example) for example in examples}


def right(example: Example) -> str:
    return example.answer


def values(
    task: Benchmark, replies: Mapping[str, str | None], rules: Rules = "official"
) -> dict[str, float]:
    figures = task.figures(task.examples, replies, rules)
    return {name: figure.value for name, figure in figures.items()}


# MME


def test_mme_release(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path))
    assert task.check() == []
    ids = [example.id for example in task.examples]
    assert ids[:4] == ["color/1-1", "color/1-2", "color/2-1", "color/2-2"]
    assert ids[4:] == [
        "celebrity/a-1",
        "celebrity/a-2",
        "code_reasoning/0001-1",
        "code_reasoning/0001-2",
    ]
    first = task.examples[0]
    assert first.image == tmp_path / "color" / "1.png"
    assert (first.kind, first.group, first.answer) == ("color", "color/1", "yes")
    assert first.question == "Is it red?"
    assert task.examples[4].image == tmp_path / "celebrity" / "images" / "a.jpg"


def test_mme_release_a_folder_further_down(tmp_path: Path) -> None:
    inner = formats.mme(tmp_path / "MME_Benchmark")
    assert [e.id for e in MME(tmp_path).examples] == [e.id for e in MME(inner).examples]
    assert MME(tmp_path).check() == []


def test_mme_prompt_styles(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path))

    def first(prompt_style: Any) -> str:
        return replace(task, prompt_style=prompt_style).examples[0].prompt

    short = "Is it red?\nAnswer the question using a single word or phrase."
    assert first("llava") == first("lmms-eval") == short
    own = "Is it red? Please answer yes or no."
    assert first("official") == first("vlmevalkit") == first("tiny") == own


def test_mme_result_files(tmp_path: Path) -> None:
    task = MME(formats.mme_results(tmp_path))
    assert task.check() == []
    assert [(e.id, e.answer) for e in task.examples] == [("color/1-1", "yes"), ("color/1-2", "no")]
    assert task.examples[0].image == tmp_path / "color" / "images" / "1.png"


def test_mme_parquet(tmp_path: Path) -> None:
    task = MME(formats.mme_parquet(tmp_path / "data" / "test-0.parquet").parent.parent)
    assert task.check() == []
    assert [e.id for e in task.examples] == [
        "color/1.png-1",
        "color/1.png-2",
        "OCR/1.png-1",
        "OCR/1.png-2",
    ]
    images = [e.image for e in task.examples]
    assert images[0] == images[1] != images[2] == images[3]
    for image, seed in ((images[0], 0), (images[3], 1)):
        assert np.array_equal(np.asarray(open_image(image)), np.asarray(noise((40, 30), seed)))


def test_mme_scores(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path))
    perfect = values(task, replies(task.examples, right))
    assert (perfect["perception"], perfect["cognition"]) == (400, 200)
    always = values(task, replies(task.examples, lambda _: "yes"))
    assert always["color acc"] == 50
    assert always["unparsed"] == 0
    mute = values(task, replies(task.examples, lambda _: "red"), "vlmevalkit")
    assert (mute["unparsed"], mute["perception"]) == (100, 0)
    assert always["color acc+"] == 0
    assert always["perception"] == 100
    # one image of two with both right, three answers of four
    said = replies(task.examples, lambda e: "no" if e.id == "color/2-1" else e.answer)
    some = values(task, said)
    assert (some["color acc"], some["color acc+"], some["color"]) == (75, 50, 125)
    assert some["perception"] == some["color"] + some["celebrity"]
    assert len(PERCEPTION) == 10
    assert len(COGNITION) == 4


# POPE


def test_pope(tmp_path: Path) -> None:
    task = POPE(formats.pope(tmp_path))
    assert task.check() == []
    assert [e.id for e in task.examples[:5]] == [
        "random-1",
        "random-2",
        "random-3",
        "random-4",
        "popular-1",
    ]
    first = task.examples[0]
    assert first.image == tmp_path / "val2014" / "COCO_val2014_000000000001.jpg"
    assert first.prompt == (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    bare = "Is there a dog in the image?"
    assert replace(task, prompt_style="official").examples[0].prompt == first.question == bare
    assert (
        replace(task, prompt_style="tiny").examples[0].prompt == f"{bare} Please answer yes or no."
    )


def test_pope_images_elsewhere(tmp_path: Path) -> None:
    formats.pope(tmp_path)
    (tmp_path / "val2014").rename(tmp_path / "coco")
    assert any("there is no image" in problem for problem in POPE(tmp_path).check())
    assert POPE(tmp_path, images=tmp_path / "coco").check() == []


def test_pope_parquet(tmp_path: Path) -> None:
    task = POPE(formats.pope_parquet(tmp_path / "test.parquet"))
    assert task.check() == []
    assert [e.kind for e in task.examples] == ["random", "popular", "adversarial"]
    assert len({e.image for e in task.examples}) == 1


def test_pope_scores(tmp_path: Path) -> None:
    task = POPE(formats.pope(tmp_path))
    perfect = values(task, replies(task.examples, right), "lmms-eval")
    assert {perfect[name] for name in task.headline} == {100}
    table = values(task, replies(task.examples, lambda _: "yes"))
    assert table["random f1"] == pytest.approx(100 * 2 / 3)
    assert (table["random precision"], table["random recall"]) == (50, 100)
    assert table["mean yes ratio"] == pytest.approx(100)


def test_pope_counts_unparsed_replies_as_each_harness_does() -> None:
    def count(answers: Sequence[str | None], true: Sequence[str], rules: Rules) -> dict[str, float]:
        examples = [Example(f"{n}", Path("a"), "?", answer) for n, answer in enumerate(true)]
        by_id = {f"{n}": answer for n, answer in enumerate(answers)}
        figures = yes_no_figures(examples, by_id, find_clusters(examples), rules)
        return {name: figure.value for name, figure in figures.items()}

    answers, true = ["yes", None, None, "no"], ["yes", "yes", "no", "no"]
    ours, lmms = count(answers, true, "vlmevalkit"), count(answers, true, "lmms-eval")
    assert (ours["recall"], lmms["recall"]) == (50, 100)
    assert ours["accuracy"] == lmms["accuracy"] == 50
    assert (ours["yes ratio"], lmms["yes ratio"]) == (25, 50)
    assert ours["unparsed"] == 50
    assert count(["no"], ["no"], "official")["f1"] == 0


# MMBench


def test_mmbench_makes_rotations(tmp_path: Path) -> None:
    given = MMBench(formats.tsv(tmp_path / "given.tsv", formats.mmbench_rows(rotations=True)))
    made = MMBench(formats.tsv(tmp_path / "made.tsv", formats.mmbench_rows()))
    assert given.check() == made.check() == []
    assert made.examples == given.examples
    ids = [example.id for example in made.examples]
    assert ids == ["0", "1000000", "2000000", "3000000", "1", "1000001"]
    turned = made.examples[1]
    assert turned.options == ("blue", "green", "cyan", "red")
    assert (turned.answer, turned.group, turned.kind, turned.area) == ("A", "0", "kind 0", "all")
    assert len({example.image for example in made.examples}) == 2
    for example in (made.examples[3], made.examples[5]):
        seed = int(example.group)
        assert np.array_equal(
            np.asarray(open_image(example.image)), np.asarray(noise((40, 30), seed))
        )


def test_mmbench_prompt_styles(tmp_path: Path) -> None:
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()))

    def prompts(prompt_style: Any) -> tuple[str, str]:
        examples = replace(task, prompt_style=prompt_style).examples
        return examples[0].prompt, examples[4].prompt

    letter = "Answer with the option's letter from the given choices directly."
    lines = "A. red\nB. blue\nC. green\nD. cyan"
    question = 'Which "one"\nis it?'
    assert prompts("llava") == prompts("tiny")
    assert prompts("llava") == (
        f"Look\tat it.\n{question}\n{lines}\n{letter}",
        f"Is it so?\nA. true\nB. false\n{letter}",
    )
    assert prompts("lmms-eval")[0] == (
        f"Look\tat it. {question} There are several options:\n{lines}\n\n{letter}"
    )
    assert prompts("vlmevalkit")[0] == (
        f"Hint: Look\tat it.\nQuestion: {question}\nOptions:\n{lines}\n"
        "Please select the correct answer from the options above."
    )
    assert {example.question for example in task.examples} == {question, "Is it so?"}


def test_none_is_an_option_and_nan_is_not(tmp_path: Path) -> None:
    rows = formats.mmbench_rows()
    rows[0] |= {"B": "None", "C": "nan", "D": ""}
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", rows))
    assert task.check() == []
    assert task.examples[0].options == ("red", "None")
    assert "nan" not in task.examples[-1].prompt


def test_mmbench_images_by_index(tmp_path: Path) -> None:
    rows = formats.mmbench_rows(rotations=True)
    for row in rows:
        if row["index"] >= 10**6:
            row["image"] = str(row["index"] % 10**6)
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", rows))
    assert task.check() == []
    assert len(task.examples) == 6
    rows[1]["image"] = "9"
    broken = MMBench(formats.tsv(tmp_path / "broken.tsv", rows))
    assert broken.check() == ["broken.tsv, line 4: no image"]  # a question has two lines


def test_mmbench_scores(tmp_path: Path) -> None:
    task = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()))
    examples = task.examples
    assert values(task, replies(examples, right))["circular"] == 100
    always_b = values(task, replies(examples, lambda _: "B"))
    assert always_b["asked once"] == 50
    assert always_b["circular"] == 0
    by_text = replies(examples, lambda e: e.options["ABCD".index(e.answer)])
    some = values(task, by_text | {"1000001": "?"}, "vlmevalkit")
    assert (some["circular"], some["kind 0"], some["kind 1"], some["all"]) == (50, 100, 0, 50)
    assert some["unparsed"] == pytest.approx(100 / 6)


def test_mmbench_without_answers(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in formats.mmbench_rows()]
    task = MMBench(formats.tsv(tmp_path / "test.tsv", rows))
    assert task.check() == []
    said = replies(task.examples, lambda _: "A")
    assert values(task, said) == {"unparsed": 0}


# HR-Bench, V*Bench, TextVQA, RefCOCO


def test_hrbench(tmp_path: Path) -> None:
    task = HRBench(formats.tsv(tmp_path / "hr_bench_4k.tsv", formats.hrbench_rows()))
    assert task.check() == []
    assert len(task.examples) == 8
    assert len({example.group for example in task.examples}) == 2
    assert len({example.image for example in task.examples}) == 2
    said = replies(task.examples, right) | {"0": "C"}
    assert values(task, said) == {
        "average": 87.5,
        "cross": 100,
        "single": 75,
        "circular": 50,
        "unparsed": 0,
    }


def test_hrbench_questions_with_the_same_words_keep_their_own_images(tmp_path: Path) -> None:
    rows = formats.hrbench_rows()
    for row in rows:
        row["question"] = "What colour is the cup?"
    for order in (rows, [row for cycle in range(4) for row in (rows[cycle], rows[4 + cycle])]):
        task = HRBench(formats.tsv(tmp_path / "hr_bench_4k.tsv", order))
        assert sorted(Counter(example.group for example in task.examples).values()) == [4, 4]
        for example in task.examples:
            seed = int(example.id) // 4
            assert np.array_equal(
                np.asarray(open_image(example.image)), np.asarray(noise((40, 30), seed))
            )


def test_hrbench_without_a_letter(tmp_path: Path) -> None:
    rows = formats.hrbench_rows()
    rows[1]["answer"], rows[2]["answer"] = "", "AB"
    task = HRBench(formats.tsv(tmp_path / "hr_bench_4k.tsv", rows))
    assert [problem.split(":")[0] for problem in task.check()] == [
        "hr_bench_4k.tsv, line 3",
        "hr_bench_4k.tsv, line 4",
    ]


def test_vstar(tmp_path: Path) -> None:
    task = VStar(formats.vstar(tmp_path))
    assert task.check() == []
    assert len(task.examples) == 6
    first, last = task.examples[0], task.examples[-1]
    assert first.region == pytest.approx((0.25, 0.2, 0.5, 0.7))
    assert (first.single, last.single) == (True, False)
    assert last.region == (0, 0, 1, 1)
    assert [e.answer for e in task.examples] == ["A", "D", "C", "B", "A", "B"]
    always_a = values(task, replies(task.examples, lambda _: "A"))
    assert always_a["direct_attributes"] == 25
    assert always_a["relative_position"] == 50
    assert always_a["circular"] == 0


def test_textvqa(tmp_path: Path) -> None:
    task = TextVQA(formats.textvqa(tmp_path))
    assert task.check() == []
    (example,) = task.examples
    assert example.image == tmp_path / "train_images" / "abc.jpg"
    assert example.answer == "Coca-Cola"

    def accuracy(text: str) -> float:
        return values(task, {example.id: text})["accuracy"]

    assert accuracy("coca cola.") == 100
    assert accuracy("Pepsi") == pytest.approx(60)
    assert accuracy("water") == 0
    assert task.score(example, "Pepsi").right
    assert not task.score(example, "").right
    assert task.score(example, "").parsed is None


def test_refcoco(tmp_path: Path) -> None:
    task = RefCOCO(formats.refcoco(tmp_path))
    assert task.check() == []
    first, second = task.examples
    assert first.region == (0.25, 0.5, 0.75, 1.0)
    assert second.region == (0.0, 0.0, 0.5, 0.25)
    assert (first.prompt, second.prompt) == ("the dog", "it")
    hub = RefCOCO(formats.refcoco_parquet(tmp_path / "val.parquet"))
    assert hub.check() == []
    assert [e.region for e in hub.examples] == [(0.25, 0.5, 0.75, 1.0)] * 2


# What is wrong with data


def broken_mme(tmp_path: Path) -> Benchmark:
    formats.mme(tmp_path)
    (tmp_path / "color" / "1.txt").write_text("Is it red?\tYes\n", "utf-8")
    (tmp_path / "color" / "2.png").unlink()
    (tmp_path / "celebrity" / "questions_answers_YN" / "a.txt").write_text("Who?\tMe\n", "utf-8")
    return MME(tmp_path)


def broken_pope(tmp_path: Path) -> Benchmark:
    formats.pope(tmp_path)
    path = tmp_path / "coco_pope_popular.json"
    lines = path.read_text("utf-8").splitlines()
    lines[1] = lines[0]
    lines[2] = '{"question_id": 3}'
    path.write_text("\n".join(lines)[:-20], "utf-8")
    whole = tmp_path / "val2014" / "COCO_val2014_000000000001.jpg"
    whole.write_bytes(whole.read_bytes()[:200])
    return POPE(tmp_path)


def broken_mmbench(tmp_path: Path) -> Benchmark:
    rows = formats.mmbench_rows()
    rows[0]["answer"] = "E"
    rows[1]["image"] = rows[1]["image"][:-7]
    path = formats.tsv(tmp_path / "dev.tsv", rows)
    with path.open("a", encoding="utf-8") as file:
        file.write("2\tIs it tru")
    return MMBench(path)


def without_column(tmp_path: Path) -> Benchmark:
    rows = [{k: v for k, v in row.items() if k != "B"} for row in formats.mmbench_rows()]
    return MMBench(formats.tsv(tmp_path / "dev.tsv", rows))


def broken_vstar(tmp_path: Path) -> Benchmark:
    formats.vstar(tmp_path)
    (tmp_path / "direct_attributes" / "sa_1.json").write_text('{"question": "How?"}', "utf-8")
    (tmp_path / "relative_position" / "sa_1.json").write_text("{", "utf-8")
    return VStar(tmp_path)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            broken_mme,
            [
                "a.txt, line 1: no question with the answer Yes or No",
                "color/1 has 1 question instead of two",
                "there is no image",
            ],
        ),
        (
            broken_pope,
            [
                "line 3: lacks text, label, image",
                "line 4: no JSON (truncated?)",
                "id popular-1 comes more than once",
                "cannot be decoded",
            ],
        ),
        (
            broken_mmbench,
            [
                "line 2: the answer 'E' is no option",
                "columns instead of 11 (truncated?)",
                "the image is no base64",
            ],
        ),
        (without_column, ["lacks the column B; it has index, question, hint, A, C"]),
        (broken_vstar, ["no question, options and bbox", "no JSON"]),
    ],
    ids=["mme", "pope", "mmbench", "column", "vstar"],
)
def test_check_reports_every_problem(
    tmp_path: Path, make: Callable[[Path], Benchmark], expected: list[str]
) -> None:
    task = make(tmp_path)
    problems = task.check()
    for sentence in expected:
        assert any(sentence in problem for problem in problems), (sentence, problems)
    assert len(problems) == len(expected)
    with pytest.raises(CofError, match="--check"):
        _ = task.examples


def test_annotations_that_are_no_regions_are_problems(tmp_path: Path) -> None:
    task = MME(formats.mme(tmp_path))
    good = {"id": "color/1", "region": [0.1, 0.2, 0.5, 0.6], "num_objects": None, "single": True}
    bad: list[dict[str, Any]] = [
        {"region": [10, 20, 50, 60]},  # pixels
        {"region": [0.1, 0.2]},
        {"region": "middle"},
        {"num_objects": "many"},
        {"single": "yes"},
    ]
    lines = [good, *({**good, "id": "color/2", **wrong} for wrong in bad)]
    formats.json_lines(tmp_path / "annotations.jsonl", lines)
    problems = task.check()
    assert [problem.split(":")[0] for problem in problems] == [
        f"annotations.jsonl, line {number}" for number in range(2, 7)
    ]
    assert "pixels divided" in problems[0]
    formats.json_lines(tmp_path / "annotations.jsonl", lines[:1])
    examples = MME(tmp_path).examples
    assert [e.region for e in examples[:3]] == [(0.1, 0.2, 0.5, 0.6)] * 2 + [None]


def test_records_of_the_wrong_kind_are_problems(tmp_path: Path) -> None:
    path = formats.textvqa(tmp_path) / "TextVQA_0.5.1_val.json"
    path.write_text('{"data": [1, {"question_id": 7}]}', "utf-8")
    assert [problem.split(": ")[1] for problem in TextVQA(path).check()] == [
        f"lacks {', '.join(NEEDED)}",
        f"lacks {', '.join(NEEDED[1:])}",
    ]
    lines = formats.refcoco(tmp_path / "refcoco")
    whole = json.loads(lines.read_text("utf-8").splitlines()[0])
    wrong: list[dict[str, Any]] = [{"bbox": ["nan", 0, 9, 9]}, {"width": "wide", "height": 30}]
    formats.json_lines(lines, [{**whole, **other} for other in wrong])
    assert RefCOCO(lines).check() == [
        "refcoco_val.jsonl, line 1: bbox is empty",
        "refcoco_val.jsonl, line 2: width and height are no numbers above 0",
    ]


def test_blank_lines_of_a_table_are_left_out(tmp_path: Path) -> None:
    path = formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows())
    whole = MMBench(path).examples
    path.write_bytes(path.read_bytes() + b"\n")
    assert MMBench(path).check() == []
    assert MMBench(path).examples == whole


def test_empty_and_missing_data(tmp_path: Path) -> None:
    with pytest.raises(CofError, match=r"There is no .*nowhere"):
        MME(tmp_path / "nowhere")
    for benchmark in (MME, POPE, MMBench, HRBench, VStar, TextVQA, RefCOCO):
        with pytest.raises(CofError, match=r"holds no|has no"):
            _ = benchmark(tmp_path).examples
    empty = tmp_path / "dev.tsv"
    empty.touch()
    assert any("lacks the columns" in problem for problem in MMBench(empty).check())
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(CofError, match="no parquet file"):
        _ = POPE(tmp_path / "test.parquet").examples


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = formats.pope_parquet(tmp_path / "test.parquet")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CofError, match=r"pip install 'cof\[eval\]'"):
        _ = POPE(path).examples


def test_options_of_benchmarks(tmp_path: Path) -> None:
    formats.mme(tmp_path)
    for wrong, message in (
        ({"rules": "mine"}, "There are no rules"),
        ({"prompt_style": "mine"}, "There is no prompt style"),
        ({"shard": (3, 2)}, "A shard is i/n"),
        ({"images": tmp_path / "nowhere"}, "There is no"),
    ):
        with pytest.raises(CofError, match=message):
            MME(tmp_path, **wrong)  # type: ignore[arg-type]


def test_shards_and_limits_leave_groups_whole(tmp_path: Path) -> None:
    path = formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows())
    whole = MMBench(path).examples
    parts = [MMBench(path, shard=(part, 2)).examples for part in (1, 2)]
    assert [len(part) for part in parts] == [4, 2]
    assert sorted(e.id for part in parts for e in part) == sorted(e.id for e in whole)
    assert MMBench(path, limit=1).examples == whole[:4]
    assert MMBench(path, limit=5).examples == whole
    assert select(whole, 4, (1, 1)) == whole[:4]
    pope = POPE(formats.pope(tmp_path / "pope"), limit=4).examples  # of every kind some
    assert [e.id for e in pope] == ["random-1", "random-2", "popular-1", "adversarial-1"]
    with pytest.raises(CofError, match="no questions for this part, limit and shard"):
        _ = MMBench(path, shard=(3, 3)).examples


@pytest.mark.parametrize("rules", RULES)
def test_the_right_answers_are_right_under_every_rule_set(tmp_path: Path, rules: Any) -> None:
    tasks: list[Benchmark] = [
        MME(formats.mme(tmp_path / "mme"), rules),
        POPE(formats.pope(tmp_path / "pope"), rules),
        MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows()), rules),
    ]
    for task in tasks:
        for example in task.examples:
            score = task.score(example, example.answer)
            assert (score.parsed, score.right) == (example.answer, True)


def test_base64_of_a_image_is_found_by_its_place_in_the_file(tmp_path: Path) -> None:
    rows = formats.mmbench_rows()
    path = formats.tsv(tmp_path / "dev.tsv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte-order mark shifts all places
    task = MMBench(path)
    image = task.examples[-1].image
    assert not isinstance(image, Path)
    assert image.load() == base64.b64decode(rows[1]["image"])
