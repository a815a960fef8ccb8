"""The golden vectors of forms, deltas, layer forms and updates: what each holds, field by field.

Bytes are written as in docs/format.md, by hand where they are few. The files in tests/vectors are
what `tests/vectors/regenerate.py` writes from here; encoders and decoders are tested against them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerkit.digest import raw_chunk_id, sha256_digest
from layerkit.formats import addressfree, delta, layerform, shelf, update
from layerkit.formats.addressfree import model, wire
from layerkit.formats.addressfree.model import Kind, Labels, Measure, Pattern, Region
from layerkit.formats.chunkmanifest import ChunkManifest
from layerkit.formats.cursor import Writer, zigzag
from layerkit.formats.sites import AMD64

FOLDER = Path(__file__).parent / "vectors"

Pieces = list[tuple[bytes, str]]


def varint(value: int) -> bytes:
    writer = Writer()
    writer.varint(value)
    return writer.getvalue()


@dataclass(frozen=True)
class Case:
    """A vector: where it lies, what a reader makes of it, and its bytes with a comment each."""

    path: str
    name: str
    spec: str
    pieces: Pieces
    expect: str = "success"

    @property
    def data(self) -> bytes:
        return b"".join(data for data, _ in self.pieces)

    @property
    def text(self) -> str:
        head = f'name: {self.name}\nspec: docs/format.md "{self.spec}"\nexpect: {self.expect}\n\n'
        return head + "".join(f"{data.hex()}  # {comment}\n" for data, comment in self.pieces)


def read_vector(path: str) -> bytes:
    text = (FOLDER / path).read_text().partition("\n\n")[2]
    return bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines()))


# --- a form by hand: one function, one string, an address word and a table that name both

TEXT, DATA = 0x1000, 0x2000
CODE = bytes.fromhex("0f1f4000 488d05")  # nop; lea rax, [rip + field]
STRING = b"an edited string"
STRING_ADDR = DATA + 8
FUNCTION_ID = 0x12345678  # explicit


def minimal_binary() -> bytes:
    """What the form stands for, with distances and addresses."""
    code = CODE + struct.pack("<i", STRING_ADDR - (TEXT + len(CODE) + 4)) + b"\xc3"
    data = struct.pack("<Q", STRING_ADDR) + STRING + bytes(8) + struct.pack("<Q", 11)
    return code.ljust(32, b"\xcc") + data


def minimal_labels() -> Labels:
    size = np.array([32, 0, 8, 16, 16, 0], np.int64)
    rule = [model.RULE_EXPLICIT, model.RULE_END, model.RULE_NONE, model.RULE_CONTENT]
    rule += [model.RULE_NONE, model.RULE_END]
    return Labels(
        (Region(TEXT, 0, 32, False, True), Region(DATA, 32, 40, True, False, 3)),
        (Kind(0, 0, 0, -1, -1, -1, False),),
        (Pattern(key=(2, 6)), Pattern(fixed=((0, 0),))),
        np.array([0, 0, 1, 1, 1, 1]),
        np.array([TEXT, TEXT + 32, DATA, DATA + 8, DATA + 24, DATA + 40]),
        size,
        np.array([0, 0, 0, 0, 1, 0]),
        np.array(rule, np.int64),
        np.array([FUNCTION_ID], np.uint32),
        machine=AMD64,
        measures=(Measure(1, 32, 8, 6, 5, 2, 1),),  # a quarter of the data's size, and 1
    )


def string_id() -> int:
    """The id that the string's content gives it."""
    file = np.frombuffer(minimal_binary(), np.uint8)
    return int(model.derive_ids(minimal_labels(), file, file)[3])


