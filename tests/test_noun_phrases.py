"""Which words of a question name objects: shortened forms, dashes, and nothing but signs."""

from __future__ import annotations

import pytest

from cof.prompting.noun_phrases import object_words


@pytest.mark.parametrize(
    ("question", "phrases"),
    [
        ("What's on the table?", ("table",)),
        ("What’s on the table?", ("table",)),
        ("Who's the girl in the man's hat?", ("girl", "man's hat")),
        ("Isn't the bus there?", ("bus",)),
        ("Can't you see the bus?", ("bus",)),
        ("Can you see a dog in the image?", ("dog",)),
        ("Is there a cat - or a red-haired dog?", ("cat", "red-haired dog")),
        ("Is it the 'STOP' sign?", ("STOP", "sign")),
        ("What is this: --?", ("What", "is", "this")),
        ("Is there a\tred  bus?", ("red  bus",)),
        ("图中有几只猫？", ("图中有几只猫",)),
        ("?", ("?",)),
        ("- ...?!", ("- ...?!",)),
    ],
)
def test_object_words(question: str, phrases: tuple[str, ...]) -> None:
    assert object_words(question) == phrases


@pytest.mark.parametrize("question", ["What's that red bus - near the tree?", "Is it 'STOP' now?"])
def test_phrases_are_parts_of_the_question(question: str) -> None:
    assert all(phrase in question for phrase in object_words(question))
