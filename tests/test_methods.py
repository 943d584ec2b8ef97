"""Methods: the regions that are given, and keys that tell apart whatever may answer differently."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import AnyEngine
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import picture

from cof.errors import CofError
from cof.eval.examples import Example
from cof.eval.methods import PLAIN, Method, grounding_key, sample_box_elsewhere
from cof.focuses import FOCUSES
from cof.geometry.boxes import FULL, intersection
from cof.geometry.regions import Region
from cof.grounders import GROUNDERS, Grounder
from cof.options import options_of
from cof.pipeline import CoF, Query
from cof.presets import preset
from cof.settings import Settings, values_of

BOX = (0.25, 0.25, 0.5, 0.5)
EXAMPLE = Example("id", Path("a.png"), "?", "7", region=BOX)


def test_a_box_elsewhere() -> None:
    for number in range(200):
        box = sample_box_elsewhere(BOX, f"{number}")
        assert intersection(box, BOX) == 0
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((0.25, 0.25))
        assert 0 <= min(box) <= max(box) <= 1
    same, other = sample_box_elsewhere(BOX, "1"), sample_box_elsewhere(BOX, "2")
    assert sample_box_elsewhere(BOX, "1") == same != other
    assert sample_box_elsewhere(FULL, "1") == FULL
    wide = (0.0, 0.0, 0.9, 0.9)  # cannot be disjoint: moved as far as may be
    assert intersection(sample_box_elsewhere(wide, "1"), wide) < 0.81


def test_given_regions() -> None:
    assert PLAIN.region(EXAMPLE, 0) is None
    assert Method(Settings(), "oracle").region(EXAMPLE, 0) == Region(boxes=(BOX,))
    control = Method(Settings(), "random").region(EXAMPLE, 0)
    assert control == Region(boxes=(sample_box_elsewhere(BOX, "0-id"),))
    assert Method(Settings(), "random").region(EXAMPLE, 1) != control
    whole = replace(EXAMPLE, region=None)
    assert Method(Settings(), "oracle").region(whole, 0) == Region(boxes=(FULL,))


def test_keys_name_what_is_not_usual() -> None:
    parity = Method(preset("paper-parity:llava-1.5-7b"))
    assert parity.key == (
        "prompt x attention expand=1.3 grounding_prompt=paper released=True scope=all strength=2"
    )
    whole = Method(parity.settings.changed(grounder="whole"))
    assert whole.key == "whole x attention released=True scope=all strength=2"
    assert Method(Settings(strength=1.0)).key == Method(Settings(focus="none")).key == "plain"
    assert Method(Settings(grounder="none"), "oracle").key != "plain"


VALUES: dict[str, Sequence[Any]] = {
    "grounder": (
        *("prompt", "attention", "relevance", "logits", "whole", "none", "whole+prompt"),
        *("prompt+attention", "attention+prompt", "relevance+whole"),
    ),
    "grounding_prompt": [
        *(None, "paper", "{question} box?", "{question} box? layers=1", "{first_line} box?"),
        *("{question} box? strength=2", "{question}  box?", "'{question} box?'"),
    ],
    "boxes": ("free", "template"),
    "grounding_max_new_tokens": (7, 128),
    "grounder_layers": (None, (0,), (0, 1), (3,)),
    "grounder_heads": (None, (0,), (0, 1), (3,)),
    "average": ("arithmetic", "geometric"),
    "states": ("values", "keys"),
    "min_confidence": (0.0, 0.3, 0.3000001, 0.6),
    "max_plain_confidence": (1.0, 0.9999999, 0.6, 0.3),
    "min_box": (0.0, 0.4, 0.40000001),
    "released": (True, False),
    "expand": (1.0, 1.3, 1.3000001, 2.0),
    "focus": ["attention", "soft", "contrast", "crop", "beside", "overlay", "none"],
    "strength": (1.0, 2.0, 2.0000001, 16.0),
    "scope": ("all", "text"),
    "layers": (None, (0,), (1,), (0, 1)),
    "heads": (None, (0,), (1,)),
    "guidance": (1.0, 1.3, 1.3000001),
    "overlay": ("frame", "blur", "dim"),
}
QUERIES = [
    Query(picture((40, 30), seed), question)
    for seed, question in ((0, "What is it?"), (1, "Which digit?"), (2, "Is it so?"), (3, "Who?"))
]


def test_every_setting_is_tried() -> None:
    owners = (Settings, *GROUNDERS.values(), *FOCUSES.values())
    names = {each.name for owner in owners for each in options_of(owner)}
    # these have tests of their own
    assert VALUES.keys() == (names | {"grounder", "focus"}) - {"detector", "system"}


@pytest.mark.filterwarnings("ignore:No box template")
@pytest.mark.parametrize("name", VALUES)
@settings(derandomize=True, database=None, max_examples=20, deadline=None)
@given(data=st.data())
def test_settings_that_ask_differently_have_different_keys(name: str, data: st.DataObject) -> None:
    """Two settings that differ in one field share a key only if they ask the same."""
    others = data.draw(st.sets(st.sampled_from(sorted(VALUES)), max_size=3))
    # most settings matter with some grounders and focuses alone
    drawn = {
        other: data.draw(st.sampled_from(VALUES[other]), other)
        for other in {"grounder", "focus", *others}
    }
    for kind, methods in (("grounder", GROUNDERS), ("focus", FOCUSES)):
        owners = [each for each, owner in methods.items() if hasattr(owner, name)]
        if owners and name not in ("name", "help"):
            drawn[kind] = data.draw(st.sampled_from(sorted({*owners} - {"detector"})), kind)
    one, two = (
        settings_of({**drawn, name: data.draw(st.sampled_from(VALUES[name]), name)})
        for _ in range(2)
    )
    assume(one != two)
    for given_regions in ("", "oracle"):
        methods = [Method(each, given_regions) for each in (one, two)]
        if methods[0].key == methods[1].key:
            assert asked(methods[0]) == asked(methods[1])
    for mine, other in itertools.product(one.grounders, two.grounders):
        if mine != other and grounding_key(mine) == grounding_key(other):
            assert found(mine, one) == found(other, two)


def settings_of(values: dict[str, Any]) -> Settings:
    """Options of methods that are not in use are left out."""
    used = {"grounder", "focus", *values_of(Settings), *values_of(FOCUSES[values["focus"]])}
    used = used.union(*(values_of(GROUNDERS[each]) for each in values["grounder"].split("+")))
    return Settings(**{name: value for name, value in values.items() if name in used})


def asked(method: Method) -> list[str]:
    """All requests that the pipeline sends to the engine, and its answers."""
    engine = AnyEngine()
    queries = QUERIES
    if method.given:
        queries = [replace(query, region=Region(boxes=(BOX,))) for query in QUERIES]
    try:
        answers = CoF(engine, method.settings).batch(queries)
    except CofError as error:
        return [str(error)]
    # the plain answer alone is asked with or without its key
    return [*engine.trace, *(answer.text for answer in answers)]


def found(grounder: Grounder, each: Settings) -> list[Any]:
    cof = CoF(AnyEngine(), each.changed(grounder=grounder))
    groundings = [cof.locate(query.image, query.question) for query in QUERIES]
    return [(g.region, g.text, g.confidence) for g in groundings]
