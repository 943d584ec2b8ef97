"""The words of a question that name objects, by a list of words that do not."""

from __future__ import annotations

import re

from cof.prompting.dialects import first_line

_ASKING = {"what", "which", "whose"}
_LIST = """
    a an the this that these those there here it its he she they them his her their we you your
    i my me is are was were be been being am do does did done has have had having can could will
    would shall should may might must not no yes any some all both each every and or but if then
    than as of in on at by for from to into onto with without within over under above below behind
    beside between near next against around across along through out off up down who whom how why
    when where whether many much more most less least number kind type sort please answer describe
    tell say see find give list name show written shown seen visible image picture photo photograph
    scene object objects thing things item items please using single word phrase left right top
    bottom side middle center centre part front back so such same other another only also very
    just about"""
_STOP_WORDS = frozenset(_LIST.split())
_WORD = r"\w+(?:['’-]\w+)*"
_SHORTENED = re.compile(r"(?:(?<!ca)n['’]t|['’]\w+)$")  # isn't, can't, what's


def object_words(question: str) -> tuple[str, ...]:
    """The phrases of a question that name objects: runs of words that are not in a stop list.

    A phrase after what, which or whose is what the question asks for, not an object to find; it
    counts only if there is no other phrase. Without any phrase every word counts. Text after the
    first line or the first question mark (options, answer instruction) is left out. The stop list
    is English, without grammar; FOCUS (arXiv 2506.21710) asks the model, for one more answer.

        >>> object_words("What letter is on the yellow cross?\\nAnswer with a single word.")
        ('yellow cross',)
        >>> object_words("Is the man with a red umbrella next to the bus? Please answer yes or no.")
        ('man', 'red umbrella', 'bus')
        >>> object_words("What color is it?"), object_words("Why?")
        (('color',), ('Why',))
    """

    def mark(match: re.Match[str]) -> str:
        word = _SHORTENED.sub("", match[0].lower())
        return "\1" if word in _ASKING else "\0" if word in _STOP_WORDS else match[0]

    asked = first_line(question).split("?", 1)[0]
    parts = re.split("([\0\1])", "\0" + re.sub(_WORD, mark, asked))
    found: dict[str, list[str]] = {"\0": [], "\1": []}
    for before, part in zip(parts[1::2], parts[2::2], strict=True):
        found[before] += re.findall(rf"{_WORD}(?:\s+{_WORD})*", part)
    phrases, asked_for = found.values()
    return tuple(phrases or asked_for or re.findall(_WORD, asked) or (question.strip(),))
