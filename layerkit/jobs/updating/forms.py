"""Forms as a server reads them: chunk manifests, where each chunk lies, decompressed forms.

A form is decompressed, or made of its layer where its blob was left out (formats/lean), once for
all who ask at the same time, compared with its chunk manifest, and kept while it fits. Memory: the
size given to `Forms`, and one form for each thread that reads one.
Safe for threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, LayerkitError, StoreError
from layerkit.formats.chunkmanifest import RAW, ROLE_NAMES, ChunkManifest, parse_chunk_manifest
from layerkit.formats.deflate import decompress
from layerkit.formats.layerform import rebuild_layer
from layerkit.formats.oci import Descriptor, Manifest, parse_config
from layerkit.formats.protocol import unpack_form
from layerkit.jobs.updating.cache import Cache
from layerkit.jobs.updating.catalogue import Catalogue, Recipe

__all__ = ["Forms", "Places"]

PLACE_SIZE: Final = 300  # bytes of memory for the place of a chunk: its id, two numbers, a slot
PLACES_SHARE: Final = 5  # to forms of a size belong places of a fifth of it: chunks are 1 to 2 KiB
MAX_LIST_SIZE: Final = 64 << 20  # bytes of a chunk manifest: 1.8 million chunks, forms of 15 GB
MAX_FORM_SIZE: Final = 1 << 30  # bytes; a larger form is served as a blob, and by no other means
Place = tuple[int, int]  # offset and size of a chunk in its form


@dataclass(frozen=True, slots=True)
class Places:
    """What is kept of a chunk manifest: the form's size and digest, its chunks by raw id."""

    form_size: int
    form_digest: Digest
    role: str
    of_chunks: Mapping[bytes, Place]


class Forms:
    """Reads chunk manifests and forms through `catalogue`."""

    def __init__(self, catalogue: Catalogue, size: int) -> None:
        self._catalogue = catalogue
        self._places = Cache[Places](size // (PLACES_SHARE + 1))
        self._forms = Cache[bytes](size - size // (PLACES_SHARE + 1))

    def read_list(self, name: str, digest: Digest) -> bytes:
        """A chunk manifest of repository `name`, verified."""
        return self._catalogue.read_blob(name, digest, MAX_LIST_SIZE, "chunk manifest")

    def parse_list(self, name: str, digest: Digest) -> ChunkManifest:
        try:
            return parse_chunk_manifest(self.read_list(name, digest))
        except FormatError as exc:
            raise StoreError(
                f"chunk manifest {digest.short} is damaged", cause=exc.message
            ) from exc

    def find_places(self, name: str, digest: Digest) -> Places:
        """Where each chunk of a chunk manifest lies in the form."""

        def make() -> tuple[Places, int]:
            manifest = self.parse_list(name, digest)
            offsets = manifest.offsets()
            pairs = zip(offsets, manifest.sizes, strict=False)  # the last offset is the form's end
            places = dict(zip(manifest.list_raw_ids(), pairs, strict=True))
            role = ROLE_NAMES[manifest.role]
            found = Places(manifest.form_size, manifest.form_digest, role, places)
            return found, (len(places) + 1) * PLACE_SIZE

        return self._places.get(digest, make)

    def read_form(self, name: str, listed: Digest, form: Descriptor) -> bytes:
        """The form of a form blob of repository `name`, as the chunk manifest `listed` has it."""

        def make() -> tuple[bytes, int]:
            places = self.find_places(name, listed)
            if places.form_size > MAX_FORM_SIZE:
                raise StoreError(f"form {form.digest.short} has over {MAX_FORM_SIZE} bytes")
            try:
                data = self._read_stored(name, form, places.form_size)
            except StoreError:  # it may have been left out
                recipe = self._catalogue.get(name).recipes.get(listed)
                if recipe is None:
                    raise
                data = self._make(name, listed, recipe)
            if sha256_digest(data) != places.form_digest:
                raise StoreError(f"form {form.digest.short} is not that of its chunk manifest")
            return data, len(data)

        return self._forms.get((listed, form.digest), make)

    def _read_stored(self, name: str, form: Descriptor, size: int) -> bytes:
        limit = min(form.size, MAX_FORM_SIZE)
        blob = self._catalogue.read_blob(name, form.digest, limit, "form")
        try:
            return unpack_form(blob, size)
        except FormatError as exc:
            raise StoreError(f"form {form.digest.short} is damaged", cause=exc.message) from exc

    def _make(self, name: str, listed: Digest, recipe: Recipe) -> bytes:
        """The form of a chunk manifest out of its layer: 0.3 s for a 6 MB binary."""
        manifest = self.parse_list(name, listed)
        blob = self._find_layer(name, manifest.diff_id, recipe.image)
        raw = self._catalogue.read_blob(name, blob.digest, MAX_FORM_SIZE, "layer")
        try:
            tar = decompress(raw, blob.media_type, manifest.plain_size)
            if recipe.labels is None or manifest.transform == RAW:
                return tar
            limit = min(recipe.labels.size, MAX_LIST_SIZE)
            labels = self._catalogue.read_blob(name, recipe.labels.digest, limit, "labels")
            return rebuild_layer(tar, labels)
        except FormatError as exc:
            raise StoreError(
                f"no form of layer {manifest.diff_id.short} can be made", cause=exc.message
            ) from exc

    def _find_layer(self, name: str, diff_id: Digest, image: Digest) -> Descriptor:
        manifest = self._catalogue.find_document(image)
        if isinstance(manifest, Manifest):
            try:
                config = self._catalogue.read_document(name, manifest.config.digest)
                layers = zip(parse_config(config).diff_ids, manifest.layers, strict=False)
            except FormatError as exc:
                raise StoreError(f"config of {image.short} is damaged", cause=exc.message) from exc
            for one, blob in layers:
                if one == diff_id:
                    return blob
        raise StoreError(f"image {image.short} has no layer {diff_id.short}")

    def role_of(self, name: str, digest: Digest) -> str:
        """The role of the layer that a chunk manifest or form blob of `name` is of, or ""."""
        lists = self._catalogue.get(name).chunk_lists
        if digest not in lists:
            digest = next((one for one, form in lists.items() if form.digest == digest), digest)
        if digest not in lists:
            return ""
        try:
            return self.find_places(name, digest).role
        except LayerkitError:
            return ""  # who reads it is told what is wrong with it
