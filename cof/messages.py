"""Chats as users write them: messages in the format of transformers and of OpenAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cof.errors import CofError
from cof.options import check_text
from cof.types import Slot, Turn

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""The roles that are read, and what chat templates call them."""

SYSTEMS = {
    "vicuna_v1": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
}
"""System messages by name. `vicuna_v1` is LLaVA's, with which its authors and the released code
ask; the hub's chat template leaves it out."""

_IMAGES = ("image", "image_url", "url", "path", "base64")
"""Where a part of the type `image` or `image_url` may hold its image."""


@dataclass(frozen=True, eq=False)
class ChatText:
    """A chat that has been read, its images still sources (`cof.images.load_image`)."""

    turns: tuple[Turn, ...]  # with slots for prompt and image, and the numbers of the others
    prompt: str  # the last text of the user
    image: Any  # the one that is looked at; None: the chat has none
    others: tuple[Any, ...]  # in their order


def read_messages(
    messages: Sequence[Mapping[str, Any]], number: int | None = None, system: str = ""
) -> ChatText:
    """A chat in which an image is looked at.

    Args:
        messages: dicts with a `role` and a `content`: a text, or a list of parts, each
            `{"type": "text", "text": ...}`, `{"type": "image", "image": source}` (or `url`, `path`,
            `base64`) or `{"type": "image_url", "image_url": {"url": ...}}`; the last is the
            user's.
        number: of the image, from 0 or, below 0, from the end; None: the last one.
        system: the system message, or its name in `SYSTEMS`, where the chat has none of its own;
            empty: none.

    Raises:
        CofError: a message cannot be read, the chat has images but none of that number, or its last
            message is not the user's with a text.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise CofError("A chat is a list of messages, each with a role and a content.")
    sources: list[Any] = []
    turns = [_turn(message, sources) for message in messages]
    if system and all(turn.role != "system" for turn in turns):
        turns.insert(0, Turn("system", (SYSTEMS.get(system, system),)))
    last = list(turns[-1].parts)
    texts = [place for place, part in enumerate(last) if isinstance(part, str) and part.strip()]
    if turns[-1].role != "user" or not texts:
        raise CofError("The last message of a chat must be the user's, with a text that asks.")
    prompt = str(last[texts[-1]])
    last[texts[-1]] = Slot.PROMPT
    turns[-1] = Turn("user", tuple(last))
    if not sources and number is None:
        return ChatText(tuple(turns), prompt, None, ())
    chosen = -1 if number is None else number
    if not -len(sources) <= chosen < len(sources):
        raise CofError(f"The chat has no image {number}: it has {len(sources)}, counted from 0.")
    chosen %= len(sources)
    places: dict[Any, Slot | int]
    places = {at: Slot.IMAGE if at == chosen else at - (at > chosen) for at in range(len(sources))}
    return ChatText(
        tuple(Turn(turn.role, tuple(places.get(p, p) for p in turn.parts)) for turn in turns),
        prompt,
        sources[chosen],
        tuple(source for at, source in enumerate(sources) if at != chosen),
    )


def _turn(message: Mapping[str, Any], sources: list[Any]) -> Turn:
    """A message whose images are numbers of `sources`, which they are added to."""
    role = ROLES.get(str(message.get("role"))) if isinstance(message, Mapping) else None
    if role is None:
        known = ", ".join(ROLES)
        raise CofError(f"A message needs a role ({known}) and a content: {_brief(message)}.")
    content = message.get("content")
    if not isinstance(content, str | Sequence | None):
        raise CofError(f"A content is a text, or a list of parts: {_brief(message)}.")
    parts: list[str | Slot | int] = []
    part: Any
    for part in [content] if isinstance(content, str) else content or ():
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            parts.append(check_text("The text of a message", part.get("text")))
            continue
        image = kind in ("image", "image_url")
        found = [part[name] for name in _IMAGES if image and part.get(name) is not None]
        if not found:
            raise CofError(
                "A message holds parts of the type text, or image or image_url with the image: "
                f"{_brief(part)}."
            )
        source = found[0]
        parts.append(len(sources))
        sources.append(source.get("url") if isinstance(source, Mapping) else source)
    return Turn(role, tuple(parts))


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
