"""The form of a layer: its tar as a sequence of raw runs and of binaries in address-free form.

`encode_layer` finds the Go binaries in a tar and encodes each; `decode_layer` gives the tar back,
bit for bit. Every part may come from another builder: what cannot be encoded stays raw. Chunks and
deltas work on the form as a whole, several binaries in one included.

Spec: docs/format.md "Layer form". Limits: a form and a tar of at most 8 GiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats import addressfree
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "ADDRESS_FREE",
    "LayerForm",
    "decode_layer",
    "encode_layer",
    "find_binaries",
    "is_layer_form",
    "join_parts",
    "split_parts",
]

ADDRESS_FREE: Final = "address-free"  # the transform's name in chunk manifests
MAGIC: Final = b"LKLF"
MAJOR: Final = 0
MINOR: Final = 0
PART_RAW: Final = 0
PART_BINARY: Final = 1
SIZE_LIMIT: Final = 1 << 33  # bytes of a form or a tar
MIN_BINARY_SIZE: Final = 1 << 16  # bytes; the smallest Go binary is over a megabyte
TAR_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class LayerForm:
    """A layer's form, the label tables of its binaries (in order), and how many stayed raw."""

    form: bytes
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
    tar: bytes, hints: Mapping[Digest, addressfree.Hints] | None = None
) -> LayerForm | None:
    """The form of a layer tar; None when no binary in it has one, and the tar is its own form.
    `hints` by digest of the binary."""
    writer = _begin()
    labels, why_raw, end = [], [], 0
    for at, size in find_binaries(tar):
        binary = tar[at : at + size]
        made = addressfree.encode(binary, (hints or {}).get(sha256_digest(binary)))
        if not made.labels:
            why_raw.append(made.why_raw)
            continue
        _write_part(writer, PART_RAW, tar[end:at])
        _write_part(writer, PART_BINARY, made.form)
        labels.append(made.labels)
        end = at + size
    if not labels:
        return None
    _write_part(writer, PART_RAW, tar[end:])
    form = writer.getvalue()
    if decode_layer(form, len(tar)) != tar:
        raise AssertionError("a fresh layer form does not give its tar back")
    return LayerForm(form, tuple(labels), tuple(why_raw))


def _begin() -> Writer:
    writer = Writer()
    writer.raw(MAGIC)
    writer.u8(MAJOR)
    writer.u8(MINOR)
    return writer


def _open(form: bytes | memoryview) -> Reader:
    """A reader behind the header."""
    reader = Reader(form, "layer form")
    if bytes(reader.take(4)) != MAGIC:
        raise FormatError("layer form: no magic")
    major, _minor = reader.u8(), reader.u8()
    if major != MAJOR:
        raise VersionError(f"layer form: got major version {major}, want {MAJOR}")
    return reader


def _write_part(writer: Writer, kind: int, data: bytes | memoryview) -> None:
    if data:
        writer.u8(kind)
        writer.sized(data)


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
    """The layer form of these parts."""
    writer = _begin()
    for kind, data in parts:
        _write_part(writer, kind, data)
    return writer.getvalue()


def decode_layer(form: bytes | memoryview, tar_size: int | None = None) -> bytes:
    """The tar, of exactly `tar_size` bytes if given. Raises only FormatError; the caller checks the
    diff_id."""
    reader = _open(form)
    parts: list[bytes | memoryview] = []
    left = SIZE_LIMIT if tar_size is None else tar_size
    while reader.left:
        kind = reader.u8()
        data = reader.sized(SIZE_LIMIT, "part")
        if kind == PART_BINARY:
            parts.append(addressfree.decode(data))
        elif kind == PART_RAW:
            parts.append(data)
        else:
            raise reader.fail(f"part kind {kind} is not known")
        left -= len(parts[-1])
        if left < 0:
            raise reader.fail(f"makes more than {tar_size} bytes")
    if left and tar_size is not None:
        raise reader.fail(f"makes {tar_size - left} bytes, want {tar_size}")
    return b"".join(parts)
