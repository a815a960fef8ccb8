"""A server of the test's `layout`, and a node's store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerkit.edges.disk import Disk
from layerkit.edges.http import RunningServer
from layerkit.edges.store import Store
from layerkit.jobs.serve import start


@pytest.fixture
def server(layout: Path) -> Iterator[RunningServer]:
    with start(layout) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", Disk()) as opened:
        yield opened


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else writes a fallback tag here, so nobody needs to be waited for."""
    monkeypatch.setattr("layerkit.edges.registry.referrers.SETTLE_SECONDS", 0.001)
