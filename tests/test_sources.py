"""Where data comes from: the hub, parquet, REFER's files, recognised text; and its parts."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import formats
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from models import picture as noise
from PIL import Image

from cof.errors import CofError, CofWarning
from cof.eval.chosen import Chosen
from cof.eval.data.hrbench import HRBench
from cof.eval.data.hub import local
from cof.eval.data.mmbench import MMBench
from cof.eval.data.mme import MME
from cof.eval.data.parts import part_of
from cof.eval.data.pope import POPE
from cof.eval.data.refcoco import RefCOCO
from cof.eval.data.scenes import Scenes
from cof.eval.data.textvqa import TextVQA
from cof.eval.data.vstar import VStar
from cof.eval.pictures import picture
from cof.eval.tasks import SceneTask
from cof.settings import Settings
from cof.tiny.benchmark import write_benchmark

# The hub

Hub = Callable[..., str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A hub of one folder; remembers what was asked for."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(id: str, **options: Any) -> str:
        calls.append((id, options))
        return str(tmp_path)

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
    hub: list[tuple[str, dict[str, Any]]],
    tmp_path: Path,
    address: str,
    id: str,
    revision: str | None,
    within: str | None,
) -> None:
    assert local(address) == (tmp_path / within if within else tmp_path)
    patterns = [within, f"{within}/*", f"{within}-*"] if within else None
    assert hub == [(id, {"repo_type": "dataset", "revision": revision, "allow_patterns": patterns})]


@pytest.mark.parametrize("address", ["hf://", "hf://mme", "hf://a/b@", "hf:///a/b"])
def test_what_is_no_address(hub: Any, address: str) -> None:
    with pytest.raises(CofError, match="is no data set's address"):
        local(address)
    assert hub == []


class _Reply:
    """What the hub's exceptions carry."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None
    status_code = 404


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no cache"), "the hub cannot be reached"),
        (errors.GatedRepoError("gated", response=_Reply()), "asks for consent"),  # type: ignore[arg-type]
        (errors.RepositoryNotFoundError("404", response=_Reply()), "The hub has no data set"),  # type: ignore[arg-type]
        (errors.HFValidationError("bad name"), "The hub has no data set"),
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
    assert str(caught.value).startswith(("hf://owner/name", "The hub"))


def test_offline_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own behaviour without a network, not the fake's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CofError, match="not in this machine's cache"):
        local("hf://owner-of-nothing/name-of-nothing")


def test_a_split_on_the_hub_is_read(hub: Any, tmp_path: Path) -> None:
    formats.mmbench_parquet(tmp_path / "en" / "dev-00000-of-00001-abc.parquet")
    formats.mmbench_parquet(tmp_path / "en" / "test-00000-of-00001-abc.parquet")
    task = MMBench(local("hf://lmms-lab/MMBench/en/dev"))
    assert task.check() == []
    assert len(task.examples) == 6


# Parquet, splits, recognised text


def test_mmbench_parquet_is_mmbench_tsv(tmp_path: Path) -> None:
    table = MMBench(formats.tsv(tmp_path / "dev.tsv", formats.mmbench_rows())).examples
    task = MMBench(formats.mmbench_parquet(tmp_path / "hub" / "dev.parquet", row_group_size=1))
    assert task.check() == []
    assert task.examples == table
    image = np.asarray(picture(task.examples[-1].image))
    assert np.array_equal(image, np.asarray(noise((40, 30), 1)))


def test_splits_are_named_and_their_shards_read_together(tmp_path: Path) -> None:
    whole = formats.mmbench_rows()
    for number in (0, 1):
        rows = [{**whole[number], "image": formats.hub_image(number)}]
        formats.parquet(tmp_path / "data" / f"dev-0000{number}-of-00002.parquet", rows)
    assert [e.id for e in MMBench(tmp_path).examples[-2:]] == ["1", "1000001"]
    formats.mmbench_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(CofError, match=r"Name one of .*data/dev, .*data/test: each is a split"):
        MMBench(tmp_path).num_examples()
    assert MMBench(tmp_path / "data" / "dev").num_examples() == 6
    with pytest.raises(CofError, match="There is no"):
        MMBench(tmp_path / "data" / "de")


