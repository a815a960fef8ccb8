"""The form of a layer: its tar as a sequence of raw runs and of binaries in address-free form.

`encode_layer` finds the Go binaries in a tar and encodes each; `decode_layer` gives the tar back,
bit for bit. Every part may come from another builder: what cannot be encoded stays raw. Chunks and
deltas work on the form as a whole, several binaries in one included.

`encode_layer` also gives the layer's labels blob: with it `rebuild_layer` makes the same form again
from the tar, which a node may have got plainly.

Spec: docs/format.md "Layer form", "Labels of a layer". Limits: a form and a tar of at most 8 GiB;
labels unpack to no more bytes than the tar has.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import zstandard

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats import addressfree
from layerkit.formats.cursor import Reader, Writer
from layerkit.formats.filled import fill_bytes, join_bytes

__all__ = [
    "ADDRESS_FREE",
    "FORM_HEAD",
    "LABELS_TYPE",
    "LayerForm",
    "Tell",
    "decode_layer",
    "decoded_size",
    "encode_layer",
    "find_binaries",
    "is_layer_form",
    "join_parts",
    "part_head",
    "part_pieces",
    "rebuild_layer",
    "serialize_labels",
    "split_parts",
]

ADDRESS_FREE: Final = "address-free"  # the transform's name in chunk manifests
MAGIC: Final = b"LKLF"
MAJOR: Final = 0
MINOR: Final = 0
FORM_HEAD: Final = MAGIC + bytes((MAJOR, MINOR))
PART_RAW: Final = 0
PART_BINARY: Final = 1
SIZE_LIMIT: Final = 1 << 33  # bytes of a form or a tar
MIN_BINARY_SIZE: Final = 1 << 16  # bytes; the smallest Go binary is over a megabyte
TAR_BLOCK: Final = 512

LABELS_TYPE: Final = "application/vnd.layerkit.labels.v0"
LABELS_MAGIC: Final = b"LKLL"
LABELS_LEVEL: Final = 19  # 0.1 s for the labels of a 6 MB binary; they come to 64 KB, once
MAX_WINDOW_SIZE: Final = 1 << 27  # bytes
# magic, major, minor, header size, size of the frame's content
LABELS_HEADER: Final = struct.Struct("<4sBBHQ")
assert LABELS_HEADER.size == 16


# digest of a binary, why it stays raw: "" if it has its form
Tell: TypeAlias = Callable[[Digest, str], None]


@dataclass(frozen=True, slots=True)
class LayerForm:
    """A layer's form, its binaries' places in the tar and labels blobs (in order), and why others
    stayed raw."""

    form: bytes
    places: tuple[int, ...]
    labels: tuple[bytes, ...]
    why_raw: tuple[str, ...]


def find_binaries(tar: bytes) -> list[tuple[int, int]]:
    """Offset and size of each regular file in the tar that starts like an ELF file.

    Reads ustar headers only as far as needed; a header that lies costs compression, nothing else.
    """
    found, at = [], 0
    while (at := tar.find(b"\x7fELF\x02\x01", at)) >= 0:
        header = tar[at - TAR_BLOCK : at] if at >= TAR_BLOCK and at % TAR_BLOCK == 0 else b""
        size_text = header[124:135].strip(b"\0 ")
        if header[257:262] == b"ustar" and header[156:157] in (b"0", b"\0"):
            try:
                size = int(size_text, 8)
            except ValueError:
                size = 0
            if MIN_BINARY_SIZE <= size <= len(tar) - at:
                found.append((at, size))
                at += size
                continue
        at += 1
    return found


def encode_layer(
    tar: bytes,
    hints: Mapping[Digest, addressfree.Hints] | None = None,
    tell: Tell | None = None,
) -> LayerForm | None:
    """The form of a layer tar; None when no binary in it has one, and the tar is its own form.
    `hints` by digest of the binary. `tell` is called for each ELF file."""
    parts: list[tuple[int, bytes | memoryview]] = []
    places, labels, why_raw, end = [], [], [], 0
    view = memoryview(tar)
    for at, size in find_binaries(tar):
        binary = tar[at : at + size]
        digest = sha256_digest(binary)
        made = addressfree.encode(binary, (hints or {}).get(digest))
        if tell is not None:
            tell(digest, made.why_raw)
        if made.why_raw:
            why_raw.append(made.why_raw)
            continue
        parts += [(PART_RAW, view[end:at]), (PART_BINARY, made.form)]
        places.append(at)
        labels.append(made.labels)
        end = at + size
    if not labels:
        return None
    form = join_parts([*parts, (PART_RAW, view[end:])])
    if decode_layer(form, len(tar)) != tar:
        raise AssertionError("a fresh layer form does not give its tar back")
    return LayerForm(form, tuple(places), tuple(labels), tuple(why_raw))


def _open(form: bytes | memoryview) -> Reader:
    """A reader behind the header."""
    reader = Reader(form, "layer form")
    if bytes(reader.take(4)) != MAGIC:
        raise FormatError("layer form: no magic")
    major, _minor = reader.u8(), reader.u8()
    if major != MAJOR:
        raise VersionError(f"layer form: got major version {major}, want {MAJOR}")
    return reader


def is_layer_form(data: bytes) -> bool:
    """Does it start like a layer form? No tar does: its first byte would begin a file name LKLF."""
    return data[:4] == MAGIC and data[4:6] == bytes((MAJOR, MINOR))


def split_parts(form: bytes | memoryview) -> list[tuple[int, memoryview]]:
    """Kind and bytes of each part. FormatError for what is no layer form."""
    reader = _open(form)
    parts = []
    while reader.left:
        kind = reader.u8()
        parts.append((kind, reader.sized(SIZE_LIMIT, "part")))
    return parts


def join_parts(parts: Iterable[tuple[int, bytes | memoryview]]) -> bytes:
    """The layer form of these parts; empty ones are left out. Memory: the form, and one part."""
    return join_bytes(
        [FORM_HEAD, *(piece for kind, data in parts for piece in part_pieces(kind, data))]
    )


def part_pieces(kind: int, data: bytes | memoryview) -> list[bytes | memoryview]:
    """A part as it stands in a layer form; nothing for an empty one."""
    return [part_head(kind, len(data)), data] if data else []


def part_head(kind: int, size: int) -> bytes:
    """What stands before the `size` bytes of a part."""
    head = Writer()
    head.u8(kind)
    head.varint(size)
    return head.getvalue()


def decoded_size(form: bytes | memoryview) -> int:
    """Bytes of the tar that `decode_layer` gives, by what the form's parts declare."""
    return sum(size for _, _, size in _measure_parts(form, SIZE_LIMIT))


