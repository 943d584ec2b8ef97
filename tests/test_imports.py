"""Imports run downward only, and the light modules load neither torch nor transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import cof

PACKAGE = Path(cof.__file__).parent

# Lower layers first; a module may import from its own layer's left neighbours and from below.
ORDER = (
    "errors",
    "types",
    "boxes",
    "forms",
    "prompts",
    "softmask",
    "parsing",
    "images",
    "heat",
    "words",
    "adaptive",
    "settings",
    "batching",
    "compiled",
    "widening",
    "masks",
    "attention",
    "placement",
    "prefixes",
    "processors",
    "crossing",
    "sites",
    "families",
    "tokens",
    "composer",
    "decoding",
    "loading",
    "writing",
    "guidance",
    "readout",
    "engine",
    "likelihood",
    "detector",
    "grounders",
    "focuses",
    "rows",
    "pipeline",
    "scripted",
    "viz",
    "tiny",
    "eval",
    "cli",
    "lmms",
)
HEAVY = {
    "compiled",
    "widening",
    "masks",
    "attention",
    "placement",
    "prefixes",
    "processors",
    "crossing",
    "sites",
    "families",
    "tokens",
    "composer",
    "decoding",
    "loading",
    "writing",
    "guidance",
    "readout",
    "engine",
    "likelihood",
    "detector",
    "tiny",
    "eval",
}
SEEING = {"grounders", "focuses.py", "rows.py", "pipeline.py"}
LIGHT = [name for name in ORDER if name not in HEAVY]


def imported(path: Path) -> set[tuple[str, bool]]:
    """Names of the `cof` modules a file imports, and whether it does so inside a function."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "cof":
                names = [f"cof.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("cof."):
                found.add((name.split(".")[1], id(node) in lazy))
    return found


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in ORDER, f"say in ORDER where {own} belongs"
    for name, lazy in imported(path):
        if name == own:
            continue
        # the pipeline builds the engine and finds the embedded model by name, on request only
        if own == "pipeline" and lazy and name in {"engine", "tiny"}:
            continue
        assert ORDER.index(name) < ORDER.index(own), f"{own} imports {name}, which is above it"


def test_the_pipeline_sees_engines_only_through_the_protocol() -> None:
    seeing = [path for path in modules() if path.relative_to(PACKAGE).parts[0] in SEEING]
    assert len(seeing) > len(SEEING)
    for path in seeing:
        eager = {target for target, lazy in imported(path) if not lazy}
        assert not eager & {"engine", "attention", "placement", "sites", "families", "detector"}


def heavy_after(statement: str) -> str:
    code = f"import sys; {statement}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    ).stdout.strip()


def test_import_cof_is_light(record_property: Callable[[str, object], None]) -> None:
    start = time.perf_counter()
    assert heavy_after("import cof; assert 'numpy' not in sys.modules") == "[]"
    record_property("import_cof_s", round(time.perf_counter() - start, 3))


def test_light_modules_load_no_torch() -> None:
    assert heavy_after("from cof import " + ", ".join(LIGHT)) == "[]"
    assert heavy_after("from cof import " + ", ".join(cof.__all__)) == "[]"
    # the probe sees what it looks for
    assert heavy_after("sys.modules['torch'] = sys") == "['torch']"


def test_public_names() -> None:
    assert set(cof._HOME) | {"__version__"} == set(cof.__all__)
    assert set(cof.__all__) <= set(dir(cof))
    for name in cof.__all__:
        assert getattr(cof, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = cof.Nothing  # type: ignore[attr-defined]
