"""The embedded model's data and training code: it is trained on what it will be asked."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cof.errors import CofError
from cof.geometry.boxes import Frame, centre
from cof.grounders import Prompt
from cof.prompting.box_parsing import parse_boxes, parse_released
from cof.prompting.dialects import LLAVA, PAPER, TINY, fill
from cof.tiny import checkpoint_path, resolve_model
from cof.tiny.questions import KINDS, YES_NO, absent
from cof.tiny.scenes import SIDE, make_scene, render
from lab.training.data import offset, pad_to_square
from lab.training.export import export, make_untrained
from lab.training.model import PATCH, image_features, normalize
from lab.training.see import patch_labels
from lab.training.speak import Trainer, soft_targets
from lab.training.tokenizer import ASSISTANT, LEVELS, make_processor, make_tokenizer
from lab.training.turns import PREFIX, ROW, ROWS, Batch, Words, pack


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(make_tokenizer())


def pixels_of(scene):
    return normalize(torch.from_numpy(pad_to_square(render(scene)).copy())[None])


@pytest.mark.parametrize("n", [1, 4, 8, 12, 16])
def test_scenes_are_the_same_every_time_and_their_objects_lie_apart(n):
    scene = make_scene(7, n)
    assert scene == make_scene(7, n)
    assert render(scene).tobytes() == render(scene).tobytes()
    covered = np.zeros((SIDE, SIDE), dtype=int)
    for thing in scene.things:
        x1, y1, x2, y2 = thing.xyxy
        covered[y1:y2, x1:x2] += 1
    assert covered.max() == 1
    assert len({t.name for t in scene.things}) == len({t.glyph for t in scene.things}) == n


def test_an_object_is_drawn_where_its_box_says():
    scene = make_scene(11, 1)
    drawn, empty = (np.asarray(render(s), int) for s in (scene, replace(scene, things=())))
    ys, xs = np.nonzero(np.abs(drawn - empty).sum(-1))
    drawn = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert np.abs(np.subtract(drawn, scene.things[0].xyxy)).max() <= 2


def test_scenes_that_are_not_square_are_padded_as_the_processor_pads_them(words):
    scene = make_scene(3, 5, square=False)
    image = render(scene)
    assert image.width != image.height
    processor = make_processor(words.tokenizer, PATCH)
    theirs = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, pixels_of(scene), atol=1e-5, rtol=0)


def test_answers_are_true():
    rng = random.Random(0)
    for seed in range(40):
        scene = make_scene(seed, 6)
        names = {t.name for t in scene.things}
        assert absent(scene, rng, "adversarial") not in names
        asked = {kind: ask(scene, rng) for kind, ask in KINDS.items()}
        (thing,) = asked["glyph"].things
        assert scene.things[thing].name in asked["glyph"].text
        assert scene.things[thing].glyph == asked["glyph"].answer
        assert asked["choice"].text.count("\n") == 4
        assert asked["choice"].answer in "ABCD"
        there = any(name in asked["existence"].text for name in names)
        assert asked["existence"].answer == ("yes" if there else "no")
        for question in filter(lambda each: each.things, asked.values()):
            x1, y1, x2, y2 = question.region(scene)
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
        one, two = (centre(scene.things[i].xyxy) for i in asked["position"].things)
        true = {"left": one[0] < two[0], "right": one[0] > two[0]}
        true |= {"above": one[1] < two[1], "below": one[1] > two[1]}
        (relation,) = (word for word in true if word in asked["position"].text.split())
        assert asked["position"].answer == ("yes" if true[relation] else "no")


def test_a_box_is_four_tokens_that_every_parser_reads(words):
    ids = words.box((5, 12, 20, 50))
    text = words.tokenizer.decode(ids)
    assert text == " [0.10, 0.24, 0.40, 1.00]"
    assert words(text) == ids
    frame = Frame.padded_square((SIDE, SIDE))
    expected = pytest.approx((0.1, 0.24, 0.4, 1.0))
    assert parse_boxes(text, frame, units="unit", order="xyxy").boxes[0] == expected
    assert parse_released(text, frame).boxes[0] == expected


def test_prompts_that_never_vary_are_one_token(words):
    question = "What digit is on the red star?"
    bare = words(question)
    for dialect in (TINY, PAPER):
        assert len(words(fill(dialect.template, question)[0])) == len(bare) + 1
    assert len(words(fill(LLAVA.template, " the red star")[0])) <= 6
    assert len(words(question + YES_NO)) == len(bare) + 1


@pytest.mark.parametrize("text", ["Où est le zèbre ?", "x=12.5", "漢字", "tab\tand  blanks"])
def test_any_text_survives_the_tokenizer(words, text):
    assert words.tokenizer.decode(words(text)) == text


def test_near_coordinates_share_the_credit(words):
    table = soft_targets(words, len(words.tokenizer))
    torch.testing.assert_close(table.sum(1), torch.ones(len(table)))
    slot = words.slots[0]
    assert table[slot[5]].argmax() == slot[5]
    assert table[slot[5], slot[6]] > table[slot[5], slot[9]] > 0 == table[slot[5], words.eos]


def test_patch_labels_name_the_object_in_its_patches():
    scene = make_scene(5, 3, square=False)
    labels = patch_labels(scene).reshape(SIDE // PATCH, SIDE // PATCH, -1)
    dx, dy = offset(scene.wh)
    for thing in scene.things:
        x, y = centre(thing.xyxy)
        column, row = int(x + dx) // PATCH, int(y + dy) // PATCH
        told = labels[row, column, 4:] / (LEVELS - 1) * SIDE
        drawn = np.add(thing.xyxy, (dx, dy, dx, dy))
        assert np.abs(told - drawn).max() <= 2


def test_packed_training_equals_the_model_asked_one_question(words):
    """Every branch of a packed batch has the logits that the genuine model gives the same prompt
    and answer alone, so what is trained is what is asked."""
    trainer = Trainer(words)
    model = trainer.model.float()
    scene = make_scene(21, 6)
    pixels = pixels_of(scene)
    rows = pack(scene, random.Random(4), words)
    batch = Batch.of([rows])
    with torch.no_grad():
        hidden, _ = trainer.forward(image_features(model, pixels), batch)
        packed = model.lm_head(hidden)[0]
        checked = set()
        for part in sorted({part for part in rows.part if part > 0 and part % 3}):
            at = [i for i in range(ROWS * ROW) if rows.part[i] in (part - part % 3, part)]
            ids = torch.tensor([[*words.prefix, *(int(t) for t in rows.tokens[at])]])
            alone = model(input_ids=ids, pixel_values=pixels).logits[0, PREFIX:]
            torch.testing.assert_close(packed[at], alone, atol=1e-4, rtol=1e-4)
            checked.add(part % 3)
    assert checked == {1, 2}


def test_the_prompt_of_training_is_the_chat_template(words):
    processor = make_processor(words.tokenizer, PATCH)
    asked = "What digit is on the red star?"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    ids = processor(images=Image.new("RGB", (64, 48)), text=text)["input_ids"][0]
    assert list(ids) == [*words.prefix, *words(asked + ASSISTANT)]


def test_an_exported_checkpoint_loads_whole_and_runs(tmp_path):
    from cof.engines.transformers.engine import TransformersEngine
    from cof.types import Decoding, Request

    model = make_untrained()
    export(model, tmp_path / "tiny")
    engine = TransformersEngine.from_pretrained(tmp_path / "tiny")
    assert engine.dialect == TINY
    theirs = engine.model.state_dict()
    for name, value in model.state_dict().items():
        if "layers.6." not in name and "post_layernorm" not in name:
            torch.testing.assert_close(theirs[name], value.float(), rtol=0, atol=0)
    image = render(make_scene(1, 4))
    asked = Request(image, fill(TINY.template, "the red star")[0])
    (reply,) = engine.generate([asked], Decoding(max_new_tokens=3))
    assert 1 <= len(reply.token_ids) <= 3
    (found,) = Prompt(grounding_max_new_tokens=3).locate(engine, [Request(image, "the red star")])
    assert found.text == reply.text


def test_export_replaces_checkpoints_and_nothing_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CofError, match="no checkpoint"):
        export(make_untrained(), tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "thesis.txt").unlink()
    for name in ("config.json", "old.json"):
        (tmp_path / name).touch()
    export(make_untrained(), tmp_path)
    assert not (tmp_path / "old.json").exists()


def test_a_batch_trains(words):
    """A few steps on one batch lower its loss: gradients reach what they should."""
    trainer = Trainer(words)
    model = trainer.model
    scene = make_scene(2, 3)
    batch = Batch.of([pack(scene, random.Random(0), words)])
    features = image_features(model, pixels_of(scene))
    spoken = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(spoken, lr=3e-3)
    losses = []
    for _ in range(6):
        loss, _ = trainer.loss(features.detach(), batch)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


def test_embedded_models_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(None) == resolve_model("tiny") == checkpoint_path()
    assert resolve_model("tiny-early") == checkpoint_path("tiny-early") != checkpoint_path()
    assert resolve_model("some/model") == "some/model"
    (tmp_path / "tiny").mkdir()  # such as results/tiny, seen from results
    assert resolve_model("tiny") == checkpoint_path()
    (tmp_path / "tiny" / "config.json").touch()
    assert resolve_model("tiny") == "tiny"
    assert resolve_model(None) == checkpoint_path()
