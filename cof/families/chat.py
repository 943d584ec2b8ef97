"""A user's turn as a model was trained to read it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from jinja2 import TemplateError

from cof.errors import CofError, CofWarning
from cof.families.special_tokens import SpecialTokens
from cof.families.table import Family
from cof.prompting.box_template import BoxTemplate, CompiledBoxTemplate, compile_box_template
from cof.prompting.dialects import Dialect
from cof.prompting.thoughts import Thoughts, tags_in
from cof.types import ALONE, Request, Slot, Turn


@dataclass(frozen=True, eq=False)
class Chat:
    """Writes the chats of one model."""

    family: Family  # what is known of the model
    dialect: Dialect  # how it is asked for a box, and writes one
    processor: Any  # the model's

    @cached_property
    def special(self) -> SpecialTokens:
        """The model's special tokens."""
        return SpecialTokens.of_tokenizer(self.processor.tokenizer, self.processor, self.opening())

    def opening(self, *, thinks: bool = True) -> str:
        """A chat of one image and no text."""
        return self._render(ALONE, {Slot.PROMPT: ""}, thinks=thinks)

    @cached_property
    def _notation(self) -> frozenset[str]:
        """The special tokens in which the model's own grounding prompt is written."""
        template = self.dialect.template
        return frozenset(text for text in self.special.texts if text in template)

    def text(self, request: Request) -> str:
        """A request as a chat, up to where the answer begins. Special tokens in what the user
        typed are escaped, so that `special_tokens.token_ids` reads them as text.

        Raises:
            CofError: a text cannot be encoded, or the model's chat template has no place for it.
        """
        texts: dict[str | Slot | int, str] = {
            part: self.special.escape(part) for part in request.places if isinstance(part, str)
        }
        own = self.special.escape(request.prompt, request.notation, self._notation)
        text = self._render(request.chat, {**texts, Slot.PROMPT: own}, thinks=request.thinks)
        if any(part.strip() not in text for part in (*texts.values(), own)):
            roles = " and ".join(dict.fromkeys(turn.role for turn in request.chat))
            raise CofError(
                f"The chat template of {self.family.name} has no place for messages of {roles}: "
                "ask one question, without a system message or earlier turns."
            )
        return text

    def image_first(self, text: str, request: Request) -> bool:
        """Whether the last text of a request, written as `text`, comes after its image, so that
        the states up to the image are the same for other questions."""
        own = self.special.escape(request.prompt, request.notation, self._notation).strip()
        image = str(getattr(self.processor, "image_token", None) or "")
        return bool(image) and text[: text.rfind(own)].count(image) > request.number

    @cached_property
    def think_tags(self) -> tuple[str, str] | None:
        """The tags between which the model thinks, if its chat template has them."""
        return tags_in(str(getattr(self.processor, "chat_template", None) or ""))

    def thoughts(self, request: Request) -> Thoughts | None:
        """What tells the thoughts of a reply from its answer; None: the model has none."""
        if self.think_tags is None:
            return None
        opening = self.opening(thinks=request.thinks).rstrip()
        return Thoughts(self.think_tags, inside=opening.endswith(self.think_tags[0]))

    def compile(
        self, template: BoxTemplate, name: str, *, resumes: bool = True
    ) -> CompiledBoxTemplate | None:
        """A box template in the tokens of the model of this name; None, with a note, if they do not
        keep its numbers apart, or the model's states cannot be reused."""
        read = partial(self.processor.tokenizer, add_special_tokens=False)
        opening, compiled = self.opening(thinks=False), None
        if resumes:
            compiled = compile_box_template(template, lambda of: read(of)["input_ids"], opening)
        if compiled is None:
            warnings.warn(
                f"{name} cannot decode boxes by a template (its tokens do not keep the numbers "
                "apart, or its states cannot be reused), so it writes them freely.",
                CofWarning,
                stacklevel=4,
            )
        return compiled

    def _render(
        self, chat: Sequence[Turn], texts: Mapping[str | Slot | int, str], *, thinks: bool
    ) -> str:
        """A chat in the model's template; `texts` are those of its parts, all others images."""
        template = getattr(self.processor, "chat_template", None) or self.family.chat_template
        if not template:
            return self._without_template(chat, texts)
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": texts[part]} if part in texts else {"type": "image"}
                    for part in turn.parts
                ],
            }
            for turn in chat
        ]
        silent = not thinks and "enable_thinking" in str(template)
        try:
            text = self.processor.apply_chat_template(
                messages,
                chat_template=None if template is self.processor.chat_template else template,
                add_generation_prompt=True,
                tokenize=False,
                processor_kwargs={"padding": False},  # else SmolVLM's adds to those of the template
                **({"enable_thinking": False} if silent else {}),
            )
        except TemplateError as error:
            raise CofError(
                f"The chat template of {self.family.name} refuses this chat: {error}"
            ) from error
        tokenizer = self.processor.tokenizer
        start = (tokenizer.bos_token or tokenizer.eos_token) if self.family.starts else ""
        return str(text) if str(text).startswith(start) else f"{start}{text}"

    def _without_template(self, chat: Sequence[Turn], texts: Mapping[str | Slot | int, str]) -> str:
        """The one turn that models know whose processor has no chat template."""
        *_, last = chat
        images = sum(part not in texts for part in last.parts)
        prompt = "".join(texts[part] for part in last.parts if part in texts)
        text = self.family.prompt.format(prompt=prompt, bos=self.processor.tokenizer.bos_token)
        token = str(getattr(self.processor, "image_token", None) or "")
        return text.replace(token, token * images, 1) if images > 1 else text


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer has to add the start token: some chat templates write it themselves,
    and it must not come twice."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
