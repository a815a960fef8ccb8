"""The `Source` of a chunk server over a storage: a front.

What makes updates is `jobs/updating`, at the cost of who asks; `chunks` cuts chunks, `preparing`
makes things before anyone asks. The server has no state but what it can
find again: several over one storage serve the same.

Memory: `memory_size` of what was read and made, and what is being made (MAKING_SIZE of `workshop`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.http.source import Blob, Joined, Meter, RepositoryFacts, UpdateAnswer
from layerkit.edges.storage import FolderStorage, Storage
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.chunksync import Have
from layerkit.formats.oci import Descriptor, Platform
from layerkit.formats.tokens import Caller
from layerkit.jobs.serve.chunks import Chunks
from layerkit.jobs.serve.facts import Facts
from layerkit.jobs.serve.ledger import Ledger
from layerkit.jobs.serve.preparing import PREPARE_COUNT, Preparing
from layerkit.jobs.serve.stored import StoredUpdates
from layerkit.jobs.updating.budget import BUDGET_SECONDS, BUDGET_WINDOW, Budgets
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.forms import Forms
from layerkit.jobs.updating.kept import Kept, NoMeter
from layerkit.jobs.updating.library import Library
from layerkit.jobs.updating.packing import Packing
from layerkit.jobs.updating.streams import WHOLE_SIZE, UpdateStream
from layerkit.jobs.updating.updates import Updates
from layerkit.jobs.updating.workshop import Workshop

__all__ = ["SourceOptions", "StorageSource", "open_layout"]

MEMORY_SIZE: Final = 768 << 20  # bytes; the shelf keeps more of what was made
# of it for forms (5 to 100 MB each) and where their chunks lie, for deltas (some ten thousand of an
# edit each), packed forms, changes of chunk manifests:
FORMS_SHARE, DELTAS_SHARE, PACKED_SHARE, CHANGES_SHARE = 10 / 16, 3 / 16, 2 / 16, 1 / 16


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How a source serves. `bare_name` is the repository of tags that name none."""

    bare_name: str = ""
    memory_size: int = MEMORY_SIZE  # bytes of what was read and made
    prepare_count: int = PREPARE_COUNT  # versions from which updates are prepared; 0: none
    budget_seconds: float = BUDGET_SECONDS  # of a processor, for each caller; 0: no limit
    budget_window: float = BUDGET_WINDOW  # seconds
    is_preparing: bool = False  # this server prepares and packs, or one with the same shelf does


def open_layout(path: Path) -> StorageSource:
    """The source of a layout folder, whose bare tags belong to the repository of its name."""
    return StorageSource(FolderStorage(path), SourceOptions(bare_name=path.resolve().name.lower()))


class StorageSource:
    """The `Source` of a storage. Safe for threads."""

    def __init__(
        self,
        storage: Storage,
        options: SourceOptions | None = None,
        meter: Meter | None = None,
        workshop: Workshop | None = None,
    ) -> None:
        meter, options = meter or NoMeter(), options or SourceOptions()
        self._storage = storage
        self._options = options
        self._workshop = workshop or Workshop(
            Budgets(options.budget_seconds, options.budget_window)
        )
        self.catalogue = Catalogue(storage, options.bare_name)
        size = options.memory_size
        self._forms = Forms(self.catalogue, int(size * FORMS_SHARE))
        self._chunks = Chunks(self.catalogue, self._forms, int(size * CHANGES_SHARE))
        deltas_size, packed_size = int(size * DELTAS_SHARE), int(size * PACKED_SHARE)
        self._deltas = Kept("delta", deltas_size, self._workshop, meter, storage.made)
        packed = Kept("packed", packed_size, self._workshop, meter, storage.made)
        self._packing = Packing(self.catalogue, self._forms, packed, may_come=options.is_preparing)
        self._updates = Updates(self._library(is_aside=False))
        self._stored = StoredUpdates(self.catalogue, self._library(is_aside=False), storage)
        self._meter = meter
        self._ledger = Ledger(storage.made)
        self._facts = Facts(self.catalogue, self._ledger)

    def _library(self, *, is_aside: bool) -> Library:
        return Library(self.catalogue, self._forms, self._packing, self._deltas, is_aside=is_aside)

    def make_preparing(self) -> Preparing:
        """What prepares for this source, to be run in a thread."""
        return Preparing(
            self.catalogue,
            Updates(self._library(is_aside=True)),
            self._packing,
            self._workshop,
            self._ledger,
            self._options.prepare_count,
        )

    @property
    def has_near_version(self) -> bool:
        return self._storage.has_near_version

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
        try:
            stored = self._storage.open_blob(name, digest)
        except NotFoundError as exc:  # it is listed
            raise StoreError(
                f"the storage lacks blob {digest.short} of {name}", cause=exc.message
            ) from exc
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
        stored = self._stored.find(name, top, have, platform, caller)
        if stored is not None:
            self._meter.kept("stored", True)
            return stored
        made = self._updates.answer(name, top, have, caller, platform, within)
        stream = made.stream
        if stream is None or stream.size <= WHOLE_SIZE:
            raw = stream.join() if stream is not None else None
            return UpdateAnswer(top, raw, made.shares, made.is_final)
        return UpdateAnswer(top, _join(stream), made.shares, made.is_final, stream.etag)

    def describe(self, caller: Caller) -> tuple[RepositoryFacts, ...]:
        return self._facts.describe(caller)


def _join(stream: UpdateStream) -> Joined:
    """An update to be sent: what is in memory is shared by all who get it, the rest stays where it
    is stored."""
    parts = (stream.head, *(piece.data for piece in stream.pieces))
    return Joined(
        stream.size,
        tuple(
            part if isinstance(part, bytes) else Blob(part.size, "", part.path, part.read)
            for part in parts
        ),
    )
