"""How long to wait after failures, and which server to ask: pure but for the clock and the dice
that are passed in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from layerkit.jobs.agent.settings import Server

__all__ = ["Health", "Pause"]

FIRST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 300.0
Dice = Callable[[], float]  # from 0 to 1


@dataclass(slots=True)
class Pause:
    """Doubles with each failure, by half at random: agents that failed together come back apart."""

    first: float = FIRST_SECONDS
    most: float = MOST_SECONDS
    dice: Dice = random.random
    failure_count: int = 0

    def next(self) -> float:
        """Seconds to wait now."""
        whole: float = min(self.most, self.first * 2 ** min(self.failure_count, 30))
        self.failure_count += 1
        return whole * (0.5 + 0.5 * self.dice())

    def reset(self) -> None:
        self.failure_count = 0


@dataclass(slots=True)
class _Seen:
    pause: Pause
    until: float = 0.0


@dataclass(slots=True)
class Health:
    """Which servers answer. One that failed is left alone for a while by all names together, so
    that hundreds of names do not each find out that it is down."""

    now: Callable[[], float]
    dice: Dice = random.random
    servers: tuple[Server, ...] = ()
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def use(self, servers: Iterable[Server]) -> None:
        self.servers = tuple(servers)

    def list_usable(self) -> tuple[Server, ...]:
        """Servers to ask, in the order of the configuration; those that failed are left out."""
        now = self.now()
        return tuple(server for server in self.servers if self._until(server) <= now)

    def list_all(self) -> tuple[Server, ...]:
        """All servers, those that failed last."""
        usable = self.list_usable()
        return (*usable, *(server for server in self.servers if server not in usable))

    def seconds_left(self) -> float:
        """Until a server is usable again."""
        ends = [self._until(server) for server in self.servers]
        return max(0.0, min(ends, default=0.0) - self.now())

    def worked(self, server: Server) -> None:
        self._seen.pop(server.url, None)

    def failed(self, server: Server) -> None:
        """Unless it is left alone already: what failed at the same time is one failure."""
        seen = self._seen.setdefault(server.url, _Seen(Pause(dice=self.dice, most=60.0)))
        if seen.until <= self.now():
            seen.until = self.now() + seen.pause.next()

    def _until(self, server: Server) -> float:
        seen = self._seen.get(server.url)
        return seen.until if seen is not None else 0.0
