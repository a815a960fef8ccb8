"""What the HTTP edge serves, as Protocols and values: `Source` is asked, `Meter` is told.

The edge checks that the caller may pull the repository in the path before it asks; a Source that
reads further repositories (old images of an update) asks `caller.may_pull` itself. All calls may
block, and raise NotFoundError for what is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from layerkit.digest import Digest
from layerkit.formats.chunksync import Have
from layerkit.formats.oci import Descriptor, Platform
from layerkit.formats.tokens import Caller
from layerkit.formats.update import Share

__all__ = [
    "Blob",
    "Joined",
    "Meter",
    "RepositoryFacts",
    "Source",
    "UpdateAnswer",
    "UpdateFacts",
    "VersionFacts",
]


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: `read(offset, size)` gives its parts; `path` where it is in a local file, from
    `start` on."""

    size: int
    role: str  # of the layer that it is or belongs to (base, deps, code), or ""
    path: Path | None
    read: Callable[[int, int], Iterator[bytes]]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Joined:
    """A body of several: bytes that all who ask for them share, and blobs."""

    size: int
    parts: tuple[bytes | Blob, ...]


@dataclass(frozen=True, slots=True)
class UpdateAnswer:
    """What a reference names now, and the update to it; None: no update, go the plain way.
    `etag`: of a body that is not bytes."""

    digest: Digest
    raw: bytes | Blob | Joined | None
    shares: tuple[Share, ...]
    was_kept: bool
    etag: str = ""


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """A tag: what it names, when that was made (RFC 3339, or ""), bytes of layers by role."""

    tag: str
    digest: Digest
    created: str
    sizes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """A prepared update: tags (or short digests) of both ends, its bytes, and those of a plain
    pull of the layers that it brings."""

    old: str
    new: str
    size: int
    whole_size: int


@dataclass(frozen=True, slots=True)
class RepositoryFacts:
    """A repository, for the page: the newest version first, the newest update first."""

    name: str
    versions: tuple[VersionFacts, ...]
    updates: tuple[UpdateFacts, ...]


class Source(Protocol):
    """What the server serves. Safe for threads."""

    @property
    def has_near_version(self) -> bool:
        """Does `version` cost no more than a stat? Then it is looked at more often."""

    def version(self) -> Hashable:
        """Changes when something was published. Cheap: asked with every request."""

    def check_ready(self) -> None:
        """Raise StoreError or RemoteError if the storage cannot be read."""

    def resolve(self, name: str, ref: str) -> Digest | None:
        """What a tag or digest names in repository `name` now."""

    def has_repository(self, name: str) -> bool: ...

    def list_tags(self, name: str) -> list[str]: ...

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        """A manifest or index of repository `name`, by tag or digest."""

    def open_blob(self, name: str, digest: Digest) -> Blob:
        """A blob that repository `name` holds."""

    def list_referrers(self, name: str, digest: Digest) -> Sequence[Descriptor]: ...

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        """A chunk of an image of repository `name`; None if it holds no such chunk."""

    def role_of_chunks(self, name: str, digest: Digest) -> str:
        """The role of the layer that a chunk manifest or form of `name` is of, or ""."""

    def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
        """A chunk manifest of repository `name`, as a change of what the node holds."""

    def read_packed(self, name: str, digest: Digest) -> bytes:
        """The form of a form blob of repository `name`, packed; NotFoundError while it is not."""

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        """A chunk batch of the chunks at these places of a chunk manifest of `name`."""

    def read_update(
        self,
        name: str,
        ref: str,
        have: Sequence[Digest],
        platform: Platform,
        caller: Caller,
        within: float,
    ) -> UpdateAnswer:
        """What `ref` names now, and one stream that brings it to who holds `have` (maybe nothing).
        Old forms of other repositories only if `caller` may pull them. What is not made yet is made
        in `within` seconds and the caller's budget, or the answer takes what is quick."""

    def describe(self, caller: Caller) -> tuple[RepositoryFacts, ...]:
        """What `caller` may see, for the page; by name."""


class Meter(Protocol):
    """Told by a Source of its work."""

    def kept(self, what: str, hit: bool) -> None:
        """Something of kind `what` was asked for: was it kept (True) or to be made?"""

    def made(self, what: str, seconds: float) -> None:
        """Something of kind `what` (`update`, `packed`) was made in `seconds`."""
