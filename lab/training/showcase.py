"""Select the demo's images: held-out scenes where CoF changes the early model's answer.

The demo shows four questions that CoF fixes, one that both answer correctly, and one that CoF
breaks, if there is one. `make eval` measures how often each happens, on scenes that are not
selected.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import cof
from cof.pipeline import CoF
from cof.tiny.questions import glyph
from cof.tiny.scenes import make_scene, render

SEEDS = 6_000_000  # not used by training or by any benchmark
MODEL = "tiny-early"  # `tiny` answers nearly all of these correctly without CoF
SCALE = 3  # images are larger than the model sees them, for human eyes
WANTED = {"fixed": 4, "both": 1, "broken": 1}


def showcase(folder: Path, scenes: int, objects: int = 12) -> list[dict[str, str]]:
    """Write images and `questions.json` to `folder`; return the questions."""
    cof = CoF.from_pretrained(MODEL)
    left = dict(WANTED)
    items: list[dict[str, str]] = []
    for seed in range(SEEDS, SEEDS + scenes):
        scene = make_scene(seed, objects)
        image = render(scene, scale=SCALE)
        question = glyph(scene, random.Random(seed))
        answer = cof(image, question.text)
        plain, focused = (text == question.answer for text in (answer.plain(), answer.text))
        outcome = {(False, True): "fixed", (True, True): "both", (True, False): "broken"}.get(
            (plain, focused), "neither"
        )
        if left.get(outcome, 0) > 0:
            left[outcome] -= 1
            name = f"scene-{len(items) + 1}.png"
            image.save(folder / name, optimize=True)
            items.append({"image": name, "question": question.text, "answer": question.answer})
        if not any(left.values()):
            break
    (folder / "questions.json").write_text(json.dumps(items, indent=2) + "\n", "utf-8")
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(cof.__file__).parent / "demo")
    parser.add_argument("--scenes", type=int, default=300, help="how many scenes to try")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for item in showcase(args.out, args.scenes):
        print(item)


if __name__ == "__main__":
    main()
