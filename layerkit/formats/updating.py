"""Making and applying updates: which documents and which deltas take a node from one image to the
next. Pure: forms are read through a callback. The wire format is `formats.update`.

A node names images of the wanted repository and of others; `choose_olds` picks, by the chunks that
they share, the image whose documents the new ones are written against, and for each layer up to
MAX_OLD_FORMS forms, whichever images they are of.

What an update may change is only how bytes travel: every layer that comes out of it is checked
against the image's own diff_id, and every chunk manifest against the artifact's digest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.errors import FormatError, IntegrityError, VersionError
from layerkit.formats import delta, oci
from layerkit.formats.chunker import DEFAULT_PROFILE
from layerkit.formats.chunkmanifest import (
    ANNOTATION_CHUNKER,
    RAW,
    ROLE_CODES,
    ChunkManifest,
    build_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.layerform import ADDRESS_FREE, decode_layer, is_layer_form
from layerkit.formats.update import Update

__all__ = [
    "Documents",
    "NewLayer",
    "Olds",
    "apply_update",
    "check_form",
    "check_manifest",
    "choose_cover",
    "choose_olds",
    "documents_of",
    "make_update",
    "plain_of_form",
]

TRANSFORMS: Final = (RAW, ADDRESS_FREE)
GROWTH_LIMIT: Final = 64 << 20  # bytes beyond four times the old form: no update is larger
MAX_OLD_FORMS: Final = 3  # of one delta: the third halves it at best, the fourth says no more
MIN_SHARE: Final = 0.1  # of a form that one of another repository must share: else it is no kin
MIN_GAIN: Final = 0.01  # of a form that each further old form must add: it costs 0.8 s for 6 MB
OLD_FORMS_SIZE: Final = 128 << 20  # bytes that the second and third old form may bring it to
SMALL_SIZE: Final = 1 << 20  # bytes of a form that travels without any old one
Place = tuple[int, int]  # offset and size of a chunk in its form
ReadPlaces = Callable[[oci.Descriptor], Mapping[bytes, Place]]  # chunk manifest -> by raw id
ReadForm = Callable[[oci.Descriptor, oci.Descriptor], bytes]  # chunk manifest, form -> form
Part = tuple[oci.Descriptor, oci.Descriptor]  # chunk manifest, form


@dataclass(frozen=True, slots=True)
class Documents:
    """An image's documents as stored; `manifest` is empty when `top` is the manifest."""

    top: bytes
    manifest: bytes
    config: bytes
    artifact: bytes

    def as_list(self) -> list[bytes]:
        return [self.top, self.manifest, self.config, self.artifact]


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that an update brought: its form, its verified tar, its chunk manifest."""

    form: bytes
    plain: bytes
    chunk_manifest: ChunkManifest
    chunk_manifest_data: bytes


@dataclass(frozen=True, slots=True)
class _Layer:
    blob: oci.Descriptor
    diff_id: Digest
    chunk_manifest: oci.Descriptor | None
    form: oci.Descriptor | None

    @property
    def role(self) -> str:
        return self.blob.annotations.get(oci.ANNOTATION_ROLE, "")

    @property
    def part(self) -> Part | None:
        if self.chunk_manifest is None or self.form is None:
            return None
        return self.chunk_manifest, self.form


def documents_of(update: Update) -> Documents:
    """The new image's documents in an update."""
    return Documents(update.top, update.manifest, update.config, update.artifact)


@dataclass(frozen=True, slots=True)
class Olds:
    """What an update builds on: the image whose documents the node has (its place among those that
    were named), and for each layer that this image lacks the new and the old forms."""

    image: int
    layers: tuple[tuple[Part, tuple[Part, ...]], ...]