def _minimal() -> Pieces:
    name = string_id()
    labels: Pieces = [
        (bytes(4), "salt"),
        (b"\0", "machine: amd64"),
        (b"\2", "regions"),
        (b"\6\0\x80\x20\0", "code, in the file; space 0; address 0x1000; position 0"),
        (
            b"\x0d\3\x0c",
            "address words, in the file, address follows; space 3; the next multiple of 2^12",
        ),
        (b"\x20", "position 32"),
        (b"\1", "kinds"),
        (b"\0\0\0\0\0\0", "distance from region 0, no shift, no counter"),
        (
            b"\x0e\x0e" + b"\0\2\6\0\0\0\0" + b"\0\0\0\0\0\1\0",
            "patterns: plain, its key 6 bytes from 2 on; one fixed field",
        ),
        (b"\2\2\0\0", "fields: offset 0, kind 0"),
        (b"\2\2\2\4", "labels of each region"),
        (b"\x0c\x0c", "labels: size, pattern * 8 + rule"),
        (b"\x20\2", "the function: 32 bytes, explicit id"),
        (b"\0\6", "end of the code"),
        (b"\x08\5", "the address word: nothing refers to it"),
        (b"\x10\0", "the string: id by content"),
        (b"\x10\x0d", "the table: pattern 1, nothing refers to it"),
        (b"\0\6", "end of the data"),
        (b"\4" + struct.pack("<I", FUNCTION_ID), "explicit ids"),
        (b"\0\0", "no exceptions"),
        (
            b"\7\7" + b"\2\x20\x08\6\5\2\1",
            "measures: in region 1 at 32, 8 bytes, its end less its begin, by 4, plus 1",
        ),
    ]
    size = sum(len(data) for data, _ in labels)
    return [
        (b"LKAF", "magic"),
        (b"\1\0", "major, minor"),
        (b"\1", "kind: labels and body"),
        (bytes((size,)), "size of the labels"),
        *labels,
        (b"\x48", "size of the body"),
        (CODE, "nop; lea rax, [...]"),
        (struct.pack("<I", name), "the string's id, where the distance was"),
        (b"\xc3".ljust(21, b"\xcc"), "ret, padding"),
        (struct.pack("<II", name, model.TAG), "the string's id below the tag"),
        (STRING, "the string"),
        (struct.pack("<I", FUNCTION_ID) + bytes(4), "the table: the function's id"),
        (bytes(8), "the measure"),
    ]


# --- the others

OLD = b"The quick brown fox jumps over the lazy dog, again and again and again."
NEW = b"So the quick brown fox jumps over the lazy cat, again and again and again."
RAW_RUN, HELD = b"a run of a tar", b"not ELF"
OLD_IMAGE = sha256_digest(b"old image")
OLD_DOCUMENTS = update.Documents(
    b'{"manifest": "old"}', b"", b'{"config": "old"}', b'{"chunks": "old"}'
)
NEW_CONFIG = b'{"config": "new"}'
NEW_DOCUMENTS = update.Documents(
    b'{"manifest": "%s"}' % sha256_digest(NEW_CONFIG).hex.encode(),
    b"",
    NEW_CONFIG,
    b'{"chunks": "new"}',
)
UPDATE_PARTS = (
    update.Part(0, update.DELTA, b"a delta"),
    update.Part(2, update.LIST, b"a change"),
    update.Part(2, update.CHUNKS, b"chunks"),
)


LONG_OLD = bytes(range(256)) * 4
LONG_NEW = b"n" * 256 + LONG_OLD[300:812] + b"end"


def _delta(old: bytes, new: bytes, body: Pieces) -> Pieces:
    return [
        (delta.MAGIC, "magic"),
        (b"\1", "major"),
        (b"\1", "old forms"),
        (varint(len(old)), "its size"),
        (sha256_digest(old).raw[:16], "its SHA-256"),
        (varint(zigzag(len(new) - len(old))), "growth of the new form, zigzag"),
        (sha256_digest(new).raw[:16], "its SHA-256"),
        *body,
    ]


def _primed_delta() -> Pieces:
    body: Pieces = [
        (b"\0", "no covers: all is one gap, its dictionary the whole old form"),
        (b"\0", "no far runs"),
        (varint(121_109 << 3 | 1), "121,109 bytes of filler of kind 0; one chunk to the end"),
        (bytes.fromhex("299d8494d149e657b9292f07fca6016000"), "what it is packed to"),
    ]
    return _delta(OLD, NEW, body)


def _covered_delta() -> Pieces:
    gaps = LONG_NEW[:256] + LONG_NEW[-3:]
    body: Pieces = [
        (b"\1", "covers"),
        (b"\5", "a gap of two units before it; it is not where old would go on"),
        (varint(zigzag(300 - 256)), "but 44 bytes further"),
        (b"\4", "four units copied"),
        (b"\1", "far runs"),
        (b"\0\0", "no blocks before it, one block, which the old form's end cuts"),
        (b"\0", "no filler; a whole stream"),
        (b"\1" + (len(gaps) - 1).to_bytes(2, "big"), "a stored chunk and its size less one"),
        (gaps, "both gaps, end to end"),
        (b"\0", "end of the window"),
    ]
    return _delta(LONG_OLD, LONG_NEW, body)


def _layer_form() -> Pieces:
    return [
        (layerform.MAGIC, "magic"),
        (b"\0\0", "major, minor"),
        (b"\0", "a raw run"),
        (bytes((len(RAW_RUN),)) + RAW_RUN, "its bytes"),
        (b"\1", "a binary"),
        (bytes((len(HELD) + 9,)), "size of its form"),
        (wire.MAGIC + b"\1\0", "magic, major, minor"),
        (b"\0\0", "raw, no labels"),
        (bytes((len(HELD),)) + HELD, "the binary"),
    ]


