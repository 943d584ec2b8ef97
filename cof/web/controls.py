"""The page's controls: what there is to choose, and from values to a view and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from cof.errors import CofError
from cof.focuses import FOCUSES
from cof.grounders import GROUNDERS
from cof.settings import Settings
from cof.viz.panels import USED
from cof.web.view import MASK_SIDE, VARIED, View, read_boxes, value_of, vary, write_boxes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cof.geometry.boxes import XYXY

LookAt = Literal["found", "box", "mask"]

STRENGTH_RANGE = (0.5, 64.0)
EXPAND_RANGE = (0.5, 4.0)


class Controls(NamedTuple):
    """The values of the controls, in their order on the page.

    Attributes:
        question: what is asked.
        look_at: where the model looks: at the place that it finds, at the visitor's own boxes, or
            at the visitor's own mask.
        boxes: the own boxes as text (`cof.web.view.read_boxes`).
        grounder, focus, strength, expand: as in `cof.settings.Settings`.
        compare: whether a second answer is given, with the settings that follow.
    """

    question: str
    look_at: LookAt
    boxes: str
    grounder: str
    focus: str
    strength: float
    expand: float
    compare: bool
    other_grounder: str
    other_focus: str
    other_strength: float
    other_expand: float

    def view(
        self, defaults: Settings, image: str, example: bool, mask: NDArray[np.bool_] | None
    ) -> View:
        """What the page is to show.

        Args:
            defaults: all settings that the page has no control for.
            image: file name of the image.
            example: whether it is one of the package's own.
            mask: what was drawn, if anything was.

        Raises:
            CofError: a value is refused, or what is to be looked at was not drawn.
        """
        chosen = [self[3:7], self[8:12]] if self.compare else [self[3:7]]
        boxes = read_boxes(self.boxes) if self.look_at == "box" else ()
        if self.look_at == "box" and not boxes:
            raise CofError("There is no box yet: brush over the place, or type four numbers.")
        if self.look_at == "mask" and mask is None:
            raise CofError("Nothing is drawn yet: brush over the place in the image.")
        return View(
            image,
            example,
            self.question,
            tuple(vary(defaults, dict(zip(VARIED, values, strict=True))) for values in chosen),
            boxes,
            mask if self.look_at == "mask" else None,
        )


def controls_of(view: View) -> Controls:
    """The values that lead to a view.

    Raises:
        CofError: a setting has a value that the page does not offer.
    """
    first, other = view.settings[0], view.settings[-1]
    for settings in view.settings:
        _check_range("strength (lambda)", value_of(settings, "strength"), STRENGTH_RANGE)
        _check_range("expand (alpha)", settings.expand, EXPAND_RANGE)
        if settings.grounder_name not in grounder_choices(settings):
            offered = ", ".join(grounder_choices(settings))
            raise CofError(
                f"The page offers the grounders {offered}, not {settings.grounder_name!r}."
            )
    return Controls(
        question=view.question,
        look_at="box" if view.boxes else "found" if view.mask is None else "mask",
        boxes=write_boxes(view.boxes),
        **{name: value_of(first, name) for name in VARIED},
        compare=len(view.settings) > 1,
        **{f"other_{name}": value_of(other, name) for name in VARIED},
    )


def grounder_choices(settings: Settings) -> dict[str, str]:
    """The grounders to choose from, with what each does.

    Those that need what the page cannot ask for are left out: `given`, which its box and mask
    stand for, and `detector` where none is set.
    """
    choices = {name: grounder.help for name, grounder in GROUNDERS.items() if name != "given"}
    if settings.option("detector") is None:
        del choices["detector"]
    return {
        "prompt": choices.pop("prompt"),
        "prompt+attention": "both, and the surer answer of the two",
        **choices,
    }


def focus_choices() -> dict[str, str]:
    """The focuses to choose from, with what each does."""
    return {name: focus.help for name, focus in FOCUSES.items()}


def read_strokes(layers: Sequence[Image.Image]) -> tuple[NDArray[np.bool_], XYXY] | None:
    """What was brushed over.

    Args:
        layers: RGBA images of one size over the whole image, transparent where nothing is drawn.

    Returns:
        A mask `(H, W)` of at most `MASK_SIDE` each way, and the box around it in 0..1 with three
        decimals; None if nothing is drawn.
    """
    alphas = [np.asarray(layer.getchannel("A")) for layer in layers]
    drawn = np.any([alpha > 0 for alpha in alphas], axis=0) if alphas else np.zeros((1, 1), bool)
    if not drawn.any():
        return None
    height, width = drawn.shape
    ys, xs = np.nonzero(drawn)
    box = (
        np.floor(xs.min() / width * 1000) / 1000,
        np.floor(ys.min() / height * 1000) / 1000,
        np.ceil((xs.max() + 1) / width * 1000) / 1000,
        np.ceil((ys.max() + 1) / height * 1000) / 1000,
    )
    scale = min(1.0, MASK_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    share = Image.fromarray(drawn.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    shares = np.asarray(share)
    x1, y1, x2, y2 = (float(value) for value in box)
    return shares >= min(128, int(shares.max())), (x1, y1, x2, y2)


def draw_strokes(mask: NDArray[np.bool_], image_wh: tuple[int, int]) -> Image.Image:
    """A mask as an RGBA layer over an image of this size, as if it had been brushed."""
    alpha = Image.fromarray(mask.astype(np.uint8) * 255).resize(image_wh, Image.Resampling.NEAREST)
    layer = Image.new("RGBA", image_wh, (*USED, 255))
    layer.putalpha(alpha)
    return layer


def _check_range(name: str, value: float, limits: tuple[float, float]) -> None:
    if not limits[0] <= value <= limits[1]:
        raise CofError(f"The page takes {name} from {limits[0]:g} to {limits[1]:g}, not {value:g}.")
