"""`layerkit verify`: read every byte of a node's store, or of an OCI layout; say what is damaged.

`repair` drops damaged copies of a store; who gives it a way to fetch (`heal`) has them back at
once, else the next pull brings them. Memory: one pack
of a store; one blob of a layout, and for a chunks artifact one form.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.index import INDEX_DAMAGED
from layerkit.edges.layout import Layout
from layerkit.edges.store import Store, list_old_images, rebuild_index
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    StoreError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.protocol import unpack_form
from layerkit.formats.reference import Reference

__all__ = ["Heal", "LayoutResult", "StoreResult", "verify_layout", "verify_store"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """What was read of a layout; each problem names the thing and what is wrong."""

    image_count: int
    blob_count: int
    chunk_count: int
    problems: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What was read of a store, what was found damaged, and what was healed."""

    chunk_count: int
    blob_count: int
    image_count: int
    bad_chunks: tuple[Digest, ...] = ()
    bad_blobs: tuple[Digest, ...] = ()
    bad_packs: tuple[str, ...] = ()
    bad_rows: tuple[str, ...] = ()  # of the index, that make no sense
    broken_images: tuple[str, ...] = ()
    healed_images: tuple[str, ...] = ()  # broken ones that were fetched and are whole again
    repaired: bool = False
    index_rebuilt: bool = False

    @property
    def good(self) -> bool:
        """Nothing was found damaged."""
        return not self.list_problems()

    @property
    def left_images(self) -> tuple[str, ...]:
        """Broken images that are not whole again."""
        return tuple(ref for ref in self.broken_images if ref not in self.healed_images)

    def list_problems(self) -> list[str]:
        """One line for each thing that is damaged."""
        found = ["the index was unreadable and has been made again"] if self.index_rebuilt else []
        found += [f"chunk {chunk} is damaged" for chunk in self.bad_chunks]
        found += [f"blob {blob} is damaged" for blob in self.bad_blobs]
        found += [f"pack {name} is damaged" for name in self.bad_packs]
        found += [f"row {name!r} of the index makes no sense" for name in self.bad_rows]
        return found + [f"image {ref} is not whole" for ref in self.broken_images]


# Fetches the image that a reference names into the store.
Heal = Callable[[Reference, Store], object]


def verify_store(
    path: Path, disk: Disk, *, repair: bool = False, heal: Heal | None = None
) -> StoreResult:
    """Verify the store at `path`. `repair` drops what is damaged, makes an unreadable index again,
    and with `heal` fetches what images then lack."""
    if not path.is_dir():
        raise NotFoundError(f"store {path} does not exist")
    named: dict[str, Digest | None] = {}
    rebuilt = False
    try:
        found, names = _verify(path, disk, repair)
    except StoreError as exc:
        if not repair or INDEX_DAMAGED not in exc.message:
            raise
        named = list_old_images(path)
        rebuild_index(path, disk)
        rebuilt = True
        found, names = _verify(path, disk, repair)
    broken = {ref: names.get(ref, named.get(ref)) for ref in found.broken_images}
    broken |= {ref: digest for ref, digest in named.items() if ref not in names}
    result = replace(
        found, broken_images=tuple(sorted(broken)), index_rebuilt=rebuilt, repaired=repair
    )
    if not repair or heal is None or not broken:
        return result
    with Store(path, disk) as store:
        healed = [ref for ref, digest in sorted(broken.items()) if _heal(store, ref, digest, heal)]
    return replace(result, healed_images=tuple(healed))


def _verify(path: Path, disk: Disk, repair: bool) -> tuple[StoreResult, dict[str, Digest]]:
    """What is found, and the digests of the images that the index names."""
    with Store(path, disk) as store:
        store.check_index()
        names = {image.ref: image.digest for image in store.list_images()}
        packs = store.find_bad_packs()
        found = store.verify(repair=repair)
        if repair and packs:
            store.rewrite_packs(packs)
    return (
        StoreResult(
            found.chunk_count,
            found.blob_count,
            found.image_count,
            found.bad_chunks,
            found.bad_blobs,
            tuple(packs),
            found.bad_rows,
            found.broken_images,
        ),
        names,
    )


