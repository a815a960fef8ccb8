"""Answers that are ready, by the bytes of the request that they answer.

Nodes that run the same agent send the same bytes for the same update. What a request was answered
with is the answer to the same bytes again, as long as the source and the tokens stand as they
did, so it can be sent without reading the request: `wire` does. How they stand is asked once in a
turn of the event loop: whatever is read in it had come before. The key is a keyed hash, so no
token stays in memory. Bounded: MAX_ENTRY_SIZE, MAX_SIZE, MAX_REQUEST_SIZE. For one event loop.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from layerkit.edges.http.metrics import Metrics
from layerkit.edges.http.sendfile import keep_in_memory_file
from layerkit.errors import LayerkitError
from layerkit.formats.update import Share

__all__ = ["MAX_ENTRY_SIZE", "Ready", "ReadyAnswer"]

MAX_ENTRY_SIZE: Final = 256 << 10  # bytes of a body
MAX_SIZE: Final = 64 << 20  # bytes of bodies
SMALL_SIZE: Final = 8 << 10  # bytes of a body that is kept with its head, too, as one write
FILE_SIZE: Final = 16 << 10  # bytes from which a body is worth a file, once it is asked for again
MAX_FILE_COUNT: Final = 256
ENTRY_OVERHEAD: Final = 1024  # bytes: head, key, objects
MAX_TURN_SECONDS: Final = 0.005  # libuv polls again and again in one turn if 1024 sockets are busy
MAX_REQUEST_SIZE: Final = 8192  # bytes: 32 digests and a token are 3 KB
END: Final = b"\r\n\r\n"


@dataclass(slots=True, eq=False)
class ReadyAnswer:
    """An answer as bytes, and what is to be counted when it is sent."""

    version: object
    head: bytes  # status line and headers; the date and the empty line are put behind
    body: bytes
    status: int
    endpoint: str
    path: str
    caller: str
    shares: tuple[Share, ...]
    is_last: bool  # the connection is closed after it
    fd: int = field(default=-1)  # a file that holds the body, too, if it is a large one
    hits: int = field(default=0)  # not yet counted
    _whole: bytes = field(default=b"", repr=False)
    _whole_end: bytes = field(default=b"", repr=False)

    def join(self, end_of_head: bytes) -> bytes:
        """All of it, of a small answer: made anew when the date is another."""
        if self._whole_end is not end_of_head:
            self._whole = b"".join((self.head, end_of_head, self.body))
            self._whole_end = end_of_head
        return self._whole

    @property
    def kept_size(self) -> int:
        """Bytes that it takes in memory."""
        size = len(self.body)
        return ENTRY_OVERHEAD + (2 * size if size <= SMALL_SIZE else size)


class Ready:
    """`version` says how source and tokens stand: what was made under another one is dropped."""

    def __init__(self, version: Callable[[], object]) -> None:
        self._version = version
        self._secret = secrets.token_bytes(32)
        self._entries: OrderedDict[bytes, ReadyAnswer] = OrderedDict()
        self._size = 0
        self._uncounted: list[ReadyAnswer] = []
        self._file_count = 0
        self._known: object = None  # what `version` said in this turn
        self._known_until = 0.0

    def key_of(self, raw_request: bytes) -> bytes | None:
        """The key of what looks like one whole GET request without a body, else None."""
        if (
            not raw_request.startswith(b"GET ")
            or len(raw_request) > MAX_REQUEST_SIZE
            or raw_request.find(END) != len(raw_request) - len(END)
        ):
            return None
        return hashlib.blake2b(raw_request, digest_size=32, key=self._secret).digest()

    def find(
        self, key: bytes, now: float, call_soon: Callable[[Callable[[], None]], object]
    ) -> ReadyAnswer | None:
        """`now` in seconds; `call_soon` calls when this turn of the event loop is over."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        version = self._known
        if version is None or now > self._known_until:
            try:
                version = self._version()
            except LayerkitError:
                return None  # whoever answers in full says what is wrong
            if self._known is None:
                call_soon(self._forget)
            self._known, self._known_until = version, now + MAX_TURN_SECONDS
        if entry.version != version:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        if (
            entry.fd < 0 and len(entry.body) >= FILE_SIZE and self._file_count < MAX_FILE_COUNT
        ):  # asked for again
            entry.fd = keep_in_memory_file(entry.body)
            self._file_count += entry.fd >= 0
        return entry

    def _forget(self) -> None:
        self._known = None

    def put(self, key: bytes, entry: ReadyAnswer) -> None:
        if len(entry.body) > MAX_ENTRY_SIZE:
            return
        self._drop(key)
        self._entries[key] = entry
        self._size += entry.kept_size
        while self._size > MAX_SIZE:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry.kept_size
            if entry.fd >= 0:
                os.close(entry.fd)
                entry.fd = -1
                self._file_count -= 1

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        for key in list(self._entries):
            self._drop(key)

    def count_hit(self, entry: ReadyAnswer) -> None:
        """Counted in the metrics by `flush`: half of the time of an answer otherwise."""
        if not entry.hits:
            self._uncounted.append(entry)
        entry.hits += 1

    def flush(self, metrics: Metrics) -> None:
        """Bring the metrics up to date."""
        uncounted, self._uncounted = self._uncounted, []
        for entry in uncounted:
            count, entry.hits = entry.hits, 0
            metrics.requests.labels(entry.endpoint, str(entry.status)).inc(count)
            metrics.bytes.labels(entry.endpoint).inc(count * len(entry.body))
            metrics.cache.labels("answer", "hit").inc(count)
            metrics.count_shares(_times(entry.shares, count))


def _times(shares: Iterable[Share], count: int) -> list[Share]:
    return [
        Share(share.role, share.sent_size * count, share.whole_size * count) for share in shares
    ]
