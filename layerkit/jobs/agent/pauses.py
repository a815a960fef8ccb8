"""How long to wait after failures, and which server to ask: pure but for the clock and the dice
that are passed in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from layerkit.jobs.agent.settings import Server

__all__ = ["Health", "Pause"]

FIRST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 300.0
MOST_ASKED: Final = 3600.0  # that a server may ask to be left alone
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
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def list_usable(self, servers: Iterable[Server]) -> tuple[Server, ...]:
        """Those of `servers` to ask, in their order; those that failed are left out."""
        now = self.now()
        return tuple(server for server in servers if self._until(server) <= now)

    def list_all(self, servers: Sequence[Server]) -> tuple[Server, ...]:
        """All of them, those that failed last."""
        usable = self.list_usable(servers)
        return (*usable, *(server for server in servers if server not in usable))

    def seconds_left(self, servers: Iterable[Server]) -> float:
        """Until one of them is usable again."""
        ends = [self._until(server) for server in servers]
        return max(0.0, min(ends, default=0.0) - self.now())

    def worked(self, server: Server) -> None:
        self._seen.pop(server.url, None)

    def failed(self, server: Server, asked: float = 0.0) -> None:
        """Unless it is left alone already: what failed at the same time is one failure. `asked`:
        seconds that it asks for itself."""
        seen = self._seen.setdefault(server.url, _Seen(Pause(dice=self.dice, most=60.0)))
        if seen.until <= self.now():
            pause = max(seen.pause.next(), min(asked, MOST_ASKED) * (1.0 + 0.1 * self.dice()))
            seen.until = self.now() + pause

    def _until(self, server: Server) -> float:
        seen = self._seen.get(server.url)
        return seen.until if seen is not None else 0.0
