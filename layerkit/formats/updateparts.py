"""Parts of an update: what a server makes of a layer, and what a node makes of a part.

A layer comes as a delta, a packed form, a form or its blob, each in one part; or as the change of
its chunk manifest and the chunks that the node lacks, PART_SIZE bytes of them in a part, so that a
node has stored one part before the next is there.

Pure. Spec: docs/format.md "Update". Bounded by what came; raises only FormatError, and
IntegrityError where bytes are not what a digest names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final

from layerkit.digest import SIZE, Digest, check_digest, chunk_id
from layerkit.errors import ChunkDigestError, FormatError, IntegrityError
from layerkit.formats import delta, formpack
from layerkit.formats.chunker import cut
from layerkit.formats.chunkmanifest import MAX_FORM_SIZE, ChunkManifest, parse_chunk_manifest
from layerkit.formats.chunksync import (
    change_olds,
    chunk_places,
    gone_chunks,
    parse_change,
    parse_places,
    serialize_change,
)
from layerkit.formats.cursor import Reader, Writer
from layerkit.formats.oci import Descriptor
from layerkit.formats.protocol import (
    BATCH_LEVEL,
    parse_chunk_batch,
    serialize_chunk_batch,
    unpack_begun,
    unpack_form,
)
from layerkit.formats.update import CHUNKS, DELTA, FORM, LIST, PACKED, Part

__all__ = [
    "PackedPart",
    "batch_level",
    "make_chunk_parts",
    "read_begun_form",
    "read_chunks",
    "read_form",
    "read_list",
    "size_limit",
]

PART_SIZE: Final = 8 << 20  # bytes of chunks in a part: what a cut answer may cost
MAX_PART_SIZE: Final = 2 * PART_SIZE  # that a reader takes
MAX_LIST_SIZE: Final = 64 << 20  # bytes of a chunk manifest: a form of 2 GiB
MAX_PLACES_SIZE: Final = 1 << 20
LEAST_LIMIT: Final = 64 << 20  # bytes that any part may make, however few came; beyond them
GROWTH: Final = 64  # times its own size, or
OLD_GROWTH: Final = 4  # times the old forms that a delta builds on
SMALL_SIZE: Final = 4 << 20  # bytes of dictionary, and
SMALL_COUNT: Final = 4096  # chunks, up to which a batch is worth SMALL_LEVEL: 0.1 s for 300 chunks
SMALL_LEVEL: Final = 19

ReadOld = Callable[[Digest], tuple[ChunkManifest, bytes]]  # a held chunk manifest, and its form


def batch_level(dictionary_size: int, count: int) -> int:
    """How hard to try for a batch of `count` chunks."""
    small = dictionary_size <= SMALL_SIZE and count <= SMALL_COUNT
    return SMALL_LEVEL if small else BATCH_LEVEL


# --- the server's side -------------------------------------------------------------------------


def make_chunk_parts(
    layer: int,
    raw_new: bytes,
    form: bytes,
    near: Mapping[Digest, bytes],
    known: Set[bytes],
    read_old: ReadOld,
) -> list[Part]:
    """The chunk manifest `raw_new` of layer `layer` as a change of `near`, which the node holds,
    and those chunks of its form that are not `known` to it by their ids."""
    new = parse_chunk_manifest(raw_new)
    places: dict[bytes, int] = {}
    for index, raw in enumerate(new.list_raw_ids()):
        places.setdefault(raw, index)
    missing = [index for raw, index in places.items() if raw not in known]
    neighbour, gone = b"", b""
    if near and missing:
        best = max(near, key=lambda digest: _shared(near[digest], places))
        old, old_form = read_old(best)
        gone = b"".join(old_form[at : at + size] for at, size in gone_chunks(old, new))
        neighbour = best.raw if gone else b""
    offsets, view = list(new.offsets()), memoryview(form)
    parts = [Part(layer, LIST, serialize_change(raw_new, near))]
    for indexes in _split(missing, new.sizes):
        chunks = [view[offsets[index] : offsets[index] + new.sizes[index]] for index in indexes]
        out = Writer()
        out.sized(chunk_places(indexes))
        out.sized(neighbour)
        level = batch_level(len(gone), len(indexes))
        for piece in serialize_chunk_batch(chunks, len(chunks), level, gone):
            out.raw(piece)
        parts.append(Part(layer, CHUNKS, out.getvalue()))
    return parts


def _shared(raw_old: bytes, places: Mapping[bytes, int]) -> int:
    return len(places.keys() & set(parse_chunk_manifest(raw_old).list_raw_ids()))


def _split(indexes: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Runs of chunks of about PART_SIZE bytes."""
    group: list[int] = []
    total = 0
    for index in indexes:
        if group and total + sizes[index] > PART_SIZE:
            yield group
            group, total = [], 0
        group.append(index)
        total += sizes[index]
    if group:
        yield group


