"""Imports run downward only, and the light modules load neither torch nor transformers."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cof

PACKAGE = Path(cof.__file__).parent

LAYERS = (
    "errors limits",
    "options",
    "geometry prompting",
    "types images",
    "engines.base attention families",
    "grounders focuses",
    "settings presets engines",
    "viz",
    "ahead messages query answer stages servers client pipeline",
    "looking verify",
    "tiny server",
    "eval web",
    "cli",
    "lmms",
)
"""Lower layers first. A module imports from its own layer and from those below it; no two modules
import each other, whatever their layer."""

ON_REQUEST = {
    ("pipeline", "engines.transformers.engine"),
    ("pipeline", "engines.vllm.engine"),
    ("pipeline", "tiny"),
}
"""Imports upward inside functions: the pipeline builds the engine, and finds the embedded model
by name."""

LIGHT = [
    "errors geometry.boxes geometry.regions geometry.heatmap",
    "prompting.dialects prompting.box_parsing prompting.box_template prompting.noun_phrases",
    "types images engines.base options grounders focuses settings query pipeline",
    "limits viz web.render cli lmms client server.app",
]
"""Modules that load neither torch nor transformers."""

SEEING = {"grounders", "focuses.py", "query.py", "stages.py", "pipeline.py"}
"""They see the protocols of `cof.engines.base` and no engine."""


def imported(path: Path, *, typing: bool = False) -> set[tuple[str, bool]]:
    """Names of the `cof` modules a file imports, and whether it does so inside a function.

    With `typing` also those that it imports for annotations only."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only and not typing:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if known(name) else node.module for name in whole]
        for name in names:
            if name.startswith("cof."):
                found.add((name.removeprefix("cof."), id(node) in lazy))
    return found


def known(module: str) -> bool:
    path = PACKAGE.parent / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def layer(module: str) -> int:
    """The layer of a module, by its longest name in `LAYERS`."""
    places = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in places:
            return places[name]
    raise AssertionError(f"say in LAYERS where {module} belongs")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_downward(path: Path) -> None:
    own = name_of(path)
    for name, lazy in imported(path):
        if lazy and (own, name) in ON_REQUEST:
            continue
        assert layer(name) <= layer(own), f"{own} imports {name}, which is above it"


def test_no_circle() -> None:
    """Not even through imports inside functions or for annotations alone. What is imported from
    outside a package loads the package too."""
    graph = {name_of(path): {name for name, _ in imported(path, typing=True)} for path in modules()}
    for own, names in graph.items():
        packages = {of.rsplit(".", n)[0] for of in names for n in range(1, of.count(".") + 1)}
        names |= {of for of in packages if not f"{own}.".startswith(f"{of}.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


def test_the_pipeline_sees_engines_only_through_the_protocol() -> None:
    seeing = [path for path in modules() if path.relative_to(PACKAGE).parts[0] in SEEING]
    assert len(seeing) > len(SEEING)
    for path in seeing:
        eager = {target for target, lazy in imported(path) if not lazy}
        below = ("engines.transformers", "attention", "families")
        assert not [name for name in eager if name.startswith(below)], path


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
    names = [f"cof.{name}" for line in LIGHT for name in line.split()]
    assert heavy_after("import " + ", ".join(names)) == "[]"
    assert heavy_after("from cof import " + ", ".join(cof.__all__)) == "[]"
    assert (
        heavy_after("import cof.pipeline; assert not [m for m in sys.modules if 'viz' in m]")
        == "[]"
    )
    # the probe sees what it looks for
    assert heavy_after("sys.modules['torch'] = sys") == "['torch']"


def test_public_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert typed == cof._MODULES
    assert set(cof.__all__) <= set(dir(cof))
    for name in cof.__all__:
        assert getattr(cof, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = cof.Nothing  # type: ignore[attr-defined]
