"""The life of an agent: one on a store, from its lock to its last record.

SIGTERM and SIGINT end it well: running pulls stop at a safe point (what they fetched stays
fetched), the record is written, the status is 0. SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from layerkit.edges.disk import Disk
from layerkit.edges.forked import error_document
from layerkit.edges.forker import Forker
from layerkit.edges.jsonlog import log_as_json
from layerkit.edges.localapi import LocalApi
from layerkit.edges.newsapi import NewsApi
from layerkit.edges.notify import Notifier
from layerkit.edges.polling import Poller
from layerkit.errors import LayerkitError, PartialError, StoreLockedError
from layerkit.jobs.agent.api import make_handlers
from layerkit.jobs.agent.keeper import Keeper
from layerkit.jobs.agent.node import Node
from layerkit.jobs.agent.settings import RELOADABLE, Settings
from layerkit.jobs.agent.watching import Watching

__all__ = ["FOLDER_NAME", "run_agent"]

FOLDER_NAME: Final = "agent"  # in the store
JOBS_LOCK: Final = "agent/jobs.lock"  # held by jobs as long as one runs
WORKER: Final = "from layerkit.jobs.agent.worker import main; main({lock!r})"
OLD_JOBS_SECONDS: Final = 20.0  # that jobs of an agent that died get to unwind
_log = logging.getLogger(__name__)


def run_agent(
    settings: Settings,
    load: Callable[[], Settings],
    *,
    env: Mapping[str, str],
    notifier: Notifier,
    once: bool = False,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Run until a signal; with `once` until each watched name was pulled, or failed
    (PartialError). `load` reads the settings again, with SIGHUP."""
    log_as_json()
    disk = Disk()
    folder = settings.store / FOLDER_NAME
    disk.make_folder(folder)
    with _alone(disk, folder):
        asyncio.run(_Daemon(settings, load, env, notifier, disk).run(once=once, ready=ready))


@contextlib.contextmanager
def _alone(disk: Disk, folder: Path) -> Iterator[None]:
    """The only agent on this store, and no job of a dead one is left."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk.lock(folder / "lock"))
        except StoreLockedError as exc:
            raise StoreLockedError(
                f"an agent runs on store {folder.parent} already",
                cause=exc.cause,
                hint="stop it, or name another --store",
            ) from exc
        end = time.monotonic() + OLD_JOBS_SECONDS
        while True:
            try:
                with disk.lock(folder.parent / JOBS_LOCK):
                    break
            except StoreLockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield


class _Daemon:
    """Wires the parts, and ends them in order."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        env: Mapping[str, str],
        notifier: Notifier,
        disk: Disk,
    ) -> None:
        self._settings = settings
        self._load = load
        self._notifier = notifier
        program = WORKER.format(lock=str(settings.store / JOBS_LOCK))
        if settings.verify:  # loaded once, not by each job
            program = f"import layerkit.edges.signing; {program}"
        if not settings.servers:
            program = f"import layerkit.edges.registry.upstream; {program}"
        self._forker = Forker(program, env)
        folder = settings.store / FOLDER_NAME
        self._node = Node(
            settings, self._forker, folder=folder, disk=disk, path=env.get("PATH", "")
        )
        self._keeper = Keeper(self._node)
        self._started = time.monotonic()
        self._stop: asyncio.Event = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, *, once: bool, ready: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._forker.start()
        try:
            await self._keeper.start()
            if once:
                await self._run_once()
            else:
                await self._run_until_stopped(ready)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._keeper.stop()
            await self._forker.close()

    async def _run_once(self) -> None:
        names = [name for name in self._keeper.names if name.watched]
        pulls = [asyncio.create_task(self._keeper.pull(name.ref)) for name in names]
        stop = asyncio.create_task(self._stop.wait())
        left: set[asyncio.Task[Any]] = set(pulls)
        while left and not self._stop.is_set():
            _, pending = await asyncio.wait({*left, stop}, return_when=asyncio.FIRST_COMPLETED)
            left &= pending
        stop.cancel()
        if left:
            raise PartialError(f"stopped before {len(left)} of {len(names)} names were pulled")
        await self._keeper.chores.finish()
        failures = [error for pull in pulls if (error := pull.exception()) is not None]
        for failure in failures:
            if len(failures) == len(names) or not isinstance(failure, LayerkitError):
                raise failure
        if failures:
            first = error_document(failures[0])["message"]
            raise PartialError(
                f"{len(failures)} of {len(names)} names failed", cause=str(first)
            ) from failures[0]

    async def _run_until_stopped(self, ready: Callable[[str], None]) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        poller = Poller(settings.polls, settings.ca, settings.client_cert, settings.client_key)
        watching = Watching(self._keeper, poller, self._node.platform)
        handlers = make_handlers(self._keeper, watching.follow, self._started)
        api = LocalApi(handlers, self._node.metrics.render)
        news = NewsApi(watching.wake, settings.events_secret)
        try:
            if settings.socket is not None:
                await api.listen(settings.socket)
            if settings.metrics:
                host, _, port = settings.metrics.rpartition(":")
                await api.listen_for_metrics(host, int(port))
            if settings.events:
                host, _, port = settings.events.rpartition(":")
                _log.info("registries tell of pushes at %s", await news.listen(host, int(port)))
            loop.add_signal_handler(signal.SIGHUP, self._reload_soon, watching)
            self._start(self._keeper.chores.run())
            if self._notifier.watchdog:
                self._start(self._feed_watchdog())
            watching.follow()
            self._notifier.tell("READY=1", f"STATUS=watching {len(settings.watch)} names")
            places = len(self._node.list_places())
            _log.info("watching %d names at %d places", len(settings.watch), places)
            ready(str(settings.socket or ""))
            await self._stop.wait()
            self._notifier.tell("STOPPING=1")
            _log.info("stopping")
        finally:
            await news.close()
            await watching.stop()
            await api.close()
            await poller.close()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _feed_watchdog(self) -> None:
        """From the event loop: if it hangs, the service manager starts the agent again."""
        while True:
            self._notifier.tell("WATCHDOG=1")
            await asyncio.sleep(self._notifier.watchdog / 2)

    def _reload_soon(self, watching: Watching) -> None:
        self._start(self._reload(watching))

    async def _reload(self, watching: Watching) -> None:
        """Take what may change; what is wrong leaves all as it was."""
        self._notifier.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            found = await asyncio.to_thread(self._load)
            changed = {
                key
                for key in (item.name for item in fields(Settings))
                if getattr(found, key) != getattr(self._settings, key)
            }
            fixed = sorted(changed - set(RELOADABLE))
            if fixed:
                _log.warning("%s changes only with a restart", ", ".join(fixed))
            kept = {key: getattr(self._settings, key) for key in fixed}
            self._settings = replace(found, **kept)
            await self._keeper.apply(self._settings)
            watching.follow()
            _log.info("configuration read again: %s", ", ".join(sorted(changed)) or "no change")
        except LayerkitError as exc:
            _log.error("configuration stays as it was: %s (%s)", exc.message, exc.cause)
        finally:
            self._notifier.tell("READY=1")
