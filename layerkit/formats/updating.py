"""Making and applying updates: which documents and which deltas take a node from one image to the
next. Pure: forms are read through a callback. The wire format is `formats.update`.

What an update may change is only how bytes travel: every layer that comes out of it is checked
against the image's own diff_id, and every chunk manifest against the artifact's digest of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    "apply_update",
    "check_form",
    "check_manifest",
    "documents_of",
    "make_update",
    "plain_of_form",
]

TRANSFORMS: Final = (RAW, ADDRESS_FREE)
GROWTH_LIMIT: Final = 64 << 20  # bytes beyond four times the old form: no update is larger
ReadForm = Callable[[oci.Descriptor, oci.Descriptor], bytes]  # chunk manifest, form -> form


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


def documents_of(update: Update) -> Documents:
    """The new image's documents in an update."""
    return Documents(update.top, update.manifest, update.config, update.artifact)


def make_update(
    old: Documents, new: Documents, read_form: ReadForm, limit: float = 0.9
) -> Update | None:
    """The update from `old` to `new`; None when a form is missing on either side, or the deltas
    come to more than `limit` of the forms themselves."""
    olds, deltas = _layers(old), []
    held = {layer.diff_id for layer in olds}
    whole = 0
    for layer in _layers(new):
        if layer.diff_id in held:
            continue
        before = next((o for o in olds if o.role == layer.role and o.form), None)
        if before is None or layer.form is None or layer.chunk_manifest is None:
            return None
        assert before.form is not None
        if before.chunk_manifest is None:
            return None
        old_form = read_form(before.chunk_manifest, before.form)
        deltas.append(delta.diff([old_form], read_form(layer.chunk_manifest, layer.form)))
        whole += layer.form.size
    if deltas and sum(map(len, deltas)) > limit * whole:
        return None
    return Update(new.top, new.manifest, new.config, new.artifact, tuple(deltas))


def apply_update(
    update: Update, held: Iterable[ChunkManifest], read_form: Callable[[ChunkManifest], bytes]
) -> list[NewLayer]:
    """The layers that the deltas make. `held` are chunk manifests of the old image."""
    old_forms = {m.form_digest.raw[: delta.DIGEST_SIZE]: m for m in held}
    old_layers = {manifest.diff_id for manifest in old_forms.values()}
    layers = [layer for layer in _layers(documents_of(update)) if layer.diff_id not in old_layers]
    if len(layers) != len(update.deltas):
        raise FormatError(f"update: {len(update.deltas)} deltas for {len(layers)} layers")
    made = []
    for layer, one in zip(layers, update.deltas, strict=True):
        olds, _, _ = delta.read_digests(one)
        if any(digest not in old_forms for digest in olds):
            raise IntegrityError("update builds on a form that is not held", want=olds[0].hex())
        forms = [read_form(old_forms[digest]) for digest in olds]
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
