"""lmms-eval's requests as questions for the pipeline, and its options as settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cof.adaptive import chosen_rule
from cof.cli.common import indices
from cof.errors import CofError
from cof.pipeline import CoF, Query
from cof.settings import Settings
from cof.tiny import resolved
from cof.types import Decoding

if TYPE_CHECKING:
    from PIL.Image import Image

OPTIONS = ("pretrained", "preset", "dtype", "device_map", "pad_to_square")
"""Of `--model_args`, beside the fields of `cof.settings.Settings`."""


@dataclass(frozen=True)
class Asked:
    """One request, read.

    Attributes:
        prompt: the whole prompt.
        options: the task's `generation_kwargs`.
        images: gives the request's pictures.
    """

    prompt: str
    options: Mapping[str, Any]
    images: Callable[[], Sequence[Image]]

    @classmethod
    def read(cls, arguments: Sequence[Any], documents: Mapping[str, Any]) -> Asked:
        """From an `Instance`'s arguments `(context, options, pictures of a document, number,
        task, split)` and the documents `{task: {split: [...]}}`."""
        prompt, options, pictures, number, task, split = arguments
        return cls(prompt, options, lambda: pictures(documents[task][split][number]) or ())

    @property
    def query(self) -> Query:
        """The question for the pipeline.

        Raises:
            CofError: it has no picture, or several.
        """
        images = list(self.images())
        if len(images) != 1:
            raise CofError(
                f"cof answers questions about one picture each, and this one has {len(images)}: "
                f"choose another task ({self.prompt[:60]!r})."
            )
        return Query(images[0], self.prompt)

    @property
    def decoding(self) -> Decoding:
        """Greedy unless the task sets a temperature, like lmms-eval's own models."""
        options, usual = self.options, Decoding()
        return Decoding(
            max_new_tokens=int(options.get("max_new_tokens") or usual.max_new_tokens),
            num_beams=int(options.get("num_beams") or usual.num_beams),
            temperature=float(options.get("temperature") or 0.0),
            top_p=float(options.get("top_p") or usual.top_p),
            seed=0 if options.get("temperature") else None,
        )

    def ended(self, text: str) -> str:
        """The reply up to the first of the task's stop strings."""
        stops = self.options.get("until") or ()
        for stop in [stops] if isinstance(stops, str) else stops:
            if stop:
                text = text.split(stop)[0]
        return text


def pipeline(**options: Any) -> CoF:
    """The pipeline of `--model_args`: `OPTIONS` as of `CoF.from_pretrained`, and any setting;
    layers and heads as `0-15`, `adaptive` as `off`, `on` or a rule's file.

    Raises:
        CofError: no such option, or a value is refused.
    """
    known = [field.name for field in fields(Settings)]
    for name in options:
        if name not in (*OPTIONS, *known):
            raise CofError(f"--model_args knows no {name!r}, but {', '.join((*OPTIONS, *known))}.")
    for name in ("layers", "heads", "grounder_layers"):
        if name in options:
            options[name] = indices(name, str(options[name]))
    model = options.pop("pretrained", None)
    if "adaptive" in options:
        options["adaptive"] = chosen_rule(str(options["adaptive"]), str(resolved(model)))
    return CoF.from_pretrained(model, **options)


def answers(cof: CoF, asked: Sequence[Asked], *, batch_size: int) -> Iterator[tuple[int, str]]:
    """Answer all requests; those that are decoded alike run together.

    Args:
        cof: the pipeline.
        asked: the requests.
        batch_size: questions in one forward pass.

    Yields:
        Number of a request and its answer, in the order of answering.
    """
    alike: dict[Decoding, list[int]] = {}
    for number, request in enumerate(asked):
        alike.setdefault(request.decoding, []).append(number)
    for decoding, numbers in alike.items():
        for start in range(0, len(numbers), batch_size):
            rows = numbers[start : start + batch_size]
            queries = [asked[row].query for row in rows]
            found = cof.batch(queries, decoding=decoding, batch_size=batch_size)
            for row, answer in zip(rows, found, strict=True):
                yield row, asked[row].ended(answer.text)
