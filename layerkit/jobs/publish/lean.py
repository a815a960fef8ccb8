"""Which forms a push leaves out, for a registry: those of layers that the version before lacks.

Nodes get such a layer by an update or by its blob, and whoever else wants the form makes it of
layer and labels (formats/lean). An image whose chunks artifact is there already keeps that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.edges.storage.reading import ImageReader, LayoutReader
from layerkit.edges.storage.targets import Document
from layerkit.errors import LayerkitError
from layerkit.formats.chunkmanifest import RAW, parse_chunk_manifest
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.layerform import LABELS_TYPE
from layerkit.formats.lean import find_left_out, leave_out
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    CHUNK_MANIFEST,
    CHUNKS_ARTIFACT,
    FORM_ZSTD,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    Manifest,
    describe,
    parse_config,
    parse_manifest,
    serialize_manifest,
)
from layerkit.formats.reference import Reference
from layerkit.jobs.publish.content import Content
from layerkit.jobs.updating.sources import Sources
from layerkit.jobs.updating.stored import Image

__all__ = ["Lean", "LeanReader", "find_lean"]


@dataclass(slots=True)
class Lean:
    """What takes the place of chunks artifacts, by their digests; form blobs that need not be sent.
    `is_there`: the registry has such an artifact already."""

    documents: dict[Digest, Document] = field(default_factory=dict)
    forms: set[Digest] = field(default_factory=set)
    is_there: bool = False

    def use(self, content: Content) -> None:
        """Let the content have these artifacts."""
        content.referrers = [
            [self.documents.get(entry.digest, (entry, raw)) for entry, raw in level]
            for level in content.referrers
        ]


def find_lean(
    layout: Layout, reader: ImageReader, ref: Reference, content: Content, olds: Sequence[Image]
) -> Lean:
    """What need not be sent to the registry behind `reader`, to which `olds` were pushed before."""
    lean = Lean()
    held = {blob.digest for old in olds for blob in _list_layers(layout, reader, old)}
    named = {
        subject.digest
        for level in content.referrers[1:]
        for _, raw in level
        if (subject := parse_manifest(raw).subject) is not None
    }
    for entry, raw in content.referrers[0] if content.referrers else ():
        artifact = parse_manifest(raw)
        if artifact.artifact_type != CHUNKS_ARTIFACT or entry.digest in named:
            continue
        there = _read_there(reader, ref, entry, artifact)
        layers = there if there is not None else _choose_layers(layout, artifact, held)
        if not layers:
            continue
        lean.is_there |= there is not None
        made = serialize_manifest(leave_out(artifact, layers))
        found = describe(made, entry.media_type)
        lean.documents[entry.digest] = (replace(entry, digest=found.digest, size=found.size), made)
        lean.forms |= {
            blob.digest
            for blob in artifact.layers
            if blob.media_type == FORM_ZSTD and blob.annotations.get(ANNOTATION_LAYER) in layers
        }
    return lean


def _list_layers(layout: Layout, reader: ImageReader, old: Image) -> list[Descriptor]:
    """Of all images of an old one; none where they cannot be read."""
    sources = Sources((LayoutReader(layout), reader))
    found: list[Descriptor] = []
    with contextlib.suppress(LayerkitError):
        for image in sources.list_images(old.repository, old.top):
            found += parse_manifest(sources.read_manifest(old.repository, image.digest)).layers
    return found


def _read_there(
    reader: ImageReader, ref: Reference, entry: Descriptor, artifact: Manifest
) -> set[str] | None:
    """The layers whose forms were left out when this image was pushed before; None if it was not,
    or if another artifact lies there."""
    assert artifact.subject is not None
    found = reader.list_referrers(ref.repository, artifact.subject.digest)
    listed = [one.digest for one in found if one.artifact_type == CHUNKS_ARTIFACT]
    if entry.digest in listed:
        return set()
    for digest in listed:
        with contextlib.suppress(LayerkitError):
            raw = reader.read_manifest(ref.repository, digest)
            layers = {
                blob.annotations.get(ANNOTATION_LAYER, "")
                for blob in parse_manifest(raw).layers
                if find_left_out(blob) is not None
            }
            if serialize_manifest(leave_out(artifact, layers)) == raw:
                return layers
    return None


def _choose_layers(layout: Layout, artifact: Manifest, held: Collection[Digest]) -> set[str]:
    """Layers, by diff_id, that are not `held`, and whose forms can be made of them."""
    assert artifact.subject is not None
    image = layout.read_manifest(artifact.subject.digest)
    config = parse_config(layout.read_blob(image.config, MAX_DOCUMENT_SIZE))
    pairs = zip(config.diff_ids, image.layers, strict=False)
    wanted = {str(diff_id) for diff_id, blob in pairs if blob.digest not in held}
    kinds: dict[str, dict[str, Descriptor]] = {}
    for blob in artifact.layers:
        layer = blob.annotations.get(ANNOTATION_LAYER, "")
        kinds.setdefault(layer, {})[blob.media_type] = blob
    return {layer for layer in wanted if _can_be_made(layout, kinds.get(layer, {}))}


def _can_be_made(layout: Layout, parts: dict[str, Descriptor]) -> bool:
    """A packed form was asked for, so its layer keeps all that it has."""
    if CHUNK_MANIFEST not in parts or FORM_ZSTD not in parts or PACKED_TYPE in parts:
        return False
    if LABELS_TYPE in parts:
        return True
    return parse_chunk_manifest(layout.read_blob(parts[CHUNK_MANIFEST])).transform == RAW


class LeanReader:
    """The layout as who makes updates for a registry reads it: an image has the chunks artifact
    that the registry has, or will have, for nodes have that one, too."""

    def __init__(self, layout: Layout, reader: ImageReader, lean: Lean) -> None:
        self._layout = LayoutReader(layout)
        self._reader = reader
        self._lean = lean
        self._documents = {entry.digest: raw for entry, raw in lean.documents.values()}

    def resolve(self, ref: Reference) -> Descriptor | None:
        return self._layout.resolve(ref)

    def find_tops(self, ref: Reference, count: int) -> list[Descriptor]:
        return self._layout.find_tops(ref, count)

    def list_referrers(self, name: str, digest: Digest) -> list[Descriptor]:
        here = self._layout.list_referrers(name, digest)
        replaced = [self._replace(entry) for entry in here]
        if replaced != here:
            return replaced
        with contextlib.suppress(LayerkitError):
            there = self._reader.list_referrers(name, digest)
            if any(entry.artifact_type == CHUNKS_ARTIFACT for entry in there):
                return there
        return here

    def _replace(self, entry: Descriptor) -> Descriptor:
        found = self._lean.documents.get(entry.digest)
        return replace(entry, digest=found[0].digest, size=found[0].size) if found else entry

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        raw = self._documents.get(digest)
        return raw if raw is not None else self._layout.read_blob(name, digest, limit)

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        return self.read_blob(name, digest, MAX_DOCUMENT_SIZE)