def choose_olds(
    olds: Sequence[Documents], own_count: int, new: Documents, read_places: ReadPlaces
) -> Olds | None:
    """Choose among images of which the first `own_count` are of the wanted repository. None when
    a layer has no old form that is near enough. It compares ids of chunks, which takes
    milliseconds, and makes no delta."""
    wanted = _layers(new)
    layers = [_layers(old) for old in olds]
    ids = [_sizes([part for layer in each if (part := layer.part)], read_places) for each in layers]
    whole = _sizes([part for layer in wanted if (part := layer.part)], read_places)
    shares = [_shared(whole, each) for each in ids]
    image = max(range(len(olds)), key=lambda at: (shares[at], -at), default=None)
    if image is None or (image >= own_count and shares[image] < MIN_SHARE * sum(whole.values())):
        image = 0 if own_count else None
    if image is None:
        return None
    held = {layer.diff_id for layer in layers[image]}
    parts = {part[1].digest: part for each in layers for layer in each if (part := layer.part)}
    chosen = []
    for layer in wanted:
        if layer.diff_id in held:
            continue
        if layer.part is None:
            return None
        kin = [old.part for old in layers[image] if old.part and old.role == layer.role]
        first = kin[0] if kin and image < own_count else None
        found = _choose_forms(layer.part, first, list(parts.values()), read_places)
        if found is None:
            return None
        chosen.append((layer.part, found))
    return Olds(image, tuple(chosen))


def _choose_forms(
    new: Part, kin: Part | None, parts: Sequence[Part], read_places: ReadPlaces
) -> tuple[Part, ...] | None:
    """Old forms that share most chunks with the new one, together. If none is near, the layer of
    that role in an image of the same repository; for a small one, nothing."""
    wanted = _sizes([new], read_places)
    held = [_sizes([part], read_places) for part in parts]
    found = tuple(parts[at] for at in choose_cover(wanted, held))
    if found:
        return found
    if kin is not None:
        return (kin,)
    return () if sum(size for _, size in read_places(new[0]).values()) <= SMALL_SIZE else None


def choose_cover(wanted: Mapping[bytes, int], held: Sequence[Mapping[bytes, int]]) -> list[int]:
    """Indexes of up to MAX_OLD_FORMS of `held`, chunk lists as id -> size, that hold most of what
    is wanted: each is the one that adds most to those before it."""
    whole = sum(wanted.values())
    left, total, chosen = dict(wanted), 0, list[int]()
    while len(chosen) < MAX_OLD_FORMS:
        rest = [at for at in range(len(held)) if at not in chosen]
        gains = {at: _shared(left, held[at]) for at in rest}
        best = max(rest, key=lambda at: (gains[at], -at), default=None)
        if best is None or gains[best] < (MIN_GAIN if chosen else MIN_SHARE) * max(1, whole):
            break
        total += sum(held[best].values())
        if chosen and total > OLD_FORMS_SIZE:
            break
        chosen.append(best)
        left = {raw: size for raw, size in left.items() if raw not in held[best]}
    return chosen


def _shared(wanted: Mapping[bytes, int], held: Mapping[bytes, int]) -> int:
    return sum(size for raw, size in wanted.items() if raw in held)


def _sizes(parts: Iterable[Part], read_places: ReadPlaces) -> dict[bytes, int]:
    """Ids of the chunks of these forms, and their sizes."""
    return {raw: size for part in parts for raw, (_, size) in read_places(part[0]).items()}


def make_update(
    olds: Olds, new: Documents, read_form: ReadForm, limit: float = 0.9
) -> Update | None:
    """The update to `new`; None when the deltas come to more than `limit` of the forms themselves,
    or a form is over the limits of deltas."""
    deltas, whole = [], 0
    for part, old in olds.layers:
        whole += part[1].size
        try:
            deltas.append(delta.diff([read_form(*one) for one in old], read_form(*part)))
        except FormatError:
            return None
    if deltas and sum(map(len, deltas)) > limit * whole:
        return None
    return Update(new.top, new.manifest, new.config, new.artifact, tuple(deltas))