def _update() -> Pieces:
    made = update.serialize_update(NEW_DOCUMENTS, UPDATE_PARTS, OLD_IMAGE, OLD_DOCUMENTS)
    size = int.from_bytes(made[40:44], "little")
    return [
        (update.MAGIC, "magic"),
        (b"\1\0", "major, minor"),
        (made[6:8], "header size"),
        (OLD_IMAGE.raw, "digest of the old image"),
        (made[40:44], "size of the frame"),
        (made[44 : 44 + size], "a zstd frame over the old documents: the new ones, the table"),
        *((part.data, "a part") for part in UPDATE_PARTS),
    ]


def _labels() -> Pieces:
    """Of the layer whose form is `_layer_form`."""
    raw = addressfree.encode(HELD).labels
    made = layerform.serialize_labels([len(RAW_RUN)], [raw])
    return [
        (layerform.LABELS_MAGIC, "magic"),
        (b"\0\0\x10\0", "major, minor, header size"),
        (bytes((len(raw) + 2,)) + bytes(7), "size of the frame's content"),
        (made[16:], "a zstd frame: the gap before the binary, the size of its labels blob, that"),
    ]


def _shelf_entry() -> Pieces:
    made = shelf.serialize_entry("a key", b"bytes")
    return [
        (b"LKSE", "magic"),
        (b"\0\0\x50\0", "major, minor, header size"),
        (raw_chunk_id(b"a key"), "BLAKE3 of the key"),
        (raw_chunk_id(b"bytes"), "BLAKE3 of the bytes"),
        (made[72:80], "their size"),
        (b"bytes", "the bytes"),
    ]


def _bundle() -> Pieces:
    index, blob = b'{"schemaVersion":2,"manifests":[]}', b"a blob"
    return [
        (b"LKBN", "magic"),
        (b"\1\0\x0c\0", "major, minor, header size"),
        (b"\2\0\0\0", "count of parts"),
        (sha256_digest(index).raw, "SHA-256 of the first part"),
        (bytes((len(index),)) + bytes(7), "its size"),
        (sha256_digest(blob).raw, "SHA-256 of the second part"),
        (bytes((len(blob),)) + bytes(7), "its size"),
        (index, "the first part: an OCI index"),
        (blob, "the second"),
    ]


PACKED_LIST = ChunkManifest(
    "raw", "cdc-v1", sha256_digest(b""), 5, sha256_digest(b""), 5, (1,) * 5,
    b"".join(raw_chunk_id(bytes((at,))) for at in range(5)),
)  # fmt: skip


def _chunk_pack_index() -> Pieces:
    return [
        (b"LKPX", "magic"),
        (b"\0\0\x10\0", "major, minor, header size"),
        (b"\4\0\0\0", "count of chunks"),
        (b"\2\0\0\0", "count of frames"),
        (b"\2", "count of stretches"),
        (bytes((zigzag(3), 2)), "places 3 and 4: the young ones"),
        (bytes((zigzag(-5), 2)), "places 0 and 1; 2 is the same chunk as another"),
        (b"\1\x09", "a frame of one chunk, 9 bytes"),
        (b"\3\x0b", "a frame of three, 11 bytes"),
    ]


def cases() -> Iterator[Case]:
    forms = (
        ("addressfree/minimal.txt", "a function, a string, two references", "Address-free form",
         _minimal(), 4),
        ("delta/primed.txt", "a near match", "Delta", _primed_delta(), 4),
        ("layerform/two-parts.txt", "a raw run and a binary", "Layer form", _layer_form(), 4),
        ("update/parts.txt", "documents and three parts", "Update", _update(), 4),
        ("labels/raw.txt", "the labels of a raw binary", "Labels of a layer", _labels(), 4),
        ("bundle/two-parts.txt", "an index and a blob", "Bundle", _bundle(), 4),
        ("chunkpack/index.txt", "four of five chunks", "Chunk pack", _chunk_pack_index(), 4),
        ("shelf/entry.txt", "five bytes under a key", "Shelf entry", _shelf_entry(), 4),
    )  # fmt: skip
    for path, name, spec, pieces, major_at in forms:
        case = Case(path, name, spec, pieces)
        yield case
        data = bytearray(case.data)
        data[major_at] += 1
        later = bytes((data[major_at],))
        bad = [(bytes(data[:major_at]), "magic"), (later, "a major that is not known")]
        bad.append((bytes(data[major_at + 1 :]), "the rest"))
        folder = path.partition("/")[0]
        yield Case(f"{folder}/unknown-major.txt", "a later major", spec, bad, "version error")
    yield Case("delta/one-cover.txt", "a copy between two gaps", "Delta", _covered_delta())
    raw = [(wire.MAGIC + b"\1\0", "magic, major, minor"), (b"\0\0", "raw, no labels"),
           (bytes((len(HELD),)) + HELD, "the binary")]  # fmt: skip
    yield Case("addressfree/raw.txt", "a file that is not ELF", "Address-free form", raw)
