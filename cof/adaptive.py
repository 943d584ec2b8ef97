"""Do no harm: whether to look at all, how hard, and whether to keep what came of it.

A rule is a handful of thresholds on what is known anyway: how sure the plain answer is, how sure
the box is and how large, how sure the answer after looking is. `cof adapt` fits one on questions
with known answers and freezes it in a file; `Settings.adaptive` applies it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cof.errors import CofError

RULE_FILE = "adaptive.json"
"""Name of the rule that lies beside a model's weights."""


@dataclass(frozen=True)
class Rule:
    """When the plain answer is given up for the one after looking. The defaults always look.

    A confidence is the geometric mean probability of a reply's tokens, 0..1. One that the engine
    does not tell stops nothing.

    Attributes:
        plain_at_most: stage 1 is run where the plain answer is at most this sure.
        box_at_least: stage 2 is run where the box is at least this sure.
        area_at_most: and its area, before expansion, at most this share of the image.
        ratio_at_least: the answer after looking is taken where its confidence is at least so
            many times that of the plain answer.
        strengths: `(least confidence of the box, lambda)`, by rising confidence from 0 on; empty:
            `Settings.strength` for all.

    Raises:
        CofError: a threshold is out of range, or `strengths` does not begin at 0 and rise.

    Example: surer boxes are looked at harder.

        >>> rule = Rule(plain_at_most=0.9, strengths=((0.0, 2.0), (0.5, 8.0)))
        >>> rule.looks(0.95), rule.looks(0.9), rule.looks(None)
        (False, True, True)
        >>> rule.strength(0.4, usual=1.3), rule.strength(0.5, usual=1.3)
        (2.0, 8.0)
    """

    plain_at_most: float = 1.0
    box_at_least: float = 0.0
    area_at_most: float = 1.0
    ratio_at_least: float = 0.0
    strengths: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("plain_at_most", "box_at_least", "area_at_most", "ratio_at_least"):
            value = getattr(self, name)
            top = math.inf if name == "ratio_at_least" else 1.0
            if not _is_number(value) or not 0 <= value <= top:
                span = "a number from 0 on" if top > 1 else "a number in 0..1"
                raise CofError(f"The rule's {name} must be {span}, not {value!r}.")
        try:
            steps = tuple((float(least), float(strength)) for least, strength in self.strengths)
        except (TypeError, ValueError):
            steps = ((math.nan, math.nan),)
        begins = [least for least, _ in steps]
        rising = begins == sorted(set(begins)) and begins[:1] in ([], [0.0])
        if not rising or not all(0 < strength < math.inf for _, strength in steps):
            raise CofError(
                "The rule's strengths must be pairs of a box's least confidence, rising from 0, "
                f"and a lambda above 0, not {self.strengths!r}."
            )
        object.__setattr__(self, "strengths", steps)

    def looks(self, plain: float | None) -> bool:
        """Whether stage 1 is worth its price, given the plain answer's confidence."""
        return plain is None or plain <= self.plain_at_most

    def trusts(self, box: float | None, area: float) -> bool:
        """Whether stage 2 is run on a box of this confidence and share of the image."""
        return (box is None or box >= self.box_at_least) and area <= self.area_at_most

    def strength(self, box: float | None, usual: float) -> float:
        """lambda for a box of this confidence; `usual`: where the rule names none.

        A box whose confidence is unknown gets the mildest.
        """
        if not self.strengths:
            return usual
        if box is None:
            return min(strength for _, strength in self.strengths)
        return [strength for least, strength in self.strengths if box >= least][-1]

    def takes(self, plain: float | None, looked: float | None) -> bool:
        """Whether the answer after looking replaces the plain one, given both confidences."""
        return plain is None or looked is None or looked >= self.ratio_at_least * plain

    def sentence(self) -> str:
        """The rule in words.

        >>> Rule(plain_at_most=0.9, ratio_at_least=1.1).sentence()
        'look where the plain answer is at most 0.9 sure; take the new one if 1.1 times as sure'
        """
        if self.plain_at_most == 0:
            return "never look"
        limits = []
        if self.plain_at_most < 1:
            limits.append(f"the plain answer is at most {self.plain_at_most:g} sure")
        if self.box_at_least > 0:
            limits.append(f"the box is at least {self.box_at_least:g} sure")
        if self.area_at_most < 1:
            limits.append(f"it covers at most {self.area_at_most:g} of the image")
        parts = ["look where " + " and ".join(limits) if limits else "always look"]
        if len(self.strengths) == 1:
            parts.append(f"lambda {self.strengths[0][1]:g}")
        elif self.strengths:
            steps = [f"{s:g} from a box's confidence of {least:g}" for least, s in self.strengths]
            parts.append("lambda " + ", ".join(steps))
        if self.ratio_at_least > 0:
            parts.append(f"take the new one if {self.ratio_at_least:g} times as sure")
        return "; ".join(parts)


def save_rule(path: Path, rule: Rule, fitted: Mapping[str, Any]) -> None:
    """Freeze a rule.

    Args:
        path: of the JSON file.
        rule: the thresholds.
        fitted: on what it was chosen, for the record; `load_rule` does not read it.
    """
    path.write_text(
        json.dumps({"rule": asdict(rule), "fitted": dict(fitted)}, indent=1) + "\n", "utf-8"
    )


def load_rule(path: Path) -> Rule:
    """The rule of a file that `cof adapt` wrote.

    Raises:
        CofError: there is no such file, or it holds no rule.
    """
    try:
        values = json.loads(path.read_text("utf-8"))["rule"]
        unknown = values.keys() - {field.name for field in fields(Rule)}
    except FileNotFoundError:
        raise CofError(f"There is no rule {path}: `cof adapt` writes one.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CofError(f"{path} holds no rule ({error!r}): `cof adapt` writes one.") from error
    if unknown:
        raise CofError(f"The rule in {path} has {', '.join(sorted(unknown))}, which is unknown.")
    return Rule(**values)


def chosen_rule(choice: str, model: str) -> Rule | None:
    """What the option `--adaptive` names.

    Args:
        choice: `off`; `on`: the rule beside the model's weights (`adaptive.json` in its folder);
            or the path of a rule's file.
        model: the model's folder or hub id.

    Raises:
        CofError: there is no rule.
    """
    if choice == "off":
        return None
    path = _path(choice, model)
    if choice == "on" and not path.is_file():
        raise CofError(
            f"No rule comes with {model}: fit one on questions whose answers are known with "
            "`cof adapt`, and give its file to --adaptive."
        )
    return load_rule(path)


def unlike(choice: str, model: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings that differ from those that the chosen rule was fitted with: a confidence means
    something else there.

    Args:
        choice, model: as of `chosen_rule`, which has read the file before.
        settings: by name.

    Returns:
        `name value, not value` of each.
    """
    if choice == "off":
        return []
    fitted = json.loads(_path(choice, model).read_text("utf-8")).get("fitted", {})
    return [
        f"{name} {value}, not {settings[name]}"
        for name, value in fitted.get("settings", {}).items()
        if name in settings and settings[name] != value
    ]


def _path(choice: str, model: str) -> Path:
    return Path(model) / RULE_FILE if choice == "on" else Path(choice)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
