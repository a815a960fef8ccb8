"""The `Source` of a chunk server over a storage. A thin front: `catalogue` knows what is held,
`forms` and `chunks` read it, `updates` and `packing` make of it what nodes want."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.http.source import Blob, RepositoryFacts, UpdateAnswer
from layerkit.edges.storage import FolderStorage, Storage
from layerkit.errors import NotFoundError
from layerkit.formats.chunksync import Have
from layerkit.formats.oci import Descriptor, Platform
from layerkit.formats.tokens import Caller
from layerkit.jobs.serve.catalogue import Catalogue
from layerkit.jobs.serve.chunks import Chunks
from layerkit.jobs.serve.forms import CACHE_SIZE, Forms
from layerkit.jobs.serve.kept import Kept
from layerkit.jobs.serve.library import Library
from layerkit.jobs.serve.packing import Packing
from layerkit.jobs.serve.updates import Updates

__all__ = ["StorageSource", "open_layout"]

UPDATES_SIZE: Final = 256 << 20  # bytes of updates kept


def open_layout(path: Path) -> StorageSource:
    """The source of a layout folder, whose bare tags belong to the repository of its name."""
    return StorageSource(FolderStorage(path), bare_name=path.resolve().name.lower())


class StorageSource:
    """The `Source` of a storage. Safe for threads."""

    def __init__(
        self, storage: Storage, *, bare_name: str = "", cache_size: int = CACHE_SIZE
    ) -> None:
        self._storage = storage
        self.catalogue = Catalogue(storage, bare_name)
        self._forms = Forms(self.catalogue, cache_size)
        self._chunks = Chunks(self.catalogue, self._forms)
        self._packing = Packing(self.catalogue, self._forms)
        self._library = Library(self.catalogue, self._forms, Kept(UPDATES_SIZE))
        self._updates = Updates(self._library)

    def version(self) -> Hashable:
        return self.catalogue.version()

    def check_ready(self) -> None:
        self.catalogue.check_ready()

    # --- what the OCI surface asks for ----------------------------------------------------------

    def has_repository(self, name: str) -> bool:
        return name in self.catalogue.view().repositories

    def resolve(self, name: str, ref: str) -> Digest | None:
        repository = self.catalogue.view().repositories.get(name)
        if repository is None:
            return None
        if ":" not in ref:
            return repository.tags.get(ref)
        digest = Digest.parse(ref)
        return digest if digest in repository.manifests else None

    def list_tags(self, name: str) -> list[str]:
        return sorted(self.catalogue.get(name).tags)

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        digest = self._resolve(name, ref)
        descriptor = self.catalogue.get(name).manifests.get(digest)
        if descriptor is None:
            raise NotFoundError(f"manifest {digest.short} is not in repository {name}")
        return descriptor, self.catalogue.read_document(name, digest)

    def open_blob(self, name: str, digest: Digest) -> Blob:
        repository = self.catalogue.get(name)
        if digest not in repository.blobs:
            raise NotFoundError(f"blob {digest.short} is not in repository {name}")
        stored = self._storage.open_blob(name, digest)
        role = repository.blobs[digest] or self._forms.role_of(name, digest)
        return Blob(stored.size, role, stored.path, stored.read)

    def list_referrers(self, name: str, digest: Digest) -> Sequence[Descriptor]:
        """Those of an image; a chunks artifact with what of it is packed here."""
        entries = self.catalogue.get(name).referrers.get(digest, [])
        return self._packing.annotate(name, entries)

    def _resolve(self, name: str, ref: str) -> Digest:
        self.catalogue.get(name)
        digest = self.resolve(name, ref)
        if digest is None:
            raise NotFoundError(f"manifest {ref[:80]} is not in repository {name}")
        return digest

    # --- chunks and forms --------------------------------------------------------------------

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        return self._chunks.read_chunk(name, chunk)

    def role_of_chunks(self, name: str, digest: Digest) -> str:
        return self._forms.role_of(name, digest)

    def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
        return self._chunks.read_change(name, digest, have, caller)

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        return self._chunks.read_listed(name, digest, raw_places, near, caller)

    def read_packed(self, name: str, digest: Digest) -> bytes:
        """The packed form of a form blob, where there is one: `list_referrers` says so."""
        return self._packing.read(name, digest)

    def pack_tagged(self, stop: threading.Event | None = None) -> int:
        """Pack the forms of what tags name, now; returns how many."""
        return self._packing.pack_tagged(stop)

    def keep_packing(self, stop: threading.Event) -> None:
        self._packing.keep_packing(stop)

    # --- updates -----------------------------------------------------------------------------

    def read_update(
        self,
        name: str,
        ref: str,
        have: Sequence[Digest],
        platform: Platform,
        caller: Caller,
        within: float,
    ) -> UpdateAnswer:
        """What `ref` names, and what takes a node that holds `have` there."""
        top = self._resolve(name, ref)
        if have and have[0] == top:
            return UpdateAnswer(top, None, (), True)
        return self._updates.answer(name, top, have, caller, platform, within)

    def describe(self, caller: Caller) -> tuple[RepositoryFacts, ...]:
        return ()