def _heal(store: Store, text: str, digest: Digest | None, heal: Heal) -> bool:
    """Fetch a broken image: the very one that it was, where that is known and still to be had; its
    reference may name another one by now."""
    try:
        ref = Reference.parse(text).tagged
        exact = ref if digest is None else replace(ref, digest=digest)
        heal(exact, store)
        if digest is not None and str(exact) != text:
            store.commit_image(text, digest, store.list_blobs(digest))
            store.remove_image(str(exact))
    except LayerkitError as exc:
        _log.warning("image %s is not healed: %s", text, exc.message)
        return False
    return store.find_image(text) is not None


def verify_layout(path: Path) -> LayoutResult:
    """Verify all that the index of a layout names: digests, sizes, chunk manifests and forms."""
    layout = Layout(path)
    run = _LayoutRun(layout)
    for entry in layout.read_index().manifests:
        run.read_any(entry)
    return LayoutResult(run.image_count, len(run.seen), run.chunk_count, tuple(run.problems))


class _LayoutRun:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.seen: set[Digest] = set()
        self.problems: list[str] = []
        self.image_count = 0
        self.chunk_count = 0

    def read_any(self, entry: oci.Descriptor) -> None:
        """A manifest or index, and all that it names."""
        if entry.digest in self.seen:
            return
        data = self._read_blob(entry)
        if data is None:
            return
        try:
            if entry.media_type in oci.INDEX_TYPES:
                for child in oci.parse_index(data).manifests:
                    self.read_any(child)
                return
            manifest = oci.parse_manifest(data)
        except FormatError as exc:
            self.problems.append(f"{entry.digest}: {exc.message}")
            return
        if manifest.artifact_type == oci.CHUNKS_ARTIFACT:
            self._read_artifact(manifest)
            return
        if not manifest.artifact_type:  # else something about an image, such as its SBOM
            self.image_count += 1
        for blob in (manifest.config, *manifest.layers):
            if blob.digest not in self.seen:
                self._read_blob(blob)

    def _read_blob(self, descriptor: oci.Descriptor) -> bytes | None:
        self.seen.add(descriptor.digest)
        try:
            data = self._layout.read_blob(descriptor.digest)
        except (IntegrityError, NotFoundError, StoreError, FormatError) as exc:
            self.problems.append(f"{descriptor.digest}: {exc.message}")
            return None
        if len(data) != descriptor.size:
            self.problems.append(
                f"{descriptor.digest}: got {len(data)} bytes, want {descriptor.size}"
            )
        return data

    def _read_artifact(self, manifest: oci.Manifest) -> None:
        self._read_blob(manifest.config)
        for listed, form in _pairs(manifest):
            raw_list, raw_form = self._read_blob(listed), self._read_blob(form)
            if raw_list is None or raw_form is None:
                continue
            try:
                self._check_form(raw_list, raw_form)
            except FormatError as exc:
                self.problems.append(f"{listed.digest}: {exc.message}")

    def _check_form(self, raw_list: bytes, raw_form: bytes) -> None:
        chunk_manifest = parse_chunk_manifest(raw_list)
        form = unpack_form(raw_form, chunk_manifest.form_size)
        if sha256_digest(form) != chunk_manifest.form_digest:
            self.problems.append(f"form {chunk_manifest.form_digest} does not match its digest")
        view = memoryview(form)
        for offset, chunk in chunk_manifest.spans():
            self.chunk_count += 1
            if chunk_id(view[offset : offset + chunk.size]) != chunk.id:
                self.problems.append(f"chunk {chunk.id} does not match its id")


def _pairs(manifest: oci.Manifest) -> Iterator[tuple[oci.Descriptor, oci.Descriptor]]:
    """Each chunk manifest of an artifact with its form."""
    forms = {
        blob.annotations.get(oci.ANNOTATION_LAYER): blob
        for blob in manifest.layers
        if blob.media_type == oci.FORM_ZSTD
    }
    for blob in manifest.layers:
        form = forms.get(blob.annotations.get(oci.ANNOTATION_LAYER))
        if blob.media_type == oci.CHUNK_MANIFEST and form is not None:
            yield blob, form