def _measure_parts(form: bytes | memoryview, limit: int) -> list[tuple[int, memoryview, int]]:
    """Kind, bytes and size in the tar of each part; together they make at most `limit` bytes."""
    reader = _open(form)
    parts: list[tuple[int, memoryview, int]] = []
    total = 0
    while reader.left:
        kind = reader.u8()
        data = reader.sized(SIZE_LIMIT, "part")
        if kind not in (PART_RAW, PART_BINARY):
            raise reader.fail(f"part kind {kind} is not known")
        size = addressfree.decoded_size(data) if kind == PART_BINARY else len(data)
        parts.append((kind, data, size))
        total += size
        if total > limit:
            raise reader.fail(f"makes more than {limit} bytes")
    return parts


def decode_layer(form: bytes | memoryview, tar_size: int | None = None) -> bytes:
    """The tar, of exactly `tar_size` bytes if given. Raises only FormatError; the caller checks the
    diff_id. Memory: the tar, and what `addressfree.decode_into` needs for the largest binary."""
    parts = _measure_parts(form, SIZE_LIMIT if tar_size is None else tar_size)
    total = sum(size for _, _, size in parts)
    if tar_size is not None and total != tar_size:
        raise FormatError(f"layer form: makes {total} bytes, want {tar_size}")

    def fill(out: memoryview) -> None:
        at = 0
        for kind, data, size in parts:
            if kind == PART_BINARY:
                addressfree.decode_into(data, out[at : at + size])
            else:
                out[at : at + size] = data
            at += size

    return fill_bytes(total, fill)


