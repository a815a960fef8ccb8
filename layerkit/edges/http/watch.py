"""Waiting and asking once for many, in one event loop: `Watcher` and `Flights`.

2,000 nodes that wait for a new version are 2,000 futures and one task that looks at the source's
version; nodes that ask for the same at the same time are one call in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

from layerkit.errors import LayerkitError

__all__ = ["FAR_LOOK_SECONDS", "LOOK_SECONDS", "Flights", "Watcher"]

# between two looks at the version while somebody waits: one for all who do, so 500 cost no more
LOOK_SECONDS: Final = 0.01  # where it is one stat: 0.1 ms of a core each
FAR_LOOK_SECONDS: Final = 0.05  # where it is not
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Watcher:
    """Wakes all who wait when the source's version changes. The task lives only while somebody
    waits."""

    def __init__(
        self, look: Callable[[], Awaitable[Hashable]], pause: float = LOOK_SECONDS
    ) -> None:
        self._look = look
        self._pause = pause  # seconds between two looks
        self._changed: asyncio.Event | None = None
        self._seen: Hashable = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.waiting_count = 0

    def stop(self) -> None:
        """Nobody waits from now on."""
        self._stopping = True
        if self._changed is not None:
            self._changed.set()

    async def wait(self, seen: Hashable, seconds: float) -> bool:
        """Until the version is another than `seen`, or for `seconds`: True if it may be."""
        if self._stopping:
            return False
        if self._changed is None:
            self._changed, self._seen = asyncio.Event(), seen
            self._task = asyncio.create_task(self._watch(seen, self._changed))
        elif seen != self._seen:  # saw one before or after the change that the task is to find
            await asyncio.sleep(min(self._pause, seconds))
            return True
        self.waiting_count += 1
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self.waiting_count -= 1
            if not self.waiting_count and self._task is not None:
                self._task.cancel()
                self._task, self._changed = None, None
        return not self._stopping

    async def _watch(self, seen: Hashable, changed: asyncio.Event) -> None:
        while True:
            await asyncio.sleep(self._pause)
            try:
                if await self._look() == seen:
                    continue
            except LayerkitError as exc:
                _log.warning("cannot look for new versions: %s (%s)", exc.message, exc.cause)
                continue
            self._changed, self._task = None, None
            changed.set()
            return


class Flights:
    """One call for all who ask for the same key at the same time; all get its result or error."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def join(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        task = self._running.get(key)
        if task is None:
            task = asyncio.ensure_future(call())
            self._running[key] = task
            task.add_done_callback(functools.partial(self._done, key))
        # who leaves does not stop the others
        found: T = await asyncio.shield(task)
        return found

    def _done(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # seen, also when all who asked have left
