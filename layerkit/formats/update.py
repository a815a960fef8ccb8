"""An update: the answer to "this is what I hold, give me that" in one stream.

It has the documents of the wanted image (config, manifest, chunks artifact, index) and, part after
part, the bytes of the layers that the node lacks. The documents come first, with the table of the
parts, in a zstd frame that may refer to the documents of an image that the node holds: little but
digests differs between two versions. A reader takes the parts one by one as they come.

What a part holds is the business of `updateparts`; which are sent, of `updating`.

Spec: docs/format.md "Update". Bounded: the documents by MAX_DOCUMENT_SIZE each, a part by what
came. Raises only FormatError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.cursor import Reader, Writer

__all__ = [
    "MAX_HAVE_COUNT",
    "MAX_LAYER_COUNT",
    "MAX_STREAM_SIZE",
    "MAX_UPDATE_SIZE",
    "UPDATE_TYPE",
    "Documents",
    "Entry",
    "Part",
    "Share",
    "UpdateReader",
    "check_documents",
    "serialize_head",
    "serialize_update",
]

UPDATE_TYPE: Final = "application/vnd.layerkit.update.v1"
MAGIC: Final = b"LKUP"
MAJOR: Final = 1
MINOR: Final = 0
LEVEL: Final = 19
STEP: Final = 64  # bytes of the frame decompressed at once
MAX_WINDOW_SIZE: Final = 1 << 27  # bytes: frames that want more are refused; level 19 wants 2^23
MAX_UPDATE_SIZE: Final = 1 << 30  # bytes of all parts
MAX_FRAME_SIZE: Final = 16 << 20  # bytes of the documents and the table, packed
MAX_STREAM_SIZE: Final = MAX_UPDATE_SIZE + MAX_FRAME_SIZE + (64 << 10)  # with any header
MAX_DOCUMENT_SIZE: Final = 4 << 20
MAX_LAYER_COUNT: Final = 128
MAX_PART_COUNT: Final = 4096
MAX_CONTENT_SIZE: Final = 4 * MAX_DOCUMENT_SIZE + 16 * MAX_PART_COUNT
MAX_HAVE_COUNT: Final = 32  # images that a node names: 2.3 KB of a request's first line

# kinds of parts; a layer has one of the first four, or a LIST and then any number of CHUNKS
DELTA: Final = 1
PACKED: Final = 2
FORM: Final = 3
BLOB: Final = 4
LIST: Final = 5
CHUNKS: Final = 6
_FIRST: Final = (DELTA, PACKED, FORM, BLOB, LIST)
_FOLLOWERS: Final[dict[int, tuple[int, ...]]] = {0: _FIRST, LIST: (CHUNKS,), CHUNKS: (CHUNKS,)}

# magic, major, minor, header size, old image (zeros: none), size of the frame
HEADER: Final = struct.Struct("<4sBBH32sI")
assert HEADER.size == 44

# In a document they stand for the hex digests of the config and of the manifest, which need not
# travel. No JSON text has these bytes
MARKS: Final = (b"\1", b"\2")


@dataclass(frozen=True, slots=True)
class Documents:
    """An image's documents as stored; `manifest` is empty when `top` is the manifest, `artifact`
    when there is none."""

    top: bytes
    manifest: bytes
    config: bytes
    artifact: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table: which layer of the manifest a part is of, its kind, its bytes."""

    layer: int
    kind: int
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it is sent."""

    layer: int
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of an update for layers of one role, and what a plain pull of these layers moves."""

    role: str
    sent_size: int
    whole_size: int


def serialize_update(
    new: Documents, parts: Sequence[Part], old: Digest | None, old_documents: Documents | None
) -> bytes:
    """The stream for a node that holds image `old` with these documents, or none."""
    table = [Entry(part.layer, part.kind, len(part.data)) for part in parts]
    head = serialize_head(new, table, old, old_documents)
    return b"".join((head, *(part.data for part in parts)))


