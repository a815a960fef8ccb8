"""Values in memory: made once for all who ask at the same time, the last used kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Cache"]

T = TypeVar("T")


class Cache(Generic[T]):
    """Values by key, made once for all who ask at the same time, the last used kept while they
    fit into `limit`; the last one always. What fails is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._made: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.Lock, int]] = {}  # and how many hold or wait
        self._size = 0

    def get(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """`make` gives the value and its size."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key][0]
            making, count = self._making.get(key, (threading.Lock(), 0))
            self._making[key] = (making, count + 1)
        try:
            with making:
                with self._lock:
                    if key in self._made:
                        return self._made[key][0]
                value, size = make()
                self.put(key, value, size)
                return value
        finally:
            with self._lock:
                making, count = self._making[key]
                self._making[key] = (making, count - 1)
                if count == 1:
                    del self._making[key]

    def find(self, key: Hashable) -> T | None:
        """What is kept under `key`."""
        with self._lock:
            if key not in self._made:
                return None
            self._made.move_to_end(key)
            return self._made[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        with self._lock:
            self._size += size - self._made.pop(key, (value, 0))[1]
            self._made[key] = (value, size)
            while self._size > self._limit and len(self._made) > 1:
                self._size -= self._made.popitem(last=False)[1][1]
