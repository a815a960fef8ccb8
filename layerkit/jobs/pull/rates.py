"""What the node knows of its lines and of its own speed: facts of the store, from real pulls.

`load_rates` gives them to the planner; `Stopwatch` times the work of a pull, without the time that
it waited for the server, and keeps what it saw. One bad moment does not decide: a new measure moves
a fact by a part, and a work rate stays within CLAMP of what the planner starts with, so that no way
is shut for ever. A line that was seen to be fast stays fast until slower bodies have said otherwise
a few times.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from layerkit.edges.upstream import Upstream
from layerkit.formats.plan import METHODS, Rates

__all__ = ["Facts", "Stopwatch", "load_rates"]

SAMPLE_SIZE: Final = 1 << 20  # plain bytes from which on a layer says how fast the work is
WEIGHT: Final = 0.3  # of a new measure
CLAMP: Final = 8.0  # times faster or slower than the planner's start value
BANDWIDTHS: Final = (1e3, 1e10)  # bytes a second that are believed
ROUND_TRIPS: Final = (1e-5, 10.0)  # seconds that are believed
_log = logging.getLogger(__name__)


class Facts(Protocol):
    """The store's small facts."""

    def fact(self, name: str) -> str | None: ...
    def put_fact(self, name: str, value: str) -> None: ...


def load_rates(facts: Facts, url: str) -> Rates:
    """What is known of this machine and of the line to the server at `url`. A way that was not
    taken yet is as much slower or faster than usual as those that were."""
    start = Rates()
    known = {name: _read(facts, f"rate/{name}", 0.0) for name in METHODS}
    shares = [rate / getattr(start, name) for name, rate in known.items() if rate]
    usual = math.prod(shares) ** (1 / len(shares)) if shares else 1.0
    works = {name: rate or usual * getattr(start, name) for name, rate in known.items()}
    return Rates(
        _read(facts, _line_key(url, "round-trip"), start.round_trip),
        _read(facts, _line_key(url, "bandwidth"), start.bandwidth),
        **works,
    )


@dataclass(slots=True)
class Stopwatch:
    """Times the work of one pull. `waited` is the remote's count of seconds spent on the line."""

    facts: Facts
    remote: Upstream
    now: Callable[[], float] = time.perf_counter
    seen: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def work(self, method: str) -> Iterator[list[int]]:
        """Time what one way does to layers; the body appends their plain sizes."""
        sizes: list[int] = []
        started, waited = self.now(), self.remote.link.waited
        yield sizes
        seconds = self.now() - started - (self.remote.link.waited - waited)
        if sum(sizes) >= SAMPLE_SIZE:
            self.seen[method] = sum(sizes) / max(seconds, 1e-4)

    def rates(self) -> Rates:
        """What is known by now, this pull included."""
        self._keep_line()
        return load_rates(self.facts, self.remote.url)

    def keep(self) -> None:
        """Keep what was seen."""
        start = Rates()
        for method, rate in self.seen.items():
            usual: float = getattr(start, method)
            rate = min(max(rate, usual / CLAMP), usual * CLAMP)
            self._put(f"rate/{method}", rate)
        self.seen.clear()
        self._keep_line()

    def _keep_line(self) -> None:
        """A faster line or a shorter way counts at once, a slower one by and by."""
        link, url = self.remote.link, self.remote.url
        if link.bandwidth:
            rate = min(max(link.bandwidth, BANDWIDTHS[0]), BANDWIDTHS[1])
            self._put(_line_key(url, "bandwidth"), rate, best=max)
        if link.round_trip:
            seconds = min(max(link.round_trip, ROUND_TRIPS[0]), ROUND_TRIPS[1])
            self._put(_line_key(url, "round-trip"), seconds, best=min)
        link.forget()

    def _put(
        self, key: str, value: float, best: Callable[[float, float], float] | None = None
    ) -> None:
        old = _read(self.facts, key, 0.0)
        if old:
            moved = old + WEIGHT * (value - old)
            value = best(value, moved) if best is not None else moved
        _log.debug("%s is %.4g", key, value)
        self.facts.put_fact(key, f"{value:.6g}")


def _line_key(url: str, what: str) -> str:
    return f"line/{urlsplit(url).netloc}/{what}"


def _read(facts: Facts, key: str, usual: float) -> float:
    """A fact as a number; `usual` where it is absent or none."""
    try:
        value = float(facts.fact(key) or 0)
    except ValueError:
        return usual
    return value if 0 < value < 1e12 else usual
