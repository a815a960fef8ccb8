"""What the store holds of images, in the shapes that updates are made of. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Store
from layerkit.errors import FormatError, IntegrityError, NotFoundError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import ChunkManifest, parse_chunk_manifest, parse_root
from layerkit.formats.chunksync import MAX_OLD_COUNT
from layerkit.formats.delta import DIGEST_SIZE
from layerkit.formats.reference import Reference
from layerkit.formats.update import MAX_HAVE_COUNT, Documents

__all__ = [
    "find_begun",
    "find_form",
    "find_layers",
    "list_held",
    "list_near",
    "list_proven",
    "list_versions",
    "read_chunk_manifests",
    "read_documents",
    "read_form",
]

MAX_OWN_COUNT: Final = 8  # images of the wanted repository that a node names; then others


def list_versions(store: Store, ref: Reference) -> list[Digest]:
    """Whole images of the reference's repository, the one it names first."""
    found = [store.find_image(str(ref))]
    for image in store.list_images():
        if image.complete and Reference.parse(image.ref).repository == ref.repository:
            found.append(image.digest)
    return list(dict.fromkeys(digest for digest in found if digest is not None))


def list_held(store: Store, ref: Reference) -> list[Digest]:
    """Whole images that an update to `ref` may build on, at most MAX_HAVE_COUNT: those of its own
    repository, the one it names first; then one of each other repository. When there are too many
    of these, those with the most chunks: they hold more of what functions have in common."""
    own = list_versions(store, ref)[:MAX_OWN_COUNT]
    others: dict[str, Digest] = {}
    for image in store.list_images():
        name = Reference.parse(image.ref).repository
        if image.complete and name != ref.repository:
            others[name] = image.digest
    found = [digest for digest in dict.fromkeys(others.values()) if digest not in own]
    left = MAX_HAVE_COUNT - len(own)
    found.sort(key=lambda digest: not _has_forms(store, digest))
    if len(found) > left:
        found.sort(key=lambda one: (not _has_forms(store, one), -_count_chunks(store, one), one))
    return own + found[:left]


def _has_forms(store: Store, top: Digest) -> bool:
    """Was the image pulled with its chunks artifact? Else only whole layers of it are of use."""
    return bool(store.list_blobs(top, ARTIFACT_KIND))


def _count_chunks(store: Store, top: Digest) -> int:
    count = 0
    for digest in store.list_blobs(top, CHUNK_MANIFEST_KIND):
        try:
            count += parse_root(store.get_blob(digest)).chunk_count
        except (FormatError, IntegrityError, NotFoundError):
            continue  # damaged: of no use here
    return count


def find_form(store: Store, images: Sequence[Digest], digest: bytes) -> ChunkManifest | None:
    """The chunk manifest, among those of `images`, of the form with this digest, cut as deltas have
    it; None if there is none."""
    for top in images:
        for listed in store.list_blobs(top, CHUNK_MANIFEST_KIND):
            raw = store.get_blob(listed)
            if parse_root(raw).form_digest.raw[:DIGEST_SIZE] == digest:
                return parse_chunk_manifest(raw)
    return None


def list_proven(store: Store, ref: Reference) -> set[Digest]:
    """Chunk manifests of whole images (`list_held`): they give the layers that they say."""
    return {
        digest
        for top in list_held(store, ref)
        for digest in store.list_blobs(top, CHUNK_MANIFEST_KIND)
    }


def find_layers(store: Store, ref: Reference, wanted: set[Digest]) -> dict[Digest, ChunkManifest]:
    """Chunk manifests held of layers with these diff_ids, from whole images: those of the
    reference's repository, then one of each other repository."""
    listed = (
        digest
        for top in list_held(store, ref)
        for digest in store.list_blobs(top, CHUNK_MANIFEST_KIND)
    )
    return _find_wanted(store, listed, wanted)


def find_begun(store: Store, wanted: set[Digest]) -> dict[Digest, ChunkManifest]:
    """Chunk manifests of layers with these diff_ids, whether or not an image was committed with
    them: what a pull that ended early left. Their chunks may be gone."""
    return _find_wanted(store, store.list_kind(CHUNK_MANIFEST_KIND), wanted)


def _find_wanted(
    store: Store, listed: Iterable[Digest], wanted: set[Digest]
) -> dict[Digest, ChunkManifest]:
    """The first of the chunk manifests `listed` for each wanted diff_id."""
    found: dict[Digest, ChunkManifest] = {}
    for digest in listed:
        if len(found) == len(wanted):
            break
        try:
            raw = store.get_blob(digest)
            diff_id = parse_root(raw).diff_id
            if diff_id in wanted and diff_id not in found:
                found[diff_id] = parse_chunk_manifest(raw)
        except (FormatError, IntegrityError, NotFoundError):
            continue  # damaged: of no use here
    return found


def read_documents(store: Store, top: Digest, platform: oci.Platform) -> Documents:
    """An image's documents as the server sees them, byte for byte, of an index those of that
    platform; an image that was pulled without its chunks artifact has none."""
    raw, manifest, image = store.get_blob(top), b"", top
    try:
        parsed = oci.parse_manifest(raw)
    except FormatError:
        children = oci.parse_index(raw).manifests
        found = [one.digest for one in children if one.platform == platform]
        if not found:
            raise NotFoundError(f"index {top.short} has no image for {platform}") from None
        image = found[0]
        manifest = store.get_blob(image)
        parsed = oci.parse_manifest(manifest)
    artifact = _find_artifact(store, top, image)
    return Documents(raw, manifest, store.get_blob(parsed.config.digest), artifact)


def _find_artifact(store: Store, top: Digest, image: Digest) -> bytes:
    """The chunks artifact of `image` that `top` was pulled with, or nothing."""
    for digest in store.list_blobs(top, ARTIFACT_KIND):
        raw = store.get_blob(digest)
        subject = oci.parse_manifest(raw).subject
        if subject is not None and subject.digest == image:
            return raw
    return b""


def list_near(store: Store, ref: Reference, role: int, profile: str) -> dict[Digest, bytes]:
    """Chunk manifests held of layers of that role and cut by that profile, as serialized: those of
    the reference's repository first."""
    first = [
        digest
        for image in list_versions(store, ref)
        for digest in store.list_blobs(image, CHUNK_MANIFEST_KIND)
    ]
    found = {}
    for digest in dict.fromkeys([*first, *store.list_kind(CHUNK_MANIFEST_KIND)]):
        try:
            raw = store.get_blob(digest)
            root = parse_root(raw)
        except (FormatError, IntegrityError, NotFoundError):
            continue  # of another version, or damaged: of no use here
        if root.role == role and root.profile == profile and root.chunk_count:
            found[digest] = raw
            if len(found) == MAX_OLD_COUNT:
                break
    return found


def read_chunk_manifests(store: Store, top: Digest) -> list[ChunkManifest]:
    """The chunk manifests that an image was committed with."""
    listed = store.list_blobs(top, CHUNK_MANIFEST_KIND)
    return [parse_chunk_manifest(store.get_blob(digest)) for digest in listed]


def read_form(store: Store, manifest: ChunkManifest) -> bytes:
    """A layer's form from its chunks, verified."""
    what = f"form of layer {manifest.diff_id.short} in the store"
    return store.get_all(manifest.list_raw_ids(), manifest.form_digest, what)
