"""What a hook makes for an image: chunks artifacts and updates from what its tag named before.

The image is whatever a tool pushed, one platform or several; neither it nor its tag is ever
changed, all that is pushed refers to it. What is there already is not made again, so the same job
may run twice, or in two hooks at once: both come to the same blobs. Layers that an older image has,
too, are taken from that one's artifact. An image that some part of cannot be read (a foreign layer,
a media type of tomorrow) is left as it is.

Memory: one layer's blob, tar and form (MAX_LAYER_SIZE each), some three times the largest binary,
and what `jobs/updating` says of deltas.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.storage.reading import read_was
from layerkit.edges.storage.targets import SENT, RegistryTarget
from layerkit.errors import FormatError, IntegrityError, NotFoundError, RemoteLimitError
from layerkit.formats.addressfree import Hints, read_hints
from layerkit.formats.deflate import decompress
from layerkit.formats.elf import parse_elf
from layerkit.formats.image import Blob, pack_chunks_manifest, pack_layer_chunks
from layerkit.formats.layer import ROLES
from layerkit.formats.layerform import find_binaries
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    ANNOTATION_ROLE,
    CHUNKS_ARTIFACT,
    CONFIG,
    DOCKER_CONFIG,
    EMPTY_BLOB,
    EMPTY_DESCRIPTOR,
    INDEX_TYPES,
    LAYER_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    WAS_ARTIFACT,
    Descriptor,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import Reference
from layerkit.jobs.updating.packs import put_packs
from layerkit.jobs.updating.stored import Image, find_stored, make_updates, put_update

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry

__all__ = ["Made", "make_for"]

MAX_LAYER_SIZE: Final = 1 << 30  # bytes of a layer's blob, and of its tar
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Made:
    """What was pushed beside an image; all 0 where everything was there, or it is no image."""

    chunks_count: int = 0  # chunks artifacts
    update_count: int = 0
    update_size: int = 0  # bytes of the updates' blobs
    pack_count: int = 0  # artifacts with packs of chunks
    sent_size: int = 0  # bytes of all blobs that were sent
    skipped: str = ""  # why nothing can be made of it
    unworthy: list[str] = field(default_factory=list)  # updates that were made for nothing


@dataclass(slots=True)
class _Repository:
    """The repository that is worked on, and layers whose parts are known."""

    registry: Registry
    target: RegistryTarget
    ref: Reference
    made: Made
    parts: dict[Digest, list[Descriptor]] = field(default_factory=dict)  # by diff_id

    @property
    def name(self) -> str:
        return self.ref.repository

    def read(self, item: Descriptor) -> bytes:
        """A manifest or index; verified."""
        return self.registry.read_manifest(self.name, str(item.digest))[1]

    def list_referrers(self, item: Descriptor, artifact_type: str) -> list[Descriptor]:
        from layerkit.edges.registry import list_referrers  # loads oras

        return list_referrers(self.registry, self.name, item.digest, artifact_type)

    def read_was(self, top: Descriptor) -> Digest | None:
        """What the tag named before `top`, as far as it was written down."""
        return read_was(self.list_referrers(top, WAS_ARTIFACT), f"{self.name}:{self.ref.tag}")

    def put(self, blob: Blob) -> None:
        item, data = blob.descriptor, blob.data
        became = self.target.put_blob(self.ref, item, lambda: io.BytesIO(data), ())
        if became == SENT:
            self.made.sent_size += item.size


class _NotMadeError(FormatError):
    """Nothing can be made of this image."""


def make_for(
    registry: Registry,
    ref: Reference,
    top: Digest,
    seen: Sequence[Digest],
    count: int,
    unworthy: Collection[str] = (),
) -> Made:
    """Chunks artifacts for the image (each image of the index) `top`, which the tag of `ref` was
    seen to name, and for the `count` that it named before: `seen`, newest first, then what the
    registry tells. Which one came before is written down; updates from these are made if the tag
    still names `top`, but for those of `unworthy`, as `Made` told them before.

    Raises RemoteError and its kin as the registry fails; what is gone is left out.
    """
    made = Made()
    work = _Repository(registry, RegistryTarget(registry), ref, made)
    new = registry.resolve(work.name, str(top))
    if new is None:
        made.skipped = "it is gone"
        return made
    olds = _find_olds(work, new, seen, count)
    for old in reversed(olds):
        try:
            _add_chunks(work, old)
        except (_NotMadeError, IntegrityError, NotFoundError, RemoteLimitError) as exc:
            _log.info("no chunks of %s before %s: %s", old.digest.short, ref, exc.message)
            olds.remove(old)
    try:
        _add_chunks(work, new)
    except _NotMadeError as exc:
        made.skipped = exc.message
        return made
    if olds and work.read_was(new) is None:
        work.target.put_was(ref, new, olds[0])
    now = registry.resolve(work.name, ref.tag)
    if now is not None and now.digest == top:
        _add_updates(work, new, olds, unworthy)
        _add_packs(work, new, olds)
    return made


def _find_olds(
    work: _Repository, new: Descriptor, seen: Sequence[Digest], count: int
) -> list[Descriptor]:
    """Images that the tag named before `new`, the newest first, of those that are still there: what
    was seen, then what the registry tells of the last of these."""
    found: dict[Digest, Descriptor] = {new.digest: new}
    for digest in seen:
        if len(found) > count:
            break
        old = work.registry.resolve(work.name, str(digest))
        if old is not None:
            found.setdefault(old.digest, old)
    last: Descriptor | None = next(reversed(found.values()))
    while last is not None and len(found) <= count:
        told = work.read_was(last)
        last = work.registry.resolve(work.name, str(told)) if told and told not in found else None
        if last is not None:
            found[last.digest] = last
    return list(found.values())[1:]


# --- chunks artifacts ----------------------------------------------------------------------------


def _add_chunks(work: _Repository, top: Descriptor) -> None:
    """A chunks artifact for each image that `top` is or lists, where there is none."""
    images = [top]
    if top.media_type in INDEX_TYPES:
        images = [
            entry
            for entry in parse_index(work.read(top)).manifests
            if entry.media_type in MANIFEST_TYPES
            and not (entry.platform and entry.platform.os == "unknown")  # attestations
        ]
    if not images:
        raise _NotMadeError(f"index {top.digest.short} has no image")
    for entry in images:
        _add_artifact(work, entry)


def _add_artifact(work: _Repository, entry: Descriptor) -> None:
    manifest = parse_manifest(work.read(entry))
    diff_ids = _read_diff_ids(work, entry, manifest)
    if _learn_parts(work, entry, diff_ids):
        return
    listed: dict[Digest, Descriptor] = {}
    for blob, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if diff_id not in work.parts:
            work.parts[diff_id] = _make_parts(work, blob, diff_id)
        listed |= {part.digest: part for part in work.parts[diff_id]}
    artifact = pack_chunks_manifest(entry, list(listed.values()))
    work.put(Blob(EMPTY_DESCRIPTOR, EMPTY_BLOB))
    work.target.put_manifest(work.ref, artifact.descriptor, artifact.data)
    work.made.chunks_count += 1


def _read_diff_ids(work: _Repository, entry: Descriptor, manifest: Manifest) -> tuple[Digest, ...]:
    """Of an image whose layers can be read."""
    if manifest.artifact_type or manifest.config.media_type not in (CONFIG, DOCKER_CONFIG):
        raise _NotMadeError(f"{entry.digest.short} is no image")
    for blob in manifest.layers:
        if blob.media_type not in LAYER_TYPES:
            raise _NotMadeError(f"layer {blob.digest.short} is {blob.media_type[:80]!r}")
        if blob.size > MAX_LAYER_SIZE:
            raise _NotMadeError(f"layer {blob.digest.short} has over {MAX_LAYER_SIZE} bytes")
    config = manifest.config
    diff_ids = parse_config(
        work.registry.read_blob(work.name, config.digest, MAX_DOCUMENT_SIZE)
    ).diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise _NotMadeError(f"{entry.digest.short} has {len(diff_ids)} diff_ids")
    return diff_ids


def _learn_parts(work: _Repository, entry: Descriptor, diff_ids: Iterable[Digest]) -> bool:
    """Take what artifacts of the image list. Do they have all of its layers?"""
    for listed in work.list_referrers(entry, CHUNKS_ARTIFACT):
        artifact = parse_manifest(work.read(listed))
        subject = artifact.subject
        if artifact.artifact_type != CHUNKS_ARTIFACT or subject is None:
            continue
        if subject.digest != entry.digest:  # lists are written by whoever may push
            continue
        found: dict[str, list[Descriptor]] = {}
        for part in artifact.layers:
            found.setdefault(part.annotations.get(ANNOTATION_LAYER, ""), []).append(part)
        known = {diff_id: found[str(diff_id)] for diff_id in diff_ids if str(diff_id) in found}
        work.parts = known | work.parts
        if len(known) == len(set(diff_ids)):
            return True
    return False


def _make_parts(work: _Repository, blob: Descriptor, diff_id: Digest) -> list[Descriptor]:
    """Make and send what an artifact holds of one layer."""
    raw = b"".join(work.registry.read_parts(work.name, blob.digest, blob.size))
    tar = decompress(raw, blob.media_type, MAX_LAYER_SIZE)
    del raw
    check_digest(tar, diff_id, f"layer {diff_id.short}")
    role = blob.annotations.get(ANNOTATION_ROLE, "")  # nodes take it from there, too
    role = role if role in ROLES else ""
    parts = pack_layer_chunks(tar, diff_id, role, _read_symbols(tar))
    del tar
    for part in parts:
        work.put(part)
    return [part.descriptor for part in parts]


def _read_symbols(tar: bytes) -> dict[Digest, Hints]:
    """What the symbols of the binaries in a layer say, of those that were not stripped."""
    found = {}
    for at, size in find_binaries(tar):
        binary = tar[at : at + size]
        with contextlib.suppress(FormatError):
            found[sha256_digest(binary)] = read_hints(parse_elf(binary))
    return found


# --- updates -------------------------------------------------------------------------------------


def _add_updates(
    work: _Repository, new: Descriptor, olds: Sequence[Descriptor], unworthy: Collection[str]
) -> None:
    """Those that are not there."""
    reader, image = work.target.reader, Image(work.name, new)
    known = find_stored(reader, image)
    wanted = [Image(work.name, old) for old in olds]
    found = set(unworthy)
    for one in make_updates([reader], image, wanted, known, warn=_log.info, unworthy=found):
        work.target.put_manifest(work.ref, *put_update(work.target, work.ref, new, one))
        work.made.update_count += 1
        work.made.update_size += len(one.raw)
        work.made.sent_size += len(one.raw)
    work.made.unworthy = sorted(found.difference(unworthy))


def _add_packs(work: _Repository, new: Descriptor, olds: Sequence[Descriptor]) -> None:
    """Packs of the chunks of each image that has none, in the order of the version before."""
    readers, image = [work.target.reader], Image(work.name, new)
    before = Image(work.name, olds[0]) if olds else None
    for document in put_packs(readers, work.target, work.ref, image, before):
        work.target.put_manifest(work.ref, *document)
        work.made.pack_count += 1
