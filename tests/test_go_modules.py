"""The Go modules under the race detector, staticcheck and other releases of Go."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("go-runtime", "go-vet")
RELEASES = ("go1.24.9", "go1.25.4", "go1.27.1")  # besides the one that is on PATH
VET_RELEASES = ("go1.25.4", "go1.27.1")


def run_go(argv: list[str | Path], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        cwd=folder,
        env=os.environ | {"GOFLAGS": "", "CGO_ENABLED": "0"} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def passes(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.go
@pytest.mark.slow
def test_go_runtime_has_no_data_races(go_toolchain: Path) -> None:
    if shutil.which(os.environ.get("CC", "gcc")) is None:
        pytest.skip("the race detector needs cgo, and cgo a C compiler: there is no gcc")
    done = run_go(
        [go_toolchain, "test", "-race", "-count=1", "./..."], ROOT / "go-runtime", CGO_ENABLED="1"
    )
    passes(done)


@pytest.mark.go
@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_staticcheck_finds_nothing(module: str, go_toolchain: Path) -> None:
    folder = os.environ.get("LAYERKIT_TEST_TOOLS")
    found = shutil.which("staticcheck", path=f"{folder}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no staticcheck on PATH or in LAYERKIT_TEST_TOOLS")
    passes(run_go([found, "./..."], ROOT / module))


@pytest.mark.go
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "release"),
    [
        *(("go-runtime", release) for release in RELEASES),
        *(("go-vet", release) for release in VET_RELEASES),
    ],
)
def test_a_module_passes_with_other_releases(module: str, release: str, go_toolchain: Path) -> None:
    if run_go([go_toolchain, "version"], ROOT, GOTOOLCHAIN=release).returncode:
        pytest.skip(f"{release} is not to be had")
    passes(run_go([go_toolchain, "test", "./..."], ROOT / module, GOTOOLCHAIN=release))


@pytest.mark.go
@pytest.mark.slow
def test_the_pool_in_debug_builds_catches_use_after_free(go_toolchain: Path) -> None:
    tags = ["-tags", "layerkit_debug"]
    done = run_go([go_toolchain, "test", "-v", *tags, "./hugepool"], ROOT / "go-runtime")
    passes(done)
    assert re.search(r"--- PASS: TestUseAfterFree", done.stdout), done.stdout


@pytest.mark.go
@pytest.mark.slow
def test_each_benchmark_runs(go_toolchain: Path) -> None:
    argv = [go_toolchain, "test", "-run", "^$", "-bench", ".", "-benchtime", "1x", "./..."]
    done = run_go(argv, ROOT / "go-runtime")
    passes(done)
    assert done.stdout.count("ns/op") >= 5
