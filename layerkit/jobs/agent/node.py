"""What the parts of an agent share: its settings, names and record, its numbers, its jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from layerkit.edges.agentmetrics import AgentMetrics
from layerkit.edges.disk import Disk
from layerkit.edges.forked import error_document
from layerkit.errors import LayerkitError, UsageError
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.names import (
    RECORD_NAME,
    Name,
    Names,
    Version,
    read_record,
    serialize_record,
)
from layerkit.jobs.agent.pauses import Health
from layerkit.jobs.agent.settings import Server, Settings
from layerkit.jobs.agent.work import Place

__all__ = ["Jobs", "Node"]

_log = logging.getLogger(__name__)


class Jobs(Protocol):
    """Runs a job somewhere; raises what it raised."""

    async def run(self, job: Mapping[str, object]) -> dict[str, Any]: ...


class Node:
    """The state of one agent. `folder` is where its record lies, `path` is PATH for `ctr`."""

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
        self.now = now
        self.platform = settings.platform
        self.unsure: set[str] = set()  # names that must be pulled, whatever the record says
        self.store_size = 0
        self.engine_errors: dict[str, dict[str, object]] = {}
        self.slots = asyncio.Semaphore(settings.pulls)
        self._locks: dict[str, asyncio.Lock] = {}
        self._jobs = jobs
        self._place = Place.of(settings, path)
        self._path = folder / RECORD_NAME
        self._disk = disk
        self._saving = asyncio.Lock()
        self._saved = b""
        disk.make_folder(folder, 0o700)
        self.names = Names(read_record(folder, disk))

    def lock(self, name: Name) -> asyncio.Lock:
        """Of a repository: its tags share folders, and one thing at a time happens to these."""
        return self._locks.setdefault(name.reference.name, asyncio.Lock())

    async def run(self, do: str, **facts: object) -> dict[str, Any]:
        """Run a job of `worker`."""
        return await self._jobs.run({"do": do, "place": self._place.as_document(), **facts})

    async def save(self) -> None:
        """Write the record durably, if it changed; in a thread, for a disk may take its time."""
        async with self._saving:
            raw = serialize_record(self.names.record)
            if raw != self._saved:
                await asyncio.to_thread(self._disk.write_atomic, self._path, raw, 0o600)
                self._saved = raw

    def use(self, settings: Settings) -> None:
        """Take what may change at run time."""
        self.settings = settings
        self.names.configure(settings.watch)

    def servers_of(self, ref: str) -> tuple[Server, ...]:
        """Where a name comes from: the configured servers, without any its own registry."""
        if self.settings.servers:
            return self.settings.servers
        url = Reference.parse(ref).registry_url
        if not url:
            raise UsageError(
                f"{ref} names no registry, and this agent has no server",
                hint="name it with its registry, or give the agent a --server",
            )
        return (Server(url, is_registry=True),)

    def list_places(self) -> list[Server]:
        """All servers, or registries of names."""
        if self.settings.servers:
            return list(self.settings.servers)
        urls = {name.reference.registry_url for name in self.names} - {""}
        return [Server(url, is_registry=True) for url in sorted(urls)]

    def list_servers(self, ref: str, first: str = "") -> list[dict[str, object]]:
        """Those of a name as a job takes them: `first`, then those that answer, then the others."""
        listed = self.health.list_all(self.servers_of(ref))
        return [asdict(one) for one in sorted(listed, key=lambda server: server.url != first)]

    # --- what happened -----------------------------------------------------------------------

    def note_error(self, name: Name, error: LayerkitError) -> None:
        """What last went wrong with a name; the same thing again is not logged again."""
        document = error_document(error)
        if name.last_error is None or document.items() - name.last_error.items():
            _log.warning("%s: %s (%s)", name.ref, error.message, error.cause)
        name.last_error = {**document, "time": self.now()}
        self.count(name)

    def note_success(self, name: Name) -> None:
        """A name is what the servers say that it is."""
        name.last_success, name.last_error = self.now(), None
        self.count(name)

    def note_engines(self, version: Version, answer: Mapping[str, Any]) -> None:
        """Which engines took a version, by what a job answered."""
        version.config, version.manifest = answer["config"], answer["manifest"]
        for kind, error in answer["engines"].items():
            self.metrics.handed_over(kind, good=error is None)
            if error is None:
                version.handed = sorted({*version.handed, kind})
                self.engine_errors.pop(kind, None)
            else:
                self.engine_errors[kind] = error

    def note_store(self, size: int) -> None:
        self.store_size = size
        self.metrics.store(size)

    def count(self, name: Name) -> None:
        """Bring the numbers of a name up to date."""
        self.metrics.hold(name.ref, len(name.versions), name.last_success)
        self.metrics.failing(sum(one.last_error is not None for one in self.names))
