"""What an agent does beside pulls: remove old versions, hand over to engines, make forms of what
came plainly, collect garbage. One at a time, in an event loop; the work itself is in jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import LayerkitError
from layerkit.jobs.agent.names import Name, Version
from layerkit.jobs.agent.node import Node
from layerkit.jobs.agent.pauses import Pause
from layerkit.jobs.agent.work import kept_name

__all__ = ["Chores"]

GC_SECONDS: Final = 60.0  # at least, between two gcs
_log = logging.getLogger(__name__)


class Chores:
    """`is_idle` says that nothing is being pulled."""

    def __init__(self, node: Node, is_idle: Callable[[], bool]) -> None:
        self._node = node
        self._is_idle = is_idle
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._gc_wanted = True  # what a crash left in the store
        # Soon after some starts and late after others: a node that never runs for GC_SECONDS
        # collects, too, and in the mean no more often.
        self._collected = time.monotonic() - random.uniform(0, GC_SECONDS)
        self._plain: dict[str, str] = {}  # names with layers that came plainly, and from where
        self._spare: set[str] = set()  # names whose next version has no spare tree
        self._engine_pause = Pause()

    def want(self) -> None:
        """There may be something to do."""
        self._wanted.set()

    def want_spare(self, ref: str) -> None:
        """The next version of `ref` would have to write all its layers."""
        self._spare.add(ref)

    def want_forms(self, ref: str, server: str) -> None:
        """Layers of `ref` came plainly, from that server."""
        self._plain[ref] = server

    async def run(self) -> None:
        """For ever: remove what is surplus, hand over, collect garbage."""
        failed = Pause()
        wait: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), wait)
            self._wanted.clear()
            try:
                wait = await self.finish()
                failed.reset()
            except LayerkitError as exc:
                _log.warning("%s (%s)", exc.message, exc.cause)
                wait = failed.next()

    async def finish(self) -> float | None:
        """All that can be done now; seconds until there is more to do, if there is."""
        async with self._lock:
            await self._remove_surplus()
        wait = await self.hand_over() if self._node.settings.load else None
        await self._prepare()
        left = self._collected + GC_SECONDS - time.monotonic()
        if self._gc_wanted and left <= 0:
            self._collected = time.monotonic()
            await self.gc()
        elif self._gc_wanted:
            wait = min(left, wait or left)
        return wait

    async def _remove_surplus(self) -> None:
        for name in self._node.names:
            if name.leaving:
                await self._remove_name(name)
                continue
            if name.list_surplus(self._node.settings.keep):
                await self._node.save()
                async with self._node.lock(name):
                    surplus = name.list_surplus(self._node.settings.keep)
                    await self._remove_versions(name, surplus)

    async def _remove_versions(self, name: Name, versions: list[Version]) -> None:
        """Holds the name's lock: what a pull makes current meanwhile must not go."""
        found = await self._node.run("remove", **self._removal(name, versions), whole=False)
        for version in versions:
            if version.digest in found["kept"]:
                version.pinned = True  # by somebody else than this agent
            elif version in name.versions:
                name.versions.remove(version)
        self._gc_wanted = True
        self._node.count(name)
        await self._node.save()

    def _removal(self, name: Name, versions: list[Version]) -> dict[str, object]:
        listed = [
            {"digest": one.digest, "config": one.config, "manifest": one.manifest}
            for one in versions
        ]
        shared = sorted(self._node.names.list_sharing(name))
        return {"ref": name.ref, "link": name.link, "versions": listed, "shared": shared}

    async def remove_name(self, name: Name) -> None:
        """All of a name that is leaving, unless that is done already."""
        async with self._lock:
            if self._node.names.find(name.ref) is name:
                await self._remove_name(name)
        self.want()

    async def remove_version(self, name: Name, version: Version) -> None:
        async with self._lock, self._node.lock(name):
            if version in name.versions[1:]:
                await self._remove_versions(name, [version])

    async def _remove_name(self, name: Name) -> None:
        async with self._node.lock(name):
            await self._node.run("remove", **self._removal(name, name.versions), whole=True)
        self._node.names.forget(name)
        name.versions = []
        self._gc_wanted = True
        self._node.count(name)
        await self._node.save()

    async def gc(self, *, dry_run: bool = False) -> dict[str, object]:
        """Collect the store's garbage; pulls go on meanwhile."""
        found = await self._node.run("gc", dry_run=dry_run)
        self._gc_wanted = self._gc_wanted and dry_run
        self._node.note_store(found["store_size"])
        return found

    # --- engines, forms ----------------------------------------------------------------------

    def list_unhanded(self) -> list[Name]:
        """Names whose current version an engine did not get yet."""
        wanted = set(self._node.settings.load)
        return [
            name
            for name in self._node.names
            if name.versions
            and not name.leaving
            and not wanted <= set(name.versions[0].handed)
            and name.ref not in self._node.unsure
        ]

    async def hand_over(self) -> float | None:
        """Hand what engines lack to them; after a failure the seconds to wait, else None."""
        for name in self.list_unhanded():
            version = name.versions[0]
            servers, digest = self._node.list_servers(name.ref), version.digest
            try:
                async with self._node.slots:
                    answer = await self._node.run(
                        "pull", ref=name.ref, link=name.link, servers=servers, digest=digest
                    )
            except LayerkitError as exc:
                self._node.note_error(name, exc)
                return self._engine_pause.next()
            self._node.note_engines(version, answer)
            await self._node.save()
            if any(error is not None for error in answer["engines"].values()):
                return self._engine_pause.next()  # down for all names: one is enough to try
            self._engine_pause.reset()
        return None

    async def _prepare(self) -> None:
        """For the next versions, while nothing is pulled: spare trees; forms of what came plainly,
        from which an update can be a delta."""
        while self._is_idle() and (self._spare or self._plain):
            do, ref, server = "spare", "", ""
            if self._spare:
                ref = self._spare.pop()
            else:
                do, (ref, server) = "rebuild", self._plain.popitem()
            if self._node.names.find(ref) is not None:
                async with self._node.slots:
                    await self._node.run(do, ref=ref, servers=self._node.list_servers(ref, server))

    async def make_room(self) -> bool:
        """Old versions leave the store, the least recently used first, whichever name's they are.
        Their folders go with the next chores: a pull that calls this holds a lock."""
        current = [name.current for name in self._node.names if name.versions]
        found = await self._node.run("evict", keep=current)
        gone = set(found["removed"])
        for name in self._node.names:
            for version in name.versions[1:]:
                if kept_name(name.reference, Digest.parse(version.digest)) in gone:
                    version.evicted = True
        if gone:
            _log.warning("the store was full: %d versions went before their time", len(gone))
        return bool(gone)
