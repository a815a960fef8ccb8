"""What updates are made of: documents of images, forms, layers, and deltas that are made once.

Names and digests come from nodes; what a caller may not pull is not found. A chunk manifest or form
that was found in an image's documents is read from whichever repository lists it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.storage import StoredBlob
from layerkit.errors import NotFoundError
from layerkit.formats.oci import (
    CHUNKS_ARTIFACT,
    INDEX_TYPES,
    Descriptor,
    Platform,
    parse_index,
    parse_manifest,
)
from layerkit.formats.tokens import Caller
from layerkit.formats.update import Documents
from layerkit.jobs.updating.catalogue import Catalogue, Repository
from layerkit.jobs.updating.forms import Forms, Place
from layerkit.jobs.updating.kept import Kept
from layerkit.jobs.updating.packing import Packing
from layerkit.jobs.updating.streams import WHOLE_SIZE
from layerkit.jobs.updating.workshop import Make

__all__ = ["Library"]

MAX_LAYER_SIZE: Final = 256 << 20  # bytes of a blob that goes into an update whole


class Library:
    """Reads images for updates. `is_aside`: for who prepares; what is asked for is made in the
    thread that asks, at nobody's cost. Safe for threads."""

    def __init__(
        self,
        catalogue: Catalogue,
        forms: Forms,
        packing: Packing,
        deltas: Kept,
        *,
        is_aside: bool = False,
    ) -> None:
        self._catalogue = catalogue
        self._forms = forms
        self._packing = packing
        self._deltas = deltas
        self._is_aside = is_aside

    def version(self) -> Hashable:
        return self._catalogue.view().version

    # --- images ----------------------------------------------------------------------------------

    def find_holder(self, name: str, top: Digest, caller: Caller) -> str | None:
        """`name` if that repository holds image `top`, else another one that does and that the
        caller may pull."""
        if top in self._catalogue.get(name).manifests:
            return name
        holder = self._catalogue.view().find_image(top, caller)
        return holder.name if holder is not None else None

    def find_documents(self, name: str, top: Digest, platform: Platform) -> Documents | None:
        """An image's documents, the artifact empty where it has none; None if it is not in that
        repository, or not for that platform. FormatError for what is no image."""
        repository = self._catalogue.get(name)
        entry = repository.manifests.get(top)
        if entry is None:
            return None
        return self._read_documents(repository, entry, platform)

    def _read_documents(
        self, repository: Repository, entry: Descriptor, platform: Platform
    ) -> Documents | None:
        name, digest = repository.name, entry.digest
        raw, manifest_raw = self._catalogue.read_document(name, digest), b""
        if entry.media_type in INDEX_TYPES:
            children = parse_index(raw).manifests
            child = next((one for one in children if one.platform == platform), None)
            if child is None:
                return None
            digest = child.digest
            manifest_raw = self._catalogue.read_document(name, digest)
        manifest = parse_manifest(manifest_raw or raw)
        if manifest.artifact_type:
            return None  # a node names images; this is something else
        artifact = b""
        for referrer in repository.referrers.get(digest, []):
            if referrer.artifact_type == CHUNKS_ARTIFACT:
                artifact = self._catalogue.read_document(name, referrer.digest)
                break
        config = self._catalogue.read_document(name, manifest.config.digest)
        return Documents(raw, manifest_raw, config, artifact)

    # --- layers ----------------------------------------------------------------------------------

    def read_list(self, listed: Descriptor) -> bytes:
        """A chunk manifest, verified."""
        return self._forms.read_list(self._holder(listed.digest), listed.digest)

    def places_of(self, listed: Descriptor) -> Mapping[bytes, Place]:
        """Offset and size in the form of each chunk of a chunk manifest, by raw id."""
        return self._forms.find_places(self._holder(listed.digest), listed.digest).of_chunks

    def form_of(self, listed: Descriptor, form: Descriptor) -> bytes:
        """The form of a form blob, as the chunk manifest `listed` has it."""
        return self._forms.read_form(self._holder(listed.digest), listed.digest, form)

    def read_layer(self, name: str, blob: Descriptor) -> bytes:
        """A whole blob of repository `name`, verified; StoreError for a very large one."""
        if blob.digest not in self._catalogue.get(name).blobs:
            raise NotFoundError(f"blob {blob.digest.short} is not in repository {name}")
        return self._catalogue.read_blob(name, blob.digest, MAX_LAYER_SIZE, "blob")

    def open_layer(self, name: str, blob: Descriptor) -> bytes | StoredBlob:
        """The same; a large one to be read in parts, once it has proved to be what it should."""
        if blob.size <= WHOLE_SIZE:
            return self.read_layer(name, blob)
        if blob.digest not in self._catalogue.get(name).blobs:
            raise NotFoundError(f"blob {blob.digest.short} is not in repository {name}")
        return self._catalogue.open_blob(name, blob, MAX_LAYER_SIZE)

    def _holder(self, listed: Digest) -> str:
        names = self._catalogue.view().list_holders.get(listed)
        if not names:
            raise NotFoundError(f"chunk manifest {listed.short} is not held here")
        return names[0]

    # --- what is made ----------------------------------------------------------------------------

    def find_packed(self, form: Digest) -> bytes | None:
        """The packed form of a form blob that servers made, if there is one."""
        return self._packing.find(form)

    def is_packing(self, form: Descriptor) -> bool:
        """May there be a packed form soon, where there is none yet?"""
        return self._packing.is_coming(form.digest)

    def find_made(self, key: str) -> bytes | None:
        """What is kept under `key`; NotFoundError if nothing is. None: it is known to be no use."""
        return self._deltas.find(key)

    def make_soon(
        self, key: str, make: Make, seconds: float, caller: Caller, size: int = 0
    ) -> bytes | None:
        """What is kept under `key`, or is made from forms of `size` bytes in `seconds` at most and
        at the cost of `caller`; NotFoundError: not yet."""
        if self._is_aside:
            return self._deltas.make_here(key, make, size)
        return self._deltas.get_soon(key, make, seconds, caller, size)
