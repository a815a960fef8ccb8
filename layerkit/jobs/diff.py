"""`layerkit diff OLD NEW`: what would travel to a node that has OLD, by method, section and role.

Moves nothing. Methods: **plain**, the layer blobs as any registry serves them; **whole**, the form
in one zstd frame as build publishes it; **chunks**, one batch of those that the node lacks;
**delta**, from the best of the old forms. A layer that both sides have travels by none of them.

Each section's and role's bytes are measured alone, compressed by themselves, so they do not add up
to the totals; a delta's header is counted in the total only. Chunk manifests are not counted (a few
per cent of the chunks), nor the image's documents beside a delta (about 300 bytes). Memory: both
versions whole, three times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from layerkit.digest import Digest, check_digest, chunk_id, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.subject import Subject
from layerkit.errors import FormatError
from layerkit.formats import addressfree, delta, oci
from layerkit.formats.addressfree.wire import MAGIC as FORM_MAGIC
from layerkit.formats.chunker import cut
from layerkit.formats.chunkmanifest import MAX_FORM_SIZE, ChunkManifest, parse_chunk_manifest
from layerkit.formats.deflate import DEFAULT_COMPRESSION, compress, compression_by_name, decompress
from layerkit.formats.elf import Elf, parse_elf
from layerkit.formats.gonames import ROLES, SHARED
from layerkit.formats.image import FORM_LEVEL
from layerkit.formats.layerform import PART_BINARY, encode_layer, is_layer_form
from layerkit.formats.protocol import pack_form, serialize_chunk_batch, unpack_form
from layerkit.formats.ranges import chunk_roles, one_role
from layerkit.formats.roles import (
    LayerRoles,
    binary_roles,
    form_roles,
    layer_parts,
    layer_roles,
)
from layerkit.formats.tar import FILE, read_tar

__all__ = [
    "FORMS",
    "HEAD",
    "OUTSIDE",
    "Difference",
    "Methods",
    "PartChange",
    "RoleChange",
    "Version",
    "compare_versions",
    "read_version",
]

Bytes8 = npt.NDArray[np.uint8]
Marks = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Bools = npt.NDArray[np.bool_]
HEAD = "(header, labels)"  # of the form: what is before the binary's own layout
OUTSIDE = "(outside sections)"  # file headers, section table, padding between sections


@dataclass(frozen=True, slots=True)
class Version:
    """One side: `layers` are plain tars, or the one binary; `binary` is what sections come from.
    `roles`, `blob_sizes` and `forms` go with `layers`: what an image's manifest says, and the forms
    that are published with it (empty bytes for none)."""

    name: str
    kind: str  # "binary", "form" or "image"
    digest: Digest
    layers: tuple[bytes, ...] = field(repr=False)
    binary: bytes = field(default=b"", repr=False)
    roles: tuple[str, ...] = ()
    blob_sizes: tuple[int, ...] = ()
    forms: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        return sum(map(len, self.layers))

    def role_of(self, index: int) -> int:
        """The role of a layer; what is no layer of layerkit's has none."""
        role = self.roles[index] if index < len(self.roles) else ""
        return ROLES.index(role) if role in ROLES else SHARED

    def blob_size(self, index: int) -> int:
        """The size of a layer's blob; a bare file's is that of a gzip of it."""
        if index < len(self.blob_sizes):
            return self.blob_sizes[index]
        return gzip_size(self.layers[index])

    def document(self) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": str(self.digest),
            "size": self.size,
            "binary_size": len(self.binary),
        }


def read_version(subject: Subject, platform: oci.Platform) -> Version:
    """Read one side whole: a file, or an image's layers as plain tars with their forms."""
    if subject.layout is None or subject.descriptor is None:
        return _read_file(subject.name, subject.raw)
    layout = subject.layout
    image = layout.select(subject.descriptor, platform)
    blobs = layout.read_manifest(image.digest).layers
    layers = tuple(
        decompress(layout.read_blob(layer.digest), layer.media_type, MAX_FORM_SIZE)
        for layer in blobs
    )
    roles = tuple(blob.annotations.get(oci.ANNOTATION_ROLE, "") for blob in blobs)
    sizes = tuple(blob.size for blob in blobs)
    binary = _find_binary(layers)
    forms = _published_forms(layout, image.digest)
    published = tuple(forms.get(sha256_digest(layer), b"") for layer in layers)
    return Version(subject.name, "image", image.digest, layers, binary, roles, sizes, published)


