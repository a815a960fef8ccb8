"""Chunk manifest: the chunks of a layer, in the order of the layer's form, as a tree of two levels.

The root (header and run table) names *runs* of consecutive chunks; a run lists sizes and ids of its
chunks. Runs are cut where a chunk id says so, so an edit changes few of them: who holds the runs of
another version needs the root and the changed runs only. The whole follows from the form, its
profile and its layer, so who has the form makes the chunk manifest by itself.

Pure; it neither fetches chunks nor knows where they lie. The parser is bounded: it compares the
declared counts with what is left before it allocates, checks all sums and ids, and raises only
FormatError. Spec: docs/format.md "Chunk manifest". Limits: MAX_CHUNK_COUNT, MAX_FORM_SIZE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from layerkit.digest import SIZE, Digest, raw_chunk_id, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.chunker import DEFAULT_PROFILE, MAX_CHUNK_SIZE, cut
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "ANNOTATION_CHUNKER",
    "MAX_FORM_SIZE",
    "RAW",
    "ROLE_CODES",
    "ROLE_NAMES",
    "Chunk",
    "ChunkManifest",
    "Cut",
    "Root",
    "Run",
    "build_chunk_manifest",
    "cut_form",
    "join_runs",
    "parse_chunk_manifest",
    "parse_root",
    "serialize_chunk_manifest",
    "serialize_root",
    "split_runs",
]

MAGIC: Final = b"LKCHUNKS"
MAJOR: Final = 1
MINOR: Final = 0
ANNOTATION_CHUNKER: Final = "dev.layerkit.chunker"  # the profile, beside a chunk manifest
RAW: Final = "raw"  # the transform whose form is the plain tar itself
MAX_CHUNK_COUNT: Final = 1 << 24  # 8 GiB of form at the average chunk size
MAX_FORM_SIZE: Final = 1 << 33  # bytes; larger layers do not belong in a function's image
MAX_RUN_COUNT: Final = 256  # chunks of a run
RUN_MASK: Final = 31  # a run ends with a chunk whose id's first byte has these bits clear: 1 in 32
ROLE_CODES: Final = {"": 0, "base": 1, "deps": 2, "code": 3}
ROLE_NAMES: Final = {code: name for name, code in ROLE_CODES.items()}

# magic, major, minor, header size, chunk count, run count, role, transform, profile, diff_id,
# plain size, form digest, form size
HEADER: Final = struct.Struct("<8sBBHIII16s16s32sQ32sQ")
# id, chunk count
RUN: Final = struct.Struct("<32sI")
# size, id
CHUNK: Final = struct.Struct("<I32s")
ALIKE_COUNT: Final = 16  # chunks compared at once with those of another form
SIZE_SIZE: Final = 4  # bytes of a chunk's size in its record
# of an id's first byte: 1 where a run ends with it
_ENDS_RUN: Final = bytes(int(not first & RUN_MASK) for first in range(256))
assert HEADER.size == 136
assert RUN.size == 36
assert CHUNK.size == 36


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: `size` bytes of the form and their id."""

    size: int
    id: Digest

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_CHUNK_SIZE:
            raise FormatError(f"chunk size {self.size} is not in 1..{MAX_CHUNK_SIZE}")
        if self.id.algorithm != "b3":
            raise FormatError(f"chunk id {self.id.short} is not a b3 digest")


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive chunks of a form: `data` is their records, `id` its BLAKE3."""

    id: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Root:
    """Header and run table of a chunk manifest, as read; only the whole is checked fully."""

    transform: str
    profile: str
    diff_id: Digest
    plain_size: int
    form_digest: Digest
    form_size: int
    role: int
    chunk_count: int
    runs: tuple[tuple[bytes, int], ...]  # id, chunk count


@dataclass(frozen=True, slots=True)
class ChunkManifest:
    """What a node needs to put a layer together: chunks -> form -> plain tar.

    Chunks are kept as columns, `sizes` in bytes and `raw_ids` of 32 bytes end to end: a layer has
    some ten thousand, and most users need no object for each.
    """

    transform: str
    profile: str
    diff_id: Digest
    plain_size: int
    form_digest: Digest
    form_size: int
    sizes: tuple[int, ...]
    raw_ids: bytes
    role: int = 0  # of the layer

    def __post_init__(self) -> None:
        _pack_name(self.transform, "transform")
        _pack_name(self.profile, "chunker profile")
        if self.diff_id.algorithm != "sha256" or self.form_digest.algorithm != "sha256":
            raise FormatError("diff_id and form digest of a chunk manifest must be sha256")
        if not 0 <= self.form_size <= MAX_FORM_SIZE or not 0 <= self.plain_size <= MAX_FORM_SIZE:
            raise FormatError(f"form or plain size is over the limit of {MAX_FORM_SIZE} bytes")
        if self.role not in ROLE_NAMES:
            raise FormatError(f"layer role {self.role} is not known")
        if self.sizes and not (min(self.sizes) > 0 and max(self.sizes) <= MAX_CHUNK_SIZE):
            raise FormatError(f"a chunk size is not in 1..{MAX_CHUNK_SIZE}")
        if len(self.raw_ids) != SIZE * len(self.sizes):
            raise FormatError("a chunk manifest must have an id for each chunk")
        if sum(self.sizes) != self.form_size:
            raise FormatError(
                f"chunk sizes sum to {sum(self.sizes)}, want form size {self.form_size}"
            )
        if self.transform == RAW and (self.form_digest, self.form_size) != (
            self.diff_id,
            self.plain_size,
        ):
            raise FormatError("a raw form must have the digest and size of the plain tar")

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The chunks as values, made on each call."""
        return tuple(Chunk(*pair) for pair in zip(self.sizes, self.ids(), strict=True))

    def ids(self) -> Iterator[Digest]:
        """The chunks' ids, in order."""
        return (Digest("b3", raw) for raw in self.list_raw_ids())

    def list_raw_ids(self) -> list[bytes]:
        """The chunks' ids as bytes, in order."""
        return [self.raw_ids[at : at + SIZE] for at in range(0, len(self.raw_ids), SIZE)]

    def spans(self) -> Iterator[tuple[int, Chunk]]:
        """Each chunk with its offset in the form."""
        offset = 0
        for size, name in zip(self.sizes, self.ids(), strict=True):
            yield offset, Chunk(size, name)
            offset += size

    def offsets(self) -> list[int]:
        """Where each chunk starts in the form, and the form's end."""
        return list(accumulate(self.sizes, initial=0))

    def runs(self) -> list[Run]:
        """The chunks as the runs that the root names."""
        records, runs, start = _join_columns(self.sizes, self.raw_ids), [], 0
        for end in _run_ends(self.raw_ids):
            data = records[start * CHUNK.size : end * CHUNK.size]
            runs.append(Run(raw_chunk_id(data), data))
            start = end
        return runs


