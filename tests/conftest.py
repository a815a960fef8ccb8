"""Shared fixtures: hypothesis profiles, the Go toolchain. An area's own are in its conftest.py.

LAYERKIT_TEST_PROFILE=deep makes random tests search longer; a failure prints its seed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from go_builds import find_go
from hypothesis import HealthCheck, settings

pytest_plugins = ["trust"]

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("quick", max_examples=50, **_COMMON)
settings.register_profile("deep", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("LAYERKIT_TEST_PROFILE", "quick"))


def pytest_report_header() -> str:
    profile = os.environ.get("LAYERKIT_TEST_PROFILE", "quick")
    return f"hypothesis profile {profile}, PYTHONHASHSEED {os.environ.get('PYTHONHASHSEED', '-')}"


@pytest.fixture(autouse=True)
def _no_layerkit_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own LAYERKIT_… settings do not reach the tests."""
    for name in list(os.environ):
        if name.startswith("LAYERKIT_") and not name.startswith(
            ("LAYERKIT_TEST", "LAYERKIT_WRITE")
        ):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def go_toolchain() -> Path:
    """A Go new enough: on PATH, or beside the interpreter. Skips, and says why, without one."""
    return find_go()


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for tests that write and sync thousands of files."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(dir=memory, prefix="layerkit-"))
    yield path
    shutil.rmtree(path)
