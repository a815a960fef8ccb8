"""A hook's work: from tags that were told to jobs that are done, through the queue on disk.

Two kinds of task. LOOK asks the registry what a tag names now, at once and some times more, so that
no version between two pushes is lost while something takes long. MAKE is a job for what it named
(`making`), run in a process of its own, a few at a time. A third loop looks at all tags now and
then, for what was not told: a registry keeps its notifications in memory.

What fails because the registry is down is tried again for GIVE_UP_SECONDS, with pauses that double
up to MAX_PAUSE; what fails for another reason that may pass, MAX_TRIES times; the rest is given up,
and stays in the list of failures.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, Final, Protocol

from layerkit.edges.forked import error_document, error_of
from layerkit.edges.forker import Forker
from layerkit.edges.queue import Task, WorkQueue
from layerkit.edges.registry import Registry, is_fallback_tag
from layerkit.errors import (
    FormatError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    RemoteLimitError,
    StoreError,
    ToolError,
)
from layerkit.formats.notifications import Pushed
from layerkit.jobs.hook.settings import HookSettings

__all__ = ["LOOK", "MAKE", "Tally", "Work"]

LOOK: Final = "look"
MAKE: Final = "make"
LOOK_PAUSES: Final = (0.2, 1.0, 5.0, 20.0)  # seconds between looks at what a tag names
FIRST_PAUSE: Final = 1.0  # seconds after the first failure; doubles, up to
MAX_PAUSE: Final = 300.0
GIVE_UP_SECONDS: Final = 86_400.0  # of a registry, or a disk, that fails
MAX_TRIES: Final = 5  # of what may pass besides: a job that died, a blob that came wrong
IDLE_SECONDS: Final = 60.0  # after which a loop looks at the queue, though nobody told
STOP_SECONDS: Final = 15.0  # that the loops get to end
FIRST_SCAN_SECONDS: Final = 1.0
MAX_SHOWN_COUNT: Final = 20
_log = logging.getLogger(__name__)


class Tally(Protocol):
    """Is told what was done: metrics. Safe for threads."""

    def ended(self, kind: str, result: str, seconds: float) -> None:
        """A task: done, again, failed."""

    def made(self, result: Mapping[str, Any]) -> None:
        """What a job made, as `making.Made` says."""


class Teller(Protocol):
    """Lets agents know (`edges.telling`). Safe for threads."""

    def tell(self, pushed: Pushed) -> int: ...


class Work:
    """The `HookWork` of one registry. `start`, then `stop`; a thread with an event loop between."""

    def __init__(
        self,
        settings: HookSettings,
        queue: WorkQueue,
        registry: Registry,
        forker: Forker,
        tally: Tally,
        teller: Teller | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._registry = registry
        self._forker = forker
        self._tally = tally
        self._teller = teller
        self._telling: set[asyncio.Future[int]] = set()
        self._loop = asyncio.new_event_loop()
        self._news = {LOOK: asyncio.Event(), MAKE: asyncio.Event()}
        self._main: asyncio.Task[None] | None = None
        self._stopping = threading.Event()  # for what runs in a thread
        self._thread = threading.Thread(target=self._run, name="hook-work", daemon=True)

    # --- what the paths ask ----------------------------------------------------------------------

    def take_in(self, pushed: Sequence[Pushed]) -> int:
        tags = [(one.name, one.tag) for one in pushed if self._is_ours(one.name, one.tag)]
        if tags:
            self._queue.put(LOOK, tags)
            self._tell(LOOK)
            _log.info("pushed: %s", ", ".join(f"{name}:{tag}" for name, tag in tags))
        return len(tags)

    def check_ready(self) -> None:
        """The queue can be read. A registry that is down is no reason to send its events away."""
        if not self._thread.is_alive():
            raise StoreError("the hook's work has ended", hint="its log says why: start it again")
        self._queue.count()

    def describe(self) -> dict[str, Any]:
        retrying = self._queue.list_retrying(MAX_SHOWN_COUNT)
        return {
            "registry": self._settings.registry,
            "queue": asdict(self._queue.count()),
            "retrying": [
                {"kind": task.kind, "ref": str(task), "tries": task.tries, "why": why}
                for task, why in retrying
            ],
            "failures": [asdict(failure) for failure in self._queue.list_failures()],
        }

    def _is_ours(self, name: str, tag: str) -> bool:
        """Is it an image's, in a repository that we work for? What refers to images has tags, too,
        where a registry has no other list of it: ours would never end."""
        patterns = self._settings.repositories
        return not is_fallback_tag(tag) and any(fnmatchcase(name, one) for one in patterns)

    # --- the loops -------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End what runs: it is done again by the next one."""

        def cancel() -> None:
            if self._main is not None:
                self._main.cancel()

        self._stopping.set()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(cancel)
        self._thread.join(STOP_SECONDS)

    def _tell(self, kind: str) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._news[kind].set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._work())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            _log.debug("the work has ended")
        except Exception:  # the last frame: /readyz says so from now on
            _log.exception("the work has ended")
        finally:
            self._loop.run_until_complete(self._forker.close())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _work(self) -> None:
        self._forker.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pump(LOOK, self._look))
            for _ in range(self._settings.job_count):
                group.create_task(self._pump(MAKE, self._make))
            if self._settings.scan_seconds:
                group.create_task(self._scan_again())

    async def _pump(self, kind: str, do: Callable[[Task], Awaitable[None]]) -> None:
        """Take tasks and do them, one after the other."""
        while True:
            news = self._news[kind]
            news.clear()
            try:
                task = await asyncio.to_thread(self._queue.take, kind)
                if task is not None:
                    await self._do(task, do)
                    continue
                pause = await asyncio.to_thread(self._queue.next_due, kind)
            except StoreError as exc:  # the disk is full, or worse: the queue is as it was
                _log.error("the queue fails: %s (%s)", exc.message, exc.cause)
                pause = FIRST_PAUSE
            try:
                limit = IDLE_SECONDS if pause is None else min(max(pause, 0.01), IDLE_SECONDS)
                await asyncio.wait_for(news.wait(), limit)
            except TimeoutError:
                continue

    async def _do(self, task: Task, do: Callable[[Task], Awaitable[None]]) -> None:
        begun = time.monotonic()
        result = "done"
        try:
            await do(task)
        except asyncio.CancelledError:
            self._queue.give_back(task)
            raise
        except LayerkitError as exc:
            result = await asyncio.to_thread(self._failed, task, exc)
        except Exception as exc:  # the last frame of a task: a bug of ours ends no other
            _log.exception("%s of %s failed", task.kind, task)
            error = error_of(error_document(exc))
            result = await asyncio.to_thread(self._failed, task, error)
        self._tally.ended(task.kind, result, time.monotonic() - begun)

    def _failed(self, task: Task, error: LayerkitError) -> str:
        """Again, or never."""
        pause = _pause_after(task, error, time.time())
        if pause is None:
            self._queue.give_up(task, error)
            _log.error("%s of %s is given up: %s (%s)", *_said(task, error))
            return "failed"
        self._queue.try_again(task, pause, f"{error.message} ({error.cause})")
        _log.warning("%s of %s fails: %s (%s), again in %.0f s", *_said(task, error), pause)
        return "again"

    # --- the tasks -------------------------------------------------------------------------------

    async def _look(self, task: Task) -> None:
        """What does the tag name? Asked some times: a registry tells of a push before it moves the
        tag (distribution's registry/handlers/manifests.go, v3.1: Put, which tells, then Tag)."""
        try:
            top = await asyncio.to_thread(self._registry.resolve, task.name, task.tag)
        except FormatError as exc:  # schema 1, say
            _log.info("%s is left alone: %s", task, exc.message)
            top = None
        digest = "" if top is None else str(top.digest)
        again = LOOK_PAUSES[task.tries - 1] if task.tries <= len(LOOK_PAUSES) else None
        if await asyncio.to_thread(self._queue.saw, task, digest, MAKE, again):
            _log.info("%s names %s now", task, digest[:19])
        self._news[MAKE].set()

    async def _make(self, task: Task) -> None:
        seen = await asyncio.to_thread(self._queue.list_versions, task.name, task.tag)
        before = seen[seen.index(task.digest) + 1 :] if task.digest in seen else []
        job = self._settings.as_job() | {
            "name": task.name,
            "tag": task.tag,
            "digest": task.digest,
            "seen": before,
            "unworthy": await asyncio.to_thread(self._queue.list_unworthy, task.name, task.digest),
        }
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.job_seconds):
                result = await self._forker.run(job | {"do": f"make for {task}"})
        except TimeoutError as exc:
            seconds = self._settings.job_seconds
            raise ToolError(f"the job for {task} takes over {seconds:.0f} seconds") from exc
        unworthy = result["unworthy"]
        if isinstance(unworthy, list) and unworthy:
            note = self._queue.note_unworthy
            await asyncio.to_thread(note, task.name, task.digest, unworthy)
        await asyncio.to_thread(self._queue.finish, task)
        self._tally.made(result)
        self._tell_agents(task)
        if result["skipped"]:
            _log.info("%s is left alone: %s", task, result["skipped"])
            return
        _log.info(
            "%s: %d chunks artifacts, %d updates of %d bytes in all, %d with packs, %.1f s",
            task,
            result["chunks_count"],
            result["update_count"],
            result["update_size"],
            result["pack_count"],
            time.monotonic() - begun,
        )

    def _tell_agents(self, task: Task) -> None:
        """That there is something to pull now, while the next job runs."""
        if self._teller is None:
            return
        pushed = Pushed(task.name, task.tag)
        telling = asyncio.ensure_future(asyncio.to_thread(self._teller.tell, pushed))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    # --- what nobody told ------------------------------------------------------------------------

    async def _scan_again(self) -> None:
        pause = FIRST_SCAN_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                count = await asyncio.to_thread(self._scan)
            except LayerkitError as exc:
                _log.info("not all tags were looked at: %s (%s)", exc.message, exc.cause)
                count = 1  # some may have been
            if count:
                self._news[LOOK].set()
            pause = self._settings.scan_seconds * random.uniform(0.9, 1.1)

    def _scan(self) -> int:
        """Note what all tags name; those that have moved are looked at as if they had been told.
        Returns how many have."""
        count = 0
        for name in self._list_repositories():
            try:
                tags = self._registry.list_tags(name)
            except NotFoundError:
                continue
            for tag in tags:
                if self._stopping.is_set():
                    return count
                if not self._is_ours(name, tag):
                    continue
                try:
                    top = self._registry.resolve(name, tag)
                except FormatError:
                    continue
                if top is not None:
                    count += self._queue.note(name, tag, str(top.digest), LOOK)
        return count

    def _list_repositories(self) -> list[str]:
        """Those that are named; where a pattern says which, all that the registry lists."""
        patterns = self._settings.repositories
        if not any(character in one for one in patterns for character in "*?["):
            return sorted(set(patterns))
        return self._registry.list_repositories()


def _pause_after(task: Task, error: LayerkitError, now: float) -> float | None:
    """Seconds until a task that failed is tried again; None: it is given up."""
    is_outside = isinstance(error, RemoteError | StoreError) and not isinstance(
        error, RemoteLimitError
    )
    if is_outside and now - task.put_at > GIVE_UP_SECONDS:
        return None
    if not is_outside and (task.tries >= MAX_TRIES or not _may_pass(error)):
        return None
    pause = min(FIRST_PAUSE * 2.0 ** min(task.tries - 1, 16), MAX_PAUSE)
    return pause * random.uniform(0.5, 1.0)


def _may_pass(error: LayerkitError) -> bool:
    return error.retriable or isinstance(error, ToolError | NotFoundError)


def _said(task: Task, error: LayerkitError) -> tuple[str, Task, str, str]:
    return task.kind, task, error.message, error.cause
