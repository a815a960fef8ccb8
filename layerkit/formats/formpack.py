"""Packed form: a layer's form as few bytes as practical, for nodes that hold nothing near.

LZMA over the form, with the ids of its binaries as numbers of labels (`addressfree.packing`). It
takes seconds to make, so it is made once: by the build, if it is told to, or by a server, aside.
The form blob is the quick way. What was packed is unpacked and compared. Pure. Bounded; raises only
FormatError. Spec: docs/format.md "Packed form".
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np

from layerkit.errors import FormatError, VersionError
from layerkit.formats.addressfree import packing, wire
from layerkit.formats.cursor import Reader, Writer
from layerkit.formats.filled import fill_bytes
from layerkit.formats.layerform import (
    FORM_HEAD,
    PART_BINARY,
    part_head,
    part_pieces,
    split_parts,
)

__all__ = ["ANNOTATION_PACKED", "PACKED_TYPE", "Unpacker", "pack", "unpack", "worth_packing"]

PACKED_TYPE: Final = "application/vnd.layerkit.packed-form.v0"
# on an artifact in a server's list of referrers: digests of the form blobs that it has packed
ANNOTATION_PACKED: Final = "dev.layerkit.packed"
MAGIC: Final = b"LKPF"
MAJOR: Final = 0
MINOR: Final = 0
MIN_BLOB_SIZE: Final = 256 << 10  # bytes of a form blob below which packing gains too little
MAX_FORM_SIZE: Final = 1 << 28  # bytes: larger ones travel as form blobs
MAX_HEAD_SIZE: Final = 7 + 2 * 10  # bytes: magic, versions, kind, two sizes
AS_IS: Final = 0  # the content is the form itself
STEP: Final = 1 << 20  # bytes that are decompressed at once
PARTS: Final = 1  # the content is the parts of a layer form, and of these
PART_NUMBERED: Final = 2  # is a binary's form with numbers
# preset 9e makes 0.04 % less of a 6 MB form in twice the time
FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 24}]


def worth_packing(blob_size: int, form_size: int) -> bool:
    """Is a form of `form_size` bytes, of `blob_size` as a form blob, one to pack?"""
    return blob_size >= MIN_BLOB_SIZE and form_size <= MAX_FORM_SIZE


def pack(form: bytes) -> bytes:
    """The packed form; FormatError for one that is over MAX_FORM_SIZE. 3 s for 6 MB."""
    if len(form) > MAX_FORM_SIZE:
        raise FormatError(f"form of {len(form)} bytes is over {MAX_FORM_SIZE}")
    content = _number(form)
    if content is not None and _restore(Reader(content, "packed form"), len(form)) != form:
        content = None
    out = Writer()
    out.raw(MAGIC)
    out.u8(MAJOR)
    out.u8(MINOR)
    out.u8(AS_IS if content is None else PARTS)
    content = form if content is None else content
    out.varint(len(form))
    out.varint(len(content))
    out.raw(lzma.compress(content, format=lzma.FORMAT_RAW, filters=FILTERS))
    return out.getvalue()


def unpack(raw: bytes, limit: int = MAX_FORM_SIZE) -> bytes:
    """The form, of at most `limit` bytes."""
    unpacker = Unpacker(limit)
    unpacker.feed(raw)
    return unpacker.finish()


class Unpacker:
    """`unpack` of what comes piece by piece: nearly all of its time is spent while the line brings
    the rest. Memory is bounded by the two sizes that the header declares, the form's at most
    `limit`, the other one at most twice that; nothing is allocated before it is decompressed."""

    def __init__(self, limit: int = MAX_FORM_SIZE) -> None:
        self._limit = min(limit, MAX_FORM_SIZE)
        self._head = b""
        self._kind: int | None = None  # known when the header is
        self._form_size = self._content_size = 0
        self._lzma: lzma.LZMADecompressor | None = None  # it has its window from the start
        self._content = BytesIO()  # gives its buffer away

    def feed(self, piece: bytes | memoryview, most: int = 2 * MAX_FORM_SIZE) -> None:
        """The next bytes, which must not make more than `most` in all. Raises FormatError as soon
        as they are known to be wrong."""
        if self._kind is None:
            self._head += piece
            if len(self._head) < MAX_HEAD_SIZE:
                return
            piece = self._read_head()
        self._decompress(piece, min(most, self._content_size))

    def finish(self) -> bytes:
        """The form; FormatError unless the stream ends here."""
        if self._kind is None:
            self._decompress(self._read_head(), self._content_size)
        done = self._content.tell()
        unpacker = self._lzma
        assert unpacker is not None
        if done != self._content_size or not unpacker.eof or unpacker.unused_data:
            raise FormatError(f"packed form: got {done} bytes, want {self._content_size}")
        content = self._content.getvalue()
        if self._kind == PARTS:
            return _restore(Reader(content, "packed form"), self._form_size)
        if len(content) != self._form_size:
            raise FormatError(f"packed form: makes {len(content)} bytes, want {self._form_size}")
        return content

    def _read_head(self) -> bytes:
        """Read the header; returns what stands behind it."""
        reader = Reader(self._head, "packed form")
        if bytes(reader.take(4)) != MAGIC:
            raise FormatError("packed form: no magic")
        major, _minor = reader.u8(), reader.u8()
        if major != MAJOR:
            raise VersionError(f"packed form: got major version {major}, want {MAJOR}")
        kind = reader.u8()
        if kind not in (AS_IS, PARTS):
            raise reader.fail(f"kind {kind} is not known")
        self._form_size = reader.varint(self._limit, "form size")
        self._content_size = reader.varint(2 * self._limit, "content size")
        self._kind, self._head = kind, b""
        self._lzma = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
        return bytes(reader.take(reader.left))

    def _decompress(self, piece: bytes | memoryview, most: int) -> None:
        """Keep what comes out, at most one step over `most`."""
        unpacker, fed = self._lzma, piece
        assert unpacker is not None
        if unpacker.eof and len(piece):
            raise FormatError("packed form: bytes follow the end")
        while not unpacker.eof:
            try:
                part = unpacker.decompress(fed, STEP)
            except (lzma.LZMAError, EOFError) as exc:
                raise FormatError("packed form: not an LZMA2 stream") from exc
            fed = b""
            self._content.write(part)
            if self._content.tell() > most:
                raise FormatError(f"packed form: makes more than {most} bytes")
            if not part and unpacker.needs_input:
                return


def _number(form: bytes) -> bytes | None:
    """The parts of a layer form with numbers; None when there is nothing to number."""
    try:
        parts = split_parts(form)
    except FormatError:
        return None
    out, numbered = Writer(), False
    for kind, data in parts:
        made = _split(bytes(data)) if kind == PART_BINARY else None
        body = packing.number_ids(*made) if made is not None else None
        if made is None or body is None:
            out.u8(kind)
            out.sized(data)
            continue
        numbered = True
        out.u8(PART_NUMBERED)
        out.u8(body.tag)
        out.varint(len(body.skip))
        for gap in np.diff(body.skip, prepend=0).tolist():
            out.varint(gap)
        out.sized(made[0])
        out.sized(body.body)
    return out.getvalue() if numbered else None


def _split(form: bytes) -> tuple[bytes, bytes] | None:
    """Labels and body of a binary's form; None for one of another version."""
    try:
        return packing.split(form)
    except FormatError:
        return None