def _read_file(name: str, raw: bytes) -> Version:
    """A form counts as the form of its binary; any other file is taken for a binary."""
    digest = sha256_digest(raw)
    if raw.startswith(FORM_MAGIC):
        binary = addressfree.decode(raw)
        return Version(name, "form", digest, (binary,), binary, forms=(raw,))
    return Version(name, "binary", digest, (raw,), raw)


def _published_forms(layout: Layout, image: Digest) -> dict[Digest, bytes]:
    """Forms of an image's layers by diff_id, from its chunks artifact."""
    manifests: dict[str, ChunkManifest] = {}
    packed: dict[str, Digest] = {}
    for artifact in layout.referrers(image, oci.CHUNKS_ARTIFACT):
        for blob in layout.read_manifest(artifact.digest).layers:
            diff_id = blob.annotations.get(oci.ANNOTATION_LAYER, "")
            if blob.media_type == oci.CHUNK_MANIFEST:
                manifests[diff_id] = parse_chunk_manifest(layout.read_blob(blob.digest))
            elif blob.media_type == oci.FORM_ZSTD:
                packed[diff_id] = blob.digest
    found = {}
    for diff_id, manifest in manifests.items():
        if diff_id in packed:
            form = unpack_form(layout.read_blob(packed[diff_id]), manifest.form_size)
            check_digest(form, manifest.form_digest, f"form of layer {manifest.diff_id.short}")
            found[manifest.diff_id] = form
    return found


def _find_binary(layers: Sequence[bytes]) -> bytes:
    """The largest executable ELF file in the layers: a function's image has one."""
    found = b""
    for layer in layers:
        for entry in read_tar(layer):
            if entry.kind == FILE and entry.mode & 0o111 and len(entry.data) > len(found):
                data = bytes(entry.data)
                found = data if data.startswith(b"\x7fELF") else found
    return found


@dataclass(frozen=True, slots=True)
class Methods:
    """How bytes travel: `encode` makes a layer's form, `delta_size` measures a delta of forms."""

    encode: Callable[[bytes], bytes]
    delta_size: Callable[[Sequence[bytes], bytes], int]


def form_of(data: bytes) -> bytes:
    """The form of a layer's tar, or of a bare binary; what has none is its own."""
    if data.startswith(b"\x7fELF"):
        made = addressfree.encode(data)
        return data if made.why_raw else made.form
    layer = encode_layer(data)
    return layer.form if layer is not None else data


def smallest_delta(olds: Sequence[bytes], new: bytes) -> int:
    """Bytes of the delta from the best of the old forms."""
    return min(len(delta.diff([old], new)) for old in olds) if olds else len(delta.diff([], new))


FORMS = Methods(form_of, smallest_delta)


def gzip_size(data: bytes) -> int:
    """Bytes of `data` as a layer blob of the default compression."""
    return len(compress(data, compression_by_name(DEFAULT_COMPRESSION))) if data else 0


def zstd_size(data: bytes) -> int:
    """Bytes of a form, or a part of one, as build publishes it."""
    return len(pack_form(data, FORM_LEVEL)) if data else 0


