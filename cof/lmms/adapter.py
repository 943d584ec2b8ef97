"""lmms-eval's requests as queries for the pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cof.errors import CofError, CofWarning
from cof.pipeline import CoF
from cof.query import Query
from cof.types import Decoding


@dataclass(frozen=True)
class EvalRequest:
    """One request of lmms-eval.

    Attributes:
        prompt: the whole prompt, by which lmms-eval caches the answer.
        options: the task's `generation_kwargs`.
        load_messages: returns the chat, the task's own system message and all images in it.
    """

    prompt: str
    options: Mapping[str, Any]
    load_messages: Callable[[], Sequence[Mapping[str, Any]]]

    @classmethod
    def from_arguments(cls, arguments: Sequence[Any], documents: Mapping[str, Any]) -> EvalRequest:
        """Of an `Instance`'s `(context, messages of a document, options, number, task, split)` and
        the documents, `{task: {split: [document, ...]}}`."""
        prompt, messages_of, options, number, task, split = arguments
        return cls(prompt, options, lambda: messages_of(documents[task][split][number]))

    @property
    def decoding(self) -> Decoding:
        """Greedy unless the task sets a temperature, like lmms-eval's own models."""
        kinds = {"max_new_tokens": int, "num_beams": int, "temperature": float, "top_p": float}
        given: dict[str, Any] = {
            name: kind(self.options[name]) for name, kind in kinds.items() if self.options.get(name)
        }
        return Decoding(**given, seed=0 if "temperature" in given else None)

    def cut(self, reply: str) -> str:
        """The reply up to the first of the task's stop strings."""
        stops = self.options.get("until") or ()
        for stop in filter(None, [stops] if isinstance(stops, str) else stops):
            reply = reply.split(stop)[0]
        return reply


def answer_requests(
    cof: CoF, requests: Sequence[EvalRequest], *, batch_size: int
) -> Iterator[tuple[int, str]]:
    """Answer all requests, those of one decoding together; a refused one gives only a warning.

    Yields:
        The number of a request and its answer, in the order of answering.

    Raises:
        CofError: all are refused.
    """
    numbers_by_decoding: dict[Decoding, list[int]] = {}
    for number, request in enumerate(requests):
        numbers_by_decoding.setdefault(request.decoding, []).append(number)
    refused: dict[int, str] = {}
    for decoding, numbers in numbers_by_decoding.items():
        for start in range(0, len(numbers), batch_size):
            asked = {}
            for number in numbers[start : start + batch_size]:
                try:
                    asked[number] = Query(messages=requests[number].load_messages())
                except Exception as error:  # damaged images raise many kinds
                    refused[number] = repr(error)
            how: Any = {"decoding": decoding, "batch_size": batch_size, "on_error": "return"}
            for number, answer in zip(asked, cof.batch(asked.values(), **how), strict=True):
                if answer.error:
                    refused[number] = answer.error
                else:
                    yield number, requests[number].cut(answer.text)
    if len(refused) == len(requests) > 0:
        raise CofError(f"No request can be asked. The first: {refused[min(refused)]}")
    for number, why in refused.items():
        warnings.warn(f"Request {number} has no answer: {why}", CofWarning, stacklevel=2)
