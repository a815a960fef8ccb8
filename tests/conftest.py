"""Shared fixtures: hypothesis profiles, the Go toolchain. An area's own are in its conftest.py.

LAYERKIT_TEST_PROFILE=deep makes random tests search longer; a failure prints its seed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
NEEDS_GO = (1, 24)
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
    beside = Path(sys.executable).parent / "go"
    for found in (shutil.which("go"), str(beside) if beside.exists() else None):
        if found is None:
            continue
        said = subprocess.run(
            [found, "version"], capture_output=True, text=True, check=False
        ).stdout
        release = re.search(r"\bgo(\d+)\.(\d+)", said)
        if release and (int(release[1]), int(release[2])) >= NEEDS_GO:
            return Path(found)
    pytest.skip(f"no Go {NEEDS_GO[0]}.{NEEDS_GO[1]} or newer on PATH or in .venv")
