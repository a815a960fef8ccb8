"""The paths of a hook: notifications in, what it does and did out. A `Surface` of `edges.http`.

`POST /events` takes a registry's notification and is answered with 202 once what is to be done is
durable; a queue that is full is a 429, which registries try again. `GET /` is a JSON document about
the work. What is done with a tag is known by those who are called.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol, TypeVar

from layerkit.edges.http import NEVER, Answer, Call, Endpoint
from layerkit.formats.notifications import MAX_NOTIFICATION_SIZE, Pushed, parse_notification
from layerkit.formats.oci import serialize_json

__all__ = ["HookSurface", "HookWork"]

THREAD_COUNT: Final = 4
JSON: Final = "application/json"
T = TypeVar("T")


class HookWork(Protocol):
    """What the paths ask. Safe for threads; calls may block."""

    def take_in(self, pushed: Sequence[Pushed]) -> int:
        """How many of these tags there is something to do for; durable when it returns."""

    def check_ready(self) -> None:
        """Raise a LayerkitError if notifications cannot be taken in."""

    def describe(self) -> Mapping[str, Any]:
        """The state of the work, as a JSON document."""


class HookSurface:
    """The table of paths over some work."""

    def __init__(self, work: HookWork) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(THREAD_COUNT, "hook")
        self._table = (
            Endpoint("events", re.compile("/events/?"), {"POST": self._take_in}),
            Endpoint("status", re.compile("/"), {"GET": self._show, "HEAD": self._show}),
        )

    def find(self, path: str) -> tuple[Endpoint, dict[str, str]] | None:
        found = (endpoint for endpoint in self._table if endpoint.pattern.fullmatch(path))
        endpoint = next(found, None)
        return None if endpoint is None else (endpoint, {})

    def version(self) -> Hashable:
        return None  # no answer is kept

    async def check_ready(self) -> None:
        await self.in_thread(self._work.check_ready)

    async def in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def stop_waiting(self) -> None:
        """Nobody waits here."""

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _take_in(self, call: Call) -> Answer:
        raw = await call.read_body(MAX_NOTIFICATION_SIZE)
        count = await self.in_thread(lambda: self._work.take_in(parse_notification(raw)))
        return Answer(serialize_json({"taken": count}), JSON, 202, cache=NEVER)

    async def _show(self, _: Call) -> Answer:
        document = await self.in_thread(self._work.describe)
        return Answer(serialize_json(document), JSON, cache=NEVER)
