"""The wheel carries what it needs.

Quick: packed without the kernel, unpacked, used from there. Slow: as pip builds and installs it,
with its compiler and its dependencies from the registry, into an empty environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import build_kernel  # noqa: E402


def run(argv: list[str | Path], folder: Path, **environment: str) -> str:
    """Run with nothing of this checkout on the way; returns stdout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        argv, cwd=folder, env=env | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def test_an_unpacked_wheel_has_all_that_it_needs(tmp_path: Path) -> None:
    hatchling = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    run(hatchling, ROOT, HATCH_BUILD_NO_HOOKS="true")
    wheel = next(tmp_path.glob("layerkit-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    assert any(name.startswith("layerkit/_data/go-runtime/") for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    where = {"PYTHONPATH": str(tmp_path / "unpacked")}
    for template in ("http", "cron", "worker"):
        argv = [sys.executable, "-m", "layerkit", "init", template, "--template", template]
        assert run(argv, tmp_path, **where) == f"{template}\n"
    place = [sys.executable, "-c", "import layerkit; print(layerkit.__file__)"]
    assert run(place, tmp_path, **where).startswith(where["PYTHONPATH"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("layerkit-*.whl"))


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")  # one worker builds it, once
def test_wheel_carries_the_kernel_for_its_platform(wheel: Path) -> None:
    if build_kernel.target() is None:
        pytest.skip("no kernel for this platform")
    names = zipfile.ZipFile(wheel).namelist()
    assert "layerkit/native/_kernel.so" in names
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "-manylinux_2_17_" in wheel.name
    assert "-any.whl" not in wheel.name


@pytest.mark.go
@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
def test_init_and_build_work_from_the_wheel(
    wheel: Path, tmp_path: Path, go_toolchain: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", wheel], tmp_path)
    layerkit = tmp_path / "venv/bin/layerkit"
    path = f"{go_toolchain.parent}{os.pathsep}{os.environ['PATH']}"
    assert run([layerkit, "init", "hello"], tmp_path) == "hello\n"
    line = run([layerkit, "build", "hello", "-t", "hello:v1"], tmp_path, PATH=path)
    assert line.startswith("hello@sha256:")
