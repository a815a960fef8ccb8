"""Where an image comes from, as a pull sees it: a chunk server (`edges.remote`), a plain registry
(`edges.registry.upstream`), or a file (`edges.bundle`).

The protocol, and the values that pass through it. What only helps to move bytes (updates, packed
forms, changes, chunks) may be absent: NotFoundError, and the pull goes its plain way. What an
upstream says is believed nowhere: documents and blobs are checked by their digests where they
enter, the rest by who uses it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Protocol, Self

from layerkit.digest import Digest
from layerkit.formats.chunksync import Have
from layerkit.formats.oci import Descriptor

__all__ = [
    "ChunkServer",
    "Measured",
    "Resolved",
    "UpdateBody",
    "Upstream",
    "asked_pause",
    "reason_of",
]

FAST: Final = 1 << 20  # bytes a second: at least this fast is a line whose reader also did work
SAMPLE_SIZE: Final = 64 << 10  # bytes of a body from which on it tells how fast the line is
MAX_REASON: Final = 300  # characters of an error's text
_CONNECTION: Final = re.compile(r"^\w+\([^)]*\): ")  # what urllib3 puts before its reasons


def asked_pause(text: str) -> float:
    """Seconds that a Retry-After asks to wait: a number, or a date (RFC 9110, 10.2.3); 0 for what
    is neither."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def reason_of(exc: BaseException) -> str:
    """What an error of the line says, without the object that urllib3 names first."""
    return _CONNECTION.sub("", str(exc))[:MAX_REASON]


@dataclass(slots=True)
class Measured:
    """What was seen of the line: bytes a second, seconds of a round trip; 0: nothing. `waited` sums
    the seconds that were spent on it."""

    bandwidth: float = 0.0
    round_trip: float = 0.0
    waited: float = 0.0

    def forget(self) -> None:
        """Begin anew; what was seen is kept elsewhere."""
        self.bandwidth = self.round_trip = 0.0

    def see_body(self, size: int, seconds: float, *, waited: bool) -> None:
        """A body of `size` bytes came in `seconds`. Of several the best one counts: the others were
        slowed by the server. Slow ones count only if the reader did nothing else (`waited`)."""
        if size >= SAMPLE_SIZE:
            rate = size / max(seconds, 1e-5)
            if waited or rate > FAST:
                self.bandwidth = max(self.bandwidth, rate)

    def see_head(self, seconds: float) -> None:
        """An answer's head came after `seconds`: the quickest one had least work in it."""
        self.round_trip = min(self.round_trip or seconds, seconds)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A manifest or index as it came: its digest is verified, its text is not parsed yet."""

    digest: Digest
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class UpdateBody:
    """An update as it comes: its parts, read once, and the image that it must lead to, if said."""

    parts: Iterator[bytes]
    digest: Digest | None


class Upstream(Protocol):
    """Not for sharing between threads. `name` is a repository without its host."""

    @property
    def url(self) -> str:
        """For people, and as the name of the line: scheme and host, or a file."""

    @property
    def request_count(self) -> int:
        """Requests, retries included."""

    @property
    def bytes_moved(self) -> int:
        """Bytes of bodies as they are on the wire, sent and received."""

    @property
    def link(self) -> Measured:
        """What was measured of the line meanwhile."""

    @property
    def chunk_server(self) -> ChunkServer | None:
        """The same as a chunk server, if it is one. Where it is none, chunks are in packs, or come
        with their layer."""

    @property
    def has_layers(self) -> bool:
        """Can each layer be had by itself, too? A bundle has an update, and what that lacks."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    # --- what every image needs ----------------------------------------------------------------

    def resolve(self, name: str, ref: str, known: Digest | None = None) -> Resolved | None:
        """The manifest or index that `ref` (tag or digest) names; None if that is still `known`."""

    def fetch_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """A blob of `size` bytes, verified."""

    # --- what helps to move fewer bytes --------------------------------------------------------

    def open_update(
        self,
        name: str,
        ref: str,
        have: Sequence[Digest],
        platform: str,
        *,
        within: float | None = None,
        wait: float | None = None,
    ) -> UpdateBody | None:
        """The update stream to what `ref` names from one of `have` (or from none); None if `ref`
        still names the first. `within`: seconds for what is not made yet; `wait`: for news."""

    def measure_update(self, name: str, ref: str, have: Sequence[Digest], platform: str) -> int:
        """Bytes that `open_update` would move; 0 if `ref` still names the first of `have`."""

    def fetch_referrers(self, name: str, digest: Digest, artifact_type: str) -> list[Descriptor]:
        """Descriptors of the manifests of that type whose subject is `digest`."""

    def read_start(self, name: str, digest: Digest, size: int, whole_size: int) -> bytes:
        """The first `size` bytes of a blob of `whole_size`, or all of it. Not verified."""

    def read_ranges(
        self, name: str, digest: Digest, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[bytes]:
        """The bytes of each (offset, size) of a blob; in order, no two overlap. Not verified."""


class ChunkServer(Protocol):
    """What a server of ours makes besides: chunks, as they are asked for."""

    def fetch_packed(self, name: str, form: Digest, limit: int) -> bytes:
        """The packed form of form blob `form`, not verified."""

    def fetch_change(self, name: str, digest: Digest, have: Have, limit: int) -> bytes:
        """Chunk manifest `digest` as a change of what the node holds, not verified."""

    def fetch_chunk(self, name: str, chunk: Digest, size: int) -> bytes:
        """One chunk, verified."""

    def fetch_chunks(
        self, name: str, ids: Sequence[Digest], sizes: Sequence[int]
    ) -> Iterator[bytes | None]:
        """Chunks in the order of `ids`, NOT verified; None where one is missing."""

    def fetch_listed(
        self,
        name: str,
        digest: Digest,
        places: bytes,
        sizes: Sequence[int],
        near: tuple[Digest, bytes] | None,
    ) -> Iterator[bytes | None]:
        """The same for chunks at `places` of chunk manifest `digest`; `near` is one that the node
        holds, and the bytes that both sides know by it."""
