"""What belongs to an image of a layout: its manifests, what refers to it, and the blobs of both.

Nothing is sent here; `publish` says where it goes and in which order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.edges.storage.targets import Document
from layerkit.errors import FormatError, IntegrityError, NotFoundError, StoreError
from layerkit.formats.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import Reference

__all__ = ["Content", "collect", "find_repositories", "open_checked"]

MAX_SOURCES: Final = 3  # repositories that a blob is tried to be mounted from


@dataclass(slots=True)
class Content:
    """An image and all that belongs to it; `manifests` from the bottom up, `referrers` by how far
    they are from the image: a signature of an SBOM is in the second list."""

    top: Descriptor
    manifests: list[Document] = field(default_factory=list)
    referrers: list[list[Document]] = field(default_factory=list)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    image_count: int = 0


def collect(layout: Layout, ref: Reference) -> Content:
    """All that `ref` names. Raises NotFoundError for what the layout lacks."""
    found = layout.resolve(ref)
    content = Content(replace(found, annotations={}))
    _add(layout, content, content.top)
    known = {item.digest for item, _ in content.manifests}
    unnamed = [(entry, raw, parse_manifest(raw).subject) for entry, raw in _list_unnamed(layout)]
    while True:
        level = [
            (entry, raw)
            for entry, raw, subject in unnamed
            if entry.digest not in known and subject is not None and subject.digest in known
        ]
        if not level:
            return content
        content.referrers.append(level)
        for entry, raw in level:
            _add_blobs(content, raw)
            known.add(entry.digest)


def _add(layout: Layout, content: Content, entry: Descriptor) -> None:
    raw = layout.read_blob(entry, MAX_DOCUMENT_SIZE)
    if entry.media_type in INDEX_TYPES:
        for child in parse_index(raw).manifests:
            if child.media_type not in MANIFEST_TYPES:
                raise FormatError(f"index {entry.digest.short} lists {child.media_type[:80]!r}")
            _add(layout, content, child)
    else:
        content.image_count += 1
        _add_blobs(content, raw)
    content.manifests.append((entry, raw))


def _add_blobs(content: Content, raw: bytes) -> None:
    manifest = parse_manifest(raw)
    for item in (manifest.config, *manifest.layers):
        content.blobs.setdefault(item.digest, item)


def _list_unnamed(layout: Layout) -> Iterable[Document]:
    """Manifests that may refer to others."""
    named = {entry.digest for entry in layout.tags().values()}
    for entry in layout.read_index().manifests:
        is_there = entry.media_type in MANIFEST_TYPES and layout.has_blob(entry.digest)
        if is_there and entry.digest not in named:
            yield entry, layout.read_blob(entry, MAX_DOCUMENT_SIZE)


def find_repositories(
    layout: Layout, ref: Reference, blobs: dict[Digest, Descriptor]
) -> dict[Digest, list[str]]:
    """Other repositories whose images in this layout have the same blobs: a registry that has
    them there need not be sent them."""
    near: dict[Digest, list[str]] = {}
    for name, entry in layout.tags().items():
        repository = Reference.parse(name).repository
        if repository == ref.repository:
            continue
        for image in layout.images(entry):
            for item in layout.read_manifest(image.digest).layers:
                found = near.setdefault(item.digest, [])
                if item.digest in blobs and repository not in found and len(found) < MAX_SOURCES:
                    found.append(repository)
    return near


def open_checked(layout: Layout, item: Descriptor) -> BinaryIO:
    """A blob of the layout, at its start, once it has proved to be what its digest says."""
    path = layout.blob_path(item.digest)
    try:
        file = path.open("rb")
    except FileNotFoundError as exc:
        raise NotFoundError(f"{path} does not exist", hint="build the image again") from exc
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != item.digest.hex or file.tell() != item.size:
        file.close()
        raise IntegrityError(
            f"blob {item.digest.short} of {layout.path} is damaged",
            cause=f"sha256 {found[:12]}, {path.stat().st_size} bytes, want {item.size}",
            hint="build the image again",
        )
    file.seek(0)
    return file
