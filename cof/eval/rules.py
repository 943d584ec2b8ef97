"""How the field's harnesses read an answer out of a reply, under their names; and short answers.

The harnesses disagree, so a figure is only comparable with figures under the same rules;
docs/evaluation.md names the function that each follows, oddities included. Where a harness asks a
language model to judge, or guesses at random, when its rules find nothing, the reply counts as
unparsed (None) here, and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from string import ascii_uppercase
from typing import Literal

_UP_TO_SIXTEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen"
)
NUMBER_WORDS = _UP_TO_SIXTEEN.split()

Rules = Literal["official", "llava", "lmms-eval", "vlmevalkit"]

SOURCES: Mapping[Rules, str] = {
    "official": "the benchmarks' own scripts",
    "llava": "LLaVA-1.5's evaluation, the source of the paper's baselines",
    "lmms-eval": "lmms-eval 0.7.3",
    "vlmevalkit": "VLMEvalKit at e8e78f0",
}
"""What each rule set follows."""

RULES: tuple[Rules, ...] = tuple(SOURCES)


def _mme_official(text: str) -> str | None:
    reply = text.lower()
    if reply in ("yes", "no"):
        return reply
    start = reply[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def _mme_lmms_eval(text: str) -> str | None:
    reply = text.lower().strip().replace(".", "")
    if len(reply) == 1:
        return {"y": "yes", "n": "no"}.get(reply)
    return _mme_official(reply)


def _pope_official(text: str) -> str | None:
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def _pope_lmms_eval(text: str) -> str | None:
    reply = text.lower().strip()
    return reply if reply in ("yes", "no") else None


def _whole_words(text: str) -> str | None:
    words = vqa_punctuation(text.lower(), _KIT_STOP).split()
    return _only(word for word in ("yes", "no") if word in words)


MME: Mapping[Rules, Callable[[str], str | None]] = {
    "official": _mme_official,
    "llava": _mme_official,  # its script writes files for the official one
    "lmms-eval": _mme_lmms_eval,
    "vlmevalkit": _whole_words,
}
"""Reply -> yes, no or None, in MME."""

POPE: Mapping[Rules, Callable[[str], str | None]] = {
    "official": _pope_official,
    "llava": _pope_official,
    "lmms-eval": _pope_lmms_eval,
    "vlmevalkit": _whole_words,
}
"""The same in POPE; under the official rule whatever does not say no says yes."""

_FORMS = ["X", "X.", "X,", "X:", "X)", "X).", "(X)", "(X).", ":X", ":X,", ":X.", ":X)", ":X)."]
"""How an option's letter X may be written, in the order in which they are tried."""

_VSTAR_FORMS = (
    r"^([A-D])",
    r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
    r"\(([A-D])\)",
    r"([A-D])\s*[.)\]]",
    r"(?:^|\s)([A-D])(?:\s|$)",
)
"""The letter in a reply in capitals, in the order in which they are tried; the first one is also
that of a word."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def _mmbench_official(text: str, options: Sequence[str]) -> str | None:
    # A to E always count as letters there, however many options there are
    letters = ascii_uppercase[: max(5, len(options))]
    return _letter(text, letters) or _option_text(text, options)


def _mmbench_lmms_eval(text: str, options: Sequence[str]) -> str | None:
    # in the data that it loads a missing option is spelled "nan", which it takes for a text
    spelled = [*options, *[""] * (4 - len(options))]
    return _mmbench_official(text, [option or "nan" for option in spelled])


def _kit(text: str, options: Sequence[str], *, newest: bool) -> str | None:
    """VLMEvalKit's: as HR-Bench's authors took it over, and lmms-eval from them, or the newest."""
    if any(refusal in text for refusal in _REFUSALS):
        return None
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter, option in zip(ascii_uppercase, options, strict=False) if option]
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and (not newest or words.index(named[0]) > len(words) - 5):
        return named[0]
    if "Z" in words and not named:
        return None
    if newest:
        stated = re.search(r"(?i)answer\s+is\s+\**([ABCD])", text)
        if stated and stated[1].upper() in letters:
            return stated[1].upper()
        if len(text.lower()) > 2 * sum(map(len, options)):
            return None
    return _option_text(text, options)


def _vstar_lmms_eval(text: str, options: Sequence[str]) -> str | None:
    reply = text.strip().upper()
    found = filter(None, (re.search(form, reply) for form in _VSTAR_FORMS))
    return next((match[1] for match in found), _only(re.findall("[A-D]", reply)))


def _letter(text: str, letters: str) -> str | None:
    words = text.split()
    for form in _FORMS:
        letter = _only(each for each in letters if form.replace("X", each) in words)
        # in a longer reply a lone A may be the article
        if letter and not (form == "X" and "A" in words and len(words) > 3):
            return letter
    return None


def _option_text(text: str, options: Sequence[str]) -> str | None:
    reply = text.lower()
    lettered = zip(ascii_uppercase, options, strict=False)
    return _only(letter for letter, option in lettered if option and option.lower() in reply)


def _only(answers: Iterable[str]) -> str | None:
    """The answer, if there is exactly one."""
    several = list(answers)
    return several[0] if len(several) == 1 else None


OptionReaders = Mapping[Rules, Callable[[str, Sequence[str]], str | None]]

OPTIONS: OptionReaders = {
    "official": _mmbench_official,
    "llava": _mmbench_official,  # it submits replies as they are to the benchmark's server
    "lmms-eval": _mmbench_lmms_eval,
    "vlmevalkit": partial(_kit, newest=True),
}
"""Reply and options -> the letter of the option chosen, or None: by its letter, else its text. An
empty option is none: its letter is skipped."""

HRBENCH: OptionReaders = {each: partial(_kit, newest=each == "vlmevalkit") for each in RULES}
"""The same in HR-Bench, whose own script then asks a language model."""

VSTAR: OptionReaders = {**OPTIONS, "lmms-eval": _vstar_lmms_eval}
"""The same in V*Bench."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS[:11])}
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll "
    "ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
    "someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't "
    "we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_CONTRACTIONS = {  # with any one apostrophe forgotten
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place in range(len(word))
    if word[place] == "'"
}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # as the official table has it


