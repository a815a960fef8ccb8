"""Tells the service manager how the daemon is (sd_notify), where it asked to be told.

Spec: sd_notify(3): one datagram a message to the unix socket in NOTIFY_SOCKET; "@" is an abstract
one. Nothing depends on it: what cannot be sent is dropped.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Notifier"]


class Notifier:
    """`address` is NOTIFY_SOCKET, "" for nobody; `watchdog` is WATCHDOG_USEC in seconds, or 0."""

    def __init__(self, address: str = "", watchdog: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog if address else 0.0

    def tell(self, *lines: str) -> None:
        """``READY=1``, ``STATUS=…``, ``WATCHDOG=1``, ``STOPPING=1``."""
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            # never waited for: a manager that does not read must not stop the agent
            sender.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
