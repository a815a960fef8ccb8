"""What is fuzzed: for each format a function that takes any bytes and fails only for a bug of ours.

A bug is an exception that is no FormatError (or IntegrityError, where digests are checked), a
result that is wrong, or more memory than the runner allows. `run_atheris.py` drives the targets by
coverage, `test_targets.py` with the kept corpus and with random damage to the seeds.

Many targets read the first byte of the input as a way to wrap the rest: bytes as they are die early
at a length or a digest, wrapped ones reach what lies behind it.
"""

from __future__ import annotations

import contextlib
import lzma
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import structure
import zstandard
from toy_go import AMD64, ARM64, toy_go

from layerkit.digest import raw_chunk_id, sha256_digest
from layerkit.errors import FormatError, IntegrityError
from layerkit.formats import (
    addressfree,
    bundle,
    chunkmanifest,
    chunkpack,
    chunksync,
    delta,
    formpack,
    kernel,
    layerform,
    notifications,
    signature,
    update,
)
from layerkit.formats.addressfree import model, rewriting, wire
from layerkit.formats.buildinfo import read_build_info
from layerkit.formats.chunkmanifest import build_chunk_manifest
from layerkit.formats.cursor import Writer
from layerkit.formats.elf import parse_elf, strip_symbols
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.reference import is_repository, is_tag
from layerkit.formats.roles import binary_roles

__all__ = ["CORPUS", "KNOWN_BUGS", "TARGETS", "Target", "corpus_of"]

CORPUS = Path(__file__).parent / "corpus"
HELLOS = (b"hello, world", b"hello, other and far wider world")
# Kept inputs that show a bug which is not mended yet, and what it is
KNOWN_BUGS: dict[str, str] = {}
SIZE_LIMIT = 1 << 16  # bytes of any result that an input of a few kilobytes may make here

Run = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """`run` raises only for a bug; `seeds` are valid inputs; inputs over `max_size` bytes are not
    tried."""

    run: Run
    seeds: Callable[[], list[bytes]]
    max_size: int

    @cached_property
    def kept_seeds(self) -> list[bytes]:
        return self.seeds()


def corpus_of(name: str) -> list[bytes]:
    """The kept inputs of a target, in the order of their names, but those of known bugs."""
    folder = CORPUS / name
    paths = sorted(folder.iterdir()) if folder.exists() else []
    return [path.read_bytes() for path in paths if f"{name}/{path.name}" not in KNOWN_BUGS]


@contextlib.contextmanager
def _without(module: object, name: str, instead: object) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, instead)
    try:
        yield
    finally:
        setattr(module, name, kept)


# --- forms and labels


@dataclass(frozen=True)
class _Toy:
    """A toy, its labels blob, and its form in parts."""

    binary: bytes
    blob: bytes
    form: bytes
    table: bytes
    body: bytes


def _toys() -> list[bytes]:
    return [toy_go(hello, machine) for machine in (AMD64, ARM64) for hello in HELLOS]


@cache
def _encoded() -> tuple[_Toy, ...]:
    found = []
    for toy in _toys():
        made = addressfree.encode(toy)
        assert not made.why_raw
        _, table, body = addressfree.wire.parse_form(made.form)
        found.append(_Toy(toy, made.labels, made.form, bytes(table), bytes(body)))
    return tuple(found)


def _container(labels: bytes, body: bytes) -> bytes:
    return addressfree.wire.serialize_form(addressfree.wire.KIND_GO, labels, body)


def _same_both_ways(call: Callable[[], bytes], limit: int) -> None:
    """With the kernel and without it: the same bytes, at most `limit`, or a FormatError twice."""
    results = []
    for library in (kernel._LIBRARY, None):
        with _without(kernel, "_LIBRARY", library):
            try:
                results.append(call())
            except FormatError:
                results.append(b"refused")
    assert results[0] == results[1], "kernel and reference differ"
    assert len(results[0]) <= limit


def _decode_both(form: bytes) -> None:
    _same_both_ways(lambda: addressfree.decode(form), len(form) + 8)


