"""`layerkit diff OLD NEW`: what would travel to a node that has OLD, by method and by section.

Moves nothing. Chunks are cut in forms and deltas are made between forms, as pull does it. Memory:
both versions whole. Bytes of chunk manifests are not counted (a few per cent of the chunks); nor
are the image's documents, which an update carries beside the delta (about 300 bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.subject import Subject
from layerkit.errors import FormatError
from layerkit.formats import addressfree, delta, oci
from layerkit.formats.chunker import cut
from layerkit.formats.chunkmanifest import MAX_FORM_SIZE
from layerkit.formats.deflate import decompress
from layerkit.formats.elf import Elf, parse_elf
from layerkit.formats.layer import FILE, read_tar
from layerkit.formats.layerform import encode_layer
from layerkit.formats.protocol import pack_form, serialize_chunk_batch

__all__ = [
    "FORMS",
    "Difference",
    "Methods",
    "SectionChange",
    "Version",
    "compare_versions",
    "read_version",
]

OUTSIDE = "(outside sections)"  # file headers, section table, padding between sections


@dataclass(frozen=True, slots=True)
class Version:
    """One side: `layers` are plain tars, or the one binary; `binary` is what sections come from."""

    name: str
    kind: str  # "binary" or "image"
    digest: Digest
    layers: tuple[bytes, ...]
    binary: bytes = b""

    @property
    def size(self) -> int:
        return sum(map(len, self.layers))

    def document(self) -> dict[str, object]:
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": str(self.digest),
            "size": self.size,
            "binary_size": len(self.binary),
        }


def read_version(subject: Subject, platform: oci.Platform) -> Version:
    """Read one side whole: a file as the binary, an image's layers as plain tars."""
    if subject.layout is None or subject.descriptor is None:
        return Version(
            subject.name, "binary", sha256_digest(subject.raw), (subject.raw,), subject.raw
        )
    layout = subject.layout
    image = layout.select(subject.descriptor, platform)
    layers = tuple(
        decompress(layout.read_blob(layer.digest), layer.media_type, MAX_FORM_SIZE)
        for layer in layout.read_manifest(image.digest).layers
    )
    return Version(subject.name, "image", image.digest, layers, _find_binary(layers))


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
        return made.form if made.labels else data
    layer = encode_layer(data)
    return layer.form if layer is not None else data


def smallest_delta(olds: Sequence[bytes], new: bytes) -> int:
    """Bytes of the delta from the best of the old forms."""
    return min(len(delta.diff([old], new)) for old in olds) if olds else len(delta.diff([], new))


FORMS = Methods(form_of, smallest_delta)


@dataclass(frozen=True, slots=True)
class SectionChange:
    """Bytes of one ELF section on both sides; `fetch_size` of new lie in chunks that old lacks."""

    old_size: int
    new_size: int
    fetch_size: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What `layerkit diff` found."""

    old: Version
    new: Version
    whole_size: int
    chunks_size: int
    delta_size: int
    sections: dict[str, SectionChange]

    def document(self) -> dict[str, object]:
        return {
            "old": self.old.document(),
            "new": self.new.document(),
            "bytes": {
                "whole_zstd19": self.whole_size,
                "chunks": self.chunks_size,
                "delta": self.delta_size,
            },
            "sections": {
                name: {
                    "old_size": change.old_size,
                    "new_size": change.new_size,
                    "fetch_size": change.fetch_size,
                }
                for name, change in self.sections.items()
            },
        }


def compare_versions(old: Version, new: Version, methods: Methods = FORMS) -> Difference:
    """Measure each method. A layer that both sides have travels by none of them."""
    held = {sha256_digest(layer) for layer in old.layers}
    changed = [layer for layer in new.layers if sha256_digest(layer) not in held]
    old_forms = [methods.encode(layer) for layer in old.layers]
    new_forms = [methods.encode(layer) for layer in changed]
    delta_size = sum(methods.delta_size(old_forms, form) for form in new_forms)
    return Difference(
        old,
        new,
        sum(len(pack_form(layer, 19)) for layer in changed),
        _batch_size(old_forms, new_forms),
        delta_size,
        compare_sections(old.binary, new.binary),
    )


def _batch_size(old_forms: Sequence[bytes], new_forms: Sequence[bytes]) -> int:
    """Size of the one chunk batch that a node with the chunks of `old_forms` asks for."""
    held = {chunk_id(chunk) for form in old_forms for _, chunk in _spans(form)}
    wanted: dict[Digest, memoryview] = {}
    for form in new_forms:
        for _, chunk in _spans(form):
            name = chunk_id(chunk)
            if name not in held:
                wanted.setdefault(name, chunk)
    if not wanted:
        return 0
    return sum(map(len, serialize_chunk_batch(wanted.values(), len(wanted))))


def _spans(form: bytes) -> list[tuple[int, memoryview]]:
    """Chunks of a form with their offsets."""
    view = memoryview(form)
    offset = 0
    found = []
    for size in cut(view):
        found.append((offset, view[offset : offset + size]))
        offset += size
    return found


def compare_sections(old: bytes, new: bytes) -> dict[str, SectionChange]:
    """Per section of two ELF files, in the order of new; {} if one of them is none."""
    try:
        old_elf, new_elf = parse_elf(old), parse_elf(new)
    except FormatError:
        return {}
    held = {chunk_id(chunk) for _, chunk in _spans(old)}
    missing = [
        (offset, offset + len(chunk))
        for offset, chunk in _spans(new)
        if chunk_id(chunk) not in held
    ]
    old_sizes, new_sizes = _section_sizes(old_elf), _section_sizes(new_elf)
    fetches = dict.fromkeys([*new_sizes, *old_sizes], 0)
    for section in new_elf.sections:
        if section.kind and section.in_file:
            end = section.offset + section.size
            for chunk_offset, chunk_end in missing:
                overlap = min(end, chunk_end) - max(section.offset, chunk_offset)
                fetches[section.name] += max(overlap, 0)
    outside = sum(end - offset for offset, end in missing) - sum(fetches.values())
    changes = {
        name: SectionChange(old_sizes.get(name, 0), new_sizes.get(name, 0), size)
        for name, size in fetches.items()
    }
    old_outside = len(old) - sum(s.size for s in old_elf.sections if s.kind and s.in_file)
    new_outside = len(new) - sum(s.size for s in new_elf.sections if s.kind and s.in_file)
    changes[OUTSIDE] = SectionChange(max(old_outside, 0), max(new_outside, 0), max(outside, 0))
    return changes


def _section_sizes(elf: Elf) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for section in elf.sections:
        if section.kind:
            sizes[section.name] = sizes.get(section.name, 0) + section.size
    return sizes
