"""Where data comes from: the hub, parquet, recognised text; and its parts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import formats
import huggingface_hub
import pytest
from huggingface_hub import errors
from models import picture as noise
from PIL import Image

from cof.errors import CofError
from cof.eval.data.hrbench import HRBench
from cof.eval.data.hub import local
from cof.eval.data.mmbench import MMBench
from cof.eval.data.pope import POPE
from cof.eval.data.scenes import Scenes
from cof.eval.data.textvqa import TextVQA
from cof.eval.data.vstar import VStar
from cof.eval.examples import Example, Score, image_digest
from cof.tiny.benchmark import write_benchmark

# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub of one folder; remembers what was asked for."""
    calls: list[Any] = []
    download = lambda id, **options: calls.append((id, options)) or str(tmp_path)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_paths_are_left_alone(hub: Any, tmp_path: Path) -> None:
    assert local("data/mme") == Path("data/mme")
    assert local(str(tmp_path)) == tmp_path
    assert hub == []


@pytest.mark.parametrize(
    ("address", "id", "revision", "within"),
    [
        ("hf://lmms-lab/MME", "lmms-lab/MME", None, None),
        ("hf://datasets/lmms-lab/MME/", "lmms-lab/MME", None, None),
        ("hf://lmms-lab/MMBench/en/dev", "lmms-lab/MMBench", None, "en/dev"),
        ("hf://a/b.c@refs-1/data", "a/b.c", "refs-1", "data"),
    ],
)
def test_addresses(
    hub: Any, tmp_path: Path, address: str, id: str, revision: str | None, within: str | None
) -> None:
    assert local(address) == tmp_path / (within or "")
    patterns = [within, f"{within}/*", f"{within}-*"] if within else None
    assert hub == [(id, {"repo_type": "dataset", "revision": revision, "allow_patterns": patterns})]


@pytest.mark.parametrize("address", ["hf://", "hf://mme", "hf://a/b@", "hf:///a/b"])
def test_what_is_no_address(hub: Any, address: str) -> None:
    with pytest.raises(CofError, match="is no data set's address"):
        local(address)
    assert hub == []