def run_form(data: bytes) -> None:
    """0: a form; else the lengths of labels and body are made to fit."""
    if data[:1] == b"\0":
        return _decode_both(data[1:])
    size = int.from_bytes(data[1:3], "little")
    return _decode_both(_container(data[3 : 3 + size], data[3 + size :]))


def seeds_form() -> list[bytes]:
    split = [
        b"\1" + len(one.table).to_bytes(2, "little") + one.table + one.body for one in _encoded()
    ]
    return [b"\0" + one.form for one in _encoded()] + split


def run_labels(data: bytes) -> None:
    """Labels over the body of a toy; what parses must serialize to what parses the same."""
    body = _encoded()[0].body
    try:
        labels, skip = wire.parse_labels(data, len(body))
    except FormatError:
        return
    again, _ = wire.parse_labels(wire.serialize_labels(labels, skip), len(body))
    assert again.regions == labels.regions and again.patterns == labels.patterns
    assert (again.start == labels.start).all() and again.kinds == labels.kinds
    _decode_both(_container(data, body))


def seeds_labels() -> list[bytes]:
    return [one.table for one in _encoded()]


def run_rebuild(data: bytes) -> None:
    """0: a labels blob for a toy; else a label table, which gets a blob without exceptions. What
    comes out is a form (who asks for it knows its digest), so it decodes or is refused."""
    toy = _encoded()[data[1] % len(_encoded()) if data[1:] else 0]
    blob = data[2:]
    if data[:1] != b"\0":
        none = np.zeros(0, np.int64)
        blob = wire.serialize_blob(blob, len(toy.binary), rewriting.Exceptions(none, none))
    limit = len(toy.binary) + len(blob) + 32
    _same_both_ways(lambda: addressfree.rebuild(toy.binary, blob), limit)
    with contextlib.suppress(FormatError):
        addressfree.decode(addressfree.rebuild(toy.binary, blob))


def seeds_rebuild() -> list[bytes]:
    return [
        bytes((way, index)) + (one.table if way else one.blob)
        for index, one in enumerate(_encoded())
        for way in (0, 1)
    ]


@cache
def _tables() -> list[tuple[model.Labels, model.Int64s]]:
    return [wire.parse_labels(one.table, len(one.body)) for one in _encoded()]


def run_label_table(data: bytes) -> None:
    """The first byte chooses a toy; the rest is damage to its label table (`structure`)."""
    index = data[0] % len(_encoded()) if data else 0
    toy, (labels, skip) = _encoded()[index], _tables()[index]
    try:
        made, body = structure.change(labels, skip, toy.body, data[1:])
    except (ValueError, LookupError, OverflowError, TypeError):
        return  # no such table can be written down
    _decode_both(_container(made, body))
    run_rebuild(b"\1" + data[:1] + made)


def seeds_label_table() -> list[bytes]:
    rng = random.Random(3)
    return [bytes((toy,)) + rng.randbytes(6 * rng.randrange(1, 5)) for toy in range(4)]


# --- binaries


def seeds_encode() -> list[bytes]:
    return [*_toys(), toy_go(symbols=True), toy_go(machine=ARM64, symbols=True)]


def run_encode(data: bytes) -> None:
    """Any bytes encode, and come back; with the hints of their symbols, too."""
    hints = None
    try:
        elf = parse_elf(data)
    except FormatError:
        pass
    else:
        with contextlib.suppress(FormatError):
            strip_symbols(elf)
        with contextlib.suppress(FormatError):
            hints = addressfree.read_hints(elf)
        with contextlib.suppress(FormatError):
            binary_roles(data)
        with contextlib.suppress(FormatError):
            read_build_info(elf)
    made = addressfree.encode(data, hints)
    assert addressfree.decode(made.form) == data


# --- deltas

_OLD = random.Random(1).randbytes(3000)
_NEW = _OLD[:700] + b"an edit" + _OLD[700:1500] + _OLD[100:900] + bytes(range(200))
_OTHER = random.Random(2).randbytes(1000)