def serialize_head(
    new: Documents, table: Sequence[Entry], old: Digest | None, old_documents: Documents | None
) -> bytes:
    """The stream up to the parts, which follow in the order of the table."""
    out = Writer()
    for document in _pack_documents(new):
        out.sized(document)
    out.varint(len(table))
    for entry in table:
        out.varint(entry.layer)
        out.u8(entry.kind)
        out.varint(entry.size)
    packer = zstandard.ZstdCompressor(
        level=LEVEL,
        dict_data=_dictionary(old_documents),
        write_content_size=False,
        write_checksum=False,
    )
    frame = packer.compress(out.getvalue())
    name = old.raw if old is not None else bytes(32)
    head = HEADER.pack(MAGIC, MAJOR, MINOR, HEADER.size, name, len(frame))
    return head + frame


class UpdateReader:
    """Reads a stream that comes in pieces of any size: `old`, then `read_documents`, then
    `read_parts`."""

    def __init__(self, stream: Iterable[bytes]) -> None:
        self._stream = _Stream(stream)
        raw = self._stream.take(HEADER.size)
        magic, major, minor, header_size, old, self._frame_size = HEADER.unpack(raw)
        if magic != MAGIC:
            raise FormatError("update: no magic")
        if major != MAJOR:
            raise VersionError(f"update: got major version {major}, want {MAJOR}", offset=4)
        if header_size < HEADER.size or (header_size > HEADER.size and minor == MINOR):
            raise FormatError(f"update: header size {header_size} is wrong", offset=6)
        if self._frame_size > MAX_FRAME_SIZE:
            raise FormatError(f"update: frame of {self._frame_size} bytes is too long", offset=40)
        self._stream.take(header_size - HEADER.size)
        self.old: Digest | None = Digest("sha256", old) if any(old) else None
        self.table: tuple[Entry, ...] = ()
        self._entry: Entry | None = None

    def read_documents(self, old_documents: Documents | None) -> Documents:
        """The wanted image's documents, with those of `old`; then `table` is known, too."""
        content = _unpack(self._stream.take(self._frame_size), _dictionary(old_documents))
        reader = Reader(content, "update")
        documents = _restore_documents([bytes(_sized(reader)) for _ in range(4)])
        self.table = _read_table(reader)
        reader.finish()
        return documents

    def read_parts(
        self, listen: Callable[[Entry], Callable[[memoryview], None] | None] = lambda entry: None
    ) -> Iterator[tuple[Entry, bytes]]:
        """Each part when it is there. `listen` may give who hears the pieces of a part as they
        come. Memory: one part."""
        for entry in self.table:
            self._entry = entry
            yield entry, self._stream.take(entry.size, listen(entry))
        self._stream.finish()

    def read_begun(self) -> tuple[Entry, bytes] | None:
        """What came of the last part, when the stream did not go on in `read_parts`."""
        return (self._entry, b"".join(self._stream.taken)) if self._entry is not None else None