REPLY: Any = SimpleNamespace(headers={}, request=None, status_code=404)
"""What the hub's exceptions carry."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no cache"), "the hub cannot be reached"),
        (errors.GatedRepoError("gated", response=REPLY), "asks for consent"),
        (errors.RepositoryNotFoundError("404", response=REPLY), "is no data set"),
        (errors.HFValidationError("bad name"), "is no data set"),
        (OSError("disk full.\nmore"), "could not be downloaded: disk full[.]$"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(CofError, match=message) as caught:
        local("hf://owner/name")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("hf://owner/name")


def test_offline_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own behaviour without a network, not the fake's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CofError, match="not in this machine's cache"):
        local("hf://owner-of-nothing/name-of-nothing")


# Parquet, splits, recognised text


def test_splits_are_named_and_their_shards_read_together(tmp_path: Path) -> None:
    whole = formats.mmbench_rows()
    for number in (0, 1):
        rows = [{**whole[number], "image": formats.hub_image(number)}]
        formats.parquet(tmp_path / "data" / f"dev-0000{number}-of-00002.parquet", rows)
    assert [e.id for e in MMBench(tmp_path).examples[-2:]] == ["1", "1000001"]
    formats.mmbench_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(CofError, match=r"Name one of .*data/dev, .*data/test: each is a split"):
        _ = MMBench(tmp_path).examples
    assert len(MMBench(tmp_path / "data" / "dev").examples) == 6
    with pytest.raises(CofError, match="There is no"):
        MMBench(tmp_path / "data" / "de")


def test_parquet_is_the_same_as_tsv(tmp_path: Path) -> None:
    """Images are bytes on MMBench's pages of the hub, and base64 on HR-Bench's."""
    rows = formats.hrbench_rows()
    for task, table in (
        (
            MMBench(formats.mmbench_parquet(tmp_path / "hub" / "dev.parquet", row_group_size=1)),
            MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows())),
        ),
        (
            HRBench(formats.parquet(tmp_path / "4k.parquet", rows)),
            HRBench(formats.tsv(tmp_path / "4k.tsv", rows)),
        ),
    ):
        assert task.check() == []
        assert task.examples == table.examples
        for one, other in zip(task.examples, table.examples, strict=True):
            assert image_digest(one.image) == image_digest(other.image)
    rows[0]["image"] = rows[0]["image"][:-1]
    (problem,) = HRBench(formats.parquet(tmp_path / "broken.parquet", rows)).check()
    assert "broken.parquet, row 1: the image cannot be read" in problem


def test_pope_is_read_once_where_the_hub_has_it_twice(tmp_path: Path) -> None:
    formats.pope_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    formats.pope_parquet(tmp_path / "Full" / "random-00000-of-00001.parquet")
    assert POPE(tmp_path).check() == []
    assert len(POPE(tmp_path).examples) == len(POPE(tmp_path / "Full").examples) == 3


def test_textvqa_parquet_with_recognised_text(tmp_path: Path) -> None:
    task = TextVQA(formats.textvqa_parquet(tmp_path / "val.parquet"), prompt_style="llava-ocr")
    assert task.check() == []
    prompt = "what Brand is it?\nReference OCR token: Pepsi"
    assert task.examples[0].prompt.startswith(f"{prompt}\n")
    shown = replace(task, prompt_style="lmms-eval").examples[0].prompt
    assert shown.startswith("What brand is it?\n")


def test_boxes_are_fractions_of_the_upright_image(tmp_path: Path) -> None:
    """A image that EXIF turns is 30 wide and 40 high for whoever looks at it."""
    folder = formats.vstar(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((40, 30)).save(folder / "direct_attributes" / "sa_1.jpg", exif=exif)
    region = VStar(folder).examples[0].region
    assert region == pytest.approx((10 / 30, 6 / 40, 20 / 30, 21 / 40))


# Scenes


def test_scenes_are_a_benchmark(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "test", num_objects=(4,), scenes=2)
    task = Scenes(tmp_path)
    assert task.check() == []
    lines = (tmp_path / "questions.jsonl").read_text("utf-8").splitlines()
    for example, record in zip(task.examples, map(json.loads, lines), strict=True):
        single = len(record["targets"]) == 1
        region = record["region"] and tuple(record["region"])
        assert example == Example(
            record["id"], tmp_path / record["image"], record["question"], record["answer"],
            region, record["kind"], num_objects=4, single=single,
        )  # fmt: skip
        # every answer is among those that its kind can have
        assert task.score(example, example.answer) == Score(example.answer, True)
    said = {e.id: e.answer if e.kind != "digit" else "?" for e in task.examples}
    figures = task.figures(task.examples, said, "llava")
    kinds = Counter(e.kind for e in task.examples)
    fine = kinds["digit"] + kinds["letter"] + kinds["color"]
    assert figures["fine"].value == pytest.approx(100 * (fine - kinds["digit"]) / fine)
    assert (figures["digit"].value, figures["letter"].value) == (0, 100)
    assert figures["unparsed"].value == pytest.approx(100 * kinds["digit"] / len(said))


def test_a_question_of_no_known_kind(tmp_path: Path) -> None:
    line = {"id": "1", "image": "1.png", "question": "?", "answer": "7", "region": None}
    line |= {"kind": "taste", "num_objects": 4, "targets": []}
    formats.json_lines(tmp_path / "questions.jsonl", [line])
    with pytest.raises(CofError, match=r"line 1: .*\('taste'\)"):
        _ = Scenes(tmp_path).examples


# Parts


def many(folder: Path) -> Path:
    """POPE with three questions about each of 24 images."""
    lines = []
    for n in range(24):
        formats.save(folder / "val2014" / f"{n}.png", n)
        asked = {"question_id": n, "image": f"{n}.png", "text": f"Is it {n}?", "label": "yes"}
        lines.append(asked)
    for kind in ("random", "popular", "adversarial"):
        formats.json_lines(folder / f"coco_pope_{kind}.json", lines)
    return folder


def test_parts_keep_images_together_and_leave_nothing_out(tmp_path: Path) -> None:
    task = POPE(many(tmp_path))
    asked = {e.id for e in task.examples}
    smaller: set[str] = set()
    for share in (0.2, 0.4, 0.8):
        parts: Any = [
            replace(task, part=part, share=share).examples for part in ("validation", "test")
        ]
        ids = [{e.id for e in part} for part in parts]
        images = [{e.image for e in part} for part in parts]
        assert ids[0] | ids[1] == asked
        assert ids[0].isdisjoint(ids[1])
        assert images[0].isdisjoint(images[1])
        assert 72 * (share - 0.25) < len(ids[0]) < 72 * (share + 0.25)
        # a larger share adds to a smaller one
        assert smaller < ids[0]
        smaller = ids[0]
    assert len(replace(task, part="validation", share=1).examples) == 72
    # the image decides, not its name or its place
    elsewhere = (tmp_path / "val2014").rename(tmp_path / "elsewhere")
    moved = POPE(tmp_path, part="validation", share=0.8, images=elsewhere)
    assert {e.id for e in moved.examples} == smaller


def test_an_unreadable_image_has_no_part(tmp_path: Path) -> None:
    rows = [{**row, "image": "!" * 100} for row in formats.mmbench_rows()]
    path = formats.tsv(tmp_path / "dev.tsv", rows)
    assert len(MMBench(path, part="validation", share=1).examples) == 6
    with pytest.raises(CofError, match="cannot be read"):
        _ = MMBench(path, part="validation", share=0.5).examples