def test_hrbench_parquet_holds_base64(tmp_path: Path) -> None:
    rows = formats.hrbench_rows()
    path = formats.parquet(tmp_path / "hr_bench_4k.parquet", rows)
    task = HRBench(path)
    assert task.check() == []
    table = HRBench(formats.tsv(tmp_path / "4k.tsv", rows)).examples
    assert [replace(e, image=Path()) for e in task.examples] == [
        replace(e, image=Path()) for e in table
    ]
    broken = [{**rows[0], "image": rows[0]["image"][:-1]}, *rows[1:]]
    problems = HRBench(formats.parquet(tmp_path / "broken.parquet", broken)).check()
    assert any("the picture is no base64" in problem for problem in problems)


def test_pope_is_read_once_where_the_hub_has_it_twice(tmp_path: Path) -> None:
    formats.pope_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    formats.pope_parquet(tmp_path / "Full" / "random-00000-of-00001.parquet")
    assert POPE(tmp_path).check() == []
    assert POPE(tmp_path).num_examples() == POPE(tmp_path / "Full").num_examples() == 3


def test_textvqa_with_recognised_text(tmp_path: Path) -> None:
    short = "Answer the question using a single word or phrase."
    task = TextVQA(formats.textvqa_ocr(tmp_path), prompt_style="llava-ocr")
    assert task.check() == []
    (example,) = task.examples
    assert example.prompt == f"what brand is it?\nReference OCR token: Coca, Cola\n{short}"
    assert example.question == "what brand is it?"
    assert replace(task, prompt_style="llava").examples[0].prompt == f"what brand is it?\n{short}"
    assert (
        replace(task, prompt_style="lmms-eval").examples[0].prompt == f"What brand is it?\n{short}"
    )
    hub = TextVQA(
        formats.textvqa_parquet(tmp_path / "hub" / "val.parquet"), prompt_style="llava-ocr"
    )
    assert hub.check() == []
    prompt = f"what Brand is it?\nReference OCR token: Pepsi\n{short}"
    assert hub.examples[0].prompt == prompt
    shown = replace(hub, prompt_style="lmms-eval").examples[0].prompt
    assert shown == f"What brand is it?\n{short}"


def test_recognised_text_that_is_not_there(tmp_path: Path) -> None:
    task = TextVQA(formats.textvqa(tmp_path), prompt_style="llava-ocr")
    (problem,) = task.check()
    assert "no recognised text (TextVQA_Rosetta_OCR_v0.2_val.json)" in problem
    with pytest.raises(CofError, match="mme has no recognised text"):
        MME(formats.mme(tmp_path / "mme"), prompt_style="llava-ocr")


def test_refer(tmp_path: Path) -> None:
    folder = formats.refer(tmp_path / "refcoco")
    task = RefCOCO(folder / "val")
    assert task.check() == []
    assert [(e.id, e.prompt, e.region) for e in task.examples] == [
        ("0", "the dog", (0.25, 0.5, 0.75, 1.0)),
        ("1", "left dog", (0.25, 0.5, 0.75, 1.0)),
    ]
    assert task.examples[0].image == folder / "train2014" / "COCO_1.jpg"
    assert [e.prompt for e in RefCOCO(folder / "unc-testA").examples] == ["the man"]
    (folder / "refs(google).p").write_bytes((folder / "refs(unc).p").read_bytes())
    with pytest.raises(CofError, match="names none of"):
        RefCOCO(folder / "val").num_examples()
    assert RefCOCO(folder / "google-val").num_examples() == 2
    with pytest.raises(CofError, match="has no split 'train', but testA, val"):
        RefCOCO(folder / "unc-train").num_examples()
    images = (folder / "train2014").rename(tmp_path / "coco")
    assert RefCOCO(folder / "unc-val", images=images).check() == []


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize("content", [pickle.dumps([_Runs()]), b"", b"\x80no pickle"])
def test_refer_runs_nothing_that_a_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    folder = formats.refer(tmp_path)
    (folder / "refs(unc).p").write_bytes(content)
    assert any("cannot be read" in problem for problem in RefCOCO(folder / "val").check())
    assert capsys.readouterr().out == ""


