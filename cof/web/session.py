"""One visitor's image, and the answers about it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cof.errors import CofError, CofWarning
from cof.images import load_image
from cof.limits import MAX_UPLOAD_PIXELS, UPLOAD_FORMATS
from cof.pipeline import CoF
from cof.query import check_question
from cof.viz.page import Panel, draw_panels
from cof.viz.panels import Readout, read

if TYPE_CHECKING:
    from cof.pipeline import Answer
    from cof.settings import Settings
    from cof.types import EncodedImage, Grounding
    from cof.web.view import View

DEMO = Path(__file__).parents[1] / "demo"


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows: the plain answer, one for each of the view's settings with its panels,
    and what the engine warned of."""

    plain: str
    answers: tuple[Answer, ...]
    panels: tuple[tuple[Panel, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Known:
    """What does not change while lambda, alpha and the focus do."""

    question: str
    plain: str | None = None
    readout: Readout | None = None
    groundings: dict[str, Grounding] = field(default_factory=dict)


class Session:
    """One visitor's image, encoded once, with what is known about the last question.

    Args:
        example: whether the image is one of the package's own.

    Raises:
        CofError: the file is no image, or one of too many pixels.
    """

    def __init__(self, cof: CoF, path: Path, *, example: bool = False) -> None:
        self.cof, self.name, self.example = cof, path.name, example
        try:
            data = path.read_bytes()
            image = load_image(data, max_pixels=MAX_UPLOAD_PIXELS, formats=UPLOAD_FORMATS)
        except CofError as error:
            raise CofError(str(error).replace("The image", self.name, 1)) from error
        self.encoded: EncodedImage = cof.encode(image)
        self._known = _Known("")
        self.drawn: str | None = None  # the box around the strokes on it

    def show(self, view: View) -> Shown:
        """Answer a view's question plainly and with each of its settings.

        The plain answer, its attention and the place that a grounder found are computed once for
        a question.

        Raises:
            CofError: what `CoF.batch` refuses.
        """
        question = check_question(view.question.strip())
        if question != self._known.question:
            self._known = _Known(question)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CofWarning)
            answers = tuple(self._answer(view, settings) for settings in view.settings)
            if self._known.plain is None:
                self._known.plain = answers[0].plain()
            panels = tuple(map(self._panels, answers))
        notes = dict.fromkeys(str(note.message) for note in caught)
        return Shown(self._known.plain, answers, panels, tuple(notes))

    def _answer(self, view: View, settings: Settings) -> Answer:
        asked, question = CoF(self.cof.engine, settings), self._known.question
        if view.boxes:
            return asked(self.encoded, question, boxes=view.boxes)
        # which of several places is kept depends on the answers, so they are looked for again
        several = len(settings.grounders) > 1 or settings.max_plain_confidence < 1
        if several or settings.changes_nothing:
            return asked(self.encoded, question)
        name, groundings = settings.grounder_name, self._known.groundings
        grounding = groundings.get(name) or asked.locate(self.encoded, question)
        groundings[name] = grounding
        if grounding.region is None:
            return asked(self.encoded, question)
        return replace(
            asked(self.encoded, question, region=grounding.region),
            settings=settings,
            grounder=name,
            grounding_text=grounding.text,
            confidence=grounding.confidence,
        )

    def _panels(self, answer: Answer) -> tuple[Panel, ...]:
        known = self._known
        known.readout = read(self.cof.engine, answer, image=self.encoded, known=known.readout)
        return tuple(draw_panels(answer, known.readout))


def open_example(cof: CoF, name: str) -> Session:
    """A session with one of the package's own images.

    Raises:
        CofError: there is none of that name.
    """
    names = [example["image"] for example in load_examples()]
    if name not in names:
        raise CofError(f"There is no example {name!r}; there are {', '.join(names)}.")
    return Session(cof, DEMO / name, example=True)


def load_examples() -> list[dict[str, str]]:
    """The examples of the embedded model: `image`, a name in `DEMO`, `question` and `answer`."""
    examples: list[dict[str, str]] = json.loads((DEMO / "questions.json").read_text("utf-8"))
    return examples
