"""Pictures: pixels where they should be, numbers as the engine has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from models import GRID, checkpoint, picture
from numpy.typing import NDArray
from PIL import Image
from zoo import engine

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.boxes import XYXY, Frame
from cof.geometry.regions import EVERYTHING, Region
from cof.pipeline import Answer, CoF
from cof.settings import Settings
from cof.types import Decoding, Request
from cof.viz import draw, page, save_overlay
from cof.viz.page import check_path
from cof.viz.panels import FOUND, TRUE, USED, Tokens, heat, lines, overlay, read, spread

BOX = (0.25, 0.25, 0.75, 0.5)
REGION = Region(boxes=(BOX,))
DARK, BLACK = Image.new("RGB", (64, 64)), Image.new("RGB", (640, 640))
WHOLE = Frame.of_image()
SHORT = Decoding(max_new_tokens=2)


def asked(
    strength: float = 8.0,
    name: str = "llava",
    wh: tuple[int, int] = (60, 40),
    box: XYXY = BOX,
    **settings: Any,
) -> Answer:
    cof = CoF(engine(name), Settings(**{"strength": strength, "expand": 1.0, **settings}))
    return cof(picture(wh), "which digit?", boxes=[box], decoding=SHORT)


def scripted(**changes: Any) -> Answer:
    cof = CoF(FakeEngine(lambda request: "7"), Settings(expand=1.0))
    return replace(cof(Image.new("RGB", (64, 64)), "which digit?", boxes=[BOX]), **changes)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


class TestGrid:
    @pytest.mark.parametrize("wh", [(60, 40), (33, 90), (64, 64)])
    @pytest.mark.parametrize("make", [Frame.padded_square, Frame.centre_crop])
    def test_cells_are_where_the_frame_says(self, make: Any, wh: tuple[int, int]) -> None:
        frame, (height, width) = make(wh), (5, 7)
        shown = spread(Tokens(np.arange(35).reshape(height, width), frame), wh)
        assert shown.shape == (wh[1], wh[0])
        for x, y in np.ndindex(wh):
            u, v = frame.from_image(((x + 0.5) / wh[0], (y + 0.5) / wh[1], 1, 1))[:2]
            if min(abs(at - round(at)) for at in (u * width, v * height)) > 1e-6:  # on no border
                cell = int(v * height) * width + int(u * width)
                expected = cell if 0 <= u < 1 and 0 <= v < 1 else np.nan
                np.testing.assert_equal(shown[y, x], expected)

    @pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "paligemma", "kosmos2"])
    def test_the_grid_lies_where_the_tokens_look(self, name: str) -> None:
        """Whatever the numbers measure in which the model writes its boxes."""
        made, wh = engine(name), (120, 80)
        tokens = read(made, asked(name=name, wh=wh)).highlighted
        shown = spread(tokens, wh)
        assert (shown[20:40, 30:90] == 1).all()
        numbers = np.arange(tokens.values.size).reshape(tokens.values.shape)
        cells = spread(Tokens(numbers, tokens.frame), wh)
        for cell in np.ndindex(numbers.shape):
            x, y = made.token_centres(wh)[cell]
            assert cells[int(y * wh[1]), int(x * wh[0])] == numbers[cell]

    def test_lines_lie_between_tokens(self) -> None:
        shown = lines(Tokens(np.zeros((1, 4)), WHOLE), (16, 8))
        assert np.flatnonzero(shown[0]).tolist() == [4, 8, 12]


class TestOverlay:
    def test_box_pixels(self) -> None:
        panel = pixels(overlay(DARK, REGION))
        ys, xs = np.nonzero((panel == USED).all(-1))
        assert panel.shape == (640, 640, 3)
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (160, 160, 479, 319)
        assert not (panel[200:280, 200:440] == USED).all(-1).any()  # only the border

    def test_found_box_is_dashed(self) -> None:
        region = Region(boxes=((0.125, 0.125, 0.875, 0.625),))
        panel = pixels(overlay(BLACK, region, found=[BOX]))
        top = (panel[160, 165:475] == FOUND).all(-1)
        assert 0.3 < top.mean() < 0.7
        assert np.diff(top.astype(int)).any()
        same = pixels(overlay(BLACK, REGION, found=[BOX]))
        assert not (same == FOUND).all(-1).any()

    def test_true_region_is_dotted_whatever_was_looked_at(self) -> None:
        for region in (None, REGION, EVERYTHING):
            panel = pixels(overlay(BLACK, region, true=BOX))
            ys, xs = np.nonzero((panel == TRUE).all(-1))
            assert (xs.min(), ys.min()) == (160, 160)
            assert 0.3 < (panel[160, 165:475] == TRUE).all(-1).mean() < 0.7

    @pytest.mark.parametrize("box", [(-0.2, -0.1, 1.3, 1.2), (0.999, 0.999, 1.0, 1.0)])
    def test_boxes_at_and_beyond_the_edge(self, box: tuple[float, float, float, float]) -> None:
        panel = pixels(overlay(Image.new("RGB", (64, 32)), Region(boxes=(box,)), found=[BOX]))
        assert panel.shape == (320, 640, 3)
        assert (panel[-1, -1] == USED).all()

    def test_highlighted_tokens_stay_bright(self) -> None:
        mask = np.zeros((2, 2), dtype=bool)
        mask[0, 1] = True
        white = Image.new("RGB", (64, 64), "white")
        panel = pixels(overlay(white, Region(boxes=(BOX,)), highlighted=Tokens(mask, WHOLE)))
        assert (panel[100, 600] == 255).all()
        assert (panel[500, 600] < 200).all()

    def test_what_the_model_does_not_see_is_dark(self) -> None:
        frame = Frame.centre_crop((64, 32))
        white = Image.new("RGB", (64, 32), "white")
        mask = np.ones((2, 2), dtype=bool)
        panel = pixels(overlay(white, EVERYTHING, highlighted=Tokens(mask, frame)))
        assert panel[160, [50, 590]].max() < 60
        assert panel[100, 300].min() == 255

    def test_mask_outline(self) -> None:
        mask = np.zeros((64, 64), dtype=np.float32)
        mask[16:32, 16:48] = 1
        region = Region(boxes=(BOX,), mask=mask)
        panel = pixels(overlay(DARK, region))
        ys, xs = np.nonzero((panel == USED).all(-1))
        assert xs.min() == pytest.approx(160, abs=8)
        assert ys.max() == pytest.approx(320, abs=8)
        assert (panel[240, 320] == 0).all()

    def test_heat_grows_with_attention(self) -> None:
        shares = np.array([[0.0, 0.25], [0.5, 1.0]])
        panel = pixels(heat(DARK, Tokens(shares, WHOLE), 0.5))
        light = panel[[160, 160, 480, 480], [160, 480, 160, 480]].sum(-1).tolist()
        assert light[0] < light[1] < light[2] == light[3]  # above the top: as the top


class TestReadout:
    @pytest.mark.parametrize("name", ["llava", "instructblip", "blip-2"])
    def test_share_in_the_box_rises_with_strength(self, name: str) -> None:
        shares = []
        for strength in (2.0, 4.0, 16.0):
            found = read(engine(name), asked(strength, name))
            assert found.before.values.shape == (GRID, GRID)
            shares.append((found.inside(found.before), found.inside(found.after)))
        before, after = zip(*shares, strict=True)
        assert before[0] == pytest.approx(before[2])
        assert before[0] < after[0] < after[1] < after[2] < 1

    def test_is_the_mean_over_layers_and_heads(self) -> None:
        made, answer = engine("llava"), asked()
        found = read(made, answer)
        highlight = answer.settings.focus.apply(Request(answer.image, answer.question), REGION)
        weights = made.image_attentions([highlight])[0]
        np.testing.assert_allclose(found.after.values, weights.mean((0, 1)), rtol=1e-5)

    def test_nothing_highlighted(self) -> None:
        answer = CoF(engine("llava"), Settings(grounder="none"))(
            picture((60, 40)), "?", decoding=SHORT
        )
        found = read(engine("llava"), answer)
        assert (found.after, found.highlighted) == (None, None)

    def test_outside_the_crop_warns_no_second_time(self) -> None:
        """Warnings are errors in this test run."""
        made = TransformersEngine.from_pretrained(checkpoint("llava"), pad_to_square=False)
        answer = replace(
            asked(), image=picture((90, 30)), region=Region(boxes=((0.0, 0.0, 0.2, 1.0),))
        )
        found = read(made, answer)
        np.testing.assert_array_equal(found.before.values, found.after.values)
        draw(answer, made)


class TestPage:
    def test_three_panels_or_one(self) -> None:
        answer = asked(expand=1.5)
        alone, full = draw(answer), draw(answer, engine("llava"))
        assert 2.5 * alone.width < full.width < 3.5 * alone.width
        assert draw(answer, FakeEngine({})).size == alone.size  # which cannot tell

    def test_wide_images_go_below_one_another(self) -> None:
        answer = asked(wh=(100, 20))
        alone, full = draw(answer), draw(answer, engine("llava"))
        assert full.width < 1.2 * alone.width
        assert full.height > 2 * alone.height

    def test_caption_tells_right_from_wrong(self) -> None:
        answer = scripted(text="7", confidence=0.8)
        right, wrong = (pixels(draw(answer, truth=truth, plain="1")) for truth in ("7", "8"))
        neutral = pixels(draw(answer, plain="1"))
        green = [((p[..., 1] > p[..., 0].astype(int) + 60).sum()) for p in (right, wrong, neutral)]
        red = [((p[..., 0] > p[..., 2].astype(int) + 120).sum()) for p in (right, wrong, neutral)]
        assert green[0] > 0 == green[1] == green[2]
        assert red[2] < red[0] < red[1]  # the box is orange; one wrong answer; two of them

    @pytest.mark.parametrize(
        "changes",
        [
            *({"image": Image.new("RGB", wh)} for wh in ((1, 1), (4000, 20), (9, 1700))),
            {"text": ""},
            {"text": "long " * 500},
            {"question": "x" * 900},
            {"question": "Which?\nA. red\nB. blue", "region": None, "boxes": (), "reason": "No."},
            {"region": EVERYTHING, "raw_boxes": EVERYTHING.boxes},
            {"text": "\u4e2d\u6587 \u00e9\u00fc \u0436 \ufffd"},
        ],
    )
    def test_any_text_and_image_fits(self, changes: dict[str, Any]) -> None:
        page = pixels(draw(scripted(**changes), plain="plain"))
        assert (page[:, -28:] == 255).all()  # nothing runs into the margin
        assert (page[-28:] == 255).all()
        assert 200 < max(page.shape) < 2000

    def test_a_character_without_a_font_leaves_the_others(self) -> None:
        known, mixed = (pixels(draw(scripted(question=q))) for q in ("Какая?", "Какая? \U0001f44d"))
        np.testing.assert_array_equal(known[:60, :110], mixed[:60, :110])
        assert known[:60].min() < 100 < known[:60, 110:].min()

    @pytest.mark.parametrize(
        ("focus", "says"),
        [
            ("attention", "After: log(8) added to the scores of the bright tokens."),
            ("soft", "After: up to log(8) added to the scores of the bright tokens."),
        ],
    )
    def test_the_footnote_says_what_was_added(self, focus: str, says: str) -> None:
        answer = asked(focus=focus)
        assert page.footnote(answer, read(engine("llava"), answer)).endswith(
            f"all layers and heads. {says}"
        )


class TestSaving:
    @pytest.mark.parametrize(
        ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")]
    )
    def test_by_the_names_ending(self, tmp_path: Path, name: str, kind: str) -> None:
        answer = scripted()
        save_overlay(tmp_path / name, None, answer)
        with Image.open(tmp_path / name) as saved:
            assert (saved.format, saved.size) == (kind, draw(answer).size)

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("a", "no name for"),
            ("a.pdf", "no name for"),
            ("b/a.png", "no folder"),
            (".", "no name for"),
        ],
    )
    def test_refused_names(self, tmp_path: Path, name: str, says: str) -> None:
        with pytest.raises(CofError, match=says):
            check_path(tmp_path / name)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_full_disk(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            save_overlay(tmp_path / "a.png", None, scripted())
