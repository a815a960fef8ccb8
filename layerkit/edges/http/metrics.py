"""What the server counts, by prometheus-client, in a registry of its own.

No label holds the name of a repository, a token or an address, so the numbers can be shown to
whoever may use the server. With several workers each puts its numbers into memory that all share,
and the one that is asked adds them up (`Board`); a worker that is started again goes on from what
its place holds.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector

from layerkit.formats.update import Share

__all__ = ["CONTENT_TYPE", "ROLES", "Board", "Metrics", "RoleTotals"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
ROLES: Final = ("base", "deps", "code")
OTHER: Final = "other"  # the role of what is no layer: documents, images of other builders
SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 60)
SLOT_SIZE: Final = 512 << 10  # bytes of a worker's numbers: about 40 KB are used
_SLOT: Final = struct.Struct("<II")  # size, CRC-32: a torn read is seen
_READ_COUNT: Final = 5

Sample = tuple[str, tuple[tuple[str, str], ...], float]


@dataclass(frozen=True, slots=True)
class RoleTotals:
    """Bytes of layers of one role that went out in updates, and those that did not have to."""

    role: str
    sent_size: int
    saved_size: int

    @property
    def hit_rate(self) -> float | None:
        """The part of the bytes that the nodes already had; None before there were any."""
        whole = self.sent_size + self.saved_size
        return self.saved_size / whole if whole else None


class Metrics:
    """The numbers of one worker, and, through a board, those of all. Implements `Meter`."""

    def __init__(self, board: Board | None = None, index: int = 0) -> None:
        self._board = board
        self._index = index
        self._before = board.read(index) if board is not None else []
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "layerkit_http_requests",
            "Requests answered.",
            ("endpoint", "status"),
            registry=registry,
        )
        self.bytes = Counter(
            "layerkit_http_body_bytes", "Bytes of bodies sent.", ("endpoint",), registry=registry
        )
        self.seconds = Histogram(
            "layerkit_http_seconds",
            "Seconds until an answer was sent, of those that were not ready.",
            ("endpoint",),
            buckets=SECONDS,
            registry=registry,
        )
        self.sent = Counter(
            "layerkit_layer_sent_bytes", "Bytes sent for layers.", ("role",), registry=registry
        )
        self.saved = Counter(
            "layerkit_layer_saved_bytes",
            "Bytes of layers that a plain pull would have moved besides.",
            ("role",),
            registry=registry,
        )
        self.cache = Counter(
            "layerkit_cache_requests",
            "What was asked for and was kept (hit) or was to be made (miss).",
            ("what", "result"),
            registry=registry,
        )
        self.making = Histogram(
            "layerkit_make_seconds",
            "Seconds to make something: update is a delta.",
            ("what",),
            buckets=SECONDS,
            registry=registry,
        )
        self.refused = Counter(
            "layerkit_http_refused",
            "Requests and connections refused or cut, by reason.",
            ("reason",),
            registry=registry,
        )
        self.in_flight = Gauge(
            "layerkit_http_in_flight", "Requests being answered.", registry=registry
        )
        self.waiting = Gauge(
            "layerkit_http_waiting", "Long polls that wait for a new version.", registry=registry
        )
        self.connections = Gauge(
            "layerkit_http_connections", "Open connections.", registry=registry
        )
        ProcessCollector(registry=registry)
        for role in (*ROLES, OTHER):
            self.sent.labels(role)
            self.saved.labels(role)

    # --- numbers of what this server is besides ---------------------------------------------------

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS, registry=self._registry)

    # --- counting ------------------------------------------------------------------------------

    def kept(self, what: str, hit: bool) -> None:
        self.cache.labels(what, "hit" if hit else "miss").inc()

    def made(self, what: str, seconds: float) -> None:
        self.making.labels(what).observe(seconds)

    def count_shares(self, shares: Iterable[Share]) -> None:
        for share in shares:
            role = share.role if share.role in ROLES else OTHER
            self.sent.labels(role).inc(share.sent_size)
            self.saved.labels(role).inc(max(0, share.whole_size - share.sent_size))

    # --- showing -------------------------------------------------------------------------------

    def publish(self) -> None:
        """Put this worker's numbers where the others find them."""
        if self._board is not None:
            own = _merge([_samples(self._registry.collect()), _lasting(self._before)])
            self._board.write(self._index, own)

    def render(self) -> bytes:
        """The numbers of all workers, as Prometheus reads them."""
        total = {(name, labels): value for name, labels, value in self._total()}
        return generate_latest(_Fixed(self._registry.collect(), total))

    def totals(self) -> tuple[RoleTotals, ...]:
        """By role, of all workers."""
        found = {(name, labels): value for name, labels, value in self._total()}
        sent, saved = ("layerkit_layer_sent_bytes_total", "layerkit_layer_saved_bytes_total")
        return tuple(
            RoleTotals(
                role,
                int(found.get((sent, (("role", role),)), 0)),
                int(found.get((saved, (("role", role),)), 0)),
            )
            for role in ROLES
        )

    def count_requests(self) -> int:
        """Of all workers, of all kinds."""
        name = "layerkit_http_requests_total"
        return int(sum(value for sample, _, value in self._total() if sample == name))

    def _total(self) -> list[Sample]:
        """Own numbers and those of the other workers."""
        found = [_samples(self._registry.collect()), _lasting(self._before)]
        if self._board is not None:
            found += self._board.read_others(self._index)
        return _merge(found)


