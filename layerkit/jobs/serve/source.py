"""An OCI layout folder as what a chunk server serves.

The layout is read again when its index.json changes; blobs are immutable. A reference name in the
index is `name:tag`; a bare tag belongs to the repository named like the folder. Chunks are cut out
of form blobs, which are decompressed once and kept while they fit in CACHE_SIZE. Memory: that, and
about 200 bytes for each chunk listed by the layout's chunk manifests.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    StoreError,
    UsageError,
)
from layerkit.formats.chunkmanifest import ChunkManifest, parse_chunk_manifest
from layerkit.formats.chunksync import (
    Have,
    gone_chunks,
    nothing_known,
    parse_places,
    serialize_change,
)
from layerkit.formats.formpack import ANNOTATION_PACKED, PACKED_TYPE, pack, worth_packing
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    ANNOTATION_REF_NAME,
    ANNOTATION_WAS,
    CHUNK_MANIFEST,
    CHUNKS_ARTIFACT,
    FORM_ZSTD,
    INDEX_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    Manifest,
    Platform,
    parse_index,
    parse_manifest,
)
from layerkit.formats.protocol import BATCH_LEVEL, serialize_chunk_batch, unpack_form
from layerkit.formats.reference import DEFAULT_TAG, Reference, is_tag
from layerkit.formats.update import serialize_update
from layerkit.formats.updating import Documents, Olds, choose_olds, make_update
from layerkit.jobs.serve.kept import Kept

__all__ = ["LayoutSource"]

UPDATES_SIZE: Final = 256 << 20  # bytes of updates kept
CACHE_SIZE: Final = 512 << 20  # bytes of decompressed forms; a function's layer is 5 to 100 MB
CHANGES_SIZE: Final = 64 << 20  # bytes of changes of chunk manifests kept
PACKED_SIZE: Final = 256 << 20  # bytes of packed forms kept
MAX_ROUTE_COUNT: Final = 1024  # kept; each holds the documents of two images
PACKING_PAUSE: Final = 0.5  # seconds between two looks for new tags: one stat of a file
PACKING_NICENESS: Final = 15
_log = logging.getLogger(__name__)
DIFF_COUNT: Final = 2  # deltas made at once: each takes a core, and 300 MiB at most for a window
UPDATE_SECONDS: Final = 10.0  # how long a node waits for its update; others may get it later
SMALL_SIZE: Final = 4 << 20  # bytes of dictionary, and
SMALL_COUNT: Final = 4096  # chunks, up to which a batch is worth SMALL_LEVEL: 0.1 s for 300 chunks
SMALL_LEVEL: Final = 19


@dataclass(slots=True)
class _Repository:
    """What a repository holds: all that its tags reach."""

    tags: dict[str, Digest] = field(default_factory=dict)
    manifests: dict[Digest, Descriptor] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)
    referrers: dict[Digest, list[Descriptor]] = field(default_factory=dict)
    chunk_lists: dict[Digest, Descriptor] = field(default_factory=dict)  # newest first


@dataclass(frozen=True, slots=True)
class _Route:
    """The old forms of an update, the image whose documents the new ones are written against."""

    olds: Olds
    old_top: Digest
    old: Documents
    new: Documents


class LayoutSource:
    """The `Source` of a layout folder. Safe for threads."""

    def __init__(self, layout: Path, cache_size: int = CACHE_SIZE) -> None:
        self._path = layout
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._repositories: dict[str, _Repository] = {}
        self._places: dict[Digest, tuple[int, dict[bytes, tuple[int, int]]]] = {}
        self._forms: OrderedDict[Digest, bytes] = OrderedDict()
        self._forms_size = 0
        self._cache_size = cache_size
        self._updates = Kept(UPDATES_SIZE)
        self._routes_of: dict[str, _Repository] | None = None
        self._routes: dict[Hashable, _Route | None] = {}
        self._diffing = threading.BoundedSemaphore(DIFF_COUNT)
        self._changes = Kept(CHANGES_SIZE)
        self._packed: OrderedDict[Digest, bytes] = OrderedDict()  # empty: it does not pack
        self._view()  # a folder that is no layout is an error now, not at the first request

    def has_repository(self, name: str) -> bool:
        return name in self._view()

    def list_tags(self, name: str) -> list[str]:
        return sorted(self._repository(name).tags)

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        repository = self._repository(name)
        digest = Digest.parse(ref) if ":" in ref else repository.tags.get(ref)
        descriptor = repository.manifests.get(digest) if digest else None
        if descriptor is None:
            raise NotFoundError(f"manifest {ref[:80]} is not in repository {name}")
        return descriptor, self._read_document(descriptor.digest)

    def find_blob(self, name: str, digest: Digest) -> Path:
        path = self._blob_path(digest)
        if digest not in self._repository(name).blobs or not path.is_file():
            raise NotFoundError(f"blob {digest.short} is not in repository {name}")
        return path

    def list_referrers(self, name: str, digest: Digest) -> Sequence[Descriptor]:
        """Those of an image; a chunks artifact with what of it is packed here."""
        found = self._repository(name).referrers.get(digest, [])
        with self._lock:
            packed = {form for form, raw in self._packed.items() if raw}
        return [self._with_packed(entry, packed) if packed else entry for entry in found]

    def _with_packed(self, entry: Descriptor, packed: set[Digest]) -> Descriptor:
        if entry.artifact_type != CHUNKS_ARTIFACT:
            return entry
        blobs = parse_manifest(self._read_document(entry.digest)).layers
        names = ",".join(str(blob.digest) for blob in blobs if blob.digest in packed)
        more = {ANNOTATION_PACKED: names} if names else {}
        return replace(entry, annotations={**entry.annotations, **more})

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        for digest, form in self._repository(name).chunk_lists.items():
            form_size, places = self._find_places(digest)
            place = places.get(chunk.raw)
            if place is not None:
                offset, size = place
                return memoryview(self._read_form(form, form_size))[offset : offset + size]
        return None

    # --- chunk manifests -----------------------------------------------------------------------

    def read_change(self, name: str, digest: Digest, have: Have) -> bytes:
        """The chunk manifest as a change of those of `have` that any repository here lists, or
        without the runs that the node names. Kept, for many nodes hold the same."""
        if digest not in self._repository(name).chunk_lists:
            raise NotFoundError(f"chunk manifest {digest.short} is not in repository {name}")
        known = [old for old in have.manifests if self._lists(old)]
        if not known and not have.runs:
            return nothing_known()
        key = (digest, *known, *have.runs)

        def make() -> bytes:
            olds = {old: self._read_list(old) for old in known}
            return serialize_change(self._read_list(digest), olds, have.runs)

        return self._changes.get(key, make) or b""

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None
    ) -> Iterator[bytes]:
        form = self._repository(name).chunk_lists.get(digest)
        if form is None:
            raise NotFoundError(f"chunk manifest {digest.short} is not in repository {name}")
        if near is not None and not self._lists(near):
            raise NotFoundError(f"chunk manifest {near.short} is not held here")
        manifest = parse_chunk_manifest(self._read_list(digest))
        indexes = parse_places(raw_places, len(manifest.sizes))
        dictionary = self._read_gone(near, manifest) if near is not None else b""
        raw_ids = manifest.list_raw_ids()
        chunks = (self.read_chunk(name, Digest("b3", raw_ids[index])) for index in indexes)
        small = len(dictionary) <= SMALL_SIZE and len(indexes) <= SMALL_COUNT
        level = SMALL_LEVEL if small else BATCH_LEVEL
        return serialize_chunk_batch(chunks, len(indexes), level, dictionary)

    def read_packed(self, name: str, digest: Digest) -> bytes:
        """The packed form of a form blob, where there is one: `list_referrers` says so."""
        if all(form.digest != digest for form in self._repository(name).chunk_lists.values()):
            raise NotFoundError(f"form {digest.short} is not in repository {name}")
        with self._lock:
            raw = self._packed.get(digest)
        if not raw:
            raise NotFoundError(f"form {digest.short} is not packed")
        return raw

    def pack_tagged(self, stop: threading.Event | None = None) -> int:
        """Pack the forms of all images that a tag names, the newest first, until PACKED_SIZE bytes
        are kept; those that were published packed are left alone. Returns how many were packed.
        3 s for 6 MB; nobody waits for it."""
        count = 0
        for listed, form in self._list_unpacked():
            with self._lock:
                full = sum(map(len, self._packed.values())) >= PACKED_SIZE
            if full or (stop is not None and stop.is_set()):
                break
            raw = b""
            try:
                form_size = self._find_places(listed.digest)[0]
                if worth_packing(form.size, form_size):
                    raw = pack(self._read_form(form, form_size))
            except LayerkitError as exc:
                _log.warning("form %s is not packed: %s", form.digest.short, exc.message)
            with self._lock:
                self._packed[form.digest] = raw if len(raw) < form.size else b""
            count += bool(raw)
        return count

    def _list_unpacked(self) -> list[tuple[Descriptor, Descriptor]]:
        """Chunk manifest and form of each layer of the tagged images that is still to be packed."""
        found: dict[Digest, tuple[Descriptor, Descriptor]] = {}
        for repository in self._view().values():
            images = set(repository.tags.values())
            for top in repository.tags.values():
                if repository.manifests[top].media_type in INDEX_TYPES:
                    children = parse_index(self._read_document(top)).manifests
                    images |= {child.digest for child in children}
            for image, referrers in repository.referrers.items():
                for entry in referrers if image in images else ():
                    if entry.artifact_type == CHUNKS_ARTIFACT:
                        found |= _unpacked(parse_manifest(self._read_document(entry.digest)))
        with self._lock:
            return [parts for form, parts in found.items() if form not in self._packed]

    def keep_packing(self, stop: threading.Event) -> None:
        """Until `stop`: pack what is tagged, and what gets a tag from now on. Gives way to who
        answers requests."""
        with contextlib.suppress(OSError):  # of this thread alone, as Linux has it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PACKING_NICENESS)
        seen = None
        while not stop.is_set():
            try:
                self._view()
                if seen != self._seen:
                    seen = self._seen
                    self.pack_tagged(stop)
            except LayerkitError as exc:
                _log.warning("nothing is packed: %s", exc.message)
            stop.wait(PACKING_PAUSE)

    def _read_gone(self, near: Digest, new: ChunkManifest) -> bytes:
        """What stood at the places of the missing chunks in the node's own form."""
        form = next(
            repository.chunk_lists[near]
            for repository in self._view().values()
            if near in repository.chunk_lists
        )
        old = parse_chunk_manifest(self._read_list(near))
        view = memoryview(self._read_form(form, old.form_size))
        return b"".join(view[at : at + size] for at, size in gone_chunks(old, new))

    def _lists(self, digest: Digest) -> bool:
        return any(digest in repository.chunk_lists for repository in self._view().values())

    def _read_list(self, digest: Digest) -> bytes:
        """A chunk manifest, verified: nodes build on its bytes."""
        raw = self._read_blob(digest)
        try:
            check_digest(raw, digest, f"chunk manifest {digest.short}")
        except IntegrityError as exc:
            raise StoreError(f"layout {self._path} is damaged", cause=exc.cause) from exc
        return raw

    # --- updates -----------------------------------------------------------------------------

    def read_update(
        self, name: str, ref: str, have: Sequence[Digest], platform: Platform
    ) -> tuple[Digest, bytes | None]:
        """What `ref` names, and the update to it from images of `have`, in whichever repositories
        they are; None if there is none. Made once for all who ask at the same time, and kept while
        it fits. NotFoundError while it is not made within UPDATE_SECONDS."""
        repository = self._repository(name)
        top, _ = self.read_manifest(name, ref)
        if not have or have[0] == top.digest:
            return top.digest, None
        own = [(old, repository) for old in have if old in repository.manifests]
        own_digests = {old for old, _ in own}
        others = [
            (old, other)
            for old in have
            if old not in own_digests and (other := self._find_holder(old)) is not None
        ]
        route = self._find_route(repository, top.digest, platform, own, others)
        if route is None:
            return top.digest, None
        forms = tuple(form.digest for _, old in route.olds.layers for _, form in old)
        return top.digest, self._updates.get_soon(
            (route.old_top, top.digest, platform, forms),
            partial(self._make_update, route),
            UPDATE_SECONDS,
        )

    def _find_route(
        self,
        repository: _Repository,
        top: Digest,
        platform: Platform,
        own: Sequence[tuple[Digest, _Repository]],
        others: Sequence[tuple[Digest, _Repository]],
    ) -> _Route | None:
        """From which images and forms an update starts, if there is one. Kept, for it takes 5 ms an
        image, and nodes ask again with what others have asked with."""
        images = tuple(old for old, _ in (*own, *others))
        key = (id(repository), top, platform, len(own), images)
        view = self._view()
        with self._lock:
            if self._routes_of is not view:  # the index changed
                self._routes_of, self._routes = view, {}
            if key in self._routes:
                return self._routes[key]
        route = None
        new = self._documents(repository, top, platform)
        if new is not None:
            known: list[tuple[Digest, Documents]] = []
            own_count = 0
            for at, (old, holder) in enumerate((*own, *others)):
                documents = self._documents(holder, old, platform)
                if documents is not None:
                    known.append((old, documents))
                    own_count += at < len(own)
            olds = choose_olds([old for _, old in known], own_count, new, self._places_of)
            if olds is not None:
                route = _Route(olds, *known[olds.image], new)
        with self._lock:
            if self._routes_of is view:
                if len(self._routes) >= MAX_ROUTE_COUNT:
                    self._routes.clear()
                self._routes[key] = route
        return route

    def _make_update(self, route: _Route) -> bytes | None:
        with self._diffing:
            made = make_update(route.olds, route.new, self._form_of)
        if made is None:
            return None
        return serialize_update(made, route.old_top, route.old.as_list())

    def _may_read(self, name: str) -> bool:
        """May who asks have bytes of repository `name`? The one place that says so for repositories
        besides the one in the path: whatever this server serves, as long as it knows no users."""
        return name in self._view()

    def _find_holder(self, top: Digest) -> _Repository | None:
        """A repository that holds an image and may be read. The node named the image's digest, so
        it learns nothing but what differs from bytes that it has."""
        for name, repository in self._view().items():
            if top in repository.manifests and self._may_read(name):
                return repository
        return None

    def _places_of(self, listed: Descriptor) -> dict[bytes, tuple[int, int]]:
        return self._find_places(listed.digest)[1]

    def _form_of(self, listed: Descriptor, form: Descriptor) -> bytes:
        return self._read_form(form, self._find_places(listed.digest)[0])

    def _documents(
        self, repository: _Repository, top: Digest, platform: Platform
    ) -> Documents | None:
        """An image's documents; None if it has no chunks artifact here."""
        raw = self._read_document(top)
        manifest_raw, digest = b"", top
        if repository.manifests[top].media_type in INDEX_TYPES:
            children = parse_index(raw).manifests
            child = next((entry for entry in children if entry.platform == platform), None)
            if child is None:
                return None
            manifest_raw, digest = self._read_document(child.digest), child.digest
        manifest = parse_manifest(manifest_raw or raw)
        for entry in repository.referrers.get(digest, []):
            if entry.artifact_type == CHUNKS_ARTIFACT:
                artifact = self._read_document(entry.digest)
                return Documents(
                    raw, manifest_raw, self._read_document(manifest.config.digest), artifact
                )
        return None

    # --- reading the layout ------------------------------------------------------------------

    def _repository(self, name: str) -> _Repository:
        found = self._view().get(name)
        if found is None:
            raise NotFoundError(f"repository {name} is not held here")
        return found

    def _view(self) -> dict[str, _Repository]:
        """The repositories, read again if index.json is another file than last time."""
        path = self._path / "index.json"
        try:
            info = path.stat()
        except OSError as exc:
            raise NotFoundError(
                f"{self._path} is not an OCI layout", cause=str(exc.strerror)
            ) from exc
        seen = (info.st_ino, info.st_mtime_ns, info.st_size)
        with self._lock:
            if seen != self._seen:
                try:
                    self._repositories = self._read_index(path.read_bytes())
                except FormatError as exc:
                    raise StoreError(
                        f"layout {self._path} is damaged", cause=f"{exc.message}: {exc.cause}"
                    ) from exc
                self._seen = seen
            return self._repositories

    def _read_index(self, raw: bytes) -> dict[str, _Repository]:
        entries = parse_index(raw).manifests
        repositories: dict[str, _Repository] = {}
        referring: list[tuple[Descriptor, Manifest]] = []
        for entry in reversed(entries):  # the newest first
            text = entry.annotations.get(ANNOTATION_REF_NAME, "")
            if text:
                name, tag = self._parse_ref_name(text)
                repository = repositories.setdefault(name, _Repository())
                repository.tags.setdefault(tag, entry.digest)
                self._add_manifest(repository, entry)
            elif was := entry.annotations.get(ANNOTATION_WAS, ""):
                name, _ = self._parse_ref_name(was)
                self._add_manifest(repositories.setdefault(name, _Repository()), entry)
            elif entry.media_type not in INDEX_TYPES:
                manifest = parse_manifest(self._read_document(entry.digest))
                if manifest.subject is not None:
                    referring.append((entry, manifest))
        for entry, manifest in referring:
            for repository in repositories.values():
                if manifest.subject and manifest.subject.digest in repository.manifests:
                    self._add_referrer(repository, entry, manifest)
        return repositories

    def _parse_ref_name(self, text: str) -> tuple[str, str]:
        if ":" not in text and "/" not in text and is_tag(text):
            return self._path.resolve().name.lower(), text
        try:
            ref = Reference.parse(text)
        except UsageError as exc:
            raise FormatError(f"index: reference name {text[:80]!r} is not valid") from exc
        return ref.repository, ref.tag or DEFAULT_TAG

    def _add_manifest(self, repository: _Repository, entry: Descriptor) -> None:
        if entry.digest in repository.manifests:
            return
        repository.manifests[entry.digest] = entry
        repository.blobs.add(entry.digest)
        raw = self._read_document(entry.digest)
        if entry.media_type in INDEX_TYPES:
            for child in parse_index(raw).manifests:
                self._add_manifest(repository, child)
            return
        manifest = parse_manifest(raw)
        repository.blobs.update(blob.digest for blob in (manifest.config, *manifest.layers))

    def _add_referrer(self, repository: _Repository, entry: Descriptor, manifest: Manifest) -> None:
        if manifest.subject is None or entry.digest in repository.manifests:
            return
        known = Descriptor(
            entry.media_type,
            entry.digest,
            entry.size,
            manifest.annotations,
            None,
            manifest.artifact_type,
        )
        repository.manifests[entry.digest] = entry
        repository.blobs.add(entry.digest)
        repository.blobs.update(blob.digest for blob in (manifest.config, *manifest.layers))
        repository.referrers.setdefault(manifest.subject.digest, []).append(known)
        forms = {
            blob.annotations.get(ANNOTATION_LAYER, ""): blob
            for blob in manifest.layers
            if blob.media_type == FORM_ZSTD
        }
        for blob in manifest.layers:
            form = forms.get(blob.annotations.get(ANNOTATION_LAYER, ""))
            if blob.media_type == CHUNK_MANIFEST and form is not None:
                repository.chunk_lists[blob.digest] = form

    def _blob_path(self, digest: Digest) -> Path:
        return self._path / "blobs" / "sha256" / digest.hex

    def _read_blob(self, digest: Digest) -> bytes:
        try:
            return self._blob_path(digest).read_bytes()
        except OSError as exc:
            raise StoreError(
                f"layout {self._path} lacks blob {digest.short}", cause=str(exc.strerror)
            ) from exc

    def _read_document(self, digest: Digest) -> bytes:
        raw = self._read_blob(digest)
        if len(raw) > MAX_DOCUMENT_SIZE:
            raise StoreError(f"manifest {digest.short} is over {MAX_DOCUMENT_SIZE} bytes")
        try:
            check_digest(raw, digest, f"manifest {digest.short}")
        except IntegrityError as exc:
            raise StoreError(f"layout {self._path} is damaged", cause=exc.cause) from exc
        return raw

    # --- chunks ------------------------------------------------------------------------------

    def _find_places(self, digest: Digest) -> tuple[int, dict[bytes, tuple[int, int]]]:
        """Form size, and where each chunk of a chunk manifest lies in the form."""
        with self._lock:
            found = self._places.get(digest)
        if found is None:
            try:
                manifest = parse_chunk_manifest(self._read_blob(digest))
            except FormatError as exc:
                raise StoreError(f"chunk manifest {digest.short} is damaged") from exc
            places = {chunk.id.raw: (offset, chunk.size) for offset, chunk in manifest.spans()}
            found = (manifest.form_size, places)
            with self._lock:
                self._places[digest] = found
        return found

    def _read_form(self, form: Descriptor, form_size: int) -> bytes:
        """A form, decompressed once for all who ask at the same time."""
        with self._lock:
            data = self._forms.get(form.digest)
            if data is not None:
                self._forms.move_to_end(form.digest)
                return data
            try:
                data = unpack_form(self._read_blob(form.digest), form_size)
            except FormatError as exc:
                raise StoreError(f"form {form.digest.short} is damaged") from exc
            self._forms[form.digest] = data
            self._forms_size += len(data)
            while self._forms_size > self._cache_size and len(self._forms) > 1:
                self._forms_size -= len(self._forms.popitem(last=False)[1])
            return data


def _unpacked(artifact: Manifest) -> dict[Digest, tuple[Descriptor, Descriptor]]:
    """Chunk manifest and form of each layer in a chunks artifact that has no packed form, by the
    form's digest."""
    parts: dict[str, dict[str, Descriptor]] = {}
    for blob in artifact.layers:
        parts.setdefault(blob.annotations.get(ANNOTATION_LAYER, ""), {})[blob.media_type] = blob
    return {
        part[FORM_ZSTD].digest: (part[CHUNK_MANIFEST], part[FORM_ZSTD])
        for part in parts.values()
        if CHUNK_MANIFEST in part and FORM_ZSTD in part and PACKED_TYPE not in part
    }
