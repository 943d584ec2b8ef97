"""Text as it is decoded: the pieces of an answer are its text, and they come while it is made."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from cof.engines.text_stream import TextStream


def llama_words() -> PreTrainedTokenizerFast:
    """Words, and bytes for all else, decoded as LLaMA's tokenizer does."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁a", "b", "▁n", "'", "t", ".", "▁'", "s", "▁€"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def t5_words() -> PreTrainedTokenizerFast:
    """Pieces of a unigram model, cleaned up after they are decoded."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "b", "▁n", "'", "t", ".", "▁'", "s", "▁.", "▁'s"]
    backend = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=2))
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=True
    )


TOKENIZERS = {
    "bytes": functools.cache(lambda: tokenizer("left")),
    "llama": functools.cache(llama_words),
    "t5": functools.cache(t5_words),
}


def pieces(words: Any, ids: list[int]) -> list[str]:
    stream = TextStream(words)
    found = [stream.feed(ids[:end]) for end in range(1, len(ids) + 1)]
    return [*found, stream.feed(ids, done=True)]


class TestTextStream:
    @pytest.mark.parametrize("name", TOKENIZERS)
    @given(data=st.data())
    def test_the_pieces_joined_are_the_text(self, name: str, data: st.DataObject) -> None:
        words = TOKENIZERS[name]()
        last = len(words) - 1
        # often words, which come last in the vocabulary
        token = st.integers(0, last) | st.integers(max(0, last - 10), last)
        ids = data.draw(st.lists(token, max_size=30))
        text = words.decode(ids, skip_special_tokens=True).strip()
        assert "".join(pieces(words, ids)) == text

    def test_a_character_comes_with_its_last_byte(self) -> None:
        words = tokenizer("left")
        ids = words(" a €中 b\n", add_special_tokens=False).input_ids
        assert pieces(words, ids) == [*"|a||||€||中|| b||".replace("|", "\0").split("\0")]
