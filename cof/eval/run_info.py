"""The model, the data and the versions of a run: recorded, and checked before it goes on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

import cof
from cof.client import RemoteCoF
from cof.engines.base import Engine
from cof.errors import CofError
from cof.eval.examples import Embedded, Example, image_digest
from cof.eval.json_files import read_json_object, write_atomically


def describe_engine(engine: Engine | RemoteCoF) -> dict[str, Any]:
    """The model by name and fingerprint, its dtype and device, and the versions of all software;
    of servers the model's name, which is all that they tell, and the versions here."""
    remote = isinstance(engine, RemoteCoF)
    name = engine.model if isinstance(engine, RemoteCoF) else engine.name
    model = None if remote else getattr(engine, "model", None)
    packages = ("numpy", "pillow") if remote else ("torch", "transformers", "numpy", "pillow")
    versions = {"cof": cof.__version__, "python": platform.python_version()}
    return {
        "model": Path(name).name,
        "weights": None if model is None else weights_digest(model),
        "dtype": None if model is None else str(model.dtype).removeprefix("torch."),
        "device": "cof serve" if remote else None if model is None else str(model.device.type),
        "versions": versions | {each: version(each) for each in packages},
    }


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that differ where the text does."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def questions_digest(examples: Iterable[Example]) -> str:
    """A fingerprint of all that changes an answer or a figure: the questions with all their fields,
    and what their images hold, wherever they lie."""
    images: dict[Path | Embedded, Path] = {}

    def told(example: Example) -> str:
        if example.image not in images:
            try:
                images[example.image] = Path(image_digest(example.image))
            except CofError:
                images[example.image] = Path("unreadable")
        return repr(replace(example, image=images[example.image]))

    return digest("\n".join(map(told, examples)))


def weights_digest(model: Any) -> str:
    """A fingerprint of a model from the beginning of each of its parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        head = parameter.detach().flatten()[:4096].float().cpu().numpy()
        digest.update(name.encode() + head.tobytes())
    return digest.hexdigest()[:16]


def check_same_run(path: Path, about: dict[str, Any]) -> None:
    """Keep `about` in a file; refuse where the file has another.

    Raises:
        CofError: it has, and the message names what differs; or the file is damaged.
    """
    about = json.loads(json.dumps(about))  # tuples are lists there
    if path.exists():
        before = read_json_object(path)
        other = [name for name in about if about[name] != before.get(name)]
        if other:
            raise CofError(
                f"{path.parent} holds answers of another run ({', '.join(other)} differ): write "
                "to another folder with --out, or delete that one."
            )
    write_atomically(path, json.dumps(about, indent=1) + "\n")


def progress_bar(console: Console) -> Progress:
    """Counts questions and says how long the rest will take."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn("questions"))
    return Progress(*columns, console=console)
