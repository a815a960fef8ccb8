"""A bundle: an image and what brings it to a node, in one file that needs no network.

A head and then parts, each named by its SHA-256. The first part is an OCI index, as that of a
layout: it names the image, and lists what refers to it (stored updates, signatures, SBOM). The
others are what these name: manifests, configs, updates, blobs. Nothing in a head is believed: each
part is checked by its digest when it is read, and what it means by who reads it.

Spec: docs/format.md "Bundle". Pure. Limits: MAX_PART_COUNT, MAX_PART_SIZE.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import FormatError, VersionError

__all__ = ["HEADER", "MAGIC", "ROW", "BundlePart", "head_size", "parse_head", "serialize_head"]

MAGIC: Final = b"LKBN"
MAJOR: Final = 1
MINOR: Final = 0
MAX_PART_COUNT: Final = 4096
MAX_PART_SIZE: Final = 1 << 40  # bytes: what a descriptor may declare

# magic, major, minor, header size, count of parts
HEADER: Final = struct.Struct("<4sBBHI")
assert HEADER.size == 12
# SHA-256 of a part, its size
ROW: Final = struct.Struct("<32sQ")
assert ROW.size == 40


@dataclass(frozen=True, slots=True)
class BundlePart:
    """A part, and where it begins in the file."""

    digest: Digest
    offset: int
    size: int


def serialize_head(parts: Sequence[tuple[Digest, int]]) -> bytes:
    """The head of a bundle of parts with these digests and sizes, which follow it in this order."""
    head = HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, len(parts))
    raw = head + b"".join(ROW.pack(digest.raw, size) for digest, size in parts)
    parse_head(raw, len(raw) + sum(size for _, size in parts))
    return raw


def head_size(raw: bytes) -> int:
    """Bytes of the whole head, by its first HEADER.size bytes."""
    if len(raw) < HEADER.size:
        raise FormatError(f"bundle: got {len(raw)} bytes, want >= {HEADER.size}")
    magic, major, minor, header_size, count = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError("bundle: no magic")
    if major != MAJOR:
        raise VersionError(f"bundle: got major version {major}, want {MAJOR}", offset=4)
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"bundle: header size {header_size} is wrong", offset=6)
    if not 1 <= count <= MAX_PART_COUNT:
        raise FormatError(f"bundle: {count} parts, want 1 to {MAX_PART_COUNT}", offset=8)
    return int(header_size + count * ROW.size)


def parse_head(raw: bytes, file_size: int) -> tuple[BundlePart, ...]:
    """The parts of a bundle of `file_size` bytes whose head is `raw`, which may be longer."""
    size = head_size(raw)
    if len(raw) < size:
        raise FormatError(f"bundle: its head ends early: got {len(raw)} bytes, want {size}")
    found: dict[Digest, BundlePart] = {}
    offset = size
    start = size - HEADER.unpack_from(raw)[4] * ROW.size
    for at in range(start, size, ROW.size):
        name, part_size = ROW.unpack_from(raw, at)
        digest = Digest("sha256", name)
        if digest in found:
            raise FormatError(f"bundle: part {digest.short} comes twice", offset=at)
        if not 1 <= part_size <= MAX_PART_SIZE:
            raise FormatError(
                f"bundle: size {part_size} is not in 1..{MAX_PART_SIZE}", offset=at + 32
            )
        found[digest] = BundlePart(digest, offset, part_size)
        offset += part_size
    if offset != file_size:
        raise FormatError(f"bundle: got {file_size} bytes, want {offset}", offset=size)
    return tuple(found.values())
