"""A validation part and a test part of data that comes without them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cof.eval.examples import Example
from cof.eval.images import image_digest

Part = Literal["all", "validation", "test"]


def part_of(examples: Sequence[Example], part: Part, share: float) -> list[Example]:
    """The questions of a part, in their order.

    The fingerprint of a question's image file decides its part, so that questions about one image
    are in the same part, in whatever file they stand; and more data changes nothing for those that
    were there before.

    Args:
        examples: of all parts.
        part: which.
        share: the share of the images that `validation` gets, 0..1.

    Raises:
        CofError: an image cannot be read.
    """
    if part == "all" or (part == "validation" and share == 1):
        return list(examples)
    below = {
        image: int(image_digest(image)[:16], 16) < share * 16**16
        for image in dict.fromkeys(example.image for example in examples)
    }
    return [example for example in examples if below[example.image] == (part == "validation")]