@dataclass(frozen=True, slots=True)
class PartChange:
    """A section, or what one role owns: bytes of the binary on both sides, and what its part of new
    costs by each method, alone."""

    old_size: int
    new_size: int
    plain_size: int
    whole_size: int
    chunks_size: int
    delta_size: int

    def document(self) -> dict[str, object]:
        return {
            "old_size": self.old_size,
            "new_size": self.new_size,
            "plain": self.plain_size,
            "whole": self.whole_size,
            "chunks": self.chunks_size,
            "delta": self.delta_size,
        }


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What one role owns in all layers; how many of new's chunks are of it, and how many of those
    old has too."""

    change: PartChange
    chunk_count: int
    held_count: int

    def document(self) -> dict[str, object]:
        counts = {"chunk_count": self.chunk_count, "held_count": self.held_count}
        return self.change.document() | counts


@dataclass(frozen=True, slots=True)
class Difference:
    """What `layerkit diff` found."""

    old: Version
    new: Version
    plain_size: int
    whole_size: int
    chunks_size: int
    delta_size: int
    sections: dict[str, PartChange]
    roles: dict[str, RoleChange]

    def document(self) -> dict[str, object]:
        return {
            "old": self.old.document(),
            "new": self.new.document(),
            "bytes": {
                "plain": self.plain_size,
                "whole": self.whole_size,
                "chunks": self.chunks_size,
                "delta": self.delta_size,
            },
            "sections": {name: part.document() for name, part in self.sections.items()},
            "roles": {name: part.document() for name, part in self.roles.items()},
        }


def compare_versions(old: Version, new: Version, methods: Methods = FORMS) -> Difference:
    """Measure each method."""
    held_layers = {sha256_digest(layer) for layer in old.layers}
    before = [_make_layer(old, index, methods, set()) for index in range(len(old.layers))]
    held = {chunk_id(chunk) for layer in before for chunk in layer.chunks}
    after = [_make_layer(new, index, methods, held) for index in range(len(new.layers))]
    changed = [index for index, layer in enumerate(after) if layer.digest not in held_layers]
    travel = [after[index] for index in changed]
    # like the server: a delta starts from the old layer of the same role, where there is one
    wanted = {layer.role for layer in travel}
    near = [layer for layer in before if layer.role in wanted] or before

    def olds(layer: _Layer) -> list[bytes]:
        return [one.form for one in near if one.role == layer.role] or [one.form for one in before]

    return Difference(
        old,
        new,
        sum(new.blob_size(index) for index in changed),
        sum(zstd_size(layer.form) for layer in travel),
        _batch_size(held, [chunk for layer in travel for chunk in layer.chunks]),
        sum(methods.delta_size(olds(layer), layer.form) for layer in travel),
        _compare_sections(old.binary, new.binary, before, after, travel),
        _compare_roles(before, near, after, travel, held),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer with its form, the form's chunks, and which of the form's bytes are missing."""

    digest: Digest
    role: int
    plain: bytes
    form: bytes
    chunks: list[memoryview]
    missing: Bools
    roles: LayerRoles


def _make_layer(version: Version, index: int, methods: Methods, held: set[Digest]) -> _Layer:
    plain = version.layers[index]
    published = version.forms[index] if index < len(version.forms) else b""
    form = published or methods.encode(plain)
    view, chunks, missing, at = memoryview(form), [], np.zeros(len(form), bool), 0
    for size in cut(view):
        chunks.append(view[at : at + size])
        missing[at : at + size] = chunk_id(chunks[-1]) not in held
        at += size
    role = version.role_of(index)
    roles = _roles_of(form, plain, role)
    return _Layer(sha256_digest(plain), role, plain, form, chunks, missing, roles)


def _roles_of(form: bytes, plain: bytes, role: int) -> LayerRoles:
    """A bare binary by what is in it, a layer with its own role for the rest."""
    if is_layer_form(form):
        return layer_roles(form, role)
    try:
        ranges = binary_roles(plain)
        return LayerRoles(form_roles(len(form), ranges), ranges)
    except FormatError:
        return LayerRoles(one_role(len(form), role), one_role(len(plain), role))


def _batch_size(held: set[Digest], chunks: Sequence[memoryview]) -> int:
    """Size of the one chunk batch that a node with the chunks `held` asks for."""
    wanted: dict[Digest, memoryview] = {}
    for chunk in chunks:
        name = chunk_id(chunk)
        if name not in held:
            wanted.setdefault(name, chunk)
    if not wanted:
        return 0
    return sum(map(len, serialize_chunk_batch(wanted.values(), len(wanted))))


# --- by part: a mark says for each byte which part it belongs to


@dataclass(frozen=True, slots=True, eq=False)
class _Marked:
    """Bytes and their marks."""

    data: Bytes8
    marks: Marks

    def part(self, mark: int) -> bytes:
        return bytes(self.data[self.marks == mark])

    def size(self, mark: int) -> int:
        return int(np.count_nonzero(self.marks == mark))


def _mark(pieces: Sequence[tuple[bytes, Marks]]) -> _Marked:
    """Pieces end to end."""
    data = np.frombuffer(b"".join(piece for piece, _ in pieces), np.uint8)
    marks = [np.zeros(0, np.uint16), *(marks for _, marks in pieces)]
    return _Marked(data, np.concatenate(marks).astype(np.uint16))


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """Both sides, marked alike: whole, and what of new travels by each method."""

    old_plain: _Marked
    old_form: _Marked
    new_plain: _Marked
    plain: _Marked
    form: _Marked
    wanted: _Marked  # bytes of new's form in chunks that old lacks

    def measure(self, mark: int) -> PartChange:
        form = self.form.part(mark)
        return PartChange(
            self.old_plain.size(mark),
            self.new_plain.size(mark),
            gzip_size(self.plain.part(mark)),
            zstd_size(form),
            zstd_size(self.wanted.part(mark)),
            _delta_alone(self.old_form.part(mark), form) if form else 0,
        )


