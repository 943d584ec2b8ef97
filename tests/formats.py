"""Tiny data sets in the very formats in which the benchmarks are distributed, made by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from models import picture


def png(seed: int, wh: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    picture(wh, seed).save(file, "PNG")
    return file.getvalue()


def save(path: Path, seed: int, wh: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed, wh))
    return path


def mme(folder: Path) -> Path:
    """The release: one task flat, one with its two folders."""
    asks = "Please answer yes or no."
    for number in (1, 2):
        save(folder / "color" / f"{number}.png", number)
        (folder / "color" / f"{number}.txt").write_text(
            f"Is it red? {asks}\tYes\nIs it blue? {asks}\tNo\n", "utf-8"
        )
    save(folder / "celebrity" / "images" / "a.jpg", 3)
    texts = folder / "celebrity" / "questions_answers_YN"
    texts.mkdir()
    (texts / "a.txt").write_text(f"Is it me? {asks}\tNo\nIs it you? {asks}\tYes", "utf-8")
    save(folder / "code_reasoning" / "0001.png", 4)
    (folder / "code_reasoning" / "0001.txt").write_text(f"One?\tYes\nTwo? {asks}\tNo\n\n", "utf-8")
    return folder


def mme_results(folder: Path) -> Path:
    """The files that the official script reads, prediction included."""
    save(folder / "color" / "images" / "1.png", 1)
    lines = "1.png\tIs it red?\tYes\tyes\n1.png\tIs it blue?\tNo\tyes\n"
    (folder / "color.txt").write_text(lines, "utf-8")
    return folder


def mme_parquet(path: Path) -> Path:
    rows = [
        {"question_id": id, "image": hub_image(n), "question": q, "answer": a, "category": task}
        for n, (task, id) in enumerate((("color", "color/1.png"), ("OCR", "OCR/1.png")))
        for q, a in (("One? Please answer yes or no.", "Yes"), ("Two?", "No"))
    ]
    return parquet(path, rows, row_group_size=3)


def pope(folder: Path) -> Path:
    image = "COCO_val2014_00000000000{}.jpg"
    for number in (1, 2):
        save(folder / "val2014" / image.format(number), number)
    asked = ((1, "dog", "yes"), (2, "cat", "no"), (3, "car", "yes"), (4, "cup", "no"))
    lines = [
        {"question_id": n, "text": f"Is there a {name} in the image?", "label": label}
        | {"image": image.format(1 + n // 3)}
        for n, name, label in asked
    ]
    for kind in ("random", "popular", "adversarial"):
        json_lines(folder / f"coco_pope_{kind}.json", lines)
    return folder


def pope_parquet(path: Path) -> Path:
    asked = (("dog", "yes", "popular"), ("cat", "no", "adversarial"), ("cup", "no", "random"))
    rows = [
        {"question_id": name, "question": f"Is there a {name}?", "answer": answer}
        | {"image_source": "COCO_1", "image": hub_image(1), "category": kind}
        for name, answer, kind in asked
    ]
    return parquet(path, rows)


def rotated(options: Sequence[str], answer: str, turns: int) -> dict[str, str]:
    """The cells of options and answer, `turns` places further."""
    shown = (*options[turns:], *options[:turns], "", "")
    cells = dict(zip("ABCD", shown, strict=False))
    return {**cells, "answer": "ABCD"[("ABCD".index(answer) - turns) % len(options)]}


def mmbench_rows(*, rotations: bool = False) -> list[dict[str, Any]]:
    asked = [('Which "one"\nis it?', "Look\tat it.", ("red", "blue", "green", "cyan"), "B")]
    asked += [("Is it so?", "nan", ("true", "false"), "A")]  # type: ignore[list-item]
    return [
        {
            "index": index + turns * 10**6,
            "question": question,
            "hint": hint,
            **rotated(options, answer, turns),
            "category": f"kind {index}",
            "l2-category": "all",
            "image": base64.b64encode(png(index)).decode(),
        }
        for index, (question, hint, options, answer) in enumerate(asked)
        for turns in range(len(options) if rotations else 1)
    ]


def tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def hrbench_rows() -> list[dict[str, Any]]:
    return [
        {
            "index": 4 * number + cycle,
            "question": f"What about {number}?",
            **rotated(("red", "blue", "green", "cyan"), "A", cycle),
            "category": kind,
            "cycle_category": cycle,
            "image": base64.b64encode(png(number)).decode(),
        }
        for number, kind in enumerate(("single", "cross"))
        for cycle in range(4)
    ]


def vstar(folder: Path) -> Path:
    for kind, options, boxes in (
        ("direct_attributes", ["red", "blue", "green", "cyan"], [[10, 6, 10, 15]]),
        ("relative_position", ["left", "right"], [[0, 0, 4, 3], [36, 27, 4, 3]]),
    ):
        save(folder / kind / "sa_1.jpg", 1)
        record = {"target_object": ["it"], "bbox": boxes, "question": "How?", "options": options}
        (folder / kind / "sa_1.json").write_text(json.dumps(record), "utf-8")
    return folder


def textvqa(folder: Path) -> Path:
    save(folder / "train_images" / "abc.jpg", 1)
    record = {"question_id": 7, "image_id": "abc", "question": "what brand is it?"}
    record["answers"] = ["Coca-Cola"] * 8 + ["pepsi"] * 2
    return data(folder / "TextVQA_0.5.1_val.json", record)


def textvqa_ocr(folder: Path) -> Path:
    """With Rosetta's words beside the questions."""
    words = {"image_id": "abc", "ocr_tokens": ["Coca", "Cola"]}
    none = {"image_id": "x", "ocr_tokens": []}
    return data(textvqa(folder) / "TextVQA_Rosetta_OCR_v0.2_val.json", words, none)


def data(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"data": records}), "utf-8")
    return path.parent


def refcoco(folder: Path) -> Path:
    save(folder / "train2014" / "COCO_1.jpg", 1)
    lines = [
        {"img_path": "coco/COCO_1.jpg", "expression": "the dog", "bbox": [10, 15, 30, 30]},
        {"image": "COCO_1.jpg", "sent": "it", "bbox": [0, 0, 40, 15], "width": 80, "height": 60},
    ]
    json_lines(folder / "refcoco_val.jsonl", lines)
    return folder / "refcoco_val.jsonl"


def refcoco_parquet(path: Path) -> Path:
    row = {"question_id": "1", "image": hub_image(1), "question": "Where?"}
    row |= {"answer": ["the dog", "left dog"], "bbox": [10.0, 15.0, 20.0, 15.0]}
    return parquet(path, [{**row, "file_name": "COCO_1.jpg"}])


def hub_image(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": None}


def parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path


def json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def textvqa_parquet(path: Path) -> Path:
    row = {"question_id": 7, "image_id": "abc", "question": "what Brand is it?"}
    row |= {"answers": ["pepsi"] * 10, "ocr_tokens": ["Pepsi"], "image": hub_image(1)}
    return parquet(path, [row])


def mmbench_parquet(path: Path, **options: Any) -> Path:
    """As on the hub: pictures as bytes, the wider category spelled otherwise."""
    rows = mmbench_rows()
    for row in rows:
        row["image"] = {"bytes": base64.b64decode(row["image"]), "path": None}
        row["L2-category"] = row.pop("l2-category")
    return parquet(path, rows, **options)
