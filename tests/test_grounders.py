"""Grounders that read the model's states: their maps by hand, and where their boxes land."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from models import GRID, HEADS, LAYERS, checkpoint, picture
from zoo import zoo

from cof.engines.transformers.engine import TransformersEngine
from cof.errors import CofError
from cof.geometry.boxes import centre, contains_point
from cof.geometry.heatmap import HeatMap, make_heat_map
from cof.geometry.regions import Region
from cof.grounders import GROUNDERS, Logits, RelativeAttention, Relevance
from cof.grounders.maps import GENERIC, ground_heat_map
from cof.pipeline import CoF
from cof.prompting.dialects import SHORT_ANSWER
from cof.settings import Settings
from cof.tiny import checkpoint_path
from cof.tiny.benchmark import questions, scene_seed
from cof.tiny.scenes import make_scene, render
from cof.types import Grounding, Request

READING = ["attention", "relevance", "logits"]
QUESTION = "What color is the red bus?\nAnswer the question using a single word or phrase."


@functools.cache
def engine(name: str = "llava") -> TransformersEngine:
    return TransformersEngine.from_pretrained(checkpoint(name))


def locate(name: str, requests: list[Request], **settings: object) -> list[Grounding]:
    return GROUNDERS[name](**settings).locate(engine(), requests)


def rows() -> list[Request]:
    return [
        Request(picture((60, 40)), QUESTION),
        Request(picture((40, 90), 1), "Is there a dog under the green tree?"),
        Request(picture((64, 64), 2), "Where is the cat?"),
    ]


def mask_of(heat: np.ndarray, request: Request) -> np.ndarray:
    size = request.image.size
    return make_heat_map(heat, engine().token_centres(size), size).mask()


def visible(request: Request) -> np.ndarray:
    return np.isfinite(engine().token_centres(request.image.size)[..., 0])


def found(grounding: Grounding) -> Region:
    assert grounding.region is not None
    return grounding.region


def assert_same(one: Grounding, other: Grounding) -> None:
    assert found(one).boxes == found(other).boxes
    np.testing.assert_allclose(found(one).heat_map, found(other).heat_map, atol=1e-3)
    assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_a_flat_map_points_nowhere() -> None:
    edges = np.linspace(0.0, 1.0, 5)
    flat = ground_heat_map(HeatMap(np.ones((4, 4)), edges, edges), (9, 9), 0.0)
    assert flat == Grounding(None, reason=flat.reason)
    assert "nowhere in particular" in flat.reason


@pytest.mark.parametrize("name", READING)
class TestEveryReader:
    def test_a_box_on_cells_and_a_map_over_the_whole_image(self, name: str) -> None:
        for request, grounding in zip(rows(), locate(name, rows()), strict=True):
            region = found(grounding)
            ((x1, y1, x2, y2),) = region.boxes
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            assert region.mask is None
            assert region.heat_map is not None
            assert region.heat_map.dtype == np.float32
            assert region.heat_map.min() >= 0
            assert region.heat_map.max() == 1
            width, height = request.image.size
            rows_, columns = region.heat_map.shape
            # padded to a square: the longer side has all the tokens
            assert max(rows_, columns) == GRID * 8
            assert min(rows_, columns) >= GRID * 8 * min(width, height) / max(width, height)
            assert grounding.confidence is not None
            assert 0 < grounding.confidence <= 1

    def test_batch_is_single_and_encoded_images_change_nothing(self, name: str) -> None:
        images = engine().encode([row.image for row in rows()], prefill=True)
        kept = [Request(image, row.prompt) for image, row in zip(images, rows(), strict=True)]
        alone = [locate(name, [row])[0] for row in rows()]
        for other in (alone, locate(name, kept)):
            for a, b in zip(locate(name, rows()), other, strict=True):
                assert_same(a, b)

    def test_the_question_matters(self, name: str) -> None:
        image = picture((64, 64))
        one, other, again = locate(
            name,
            [Request(image, f"Where is the {thing}?") for thing in ("red bus", "zebra", "red bus")],
        )
        assert not np.allclose(found(one).heat_map, found(other).heat_map, atol=0.01)
        np.testing.assert_allclose(found(one).heat_map, found(again).heat_map, atol=1e-4)

    def test_boxes_that_are_not_sure_count_as_not_found(self, name: str) -> None:
        (sure,) = locate(name, rows()[:1])
        assert sure.confidence is not None
        (unsure,) = locate(name, rows()[:1], min_confidence=min(1.0, sure.confidence + 0.01))
        assert unsure.region is None
        assert "below" in unsure.reason
        assert unsure.confidence == sure.confidence

    def test_needs_an_engine_that_tells_its_states(self, name: str) -> None:
        cof = CoF(FakeEngine({}), Settings(grounder=name))  # type: ignore[arg-type]
        with pytest.raises(CofError, match="use grounder 'prompt'"):
            cof(picture((20, 20)), "Where?")


class TestAttention:
    @pytest.mark.parametrize("layers", [None, (0, 2)])
    def test_relative_attention_by_hand(self, layers: tuple[int, ...] | None) -> None:
        request = rows()[0]
        looked = RelativeAttention(layers, average="arithmetic")
        (grounding,) = looked.locate(engine(), [request])
        asked, generic = (
            engine().image_attentions([Request(request.image, text + SHORT_ANSWER)])[0]
            for text in ("What color is the red bus?", GENERIC)
        )
        chosen = [1] if layers is None else list(layers)  # 14/32 of three layers
        ours, theirs = (of[chosen].mean((0, 1)) for of in (asked, generic))
        heat = ours / (theirs + theirs[visible(request)].mean())
        np.testing.assert_allclose(found(grounding).heat_map, mask_of(heat, request), rtol=1e-4)

    def test_a_geometric_mean_of_chosen_heads_by_hand(self) -> None:
        """Heads are numbered through all layers; each has a relative map of its own."""
        request = rows()[0]
        looked = RelativeAttention(grounder_heads=(1, HEADS + 1))
        (grounding,) = looked.locate(engine(), [request])
        product = np.ones((GRID, GRID))
        for layer in (0, 1):
            ours, theirs = (
                engine().image_attentions([Request(request.image, text + SHORT_ANSWER)])[0][
                    layer, 1
                ]
                for text in ("What color is the red bus?", GENERIC)
            )
            product *= ours / (theirs + theirs[visible(request)].mean())
        heat = mask_of(np.sqrt(product), request)
        np.testing.assert_allclose(found(grounding).heat_map, heat, rtol=1e-4)
        mean = RelativeAttention(grounder_heads=tuple(range(HEADS, 2 * HEADS)))
        (whole,) = RelativeAttention((1,)).locate(engine(), [request])
        assert_same(mean.locate(engine(), [request])[0], whole)

    def test_one_pass_for_each_question_and_one_for_each_picture(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[str]] = []
        read = TransformersEngine.image_attentions

        def counting(self: TransformersEngine, requests: list[Request], layers: Any) -> object:
            seen.append([request.prompt for request in requests])
            return read(self, requests, layers)

        monkeypatch.setattr(TransformersEngine, "image_attentions", counting)
        image, encoded = picture((64, 64)), engine().encode([picture((40, 40))])[0]
        locate("attention", [Request(of, q) for of in (image, encoded) for q in ("a?", "b?", "c?")])
        assert [len(prompts) for prompts in seen] == [8]
        assert [prompt.startswith(GENERIC) for prompt in seen[0]] == [False] * 6 + [True] * 2

    def test_layers_it_does_not_have(self) -> None:
        with pytest.raises(
            CofError, match=f"grounder_layers must be numbers from 0 to {LAYERS - 1}"
        ):
            locate("attention", rows(), grounder_layers=(LAYERS,))
        with pytest.raises(CofError, match=f"grounder_heads must be .* to {LAYERS * HEADS - 1}"):
            locate("attention", rows(), grounder_heads=(LAYERS * HEADS,))

    def test_instructblip_through_its_q_former_and_blip2_not_at_all(self) -> None:
        request = Request(picture((60, 40)), "Where is the bus?")
        (through,) = RelativeAttention().locate(engine("instructblip"), [request])
        assert found(through).boxes
        (nothing,) = RelativeAttention().locate(engine("blip-2"), [request])
        assert nothing.region is None
        assert "nowhere in particular" in nothing.reason


class TestRelevance:
    @pytest.mark.parametrize("states", ["values", "keys"])
    def test_by_hand(self, states: str) -> None:
        request = Request(picture((60, 40)), "Is the red bus near a cat?")
        (grounding,) = Relevance(states=states).locate(engine(), [request])  # type: ignore[arg-type]
        shown = visible(request)

        def scaled(of: np.ndarray) -> np.ndarray:
            return np.where(shown, (of - of[shown].min()) / np.ptp(of[shown]), 0)

        heats = []
        for phrase in ("red bus", "cat"):
            asked = Request(request.image, f"Is there a {phrase} in the image?")
            (cosines,) = engine().phrase_similarities([asked], [phrase], states)  # type: ignore[arg-type]
            product = np.ones((GRID, GRID))
            for token in range(len(phrase)):  # a letter is a token
                mean = sum(scaled(cosines[layer, token]) for layer in (1, 2)) / 2
                product *= scaled(mean)
            heats.append(scaled(product))
        expected = mask_of(np.maximum(*heats), request)
        np.testing.assert_allclose(found(grounding).heat_map, expected, atol=1e-4)

    def test_layers_that_keep_no_keys(self) -> None:
        """Qwen3.5's first layer attends linearly; by itself it leaves nothing to compare."""
        made = TransformersEngine.from_pretrained(zoo("qwen3_5"))
        request = Request(picture((60, 40)), "Where is the red bus?")
        (mixed,) = Relevance(grounder_layers=(0, 1)).locate(made, [request])
        (alone,) = Relevance(grounder_layers=(1,)).locate(made, [request])
        assert mixed == alone
        with pytest.raises(CofError, match="grounder_layers"):
            Relevance(grounder_layers=(0,)).locate(made, [request])


