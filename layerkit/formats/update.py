"""An update: the answer to "this is what I hold, give me that" in one stream.

It carries the documents of the wanted image (index, manifest, config, chunks artifact) and a delta
for each layer whose form differs. The stream is one zstd frame that may refer to the documents of
the old image, which the node has: little but digests differ between two versions.

Spec: docs/format.md "Update". Decoding is bounded and raises only FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from layerkit.digest import Digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "MAX_HAVE_COUNT",
    "MAX_UPDATE_SIZE",
    "UPDATE_TYPE",
    "Update",
    "parse_update",
    "serialize_update",
    "update_old",
]

UPDATE_TYPE: Final = "application/vnd.layerkit.update.v0"
MAGIC: Final = b"LKUP"
MAJOR: Final = 0
MINOR: Final = 0
LEVEL: Final = 19
STEP: Final = 64  # bytes of the frame decompressed at once
MAX_WINDOW_SIZE: Final = 1 << 27  # bytes: frames that want more are refused; level 19 wants 2^23
MAX_UPDATE_SIZE: Final = 1 << 30  # bytes, decompressed
MAX_DOCUMENT_SIZE: Final = 4 << 20
MAX_DELTA_COUNT: Final = 128  # layers of an image
MAX_HAVE_COUNT: Final = 32  # images that a node names: 2.3 KB of a request's first line

# magic, major, minor, header size, digest of the old image, size of the frame's content
HEADER: Final = struct.Struct("<4sBBH32sI")
assert HEADER.size == 44


@dataclass(frozen=True, slots=True)
class Update:
    """Documents as they are stored (digests name them), and the deltas of layers."""

    top: bytes  # what the reference names: a manifest, or an index
    manifest: bytes  # empty when `top` is it
    config: bytes
    artifact: bytes
    deltas: tuple[bytes, ...]  # each names its old and new form


def serialize_update(update: Update, old: Digest, old_documents: Sequence[bytes]) -> bytes:
    """The stream for a node that holds image `old` with these documents."""
    out = Writer()
    for document in (update.top, update.manifest, update.config, update.artifact):
        out.sized(document)
    out.varint(len(update.deltas))
    for delta in update.deltas:
        out.sized(delta)
    content = out.getvalue()
    packer = zstandard.ZstdCompressor(
        level=LEVEL,
        dict_data=_prefix(old_documents),
        write_content_size=False,
        write_checksum=False,
    )
    return HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, old.raw, len(content)) + packer.compress(
        content
    )


def update_old(raw: bytes) -> Digest:
    """The old image that an update builds on."""
    return _read_header(raw)[0]


def parse_update(raw: bytes, old_documents: Sequence[bytes]) -> Update:
    """The update, with the documents of the old image that its header names."""
    _, size, start = _read_header(raw)
    unpacker = zstandard.ZstdDecompressor(
        dict_data=_prefix(old_documents), max_window_size=MAX_WINDOW_SIZE
    ).decompressobj()
    try:
        content = _bounded(unpacker, raw[start:], size)
    except zstandard.ZstdError as exc:
        raise FormatError("update: not a zstd frame", offset=start) from exc
    reader = Reader(content, "update")
    documents = [bytes(reader.sized(MAX_DOCUMENT_SIZE, "document")) for _ in range(4)]
    count = reader.varint(MAX_DELTA_COUNT, "count of deltas")
    deltas = tuple(bytes(reader.sized(MAX_UPDATE_SIZE, "delta")) for _ in range(count))
    reader.finish()
    return Update(documents[0], documents[1], documents[2], documents[3], deltas)


def _prefix(documents: Sequence[bytes]) -> zstandard.ZstdCompressionDict:
    joined = b"".join(documents) or b"\0" * 8
    return zstandard.ZstdCompressionDict(joined, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _bounded(unpacker: zstandard.ZstdDecompressionObj, raw: bytes, size: int) -> bytes:
    """Exactly `size` bytes, decompressed in small steps so that a bomb stops early: four bytes may
    stand for a block of 128 KiB, so a step makes 2 MiB at most."""
    out = bytearray()
    for start in range(0, len(raw), STEP):
        out += unpacker.decompress(raw[start : start + STEP])
        if len(out) > size or unpacker.eof:
            break
    if len(out) != size or not unpacker.eof or unpacker.unused_data:
        raise FormatError(f"update: got {len(out)} bytes, want {size}")
    return bytes(out)


def _read_header(raw: bytes) -> tuple[Digest, int, int]:
    if len(raw) < HEADER.size:
        raise FormatError("update: ends early")
    magic, major, minor, header_size, old, size = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError("update: no magic")
    if major != MAJOR:
        raise VersionError(f"update: got major version {major}, want {MAJOR}")
    if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
        raise FormatError(f"update: header size {header_size} is wrong", offset=6)
    if size > MAX_UPDATE_SIZE or header_size > len(raw):
        raise FormatError(f"update: {size} bytes are over the limit", offset=40)
    return Digest("sha256", old), size, header_size
