"""What a storage holds, by repository: tags, manifests, blobs, chunk manifests, who holds what.

The index is read again when the storage's version is another. What was read of a manifest is kept
for the next time, so a new tag costs its own documents only. A manifest that cannot be read takes
nothing else with it; an index that cannot be read leaves what was read before, if anything was.
A reference name in the index is `name:tag`; a bare tag belongs to the repository `bare_name`.
Memory: about 3 KB for each manifest that the index reaches. Safe for threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from layerkit.digest import Digest, check_digest, verify_stream
from layerkit.edges.storage import Storage, StoredBlob
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    StoreError,
    UsageError,
)
from layerkit.formats.layerform import LABELS_TYPE
from layerkit.formats.lean import find_left_out
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    ANNOTATION_REF_NAME,
    ANNOTATION_ROLE,
    ANNOTATION_WAS,
    CHUNK_MANIFEST,
    FORM_ZSTD,
    INDEX_TYPES,
    MAX_DOCUMENT_SIZE,
    UPDATE_ARTIFACT,
    Descriptor,
    Index,
    Manifest,
    Platform,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import DEFAULT_TAG, Reference, is_tag
from layerkit.formats.signature import is_signature_tag
from layerkit.formats.storedupdate import StoredUpdate, find_updates
from layerkit.formats.tokens import Caller

__all__ = ["Catalogue", "Recipe", "Repository", "View"]

MAX_PROVED_COUNT: Final = 10_000
BARE_NAME: Final = "image"  # the repository of bare tags where nobody says how it is called
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a form is made of where its blob was left out: a layer of that image, and labels if it
    has any."""

    image: Digest
    labels: Descriptor | None


@dataclass(slots=True)
class Repository:
    """What a repository holds: all that its tags reach, or reached."""

    name: str
    tags: dict[str, Digest] = field(default_factory=dict)
    versions: dict[Digest, None] = field(default_factory=dict)  # what tags named, newest first
    manifests: dict[Digest, Descriptor] = field(default_factory=dict)
    blobs: dict[Digest, str] = field(default_factory=dict)  # with the role of the layer, if one is
    referrers: dict[Digest, list[Descriptor]] = field(default_factory=dict)
    updates: dict[Digest, list[StoredUpdate]] = field(default_factory=dict)  # by the new image
    chunk_lists: dict[Digest, Descriptor] = field(default_factory=dict)  # with form, newest first
    recipes: dict[Digest, Recipe] = field(default_factory=dict)  # by chunk manifest, for its form


@dataclass(frozen=True, slots=True)
class View:
    """The storage as one index has it. Not changed once it is made."""

    version: Hashable
    repositories: Mapping[str, Repository]
    image_holders: Mapping[Digest, Sequence[str]]  # manifest -> names of repositories
    list_holders: Mapping[Digest, Sequence[str]]  # chunk manifest -> names of repositories

    def get(self, name: str) -> Repository:
        found = self.repositories.get(name)
        if found is None:
            raise NotFoundError(f"repository {name} is not held here")
        return found

    def find_image(self, digest: Digest, caller: Caller) -> Repository | None:
        """A repository that holds the manifest and that `caller` may pull."""
        return self._find(self.image_holders, digest, caller)

    def find_list(self, digest: Digest, caller: Caller) -> Repository | None:
        """A repository that lists the chunk manifest and that `caller` may pull."""
        return self._find(self.list_holders, digest, caller)

    def _find(
        self, holders: Mapping[Digest, Sequence[str]], digest: Digest, caller: Caller
    ) -> Repository | None:
        names = holders.get(digest, ())
        return next((self.repositories[name] for name in names if caller.may_pull(name)), None)