class TestLogits:
    def test_by_hand(self) -> None:
        request = Request(picture((60, 40)), "Is the red bus near a cat?")
        (grounding,) = Logits().locate(engine(), [request])
        (said,) = engine().word_probabilities([request.image], [["red", "bus", "cat"]])
        red, bus, cat = (of / of[visible(request)].sum() for of in said)
        expected = mask_of(np.maximum((red + bus) / 2, cat), request)
        np.testing.assert_allclose(found(grounding).heat_map, expected, rtol=1e-4)


def test_padding_has_no_heat_and_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tokens of the padding are, map and box are those of the visible ones."""
    request = Request(picture((80, 20)), "Where is the bus?")
    padding = ~visible(request)
    assert 0 < padding.sum() < padding.size
    quiet = {name: locate(name, [request])[0] for name in READING}

    def loud(made: TransformersEngine, *args: Any, read: Any) -> list[np.ndarray]:
        maps: list[np.ndarray] = read(made, *args)
        for number, of in enumerate(maps):
            of[..., padding] = 1000.0 * (number + 1)
        return maps

    for reader in ("image_attentions", "phrase_similarities", "word_probabilities"):
        changed = functools.partialmethod(loud, read=getattr(TransformersEngine, reader))
        monkeypatch.setattr(TransformersEngine, reader, changed)
    for name in READING:
        (a,), b = locate(name, [request]), quiet[name]
        assert found(a).boxes == found(b).boxes
        np.testing.assert_array_equal(found(a).heat_map, found(b).heat_map)


def test_attention_finds_the_object_on_the_embedded_model() -> None:
    """The box's centre lies in the object; a random point does so in one case of thirty."""
    made = TransformersEngine.from_pretrained(checkpoint_path())
    rng = random.Random(0)
    hits, chance = [], []
    for num_objects in (4, 8, 12, 16):
        for number in range(3):
            scene = make_scene(scene_seed("validation", num_objects, number), num_objects)
            image = render(scene)
            asked = [q for q in questions(scene) if q.kind in ("digit", "letter", "color")]
            requests = [Request(image, question.text + question.suffix) for question in asked]
            true = [question.region(scene) for question in asked]
            located = RelativeAttention().locate(made, requests)
            for grounding, box in zip(located, true, strict=True):
                hits.append(contains_point(box, centre(found(grounding).boxes[0])))
                chance.append(contains_point(box, (rng.random(), rng.random())))
    assert len(hits) > 50
    assert np.mean(chance) < 0.15
    assert np.mean(hits) > 0.7


@pytest.mark.parametrize("name", ["mllama", "kosmos2"])
def test_attention_where_the_image_is_looked_at_through_cross_attention(name: str) -> None:
    made = TransformersEngine.from_pretrained(zoo(name))
    located = RelativeAttention().locate(made, rows())
    for request, grounding in zip(rows(), located, strict=True):
        (alone,) = RelativeAttention().locate(made, [request])
        if grounding.region is None:  # Kosmos-2's latent queries do not read the question
            assert name == "kosmos2"
            assert "nowhere in particular" in grounding.reason
            assert alone.region is None
            continue
        assert_same(alone, grounding)
