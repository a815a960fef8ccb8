"""Bundles as files: written whole or not at all, and read as a place that an image comes from.

`BundleUpstream` is to a pull what a server is (`edges.upstream`), without layers: an update from
what the node holds (or from nothing) is the only way to most of them. Parts are checked by their
digests as they are read. The file is read where it lies; memory: its index and the documents that
refer to the image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from layerkit.digest import Digest, sha256_digest, verify_stream
from layerkit.edges.disk import Disk, map_os_error
from layerkit.edges.upstream import Measured, Resolved, UpdateBody
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    RemoteLimitError,
    UsageError,
)
from layerkit.formats.bundle import HEADER, BundlePart, head_size, parse_head, serialize_head
from layerkit.formats.oci import (
    ANNOTATION_REF_NAME,
    INDEX_TYPES,
    MANIFEST,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    Index,
    Manifest,
    parse_index,
    parse_manifest,
    parse_platform,
    serialize_index,
)
from layerkit.formats.reference import Reference
from layerkit.formats.storedupdate import NOTHING, StoredUpdate, choose_update, find_updates

__all__ = ["BundleFile", "BundleUpstream", "PartSource", "write_bundle"]

READ_SIZE: Final = 1 << 20
MAX_READ_SIZE: Final = 4 << 30  # bytes of one part that is read at once
MAX_DOCUMENTS_SIZE: Final = 64 << 20  # bytes of all documents that refer to images


@dataclass(frozen=True, slots=True)
class PartSource:
    """A part to be written: `read` gives its bytes, once."""

    digest: Digest
    size: int
    read: Callable[[], Iterable[bytes]]


def write_bundle(path: Path, index: Index, parts: Iterable[PartSource], disk: Disk) -> int:
    """Write a bundle to `path`, durably, or leave `path` as it was; its size in bytes. Raises
    IntegrityError for a part that is not what it should be. Memory: what one part gives at once."""
    raw_index = serialize_index(index)
    first = PartSource(sha256_digest(raw_index), len(raw_index), lambda: (raw_index,))
    listed = list({part.digest: part for part in (first, *parts)}.values())
    with disk.open_new(path) as file:
        file.write(serialize_head([(part.digest, part.size) for part in listed]))
        for part in listed:
            what = f"part {part.digest.short} of the bundle"
            for piece in verify_stream(part.read(), part.digest, part.size, what):
                file.write(piece)
        file.commit()
        return file.size


class BundleFile:
    """An open bundle. Raises FormatError, NotFoundError, and StoreError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise map_os_error(exc, "read", path) from exc
        try:
            size = os.fstat(self._fd).st_size
            raw = self._pread(HEADER.size, 0)
            parts = parse_head(self._pread(head_size(raw), 0), size)
            self.parts = {part.digest: part for part in parts}
            self.index = parse_index(self.read(parts[0].digest, MAX_DOCUMENT_SIZE))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, digest: Digest, limit: int) -> bytes:
        """A part of at most `limit` bytes, verified."""
        part = self._find(digest)
        if part.size > limit:
            raise RemoteLimitError(f"part {digest.short} has {part.size} bytes, want <= {limit}")
        return b"".join(self.stream(digest))

    def stream(self, digest: Digest) -> Iterator[bytes]:
        """The same in pieces, verified at its end."""
        part = self._find(digest)
        what = f"part {digest.short} of {self.path}"
        return verify_stream(self._read_pieces(part.offset, part.size), digest, part.size, what)

    def read_range(self, digest: Digest, offset: int, size: int) -> bytes:
        """Bytes of a part, not verified; fewer at its end."""
        part = self._find(digest)
        return self._pread(min(size, max(0, part.size - offset)), part.offset + offset)

    def list_updates(self, top: Digest) -> list[StoredUpdate]:
        return find_updates(entry for entry, _ in self.list_referrers(top))

    def list_referrers(self, subject: Digest) -> list[tuple[Descriptor, Manifest]]:
        """What refers to an image, as the referrers API lists it; what is broken does not."""
        found, left = [], MAX_DOCUMENTS_SIZE
        for entry in self.index.manifests:
            part = self.parts.get(entry.digest)
            named = ANNOTATION_REF_NAME in entry.annotations
            if named or entry.media_type != MANIFEST or part is None or part.size > left:
                continue
            left -= part.size
            try:
                manifest = parse_manifest(self.read(entry.digest, MAX_DOCUMENT_SIZE))
            except (FormatError, RemoteLimitError):
                continue
            if manifest.subject is not None and manifest.subject.digest == subject:
                kind = manifest.artifact_type or manifest.config.media_type
                facts = dict(manifest.annotations)
                found.append((replace(entry, artifact_type=kind, annotations=facts), manifest))
        return found

    def _find(self, digest: Digest) -> BundlePart:
        part = self.parts.get(digest)
        if part is None:
            raise NotFoundError(f"{self.path} does not hold {digest.short}")
        return part

    def _read_pieces(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            piece = self._pread(min(READ_SIZE, end - offset), offset)
            if not piece:
                return
            offset += len(piece)
            yield piece

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as exc:
            raise map_os_error(exc, "read", self.path) from exc


class BundleUpstream:
    """A bundle as an `Upstream`. Not for sharing between threads."""

    def __init__(self, path: Path) -> None:
        self.file = BundleFile(path)
        self.url = str(path)
        self.request_count = 0  # of parts
        self.bytes_moved = 0  # bytes of parts that were read
        self.link = Measured()

    @property
    def chunk_server(self) -> None:
        return None

    @property
    def has_layers(self) -> bool:
        return False

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what every image needs ----------------------------------------------------------------

    def resolve(self, name: str, ref: str, known: Digest | None = None) -> Resolved | None:
        """The manifest or index that `ref` (tag or digest) names; None if that is still `known`.
        The host of a name does not count: who carries a bundle may know it by another."""
        digest = self.find_top(name, ref)
        if digest == known:
            return None
        data = self._count(self.file.read(digest, MAX_DOCUMENT_SIZE))
        try:
            return Resolved(digest, parse_manifest(data).media_type, data)
        except FormatError:
            return Resolved(digest, parse_index(data).media_type, data)

    def find_top(self, name: str, ref: str) -> Digest:
        """The digest of that; NotFoundError names what there is."""
        if ":" in ref:
            digest = Digest.parse(ref)
            if digest in self.file.parts:
                return digest
        names = []
        for entry in self.file.index.manifests:
            text = entry.annotations.get(ANNOTATION_REF_NAME, "")
            if text and entry.media_type in (*INDEX_TYPES, *MANIFEST_TYPES):
                with contextlib.suppress(UsageError):  # no name that anybody can ask for
                    found = Reference.parse(text).tagged
                    if (found.repository, found.tag) == (name, ref):
                        return entry.digest
                names.append(f"{text}@{entry.digest}")
        raise NotFoundError(
            f"{self.url} does not hold {name}{'@' if ':' in ref else ':'}{ref}",
            cause=f"it holds {', '.join(names[:5]) or 'no image'}",
        )

    def fetch_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """A blob of `size` bytes, verified."""
        if size > MAX_READ_SIZE:
            raise RemoteLimitError(f"blob {digest.short} has {size} bytes, over {MAX_READ_SIZE}")
        return b"".join(self.stream_blob(name, digest, size, progress))

    def stream_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> Iterator[bytes]:
        """The same in pieces, verified at its end."""
        held = self.file.parts.get(digest)
        if held is not None and held.size != size:
            got, want = f"{held.size} bytes", f"{size} bytes"
            raise IntegrityError(f"blob {digest.short} of {self.url}", got=got, want=want)
        self.request_count += 1
        for piece in self.file.stream(digest):
            self.bytes_moved += len(piece)
            if progress is not None:
                progress(len(piece))
            yield piece

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
        """The least update from one of `have`, or from nothing; None if `ref` names the first."""
        found = self._find_update(name, ref, have, platform)
        if found is None:
            return None
        top, update = found
        return UpdateBody(self.stream_blob(name, update.blob, update.size), top)

    def find_update(
        self, top: Digest, have: Sequence[Digest], platform: str
    ) -> StoredUpdate | None:
        """The least update to `top` from one of `have`, or from nothing."""
        listed = self.file.list_updates(top)
        return choose_update(listed, (*have, NOTHING), parse_platform(platform))

    def measure_update(self, name: str, ref: str, have: Sequence[Digest], platform: str) -> int:
        """Bytes that `open_update` would read."""
        found = self._find_update(name, ref, have, platform)
        return 0 if found is None else found[1].size

    def _find_update(
        self, name: str, ref: str, have: Sequence[Digest], platform: str
    ) -> tuple[Digest, StoredUpdate] | None:
        """And the image that it leads to; None if that is the first of `have`."""
        top = self.find_top(name, ref)
        if have and have[0] == top:
            return None
        update = self.find_update(top, have, platform)
        if update is None:
            raise NotFoundError(f"{self.url} has no update from an image that is held")
        return top, update

    def fetch_referrers(self, name: str, digest: Digest, artifact_type: str) -> list[Descriptor]:
        """Descriptors of the manifests of that type whose subject is `digest`."""
        listed = self.file.list_referrers(digest)
        return [entry for entry, _ in listed if entry.artifact_type == artifact_type]

    def read_start(self, name: str, digest: Digest, size: int, whole_size: int) -> bytes:
        """The first `size` bytes of a blob of `whole_size`, not verified."""
        return self._count(self.file.read_range(digest, 0, min(size, whole_size)))

    def read_ranges(
        self, name: str, digest: Digest, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[bytes]:
        """The bytes of each (offset, size) of a blob, not verified."""
        for offset, size in ranges:
            yield self._count(self.file.read_range(digest, offset, size))

    def _count(self, data: bytes) -> bytes:
        self.request_count += 1
        self.bytes_moved += len(data)
        return data