def named_choice(text: str, choices: Sequence[str]) -> str | None:
    """The one possible answer that a reply names as a whole word; None: it names none, or several.

    Case, full stops, brackets and prose around it do not matter. A single capital letter counts
    only as a capital within prose ("a" is an article). Numbers may be digits or words.

    Args:
        text: the reply.
        choices: lower-case words, single capital letters, or numbers as digits.

    >>> named_choice("Yes, there is.", ("yes", "no")), named_choice("(B)", "ABCD")
    ('yes', 'B')
    >>> named_choice("There are seven.", ("6", "7")), named_choice("I know it.", ("yes", "no"))
    ('7', None)
    """
    words = re.findall(r"[A-Za-z]+|[0-9]+", text)
    if len(words) == 1 and len(words[0]) == 1:
        words = [words[0].upper(), words[0]]
    return _only(choice for choice in choices if any(_same(word, choice) for word in words))


def _same(word: str, choice: str) -> bool:
    if choice.isdigit():
        lower = word.lower()
        number = str(NUMBER_WORDS.index(lower)) if lower in NUMBER_WORDS else word.lstrip("0")
        return (number or "0") == choice
    return word == choice if len(choice) == 1 else word.lower() == choice


_STOP, _KIT_STOP = r"\.(?!\d)", r"(?<!\d)\.(?!\d)"
"""The full stops that go: the VQA evaluation's, and VLMEvalKit's, which keeps `3.`"""


def vqa_punctuation(text: str, stop: str = _STOP) -> str:
    """Punctuation as the VQA evaluation takes it out: gone beside a blank or in a text with a
    number such as 1,000; elsewhere a blank; full stops gone except before digits, the first 32."""
    kept = text
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        kept = kept.replace(mark, "" if apart else " ")
    return re.sub(stop, "", kept, count=32)


def vqa_normalized(text: str, rules: Rules = "official") -> str:
    """A short answer as the VQA evaluation compares it: lower case, no articles, numbers as
    digits, forgotten apostrophes put back, `'s` a word of its own (but for VLMEvalKit).

    >>> vqa_normalized("The  STOP-sign, dont!")
    "stop sign don't"
    >>> vqa_normalized("Two o'clock."), vqa_normalized("Joe's 3.", "vlmevalkit")
    ("2 o'clock", "joe's 3.")
    """
    line, stop = re.sub(r"[\n\t]", " ", text.strip()), _KIT_STOP
    if rules != "vlmevalkit":
        line, stop = line.lower().replace(",", "").replace("?", "").replace("'s", " 's"), _STOP
    words = vqa_punctuation(line.strip(), stop).lower().split()
    words = [_NUMBERS.get(word, "0" if word == "none" else word) for word in words]
    kept = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


def vqa_accuracy(text: str, answers: Sequence[str], rules: Rules = "official") -> float:
    """Agreement with people's answers: the mean, over leaving out each of them in turn, of
    min(others who say the same / 3, 1). 0 for an empty list.

    >>> vqa_accuracy("Stop", ["stop"] * 2 + ["go"] * 8)
    0.6
    >>> vqa_accuracy("stop sign", ["Stop-sign"] * 10)
    1.0
    """
    reply = vqa_normalized(text, rules)
    same = [vqa_normalized(answer, rules) == reply for answer in answers]
    if not same:
        return 0.0
    total = sum(same)
    return sum(min((total - one) / 3, 1.0) for one in same) / len(same)
