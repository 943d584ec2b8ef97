"""Chat completions in OpenAI's format: requests, checked, and answers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cof.answer import Answer
from cof.errors import CofError, TooLarge
from cof.query import Query, check_question
from cof.server.errors import ApiError
from cof.server.limits import Limits
from cof.settings import Settings
from cof.types import Decoding

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stream_options": ({}, {"include_usage": False}),
}
"""Parameters of OpenAI's that are not supported, and the values that ask for nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Text(_Part):
    type: Literal["text"]
    text: str


class _Address(_Part):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # images are resized as the model needs it


class _Image(_Part):
    type: Literal["image_url"]
    image_url: _Address


class _Message(_Part):
    role: str
    content: str | list[Annotated[_Text | _Image, Field(discriminator="type")]]


class _Chat(_Part):
    model: str
    messages: list[_Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None
    user: str | None = None
    cof: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if name not in _NEUTRAL or (value is not None and value not in _NEUTRAL[name])
        }


_REGION = ("polygon", "grounding_question")
"""What `cof` may hold beside the settings and boxes (`cof.query.Query`)."""


@dataclass(frozen=True)
class Ask:
    """A checked request.

    Attributes:
        query: with the addresses of its images; without `cof` in the request its settings leave
            the model as it is.
        with_cof: whether the request has `cof`, so that the answer has it too.
    """

    query: Query
    decoding: Decoding
    with_cof: bool
    stream: bool


def parse(body: bytes, model: str, settings: Settings, limits: Limits) -> Ask:
    """A request's body, checked.

    Args:
        body: JSON.
        model: the name that is served.
        settings: those that `cof` changes.

    Raises:
        ApiError, CofError: it cannot be answered.
    """
    try:
        chat = _Chat.model_validate_json(body)
    except ValidationError as error:
        raise CofError(_sentence(error)) from None
    if chat.model != model:
        raise ApiError(
            404, f"There is no model {chat.model!r} here; there is {model!r}.", "model_not_found"
        )
    question, addresses = _read_messages(chat.messages, limits)
    options = {"focus": "none"} if chat.cof is None else dict(chat.cof)
    region: dict[str, Any] = {name: options.pop(name) for name in _REGION if name in options}
    if isinstance(options.get("boxes"), list):  # as a text it is the setting: free or template
        region["boxes"] = options.pop("boxes")
    for name, places in region.items():
        if isinstance(places, str):
            _check_length(f"cof.{name}", places, limits)
        if isinstance(places, list) and len(places) > limits.max_boxes:
            raise CofError(f"cof.{name} has a length of {len(places)}, above {limits.max_boxes}.")
    changed = settings.changed(**options)
    _check_settings(changed, settings, limits)
    image, *beside = addresses
    query = Query(image, question, settings=changed, beside=beside[0] if beside else None, **region)
    return Ask(query, _decoding(chat, limits), chat.cof is not None, bool(chat.stream))


def completion(answer: Answer, ask: Ask, model: str) -> dict[str, Any]:
    """The answer, as OpenAI's server would give it, and with `cof` where the request had it."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return _head("chat.completion", model) | _last(answer, ask, message=message)


async def events(
    update: str | Answer, later: AsyncGenerator[str | Answer, None], ask: Ask, model: str
) -> AsyncGenerator[str, None]:
    """Server-sent events: each piece of the text as it comes, and the answer with the last one."""
    head = _head("chat.completion.chunk", model)
    yield event(head | _choice(None, delta={"role": "assistant", "content": ""}))
    while isinstance(update, str):
        yield event(head | _choice(None, delta={"content": update}))
        update = await anext(later)
    yield event(head | _last(update, ask, delta={}))
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": created, "model": model}


def _choice(finish_reason: str | None, **content: Any) -> dict[str, Any]:
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}
    return {"choices": [choice]}


def _last(answer: Answer, ask: Ask, **content: Any) -> dict[str, Any]:
    """The choice that ends an answer, and `cof` beside it where the request had it."""
    reason = "length" if answer.num_tokens >= ask.decoding.max_new_tokens else "stop"
    look = {"cof": answer.as_dict()} if ask.with_cof else {}
    return _choice(reason, **content) | look


def _read_messages(messages: list[_Message], limits: Limits) -> tuple[str, list[str]]:
    """The question and the addresses of its images."""
    if [message.role for message in messages] != ["user"]:
        raise CofError(
            "Send one message of the role user, with an image and a question: earlier turns and "
            "system messages are not supported."
        )
    parts = messages[0].content
    question = "\n".join(part.text for part in parts if isinstance(part, _Text))
    addresses = [part.image_url.url for part in parts if isinstance(part, _Image)]
    if not addresses:
        raise CofError("There is no image: add a part of the type image_url.")
    if len(addresses) > limits.max_images:
        raise CofError(f"There are {len(addresses)} images, above {limits.max_images}: send fewer.")
    _check_length("The question", question, limits)
    return check_question(question), addresses


def _decoding(chat: _Chat, limits: Limits) -> Decoding:
    given = chat.model_dump(include={"temperature", "top_p", "seed"}, exclude_none=True)
    for longest in (chat.max_tokens, chat.max_completion_tokens):
        given |= {} if longest is None else {"max_new_tokens": longest}
    decoding = Decoding(**given)
    if decoding.max_new_tokens > limits.max_tokens:
        raise CofError(f"max_tokens is above {limits.max_tokens}: ask for less.")
    return decoding


def _check_settings(settings: Settings, own: Settings, limits: Limits) -> None:
    """Refuse what would load a model, or run for long."""
    if settings.option("detector") != own.option("detector"):
        raise CofError("cof.detector is chosen by the server: leave it out.")
    longest = "grounding_max_new_tokens"
    if (settings.option(longest) or 0) > max(limits.max_tokens, own.option(longest) or 0):
        raise CofError(f"cof.grounding_max_new_tokens is above {limits.max_tokens}: ask for less.")
    _check_length("cof.grounding_prompt", settings.option("grounding_prompt") or "", limits)


def _check_length(what: str, text: str, limits: Limits) -> None:
    """
    Raises:
        TooLarge: it is longer than the server allows, whatever the model does.
    """
    if len(text) > limits.max_question:
        raise TooLarge(f"{what} has {len(text)} characters, above {limits.max_question}.")


def _sentence(error: ValidationError) -> str:
    """What is wrong with a request; of several things the last."""
    last = error.errors(include_url=False, include_input=False)[-1]
    place = ".".join(str(part) for part in last["loc"] if "[" not in str(part))  # not of a union
    if last["type"] == "json_invalid":
        return f"The body is not JSON: {last['ctx']['error']}."
    if last["type"] == "extra_forbidden":
        return f"{place} is not supported by this server: leave it out."
    return f"{place or 'The body'}: {last['msg']}."