class _Stream:
    """Exact sizes out of pieces. Nothing is allocated for what did not come."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")
        self._offset = 0
        self.taken: list[memoryview] = []  # of what is, or was last, being read

    def take(self, size: int, hear: Callable[[memoryview], None] | None = None) -> bytes:
        taken, left = list[memoryview](), size
        self.taken = taken
        while left:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise FormatError("update: ends early", offset=self._offset)
                self._rest = memoryview(piece)
            taken.append(self._rest[:left])
            left -= len(taken[-1])
            self._offset += len(taken[-1])
            self._rest = self._rest[len(taken[-1]) :]
            if hear is not None:
                hear(taken[-1])
        return b"".join(taken)

    def finish(self) -> None:
        if self._rest or any(self._pieces):
            raise FormatError("update: bytes follow the end", offset=self._offset)


def _sized(reader: Reader) -> memoryview:
    return reader.sized(MAX_DOCUMENT_SIZE, "document")


def _read_table(reader: Reader) -> tuple[Entry, ...]:
    """Rows in the order of layers; FormatError for a layer with parts that do not go together."""
    rows: list[Entry] = []
    left = MAX_UPDATE_SIZE
    for _ in range(reader.varint(MAX_PART_COUNT, "count of parts")):
        layer = reader.varint(MAX_LAYER_COUNT - 1, "layer")
        kind = reader.u8()
        size = reader.varint(left, "size of a part")
        left -= size
        before = rows[-1].kind if rows and rows[-1].layer == layer else 0
        if rows and rows[-1].layer > layer:
            raise reader.fail(f"layer {layer} comes late")
        if kind not in _FOLLOWERS.get(before, ()):
            raise reader.fail(f"kind {kind} behind kind {before} of the same layer")
        rows.append(Entry(layer, kind, size))
    return tuple(rows)


def check_documents(documents: Documents) -> None:
    """FormatError for those that no update can carry."""
    if max(map(len, _pack_documents(documents))) > MAX_DOCUMENT_SIZE:
        raise FormatError(f"update: a document is over {MAX_DOCUMENT_SIZE} bytes")


def _pack_documents(documents: Documents) -> list[bytes]:
    """Config, manifest, chunks artifact, and index if there is one, each without the digests that
    follow from those before it."""
    config, manifest = documents.config, documents.manifest or documents.top
    index = documents.top if documents.manifest else b""
    if any(mark in one for one in (config, manifest, documents.artifact, index) for mark in MARKS):
        raise FormatError("update: a document is no JSON text")
    names = _names(config, manifest)
    packed = [config, _replace(manifest, _names(config))]
    return [*packed, _replace(documents.artifact, names), _replace(index, names)]


def _restore_documents(packed: Sequence[bytes]) -> Documents:
    config, raw_manifest, raw_artifact, raw_index = packed
    manifest = _restore(raw_manifest, _names(config))
    names = _names(config, manifest)
    artifact, index = _restore(raw_artifact, names), _restore(raw_index, names)
    return Documents(index or manifest, manifest if index else b"", config, artifact)


def _names(*documents: bytes) -> list[tuple[bytes, bytes]]:
    """Marks, and the digests that they stand for."""
    return [
        (mark, sha256_digest(one).hex.encode()) for mark, one in zip(MARKS, documents, strict=False)
    ]


def _replace(document: bytes, names: Sequence[tuple[bytes, bytes]]) -> bytes:
    for mark, name in names:
        document = document.replace(name, mark)
    return document


def _restore(document: bytes, names: Sequence[tuple[bytes, bytes]]) -> bytes:
    size = len(document) + sum(document.count(mark) * (len(name) - 1) for mark, name in names)
    if size > MAX_DOCUMENT_SIZE:
        raise FormatError(f"update: document of {size} bytes is over the limit")
    return _replace(document, [(name, mark) for mark, name in names])


def _dictionary(documents: Documents | None) -> zstandard.ZstdCompressionDict | None:
    if documents is None:
        return None
    joined = b"".join(_pack_documents(documents)) + bytes(8)  # shorter ones are none to zstd
    return zstandard.ZstdCompressionDict(joined, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _unpack(raw: bytes, dictionary: zstandard.ZstdCompressionDict | None) -> bytes:
    """At most MAX_CONTENT_SIZE bytes, decompressed in small steps so that a bomb stops early: four
    bytes may stand for a block of 128 KiB, so a step makes 2 MiB at most."""
    unpacker = zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=MAX_WINDOW_SIZE
    ).decompressobj()
    out = bytearray()
    try:
        for start in range(0, len(raw), STEP):
            out += unpacker.decompress(raw[start : start + STEP])
            if len(out) > MAX_CONTENT_SIZE:
                raise FormatError(f"update: more than {MAX_CONTENT_SIZE} bytes of documents")
    except zstandard.ZstdError as exc:
        raise FormatError("update: not a zstd frame", offset=HEADER.size) from exc
    if not unpacker.eof or unpacker.unused_data:
        raise FormatError("update: the frame ends elsewhere", offset=HEADER.size)
    return bytes(out)