class Catalogue:
    """The views of `storage`. The first is read at once: what is no storage is an error now."""

    def __init__(self, storage: Storage, bare_name: str = "") -> None:
        self._storage = storage
        self._bare_name = bare_name or BARE_NAME
        self._lock = threading.Lock()
        self._documents: dict[Digest, Manifest | Index | None] = {}  # None: it cannot be read
        self._proved: set[Hashable] = set()  # large blobs that are what their digests say
        self._refused: tuple[Hashable, LayerkitError] | None = None
        self._view = self._read(storage.version())

    def version(self) -> Hashable:
        try:
            return self._storage.version()
        except NotFoundError as exc:  # it was there when we began
            raise StoreError(exc.message, cause=exc.cause, hint=exc.hint) from exc

    def check_ready(self) -> None:
        """Raise StoreError or RemoteError if the storage does not answer, or its index is none."""
        self._storage.check_ready()
        self.view()
        with self._lock:
            if self._refused is not None:
                raise self._refused[1]

    def view(self) -> View:
        """What is held now."""
        version = self.version()
        if self._view.version == version:
            return self._view
        with self._lock:  # who comes meanwhile waits: an old answer under a new version lies
            refused = self._refused is not None and self._refused[0] == version
            if self._view.version != version and not refused:
                try:
                    self._view, self._refused = self._read(version), None
                except LayerkitError as exc:
                    self._refused = (version, exc)
                    _log.error("the last good index is served: %s (%s)", exc.message, exc.cause)
            return self._view

    def get(self, name: str) -> Repository:
        return self.view().get(name)

    def list_images(self, top: Digest) -> list[tuple[Digest, Manifest]]:
        """The image manifests of a tag: itself, or one for each platform."""
        document = self.find_document(top)
        if isinstance(document, Manifest):
            return [(top, document)]
        children = document.manifests if document is not None else ()
        found = [(child.digest, self.find_document(child.digest)) for child in children]
        return [(digest, one) for digest, one in found if isinstance(one, Manifest)]

    def list_platforms(self, top: Digest) -> list[Platform]:
        """The platforms that an index has images for; none of an image that is no index."""
        document = self.find_document(top)
        children = document.manifests if isinstance(document, Index) else ()
        found = dict.fromkeys(child.platform for child in children)
        return [one for one in found if one is not None and one.os != "unknown"]  # attestations

    def find_document(self, digest: Digest) -> Manifest | Index | None:
        """A manifest or index that the index of the storage reaches, parsed; None for one that
        cannot be read, or is not there any more."""
        return self._documents.get(digest)

    def read_blob(self, name: str, digest: Digest, limit: int, what: str) -> bytes:
        """A blob of repository `name`, verified: nodes build on it. StoreError for what is listed
        and not there, or other bytes."""
        try:
            raw = self._storage.read_blob(name, digest, limit)
        except NotFoundError as exc:
            raise StoreError(
                f"the storage lacks {what} {digest.short} of {name}", cause=exc.message
            ) from exc
        try:
            check_digest(raw, digest, f"{what} {digest.short}")
        except IntegrityError as exc:
            raise StoreError(
                f"{what} {digest.short} of {name} is damaged in the storage", cause=exc.cause
            ) from exc
        return raw

    def open_blob(self, name: str, item: Descriptor, limit: int) -> StoredBlob:
        """A blob of at most `limit` bytes to be read in parts. It is read once through, for its
        digest, and again only when its file is another."""
        what = f"blob {item.digest.short}"
        try:
            stored = self._storage.open_blob(name, item.digest)
            key = (item.digest, _state_of(stored))
            if key not in self._proved:
                if item.size > limit:
                    raise StoreError(f"{what} of {name} is over {limit} bytes")
                for _ in verify_stream(stored.read(0, stored.size), item.digest, item.size, what):
                    pass
                if len(self._proved) >= MAX_PROVED_COUNT:
                    self._proved.clear()
                self._proved.add(key)
        except NotFoundError as exc:
            raise StoreError(f"the storage lacks {what} of {name}", cause=exc.message) from exc
        except IntegrityError as exc:
            raise StoreError(f"{what} of {name} is damaged", cause=exc.cause) from exc
        return stored

    def read_document(self, name: str, digest: Digest) -> bytes:
        """A manifest, an index, a config."""
        return self.read_blob(name, digest, MAX_DOCUMENT_SIZE, "document")

    # --- the index -------------------------------------------------------------------------------

    def _read(self, version: Hashable) -> View:
        reader = _IndexReader(self, self._documents)
        try:
            entries = parse_index(self._storage.read_index()).manifests
            repositories = reader.read(entries, self._bare_name)
        except FormatError as exc:
            raise StoreError(
                "the index of the storage is damaged", cause=f"{exc.message} {exc.cause}".strip()
            ) from exc
        self._documents = reader.documents
        images: dict[Digest, list[str]] = {}
        lists: dict[Digest, list[str]] = {}
        for name, repository in repositories.items():
            for digest in repository.manifests:
                images.setdefault(digest, []).append(name)
            for digest in repository.chunk_lists:
                lists.setdefault(digest, []).append(name)
        return View(version, repositories, images, lists)