# --- labels ------------------------------------------------------------------------------------


def serialize_labels(places: Sequence[int], labels: Sequence[bytes]) -> bytes:
    """The labels blob of a layer whose binaries stand at `places` of its tar."""
    content = Writer()
    end = 0
    for at, one in zip(places, labels, strict=True):
        content.varint(at - end)
        content.sized(one)
        end = at + addressfree.labels_size(one)
    packer = zstandard.ZstdCompressor(level=LABELS_LEVEL, write_checksum=False)
    head = LABELS_HEADER.pack(LABELS_MAGIC, MAJOR, MINOR, LABELS_HEADER.size, len(content))
    return head + packer.compress(content.getvalue())


def rebuild_layer(plain: bytes | memoryview, raw_labels: bytes) -> bytes:
    """The form that `encode_layer` made of the tar `plain` together with this labels blob, byte for
    byte. Raises FormatError where it is malformed or another layer's; the caller checks the form's
    digest. 0.06 s for a 6 MB binary. Memory: three times the largest binary, and the form."""
    tar = memoryview(plain)
    reader = Reader(_unpack_labels(raw_labels, len(tar)), "labels")
    binaries: list[tuple[memoryview, memoryview]] = []  # and their labels
    pieces: list[bytes | memoryview | None] = [FORM_HEAD]  # None: the form of the next binary
    total = end = 0
    while reader.left:
        at = end + reader.varint(len(tar), "gap")
        labels = reader.sized(SIZE_LIMIT, "labels of a binary")
        size = addressfree.labels_size(labels)
        if size > len(tar) - at:
            raise reader.fail("a binary ends behind the layer's end")
        made = addressfree.rebuilt_size(labels)
        pieces += [*part_pieces(PART_RAW, tar[end:at]), part_head(PART_BINARY, made), None]
        binaries.append((tar[at : at + size], labels))
        total += made
        end = at + size
    pieces += part_pieces(PART_RAW, tar[end:])
    total += sum(len(piece) for piece in pieces if piece is not None)

    def fill(out: memoryview) -> None:
        at, left = 0, iter(binaries)
        for piece in pieces:
            if piece is None:
                binary, labels = next(left)
                size = addressfree.rebuilt_size(labels)
                addressfree.rebuild_into(binary, labels, out[at : at + size])
            else:
                size = len(piece)
                out[at : at + size] = piece
            at += size

    return fill_bytes(total, fill)


def _unpack_labels(raw: bytes, limit: int) -> bytes:
    """The content of a labels blob, of at most `limit` bytes."""
    fixed = bytes(Reader(raw, "labels").take(LABELS_HEADER.size))
    magic, major, minor, header_size, size = LABELS_HEADER.unpack(fixed)
    if magic != LABELS_MAGIC:
        raise FormatError("labels: no magic")
    if major != MAJOR:
        raise VersionError(f"labels: got major version {major}, want {MAJOR}")
    if header_size < LABELS_HEADER.size or (header_size > LABELS_HEADER.size and minor == MINOR):
        raise FormatError(f"labels: header size {header_size} is wrong", offset=6)
    if size > limit:
        raise FormatError(f"labels: {size} bytes are over the limit of {limit}", offset=8)
    frame = raw[header_size:]
    try:
        if zstandard.frame_content_size(frame) != size:
            raise FormatError("labels: the frame is not as long as declared", offset=header_size)
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_SIZE)
        return unpacker.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise FormatError("labels: not a zstd frame", offset=header_size) from exc
