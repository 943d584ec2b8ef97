"""Chat completions in OpenAI's format: requests, checked, and answers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from cof.answer import Answer
from cof.errors import CofError, TooLarge
from cof.limits import Limits
from cof.options import count
from cof.prompting.thoughts import overlap
from cof.query import Query
from cof.server.errors import ApiError
from cof.settings import Settings
from cof.types import Decoding, Thought

_IGNORED = (
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
)  # fmt: skip
"""Parameters of OpenAI's that change nothing in an answer."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("medium",),
    "verbosity": ("medium",),
}
"""Parameters of OpenAI's that are not supported, and the values that ask for nothing."""

_REGION = ("image", "polygon", "grounding_question")
"""What `cof` may hold beside the settings and boxes (`cof.query.Query`)."""

_FILES = {"image", "url", "path", "base64"}
"""Where a part of a message would hold an image, or the name of a file of ours."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class Ask(_Part):
    """A request, whose types have been checked."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int = Decoding.max_new_tokens
    max_completion_tokens: int | None = None
    temperature: float = Decoding.temperature
    top_p: float = Decoding.top_p
    seed: int | None = None
    stop: str | list[str] = []
    logprobs: bool = False
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    cof: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if value is not None and name not in _IGNORED and value not in _NEUTRAL.get(name, ())
        }

    @field_validator("stop")
    @classmethod
    def _as_list(cls, stop: str | list[str]) -> list[str]:
        return list(filter(None, [stop] if isinstance(stop, str) else stop))

    @classmethod
    def read(cls, body: bytes, model: str, limits: Limits) -> Ask:
        """The request in a body of JSON, for the model that is served.

        Raises:
            ApiError, CofError: it cannot be answered.
        """
        try:
            ask = cls.model_validate_json(body)
        except ValidationError as error:
            raise CofError(_sentence(error)) from None
        if ask.model != model:
            raise unknown_model(ask.model, model)
        for name in ("max_tokens", "max_completion_tokens"):
            given = name in ask.model_fields_set
            if given and count(name, getattr(ask, name)) > limits.max_tokens:
                raise CofError(f"{name} is above {limits.max_tokens}: ask for less.")
        ask.max_tokens = min(ask.max_completion_tokens or ask.max_tokens, limits.max_tokens)
        return ask

    @property
    def decoding(self) -> Decoding:
        """How it wants to be answered.

        Raises:
            CofError: a number is out of range.
        """
        return Decoding(
            self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
        )

    def end(self, text: str, *, done: bool = False) -> tuple[str, bool]:
        """The part of an answer's text before a stop, and whether there is one. Of a text that is
        not `done` the end is left out where a stop may begin there."""
        cuts = [text.find(stop) for stop in self.stop if stop in text]
        if cuts:
            return text[: min(cuts)], True
        held = 0 if done else max((overlap(text, stop) for stop in self.stop), default=0)
        return text[: len(text) - held], False


def query_of(
    messages: list[dict[str, Any]], cof: dict[str, Any] | None, settings: Settings, limits: Limits
) -> Query:
    """A chat and its `cof`, which changes the settings, checked; without it the model is left as it
    is.

    Raises:
        CofError: they cannot be read, or ask for what the server does not do.
    """
    _check_messages(messages, limits)
    options = {"focus": "none"} if cof is None else dict(cof)
    region: dict[str, Any] = {name: options.pop(name) for name in _REGION if name in options}
    if isinstance(options.get("boxes"), list):  # as a text it is the setting: free or template
        region["boxes"] = options.pop("boxes")
    for name, places in region.items():
        if isinstance(places, str):
            _check_length(f"cof.{name}", places, limits)
        if isinstance(places, list) and len(places) > limits.max_boxes:
            raise CofError(f"cof.{name} has a length of {len(places)}, above {limits.max_boxes}.")
    changed = settings.changed(**options)
    if changed.option("detector") != settings.option("detector"):
        raise CofError("cof.detector is chosen by the server: leave it out.")
    name = "grounding_max_new_tokens"
    if (changed.option(name) or 0) > max(limits.max_tokens, settings.option(name) or 0):
        raise CofError(f"cof.{name} is above {limits.max_tokens}: ask for less.")
    _check_length("cof.grounding_prompt", changed.option("grounding_prompt") or "", limits)
    query = Query(messages=messages, settings=changed, **region)
    query.read(changed.system)
    return query


