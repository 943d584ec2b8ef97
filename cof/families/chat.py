"""A user's turn as a model was trained to read it."""

from __future__ import annotations

from typing import Any

from cof.families.family import Family


def chat(family: Family, processor: Any, prompt: str, images: int = 1) -> str:
    """A prompt in the model's chat template, up to where the answer begins."""
    if getattr(processor, "chat_template", None) is None:
        bos = processor.tokenizer.bos_token
        text = family.prompt.format(prompt=prompt, bos=bos)
        if images > 1:
            token = str(processor.image_token)
            text = text.replace(token, token * images, 1)
        return text
    content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
    return str(
        processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    )


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Whether the tokenizer has to write the start token: some chat templates do it themselves,
    and it must not come twice."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