def test_refer_that_does_not_belong_together(tmp_path: Path) -> None:
    folder = formats.refer(tmp_path)
    (folder / "instances.json").write_text('{"images": [], "annotations": []}', "utf-8")
    assert any("do not belong together" in problem for problem in RefCOCO(folder / "val").check())


def test_boxes_are_fractions_of_the_upright_picture(tmp_path: Path) -> None:
    """A picture that EXIF turns is 30 wide and 40 high for whoever looks at it."""
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
    whole = SceneTask(tmp_path)
    assert task.examples == [whole.get_example(i) for i in range(whole.num_examples())]
    for example in task.examples:
        for text in (example.answer, "a 7 or so", "Yes.", ""):
            assert task.score(example, text) == whole.score(example, text)
    said = {e.id: e.answer if e.kind != "digit" else "?" for e in task.examples}
    figures = task.metrics(task.examples, said, "official")
    kinds = Counter(e.kind for e in task.examples)
    fine = kinds["digit"] + kinds["letter"] + kinds["color"]
    assert figures["fine"] == pytest.approx(100 * (fine - kinds["digit"]) / fine)
    assert (figures["digit"], figures["letter"]) == (0, 100)
    assert figures["unparsed"] == pytest.approx(100 * kinds["digit"] / len(said))
    (tmp_path / "questions.jsonl").write_text("{}\n", "utf-8")
    assert any("line 1 is no question" in problem for problem in Scenes(tmp_path).check())


# Parts, and the choice that was made on one of them


def many(folder: Path, pictures: int = 24) -> Path:
    """POPE with three questions about each picture."""
    for number in range(pictures):
        formats.save(folder / "val2014" / f"{number}.png", number)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": n, "image": f"{n}.png", "text": f"Is it {n}?", "label": "yes"}
            for n in range(pictures)
        ]
        formats.json_lines(folder / f"coco_pope_{kind}.json", lines)
    return folder


def chosen_on(task: Any, **settings: Any) -> Chosen:
    about = {"model": "m"}
    share = task.share if task.part == "validation" else 1.0
    return Chosen.on(task.examples, Settings(**settings), share=share, about=about)


def test_parts_keep_pictures_together_and_leave_nothing_out(tmp_path: Path) -> None:
    folder = many(tmp_path)
    whole = POPE(folder)
    validation = POPE(folder, part="validation", share=0.4)
    test = POPE(folder, part="test", chosen=chosen_on(validation))
    ids = [{e.id for e in task.examples} for task in (validation, test)]
    assert ids[0].isdisjoint(ids[1])
    assert ids[0] | ids[1] == {e.id for e in whole.examples}
    assert all(len(part) % 3 == 0 for part in ids)
    assert 3 * 24 * 0.15 < len(ids[0]) < 3 * 24 * 0.65
    images = [{e.image for e in task.examples} for task in (validation, test)]
    assert images[0].isdisjoint(images[1])
    # the picture decides, not its name or its place
    (folder / "val2014").rename(tmp_path / "elsewhere")
    moved = POPE(folder, part="validation", share=0.4, images=tmp_path / "elsewhere")
    assert {e.id for e in moved.examples} == ids[0]
    assert (
        POPE(folder, part="validation", share=1, images=tmp_path / "elsewhere").num_examples() == 72
    )


def test_a_share_grows_by_adding(tmp_path: Path) -> None:
    folder = many(tmp_path)
    parts = [POPE(folder, part="validation", share=s).examples for s in (0.2, 0.5, 0.8)]
    for smaller, larger in pairwise(parts):
        assert {e.id for e in smaller} < {e.id for e in larger}


def test_the_same_picture_in_two_rows_is_in_one_part(tmp_path: Path) -> None:
    rows = []
    for row in formats.mmbench_rows():
        rows += [
            {**row, "index": row["index"] + 10 * copy, "question": f"Which {copy}?"}
            for copy in range(8)
        ]
    path = formats.tsv(tmp_path / "dev.tsv", rows)
    whole = MMBench(path).examples
    found = [part_of(whole, "validation", share / 20) for share in range(1, 20)]
    assert {len(part) for part in found} <= {0, 16, 32, 48}
    assert any(len(part) in (16, 32) for part in found)
    for part in found:
        assert len({int(e.group) % 10 for e in part}) == {0: 0, 16: 1, 32: 1, 48: 2}[len(part)]


