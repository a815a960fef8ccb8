"""Chunks and chunk manifests for nodes: one chunk, batches, changes of chunk manifests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import NotFoundError
from layerkit.formats.chunkmanifest import ChunkManifest
from layerkit.formats.chunksync import (
    Have,
    gone_chunks,
    nothing_known,
    parse_places,
    serialize_change,
)
from layerkit.formats.oci import Descriptor
from layerkit.formats.protocol import BATCH_LEVEL, serialize_chunk_batch
from layerkit.formats.tokens import Caller
from layerkit.jobs.updating.cache import Cache
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.forms import Forms

__all__ = ["Chunks"]

ENTRY_SIZE: Final = 4096  # bytes that an entry counts at least: names of runs are in its key
SMALL_SIZE: Final = 4 << 20  # bytes of dictionary, and
SMALL_COUNT: Final = 4096  # chunks, up to which a batch is worth SMALL_LEVEL: 0.1 s for 300 chunks
SMALL_LEVEL: Final = 19


class Chunks:
    """Chunk manifests of `catalogue` and the chunks that they list. Safe for threads."""

    def __init__(self, catalogue: Catalogue, forms: Forms, changes_size: int) -> None:
        self._catalogue = catalogue
        self._forms = forms
        self._changes = Cache[bytes](changes_size)

    def read_chunk(self, name: str, chunk: Digest) -> memoryview | None:
        """A chunk of an image of repository `name`, the newest that has it."""
        for listed, form in self._catalogue.get(name).chunk_lists.items():
            place = self._forms.find_places(name, listed).of_chunks.get(chunk.raw)
            if place is not None:
                offset, size = place
                return memoryview(self._forms.read_form(name, listed, form))[offset : offset + size]
        return None

    def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
        """The chunk manifest as a change of those of `have` that the caller may pull here, or
        without the runs that the node names. Kept, for many nodes hold the same."""
        self._find_form(name, digest)
        view = self._catalogue.view()
        holders = {old: view.find_list(old, caller) for old in have.manifests}
        known = {old: holder.name for old, holder in holders.items() if holder is not None}
        if not known and not have.runs:
            return nothing_known()

        def make() -> tuple[bytes, int]:
            olds = {old: self._forms.read_list(holder, old) for old, holder in known.items()}
            change = serialize_change(self._forms.read_list(name, digest), olds, have.runs)
            return change, max(len(change), ENTRY_SIZE)

        return self._changes.get((digest, *known, *have.runs), make)

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        """The chunks at these places of a chunk manifest, with what stood there in `near`, which
        the node holds, as dictionary."""
        form = self._find_form(name, digest)
        manifest = self._forms.parse_list(name, digest)
        indexes = parse_places(raw_places, len(manifest.sizes))
        dictionary = self._read_gone(near, manifest, caller) if near is not None else b""
        small = len(dictionary) <= SMALL_SIZE and len(indexes) <= SMALL_COUNT
        level = SMALL_LEVEL if small else BATCH_LEVEL
        data = memoryview(self._forms.read_form(name, digest, form))
        offsets = manifest.offsets()
        chunks = (data[offsets[index] : offsets[index + 1]] for index in indexes)
        return serialize_chunk_batch(chunks, len(indexes), level, dictionary)

    def _find_form(self, name: str, digest: Digest) -> Descriptor:
        form = self._catalogue.get(name).chunk_lists.get(digest)
        if form is None:
            raise NotFoundError(f"chunk manifest {digest.short} is not in repository {name}")
        return form

    def _read_gone(self, near: Digest, new: ChunkManifest, caller: Caller) -> bytes:
        """What stood at the places of the missing chunks in the node's own form."""
        holder = self._catalogue.view().find_list(near, caller)
        if holder is None:
            raise NotFoundError(f"chunk manifest {near.short} is not held here")
        old = self._forms.parse_list(holder.name, near)
        data = self._forms.read_form(holder.name, near, holder.chunk_lists[near])
        view = memoryview(data)
        return b"".join(view[at : at + size] for at, size in gone_chunks(old, new))
