"""Which update takes a node from the images that it holds to another: pure decisions.

A node names images of the wanted repository and of others. `choose_route` picks, by the chunks that
they share, the image whose documents the new ones are written against, and for each layer that none
of them has up to MAX_OLD_FORMS forms, whichever images they are of, that a delta builds on. The
wire format is `formats.update`, what a part of it holds `formats.updateparts`.

What an update may change is only how bytes travel: every layer that comes out of it is checked
against the image's own diff_id (`read_plain`), and every chunk manifest against the artifact's
digest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.errors import FormatError, IntegrityError, VersionError
from layerkit.formats import oci
from layerkit.formats.chunker import DEFAULT_PROFILE
from layerkit.formats.chunkmanifest import (
    ANNOTATION_CHUNKER,
    RAW,
    ROLE_CODES,
    ChunkManifest,
    build_chunk_manifest,
    cut_form,
    serialize_chunk_manifest,
)
from layerkit.formats.chunksync import MAX_OLD_COUNT
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.layerform import ADDRESS_FREE, decode_layer, decoded_size, is_layer_form
from layerkit.formats.lean import find_left_out
from layerkit.formats.update import MAX_LAYER_COUNT, Documents

__all__ = [
    "ImageLayer",
    "LayerRoute",
    "NewLayer",
    "Pair",
    "Place",
    "Route",
    "check_manifest",
    "choose_cover",
    "choose_route",
    "chunker_of",
    "estimate_chunks",
    "layers_of",
    "list_form",
    "plain_of_form",
    "read_plain",
]

TRANSFORMS: Final = (RAW, ADDRESS_FREE)
MAX_OLD_FORMS: Final = 3  # of one delta: the third halves it at best, the fourth says no more
MIN_SHARE: Final = 0.1  # of a form that one of another repository must share: else it is no kin
MIN_GAIN: Final = 0.01  # of a form that each further old form must add: it costs 0.8 s for 6 MB
OLD_FORMS_SIZE: Final = 128 << 20  # bytes that the second and third old form may bring it to
SMALL_SIZE: Final = 1 << 20  # bytes of a form that travels as a delta without any old one
LOOSE: Final = 1.15  # chunks compress this much worse than the whole form (measured)
CHUNK_COST: Final = (
    40  # bytes for each missing chunk: its id and size in the chunk manifest's change
)
Place = tuple[int, int]  # offset and size of a chunk in its form
ReadPlaces = Callable[[oci.Descriptor], Mapping[bytes, Place]]  # chunk manifest -> by raw id
_ReadSizes = Callable[[oci.Descriptor], Mapping[bytes, int]]  # chunk manifest -> raw id -> size
Pair = tuple[oci.Descriptor, oci.Descriptor]  # chunk manifest, form


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that came by its form: the form, its verified tar, its chunk manifest."""

    form: bytes
    plain: bytes
    chunk_manifest: ChunkManifest
    chunk_manifest_data: bytes


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """A layer of an image, by its documents."""

    index: int
    blob: oci.Descriptor
    diff_id: Digest
    chunk_manifest: oci.Descriptor | None
    form: oci.Descriptor | None
    packed: oci.Descriptor | None
    has_form_blob: bool = True  # False: it was left out, and can be made of the layer

    @property
    def role(self) -> str:
        return self.blob.annotations.get(oci.ANNOTATION_ROLE, "")

    @property
    def pair(self) -> Pair | None:
        if self.chunk_manifest is None or self.form is None:
            return None
        return self.chunk_manifest, self.form


@dataclass(frozen=True, slots=True)
class LayerRoute:
    """A layer that the node lacks: the forms that a delta builds on (None: no delta), and the
    chunk manifests of its images that share most with this one."""

    layer: ImageLayer
    olds: tuple[Pair, ...] | None
    near: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """What an update builds on: the image whose documents the new ones are written against (its
    place among those that were named), and a way for each layer that the node lacks."""

    image: int | None
    layers: tuple[ImageLayer, ...]  # all that the new image has
    lacking: tuple[LayerRoute, ...]
    held: tuple[Pair, ...]  # of all images that were named