# Records and columns change into each other by strides: half the time of a loop over chunks,
# and this is done some times for each version that a node takes.


def _join_columns(sizes: Sequence[int], raw_ids: bytes) -> bytes:
    """The records of chunks."""
    lengths = struct.pack(f"<{len(sizes)}I", *sizes)
    records = bytearray(CHUNK.size * len(sizes))
    for at in range(SIZE_SIZE):
        records[at :: CHUNK.size] = lengths[at::SIZE_SIZE]
    for at in range(SIZE):
        records[SIZE_SIZE + at :: CHUNK.size] = raw_ids[at::SIZE]
    return bytes(records)


def _split_records(records: bytes) -> tuple[tuple[int, ...], bytes]:
    """The columns of whole records: sizes, ids end to end."""
    count = len(records) // CHUNK.size
    lengths, raw_ids = bytearray(SIZE_SIZE * count), bytearray(SIZE * count)
    for at in range(SIZE_SIZE):
        lengths[at::SIZE_SIZE] = records[at :: CHUNK.size]
    for at in range(SIZE):
        raw_ids[at::SIZE] = records[SIZE_SIZE + at :: CHUNK.size]
    return struct.unpack(f"<{count}I", lengths), bytes(raw_ids)


def _run_ends(raw_ids: bytes) -> list[int]:
    """Index behind the last chunk of each run."""
    marks, ends, start = raw_ids[::SIZE].translate(_ENDS_RUN), list[int](), 0
    while start < len(marks):
        longest = min(start + MAX_RUN_COUNT, len(marks))
        found = marks.find(1, start, longest)
        start = found + 1 if found >= 0 else longest
        ends.append(start)
    return ends


@dataclass(frozen=True, slots=True)
class Cut:
    """What a chunk manifest says of the form alone."""

    sizes: tuple[int, ...]
    raw_ids: bytes
    form_digest: Digest


