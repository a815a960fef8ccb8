"""How a node learns a chunk manifest, and names chunks in it, without ids on the wire.

A *change* is a chunk manifest for a node that holds others: one zstd frame whose dictionary is the
held ones that the server knows, or, when it knows none, without the runs that the node names. A
request for chunks then names their places in the chunk manifest, and the frame of the answer may
use a held neighbour's chunks as dictionary (`gone_chunks`). The node checks the chunk manifest by
its digest and each chunk by its id, as ever.

Pure. Spec: docs/format.md "Chunk manifest change". Bounded; raises only FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from layerkit.digest import SIZE, Digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.chunkmanifest import (
    CHUNK,
    MAX_CHUNK_COUNT,
    ChunkManifest,
    parse_root,
    split_runs,
)
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "CHANGE_TYPE",
    "PLACES_TYPE",
    "Have",
    "change_olds",
    "chunk_places",
    "gone_chunks",
    "nothing_known",
    "parse_change",
    "parse_have",
    "parse_places",
    "serialize_change",
    "serialize_have",
    "short_id",
]

CHANGE_TYPE: Final = "application/vnd.layerkit.chunk-manifest-change.v0"
PLACES_TYPE: Final = "application/vnd.layerkit.chunk-places.v0"
MAGIC: Final = b"LKMC"
MAJOR: Final = 0
MINOR: Final = 0
LEVEL: Final = 19
SHORT_SIZE: Final = 8  # bytes of a run's id that name it to the server; the node checks the whole
MAX_OLD_COUNT: Final = 8  # held chunk manifests that a node names; each may be 1 MB of dictionary
MAX_RUN_COUNT: Final = 4096  # runs that a node names: 32 KiB
MAX_HAVE_SIZE: Final = 1 + MAX_OLD_COUNT * SIZE + MAX_RUN_COUNT * SHORT_SIZE
MAX_PLACES_SIZE: Final = 1 << 20  # bytes of a request for chunks by place
MAX_CHANGE_SIZE: Final = 640 << 20  # bytes: the largest chunk manifest
MAX_GONE_SIZE: Final = 8 << 20  # bytes of a dictionary: what a frame at level 19 reaches back
MAX_WINDOW_SIZE: Final = 1 << 27
STEP: Final = 64  # bytes of the frame decompressed at once: 2 MiB at most come out

# magic, major, minor, header size, bytes in the frame, number of old chunk manifests
HEADER: Final = struct.Struct("<4sBBHII")
assert HEADER.size == 16


@dataclass(frozen=True, slots=True)
class Have:
    """What a node says it holds: chunk manifests, and (when the server knew none) short run ids."""

    manifests: tuple[Digest, ...]
    runs: tuple[bytes, ...] = ()


def short_id(run_id: bytes) -> bytes:
    return run_id[:SHORT_SIZE]


def serialize_have(have: Have) -> bytes:
    manifests, runs = have.manifests[:MAX_OLD_COUNT], have.runs[:MAX_RUN_COUNT]
    return bytes([len(manifests)]) + b"".join(m.raw for m in manifests) + b"".join(runs)


def parse_have(raw: bytes) -> Have:
    reader = Reader(raw, "list of what a node holds")
    count = reader.u8()
    if count > MAX_OLD_COUNT or len(raw) > MAX_HAVE_SIZE:
        raise reader.fail(f"{count} chunk manifests in {len(raw)} bytes are over the limit")
    manifests = tuple(Digest("sha256", bytes(reader.take(SIZE))) for _ in range(count))
    if reader.left % SHORT_SIZE:
        raise reader.fail(f"{reader.left} bytes are no short run ids")
    runs = tuple(bytes(reader.take(SHORT_SIZE)) for _ in range(reader.left // SHORT_SIZE))
    return Have(manifests, runs)


def serialize_change(
    raw_new: bytes, olds: Mapping[Digest, bytes], named_runs: Iterable[bytes] = ()
) -> bytes:
    """Chunk manifest `raw_new` for a node that holds the chunk manifests `olds` (as serialized) and
    the runs that it named by short ids."""
    named = set(named_runs)
    root, bodies = split_runs(raw_new)
    start = len(raw_new) - sum(map(len, bodies))
    pairs = zip(root.runs, bodies, strict=True)
    bodies = [body for (name, _), body in pairs if short_id(name) not in named]
    content = raw_new[:start] + b"".join(bodies)
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            LEVEL, window_log=23, write_content_size=False, write_checksum=False
        ),
        dict_data=_dictionary(list(olds.values())),
    )
    header = HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, len(content), len(olds))
    return header + b"".join(digest.raw for digest in olds) + packer.compress(content)


def nothing_known() -> bytes:
    """The answer to a node of whose chunk manifests the server knows none: name your runs."""
    return HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, 0, 0)


def change_olds(raw: bytes) -> list[Digest] | None:
    """The chunk manifests that a change refers to (all must be among those that were named); None
    when the server knows none of them."""
    size, olds = _read_header(Reader(raw, "chunk manifest change"))
    return olds if size else None


def parse_change(
    raw: bytes, olds: Sequence[bytes], held_runs: Mapping[bytes, bytes], want_size: int
) -> bytes:
    """The chunk manifest, of `want_size` bytes. `olds` are those of `change_olds`, in order;
    `held_runs` the records of the runs that were named, by id. Not verified: the caller knows the
    digest."""
    reader = Reader(raw, "chunk manifest change")
    size, named = _read_header(reader)
    if size > want_size:
        raise reader.fail(f"{size} bytes are over the {want_size} of the chunk manifest")
    if len(named) != len(olds):
        raise reader.fail(f"got {len(olds)} old chunk manifests, want {len(named)}")
    content = _unpack(bytes(reader.take(reader.left)), size, _dictionary(olds))
    root = parse_root(content)
    short = {short_id(name) for name in held_runs}
    root_size = len(content) - sum(
        count * CHUNK.size for name, count in root.runs if short_id(name) not in short
    )
    if root_size < 0 or root_size + root.chunk_count * CHUNK.size != want_size:
        raise reader.fail("runs are missing")
    parts, at = [content[:root_size]], root_size
    for name, count in root.runs:
        if short_id(name) in short:
            if len(held_runs.get(name, b"")) != count * CHUNK.size:
                raise reader.fail("a run is another one than the node's")
            parts.append(held_runs[name])
        else:
            parts.append(content[at : at + count * CHUNK.size])
            at += count * CHUNK.size
    return b"".join(parts)


def _read_header(reader: Reader) -> tuple[int, list[Digest]]:
    magic, major, minor, header_size, size, count = HEADER.unpack(reader.take(HEADER.size))
    if magic != MAGIC:
        raise FormatError("chunk manifest change: no magic")
    if major != MAJOR:
        raise VersionError(f"chunk manifest change: got major version {major}, want {MAJOR}")
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"chunk manifest change: header size {header_size} is wrong", offset=6)
    reader.take(header_size - HEADER.size)
    if size > MAX_CHANGE_SIZE or count > MAX_OLD_COUNT:
        raise reader.fail(f"{size} bytes from {count} chunk manifests are over the limit")
    return size, [Digest("sha256", bytes(reader.take(SIZE))) for _ in range(count)]


def _dictionary(parts: Sequence[bytes]) -> zstandard.ZstdCompressionDict | None:
    joined = b"".join(parts)
    if len(joined) < 8:  # shorter ones are none to zstd
        return None
    return zstandard.ZstdCompressionDict(joined, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _unpack(raw: bytes, size: int, dictionary: zstandard.ZstdCompressionDict | None) -> bytes:
    """Exactly `size` bytes of one frame, in steps, so that a bomb stops early."""
    unpacker = zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=MAX_WINDOW_SIZE
    ).decompressobj()
    out = bytearray()
    try:
        for start in range(0, len(raw), STEP):
            out += unpacker.decompress(raw[start : start + STEP])
            if len(out) > size or unpacker.eof:
                break
    except zstandard.ZstdError as exc:
        raise FormatError("chunk manifest change: not a zstd frame") from exc
    if len(out) != size or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"chunk manifest change: got {len(out)} bytes, want {size}")
    return bytes(out)


# --- chunks by their place --------------------------------------------------------------------


def chunk_places(indexes: Iterable[int]) -> bytes:
    """A request for the chunks at ascending `indexes` of a chunk manifest: gap and count of each
    stretch."""
    out = Writer()
    stretches: list[list[int]] = []
    for index in indexes:
        if stretches and index == sum(stretches[-1]):
            stretches[-1][1] += 1
        else:
            stretches.append([index, 1])
    end = 0
    for start, count in stretches:
        out.varint(start - end)
        out.varint(count)
        end = start + count
    return out.getvalue()


def parse_places(raw: bytes, chunk_count: int) -> list[int]:
    """The indexes, ascending; each is under `chunk_count`."""
    if not raw or len(raw) > MAX_PLACES_SIZE:
        raise FormatError(f"chunk places of {len(raw)} bytes are not in 1..{MAX_PLACES_SIZE}")
    reader = Reader(raw, "chunk places")
    indexes: list[int] = []
    end = 0
    while reader.left:
        start = end + reader.varint(MAX_CHUNK_COUNT, "gap")
        count = reader.varint(MAX_CHUNK_COUNT, "count")
        end = start + count
        if not count or end > chunk_count:
            raise reader.fail(f"chunks {start} to {end} of {chunk_count}")
        indexes += range(start, end)
    return indexes


def gone_chunks(old: ChunkManifest, new: ChunkManifest) -> Iterator[tuple[int, int]]:
    """Offset and size of the chunks of `old` that `new` lacks, in order, each id once, while they
    come to MAX_GONE_SIZE: what the missing chunks of `new` most likely were."""
    seen = set(new.list_raw_ids())
    offset = total = 0
    for size, raw in zip(old.sizes, old.list_raw_ids(), strict=True):
        if raw not in seen:
            seen.add(raw)
            total += size
            if total > MAX_GONE_SIZE:
                return
            yield offset, size
        offset += size
