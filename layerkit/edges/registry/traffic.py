"""What goes over a registry's line: bodies, read within bounds of size and time, and counted.

An answer that comes at a drip ends as an error, however long it goes on. Safe for threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import urllib3

from layerkit.edges.upstream import Measured
from layerkit.errors import RemoteError, RemoteLimitError

__all__ = ["BrokenError", "Traffic"]

READ_SIZE: Final = 64 << 10
LEAST_SECONDS: Final = 60.0  # every body may take this long, and is looked at this often
LEAST_RATE: Final = 16 << 10  # bytes a second: below this a body is given up
SLOW_FACTOR: Final = 4  # how far below LEAST_RATE it may fall in such a stretch
_SEEN: Final = ("GET", "HEAD")  # methods whose heads tell the round trip


class BrokenError(RemoteError):
    """The connection failed; the same request may get through."""


@dataclass(slots=True)
class Traffic:
    """Counts requests and bytes of bodies, sent and received; measures the line meanwhile."""

    now: Callable[[], float] = time.monotonic
    least_seconds: float = LEAST_SECONDS
    request_count: int = 0
    bytes_moved: int = 0
    link: Measured = field(default_factory=Measured)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sent(self, method: str, data: Any, seconds: float, status: int) -> None:
        """A request went out with body `data`, and its answer's head came after `seconds`."""
        with self._lock:
            self.request_count += 1
            self.bytes_moved += len(data) if isinstance(data, bytes) else 0
            self.link.waited += seconds
            if method in _SEEN and status in (200, 206, 304):
                self.link.see_head(seconds)

    def count(self, size: int) -> None:
        """`size` bytes of a body went over the line."""
        with self._lock:
            self.bytes_moved += size

    def read(self, answer: requests.Response, limit: int) -> bytes:
        """The body of at most `limit` bytes; RemoteLimitError over that."""
        data = bytearray()
        started = self.now()
        for part in self.stream(answer, limit):
            data += part
        with self._lock:
            self.link.see_body(len(data), self.now() - started, waited=True)
        return bytes(data)

    def stream(self, answer: requests.Response, limit: int) -> Generator[bytes, None, None]:
        """The body as it is on the wire, of at most `limit` bytes. Raises BrokenError where it
        breaks off, RemoteLimitError where it is too long or comes too slowly."""
        host = urlsplit(answer.url).netloc
        started = marked = self.now()
        total, before, waited = 0, 0, 0.0
        try:
            while True:
                asked = self.now()
                part = answer.raw.read1(READ_SIZE, decode_content=False)
                now = self.now()
                waited += now - asked
                if not part:
                    break
                total += len(part)
                self.count(len(part))
                if total > limit:
                    raise RemoteLimitError(f"answer of {host} is over {limit} bytes")
                is_slow = now - started > self.least_seconds + limit / LEAST_RATE
                if now - marked > self.least_seconds:
                    is_slow |= total - before < (now - marked) * LEAST_RATE / SLOW_FACTOR
                    marked, before = now, total
                if is_slow:
                    raise RemoteLimitError(f"answer of {host} comes too slowly")
                yield bytes(part)
            with self._lock:
                self.link.see_body(total, self.now() - started, waited=False)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            why = str(exc) or type(exc).__name__
            raise BrokenError(f"{host} breaks off", cause=why) from exc
        finally:
            with self._lock:
                self.link.waited += waited
            answer.close()
