"""Do the tests notice? `python -m lab.mutations` breaks twenty important lines, one at a time.

Each line is broken in a copy of the files, where the tests of the core run until the first
failure. A mutation that no test notices has survived.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MUTATIONS = (
    ("families/token_coverage", "share >= min(INSIDE, best)", "share > min(INSIDE, best)"),
    ("families/token_coverage", "share.clip(0.0, 1.0)", "share.clip(0.0, 0.5)"),
    ("families/token_coverage", "left : right + 1] = True", "left:right] = True"),
    ("families/image_tokens", "* np.log(highlight.strength)", "* np.log(highlight.strength) / 2"),
    ("families/image_tokens", "weights * (highlight.strength - 1)", "weights * highlight.strength"),
    ("geometry/boxes", "side = max(width, height)\n        left", "side = width\n        left"),
    ("geometry/boxes", "self.left + x * (self", "self.left + (self"),
    ("geometry/boxes", "area(a) + area(b) - both", "area(a) + area(b)"),
    ("geometry/regions", "bottom / height", "(bottom - 1) / height"),
    ("attention/bias_mask", "numbers >= repeat_rows", "numbers > repeat_rows"),
    ("attention/bias_mask", "torch.where(visible, added,", "torch.where(visible, 2 * added,"),
    ("attention/bias_mask", ".clamp(max=bias.values.shape[1])", ".clamp(max=0)"),
    ("stages", "max(each, key=", "min(each, key="),
    ("grounders/maps", "np.maximum(theirs + means,", "np.maximum(theirs + 0 * means,"),
    ("engines/transformers/prefix_cache", "cached = max(reused)", "cached = min(reused)"),
    ("engines/transformers/generation", "steps[at][row, token]", "steps[0][row, token]"),
    ("eval/data/pope", "return 2 * hit, hit +", "return 2 * hit, 2 * hit +"),
    ("eval/figures", "sums >= observed", "sums > observed"),
    ("eval/store", "(r.method, r.id) not in self}", "r.id}"),
    ("eval/rules", '"no" if {"No", "not", "no"} &', '"no" if {"No", "not"} &'),
)
"""The file, the text of the line, and what stands there instead."""

TESTS = (
    "token_coverage families boxes attention stages grounders matrix prefix_cache engine "
    "pipeline focuses runner figures rules benchmarks parity same_answers"
)


def survives(root: Path, file: str, before: str, after: str) -> bool:
    """Whether the tests in a checkout pass with a line broken.

    Raises:
        ValueError: the line is not there, or not there once.
    """
    path = Path("cof", f"{file}.py")
    text = (root / path).read_text("utf-8")
    if text.count(before) != 1:
        raise ValueError(f"{path} has {before!r} {text.count(before)} times")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in filter(Path.is_dir, (root / "cof", root / "tests", root / "lab")):
            shutil.copytree(name, copy / name.name)
        shutil.copy(root / "pyproject.toml", copy)
        (copy / path).write_text(text.replace(before, after), "utf-8")
        tests = [f"tests/test_{name}.py" for name in TESTS.split()]
        present = [name for name in tests if (copy / name).exists()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *present]
        done = subprocess.run(command, cwd=copy, capture_output=True)
    return done.returncode == 0


def main() -> None:
    """Print each mutation with its fate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(), help="a git checkout")
    root = parser.parse_args().root
    killed = 0
    for file, before, after in MUTATIONS:
        fate = "survived" if survives(root, file, before, after) else "killed"
        killed += fate == "killed"
        print(f"{fate:9}{file}: {after!r}", flush=True)
    print(f"{killed} of {len(MUTATIONS)} killed")


if __name__ == "__main__":
    main()
