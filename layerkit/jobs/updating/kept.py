"""Bytes that servers make once: kept in memory while they fit, and on the storage's shelf.

The shelf outlives the server, and is shared with others over the same storage: who makes something
claims it there, so that the others wait instead of making it, too. Safe for threads.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final, Protocol

from layerkit.edges.storage import Shelf
from layerkit.errors import NotFoundError
from layerkit.formats.tokens import Caller
from layerkit.jobs.updating.cache import Cache
from layerkit.jobs.updating.workshop import Make, Workshop

__all__ = ["Kept", "Meter", "NoMeter"]

CLAIM_SECONDS: Final = 30.0  # for what one server makes (76 MB: 13 s); then others may, too
PAUSE: Final = 0.02  # seconds until it is looked again whether it is made; grows to
MAX_PAUSE: Final = 0.5
ENTRY_SIZE: Final = 1024  # bytes that an entry counts at least


class Meter(Protocol):
    """Told of what is made."""

    def kept(self, what: str, hit: bool) -> None:
        """Something of kind `what` was asked for: was it kept (True) or to be made?"""

    def made(self, what: str, seconds: float) -> None:
        """Something of kind `what` was made in `seconds`."""


class NoMeter:
    """Where nobody measures."""

    def kept(self, what: str, hit: bool) -> None: ...

    def made(self, what: str, seconds: float) -> None: ...


class Kept:
    """Things of one kind, `what`, by key. None is an answer, too: it is known that there is none.
    `limit` is of bytes in memory."""

    def __init__(
        self, what: str, limit: int, workshop: Workshop, meter: Meter, shelf: Shelf | None = None
    ) -> None:
        self._what = what
        self._workshop = workshop
        self._meter = meter
        self._shelf = shelf
        self._made = Cache[bytes](limit)  # empty: there is none

    def find(self, key: str) -> bytes | None:
        """What was made under `key`, here or by another server; NotFoundError if nothing was."""
        raw = self._made.find(key)
        if raw is None and self._shelf is not None:
            raw = self._shelf.get(key)
            if raw is not None:
                self._remember(key, raw)
        if raw is None:
            raise NotFoundError("it is not made yet")
        return raw or None

    def get_soon(
        self, key: str, make: Make, seconds: float, caller: Caller, size: int = 0
    ) -> bytes | None:
        """What was made, or is made within `seconds` at the cost of `caller`, from forms of `size`
        bytes. NotFoundError when that takes longer (it is made nevertheless, for who asks later),
        or the caller's budget is spent."""
        job = self._workshop.join(key, caller.id)
        if job is None:
            try:
                found = self.find(key)
            except NotFoundError:
                self._meter.kept(self._what, False)
            else:
                self._meter.kept(self._what, True)
                return found
            job = self._workshop.submit(key, self._making(key, make), size, caller.id)
        try:
            return job.result(seconds)
        except TimeoutError as exc:
            raise NotFoundError(f"it is not made within {seconds:.0f} seconds") from exc

    def make_here(self, key: str, make: Make, size: int = 0) -> bytes | None:
        """What was made, or is made in this thread."""
        try:
            return self.find(key)
        except NotFoundError:
            return self._workshop.make_here(key, self._making(key, make), size)

    def _making(self, key: str, make: Make) -> Make:
        """`make`, which keeps what it makes before anyone gets it."""

        def made() -> bytes | None:
            with contextlib.suppress(NotFoundError):
                return self.find(key)  # of another server, or of who was quicker
            if self._shelf is None:
                return self._make(key, make)
            end, pause = time.monotonic() + CLAIM_SECONDS, PAUSE
            while not self._shelf.claim(key, CLAIM_SECONDS) and time.monotonic() < end:
                time.sleep(pause)  # another server makes it
                pause = min(2 * pause, MAX_PAUSE)
                with contextlib.suppress(NotFoundError):
                    return self.find(key)
            try:
                with contextlib.suppress(NotFoundError):
                    return self.find(key)  # of who had the claim before
                raw = self._make(key, make)
                self._shelf.put(key, raw or b"")
                return raw
            finally:
                self._shelf.release(key)

        return made

    def _make(self, key: str, make: Make) -> bytes | None:
        started = time.monotonic()
        raw = make()
        self._meter.made(self._what, time.monotonic() - started)
        self._remember(key, raw or b"")
        return raw

    def _remember(self, key: str, raw: bytes) -> None:
        self._made.put(key, raw, max(len(raw), ENTRY_SIZE))
