"""Settings that a study chose on validation questions, in a file for later runs."""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cof.errors import CofError, CofWarning
from cof.eval.examples import Example
from cof.eval.json_files import parse_json, write_atomically
from cof.eval.run_info import digest
from cof.settings import Settings

CHOSEN = "chosen.json"


@dataclass(frozen=True)
class Chosen:
    """A choice, and the questions that it was made on.

    Attributes:
        settings: the choice.
        share: of the data's images, on which it was made; 1: all of them.
        questions: fingerprints of the questions that it was made on.
        about: the model, the data, the versions and the date, for people.
    """

    settings: Settings
    share: float
    questions: frozenset[str]
    about: Mapping[str, Any]

    @classmethod
    def make(
        cls,
        examples: Sequence[Example],
        settings: Settings,
        *,
        share: float,
        about: Mapping[str, Any],
    ) -> Chosen:
        """A choice made today on these questions."""
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        questions = frozenset(map(_fingerprint, examples))
        return cls(settings, share, questions, {**about, "date": today})

    @classmethod
    def read(cls, path: Path) -> Chosen:
        """The choice in a file.

        Raises:
            CofError: there is no such file, or it is no choice.
        """
        if not path.is_file():
            raise CofError(f"There is no {path}: `cof sweep` writes it as {CHOSEN}.")
        try:
            record = parse_json(path.read_bytes())
            return cls(
                Settings.read(record["settings"]),
                float(record["share"]),
                frozenset(map(str, record["questions"])),
                dict(record["about"]),
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise CofError(f"{path} is no choice of `cof sweep` ({error!r}).") from error

    def write(self, path: Path) -> None:
        """Write the choice, all or nothing."""
        record = {
            "settings": self.settings.as_dict(),
            "share": self.share,
            "about": dict(self.about),
            "questions": sorted(self.questions),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record, indent=1) + "\n")

    def seen(self, examples: Sequence[Example]) -> int:
        """How many of the questions the choice was made on."""
        return sum(_fingerprint(example) in self.questions for example in examples)

    def check(self, examples: Sequence[Example], model_name: str) -> None:
        """Refuse questions that the choice was made on; warn of another model.

        Raises:
            CofError: some are among them; the message says how many.
        """
        if same := self.seen(examples):
            raise CofError(
                f"{same} of these questions are among those on which the settings were chosen: "
                "measure on other data."
            )
        own, other = str(self.about.get("model")), Path(model_name).name
        if own != other:
            warnings.warn(
                f"These settings were chosen with {own}, and this is {other}: lambda and alpha do "
                "not carry over from model to model.",
                CofWarning,
                stacklevel=2,
            )


def _fingerprint(example: Example) -> str:
    """Tells a question from others, whatever its prompt style."""
    return digest("\t".join((example.id, example.question or example.prompt, example.answer)))
