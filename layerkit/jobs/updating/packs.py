"""Chunk packs of an image, beside it for nodes that have no server: they read the chunks that they
lack by ranges.

The order of a pack is carried on from the pack of the version before (`formats.chunkpack`), and the
pack of a layer that did not change is the one that is there. Of an image that is there already with
its packs, nothing is made. Memory: a form and its pack.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from layerkit.edges.storage.reading import ImageReader
from layerkit.edges.storage.targets import Document, Target
from layerkit.errors import FormatError, LayerkitError
from layerkit.formats.chunkmanifest import ChunkManifest, parse_chunk_manifest
from layerkit.formats.chunkpack import (
    PACK_INDEX_TYPE,
    PACK_TYPE,
    make_pack,
    parse_pack_index,
    worth_packing,
)
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    CHUNK_MANIFEST,
    CHUNKS_ARTIFACT,
    EMPTY_BLOB,
    EMPTY_DESCRIPTOR,
    FORM_ZSTD,
    MANIFEST,
    PACKS_ARTIFACT,
    Descriptor,
    Manifest,
    describe,
    serialize_manifest,
)
from layerkit.formats.protocol import unpack_form
from layerkit.formats.reference import Reference
from layerkit.jobs.updating.sources import Sources
from layerkit.jobs.updating.stored import Image

__all__ = ["put_packs"]

MAX_LIST_SIZE = 64 << 20  # bytes of a chunk manifest
MAX_INDEX_SIZE = 64 << 20  # bytes of a pack's index
MAX_FORM_SIZE = 1 << 30  # bytes, packed or not, as of those that are served

Parts = dict[str, dict[str, Descriptor]]  # by layer, by media type


@dataclass(frozen=True, slots=True)
class _Old:
    """A layer of the version before: its chunk manifest, and what its pack consists of."""

    manifest: ChunkManifest
    order: Sequence[bytes]  # raw ids of chunks, the youngest first
    packed: tuple[Descriptor, Descriptor] | None


def put_packs(
    readers: Sequence[ImageReader], target: Target, ref: Reference, new: Image, before: Image | None
) -> Iterator[Document]:
    """Make what `new` lacks of packs, and put their blobs where it is or will be, each as soon as
    it is made: the manifests that refer with them, as an index of a layout lists them, to be put
    when the image is there. Raises what `readers` and `target` raise, and FormatError for documents
    that cannot be read."""
    sources = Sources(readers)
    olds: list[_Old] | None = None
    for image in sources.list_images(new.repository, new.top):
        listed = target.reader.list_referrers(new.repository, image.digest)
        chunks = sources.find_artifact(new.repository, image.digest, CHUNKS_ARTIFACT)
        if chunks is None or any(entry.artifact_type == PACKS_ARTIFACT for entry in listed):
            continue
        if olds is None:
            olds = _read_olds(sources, before) if before is not None else []
        parts: list[Descriptor] = []
        for layer, part in _parts_of(chunks).items():
            for blob, data in _pack_layer(sources, new.repository, layer, part, olds):
                if data is not None:
                    target.put_blob(ref, blob, lambda data=data: io.BytesIO(data), ())  # type: ignore[misc]
                parts.append(blob)
        if parts:
            yield _refer(target, ref, image, parts)


def _refer(
    target: Target, ref: Reference, image: Descriptor, parts: Sequence[Descriptor]
) -> Document:
    subject = Descriptor(image.media_type, image.digest, image.size)
    raw = serialize_manifest(Manifest(EMPTY_DESCRIPTOR, tuple(parts), {}, PACKS_ARTIFACT, subject))
    target.put_blob(ref, EMPTY_DESCRIPTOR, lambda: io.BytesIO(EMPTY_BLOB), ())
    return describe(raw, MANIFEST), raw


def _parts_of(artifact: Manifest) -> Parts:
    found: Parts = {}
    for blob in artifact.layers:
        layer = blob.annotations.get(ANNOTATION_LAYER, "")
        found.setdefault(layer, {}).setdefault(blob.media_type, blob)
    return found


def _pack_layer(
    sources: Sources, name: str, layer: str, part: dict[str, Descriptor], olds: Sequence[_Old]
) -> Iterator[tuple[Descriptor, bytes | None]]:
    """Index and pack of a layer, None for what is there; nothing where it is not worth it."""
    if CHUNK_MANIFEST not in part or FORM_ZSTD not in part:
        return
    raw = sources.read(name, part[CHUNK_MANIFEST].digest, MAX_LIST_SIZE)
    manifest = parse_chunk_manifest(raw)
    if not worth_packing(manifest.form_size):
        return
    same = next((old for old in olds if old.manifest == manifest and old.packed), None)
    if same is not None and same.packed is not None:
        for held in same.packed:
            yield replace(held, annotations={ANNOTATION_LAYER: layer}), None
        return
    kin = next((old for old in olds if old.manifest.role == manifest.role), None)
    blob = sources.read(name, part[FORM_ZSTD].digest, MAX_FORM_SIZE)
    form = unpack_form(blob, manifest.form_size, MAX_FORM_SIZE)
    index, pack = make_pack(form, manifest, kin.order if kin is not None else ())
    for data, kind in ((index, PACK_INDEX_TYPE), (pack, PACK_TYPE)):
        yield describe(data, kind, {ANNOTATION_LAYER: layer}), data


def _read_olds(sources: Sources, before: Image) -> list[_Old]:
    """The layers of the version before, of all its platforms; those without a pack in the order of
    the chunk manifest."""
    found: list[_Old] = []
    with contextlib.suppress(LayerkitError):  # what cannot be read gives no order, nothing else
        _add_olds(sources, before, found)
    return found


def _add_olds(sources: Sources, before: Image, found: list[_Old]) -> None:
    for image in sources.list_images(before.repository, before.top):
        chunks = sources.find_artifact(before.repository, image.digest, CHUNKS_ARTIFACT)
        packs = sources.find_artifact(before.repository, image.digest, PACKS_ARTIFACT)
        packed = _parts_of(packs) if packs is not None else {}
        for layer, part in _parts_of(chunks).items() if chunks is not None else ():
            if CHUNK_MANIFEST in part:
                found.append(_read_old(sources, before.repository, part, packed.get(layer, {})))


def _read_old(
    sources: Sources, name: str, part: dict[str, Descriptor], packed: dict[str, Descriptor]
) -> _Old:
    raw = sources.read(name, part[CHUNK_MANIFEST].digest, MAX_LIST_SIZE)
    manifest = parse_chunk_manifest(raw)
    ids = manifest.list_raw_ids()
    if PACK_INDEX_TYPE not in packed or PACK_TYPE not in packed:
        return _Old(manifest, ids, None)
    try:
        raw = sources.read(name, packed[PACK_INDEX_TYPE].digest, MAX_INDEX_SIZE)
        index = parse_pack_index(raw, manifest)
    except FormatError:  # of a later version of ours: made anew
        return _Old(manifest, ids, None)
    order = [ids[place] for place in index.list_places()]
    return _Old(manifest, order, (packed[PACK_INDEX_TYPE], packed[PACK_TYPE]))
