"""Chunk manifest: the list of a layer's chunks, in the order of the layer's form.

Pure; it neither fetches chunks nor knows where they lie. The parser is bounded: it compares the
declared count with what is left before it allocates, checks all sums, and raises only FormatError.
Spec: docs/format.md "Chunk manifest". Limits: MAX_CHUNK_COUNT, MAX_FORM_SIZE.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.chunker import DEFAULT_PROFILE, MAX_CHUNK_SIZE, cut
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "MAX_FORM_SIZE",
    "RAW",
    "ROLE_CODES",
    "ROLE_NAMES",
    "Chunk",
    "ChunkManifest",
    "build_chunk_manifest",
    "parse_chunk_manifest",
    "serialize_chunk_manifest",
]

MAGIC: Final = b"LKCHUNKS"
MAJOR: Final = 0  # until the address-free form settles it
MINOR: Final = 0
RAW: Final = "raw"  # the transform whose form is the plain tar itself
MAX_CHUNK_COUNT: Final = 1 << 23  # 8 GiB of form at the average chunk size
MAX_FORM_SIZE: Final = 1 << 33  # bytes; larger layers do not belong in a function's image
ROLE_CODES: Final = {"": 0, "base": 1, "deps": 2, "code": 3}
ROLE_NAMES: Final = {code: name for name, code in ROLE_CODES.items()}

# magic, major, minor, header size, chunk count, transform, profile, diff_id, plain size,
# form digest, form size
HEADER: Final = struct.Struct("<8sBBHI16s16s32sQ32sQ")
# size, id, role
CHUNK: Final = struct.Struct("<I32sB")
assert HEADER.size == 128
assert CHUNK.size == 37


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: `size` bytes of the form, their id, the role of the layer they come from."""

    size: int
    id: Digest
    role: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_CHUNK_SIZE:
            raise FormatError(f"chunk size {self.size} is not in 1..{MAX_CHUNK_SIZE}")
        if self.id.algorithm != "b3":
            raise FormatError(f"chunk id {self.id.short} is not a b3 digest")
        if self.role not in ROLE_NAMES:
            raise FormatError(f"chunk role {self.role} is not known")


@dataclass(frozen=True, slots=True)
class ChunkManifest:
    """What a node needs to put a layer together: chunks -> form -> plain tar."""

    transform: str
    profile: str
    diff_id: Digest
    plain_size: int
    form_digest: Digest
    form_size: int
    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        _pack_name(self.transform, "transform")
        _pack_name(self.profile, "chunker profile")
        if self.diff_id.algorithm != "sha256" or self.form_digest.algorithm != "sha256":
            raise FormatError("diff_id and form digest of a chunk manifest must be sha256")
        if not 0 <= self.form_size <= MAX_FORM_SIZE or not 0 <= self.plain_size <= MAX_FORM_SIZE:
            raise FormatError(f"form or plain size is over the limit of {MAX_FORM_SIZE} bytes")
        total = sum(chunk.size for chunk in self.chunks)
        if total != self.form_size:
            raise FormatError(f"chunk sizes sum to {total}, want form size {self.form_size}")
        if self.transform == RAW and (self.form_digest, self.form_size) != (
            self.diff_id,
            self.plain_size,
        ):
            raise FormatError("a raw form must have the digest and size of the plain tar")

    def spans(self) -> Iterator[tuple[int, Chunk]]:
        """Each chunk with its offset in the form."""
        offset = 0
        for chunk in self.chunks:
            yield offset, chunk
            offset += chunk.size


def build_chunk_manifest(
    form: bytes | bytearray | memoryview,
    transform: str,
    diff_id: Digest,
    plain_size: int,
    role: int = 0,
    profile: str = DEFAULT_PROFILE,
) -> ChunkManifest:
    """Cut `form` and name its chunks; all of them get the `role` of their layer."""
    view = memoryview(form)
    chunks = []
    offset = 0
    for size in cut(view, profile):
        chunks.append(Chunk(size, chunk_id(view[offset : offset + size]), role))
        offset += size
    return ChunkManifest(
        transform, profile, diff_id, plain_size, sha256_digest(view), len(view), tuple(chunks)
    )


def serialize_chunk_manifest(manifest: ChunkManifest) -> bytes:
    """The bytes of a chunk manifest; one value has one serialization."""
    out = Writer()
    out.raw(
        HEADER.pack(
            MAGIC,
            MAJOR,
            MINOR,
            HEADER.size,
            len(manifest.chunks),
            _pack_name(manifest.transform, "transform"),
            _pack_name(manifest.profile, "chunker profile"),
            manifest.diff_id.raw,
            manifest.plain_size,
            manifest.form_digest.raw,
            manifest.form_size,
        )
    )
    for chunk in manifest.chunks:
        out.raw(CHUNK.pack(chunk.size, chunk.id.raw, chunk.role))
    return out.getvalue()


def parse_chunk_manifest(raw: bytes | memoryview) -> ChunkManifest:
    """Parse and check everything; memory is bounded by the length of `raw`."""
    reader = Reader(raw, "chunk manifest")
    fixed = HEADER.unpack(reader.take(HEADER.size))
    magic, major, minor, header_size, count, raw_transform, raw_profile = fixed[:7]
    raw_diff_id, plain_size, raw_form_digest, form_size = fixed[7:]
    if magic != MAGIC:
        raise FormatError("chunk manifest: magic is missing")
    if major != MAJOR:
        raise VersionError(f"chunk manifest: version {major}.{minor} is not known", offset=8)
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"chunk manifest: header size {header_size} is wrong", offset=10)
    reader.take(header_size - HEADER.size)  # fields of a newer minor
    if count > MAX_CHUNK_COUNT or count * CHUNK.size != reader.left:
        raise reader.fail(f"{count} chunks do not fill the {reader.left} bytes that follow")
    body = reader.take(reader.left)
    chunks = tuple(
        Chunk(size, Digest("b3", raw_id), role) for size, raw_id, role in CHUNK.iter_unpack(body)
    )
    return ChunkManifest(
        _parse_name(raw_transform, "transform"),
        _parse_name(raw_profile, "chunker profile"),
        Digest("sha256", raw_diff_id),
        plain_size,
        Digest("sha256", raw_form_digest),
        form_size,
        chunks,
    )


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
