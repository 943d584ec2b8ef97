"""What a user types is text: no special token of any family is read in it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from fakes import FakeEngine
from models import picture
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from zoo import EVERY, engine

from cof.engines.transformers.engine import TransformersEngine
from cof.engines.transformers.generation import collect_generations
from cof.engines.transformers.prompt_builder import TokenizedRequests
from cof.errors import CofError
from cof.families.special_tokens import MARK, SpecialTokens, token_ids, token_spans, unescape
from cof.grounders import Prompt
from cof.types import Decoding, Request

SHORT = Decoding(max_new_tokens=4)
IMAGE = picture((90, 60))


def special(name: str) -> list[str]:
    """A handful of the family's special tokens, the image's among them."""
    made = engine(name)
    texts = sorted(made.chat.special.texts)
    token = str(getattr(made.processor, "image_token", None) or "<image>")
    assert token in texts
    return [token, *texts[:12]]


def harmless(text: str, tokens: list[str]) -> str:
    """The text with another first character for every special token."""
    for token in sorted(tokens, key=len, reverse=True):
        text = text.replace(token, "~" + token[1:])
    return text


def tokenized(made: TransformersEngine, request: Request) -> TokenizedRequests:
    ((_, batch),) = made.plan([request], [0])
    return batch


def count_special(made: TransformersEngine, ids: torch.Tensor) -> int:
    numbers = made.processor.tokenizer.convert_tokens_to_ids(list(made.chat.special.texts))
    return int(torch.isin(ids, torch.tensor(numbers)).sum())


@pytest.mark.parametrize("name", EVERY)
class TestEveryFamily:
    def test_answer_is_that_of_text_with_the_same_ids(self, name: str) -> None:
        made, tokens = engine(name), special(name)
        vocabulary = made.processor.tokenizer.get_vocab()
        for typed in (tokens[0], f"{tokens[0] * 2} what?", f"Is it {' or '.join(tokens)}?"):
            calm = Request(IMAGE, harmless(typed, tokens))
            batch = tokenized(made, calm)
            ids = tokenized(made, Request(IMAGE, typed)).inputs
            assert count_special(made, ids["input_ids"]) == count_special(
                made, batch.inputs["input_ids"]
            )
            for key in ("input_ids", "qformer_input_ids"):
                if key in ids:
                    changed = ids[key] != batch.inputs[key]
                    assert set(batch.inputs[key][changed].tolist()) == {vocabulary["~"]}
                    firsts = {vocabulary[token[0]] for token in tokens}
                    assert set(ids[key][changed].tolist()) <= firsts
                    batch.inputs[key] = ids[key]
            with torch.inference_mode():
                prompts = made.prompts(batch)
                config = made._generation_config(SHORT)
                output = made.adapter.generate(prompts, generation_config=config)
                (expected,) = collect_generations(output, made.adapter, config.eos_token_id)
            assert made.generate([Request(IMAGE, typed)], SHORT) == [expected]
        ordinary = "Is it a < b, [x] or </b>?\n\nA. yes\nB. no  "
        assert MARK not in made.chat.text(Request(IMAGE, ordinary))

    def test_replies(self, name: str) -> None:
        made, tokens = engine(name), special(name)
        replies = [f"no {token}" for token in tokens[:4]]
        requests = [Request(IMAGE, "What?")] * len(replies)
        for reply, scored in zip(replies, made.score_replies(requests, replies), strict=True):
            ids = torch.tensor(scored.token_ids)
            assert count_special(made, ids[:-1]) == 0  # the last one is the end token
            assert made.processor.tokenizer.decode(ids[:-1]).strip() == reply

    def test_prompts_of_a_users_own(self, name: str) -> None:
        """A grounding prompt that holds special tokens, and questions filled into it."""
        made, tokens = engine(name), special(name)
        before = count_special(made, ids_of_grounding(made, "Where? {question}", "x"))
        template = f"{tokens[0]}Where?{tokens[0]} {{question}}"
        assert count_special(made, ids_of_grounding(made, template, tokens[-1])) == before
        own = count_special(made, ids_of_grounding(made, None, "x"))
        assert count_special(made, ids_of_grounding(made, None, f"{tokens[0]} x")) == own
        split = f"Where is {tokens[0][0]}{{question}}?"
        assert count_special(made, ids_of_grounding(made, split, tokens[0][1:])) == before


def ids_of_grounding(made: TransformersEngine, template: str | None, question: str) -> torch.Tensor:
    fake = FakeEngine(lambda request: "", made.dialect)
    Prompt(grounding_prompt=template).locate(fake, [Request(IMAGE, question)])
    (((asked,), _),) = fake.calls
    tokens = tokenized(made, asked).inputs
    # Kosmos-2 counts its image's placeholders from <unk> on, through the numbers of its tags
    image = tokens.get("image_embeds_position_mask", torch.zeros_like(tokens["input_ids"]))
    return tokens["input_ids"][image == 0]


def test_kosmos_reads_its_own_notation_and_no_users() -> None:
    made = engine("kosmos2")
    ids = ids_of_grounding(made, None, "</phrase><grounding>").tolist()
    for tag in ("<grounding>", "<phrase>", "</phrase>"):
        assert ids.count(made.processor.tokenizer.convert_tokens_to_ids(tag)) == 1
    typed = tokenized(made, Request(IMAGE, "<grounding> what?")).inputs["input_ids"]
    assert "Question: <grounding> what? Answer:" in made.processor.tokenizer.decode(typed[0])


def test_a_phrase_is_found_behind_special_tokens() -> None:
    made = engine("llava")
    tokenizer = made.processor.tokenizer
    places = []
    for typed in ("Is there a <image> star?", "Is there a ~image> star?"):
        text = made.chat.text(Request(IMAGE, typed))
        spans = token_spans(tokenizer, text)
        start = unescape(text).index("star")
        places.append([n for n, (a, b) in enumerate(spans) if a < start + 4 and b > start])
        assert len(spans) == len(token_ids(tokenizer, text, add_special_tokens=False))
        image = Request(IMAGE, typed)
        assert made.phrase_similarities([image], ["star"])[0].shape[1] == 4
    assert places[0] == places[1]
    assert made.word_probabilities([IMAGE], [["<image>"]])[0].shape[0] == 1


@pytest.mark.parametrize("name", ["llava", "instructblip", "qwen2_vl"])
def test_half_of_a_surrogate_pair_is_refused(name: str) -> None:
    made, whole = engine(name), Request(IMAGE, "What?")
    with pytest.raises(CofError, match="half of a surrogate pair"):
        made.generate([Request(IMAGE, "\ud800")], SHORT)
    with pytest.raises(CofError, match="half of a surrogate pair"):
        made.score_replies([whole, whole], ["red", "\udfff"])


def test_the_mark_itself_may_be_typed() -> None:
    special_tokens = SpecialTokens(["<a>", "a><b"])
    text = f"<{MARK}a> <a><b"
    assert unescape(special_tokens.escape(text)) == text.replace(MARK, "\ufffd")
    assert special_tokens.escape(text).split(MARK) == ["<\ufffda> <", "a", "><b"]


WORDS = ["▁", *"abcdefghijklmnopqrstuvwxyz<>/[]?|. ", "im", "ag", "age", "image", "▁i", "▁is", "is"]
WORDS += ["'", "▁n", "▁'", "▁'s", "▁."]  # which T5's are cleaned up


def _fast(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    special = {"additional_special_tokens": ["<image>"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special, **options)


def _sentencepiece(normalized: bool, scheme: str) -> PreTrainedTokenizerFast:
    """As LLaMA's: BPE with a space before every text, by the normalizer or the pre-tokenizer."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *WORDS]
    vocabulary = {word: n for n, word in enumerate(words)}
    merges = [("i", "m"), ("a", "g"), ("ag", "e"), ("im", "age"), ("▁", "i"), ("i", "s")]
    merges += [("▁i", "s")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    if normalized:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _fast(backend, **names)


def _unigram() -> PreTrainedTokenizerFast:
    """As T5's: special tokens are pieces of the model itself, and the end token comes last."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    backend = Tokenizer(models.Unigram(pieces + [(word, -2.0) for word in WORDS], unk_id=2))
    backend.normalizer = normalizers.Replace("\n", " ")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _fast(backend, **names, clean_up_tokenization_spaces=True)


def _wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "sep", "image", "is", "cls", *"<>/[]?|.sa"]
    backend = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _fast(backend, pad_token="[PAD]", **names)


KINDS: dict[str, Any] = {
    "normalizer": functools.partial(_sentencepiece, True, ""),
    "always": functools.partial(_sentencepiece, False, "always"),
    "first": functools.partial(_sentencepiece, False, "first"),
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizers_of_every_kind(kind: str) -> None:
    words = KINDS[kind]()
    special_tokens = SpecialTokens.of_tokenizer(words)
    assert "<image>" in special_tokens.texts
    numbers = set(words.convert_tokens_to_ids(list(special_tokens.texts)))
    around = words("a")["input_ids"]
    end = words.sep_token or words.eos_token
    for typed in ("is <image>?", "<image><image> is", f"is {end}", f"{end}<image>", end):
        assert numbers & set(words(typed, add_special_tokens=False)["input_ids"])
        text = special_tokens.escape(typed)
        ids = token_ids(words, text, add_special_tokens=False)
        assert not numbers & set(ids)
        decoded, expected = words.decode(ids), typed
        if kind == "wordpiece":  # it forgets spaces and capitals
            decoded, expected = (s.replace(" ", "").lower() for s in (decoded, expected))
        assert decoded == expected
        whole = token_ids(words, text)
        assert [t for t in whole if t in numbers] == [t for t in around if t in numbers]
        start = next(n for n in range(len(whole)) if whole[n : n + len(ids)] == ids)
        assert (start > 0) == (around[0] in numbers)
        cut = token_ids(words, text, max_length=len(whole) - 1)
        assert cut == [*whole[:start], *ids[:-1], *whole[start + len(ids) :]]
        assert len(token_spans(words, text)) == len(ids)
    assert token_ids(words, "is it an image?") == words("is it an image?")["input_ids"]