def apply_update(
    update: Update,
    held: Iterable[ChunkManifest],
    find_form: Callable[[bytes], ChunkManifest | None],
    read_form: Callable[[ChunkManifest], bytes],
) -> list[NewLayer]:
    """The layers that the deltas make. `held` are chunk manifests of the old image; `find_form`
    knows those of all images that were named, by the digest of a form as deltas have it."""
    old_layers = {manifest.diff_id for manifest in held}
    layers = [layer for layer in _layers(documents_of(update)) if layer.diff_id not in old_layers]
    if len(layers) != len(update.deltas):
        raise FormatError(f"update: {len(update.deltas)} deltas for {len(layers)} layers")
    made = []
    for layer, one in zip(layers, update.deltas, strict=True):
        forms = []
        for digest in delta.read_digests(one)[0]:
            old = find_form(digest)
            if old is None:
                raise IntegrityError("update builds on a form that is not held", got=digest.hex())
            forms.append(read_form(old))
        form = delta.patch(forms, one, GROWTH_LIMIT + 4 * sum(map(len, forms)))
        made.append(check_form(form, layer.blob, layer.diff_id, layer.chunk_manifest))
    return made


def check_form(
    form: bytes, blob: oci.Descriptor, diff_id: Digest, listed: oci.Descriptor | None
) -> NewLayer:
    """The layer that a form gives, checked by its diff_id; its chunk manifest is made here, and
    must be the published one (`listed`)."""
    transform = ADDRESS_FREE if is_layer_form(form) else RAW
    plain = plain_of_form(transform, form, None)
    check_digest(plain, diff_id, f"layer {diff_id.short}")
    role = ROLE_CODES.get(blob.annotations.get(oci.ANNOTATION_ROLE, ""), 0)
    annotations = listed.annotations if listed is not None else {}
    profile = annotations.get(ANNOTATION_CHUNKER, DEFAULT_PROFILE)
    manifest = build_chunk_manifest(form, transform, diff_id, len(plain), role, profile)
    data = serialize_chunk_manifest(manifest)
    if listed is None or sha256_digest(data) != listed.digest:
        raise IntegrityError(
            f"chunk manifest of layer {diff_id.short} is not the published one",
            got=str(sha256_digest(data)),
            want=str(listed.digest if listed else ""),
        )
    return NewLayer(form, plain, manifest, data)


def plain_of_form(transform: str, form: bytes, plain_size: int | None) -> bytes:
    """The plain tar of a form, not verified yet."""
    if transform == ADDRESS_FREE:
        return decode_layer(form, plain_size)
    if transform != RAW:
        raise FormatError(f"transform {transform!r} is not known")
    return form


def _layers(documents: Documents) -> list[_Layer]:
    manifest = oci.parse_manifest(documents.manifest or documents.top)
    config = oci.parse_config(documents.config)
    if sha256_digest(documents.config) != manifest.config.digest:
        raise IntegrityError("update: config of another image")
    if len(config.diff_ids) != len(manifest.layers):
        raise FormatError("update: layers and diff_ids do not match")
    parts: dict[tuple[str, str], oci.Descriptor] = {}
    for part in oci.parse_manifest(documents.artifact).layers:
        parts.setdefault((part.media_type, part.annotations.get(oci.ANNOTATION_LAYER, "")), part)
    return [
        _Layer(
            blob,
            diff_id,
            parts.get((oci.CHUNK_MANIFEST, str(diff_id))),
            parts.get((oci.FORM_ZSTD, str(diff_id))),
        )
        for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    ]


def check_manifest(manifest: ChunkManifest, diff_id: Digest) -> None:
    """Raise unless the chunk manifest is of that layer and of a transform that is known."""
    if manifest.diff_id != diff_id:
        raise IntegrityError(
            f"chunk manifest of layer {diff_id.short} is of another layer",
            got=str(manifest.diff_id),
            want=str(diff_id),
        )
    if manifest.transform not in TRANSFORMS:
        raise VersionError(f"transform {manifest.transform!r} is not known")
