"""sd_notify: what the service manager is told."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from layerkit.edges.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_reach_the_socket(tmp_path: Path, abstract: bool) -> None:
    name = f"@layerkit-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        Notifier(name, 3.0).tell("READY=1", "STATUS=good")
        assert manager.recv(100) == b"READY=1\nSTATUS=good"


def test_nobody_is_told_and_nobody_watches_without_a_manager(tmp_path: Path) -> None:
    Notifier().tell("READY=1")
    Notifier(str(tmp_path / "gone")).tell("READY=1")
    assert Notifier("", 3.0).watchdog == 0.0


def test_a_manager_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier(str(tmp_path / "notify"))
        for _ in range(2000):  # its queue is full long before
            notifier.tell("WATCHDOG=1")
