"""Reading every byte of a store, and dropping damaged copies so that they are fetched again."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerkit.digest import SIZE, Digest
from layerkit.edges.store.chunks import Chunks
from layerkit.edges.store.images import Images, is_chunk_manifest
from layerkit.errors import FormatError, IntegrityError, NotFoundError
from layerkit.formats.chunkmanifest import parse_chunk_manifest

__all__ = ["VerifyResult", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What verify read, and what it found damaged."""

    chunk_count: int
    blob_count: int
    image_count: int
    bad_chunks: tuple[Digest, ...] = ()
    bad_blobs: tuple[Digest, ...] = ()
    broken_images: tuple[str, ...] = ()
    bad_rows: tuple[str, ...] = ()  # of the index, that make no sense
    repaired: bool = False
    index_rebuilt: bool = field(default=False)

    @property
    def good(self) -> bool:
        return not (
            self.bad_chunks
            or self.bad_blobs
            or self.broken_images
            or self.bad_rows
            or self.index_rebuilt
        )


def verify(chunks: Chunks, images: Images, *, repair: bool) -> VerifyResult:
    """Read everything. `repair` drops damaged copies, so that the next pull fetches them."""
    bad_chunks, chunk_count = chunks.find_bad()
    bad_blobs, nameless, blob_count = images.find_bad_blobs()
    bad_images, bad_pins = images.find_bad_rows(), images.find_bad_pins()
    bad_facts = images.find_bad_facts()
    if repair and bad_chunks:
        chunks.drop(bad_chunks)
    if repair and (bad_blobs or nameless):
        images.drop_blobs([*map(str, bad_blobs), *nameless])
    broken = [ref for ref in find_broken(chunks, images, set(bad_chunks)) if ref not in bad_images]
    count = len(images.list_images())
    if repair:
        images.set_broken(broken)
        for ref in bad_images:  # nobody knows what it was: the next pull commits it anew
            images.remove(ref)
        for name in bad_pins:
            images.drop_pin(name)
        images.drop_facts(bad_facts)
    return VerifyResult(
        chunk_count,
        blob_count,
        count,
        tuple(Digest("b3", raw) for raw in bad_chunks if len(raw) == SIZE),
        tuple(bad_blobs),
        tuple(sorted([*broken, *bad_images])),
        tuple(
            [
                *bad_pins,
                *bad_facts,
                *nameless,
                *(raw.hex() for raw in bad_chunks if len(raw) != SIZE),
            ]
        ),
        repair,
    )


def find_broken(chunks: Chunks, images: Images, bad: set[bytes]) -> list[str]:
    """References of images that lack something; `bad` are chunks that do not count."""
    return [
        image.ref
        for image in images.list_images()
        if not _is_whole(chunks, images, image.digest, bad)
    ]


def _is_whole(chunks: Chunks, images: Images, top: Digest, bad: set[bytes]) -> bool:
    """Has the image all its blobs, undamaged, and all chunks that these name?"""
    try:
        blobs = images.list_blobs(top)
        ids: set[bytes] = set()
        for blob in blobs:
            data = images.get_blob(blob)
            if is_chunk_manifest(data):
                ids.update(parse_chunk_manifest(data).list_raw_ids())
    except (FormatError, IntegrityError, NotFoundError):
        return False
    return bool(blobs) and not ids & bad and chunks.has_raw(ids) == ids