def _restore(reader: Reader, form_size: int) -> bytes:
    """The layer form, of `form_size` bytes, of parts with numbers; each is restored in place."""
    pieces: list[bytes | memoryview | _Numbered] = [FORM_HEAD]
    while reader.left:
        kind = reader.u8()
        if kind != PART_NUMBERED:
            pieces += part_pieces(kind, reader.sized(form_size, "part"))
            continue
        tag = reader.u8()
        count = reader.varint(min(packing.MAX_SKIP_COUNT, reader.left), "skipped places")
        gaps = [reader.varint(form_size, "distance") for _ in range(count)]
        skip = np.cumsum(np.array(gaps, np.int64))
        labels = reader.sized(form_size, "labels")
        body = reader.sized(form_size, "body")
        head = wire.serialize_head(wire.KIND_GO, labels, len(body))
        pieces += [part_head(PART_BINARY, len(head) + len(body)), head]
        pieces.append(_Numbered(labels, packing.NumberedBody(tag, skip, body)))
    total = sum(map(len, pieces))
    if total != form_size:
        raise FormatError(f"packed form: makes {total} bytes, want {form_size}")

    def fill(out: memoryview) -> None:
        at = 0
        for piece in pieces:
            end = at + len(piece)
            if isinstance(piece, _Numbered):
                packing.restore_into(piece.labels, piece.body, out[at:end])
            else:
                out[at:end] = piece
            at = end

    return fill_bytes(total, fill)


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A body with numbers, and the label table that its ids follow from."""

    labels: memoryview
    body: packing.NumberedBody

    def __len__(self) -> int:
        return len(self.body.body)