def cut_form(
    form: bytes | bytearray | memoryview,
    profile: str = DEFAULT_PROFILE,
    near: Sequence[tuple[bytes, ChunkManifest]] = (),
) -> Cut:
    """Cut `form` and name its chunks. Nearly all of the time goes into BLAKE3's calls, so those
    that one of `near` (forms with their chunk manifests, verified) has byte for byte take its ids:
    about half the time for two versions of a binary."""
    view = memoryview(form)
    digest = sha256_digest(view)  # first: a pull's other thread needs Python's lock most then
    sizes = cut(view, profile)
    ends = list(accumulate(sizes, initial=0))
    known: list[bytes] = [b""] * len(sizes)
    for old_form, manifest in near:
        _find_ids(view, sizes, ends, known, old_form, manifest)
    ids = [
        raw or raw_chunk_id(view[low:high])
        for raw, (low, high) in zip(known, pairwise(ends), strict=True)
    ]
    return Cut(tuple(sizes), b"".join(ids), digest)


def _find_ids(
    form: memoryview,
    sizes: Sequence[int],
    ends: Sequence[int],
    ids: list[bytes],
    old_form: bytes,
    manifest: ChunkManifest,
) -> None:
    """Set the `ids` of those chunks that an old form has, too, byte for byte. `ends` are sums of
    `sizes`, from 0."""
    offsets, olds, raw_ids = manifest.offsets(), manifest.sizes, manifest.list_raw_ids()

    def is_same(new: int, old: int, count: int) -> bool:
        data = form[ends[new] : ends[new + count]].tobytes()
        return data == old_form[offsets[old] : offsets[old + count]]

    for new, old, count in _align(sizes, olds):
        if is_same(new, old, count):
            ids[new : new + count] = raw_ids[old : old + count]
            continue
        for step in range(count):
            if is_same(new + step, old + step, 1):
                ids[new + step] = raw_ids[old + step]


