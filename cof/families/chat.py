"""A user's turn as a model was trained to read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cof.families.family import Family
from cof.families.special_tokens import SpecialTokens
from cof.prompting.dialects import Dialect
from cof.types import Request


@dataclass(frozen=True, eq=False)
class Chat:
    """Writes the chats of one model.

    Attributes:
        family, dialect: what is known of the model.
        processor: the model's.
    """

    family: Family
    dialect: Dialect
    processor: Any

    @cached_property
    def special(self) -> SpecialTokens:
        """The model's special tokens."""
        return SpecialTokens.of_tokenizer(self.processor.tokenizer, self.processor, self.render(""))

    @cached_property
    def _notation(self) -> frozenset[str]:
        """The special tokens in which the model's own grounding prompt is written."""
        template = self.dialect.template
        return frozenset(text for text in self.special.texts if text in template)

    def text(self, request: Request, images: int = 1) -> str:
        """A request as a chat, up to where the answer begins. Special tokens in what the user
        typed are escaped, so that `special_tokens.token_ids` reads them as text.

        Raises:
            CofError: the prompt cannot be encoded.
        """
        escaped = self.special.escape(request.prompt, request.notation, self._notation)
        return self.render(escaped, images)

    def render(self, prompt: str, images: int = 1) -> str:
        """A prompt in the model's chat template, as it is."""
        if getattr(self.processor, "chat_template", None) is None:
            bos = self.processor.tokenizer.bos_token
            text = self.family.prompt.format(prompt=prompt, bos=bos)
            if images > 1:
                token = str(self.processor.image_token)
                text = text.replace(token, token * images, 1)
            return text
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return str(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer has to add the start token: some chat templates write it themselves,
    and it must not come twice."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
