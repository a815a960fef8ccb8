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
from typing import Any

from layerkit.digest import Digest
from layerkit.errors import LayerkitError, NotFoundError, StoreFullError, UsageError
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.chores import Chores
from layerkit.jobs.agent.names import Name, Version
from layerkit.jobs.agent.node import Node
from layerkit.jobs.agent.settings import Settings

__all__ = ["Keeper"]

_log = logging.getLogger(__name__)
Document = dict[str, object]


class Keeper:
    """The names of one agent and all that happens to them."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names = node.names
        self.chores = Chores(node, lambda: not self._pulls)
        self.running: set[str] = set()  # names that are being pulled
        self._pulls: dict[str, asyncio.Task[Document]] = {}

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Find what a crash left, and what has to be done again."""
        self.names.configure(self.node.settings.watch)
        await self.node.save()
        listed = [
            {
                "ref": name.ref,
                "link": name.link,
                "versions": [version.digest for version in name.versions],
            }
            for name in self.names
        ]
        found = await self.node.run("sweep", names=listed)
        self.node.platform = found["platform"]
        for ref, digest in found["names"].items():
            name = self.names.find(ref)
            assert name is not None
            if not digest:
                self.node.unsure.add(ref)
            elif digest != name.current:
                name.add(digest, self.node.now())  # the link moved, and then the agent died
            self.node.count(name)
        self.chores.want()

    async def stop(self) -> None:
        """End what runs, at a safe point, and write the record."""
        tasks = list(self._pulls.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.node.save()
        with contextlib.suppress(LayerkitError):  # else the next agent does it
            await self.node.run("tidy")

    async def apply(self, settings: Settings) -> None:
        """Take what may change at run time."""
        self.node.use(settings)
        await self.node.save()
        self.chores.want()

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
        self.chores.want()
        if not task.cancelled():
            task.exception()  # seen, also when all who asked have left

    async def _pull(self, ref: str, server: str, update: bytes) -> Document:
        name = self.names.get(ref)
        try:
            async with self.node.lock(name), self.node.slots:
                await self.node.save()  # the name is known before it has a folder
                self.running.add(ref)
                self.node.metrics.running(1)
                try:
                    return await self._take(name, await self._pull_job(name, server, update))
                finally:
                    self.running.discard(ref)
                    self.node.metrics.running(-1)
        except LayerkitError as exc:
            self.node.metrics.failed()
            self.node.note_error(name, exc)
            if not (name.watched or name.versions or name.leaving):
                self.names.forget(name)  # somebody asked for what is nowhere
                self.node.count(name)
            raise

    async def _pull_job(self, name: Name, server: str, update: bytes) -> dict[str, Any]:
        try:
            return await self._pull_once(name, server, update)
        except StoreFullError:
            if not await self.chores.make_room():
                raise
            return await self._pull_once(name, server, b"")

    async def _pull_once(self, name: Name, server: str, update: bytes) -> dict[str, Any]:
        raw = base64.b64encode(update).decode()
        listed = self.node.list_servers(name.ref, server)
        return await self.node.run("pull", ref=name.ref, link=name.link, servers=listed, update=raw)

    async def _take(self, name: Name, answer: dict[str, Any]) -> Document:
        """Record what a pull brought, durably; then what is too old may go."""
        is_new = answer["digest"] != name.current
        version = name.add(answer["digest"], self.node.now())
        self.node.unsure.discard(name.ref)
        if is_new or not answer["up_to_date"]:
            name.moved_size, name.whole_size = answer["moved_size"], answer["whole_size"]
            name.seconds = answer["seconds"]
        if "engines" in answer:
            self.node.note_engines(version, answer)
        self.node.metrics.pulled(
            moved_size=answer["moved_size"],
            whole_size=answer["whole_size"],
            seconds=answer["seconds"],
            is_new=is_new,
        )
        self.node.note_success(name)
        if answer["wants_spare"]:
            self.chores.want_spare(name.ref)
        if answer["plain_count"]:
            self.chores.want_forms(name.ref, answer["server"])
        await self.node.save()
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

    # --- what people ask for ---------------------------------------------------------------------

    async def watch(self, ref: str) -> Document:
        name = self.names.watch(ref)
        await self.node.save()
        return self.describe(name)

    async def unwatch(self, ref: str) -> Document:
        name = self.names.unwatch(ref)
        await self.node.save()
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
            await self.chores.remove_version(name, version)
            return self.describe(name)
        self.names.unwatch(name.ref)
        running = self._pulls.get(name.ref)
        name.leaving = True
        await self.node.save()
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        await self.chores.remove_name(name)
        return {"ref": name.ref, "removed": True}

    async def pin(self, ref: Reference, *, keep: bool) -> Document:
        """Keep a version (the current one where `ref` has no digest), or let it go again."""
        name = self._find(ref)
        version = self._version(name, ref)
        await self.node.run("pin", digest=version.digest, keep=keep)
        version.pinned = keep
        await self.node.save()
        self.chores.want()
        return self.describe(name)

    async def list_images(self) -> Document:
        """What the store holds, whoever pulled it."""
        found = await self.node.run("list")
        self.node.note_store(found["store_size"])
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
        folder = self.node.settings.folders
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