def _align(sizes: Sequence[int], olds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Chunks that may be alike: place, place among `olds`, and how many follow, ALIKE_COUNT at
    most. After a change the old place is looked for by three sizes in a row."""
    places: dict[tuple[int, ...], int] = {}
    places.update(zip(zip(olds, olds[1:], olds[2:], strict=False), range(len(olds)), strict=False))
    new, old = 0, 0
    while new < len(sizes):
        count, most = 0, min(ALIKE_COUNT, len(sizes) - new, len(olds) - old)
        while count < most and sizes[new + count] == olds[old + count]:
            count += 1
        if count:
            yield new, old, count
            new, old = new + count, old + count
        else:
            old = places.get(tuple(sizes[new : new + 3]), len(olds))
            new += old == len(olds)


def build_chunk_manifest(
    form: bytes | bytearray | memoryview,
    transform: str,
    diff_id: Digest,
    plain_size: int,
    role: int = 0,
    profile: str = DEFAULT_PROFILE,
    done: Cut | None = None,
) -> ChunkManifest:
    """The chunk manifest of a layer whose form is `form`; `done` is its cut, if there is one."""
    found = done or cut_form(form, profile)
    return ChunkManifest(
        transform,
        profile,
        diff_id,
        plain_size,
        found.form_digest,
        len(form),
        found.sizes,
        found.raw_ids,
        role,
    )


def serialize_root(manifest: ChunkManifest, runs: Sequence[Run]) -> bytes:
    """Header and run table: the start of the chunk manifest."""
    out = Writer()
    out.raw(
        HEADER.pack(
            MAGIC,
            MAJOR,
            MINOR,
            HEADER.size,
            len(manifest.sizes),
            len(runs),
            manifest.role,
            _pack_name(manifest.transform, "transform"),
            _pack_name(manifest.profile, "chunker profile"),
            manifest.diff_id.raw,
            manifest.plain_size,
            manifest.form_digest.raw,
            manifest.form_size,
        )
    )
    for run in runs:
        out.raw(RUN.pack(run.id, len(run.data) // CHUNK.size))
    return out.getvalue()


def serialize_chunk_manifest(manifest: ChunkManifest) -> bytes:
    """The bytes of a chunk manifest; one value has one serialization."""
    runs = manifest.runs()
    return serialize_root(manifest, runs) + b"".join(run.data for run in runs)


def parse_root(raw: bytes | memoryview) -> Root:
    """The root of a chunk manifest; `raw` may go on after it."""
    return _read_root(Reader(raw, "chunk manifest"))


def join_runs(raw_root: bytes, runs: Sequence[bytes]) -> bytes:
    """The chunk manifest of a root and the records of all its runs, each checked by its id."""
    named = parse_root(raw_root).runs
    if len(named) != len(runs):
        raise FormatError(f"chunk manifest: got {len(runs)} runs, want {len(named)}")
    for (name, count), data in zip(named, runs, strict=True):
        if len(data) != count * CHUNK.size or raw_chunk_id(data) != name:
            raise FormatError("chunk manifest: a run does not match its id")
    return raw_root + b"".join(runs)


def split_runs(raw: bytes) -> tuple[Root, list[bytes]]:
    """The root of a whole chunk manifest, and the records of each run. None of it is verified."""
    root = parse_root(raw)
    at = len(raw) - root.chunk_count * CHUNK.size
    if at < HEADER.size:
        raise FormatError(f"chunk manifest: {len(raw)} bytes do not hold its runs")
    bodies = []
    for _, count in root.runs:
        bodies.append(raw[at : at + count * CHUNK.size])
        at += count * CHUNK.size
    return root, bodies


def _read_root(reader: Reader) -> Root:
    fixed = HEADER.unpack(reader.take(HEADER.size))
    magic, major, minor, header_size, count, run_count, role, raw_transform, raw_profile = fixed[:9]
    raw_diff_id, plain_size, raw_form_digest, form_size = fixed[9:]
    if magic != MAGIC:
        raise FormatError("chunk manifest: magic is missing")
    if major != MAJOR:
        raise VersionError(f"chunk manifest: version {major}.{minor} is not known", offset=8)
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"chunk manifest: header size {header_size} is wrong", offset=10)
    reader.take(header_size - HEADER.size)  # fields of a newer minor
    if count > MAX_CHUNK_COUNT or run_count > count or run_count * RUN.size > reader.left:
        raise reader.fail(f"{run_count} runs do not fit into the {reader.left} bytes that follow")
    runs = tuple(RUN.iter_unpack(reader.take(run_count * RUN.size)))
    if sum(size for _, size in runs) != count or not all(size for _, size in runs):
        raise reader.fail(f"runs do not sum to {count} chunks, or one is empty")
    return Root(
        _parse_name(raw_transform, "transform"),
        _parse_name(raw_profile, "chunker profile"),
        Digest("sha256", raw_diff_id),
        plain_size,
        Digest("sha256", raw_form_digest),
        form_size,
        role,
        count,
        runs,
    )


def parse_chunk_manifest(raw: bytes | memoryview) -> ChunkManifest:
    """Parse and check everything; memory is bounded by the length of `raw`."""
    reader = Reader(raw, "chunk manifest")
    root = _read_root(reader)
    start = reader.offset
    if root.chunk_count * CHUNK.size != reader.left:
        raise reader.fail(
            f"{root.chunk_count} chunks do not fill the {reader.left} bytes that follow"
        )
    body = bytes(reader.take(reader.left))
    sizes, raw_ids = _split_records(body)
    manifest = ChunkManifest(
        root.transform,
        root.profile,
        root.diff_id,
        root.plain_size,
        root.form_digest,
        root.form_size,
        sizes,
        raw_ids,
        root.role,
    )
    done = 0
    for end, (name, count) in zip(_run_ends(manifest.raw_ids), root.runs, strict=False):
        data = body[done * CHUNK.size : end * CHUNK.size]
        if end != done + count or raw_chunk_id(data) != name:
            raise FormatError(
                "chunk manifest: a run is cut elsewhere or has another id", offset=start
            )
        done = end
    if done != root.chunk_count:
        raise FormatError("chunk manifest: the runs do not hold all chunks", offset=start)
    return manifest


def _pack_name(name: str, what: str) -> bytes:
    """A name of 1..16 printable ASCII characters, as 16 bytes padded with zeros."""
    if not 1 <= len(name) <= 16 or not all("!" <= letter <= "~" for letter in name):
        raise FormatError(f"{what} {name[:40]!r} is not 1..16 printable characters")
    return name.encode("ascii").ljust(16, b"\0")


def _parse_name(raw: bytes, what: str) -> str:
    name = raw.rstrip(b"\0").decode("latin-1")
    if _pack_name(name, what) != raw:
        raise FormatError(f"{what} is not padded with zeros")
    return name