def _samples(families: Iterable[Metric]) -> list[Sample]:
    return [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def _lasting(samples: Iterable[Sample]) -> list[Sample]:
    """Counters of a process that ended; what it held (gauges, memory) is gone."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return [sample for sample in samples if sample[0].endswith(ends)]


def _merge(lists: Iterable[Iterable[Sample]]) -> list[Sample]:
    """Added up; of start times the first."""
    total: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for samples in lists:
        for name, labels, value in samples:
            key = (name, labels)
            if key not in total:
                total[key] = value
            elif name.endswith("_start_time_seconds"):
                total[key] = min(total[key], value)
            else:
                total[key] += value
    return [(name, labels, value) for (name, labels), value in total.items()]


class _Fixed:
    """Families with the values of `total`, as something that can be collected."""

    def __init__(
        self,
        families: Iterable[Metric],
        total: Mapping[tuple[str, tuple[tuple[str, str], ...]], float],
    ) -> None:
        self._families = list(families)
        self._total = total

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            ends = ("", "_total", "_bucket", "_count", "_sum")
            names = {family.name + end for end in ends}
            out = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in self._total.items():
                if name in names:
                    out.add_sample(name, dict(labels), value)
            yield out


class Board:
    """Memory of all workers, made before they are: a slot for each one's numbers."""

    def __init__(self, worker_count: int) -> None:
        self._count = worker_count
        self._memory = mmap.mmap(-1, worker_count * SLOT_SIZE)
        self._last: dict[int, list[Sample]] = {}

    def write(self, index: int, samples: Iterable[Sample]) -> None:
        raw = json.dumps(list(samples)).encode()
        if len(raw) > SLOT_SIZE - _SLOT.size:
            return
        at = index * SLOT_SIZE
        self._memory[at : at + _SLOT.size + len(raw)] = _SLOT.pack(len(raw), zlib.crc32(raw)) + raw

    def read(self, index: int) -> list[Sample]:
        """The last whole numbers of a worker: it may be writing right now."""
        at = index * SLOT_SIZE
        for _ in range(_READ_COUNT):
            size, crc = _SLOT.unpack_from(self._memory, at)
            raw = self._memory[at + _SLOT.size : at + _SLOT.size + min(size, SLOT_SIZE)]
            if size and zlib.crc32(raw) == crc:
                self._last[index] = [
                    (name, tuple((key, text) for key, text in labels), value)
                    for name, labels, value in json.loads(raw)
                ]
                break
        return self._last.get(index, [])

    def read_others(self, index: int) -> list[list[Sample]]:
        return [self.read(other) for other in range(self._count) if other != index]
