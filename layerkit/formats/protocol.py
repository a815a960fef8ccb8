"""The chunk server's surface as data: chunk batch, form blob, error document.

Pure. The batch parser streams: it holds one record and one step of decompression (at most
MAX_STEP_SIZE bytes), whatever a frame claims, so a zstd bomb ends as a FormatError after the
declared limit. Spec: docs/format.md "Chunk batch". Limits: MAX_REQUEST_COUNT, MAX_CHUNK_SIZE.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

from layerkit.digest import SIZE, Digest
from layerkit.errors import FormatError, VersionError
from layerkit.formats.chunkmanifest import MAX_FORM_SIZE
from layerkit.formats.cursor import Reader, Writer
from layerkit.formats.filled import join_bytes

__all__ = [
    "BATCH_TYPE",
    "ID_LIST_TYPE",
    "MAX_REQUEST_COUNT",
    "MAX_REQUEST_SIZE",
    "Problem",
    "pack_form",
    "parse_chunk_batch",
    "parse_chunk_request",
    "parse_errors",
    "serialize_chunk_batch",
    "serialize_chunk_request",
    "serialize_errors",
    "unpack_begun",
    "unpack_form",
]

BATCH_TYPE: Final = "application/vnd.layerkit.chunk-batch.v0+zstd"
ID_LIST_TYPE: Final = "application/vnd.layerkit.chunk-ids.v0"
MAGIC: Final = b"LKBATCH\0"
MAJOR: Final = 0
MINOR: Final = 0
MAX_REQUEST_COUNT: Final = 1 << 16  # ids a request: 2 MiB of body, about 64 MiB of answer
MAX_REQUEST_SIZE: Final = MAX_REQUEST_COUNT * SIZE
MISSING: Final = 0  # marks of a record
HELD: Final = 1
BATCH_LEVEL: Final = 9  # measured on a Go binary: 10 % larger than level 19, 18 times faster
DICTIONARY_WINDOW: Final = 24  # log2 bytes: twice the largest dictionary
FLUSH_SIZE: Final = 128 << 10  # bytes: a node can keep what came before a cut; one zstd block
MAX_WINDOW_SIZE: Final = 1 << 27  # bytes: memory of the decoder; frames that want more are refused
FEED_SIZE: Final = 256  # bytes a step: expands to at most 64 blocks of 128 KiB
MAX_STEP_SIZE: Final = FEED_SIZE // 4 * (128 << 10)
RECORD_OVERHEAD: Final = 11  # bytes: mark and varint
MAX_ERRORS_SIZE: Final = 64 << 10

# magic, major, minor, header size, record count
BATCH_HEADER: Final = struct.Struct("<8sBBHI")
assert BATCH_HEADER.size == 16


@dataclass(frozen=True, slots=True)
class Problem:
    """One entry of an error document."""

    code: str
    message: str
    detail: str = ""


def serialize_chunk_request(ids: Sequence[Digest]) -> bytes:
    """Concatenate the ids; at most MAX_REQUEST_COUNT."""
    if len(ids) > MAX_REQUEST_COUNT:
        raise FormatError(f"{len(ids)} ids in a chunk request, want <= {MAX_REQUEST_COUNT}")
    if any(chunk.algorithm != "b3" for chunk in ids):
        raise FormatError("a chunk request holds b3 ids only")
    return b"".join(chunk.raw for chunk in ids)


def parse_chunk_request(raw: bytes | memoryview) -> list[Digest]:
    """The ids that a node asks for, in its order."""
    if not len(raw) or len(raw) % SIZE or len(raw) > MAX_REQUEST_SIZE:
        raise FormatError(
            f"chunk request of {len(raw)} bytes is not 1..{MAX_REQUEST_COUNT} ids of {SIZE} bytes"
        )
    return [Digest("b3", bytes(raw[at : at + SIZE])) for at in range(0, len(raw), SIZE)]


def serialize_chunk_batch(
    chunks: Iterable[bytes | memoryview | None],
    count: int,
    level: int = BATCH_LEVEL,
    dictionary: bytes = b"",
) -> Iterator[bytes]:
    """The answer: one zstd frame, yielded as it grows. None stands for a chunk not held here.
    `dictionary` are bytes that the node holds, too (`chunksync.gone_chunks`)."""
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            level, window_log=DICTIONARY_WINDOW if dictionary else 0, write_checksum=False
        ),
        dict_data=_dictionary(dictionary),
    ).compressobj()
    out = Writer()
    out.raw(BATCH_HEADER.pack(MAGIC, MAJOR, MINOR, BATCH_HEADER.size, count))
    for chunk in chunks:
        if chunk is None:
            out.u8(MISSING)
        else:
            out.u8(HELD)
            out.sized(chunk)
        if len(out) >= FLUSH_SIZE:
            yield packer.compress(out.getvalue()) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            out = Writer()
    yield packer.compress(out.getvalue()) + packer.flush()


def parse_chunk_batch(
    parts: Iterable[bytes],
    sizes: Sequence[int],
    what: str = "chunk batch",
    dictionary: bytes = b"",
) -> Iterator[bytes | None]:
    """The chunks of an answer, in the order they were asked for; None where one is missing.

    `sizes` are those that the chunk manifest names. A chunk of another size is yielded as it is
    (its id will not match); all together may not exceed what was asked for. Memory: one step of
    decompression and one record.
    """
    limit = BATCH_HEADER.size + sum(sizes) + RECORD_OVERHEAD * len(sizes)
    stream = _Stream(_unpack_parts(parts, limit, what, dictionary), what)
    header = BATCH_HEADER.unpack(stream.take(BATCH_HEADER.size))
    magic, major, minor, header_size, count = header
    if magic != MAGIC:
        raise FormatError(f"{what}: magic is missing")
    if major != MAJOR:
        raise VersionError(f"{what}: version {major}.{minor} is not known", offset=8)
    if header_size < BATCH_HEADER.size or (header_size > BATCH_HEADER.size and minor == MINOR):
        raise FormatError(f"{what}: header size {header_size} is wrong", offset=10)
    stream.take(header_size - BATCH_HEADER.size)
    if count != len(sizes):
        raise FormatError(f"{what}: got {count} records, want {len(sizes)}", offset=12)
    for size in sizes:
        mark = stream.take(1)[0]
        if mark == MISSING:
            yield None
        elif mark == HELD:
            yield stream.sized(max(2 * size, 64))
        else:
            raise stream.fail(f"record mark {mark} is not known")
    stream.finish()


class _Stream:
    """Reads exact sizes from an iterator of byte strings."""

    def __init__(self, parts: Iterator[bytes], what: str) -> None:
        self._parts = parts
        self._buffer = b""
        self._at = 0
        self._offset = 0
        self._what = what

    def fail(self, why: str) -> FormatError:
        return FormatError(f"{self._what}: {why}", offset=self._offset)

    def take(self, size: int) -> bytes:
        while len(self._buffer) - self._at < size:
            part = next(self._parts, None)
            if part is None:
                raise self.fail("ends early")
            self._buffer = self._buffer[self._at :] + part
            self._at = 0
        self._at += size
        self._offset += size
        return self._buffer[self._at - size : self._at]

    def sized(self, limit: int) -> bytes:
        raw = bytearray()
        while not raw or raw[-1] >= 0x80:
            raw += self.take(1)
            if len(raw) > 5:
                raise self.fail("length of a chunk is too long")
        size = Reader(bytes(raw), self._what).varint(limit, "length of a chunk")
        if size == 0:
            raise self.fail("a chunk is empty")
        return self.take(size)

    def finish(self) -> None:
        if self._at < len(self._buffer) or any(self._parts):
            raise self.fail("bytes follow the end")


def _dictionary(data: bytes) -> zstandard.ZstdCompressionDict | None:
    if len(data) < 8:  # shorter ones are none to zstd
        return None
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _unpack_parts(
    parts: Iterable[bytes], limit: int, what: str, dictionary: bytes = b""
) -> Iterator[bytes]:
    """Decompress one zstd frame in bounded steps; at most `limit` bytes come out."""
    unpacker = zstandard.ZstdDecompressor(
        dict_data=_dictionary(dictionary), max_window_size=MAX_WINDOW_SIZE
    ).decompressobj()
    total = 0
    for part in parts:
        for start in range(0, len(part), FEED_SIZE):
            if unpacker.eof:
                raise FormatError(f"{what}: bytes follow the zstd frame", offset=total)
            try:
                out = unpacker.decompress(part[start : start + FEED_SIZE])
            except zstandard.ZstdError as exc:
                raise FormatError(f"{what}: not a zstd frame: {exc}", offset=total) from exc
            total += len(out)
            if total > limit:
                raise FormatError(f"{what}: over its limit of {limit} bytes", offset=total)
            if out:
                yield out
    if not unpacker.eof:
        raise FormatError(f"{what}: zstd frame ends early", offset=total)
    if unpacker.unused_data:
        raise FormatError(f"{what}: bytes follow the zstd frame", offset=total)


def pack_form(form: bytes | bytearray | memoryview, level: int = 19) -> bytes:
    """A form blob: one zstd frame with its content size, without a checksum."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(form)


