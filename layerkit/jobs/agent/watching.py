"""Watches names for new versions: one task a name in the event loop, no thread, no process.

A chunk server holds each question until there is news; with more names than connections the
questions are shorter, so that each name has its turn within a minute. Any other registry is asked
now and then, over few connections, and when it tells of a push (`wake`). A version that does not
come whole is tried again with growing pauses; meanwhile the server is asked for the one after it,
so that a mended image is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.polling import Answer, Poller, Question
from layerkit.errors import (
    BusyError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    UnauthorizedError,
)
from layerkit.formats.notifications import Pushed
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.keeper import Keeper
from layerkit.jobs.agent.names import Name
from layerkit.jobs.agent.pauses import Pause
from layerkit.jobs.agent.settings import Server

__all__ = ["Watching"]

WAIT_SECONDS: Final = 50.0  # that a server holds a question; it and balancers allow 60
LOOKS: Final = 4  # connections to one registry: its answers take no time
# Pauses before looks after a push was told: registries tell of it before the tag moves.
TOLD_SECONDS: Final = (0.05, 0.2, 1.0, 5.0)
PLAIN_SECONDS: Final = 300.0  # until a server without long polls is asked for one again
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sight:
    """One watched name. `refused` is a version that did not come whole: it is tried again at
    `due`, or when the server names another."""

    name: Name
    pause: Pause  # after failures
    early: Pause  # after answers that were not held, as when a server restarts
    refused: Digest | None = None
    due: float = 0.0
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    looks: list[float] = field(default_factory=list)  # pauses before the next ones

    def wake(self) -> None:
        self.looks = list(TOLD_SECONDS)
        self.woken.set()

    async def rest(self, seconds: float) -> None:
        """Until the next question; shorter when a push was told."""
        if not self.looks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.woken.wait(), seconds)
        self.woken.clear()
        if self.looks:
            await asyncio.sleep(min(seconds, self.looks.pop(0)))


@dataclass(slots=True)
class Watching:
    """The tasks of all watched names."""

    keeper: Keeper
    poller: Poller
    platform: str
    now: Callable[[], float] = time.monotonic
    dice: Callable[[], float] = random.random
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _sights: dict[str, _Sight] = field(default_factory=dict)
    _plain: dict[str, float] = field(default_factory=dict)  # server -> no long poll until
    _polls: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    _headers: dict[tuple[str, str], str] = field(default_factory=dict)  # that registries accept

    def follow(self) -> None:
        """Start and stop tasks, so that what is watched is watched."""
        wanted = {name.ref for name in self.keeper.names if name.watched and not name.leaving}
        for ref, task in list(self._tasks.items()):
            if ref not in wanted or task.done():
                self._tasks.pop(ref).cancel()
                self._sights.pop(ref, None)
        for ref in sorted(wanted - self._tasks.keys()):
            self._tasks[ref] = asyncio.create_task(self._watch(self.keeper.names.get(ref)))

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self, pushed: Iterable[Pushed]) -> int:
        """Ask soon after the watched names among these; how many there are."""
        told = {(one.name, one.tag) for one in pushed}
        woken = 0
        for sight in self._sights.values():
            ref = sight.name.reference
            if (ref.registry_name, ref.tag) in told:
                sight.wake()
                woken += 1
        return woken

    async def _watch(self, name: Name) -> None:
        sight = _Sight(name, Pause(dice=self.dice), Pause(first=0.5, dice=self.dice))
        self._sights[name.ref] = sight
        while True:
            try:
                await self._step(sight)
            except LayerkitError as exc:
                self.keeper.node.note_error(name, exc)
                await sight.rest(sight.pause.next())
            except Exception:  # a bug of ours stops this name for a while, and no other
                _log.exception("watching %s failed", name.ref)
                await asyncio.sleep(sight.pause.next())

    async def _step(self, sight: _Sight) -> None:
        """Ask once, and pull if there is news."""
        name = sight.name
        if not name.versions or name.ref in self.keeper.node.unsure:
            await self.keeper.pull(name.ref)
            sight.pause.reset()
            return
        server, answer = await self._ask(sight)
        is_due = sight.refused is not None and self.now() >= sight.due
        if not answer.changed and not is_due:
            await self._nothing_new(sight, answer)
            return
        news = answer.digest or sight.refused
        if news is not None and str(news) == name.current:
            sight.refused = None  # it went back to what is here
            return
        before, update = name.current, answer.update if sight.refused is None else b""
        try:
            await self.keeper.pull(name.ref, server, update)
        except LayerkitError:
            if news is None:
                raise
            self._refuse(sight, news)
            return
        if name.current == before:  # told and not there: a server is behind another, or lies
            if news is not None:
                self._refuse(sight, news)
            else:
                await asyncio.sleep(sight.early.next())
            return
        sight.refused = None
        sight.looks.clear()
        sight.pause.reset()

    async def _nothing_new(self, sight: _Sight, answer: Answer) -> None:
        if sight.refused is None:
            self.keeper.node.note_success(sight.name)
            sight.pause.reset()
        if answer.waited:
            sight.early.reset()
            return
        seconds = self.keeper.node.settings.poll_seconds
        seconds *= 0.75 + 0.5 * self.dice()
        if answer.holds:
            seconds = min(seconds, sight.early.next())
        if sight.refused is not None:
            seconds = min(seconds, max(0.1, sight.due - self.now()))
        await sight.rest(seconds)

    def _refuse(self, sight: _Sight, digest: Digest) -> None:
        if sight.refused != digest:
            sight.pause.reset()
        sight.refused, sight.due = digest, self.now() + sight.pause.next()

    async def _ask(self, sight: _Sight) -> tuple[str, Answer]:
        """The first server that answers, and what; RemoteError when none does."""
        health, places = self.keeper.node.health, self.keeper.node.servers_of(sight.name.ref)
        while not (servers := health.list_usable(places)):
            await asyncio.sleep(health.seconds_left(places) + self.dice())
        have, wait = sight.name.list_have(), self._wait_seconds()
        if sight.refused is not None:  # is there something after it?
            have = (sight.refused, *(one for one in have if one != sight.refused))
            wait = max(1.0, min(wait, sight.due - self.now()))
        reference = sight.name.reference
        question = Question(reference.repository, reference.tag, have, self.platform)
        failure: LayerkitError | None = None
        async with self._slots(servers[0]):
            for server in servers:
                try:
                    if server.is_registry:
                        answer = await self._look(server, reference, question)
                    else:
                        answer = await self._ask_one(server, question, wait)
                    health.worked(server)
                    return server.url, answer
                except (RemoteDeniedError, NotFoundError) as exc:
                    failure = exc  # it answers: other names may be there
                except RemoteError as exc:
                    health.failed(server, exc.seconds if isinstance(exc, BusyError) else 0.0)
                    failure = exc
        assert failure is not None
        raise failure

    async def _ask_one(self, server: Server, question: Question, wait: float) -> Answer:
        if self._plain.get(server.url, 0.0) <= self.now():
            answer = await self.poller.wait_for_update(server.url, server.token, question, wait)
            if answer is not None:
                return answer
            answer = await self.poller.look(server.url, server.token, question)
            if not answer.changed:  # it has the name, and could have waited
                self._plain[server.url] = self.now() + PLAIN_SECONDS
            return answer
        return await self.poller.look(server.url, server.token, question)

    def _slots(self, server: Server) -> asyncio.Semaphore:
        """Connections that may be in use at once: of all chunk servers, or of one registry."""
        count = LOOKS if server.is_registry else self.keeper.node.settings.polls
        key = server.url if server.is_registry else ""
        return self._polls.setdefault(key, asyncio.Semaphore(count))

    async def _look(self, server: Server, ref: Reference, question: Question) -> Answer:
        """Ask a registry what the tag names. What it wants to be shown for that a job finds out,
        which may ask a token service or a credential helper; it holds for some minutes."""
        question = replace(question, name=ref.registry_name)
        key = (server.url, question.name)
        try:
            return await self.poller.look(server.url, self._headers.get(key, ""), question)
        except UnauthorizedError:
            self._headers.pop(key, None)
            found = await self.keeper.node.run("authorize", ref=str(ref), servers=[asdict(server)])
            if not found["header"]:
                raise
            answer = await self.poller.look(server.url, found["header"], question)
            self._headers[key] = found["header"]
            return answer

    def _wait_seconds(self) -> float:
        """So that each name is asked for within WAIT_SECONDS, with `polls` connections."""
        share = self.keeper.node.settings.polls / max(1, len(self._tasks))
        return max(1.0, WAIT_SECONDS * min(1.0, share))