def run_delta(data: bytes) -> None:
    """0: as it is: the form that it promises, or nothing; else with all digests taken as right."""
    olds = [_OLD] if data[1:2] != b"\2" else [_OLD, _OTHER]
    if data[:1] == b"\0":
        with contextlib.suppress(FormatError, IntegrityError):
            made = delta.patch(olds, data[2:], SIZE_LIMIT)
            promised = delta.read_digests(data[2:])[1]
            assert promised and sha256_digest(made).raw.startswith(promised), "a wrong form passes"
        return
    with (
        _without(delta, "_check", lambda *_: None),
        contextlib.suppress(FormatError, IntegrityError),
    ):
        assert len(delta.patch(olds, data[2:], SIZE_LIMIT)) <= SIZE_LIMIT


def seeds_delta() -> list[bytes]:
    one, two = delta.diff([_OLD], _NEW), delta.diff([_OLD, _OTHER], _NEW + _OTHER[:500])
    tiny = delta.diff([_OLD], _OLD[:100])
    return [b"\0\1" + one, b"\1\1" + one, b"\1\2" + two, b"\1\1" + tiny]


# --- chunk manifests


def run_chunk_manifest(data: bytes) -> None:
    """0: as it is; else the run table is made to fit the records."""
    raw = data[1:]
    if data[:1] != b"\0":
        raw = _with_runs(raw)
    with contextlib.suppress(FormatError):
        chunkmanifest.parse_root(raw)
    try:
        manifest = chunkmanifest.parse_chunk_manifest(raw)
    except FormatError:
        return
    header_size = int.from_bytes(raw[10:12], "little")
    if header_size == chunkmanifest.HEADER.size and raw[9] == chunkmanifest.MINOR:
        assert chunkmanifest.serialize_chunk_manifest(manifest) == raw
    assert chunkmanifest.parse_chunk_manifest(
        chunkmanifest.serialize_chunk_manifest(manifest)
    ) == manifest  # fmt: skip