class _IndexReader:
    """From the entries of an index to repositories, with what is known of their manifests."""

    def __init__(
        self, catalogue: Catalogue, known: Mapping[Digest, Manifest | Index | None]
    ) -> None:
        self._catalogue = catalogue
        self._known = known
        self.documents: dict[Digest, Manifest | Index | None] = {}
        self._repositories: dict[str, Repository] = {}

    def read(self, entries: Sequence[Descriptor], bare_name: str) -> dict[str, Repository]:
        referring: list[Descriptor] = []
        for entry in reversed(entries):  # the newest first
            now = entry.annotations.get(ANNOTATION_REF_NAME, "")
            text = now or entry.annotations.get(ANNOTATION_WAS, "")
            if not text:
                if entry.media_type not in INDEX_TYPES:
                    referring.append(entry)
                continue
            try:
                name, tag = _parse_ref_name(text, bare_name)
            except UsageError as exc:  # of another tool; `verify` says what a layout has wrong
                _log.error("%s is left out: %s", entry.digest.short, exc.message)
                continue
            repository = self._enter(name)
            if now:
                repository.tags.setdefault(tag, entry.digest)
            if not is_signature_tag(tag):
                repository.versions.setdefault(entry.digest)
            self._add_manifest(repository, entry)
        holders: dict[Digest, list[Repository]] = {}
        for repository in self._repositories.values():
            for digest in repository.manifests:
                holders.setdefault(digest, []).append(repository)
        for entry in referring:
            self._add_referrer(entry, holders)
        return self._repositories

    def _enter(self, name: str) -> Repository:
        return self._repositories.setdefault(name, Repository(name))

    def _document(self, name: str, entry: Descriptor) -> Manifest | Index | None:
        """None where it cannot be read: who asks for it is told, others are served. It is tried
        again with the next index."""
        if entry.digest in self.documents:
            return self.documents[entry.digest]
        found = self._known.get(entry.digest)
        if found is None:
            try:
                raw = self._catalogue.read_document(name, entry.digest)
                parse = parse_index if entry.media_type in INDEX_TYPES else parse_manifest
                found = parse(raw)
            except (StoreError, FormatError) as exc:
                _log.error("%s is left out: %s (%s)", entry.digest.short, exc.message, exc.cause)
        self.documents[entry.digest] = found
        return found

    def _add_manifest(self, repository: Repository, entry: Descriptor) -> None:
        if entry.digest in repository.manifests:
            return
        repository.manifests[entry.digest] = entry
        repository.blobs.setdefault(entry.digest, "")
        document = self._document(repository.name, entry)
        if isinstance(document, Index):
            for child in document.manifests:
                self._add_manifest(repository, child)
        elif document is not None:
            _add_blobs(repository, document)

    def _add_referrer(
        self, entry: Descriptor, holders: Mapping[Digest, Sequence[Repository]]
    ) -> None:
        """To each repository that holds what it refers to."""
        manifest = self._document("", entry)
        if not isinstance(manifest, Manifest) or manifest.subject is None:
            return
        known = replace(
            entry, annotations=manifest.annotations, artifact_type=manifest.artifact_type
        )
        is_update = manifest.artifact_type == UPDATE_ARTIFACT
        for repository in holders.get(manifest.subject.digest, ()):
            if is_update and manifest.subject.digest not in repository.tags.values():
                continue  # nobody goes there any more
            if entry.digest not in repository.manifests:
                repository.manifests[entry.digest] = entry
                repository.blobs.setdefault(entry.digest, "")
                _add_blobs(repository, manifest)
                repository.referrers.setdefault(manifest.subject.digest, []).append(known)
                _add_chunk_lists(repository, manifest)
                repository.updates.setdefault(manifest.subject.digest, []).extend(
                    find_updates([known])
                )


def _add_blobs(repository: Repository, manifest: Manifest) -> None:
    repository.blobs.setdefault(manifest.config.digest, "")
    for blob in manifest.layers:
        repository.blobs.setdefault(blob.digest, blob.annotations.get(ANNOTATION_ROLE, ""))


def _add_chunk_lists(repository: Repository, artifact: Manifest) -> None:
    forms = {
        blob.annotations.get(ANNOTATION_LAYER, ""): blob
        for blob in artifact.layers
        if blob.media_type == FORM_ZSTD
    }
    labels = {
        blob.annotations.get(ANNOTATION_LAYER, ""): blob
        for blob in artifact.layers
        if blob.media_type == LABELS_TYPE
    }
    for blob in artifact.layers:
        layer = blob.annotations.get(ANNOTATION_LAYER, "")
        form, left_out = forms.get(layer), find_left_out(blob)
        if blob.media_type == CHUNK_MANIFEST and form is not None:
            repository.chunk_lists.setdefault(blob.digest, form)
        elif left_out is not None and artifact.subject is not None:
            repository.chunk_lists.setdefault(blob.digest, left_out)
            recipe = Recipe(artifact.subject.digest, labels.get(layer))
            repository.recipes.setdefault(blob.digest, recipe)


def _state_of(stored: StoredBlob) -> Hashable:
    """Of the file of a blob: another one after it was written again."""
    if stored.path is None:
        return None
    try:
        info = stored.path.stat()
    except OSError as exc:
        raise StoreError(f"cannot read {stored.path}", cause=str(exc.strerror)) from exc
    return info.st_ino, info.st_mtime_ns, info.st_size


def _parse_ref_name(text: str, bare_name: str) -> tuple[str, str]:
    if ":" not in text and "/" not in text and is_tag(text):
        return bare_name, text
    ref = Reference.parse(text)
    return ref.repository, ref.tag or DEFAULT_TAG
