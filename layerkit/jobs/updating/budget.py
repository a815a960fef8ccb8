"""What making things for callers may cost: processor time for each caller, memory for all."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["BUDGET_SECONDS", "BUDGET_WINDOW", "Budgets", "Room"]

BUDGET_SECONDS: Final = 30.0  # of a processor: thirty deltas of a 6 MB binary, or two of 76 MB,
BUDGET_WINDOW: Final = 60.0  # in so many seconds: half a core for who never stops asking
MANY_CALLERS: Final = 4096  # from here on who has spent nothing lately is forgotten


class Budgets:
    """Processor seconds for each caller: up to `seconds` at once, refilled in `window` seconds.
    Who is in debt gets nothing more until it is paid off. Safe for threads.

    The caller "" (a server without tokens: all are one) has no budget, nor has anyone when
    `seconds` is 0.
    """

    def __init__(
        self,
        seconds: float = BUDGET_SECONDS,
        window: float = BUDGET_WINDOW,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._rate = seconds / window
        self._now = now
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # seconds left, and when that was
        self._many = MANY_CALLERS

    def has_left(self, who: str) -> bool:
        """May something be begun for this caller?"""
        if not who or not self._seconds:
            return True
        with self._lock:
            return self._balance(who) > 0

    def charge(self, who: str, seconds: float) -> None:
        """What was begun has cost so much. It may be more than was left."""
        if not who or not self._seconds:
            return
        with self._lock:
            self._left[who] = (self._balance(who) - seconds, self._now())
            if len(self._left) > self._many:
                self._left = {
                    one: entry
                    for one, entry in self._left.items()
                    if self._balance(one) < self._seconds
                }
                self._many = max(MANY_CALLERS, 2 * len(self._left))  # not at each call

    def _balance(self, who: str) -> float:
        left, at = self._left.get(who, (self._seconds, 0.0))
        return min(self._seconds, left + (self._now() - at) * self._rate)


class Room:
    """Memory for what is made at once: `size` bytes in all. What is larger goes alone. First come,
    first served, so that large ones are not passed by small ones for ever. Safe for threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes; waits for its turn."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._fits(size))
            self._waiting.popleft()
            self._used += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._size
