"""Watches names for new versions: one task a name in the event loop, no thread, no process.

A chunk server holds each question until there is news; with more names than connections the
questions are shorter, so that each name has its turn within a minute. Any other registry is asked
now and then. A version that does not come whole is tried again with growing pauses; meanwhile the
server is asked for the one after it, so that a mended image is not waited for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.polling import Answer, Poller, Question
from layerkit.errors import LayerkitError, NotFoundError, RemoteDeniedError, RemoteError
from layerkit.jobs.agent.keeper import Keeper
from layerkit.jobs.agent.names import Name
from layerkit.jobs.agent.pauses import Pause
from layerkit.jobs.agent.settings import Server

__all__ = ["Watching"]

WAIT_SECONDS: Final = 50.0  # that a server holds a question; it and balancers allow 60
PLAIN_SECONDS: Final = 300.0  # until a server without long polls is asked for one again
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refused:
    """A version that did not come whole: `until` then it is not tried again."""

    digest: Digest | None
    until: float


@dataclass(slots=True)
class Watching:
    """The tasks of all watched names."""

    keeper: Keeper
    poller: Poller
    platform: str
    now: Callable[[], float] = time.monotonic
    dice: Callable[[], float] = random.random
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _plain: dict[str, float] = field(default_factory=dict)  # server -> no long poll until
    _polls: asyncio.Semaphore | None = None

    def follow(self) -> None:
        """Start and stop tasks, so that what is watched is watched."""
        wanted = {name.ref for name in self.keeper.names if name.watched and not name.leaving}
        for ref in self._tasks.keys() - wanted:
            self._tasks.pop(ref).cancel()
        for ref in sorted(wanted - self._tasks.keys()):
            self._tasks[ref] = asyncio.create_task(self._watch(self.keeper.names.get(ref)))

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, name: Name) -> None:
        pause = Pause(dice=self.dice)
        refused: _Refused | None = None
        while True:
            try:
                refused = await self._step(name, refused)
                if refused is None:
                    pause.reset()
                elif refused.until == 0.0:
                    refused.until = self.now() + pause.next()
            except LayerkitError as exc:
                self.keeper.note_error(name, exc)
                await asyncio.sleep(pause.next())
            except Exception:  # a bug of ours stops this name for a while, and no other
                _log.exception("watching %s failed", name.ref)
                await asyncio.sleep(pause.next())

    async def _step(self, name: Name, refused: _Refused | None) -> _Refused | None:
        """Ask once, and pull if there is news; what was refused, if anything."""
        news: Digest | None = None
        server, update = "", b""
        if name.versions and name.ref not in self.keeper.unsure:
            server, answer = await self._ask(name, refused)
            update = answer.update if refused is None else b""
            is_due = refused is not None and self.now() >= refused.until
            if not answer.changed and not is_due:
                if refused is None:
                    self.keeper.seen_current(name)
                if not answer.waited:
                    await asyncio.sleep(self._look_pause(refused))
                return refused
            news = answer.digest or (refused.digest if refused is not None else None)
            if news is not None and str(news) == name.current:
                return None  # it went back to what is here
        before = name.current
        try:
            await self.keeper.pull(name.ref, server, update)
        except LayerkitError:
            if news is None:
                raise
            return _Refused(news, 0.0)
        if name.current == before and news is not None:
            # announced and not there: a server that is behind another, or lies
            return _Refused(news, 0.0)
        return None

    def _look_pause(self, refused: _Refused | None) -> float:
        seconds = self.keeper.settings.poll_seconds
        if refused is not None:
            seconds = min(seconds, max(0.1, refused.until - self.now()))
        return seconds * (0.75 + 0.5 * self.dice())

    async def _ask(self, name: Name, refused: _Refused | None) -> tuple[str, Answer]:
        """The first server that answers, and what; RemoteError when none does."""
        health = self.keeper.health
        while not (servers := health.list_usable()):
            await asyncio.sleep(health.seconds_left() + self.dice())
        have = name.list_have()
        wait = self._wait_seconds()
        if refused is not None and refused.digest is not None:
            have = (refused.digest, *(one for one in have if one != refused.digest))
            wait = max(1.0, min(wait, refused.until - self.now()))
        reference = name.reference
        question = Question(reference.repository, reference.tag, have, self.platform)
        failure: LayerkitError | None = None
        if self._polls is None:
            self._polls = asyncio.Semaphore(self.keeper.settings.polls)
        async with self._polls:
            for server in servers:
                try:
                    answer = await self._ask_one(server, question, wait)
                    health.worked(server)
                    return server.url, answer
                except (RemoteDeniedError, NotFoundError) as exc:
                    failure = exc  # it answers: other names may be there
                except RemoteError as exc:
                    health.failed(server)
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

    def _wait_seconds(self) -> float:
        """So that each name is asked for within WAIT_SECONDS, with `polls` connections."""
        share = self.keeper.settings.polls / max(1, len(self._tasks))
        return max(1.0, WAIT_SECONDS * min(1.0, share))