def layers_of(documents: Documents) -> list[ImageLayer]:
    """The layers, and what the chunks artifact has of them."""
    manifest = oci.parse_manifest(documents.manifest or documents.top)
    config = oci.parse_config(documents.config)
    if sha256_digest(documents.config) != manifest.config.digest:
        raise IntegrityError("update: config of another image")
    if len(config.diff_ids) != len(manifest.layers) or len(config.diff_ids) > MAX_LAYER_COUNT:
        raise FormatError("update: layers and diff_ids do not match")
    parts: dict[tuple[str, str], oci.Descriptor] = {}
    if documents.artifact:
        for part in oci.parse_manifest(documents.artifact).layers:
            name = part.annotations.get(oci.ANNOTATION_LAYER, "")
            parts.setdefault((part.media_type, name), part)
    found = []
    for index, (blob, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True)):
        listed = parts.get((oci.CHUNK_MANIFEST, str(diff_id)))
        stored = parts.get((oci.FORM_ZSTD, str(diff_id)))
        form = stored or (find_left_out(listed) if listed is not None else None)
        packed = parts.get((PACKED_TYPE, str(diff_id)))
        found.append(ImageLayer(index, blob, diff_id, listed, form, packed, stored is not None))
    return found


def choose_route(
    olds: Sequence[Documents], own_count: int, new: Documents, read_places: ReadPlaces
) -> Route:
    """Choose among images of which the first `own_count` are of the wanted repository. It compares
    ids of chunks, which takes milliseconds, and makes no delta."""
    wanted = layers_of(new)
    layers = [layers_of(old) for old in olds]
    read = _remember(read_places)
    ids = [_sizes([pair for layer in each if (pair := layer.pair)], read) for each in layers]
    whole = _sizes([pair for layer in wanted if (pair := layer.pair)], read)
    shares = [_shared(whole, each) for each in ids]
    image = max(range(len(olds)), key=lambda at: (shares[at], -at), default=None)
    if image is not None and own_count and not shares[image]:
        image = 0
    held = {layer.diff_id for each in layers for layer in each}
    pairs = {pair[1].digest: pair for each in layers for layer in each if (pair := layer.pair)}
    lacking = []
    for layer in wanted:
        if layer.diff_id in held:
            continue
        if layer.pair is None:
            lacking.append(LayerRoute(layer, None, ()))
            continue
        kin = None
        if image is not None and image < own_count:
            same = (old.pair for old in layers[image] if old.pair and old.role == layer.role)
            kin = next(same, None)
        found = _choose_forms(layer.pair, kin, list(pairs.values()), read)
        near = _choose_near(layer.pair, list(pairs.values()), read)
        lacking.append(LayerRoute(layer, found, near))
    return Route(image, tuple(wanted), tuple(lacking), tuple(pairs.values()))


def _choose_forms(
    new: Pair, kin: Pair | None, pairs: Sequence[Pair], read: _ReadSizes
) -> tuple[Pair, ...] | None:
    """Old forms that share most chunks with the new one, together. If none is near, the layer of
    that role in an image of the same repository; for a small one, nothing."""
    wanted = read(new[0])
    held = [read(pair[0]) for pair in pairs]
    found = tuple(pairs[at] for at in choose_cover(wanted, held))
    if found:
        return found
    if kin is not None:
        return (kin,)
    return () if sum(wanted.values()) <= SMALL_SIZE else None


def _choose_near(new: Pair, pairs: Sequence[Pair], read: _ReadSizes) -> tuple[Pair, ...]:
    """Those whose chunk manifests have most in common with the new one, cut by the same profile."""
    wanted = read(new[0])
    profile = chunker_of(new[0])
    shares = [
        (_shared(wanted, read(pair[0])), pair) for pair in pairs if chunker_of(pair[0]) == profile
    ]
    shares.sort(key=lambda one: (-one[0], one[1][0].digest))
    return tuple(pair for share, pair in shares[:MAX_OLD_COUNT] if share)


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


