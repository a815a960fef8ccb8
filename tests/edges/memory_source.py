"""A `Source` in memory for tests of the HTTP edge: repositories with tags, blobs, updates."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.http import (
    Blob,
    RepositoryFacts,
    UpdateAnswer,
    UpdateFacts,
    VersionFacts,
)
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.chunksync import Have
from layerkit.formats.oci import MANIFEST, Descriptor, Platform
from layerkit.formats.tokens import Caller
from layerkit.formats.update import Share


@dataclass
class Repository:
    tags: dict[str, bytes] = field(default_factory=dict)  # manifests
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    files: dict[Digest, Path] = field(default_factory=dict)
    chunks: dict[Digest, bytes] = field(default_factory=dict)
    updates: dict[tuple[str, Digest | None], bytes] = field(default_factory=dict)


class MemorySource:
    """Counts its calls; `slow` seconds pass in read_update, `broken` is what check_ready raises."""

    has_near_version = True

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.changes = 0
        self.slow = 0.0
        self.broken: Exception | None = None
        self.calls: list[str] = []
        self.callers: list[Caller] = []
        self.threads: set[str] = set()
        self.kept = True

    # --- filling ---------------------------------------------------------------------------------

    def tag(self, name: str, tag: str, manifest: bytes = b"{}") -> Digest:
        self.repositories.setdefault(name, Repository()).tags[tag] = manifest
        self.changes += 1
        return sha256_digest(manifest)

    def blob(self, name: str, data: bytes, path: Path | None = None) -> Digest:
        repository = self.repositories.setdefault(name, Repository())
        digest = sha256_digest(data)
        repository.blobs[digest] = data
        if path is not None:
            path.write_bytes(data)
            repository.files[digest] = path
        return digest

    def chunk(self, name: str, data: bytes) -> Digest:
        chunk = chunk_id(data)
        self.repositories.setdefault(name, Repository()).chunks[chunk] = data
        return chunk

    def update(self, name: str, tag: str, old: Digest | None, raw: bytes) -> None:
        self.repositories[name].updates[(tag, old)] = raw
        self.changes += 1

    # --- Source ----------------------------------------------------------------------------------

    def _repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise NotFoundError(f"repository {name} is not held here")
        return self.repositories[name]

    def version(self) -> Hashable:
        return self.changes

    def check_ready(self) -> None:
        if self.broken is not None:
            raise self.broken

    def resolve(self, name: str, ref: str) -> Digest | None:
        self.threads.add(threading.current_thread().name)
        self.calls.append("resolve")
        raw = self._repository(name).tags.get(ref)
        return None if raw is None else sha256_digest(raw)

    def has_repository(self, name: str) -> bool:
        return name in self.repositories

    def list_tags(self, name: str) -> list[str]:
        return list(self._repository(name).tags)

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        for tag, raw in self._repository(name).tags.items():
            digest = sha256_digest(raw)
            if ref in (tag, str(digest)):
                return Descriptor(MANIFEST, digest, len(raw)), raw
        raise NotFoundError(f"manifest {ref} is not in repository {name}")

    def open_blob(self, name: str, digest: Digest) -> Blob:
        repository = self._repository(name)
        data = repository.blobs.get(digest)
        if data is None:
            raise NotFoundError(f"blob {digest.short} is not in repository {name}")

        def read(offset: int, size: int) -> Iterator[bytes]:
            part = data[offset : offset + size]
            return (part[at : at + 50_000] for at in range(0, len(part), 50_000))

        return Blob(len(data), "code", repository.files.get(digest), read)

    def list_referrers(self, name: str, digest: Digest) -> Sequence[Descriptor]:
        return []

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        return self._repository(name).chunks.get(chunk)

    def role_of_chunks(self, name: str, digest: Digest) -> str:
        return "deps"

    def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
        return b"change"

    def read_packed(self, name: str, digest: Digest) -> bytes:
        data = self._repository(name).blobs.get(digest)
        if data is None:
            raise NotFoundError(f"form {digest.short} is not packed")
        return data

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        return iter([b"listed ", raw_places])

    def read_update(
        self,
        name: str,
        ref: str,
        have: Sequence[Digest],
        platform: Platform,
        caller: Caller,
        within: float,
    ) -> UpdateAnswer:
        self.calls.append("read_update")
        self.callers.append(caller)
        time.sleep(self.slow)
        top = self.resolve(name, ref)
        if top is None:
            raise NotFoundError(f"{ref} is not in repository {name}")
        raw = self._repository(name).updates.get((ref, have[0] if have else None))
        if raw is None:
            return UpdateAnswer(top, None, (), False)
        shares = (Share("base", 0, 1000), Share("code", len(raw), 9 * len(raw)))
        return UpdateAnswer(top, raw, shares, self.kept)

    def describe(self, caller: Caller) -> tuple[RepositoryFacts, ...]:
        return tuple(
            RepositoryFacts(
                name,
                tuple(
                    VersionFacts(
                        tag,
                        sha256_digest(raw),
                        "2026-11-24T10:20:30Z",
                        (("base", 1_200_000), ("deps", 4_100_000), ("code", 812_000)),
                    )
                    for tag, raw in reversed(repository.tags.items())
                ),
                tuple(
                    UpdateFacts("v1" if old else "nothing", tag, len(raw), 6_112_000)
                    for (tag, old), raw in repository.updates.items()
                ),
            )
            for name, repository in sorted(self.repositories.items())
            if caller.may_pull(name)
        )


def break_storage(source: MemorySource) -> None:
    source.broken = StoreError("the disk is gone")
