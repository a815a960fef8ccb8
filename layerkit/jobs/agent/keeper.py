"""What the agent does with names: pull, keep the newest versions, hand over to engines, remove.

Runs in one event loop; every step that touches the store or folders is a job in a process of its
own (`worker`), so a broken image or a lying server stops nobody else. One pull a name at a time:
who asks for a name that is being pulled waits for that pull. The record is durable before anything
is removed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges.agentmetrics import AgentMetrics
from layerkit.edges.disk import Disk
from layerkit.edges.forked import error_document
from layerkit.errors import (
    LayerkitError,
    NotFoundError,
    StoreFullError,
    StoreLockedError,
    UsageError,
)
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.names import Name, Names, Version, read_record, write_record
from layerkit.jobs.agent.pauses import Health, Pause
from layerkit.jobs.agent.settings import Settings
from layerkit.jobs.agent.work import Place, kept_name

__all__ = ["Jobs", "Keeper"]

GC_SECONDS: Final = 60.0  # at least, between two gcs: they hold pulls up
_log = logging.getLogger(__name__)
Document = dict[str, object]


class Jobs(Protocol):
    """Runs a job somewhere; raises what it raised."""

    async def run(self, job: Mapping[str, object]) -> dict[str, Any]: ...


class Keeper:
    """The names of one agent and all that happens to them."""

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        *,
        folder: Path,
        disk: Disk,
        path: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.metrics = AgentMetrics()
        self.health = Health(time.monotonic)
        self.health.use(settings.servers)
        self.running: set[str] = set()  # names that are being pulled
        self.unsure: set[str] = set()  # names that must be pulled, whatever the record says
        self.store_size = 0
        self.engine_errors: dict[str, dict[str, object]] = {}
        self._jobs = jobs
        self._place = Place.of(settings, path)
        self._folder = folder
        self._disk = disk
        self._now = now
        self._slots = asyncio.Semaphore(settings.pulls)
        self._chores = asyncio.Lock()  # one removal or hand-over at a time
        self._saving = asyncio.Lock()
        self._pulls: dict[str, asyncio.Task[Document]] = {}
        self._chore_wanted = asyncio.Event()
        self._gc_wanted = False
        self._plain: dict[str, str] = {}  # names with layers that came plainly, and from where
        self._collected = time.monotonic()
        self._engine_pause = Pause()
        self.platform = settings.platform
        disk.make_folder(folder, 0o700)
        self.names = Names(read_record(folder, disk))

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find what a crash left, and what has to be done again."""
        self.names.configure(self.settings.watch)
        await self.save()
        listed = [
            {
                "ref": name.ref,
                "link": name.link,
                "versions": [version.digest for version in name.versions],
            }
            for name in self.names
        ]
        found = await self._run("sweep", names=listed)
        self.platform = found["platform"]
        for ref, digest in found["names"].items():
            name = self.names.find(ref)
            assert name is not None
            if not digest:
                self.unsure.add(ref)
            elif digest != name.current:
                name.add(digest, self._now())  # the link moved, and then the agent died
            self._count(name)
        self._gc_wanted = True  # temp files in the store, too
        self._chore_wanted.set()

    async def stop(self) -> None:
        """End what runs, at a safe point, and write the record."""
        tasks = list(self._pulls.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.save()

    async def apply(self, settings: Settings) -> None:
        """Take what may change at run time."""
        self.settings = settings
        self.health.use(settings.servers)
        self.names.configure(settings.watch)
        await self.save()
        self._chore_wanted.set()

    async def save(self) -> None:
        """Write the record; in a thread, for a disk may take its time."""
        async with self._saving:
            await asyncio.to_thread(write_record, self._folder, self._disk, self.names.record)

    async def _run(self, do: str, **facts: object) -> dict[str, Any]:
        return await self._jobs.run({"do": do, "place": self._place.as_document(), **facts})

    # --- pull ------------------------------------------------------------------------------------

    async def pull(self, ref: str, server: str = "", update: bytes = b"") -> Document:
        """Pull a name; joins the pull of it that runs. Who leaves does not stop it. `server` is
        asked first, it told of the news; `update` is what it brought with them."""
        task = self._pulls.get(ref)
        if task is None:
            self.names.add(ref)
            task = asyncio.create_task(self._pull(ref, server, update))
            self._pulls[ref] = task
            task.add_done_callback(lambda done: self._pulled(ref, done))
        return await asyncio.shield(task)

    def _pulled(self, ref: str, task: asyncio.Task[Document]) -> None:
        del self._pulls[ref]
        self._chore_wanted.set()
        if not task.cancelled():
            task.exception()  # seen, also when all who asked have left

    async def _pull(self, ref: str, server: str, update: bytes) -> Document:
        name = self.names.get(ref)
        try:
            async with self._slots:
                await self.save()  # the name is known before it has a folder
                self.running.add(ref)
                self.metrics.running(1)
                try:
                    return await self._take(name, await self._pull_job(name, server, update))
                finally:
                    self.running.discard(ref)
                    self.metrics.running(-1)
        except LayerkitError as exc:
            self.metrics.failed()
            self.note_error(name, exc)
            raise

    async def _pull_job(self, name: Name, server: str, update: bytes) -> dict[str, Any]:
        try:
            return await self._pull_once(name, server, update)
        except StoreFullError:
            if not await self._make_room():
                raise
            return await self._pull_once(name, server, b"")

    async def _make_room(self) -> bool:
        """Old versions go, the least recently used first, whichever name's they are."""
        current = [name.current for name in self.names if name.versions]
        found = await self._run("evict", keep=current)
        gone = set(found["removed"])
        for name in self.names:
            versions = [
                version
                for version in name.versions[1:]
                if kept_name(name.reference, Digest.parse(version.digest)) in gone
            ]
            if versions:
                await self._remove_versions(name, versions)
        if gone:
            _log.warning("the store was full: %d versions went before their time", len(gone))
        return bool(gone)

    async def _pull_once(self, name: Name, server: str, update: bytes) -> dict[str, Any]:
        raw = base64.b64encode(update).decode()
        listed = self._list_servers(server)
        return await self._run("pull", ref=name.ref, link=name.link, servers=listed, update=raw)

    def _list_servers(self, first: str = "") -> list[dict[str, str]]:
        """As a job takes them: `first`, then those that answer, then the others."""
        listed = sorted(self.health.list_all(), key=lambda server: server.url != first)
        return [{"url": server.url, "token": server.token} for server in listed]

    async def _take(self, name: Name, answer: dict[str, Any]) -> Document:
        """Record what a pull brought, durably; then what is too old may go."""
        is_new = answer["digest"] != name.current
        version = name.add(answer["digest"], self._now())
        name.last_success, name.last_error = self._now(), None
        self.unsure.discard(name.ref)
        if is_new or not answer["up_to_date"]:
            name.moved_size, name.whole_size = answer["moved_size"], answer["whole_size"]
            name.seconds = answer["seconds"]
        if "engines" in answer:
            version.config, version.manifest = answer["config"], answer["manifest"]
            self._note_engines(version, answer["engines"])
        self.metrics.pulled(
            moved_size=answer["moved_size"],
            whole_size=answer["whole_size"],
            seconds=answer["seconds"],
            is_new=is_new,
        )
        self._count(name)
        if answer["plain_count"]:
            self._plain[name.ref] = answer["server"]
        await self.save()
        if is_new:
            _log.info(
                "%s is %s: moved %d bytes instead of %d in %.2f s from %s",
                name.ref,
                Digest.parse(version.digest).short,
                answer["moved_size"],
                answer["whole_size"],
                answer["seconds"],
                answer["server"],
            )
        return self.describe(name) | {"up_to_date": not is_new, "server": answer["server"]}

    def note_error(self, name: Name, error: LayerkitError) -> None:
        """What last went wrong with a name; the same thing again is not logged again."""
        document = error_document(error)
        if name.last_error is None or document.items() - name.last_error.items():
            _log.warning("%s: %s (%s)", name.ref, error.message, error.cause)
        name.last_error = {**document, "time": self._now()}
        self._count(name)

    def seen_current(self, name: Name) -> None:
        """A server said that the name has not moved on."""
        name.last_success = self._now()
        if name.last_error is not None:
            name.last_error = None
        self._count(name)

    def _count(self, name: Name) -> None:
        self.metrics.hold(name.ref, len(name.versions), name.last_success)
        self.metrics.failing(sum(one.last_error is not None for one in self.names))

    # --- engines ---------------------------------------------------------------------------------

    def _note_engines(self, version: Version, engines: Mapping[str, Any]) -> None:
        for kind, error in engines.items():
            self.metrics.handed_over(kind, good=error is None)
            if error is None:
                version.handed = sorted({*version.handed, kind})
                self.engine_errors.pop(kind, None)
            else:
                self.engine_errors[kind] = error

    def list_unhanded(self) -> list[Name]:
        """Names whose current version an engine did not get yet."""
        wanted = set(self.settings.load)
        return [
            name
            for name in self.names
            if name.versions
            and not name.leaving
            and not wanted <= set(name.versions[0].handed)
            and name.ref not in self.unsure
        ]

    async def hand_over(self) -> float | None:
        """Hand what engines lack to them; after a failure the seconds to wait, else None."""
        for name in self.list_unhanded():
            version = name.versions[0]
            async with self._slots:
                answer = await self._run(
                    "pull",
                    ref=name.ref,
                    link=name.link,
                    servers=self._list_servers(),
                    digest=version.digest,
                )
            version.config, version.manifest = answer["config"], answer["manifest"]
            self._note_engines(version, answer["engines"])
            await self.save()
            if any(error is not None for error in answer["engines"].values()):
                return self._engine_pause.next()  # down for all names: one is enough to try
            self._engine_pause.reset()
        return None

    # --- chores ----------------------------------------------------------------------------------

    async def do_chores(self) -> None:
        """For ever: remove what is surplus, hand over, collect garbage."""
        failed = Pause()
        wait: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._chore_wanted.wait(), wait)
            self._chore_wanted.clear()
            try:
                wait = await self.finish_chores()
                failed.reset()
            except LayerkitError as exc:
                _log.warning("%s (%s)", exc.message, exc.cause)
                wait = failed.next()

    async def finish_chores(self) -> float | None:
        """All that can be done now; seconds until there is more to do, if there is."""
        async with self._chores:
            await self._remove_surplus()
        wait = await self.hand_over() if self.settings.load else None
        if not self._pulls:
            await self._rebuild_forms()
        left = self._collected + GC_SECONDS - time.monotonic()
        if self._gc_wanted and left <= 0:
            self._collected = time.monotonic()
            await self.gc()
        elif self._gc_wanted:
            wait = min(left, wait or left)
        return wait

    async def _remove_surplus(self) -> None:
        for name in self.names:
            if name.leaving:
                await self._remove(name)
                continue
            surplus = name.list_surplus(self.settings.keep)
            if surplus:
                await self.save()
                await self._remove_versions(name, surplus)

    async def _remove_versions(self, name: Name, versions: list[Version]) -> None:
        found = await self._run("remove", **self._removal(name, versions), whole=False)
        for version in versions:
            if version.digest in found["kept"]:
                version.pinned = True  # by somebody else than this agent
            elif version in name.versions:
                name.versions.remove(version)
        self._gc_wanted = True
        self._count(name)
        await self.save()

    def _removal(self, name: Name, versions: list[Version]) -> dict[str, object]:
        listed = [
            {"digest": one.digest, "config": one.config, "manifest": one.manifest}
            for one in versions
        ]
        shared = sorted(self.names.list_sharing(name))
        return {"ref": name.ref, "link": name.link, "versions": listed, "shared": shared}

    async def _remove(self, name: Name) -> None:
        await self._run("remove", **self._removal(name, name.versions), whole=True)
        self.names.record.names.pop(name.ref, None)
        name.versions = []
        self._gc_wanted = True
        self._count(name)
        await self.save()

    async def gc(self, *, dry_run: bool = False) -> Document:
        """Collect the store's garbage; pulls wait meanwhile."""
        held = 0
        try:
            for _ in range(self.settings.pulls):
                await self._slots.acquire()
                held += 1
            found = await self._run("gc", dry_run=dry_run)
        except StoreLockedError:
            _log.info("somebody else pulls into the store, gc later")
            raise
        finally:
            for _ in range(held):
                self._slots.release()
        self._gc_wanted = self._gc_wanted and dry_run
        self.store_size = found["store_size"]
        self.metrics.store(self.store_size)
        return found

    async def _rebuild_forms(self) -> None:
        """For layers that came plainly: their forms, from which the next update can be a delta."""
        while self._plain and not self._pulls:
            ref, server = self._plain.popitem()
            if self.names.find(ref) is not None:
                async with self._slots:
                    await self._run("rebuild", ref=ref, servers=self._list_servers(server))

    # --- what people ask for ---------------------------------------------------------------------

    async def watch(self, ref: str) -> Document:
        name = self.names.watch(ref)
        await self.save()
        return self.describe(name)

    async def unwatch(self, ref: str) -> Document:
        name = self.names.unwatch(ref)
        await self.save()
        return self.describe(name)

    async def remove(self, ref: Reference) -> Document:
        """A whole name, or with a digest one version of it."""
        name = self._find(ref)
        if ref.digest is not None:
            version = self._version(name, ref)
            if version is name.versions[0]:
                raise UsageError(f"{ref} is current", hint=f"remove {name.ref} as a whole")
            if version.pinned:
                raise UsageError(f"{ref} is pinned", hint="unpin it first")
            async with self._chores:
                await self._remove_versions(name, [version])
            return self.describe(name)
        self.names.unwatch(name.ref)
        running = self._pulls.get(name.ref)
        name.leaving = True
        await self.save()
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        async with self._chores:
            if self.names.find(name.ref) is name:
                await self._remove(name)
        self._chore_wanted.set()
        return {"ref": name.ref, "removed": True}

    async def pin(self, ref: Reference, *, keep: bool) -> Document:
        """Keep a version (the current one where `ref` has no digest), or let it go again."""
        name = self._find(ref)
        version = self._version(name, ref)
        await self._run("pin", digest=version.digest, keep=keep)
        version.pinned = keep
        await self.save()
        self._chore_wanted.set()
        return self.describe(name)

    async def list_images(self) -> Document:
        """What the store holds, whoever pulled it."""
        found = await self._run("list")
        self.store_size = found["store_size"]
        self.metrics.store(self.store_size)
        return found

    def _find(self, ref: Reference) -> Name:
        """The name of a reference; with a digest and no tag, that which has such a version."""
        if ref.digest is None or ref.tag:
            return self.names.get(f"{ref.name}:{ref.tagged.tag}")
        for name in self.names:
            has = any(version.digest == str(ref.digest) for version in name.versions)
            if has and name.reference.name == ref.name and not name.leaving:
                return name
        raise NotFoundError(f"{ref} is no version of this agent")

    def _version(self, name: Name, ref: Reference) -> Version:
        wanted = str(ref.digest) if ref.digest is not None else name.current
        for version in name.versions:
            if version.digest == wanted:
                return version
        raise NotFoundError(f"{ref} is no version of this agent")

    def describe(self, name: Name) -> Document:
        """A name as the API answers it."""
        folder = self.settings.folders
        path = folder / name.reference.name.replace(":", "+") / name.link if folder else None
        return {
            "ref": name.ref,
            "digest": name.current,
            "watched": bool(name.watched),
            "state": self._state(name),
            "path": str(path) if path is not None and name.versions else "",
            "versions": [
                {
                    "digest": version.digest,
                    "pulled_at": version.pulled_at,
                    "pinned": version.pinned,
                    "engines": version.handed,
                }
                for version in name.versions
            ],
            "last_success": name.last_success,
            "last_error": name.last_error,
            "moved_size": name.moved_size,
            "whole_size": name.whole_size,
            "seconds": name.seconds,
        }

    def _state(self, name: Name) -> str:
        if name.leaving:
            return "leaving"
        if name.ref in self._pulls:
            return "pulling" if name.ref in self.running else "queued"
        if name.last_error is not None:
            return "failing"
        return "current" if name.versions else "new"
