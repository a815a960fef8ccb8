"""Several places that may hold an image, as one: each digest from the first that has it whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerkit.digest import Digest, check_digest
from layerkit.edges.storage.reading import ImageReader
from layerkit.errors import LayerkitError, NotFoundError
from layerkit.formats.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    parse_index,
    parse_manifest,
)

__all__ = ["Sources"]


class Sources:
    """Reads through `readers`, the nearest first."""

    def __init__(self, readers: Sequence[ImageReader]) -> None:
        self._readers = readers

    def read(self, name: str, digest: Digest, limit: int) -> bytes:
        """A blob or manifest of repository `name`, verified; raises what the last reader does."""
        return self._read(digest, lambda reader: reader.read_blob(name, digest, limit))

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        """The same of what is known to be a manifest or index."""
        return self._read(digest, lambda reader: reader.read_manifest(name, digest))

    def _read(self, digest: Digest, read: Callable[[ImageReader], bytes]) -> bytes:
        last = len(self._readers) - 1
        for at, reader in enumerate(self._readers):
            try:
                raw = read(reader)
                check_digest(raw, digest, f"blob {digest.short}")
            except LayerkitError:  # a damaged copy here is no reason not to read it there
                if at == last:
                    raise
            else:
                return raw
        raise NotFoundError(f"blob {digest.short} is nowhere")

    def list_images(self, name: str, top: Descriptor) -> list[Descriptor]:
        """The image manifests of what a tag names: itself, or those of an index."""
        if top.media_type not in INDEX_TYPES:
            return [top]
        children = parse_index(self.read_manifest(name, top.digest)).manifests
        return [child for child in children if child.media_type in MANIFEST_TYPES]

    def list_referrers(self, name: str, digest: Digest, kind: str) -> list[Descriptor]:
        """Artifacts of that type that refer to an image, of the first reader that has one."""
        for reader in self._readers:
            listed = reader.list_referrers(name, digest)
            found = [entry for entry in listed if entry.artifact_type == kind]
            if found:
                return found
        return []

    def find_artifact(self, name: str, digest: Digest, kind: str) -> Manifest | None:
        """The first of them."""
        for entry in self.list_referrers(name, digest, kind):
            return parse_manifest(self.read_manifest(name, entry.digest))
        return None