def unpack_form(raw: bytes, form_size: int | None = None, limit: int = MAX_FORM_SIZE) -> bytes:
    """The form in a form blob; it must be exactly `form_size` bytes (checked before allocation),
    or those that its frame declares, at most `limit`."""
    try:
        declared = zstandard.frame_content_size(raw)
    except zstandard.ZstdError as exc:
        raise FormatError(f"form blob: not a zstd frame: {exc}") from exc
    form_size = declared if form_size is None else form_size
    if not 0 <= form_size <= min(limit, MAX_FORM_SIZE):
        raise FormatError(f"form blob: form size {form_size} is over its limit")
    if declared not in (-1, form_size):
        raise FormatError(f"form blob: frame holds {declared} bytes, want {form_size}")
    form = join_bytes(_unpack_parts((raw,), form_size, "form blob"))
    if len(form) != form_size:
        raise FormatError(f"form blob: got {len(form)} bytes, want {form_size}")
    return form


def unpack_begun(raw: bytes, limit: int) -> bytes:
    """What the beginning of a form blob gives of the form, about `limit` bytes at most."""
    form = bytearray()
    with contextlib.suppress(FormatError):  # that it ends early
        for part in _unpack_parts((raw,), limit, "form blob"):
            form += part
    return bytes(form)


def serialize_errors(problem: Problem) -> bytes:
    """An error document in the shape of the OCI distribution spec."""
    entry = {"code": problem.code, "message": problem.message, "detail": problem.detail}
    return json.dumps({"errors": [entry]}, separators=(",", ":")).encode()


def parse_errors(raw: bytes) -> list[Problem]:
    """The entries of an error document; FormatError if it is something else (an HTML page)."""
    if len(raw) > MAX_ERRORS_SIZE:
        raise FormatError(f"error document of {len(raw)} bytes is over its limit")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise FormatError("error document is not JSON") from exc
    entries = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FormatError("error document has no list of errors")
    return [
        Problem(*(str(entry.get(key) or "")[:1000] for key in ("code", "message", "detail")))
        for entry in entries[:16]
    ]
