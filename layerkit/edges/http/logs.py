"""A line a request, as JSON or text, to standard error; never a token, never a query.

Lines are gathered and written by a thread, so that a slow reader of the log slows no answer; what
does not fit is counted and said.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

__all__ = ["RequestLog", "RequestRecord"]

MAX_LINE_COUNT: Final = 20_000  # waiting to be written: about 5 MB
MAX_PATH_SIZE: Final = 512  # characters
FLUSH_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What a line says."""

    method: str
    path: str
    status: int
    size: int
    seconds: float
    caller: str
    address: str
    endpoint: str


class RequestLog:
    """Writes lines to a descriptor from a thread of its own. `format` is json or text."""

    def __init__(self, format: str, fd: int = 2) -> None:
        self._format = _as_json if format == "json" else _as_text
        self._fd = fd
        self._lines: deque[str] = deque()
        self._lost = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="request-log")
        self._thread.start()

    def write(self, record: RequestRecord) -> None:
        if len(self._lines) >= MAX_LINE_COUNT:
            self._lost += 1
            return
        self._lines.append(self._format(record, time.time()))

    def close(self) -> None:
        """Write what waits, then end."""
        self._stop.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        lost, self._lost = self._lost, 0
        if lost:
            lines.append(json.dumps({"level": "warning", "message": f"{lost} lines were lost"}))
        data = memoryview("".join(line + "\n" for line in lines).encode("utf-8", "replace"))
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self._lost += len(lines)  # nobody reads it any more: no reason to stop serving


def _stamp(now: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{whole}.{int(now % 1 * 1000):03d}Z"


def _as_json(record: RequestRecord, now: float) -> str:
    return json.dumps(
        {
            "time": _stamp(now),
            "level": "info",
            "method": record.method,
            "path": record.path[:MAX_PATH_SIZE],
            "status": record.status,
            "bytes": record.size,
            "seconds": round(record.seconds, 6),
            "caller": record.caller,
            "address": record.address,
            "endpoint": record.endpoint,
        }
    )


def _as_text(record: RequestRecord, now: float) -> str:
    path = json.dumps(record.path[:MAX_PATH_SIZE])[1:-1]  # no control characters in a terminal
    return (
        f"{_stamp(now)} {record.address or '-'} {record.caller or '-'} {record.method} {path}"
        f" {record.status} {record.size} {record.seconds:.6f}"
    )
