"""The embedded model's tokenizer and processor.

Byte-level BPE, which encodes any text; frequent words of the training questions are one token.
Three kinds of longer tokens shorten every sequence: a coordinate with its punctuation (a box is
four tokens and reads `[0.10, 0.24, 0.40, 0.56]`), the constant parts of prompts, and option labels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cof.prompting.dialects import LLAVA_PROMPT, OPTION_LETTER, PAPER_PROMPT, SHORT_ANSWER, TINY
from cof.tiny.questions import KINDS, YES_NO
from cof.tiny.scenes import SIDE, Scene, make_scene

LEVELS = 51  # coordinates in steps of 0.02
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
USER, ASSISTANT = "USER: ", " ASSISTANT:"
WHERE = TINY.template.split("}", 1)[1]
PAPER = PAPER_PROMPT.split("}", 1)[1]
REFER = LLAVA_PROMPT.split(" {", 1)[0]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ ' ASSISTANT:' }}{% endif %}"
    "{% if m['content'] is string %}"
    "{{ m['content'] if m['role'] == 'user' else ' ' + m['content'] + eos_token }}"
    "{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}"
    "{{ c['text'] if m['role'] == 'user' else ' ' + c['text'] + eos_token }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def coordinate_tokens() -> tuple[list[str], list[str], list[str]]:
    """The tokens for x1, for y1 and x2, and for y2: ` [0.10`, `, 0.24`, `, 0.56]`."""
    values = [f"{k / (LEVELS - 1):.2f}" for k in range(LEVELS)]
    return (
        [f" [{v}" for v in values],
        [f", {v}" for v in values],
        [f", {v}]" for v in values],
    )


def phrase(scene: Scene, rng: random.Random) -> tuple[str, int]:
    """A referring expression and the object it names: `the red star`, `the object with ...`."""
    i = rng.randrange(len(scene.things))
    t = scene.things[i]
    return rng.choice((f"the {t.name}", f"the object with the {t.glyph_name}")), i


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer; the result is always the same."""
    rng = random.Random("tokenizer")
    corpus = []
    for seed in range(3000):
        scene = make_scene(seed, 1 + seed % 12)
        for ask in KINDS.values():
            q = ask(scene, rng)
            corpus.append(f"{q.text} {q.answer}")
        corpus.append(phrase(scene, rng)[0])
    tokenizer = train_bpe(corpus, 640)
    phrases = [USER, ASSISTANT, WHERE, PAPER, REFER, YES_NO, SHORT_ANSWER, OPTION_LETTER]
    options = [f"\n{letter}." for letter in "ABCD"]
    x1, middle, y2 = coordinate_tokens()
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t in [*phrases, *options, *x1, *y2, *middle]]
    )
    return wrap(tokenizer)


def train_bpe(corpus: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over words and single digits, each with its blank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[0-9]| ?[A-Za-z]+|\s+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """It as transformers takes it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def make_processor(
    tokenizer: PreTrainedTokenizerFast, patch: int, side: int = SIDE
) -> LlavaProcessor:
    """Pads to a square with the mean colour and resizes, as the paper's evaluation does."""
    square = {"height": side, "width": side}
    images = LlavaImageProcessorPil(
        do_pad=True, do_center_crop=False, size=square, crop_size=square
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
