"""The installed package: `pip install .` gives `wsol` alone, and importing it is cheap."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

import wsol

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SLOW_TO_IMPORT = ("torch", "torchvision", "timm", "numpy", "numba", "cv2", "matplotlib", "wandb")


def requirements(path: Path) -> list[str]:
    """The requirement lines of a file, without comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that `pip install --target` filled."""
    target = tmp_path_factory.mktemp("installed")
    # fmt: off
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--target", str(target), str(ROOT)],
        check=True, timeout=300,
    )
    # fmt: on
    return target


def run_outside(code: str, folder: Path, installed: Path) -> str:
    """The output of a Python program that sees the installed package and not the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_the_package_is_installed(installed):
    assert {path.name for path in installed.iterdir()} == {"wsol", f"wsol-{wsol.__version__}.dist-info"}


def test_every_module_and_every_type_stub_is_installed(installed):
    def files(folder: Path) -> set[str]:
        paths = (path for path in folder.rglob("*") if path.suffix in (".py", ".pyi") or path.name == "py.typed")
        return {str(path.relative_to(folder)) for path in paths}

    assert files(installed / "wsol") == files(ROOT / "wsol")
    assert {"py.typed", "__init__.pyi"} <= files(installed / "wsol")


def test_the_installed_package_is_imported_without_heavy_libraries(installed, tmp_path):
    code = (
        f"import sys, wsol; print(wsol.__version__, wsol.__file__, [m for m in {SLOW_TO_IMPORT} if m in sys.modules])"
    )
    version, file, loaded = run_outside(code, tmp_path, installed).split(maxsplit=2)
    assert version == wsol.__version__
    assert Path(file).is_relative_to(installed)
    assert loaded == "[]"


def test_every_public_name_can_be_imported(installed, tmp_path):
    code = "import wsol; [getattr(wsol, name) for name in wsol.__all__]; print(*sorted(wsol.__all__))"
    names = run_outside(code, tmp_path, installed).split()
    assert {"CamExtractor", "Variant", "build", "dualize", "to_scoremaps"} <= set(names)


def test_the_version_is_written_once(installed):
    metadata = next(installed.glob("*.dist-info")) / "METADATA"
    assert f"Version: {wsol.__version__}" in metadata.read_text().splitlines()
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]


def test_requirements_repeat_the_bounds_of_the_package():
    """requirements.txt serves a checkout that is not installed, so it lists what pyproject.toml lists."""
    extras = PROJECT["optional-dependencies"]
    of_extras = [line for extra in ("lite0", "wandb", "concepts") for line in extras[extra]]
    assert requirements(ROOT / "requirements.txt") == [*PROJECT["dependencies"], *of_extras]


def test_every_dependency_has_its_reason():
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    everything = requirements(ROOT / "requirements.txt") + requirements(ROOT / "tests" / "requirements.txt")
    names = [line.split(">")[0].split("=")[0] for line in everything]
    assert [name for name in names if name not in reasons] == []
