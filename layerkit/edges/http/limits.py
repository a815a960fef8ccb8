"""Token buckets by caller: how many requests, how many bytes. For one event loop; no locks."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from layerkit.edges.http.options import Limits
from layerkit.errors import BusyError, RemoteLimitError

__all__ = ["Buckets", "Rates", "Room"]

MAX_BUCKET_COUNT: Final = 50_000  # callers remembered: 200 bytes each; who is forgotten starts full


class Buckets:
    """A bucket for each key: filled at `rate` a second up to `size`. It may go below zero, so that
    what is only known afterwards (bytes of an answer) can be taken, too."""

    def __init__(self, rate: float, size: float, now: Callable[[], float]) -> None:
        self._rate = rate
        self._size = size
        self._now = now
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, amount: float) -> None:
        """Take `amount`, even if it is not there."""
        now = self._now()
        level, seen = self._levels.pop(key, (self._size, now))
        level = min(self._size, level + (now - seen) * self._rate)
        self._levels[key] = (level - amount, now)
        if len(self._levels) > MAX_BUCKET_COUNT:
            self._levels.popitem(last=False)

    def seconds_until(self, key: str, amount: float) -> float:
        """How long until `amount` is there; 0 if it is."""
        now = self._now()
        level, seen = self._levels.get(key, (self._size, now))
        level = min(self._size, level + (now - seen) * self._rate)
        return max(0.0, (min(amount, self._size) - level) / self._rate)


class Rates:
    """The rates of one worker out of `worker_count`: each bears its part."""

    def __init__(self, limits: Limits, worker_count: int, now: Callable[[], float]) -> None:
        self._requests = _buckets(limits.request_rate, limits, worker_count, now)
        self._bytes = _buckets(limits.byte_rate, limits, worker_count, now)
        self.are_on = self._requests is not None or self._bytes is not None

    def check(self, key: str) -> None:
        """Take one request of `key`; BusyError, with the seconds to wait, if it has none left."""
        wait = self._requests.seconds_until(key, 1) if self._requests else 0.0
        if self._bytes:
            wait = max(wait, self._bytes.seconds_until(key, 1))
        if wait > 0:
            raise BusyError("too much is asked for", cause=str(math.ceil(wait)))
        if self._requests:
            self._requests.take(key, 1)

    def sent(self, key: str, size: int) -> None:
        """`size` bytes went to `key`."""
        if self._bytes:
            self._bytes.take(key, size)


def _buckets(
    rate: float, limits: Limits, worker_count: int, now: Callable[[], float]
) -> Buckets | None:
    if rate <= 0:
        return None
    part = rate / worker_count
    return Buckets(part, max(1.0, part * limits.burst_seconds), now)


class Room:
    """Memory for request bodies of all connections; refused with 413 once it is full."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        if size > self._left:
            raise RemoteLimitError("the server has no room for another request body")
        self._left -= size

    def give_back(self, size: int) -> None:
        self._left += size