def _delta_alone(old: bytes, new: bytes) -> int:
    """What a delta says about this part, without the header that any delta has."""
    if old == new:
        return 0
    return max(1, len(delta.diff([old], new)) - len(delta.diff([b""], b"")))


def _compare_roles(
    before: Sequence[_Layer],
    near: Sequence[_Layer],
    after: Sequence[_Layer],
    travel: Sequence[_Layer],
    held: set[Digest],
) -> dict[str, RoleChange]:
    """Per role that owns anything on either side, the outermost last. Deltas are from `near`."""

    def plain(layers: Sequence[_Layer]) -> _Marked:
        return _mark([(layer.plain, layer.roles.plain.painted()) for layer in layers])

    def form(layers: Sequence[_Layer]) -> _Marked:
        return _mark([(layer.form, layer.roles.form.painted()) for layer in layers])

    moved = form(travel)
    missing = np.concatenate([np.zeros(0, bool), *(layer.missing for layer in travel)])
    wanted = _Marked(moved.data[missing], moved.marks[missing])
    parts = _Parts(plain(before), form(near), plain(after), plain(travel), moved, wanted)
    counts, held_counts = [0] * len(ROLES), [0] * len(ROLES)
    for layer in after:
        of_chunks = chunk_roles([len(chunk) for chunk in layer.chunks], layer.roles.form)
        for role, chunk in zip(of_chunks, layer.chunks, strict=True):
            counts[role] += 1
            held_counts[role] += chunk_id(chunk) in held
    changes = {}
    for role, name in enumerate(ROLES):
        change = parts.measure(role)
        if change.old_size or change.new_size or counts[role]:
            changes[name] = RoleChange(change, counts[role], held_counts[role])
    return changes


def _compare_sections(
    old: bytes,
    new: bytes,
    before: Sequence[_Layer],
    after: Sequence[_Layer],
    travel: Sequence[_Layer],
) -> dict[str, PartChange]:
    """Per section of the two binaries; {} if one of them is no ELF file."""
    marks: dict[str, int] = {}
    try:
        new_marks = _section_marks(parse_elf(new), marks)
        old_marks = _section_marks(parse_elf(old), marks)
    except FormatError:
        return {}
    _, old_form, _ = _find_form(before, old)
    home, form, at = _find_form(after, new)
    plain = _mark([(new, new_marks)])
    head = len(form) - len(new)
    moves = home in travel
    marked = _mark([(form, np.concatenate([np.full(head, marks[HEAD], np.uint16), new_marks]))])
    old_head = np.full(len(old_form) - len(old), marks[HEAD], np.uint16)
    missing = home.missing[at : at + len(form)]
    nothing = _mark([])
    parts = _Parts(
        _mark([(old, old_marks)]),
        _mark([(old_form, np.concatenate([old_head, old_marks]))]),
        plain,
        plain if moves else nothing,
        marked if moves else nothing,
        _Marked(marked.data[missing], marked.marks[missing]) if moves else nothing,
    )
    return {name: parts.measure(mark) for name, mark in marks.items()}


def _section_marks(elf: Elf, marks: dict[str, int]) -> Marks:
    """The section of each byte of the file; names get their marks in order of appearance."""
    marks.setdefault(HEAD, 0)
    marks.setdefault(OUTSIDE, 1)
    found = np.full(len(elf.data), marks[OUTSIDE], np.uint16)
    for section in elf.sections:
        if section.kind and section.in_file and section.size:
            mark = marks.setdefault(section.name, len(marks))
            found[section.offset : section.offset + section.size] = mark
    return found


def _find_form(layers: Sequence[_Layer], binary: bytes) -> tuple[_Layer, bytes, int]:
    """The layer that holds the binary, the binary's form there (itself, if it is raw), and where
    that form lies in the layer's. FormatError where there is none: another encoder's form."""
    for layer in layers:
        if layer.plain == binary:
            return layer, layer.form, 0
        if is_layer_form(layer.form):
            for kind, at, size in layer_parts(layer.form):
                part = layer.form[at : at + size]
                if kind == PART_BINARY and addressfree.decode(part) == binary:
                    return layer, part, at
        at = layer.form.find(binary)
        if at >= 0:
            return layer, binary, at
    raise FormatError("the binary is in none of the forms")
