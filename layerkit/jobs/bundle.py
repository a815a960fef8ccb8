"""`layerkit bundle`: one file that brings an image to nodes without a network.

It holds the update to the new image from each old one (or from nothing), for each platform, with
the image's documents and its signatures; blobs only of layers that an update leaves out. Images are
read where they lie: in layouts, registries, or behind chunk servers, which answer as registries do.
Nothing is written unless all of it can be made. Memory: the updates, and one blob.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges import held
from layerkit.edges.bundle import BundleUpstream, PartSource, write_bundle
from layerkit.edges.disk import Disk
from layerkit.edges.storage.reading import ImageReader, LayoutReader, RegistryReader
from layerkit.edges.store import Store
from layerkit.edges.subject import find_subject
from layerkit.errors import NotFoundError, UsageError
from layerkit.formats.oci import (
    ANNOTATION_REF_NAME,
    ANNOTATION_WAS,
    EMPTY_BLOB,
    EMPTY_DESCRIPTOR,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    describe,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import Reference
from layerkit.formats.signature import SIGNATURE_TYPES, is_attestation, signature_tag
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.formats.storedupdate import NOTHING, make_update_artifact
from layerkit.formats.update import UPDATE_TYPE
from layerkit.jobs.updating.stored import Image, MadeUpdate, make_updates, make_whole

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry

__all__ = ["BundleResult", "Found", "bundle", "check_usable", "find_image"]

MAX_BLOB_SIZE: Final = 4 << 30  # bytes of one blob; held in memory


class Progress(Protocol):
    """A running count of bytes."""

    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """An image that somebody named, and who reads it."""

    ref: Reference
    image: Image
    reader: ImageReader


@dataclass(frozen=True, slots=True)
class BundleResult:
    """What a bundle holds. Sizes in bytes."""

    ref: str  # name@digest
    file: str
    digest: Digest
    size: int
    olds: tuple[str, ...]  # digests; empty: it needs nothing
    platforms: tuple[str, ...]
    update_count: int
    update_size: int
    signature_count: int


def find_image(
    text: str,
    layout: Path | None,
    fallback: Path | None,
    open_registry: Callable[[str], Registry],
    url: str = "",
) -> Found:
    """What a person names: on the server or registry at `url`, else in a layout (`LAYOUT:REF`, or
    in `layout`), else in the registry that it names. `fallback` is a layout that is tried, too."""
    if not url:
        try:
            return _find_here(text, layout, fallback)
        except NotFoundError:
            if layout is not None or not _names_registry(text):
                raise
    ref = Reference.parse(text).tagged
    url = url or ref.registry_url
    reader = RegistryReader(open_registry(url))
    top = reader.resolve(ref)
    if top is None:
        raise NotFoundError(f"{ref} is not on {url}")
    return Found(ref, Image(ref.repository, top), reader)


def _find_here(text: str, layout: Path | None, fallback: Path | None) -> Found:
    subject = find_subject(text, layout, fallback)
    if subject.layout is None or subject.descriptor is None:
        raise UsageError(
            f"{text} is a file", hint="name an image: LAYOUT:REF, or REF with --layout"
        )
    ref = Reference.parse(subject.name).tagged
    return Found(ref, Image(ref.repository, subject.descriptor), LayoutReader(subject.layout))


def _names_registry(text: str) -> bool:
    try:
        return bool(Reference.parse(text).host)
    except UsageError:  # a path
        return False


def bundle(
    new: Found,
    olds: Sequence[Found],
    path: Path,
    disk: Disk,
    *,
    platforms: Collection[Platform] = (),
    with_sbom: bool = False,
    progress: Progress | None = None,
) -> BundleResult:
    """Write the bundle of `new` for nodes that hold one of `olds`; of none, for any node. Of all
    platforms, or those named. Raises NotFoundError where an update cannot be made."""
    maker = _Maker(new, {old.image.top.digest: str(old.ref) for old in olds})
    maker.add_image(platforms)
    made = []
    for one in _make(new, olds, platforms):
        made.append(one)
        maker.add_update(one)
        if progress is not None:
            progress.advance(len(one.raw))
    maker.add_referrers(with_sbom)
    size = write_bundle(path, maker.index(), maker.parts, disk)
    return BundleResult(
        str(new.ref.pinned(new.image.top.digest)),
        str(path),
        new.image.top.digest,
        size,
        tuple(str(old) for old in dict.fromkeys(one.old for one in made) if old != NOTHING),
        tuple(dict.fromkeys(str(one.platform) for one in made if one.platform is not None)),
        len(made),
        sum(len(one.raw) for one in made),
        maker.signature_count,
    )


def _make(
    new: Found,
    olds: Sequence[Found],
    platforms: Collection[Platform],
) -> Iterator[MadeUpdate]:
    """The updates, as they are made; raises for one that cannot be made, or if there is none."""
    problems: list[str] = []
    if olds:
        readers = list({id(one.reader): one.reader for one in (new, *olds)}.values())
        images = [old.image for old in olds]
        making = make_updates(
            readers, new.image, images, warn=problems.append, all_=True, only=platforms
        )
    else:
        making = make_whole([new.reader], new.image, warn=problems.append, only=platforms)
    count = 0
    for made in making:
        count += 1
        yield made
    if problems:
        raise NotFoundError(
            f"no bundle of {new.ref}", cause=problems[0], hint="build or push the image again"
        )
    if not count:
        top = new.image.top.digest
        is_same = olds and all(old.image.top.digest == top for old in olds)
        what = f"the old image is the same, {top}" if is_same else "it has no such platform"
        raise UsageError(f"no bundle of {new.ref}", cause=what)


class _Maker:
    """Collects the entries of the index and the parts."""

    def __init__(self, new: Found, names: dict[Digest, str]) -> None:
        self.parts: list[PartSource] = []
        self.signature_count = 0
        self._new = new
        self._top = replace(new.image.top, annotations={}, platform=None)
        self._names = names  # of old images
        self._images: list[Digest] = []
        self._entries: list[Descriptor] = []

    def index(self) -> Index:
        name = str(replace(self._new.ref, digest=None)) if self._new.ref.tag else ""
        annotations = {ANNOTATION_REF_NAME: name} if name else {}
        return Index((replace(self._top, annotations=annotations), *self._entries))

    def add_image(self, platforms: Collection[Platform]) -> None:
        """The documents of the image: its index, and for each platform manifest and config."""
        raw = self._read(self._top)
        self._put(self._top, raw)
        self._images = [self._top.digest]
        if self._top.media_type not in INDEX_TYPES:
            self._add_config(parse_manifest(raw))
            return
        for child in parse_index(raw).manifests:
            is_wanted = not platforms or child.platform in platforms
            if is_wanted and child.media_type in MANIFEST_TYPES:
                manifest = self._read(child)
                self._put(child, manifest)
                self._images.append(child.digest)
                self._add_config(parse_manifest(manifest))

    def _add_config(self, manifest: Manifest) -> None:
        self._put(manifest.config, self._read(manifest.config))

    def add_update(self, made: MadeUpdate) -> None:
        """A stored update, and the layers that it leaves out."""
        blob = describe(made.raw, UPDATE_TYPE)
        entry, raw = make_update_artifact(self._top, made.old, made.platform, blob)
        name = self._names.get(made.old, "")
        self._put(EMPTY_DESCRIPTOR, EMPTY_BLOB)
        self._put(entry, raw)
        self._put(blob, made.raw)
        was = {ANNOTATION_WAS: name} if name else {}
        self._entries.append(replace(entry, annotations=was))
        for layer in made.left_out:
            self._add_later(layer)

    def add_referrers(self, with_sbom: bool) -> None:
        """Signatures of what the reference names; SBOM and provenance of each image, that which is
        signed, too."""
        name, reader, top = self._new.image.repository, self._new.reader, self._top.digest
        for entry in reader.list_referrers(name, top):
            if entry.artifact_type in SIGNATURE_TYPES and not is_attestation(entry):
                self._add_artifact(entry)
                self.signature_count += 1
        tag = signature_tag(top)  # as an older cosign writes them
        older = reader.resolve(replace(self._new.ref, tag=tag, digest=None))
        if older is not None:
            named = {ANNOTATION_REF_NAME: f"{self._new.ref.name}:{tag}"}
            self._add_artifact(replace(older, annotations=named), named)
            self.signature_count += 1
        for image in self._images if with_sbom else ():
            for entry in reader.list_referrers(name, image):
                is_signed = entry.artifact_type in SIGNATURE_TYPES and is_attestation(entry)
                if is_signed or entry.artifact_type in (SBOM_TYPE, PROVENANCE_TYPE):
                    self._add_artifact(entry)

    def _add_artifact(self, entry: Descriptor, annotations: dict[str, str] | None = None) -> None:
        raw = self._read(entry)
        manifest = parse_manifest(raw)
        self._put(entry, raw)
        for blob in (manifest.config, *manifest.layers):
            self._put(blob, self._read(blob))
        plain = Descriptor(entry.media_type, entry.digest, entry.size, annotations or {})
        self._entries.append(replace(plain, artifact_type=entry.artifact_type))

    def _read(self, item: Descriptor) -> bytes:
        limit = min(item.size, MAX_DOCUMENT_SIZE)
        return self._new.reader.read_blob(self._new.image.repository, item.digest, limit)

    def _put(self, item: Descriptor, raw: bytes) -> None:
        self.parts.append(PartSource(item.digest, item.size, lambda: (raw,)))

    def _add_later(self, item: Descriptor) -> None:
        read = partial(self._stream, item)
        self.parts.append(PartSource(item.digest, item.size, read))

    def _stream(self, item: Descriptor) -> Iterator[bytes]:
        limit = min(item.size, MAX_BLOB_SIZE)
        yield self._new.reader.read_blob(self._new.image.repository, item.digest, limit)


def check_usable(upstream: BundleUpstream, ref: Reference, store: Store, platform: str) -> None:
    """Raise NotFoundError, naming what is needed, unless the bundle brings `ref` to this store."""
    text = str(ref.digest) if ref.digest is not None else ref.tag
    top = upstream.find_top(ref.repository, text)
    if store.is_complete(top):
        return
    if upstream.find_update(top, held.list_held(store, ref), platform) is not None:
        return
    names = {
        entry.digest: entry.annotations.get(ANNOTATION_WAS, "")
        for entry in upstream.file.index.manifests
    }
    updates = upstream.file.list_updates(top)
    needed = [
        f"{names.get(one.manifest) or 'an image'}@{one.old}"
        for one in updates
        if one.platform is None or str(one.platform) == platform
    ]
    if not needed:
        have = ", ".join(dict.fromkeys(str(one.platform) for one in updates)) or "none"
        raise NotFoundError(
            f"{upstream.url} has no update of {ref} for {platform}", cause=f"it is for {have}"
        )
    raise NotFoundError(
        f"{upstream.url} builds on an image that is not in the store",
        cause=f"it needs {' or '.join(needed)}",
        hint="pull that first, or make a bundle that needs nothing: 'layerkit bundle NEW -o FILE'",
    )