def test_the_test_part_waits_for_the_choice(tmp_path: Path) -> None:
    folder = many(tmp_path)
    with pytest.raises(CofError, match=r"not read before the settings are chosen: run `cof sweep"):
        POPE(folder, part="test")
    for options, message in (
        ({"part": "dev"}, "A part is all, validation, test"),
        ({"part": "validation", "share": 0.0}, "validation part's"),
        ({"part": "validation", "share": 1.5}, "validation part's"),
    ):
        with pytest.raises(CofError, match=message):
            POPE(folder, **options)  # type: ignore[arg-type]


def test_what_chose_is_not_measured(tmp_path: Path) -> None:
    folder = many(tmp_path / "data")
    validation = POPE(folder, part="validation", share=0.4)
    choice = chosen_on(validation)
    n = validation.num_examples()
    with pytest.raises(CofError, match=rf"{n} of these questions .* add --part test"):
        POPE(folder, chosen=choice).num_examples()
    assert POPE(folder, part="test", chosen=choice).num_examples() == 72 - n
    # other questions about the same pictures
    for kind in ("random", "popular", "adversarial"):
        path = folder / f"coco_pope_{kind}.json"
        path.write_text(path.read_text("utf-8").replace("Is it", "Is there"), "utf-8")
    with pytest.raises(CofError, match=rf"{n // 3} of these pictures"):
        POPE(folder, chosen=choice).num_examples()
    # a choice made on all of other data
    other = chosen_on(POPE(many(tmp_path / "other", 3)))
    with pytest.raises(CofError, match="measure on other data"):
        POPE(folder, chosen=other).num_examples()


def test_wordings_do_not_hide_a_question(tmp_path: Path) -> None:
    folder = many(tmp_path)
    choice = chosen_on(POPE(folder, part="validation", share=0.4))
    with pytest.raises(CofError, match="of these questions"):
        POPE(folder, prompt_style="tiny", chosen=choice).num_examples()


def test_a_choice_survives_its_file(tmp_path: Path) -> None:
    task = POPE(many(tmp_path), part="validation", share=0.4)
    choice = chosen_on(task, strength=7.0, layers=(0, 1))
    path = tmp_path / "out" / "chosen.json"
    choice.freeze(path)
    assert Chosen.read(path) == choice
    record = json.loads(path.read_text("utf-8"))
    assert record["about"]["date"].count("-") == 2
    assert record["settings"]["strength"] == 7
    assert len(record["questions"]) == task.num_examples()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"strength": 7.0', '"strength": 8.0'), "changed after"),
        (lambda text: text.replace('"share": 0.4', '"share": 0.1'), "changed after"),
        (lambda text: text[:50], "is no choice"),
        (lambda text: "[]", "is no choice"),
        (lambda text: "{}", "is no choice"),
        (lambda text: text.replace('"strength"', '"force"'), "There is no setting"),
    ],
)
def test_a_choice_that_was_changed_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "chosen.json"
    task = POPE(many(tmp_path), part="validation", share=0.4)
    chosen_on(task, strength=7.0).freeze(path)
    path.write_text(change(path.read_text("utf-8")), "utf-8")
    with pytest.raises(CofError, match=message):
        Chosen.read(path)
    with pytest.raises(CofError, match="`cof sweep` writes it"):
        Chosen.read(tmp_path / "none.json")


def test_a_choice_for_another_model_is_told_of(tmp_path: Path) -> None:
    choice = chosen_on(POPE(many(tmp_path)))
    choice.warn_of_another("path/to/m")
    with pytest.warns(CofWarning, match="chosen with m, and this is n"):
        choice.warn_of_another("owner/n")


def test_an_unreadable_picture_has_no_part(tmp_path: Path) -> None:
    rows = [{**row, "image": "!" * 100} for row in formats.mmbench_rows()]
    path = formats.tsv(tmp_path / "dev.tsv", rows)
    assert MMBench(path, part="validation", share=1).num_examples() == 6
    with pytest.raises(CofError, match="no base64"):
        MMBench(path, part="validation", share=0.5).num_examples()