def estimate_chunks(pair: Pair, known: Set[bytes], read_places: ReadPlaces) -> int:
    """About how many bytes the layer moves as the chunks that are not `known`."""
    wanted = _remember(read_places)(pair[0])
    whole = max(1, sum(wanted.values()))
    missing = [size for raw, size in wanted.items() if raw not in known]
    ratio = min(1.0, LOOSE * pair[1].size / whole)
    return int(sum(missing) * ratio) + CHUNK_COST * len(missing)


def _shared(wanted: Mapping[bytes, int], held: Mapping[bytes, int]) -> int:
    return sum(map(wanted.__getitem__, wanted.keys() & held.keys()))


def _remember(read_places: ReadPlaces) -> _ReadSizes:
    """The sizes of chunks by their ids, of each chunk manifest made once: most are asked for three
    times."""
    found: dict[Digest, dict[bytes, int]] = {}

    def read(listed: oci.Descriptor) -> Mapping[bytes, int]:
        sizes = found.get(listed.digest)
        if sizes is None:
            sizes = {raw: size for raw, (_, size) in read_places(listed).items()}
            found[listed.digest] = sizes
        return sizes

    return read


def _sizes(pairs: Iterable[Pair], read: _ReadSizes) -> Mapping[bytes, int]:
    """Ids of the chunks of these forms, and their sizes."""
    each = [read(listed) for listed, _ in pairs]
    if len(each) == 1:
        return each[0]
    joined: dict[bytes, int] = {}
    for sizes in each:
        joined.update(sizes)
    return joined


def read_plain(form: bytes, diff_id: Digest) -> bytes:
    """The tar of a form, checked by its diff_id."""
    plain = plain_of_form(_transform_of(form), form, None)
    check_digest(plain, diff_id, f"layer {diff_id.short}")
    return plain


def list_form(
    form: bytes,
    blob: oci.Descriptor,
    diff_id: Digest,
    listed: oci.Descriptor | None,
    near: Sequence[tuple[bytes, ChunkManifest]] = (),
) -> tuple[ChunkManifest, bytes]:
    """The chunk manifest of a form, made here (`near` as in `cut_form`), and as serialized: it must
    be the published one (`listed`). It does not prove that the form gives the layer: `read_plain`
    does."""
    transform = _transform_of(form)
    plain_size = decoded_size(form) if transform == ADDRESS_FREE else len(form)
    role = ROLE_CODES.get(blob.annotations.get(oci.ANNOTATION_ROLE, ""), 0)
    profile = chunker_of(listed)
    done = cut_form(form, profile, near)
    manifest = build_chunk_manifest(form, transform, diff_id, plain_size, role, profile, done)
    data = serialize_chunk_manifest(manifest)
    if listed is None or sha256_digest(data) != listed.digest:
        raise IntegrityError(
            f"chunk manifest of layer {diff_id.short} is not the published one",
            got=str(sha256_digest(data)),
            want=str(listed.digest if listed else ""),
        )
    return manifest, data


def _transform_of(form: bytes) -> str:
    return ADDRESS_FREE if is_layer_form(form) else RAW


def plain_of_form(transform: str, form: bytes, plain_size: int | None) -> bytes:
    """The plain tar of a form, not verified yet."""
    if transform == ADDRESS_FREE:
        return decode_layer(form, plain_size)
    if transform != RAW:
        raise FormatError(f"transform {transform!r} is not known")
    return form


def chunker_of(listed: oci.Descriptor | None) -> str:
    """The profile that a chunk manifest was cut with."""
    annotations = listed.annotations if listed is not None else {}
    return annotations.get(ANNOTATION_CHUNKER, DEFAULT_PROFILE)


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