def _with_runs(data: bytes) -> bytes:
    """A header and records, with the counts, run ids and sizes that belong to them."""
    head, size = chunkmanifest.HEADER.size, chunkmanifest.CHUNK.size
    header, records = bytearray(data[:head].ljust(head, b"\0")), data[head:]
    records = records[: len(records) // size * size]
    ids = b"".join(records[at + 4 : at + size] for at in range(0, len(records), size))
    rows, done = b"", 0
    for end in chunkmanifest._run_ends(ids):
        run = records[done * size : end * size]
        rows += chunkmanifest.RUN.pack(raw_chunk_id(run), end - done)
        done = end
    total = sum(struct.unpack_from("<I", records, at)[0] for at in range(0, len(records), size))
    struct.pack_into("<II", header, 12, len(records) // size, len(rows) // chunkmanifest.RUN.size)
    struct.pack_into("<Q", header, head - 8, total)
    return bytes(header) + rows + records


def seeds_chunk_manifest() -> list[bytes]:
    form, found = _OLD * 20, []
    for transform, plain_size in (("raw", len(form)), ("address-free", 5)):
        digest = sha256_digest(form if transform == "raw" else b"plain")
        made = chunkmanifest.build_chunk_manifest(form, transform, digest, plain_size, 1)
        raw = chunkmanifest.serialize_chunk_manifest(made)
        behind = chunkmanifest.HEADER.size + chunkmanifest.RUN.size * len(made.runs())
        found += [b"\0" + raw, b"\1" + raw[: chunkmanifest.HEADER.size] + raw[behind:]]
    return found


# --- chunk manifests and chunks on the wire


@cache
def _manifests() -> list[bytes]:
    found = []
    for form in (_OLD * 20, _OLD * 15 + _OTHER + _OLD * 7):
        digest = sha256_digest(form)
        made = chunkmanifest.build_chunk_manifest(form, "raw", digest, len(form), 1)
        found.append(chunkmanifest.serialize_chunk_manifest(made))
    return found


@cache
def _held_runs() -> dict[bytes, bytes]:
    return {run.id: run.data for run in chunkmanifest.parse_chunk_manifest(_manifests()[0]).runs()}


def run_chunk_sync(data: bytes) -> None:
    """By the first byte: what a node holds, places, a change, the content of a change."""
    way, raw = data[:1], data[1:]
    with contextlib.suppress(FormatError):
        if way == b"\0":
            chunksync.parse_have(raw)
        elif way == b"\1":
            places = chunksync.parse_places(raw, 1000)
            assert len(places) <= 1000
            assert chunksync.parse_places(chunksync.chunk_places(places), 1000) == places
        else:
            if way == b"\3":
                header = chunksync.HEADER
                head = header.pack(chunksync.MAGIC, 0, 0, header.size, len(raw), 0)
                raw = head + _frame(raw)
            held, wanted = _manifests()
            olds = [held for _ in chunksync.change_olds(raw) or []]
            for runs in ({}, _held_runs()):
                with contextlib.suppress(FormatError):
                    made = chunksync.parse_change(raw, olds, runs, len(wanted))
                    assert len(made) == len(wanted)


def seeds_chunk_sync() -> list[bytes]:
    held, wanted = _manifests()
    digest, short = sha256_digest(held), [chunksync.short_id(name) for name in _held_runs()]
    have = chunksync.Have((digest,), tuple(short))
    bare = chunksync.serialize_change(wanted, {}, short)
    return [
        b"\0" + chunksync.serialize_have(have),
        b"\1" + chunksync.chunk_places([0, 1, 2, 9, 10, 500]),
        b"\2" + chunksync.serialize_change(wanted, {digest: held}),
        b"\2" + bare,
        b"\2" + chunksync.nothing_known(),
        b"\3" + wanted,
    ]


# --- layer forms and updates


def run_layer_form(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        layerform.decode_layer(data, 1 << 20)


def seeds_layer_form() -> list[bytes]:
    tar = build_tar([Entry("app/x", toy_go().ljust(70_000, b"\0"), 0o755)])
    toy = _encoded()[0].form
    small = Writer()
    small.raw(layerform.MAGIC + bytes((layerform.MAJOR, layerform.MINOR)))
    for kind, part in ((layerform.PART_RAW, b"a run"), (layerform.PART_BINARY, toy)):
        small.u8(kind)
        small.sized(part)
    with _without(layerform, "MIN_BINARY_SIZE", 1 << 10):
        made = layerform.encode_layer(build_tar([Entry("app/x", toy_go(), 0o755)]))
    assert made is not None and len(tar) > len(made.form)
    return [small.getvalue(), made.form]


@cache
def _two_toys() -> bytes:
    """A tar with two binaries."""
    return build_tar([Entry(f"app/{at}", toy) for at, toy in enumerate(_toys()[:2])])


def run_layer_labels(data: bytes) -> None:
    """0: as it is; else the content of a frame."""
    raw = data[1:]
    if data[:1] != b"\0":
        facts = (layerform.MAJOR, layerform.MINOR, layerform.LABELS_HEADER.size, len(raw))
        packed = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(raw)
        raw = layerform.LABELS_HEADER.pack(layerform.LABELS_MAGIC, *facts) + packed

    def rebuild() -> bytes:
        return layerform.rebuild_layer(_two_toys(), raw)

    _same_both_ways(rebuild, SIZE_LIMIT)


def seeds_layer_labels() -> list[bytes]:
    with _without(layerform, "MIN_BINARY_SIZE", 1 << 10):
        made = layerform.encode_layer(_two_toys())
    assert made is not None and len(made.places) == 2
    raw = layerform.serialize_labels(made.places, made.labels)
    content = zstandard.ZstdDecompressor().decompress(raw[layerform.LABELS_HEADER.size :])
    assert layerform.rebuild_layer(_two_toys(), raw) == made.form
    return [b"\0" + raw, b"\1" + content]


_OLD_DOCUMENTS = update.Documents(b'{"old": 1}', b"", b'{"config": 1}', b'{"artifact": 1}')


def run_update(data: bytes) -> None:
    """0: as it is; else the content of the frame and, behind it, the parts: the size of the content
    is in the first two bytes."""
    raw = data[1:]
    if data[:1] != b"\0":
        size = int.from_bytes(data[1:3], "little")
        raw = _framed(data[3 : 3 + size]) + data[3 + size :]
    with contextlib.suppress(FormatError):
        documents, parts = _read_update(raw)
        again = update.serialize_update(documents, parts, None, None)
        assert _read_update(again, None) == (documents, parts)


def _read_update(
    raw: bytes, old: update.Documents | None = _OLD_DOCUMENTS
) -> tuple[update.Documents, list[update.Part]]:
    reader = update.UpdateReader([raw])
    documents = reader.read_documents(old)
    parts = [update.Part(row.layer, row.kind, part) for row, part in reader.read_parts()]
    return documents, parts


def _framed(content: bytes) -> bytes:
    """A header, and a frame that holds the content."""
    frame = _frame(content)
    header = update.HEADER.pack(
        update.MAGIC, update.MAJOR, update.MINOR, update.HEADER.size, bytes(32), len(frame)
    )
    return header + frame


def _frame(content: bytes) -> bytes:
    """Content as one block that is not compressed: RFC 8878, 3.1.1."""
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    return b"\x28\xb5\x2f\xfd\x00" + bytes(((17 - 10) << 3,)) + block


def seeds_update() -> list[bytes]:
    new = update.Documents(b'{"new": 1}', b"", b'{"config": 2}', b'{"artifact": 2}')
    parts = [
        update.Part(0, update.DELTA, b"a delta"),
        update.Part(1, update.LIST, b"a list"),
        update.Part(1, update.CHUNKS, b"chunks"),
    ]
    content = Writer()
    for document in (new.config, b'{"new": "\1"}', b'{"subject": "\2"}', b""):
        content.sized(document)
    content.varint(len(parts))
    for part in parts:
        content.varint(part.layer)
        content.u8(part.kind)
        content.varint(len(part.data))
    raw = update.serialize_update(new, parts, sha256_digest(b"old"), _OLD_DOCUMENTS)
    size = len(content).to_bytes(2, "little")
    tail = b"".join(part.data for part in parts)
    return [b"\0" + raw, b"\1" + size + content.getvalue() + tail]


def run_packed_form(data: bytes) -> None:
    """0: as it is; else the content behind a header that fits it: parts, binaries with numbers."""
    raw = data[3:]
    if data[:1] != b"\0":
        head = Writer()
        head.raw(formpack.MAGIC + bytes((formpack.MAJOR, formpack.MINOR, formpack.PARTS)))
        head.varint(int.from_bytes(data[1:3], "little"))
        head.varint(len(raw))
        packed = lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_FAST)
        raw = head.getvalue() + packed

    def unpack() -> bytes:
        return formpack.unpack(raw)

    _same_both_ways(unpack, SIZE_LIMIT)


# What the reader's filters understand, and quick to make
_FAST = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]


def seeds_packed_form() -> list[bytes]:
    found = []
    for form in seeds_layer_form():
        content = formpack._number(form)
        assert content is not None
        found += [
            b"\0\0\0" + formpack.pack(form),
            b"\1" + len(form).to_bytes(2, "little") + content,
        ]
    return found


# --- bundles and signatures


def run_bundle(data: bytes) -> None:
    """0: a file's size, then its head; else a file. What is parsed serializes to the same rows."""
    size = len(data)
    if data[:1] == b"\0":
        size, data = int.from_bytes(data[1:7], "little"), data[7:]
    with contextlib.suppress(FormatError):
        parts = bundle.parse_head(data, size)
        made = bundle.serialize_head([(part.digest, part.size) for part in parts])
        assert parts[-1].offset + parts[-1].size == size
        assert made[bundle.HEADER.size :] in data


def seeds_bundle() -> list[bytes]:
    listed = [(sha256_digest(bytes((at,))), at + 1) for at in range(3)]
    head = bundle.serialize_head(listed)
    size = len(head) + sum(size for _, size in listed)
    return [head + bytes(6), b"\0" + size.to_bytes(6, "little") + head]


def run_signature(data: bytes) -> None:
    """0: a sigstore bundle; 1: one around the statement that follows; 2: a simple signing."""
    kind, rest = data[:1], data[1:]
    with contextlib.suppress(FormatError):
        if kind == b"\1":
            claim = signature.parse_bundle(signature.make_bundle(rest, b"x", ""))
            assert claim.signed == signature.signed_bytes(rest)
        elif kind == b"\2":
            claim = signature.parse_simple(rest, "eA==")
            assert claim.signed == rest and len(claim.images) == 1
        else:
            claim = signature.parse_bundle(rest)
        assert all(image.algorithm == "sha256" for image in claim.images)


def seeds_signature() -> list[bytes]:
    image = sha256_digest(b"")
    statement = signature.make_statement(image)
    simple = (
        b'{"critical":{"identity":{"docker-reference":"a/b"},"image":{"docker-manifest-digest":'
    )
    simple += (
        b'"%s"},"type":"cosign container image signature"},"optional":null}' % str(image).encode()
    )
    return [
        b"\0" + signature.make_bundle(statement, b"signature", "key"),
        b"\1" + statement,
        b"\2" + simple,
    ]


_PACKED = build_chunk_manifest(
    bytes(range(256)) * 64, "raw", sha256_digest(bytes(range(256)) * 64), 1 << 14, 0
)


def run_chunk_pack(data: bytes) -> None:
    """0: an index; 1: a frame of all chunks."""
    with contextlib.suppress(FormatError, IntegrityError):
        if data[:1] == b"\0":
            index = chunkpack.parse_pack_index(data[1:], _PACKED)
            assert len(set(index.list_places())) == len(index.list_places())
        else:
            places = tuple(range(len(_PACKED.sizes)))
            list(chunkpack.read_frame(data[1:], chunkpack.Frame(0, len(data), places), _PACKED))


def seeds_chunk_pack() -> list[bytes]:
    index, pack = chunkpack.make_pack(bytes(range(256)) * 64, _PACKED)
    return [b"\0" + index, b"\1" + pack]


def run_notification(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        for pushed in notifications.parse_notification(data):
            assert is_repository(pushed.name) and is_tag(pushed.tag)


def seeds_notification() -> list[bytes]:
    """What real registries sent."""
    folder = CORPUS.parent.parent / "vectors" / "notifications"
    return [path.read_bytes() for path in sorted(folder.iterdir())]


TARGETS = {
    "chunk-pack": Target(run_chunk_pack, seeds_chunk_pack, 2048),
    "form": Target(run_form, seeds_form, 8192),
    "labels": Target(run_labels, seeds_labels, 2048),
    "rebuild": Target(run_rebuild, seeds_rebuild, 2048),
    "label-table": Target(run_label_table, seeds_label_table, 121),
    "encode": Target(run_encode, seeds_encode, 6144),
    "delta": Target(run_delta, seeds_delta, 2048),
    "chunk-manifest": Target(run_chunk_manifest, seeds_chunk_manifest, 4096),
    "chunk-sync": Target(run_chunk_sync, seeds_chunk_sync, 4096),
    "packed-form": Target(run_packed_form, seeds_packed_form, 8192),
    "layer-form": Target(run_layer_form, seeds_layer_form, 8192),
    "layer-labels": Target(run_layer_labels, seeds_layer_labels, 2048),
    "update": Target(run_update, seeds_update, 2048),
    "notification": Target(run_notification, seeds_notification, 2048),
    "bundle": Target(run_bundle, seeds_bundle, 2048),
    "signature": Target(run_signature, seeds_signature, 2048),
}
