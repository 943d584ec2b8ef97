"""The wheel and the sdist that `make package` builds: what they hold, and that the wheel works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import cof

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def tracked(*folders: str) -> set[str]:
    """The files of the repository in these folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return set(listed.stdout.split("\0")) - {""}


@pytest.fixture(scope="module")
def wheel() -> Path:
    file = ROOT / "dist" / f"cof-{cof.__version__}-py3-none-any.whl"
    assert file.is_file(), "run `make package`"
    return file


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel, and this one's packages to import from."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / "python"
    install = ["-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(packages, "packages.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    return binaries


def run(folder: Path, *command: object) -> str:
    """What a command prints, run in a folder without the repository on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 40e6


def test_the_wheel_holds_all_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("cof-")}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        about = Parser().parsestr(archive.read(metadata).decode())
    assert held == tracked("cof")
    assert "cof/py.typed" in held
    assert about["Version"] == cof.__version__
    assert about["License-Expression"] == "Apache-2.0"


def test_the_sdist_holds_tests_and_documentation() -> None:
    folder = f"cof-{cof.__version__}"
    with tarfile.open(ROOT / "dist" / f"{folder}.tar.gz") as archive:
        held = {name.removeprefix(f"{folder}/") for name in archive.getnames()}
    wanted = tracked("cof", "tests", "docs", "bench", "examples")
    wanted |= {
        "Makefile",
        "mkdocs.yml",
        "constraints.txt",
        "constraints-vllm.txt",
        "CITATION.cff",
        "CHANGELOG.md",
    }
    assert not wanted - held


def test_the_installed_package_is_the_one_that_is_tried(fresh: Path, tmp_path: Path) -> None:
    where = run(tmp_path, fresh / "python", "-c", "import cof; print(cof.__file__)")
    assert Path(where.strip()).is_relative_to(fresh.parent)
    assert run(tmp_path, fresh / "cof", "--version").split() == ["cof", cof.__version__]


def test_the_demo_runs_from_an_empty_folder(fresh: Path, tmp_path: Path) -> None:
    told = run(tmp_path, fresh / "cof", "demo")
    questions = json.loads((ROOT / "cof" / "demo" / "questions.json").read_text("utf-8"))
    assert "Right: plain" in told
    assert len(list((tmp_path / "cof-demo").glob("*.png"))) == len(questions)