# --- the node's side ---------------------------------------------------------------------------


def size_limit(data: bytes) -> int:
    """How many bytes may come out of these: what declares more is refused before it is made."""
    return _limit_of(len(data))


def _limit_of(size: int) -> int:
    return min(MAX_FORM_SIZE, LEAST_LIMIT + GROWTH * size)


class PackedPart:
    """The form of a part of kind PACKED, unpacked while it comes. What is wrong is told at the
    end: it must not end the stream."""

    def __init__(self, size: int) -> None:
        self._unpacker = formpack.Unpacker(_limit_of(size))
        self._came = 0  # bytes
        self._error: FormatError | None = None

    def hear(self, piece: bytes | memoryview) -> None:
        self._came += len(piece)
        if self._error is None:
            try:
                self._unpacker.feed(piece, 2 * _limit_of(self._came))
            except FormatError as exc:
                self._error = exc

    def finish(self) -> bytes:
        """The form, not verified."""
        if self._error is not None:
            raise self._error
        return self._unpacker.finish()


def read_form(kind: int, data: bytes, find_old: Callable[[bytes], bytes | None]) -> bytes:
    """The form that a part of kind DELTA, PACKED or FORM gives, not verified. `find_old` gives held
    forms, verified, by their digests as deltas have them."""
    limit = size_limit(data)
    if kind == PACKED:
        return formpack.unpack(data, limit)
    if kind == FORM:
        return unpack_form(data, limit=limit)
    assert kind == DELTA
    olds = []
    for digest in delta.read_digests(data)[0]:
        old = find_old(digest)
        if old is None:
            raise IntegrityError("update builds on a form that is not held", got=digest.hex())
        olds.append(old)
    limit += OLD_GROWTH * sum(map(len, olds))
    return delta.patch(olds, data, limit, checks=False)


def read_begun_form(data: bytes, profile: str) -> list[tuple[Digest, bytes]]:
    """The chunks, by their own ids, in what came of a part of kind FORM that was cut off. Whether
    they are of any use shows when the chunk manifest is there."""
    form, chunks, at = unpack_begun(data, size_limit(data)), [], 0
    for size in cut(memoryview(form), profile)[:-1]:  # the last would have gone on
        chunk = form[at : at + size]
        chunks.append((chunk_id(chunk), chunk))
        at += size
    return chunks


def read_list(data: bytes, listed: Descriptor, find_list: Callable[[Digest], bytes]) -> bytes:
    """The chunk manifest `listed` out of a part of kind LIST, verified. `find_list` gives held
    ones."""
    olds = change_olds(data)
    if olds is None or listed.size > MAX_LIST_SIZE:
        raise FormatError(f"update: no chunk manifest of {listed.size} bytes")
    raw = parse_change(data, [find_list(old) for old in olds], {}, listed.size)
    check_digest(raw, listed.digest, f"chunk manifest {listed.digest.short}")
    return raw


def read_chunks(
    data: bytes, manifest: ChunkManifest, read_old: ReadOld
) -> Iterator[tuple[Digest, bytes]]:
    """The chunks in a part of kind CHUNKS, each verified. Memory: one chunk and the dictionary."""
    reader = Reader(data, "update")
    indexes = parse_places(bytes(reader.sized(MAX_PLACES_SIZE, "places")), len(manifest.sizes))
    neighbour = bytes(reader.sized(SIZE, "old chunk manifest"))
    if len(neighbour) not in (0, SIZE):
        raise reader.fail("an old chunk manifest has no such name")
    sizes = [manifest.sizes[index] for index in indexes]
    if sum(sizes) > MAX_PART_SIZE:
        raise reader.fail(f"a part of {sum(sizes)} bytes of chunks is over the limit")
    gone = b""
    if neighbour:
        old, form = read_old(Digest("sha256", neighbour))
        gone = b"".join(form[at : at + size] for at, size in gone_chunks(old, manifest))
    raw_ids = manifest.raw_ids
    answer = parse_chunk_batch([bytes(reader.take(reader.left))], sizes, "update", gone)
    for index, chunk in zip(indexes, answer, strict=True):
        want = Digest("b3", raw_ids[SIZE * index : SIZE * (index + 1)])
        if chunk is None or chunk_id(chunk) != want:
            raise ChunkDigestError(f"update: chunk {want.short} is another", want=str(want))
        yield want, chunk
