"""The wheel carries what it needs: built, installed into an empty environment, used from there."""

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


pytestmark = pytest.mark.xdist_group("wheel")  # one worker builds it, once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("layerkit-*.whl"))


def test_wheel_carries_templates_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for template in ("http", "cron", "worker"):
        assert f"layerkit/_data/templates/{template}/main.go" in names
    assert any(name.startswith("layerkit/_data/go-runtime/") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_wheel_carries_the_kernel_for_its_platform(wheel: Path) -> None:
    if build_kernel.target() is None:
        pytest.skip("no kernel for this platform")
    names = zipfile.ZipFile(wheel).namelist()
    assert "layerkit/native/_kernel.so" in names
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert "-manylinux_2_17_" in wheel.name
    assert "-any.whl" not in wheel.name


@pytest.mark.go
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