def unknown_model(asked: str, model: str) -> ApiError:
    """The reply to a request for another model than the one that is served."""
    message = f"There is no model {asked!r} here; there is {model!r}."
    return ApiError(404, message, "model_not_found")


def completion(answer: Answer, ask: Ask, token_text: Callable[[int], str]) -> dict[str, Any]:
    """The answer, as OpenAI's server would give it, and with `cof` where the request had it.
    `token_text` gives a token as text."""
    text, _ = ask.end(answer.text, done=True)
    message = {"role": "assistant", "content": text, "refusal": None, **_thought(answer.reasoning)}
    last = _last(answer, ask, token_text, message=message)
    return _head("chat.completion", ask) | last | {"usage": _usage(answer)}


async def events(
    update: str | Answer,
    later: AsyncGenerator[str | Answer, None],
    ask: Ask,
    token_text: Callable[[int], str],
) -> AsyncGenerator[str, None]:
    """Server-sent events: each piece of the text as it comes, and the answer with the last one."""
    head = _head("chat.completion.chunk", ask)
    yield event(head | _choice(None, delta={"role": "assistant", "content": ""}))
    text = sent = ""
    while isinstance(update, str):
        if isinstance(update, Thought):
            yield event(head | _choice(None, delta=_thought(update)))
        else:
            text += update
            sure, _ = ask.end(text)
            if len(sure) > len(sent):
                yield event(head | _choice(None, delta={"content": sure[len(sent) :]}))
                sent = sure
        update = await anext(later)
    rest = ask.end(update.text, done=True)[0][len(sent) :]
    if rest:
        yield event(head | _choice(None, delta={"content": rest}))
    yield event(head | _last(update, ask, token_text, delta={}))
    if ask.stream_options.include_usage:
        yield event(head | {"choices": [], "usage": _usage(update)})
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _head(kind: str, ask: Ask) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"chatcmpl-{uuid4().hex}", "object": kind, "created": created, "model": ask.model}


def _choice(finish_reason: str | None, **content: Any) -> dict[str, Any]:
    choice = {"index": 0, "logprobs": None, **content, "finish_reason": finish_reason}
    return {"choices": [choice]}


def _last(
    answer: Answer, ask: Ask, token_text: Callable[[int], str], **content: Any
) -> dict[str, Any]:
    """The choice that ends an answer, and `cof` beside it where the request had it."""
    if ask.logprobs:
        texts = map(token_text, answer.token_ids)
        tokens = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}
            for text, logprob in zip(texts, answer.logprobs, strict=True)
        ]
        content["logprobs"] = {"content": tokens, "refusal": None}
    stopped = ask.end(answer.text, done=True)[1] or answer.num_tokens < ask.max_tokens
    look = {} if ask.cof is None else {"cof": answer.as_dict()}
    return _choice("stop" if stopped else "length", **content) | look


def _thought(text: str) -> dict[str, str]:
    return {"reasoning_content": text} if text else {}


def _usage(answer: Answer) -> dict[str, int]:
    prompt, reply = answer.num_prompt_tokens, answer.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


def _check_messages(messages: list[dict[str, Any]], limits: Limits) -> None:
    """
    Raises:
        CofError: there are more images or characters than the server takes, or an image is no
            address.
    """
    contents = [message.get("content") for message in messages]
    parts = [part for each in contents if isinstance(each, list) for part in each]
    images = [part for part in parts if isinstance(part, dict) and "image_url" in part]
    if any(isinstance(part, dict) and part.keys() & _FILES for part in parts):
        raise CofError("An image comes as a part of the type image_url.")
    if len(images) > limits.max_images:
        raise CofError(f"There are {len(images)} images, above {limits.max_images}: send fewer.")
    texts = [each for each in contents if isinstance(each, str)]
    texts += [str(part.get("text", "")) for part in parts if isinstance(part, dict)]
    _check_length("The chat", "".join(texts), limits)


def _check_length(what: str, text: str, limits: Limits) -> None:
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
