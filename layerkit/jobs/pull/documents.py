"""The documents of the image that a reference names: index, manifest, config, and the chunk
manifests beside it; from the store, else from the server. What was read is kept for the commit.

It moves no layers (`fetching`) and writes nothing.
"""

from __future__ import annotations

import logging
import platform as host
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Store
from layerkit.edges.upstream import Upstream
from layerkit.errors import FormatError, IntegrityError, NotFoundError, RemoteError
from layerkit.formats import oci
from layerkit.formats.chunker import DEFAULT_PROFILE
from layerkit.formats.chunkmanifest import (
    ANNOTATION_CHUNKER,
    ROLE_CODES,
    ChunkManifest,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.chunkpack import PACK_INDEX_TYPE, PACK_TYPE
from layerkit.formats.chunksync import MAX_RUN_COUNT, Have, change_olds, parse_change, short_id
from layerkit.formats.formpack import ANNOTATION_PACKED, PACKED_TYPE
from layerkit.formats.layerform import LABELS_TYPE
from layerkit.formats.plan import LayerWant
from layerkit.formats.reference import Reference
from layerkit.formats.updating import check_manifest
from layerkit.jobs.pull.packs import MIN_PARTED_SIZE, read_chunk_manifest

__all__ = ["REFUSED", "Check", "WantedImage", "host_platform"]

CHANGE_OVERHEAD: Final = 4096  # bytes of a change beyond the chunk manifest itself
MAX_INDEX_SIZE: Final = 16 << 20  # bytes of a chunk pack's index
REFUSED: Final = (FormatError, IntegrityError, NotFoundError)  # of what only helps to move bytes
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_log = logging.getLogger(__name__)
Check = Callable[["WantedImage"], None]  # raises unless the image `top` may be used


def host_platform() -> oci.Platform:
    """Linux on this machine's processor."""
    return oci.Platform("linux", _MACHINES.get(host.machine(), host.machine().lower()))


@dataclass(slots=True)
class WantedImage:
    """What a reference names, read step by step."""

    ref: Reference
    remote: Upstream
    store: Store
    platform: oci.Platform
    up_to_date: bool = False
    top: Digest = field(default_factory=lambda: oci.EMPTY_DESCRIPTOR.digest)
    image: oci.Descriptor = oci.EMPTY_DESCRIPTOR
    artifact: oci.Manifest | None = None
    packs: oci.Manifest | None = None
    near: dict[Digest, dict[Digest, bytes]] = field(default_factory=dict)  # by diff_id
    blobs: dict[Digest, tuple[bytes, str]] = field(default_factory=dict)  # to commit: data, kind
    layers: dict[Digest, ChunkManifest] = field(default_factory=dict)  # made or found, by diff_id
    packed_here: frozenset[str] = frozenset()  # form blobs that the server has packed
    has_artifact: bool = True  # False: an update said that there is none
    is_begun: bool = False  # chunks of it are in the store, whether or not others are near
    check: Check | None = None
    _manifest: oci.Manifest | None = None

    @property
    def manifest(self) -> oci.Manifest:
        assert self._manifest is not None
        return self._manifest

    @property
    def ref_text(self) -> str:
        """The tag, or the digest that the reference pins."""
        return str(self.ref.digest) if self.ref.digest is not None else self.ref.tag

    def resolve(self) -> None:
        """Find the image manifest; up to date if the store holds it whole."""
        if self._manifest is not None:
            return
        known = self.store.find_image(str(self.ref))
        if self.ref.digest is not None and self.store.is_complete(self.ref.digest):
            known = self.ref.digest
            found = None
        else:
            found = self.remote.resolve(self.ref.repository, self.ref_text, known)
        if found is not None:
            self.top, data = found.digest, found.data
            self.blobs[self.top] = (data, "")
        elif known is not None:
            self.top = known
            data = self.read_small(known, oci.MAX_DOCUMENT_SIZE)
        else:
            raise NotFoundError(f"{self.ref} is not on {self.remote.url}")
        self.use_top(self.top, data)

    def forget(self) -> None:
        """All that was read: it came from who cannot be believed."""
        self.up_to_date, self.artifact, self.has_artifact = False, None, True
        self.packs = None
        self._manifest = None
        self.blobs.clear()
        self.layers.clear()

    def use_top(self, top: Digest, data: bytes) -> None:
        """Settle on what the reference names; up to date if the store holds it whole."""
        self.top = top
        if self.check is not None:
            self.check(self)  # before anything of it is used, or gets a name
        known = self.store.find_image(str(self.ref))
        self._select_image(data)
        if self.store.is_complete(self.top):
            self.up_to_date = self.image.digest in self.store.list_blobs(self.top)
            if self.up_to_date and known != self.top:  # the same image under another name
                self.store.commit_image(str(self.ref), self.top, ())

    def _select_image(self, data: bytes) -> None:
        """The image manifest in `data`, or that of our platform in an index."""
        try:
            self._manifest = oci.parse_manifest(data)
            self.image = oci.Descriptor(self._manifest.media_type, self.top, len(data))
            return
        except FormatError:
            index = oci.parse_index(data)
        for entry in index.manifests:
            if entry.platform == self.platform and entry.media_type in oci.MANIFEST_TYPES:
                self.image = replace(entry, annotations={}, platform=None)
                raw = self.read_small(entry.digest, min(entry.size, oci.MAX_DOCUMENT_SIZE), True)
                self._manifest = oci.parse_manifest(raw)
                return
        have = ", ".join(str(entry.platform) for entry in index.manifests[:8])
        raise NotFoundError(f"{self.ref} has no image for {self.platform}", cause=f"it has {have}")

    def read_small(
        self, digest: Digest, size: int, manifest: bool = False, kind: str = ""
    ) -> bytes:
        """A small blob from the store, else from the server; kept for the commit."""
        if digest in self.blobs:
            return self.blobs[digest][0]
        try:
            data = self.store.get_blob(digest)
        except (NotFoundError, IntegrityError):
            if manifest:
                found = self.remote.resolve(self.ref.repository, str(digest))
                data = found.data if found is not None else b""
            else:
                data = self.remote.fetch_blob(self.ref.repository, digest, size)
        self.blobs[digest] = (data, kind)
        return data

    def read_wants(self, *, plainly: bool = False) -> list[LayerWant]:
        """The layers by the config, and their chunk manifests where the server has them. `plainly`:
        only what a plain pull needs, and what is held."""
        manifest = self.manifest
        size = min(manifest.config.size, oci.MAX_DOCUMENT_SIZE)
        config = oci.parse_config(self.read_small(manifest.config.digest, size))
        if len(config.diff_ids) != len(manifest.layers):
            raise FormatError(
                f"image {self.image.digest.short} has {len(manifest.layers)} layers"
                f" and {len(config.diff_ids)} diff_ids"
            )
        wanted = set(config.diff_ids)
        if plainly:
            self._use_found(held.find_layers(self.store, self.ref, wanted))
        if self.store.fact(self.started_fact) == str(self.top):
            self.is_begun = True
            self._use_found(held.find_begun(self.store, wanted - self.layers.keys()))
        artifact = None if plainly else self.find_artifact()
        if artifact is None and not plainly:  # anybody's image: what is held is held as tars
            self._use_found(held.find_layers(self.store, self.ref, wanted - self.layers.keys()))
        return [
            self._want(blob, diff_id, artifact)
            for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        ]

    @property
    def started_fact(self) -> str:
        """The fact that names the image of which a pull has stored parts."""
        return f"started {self.ref}"

    def keep_begun(self, manifest: ChunkManifest) -> None:
        """Note that this layer is in the store before the image is whole: should that not come to
        be, the next pull finds it."""
        if self.store.fact(self.started_fact) != str(self.top):
            self.store.put_fact(self.started_fact, str(self.top))
        self.store.put_blob(serialize_chunk_manifest(manifest), CHUNK_MANIFEST_KIND)

    def _use_found(self, found: Mapping[Digest, ChunkManifest]) -> None:
        """Take layers as they are held, and keep them with the image."""
        for diff_id, manifest in found.items():
            data = serialize_chunk_manifest(manifest)
            self.layers[diff_id] = manifest
            self.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)

    def find_artifact(self) -> oci.Manifest | None:
        """The chunks artifact of the image. A broken one only means a plain pull."""
        if self.artifact is not None or not self.has_artifact:
            return self.artifact
        kind = oci.CHUNKS_ARTIFACT
        for entry in self._list_beside(kind):
            size = min(entry.size, oci.MAX_DOCUMENT_SIZE)
            try:
                found = oci.parse_manifest(self.read_small(entry.digest, size, True, ARTIFACT_KIND))
            except REFUSED as exc:
                _log.warning("chunks artifact %s is refused: %s", entry.digest, exc.message)
                continue
            if found.subject is not None and found.subject.digest == self.image.digest:
                self.packed_here = frozenset(
                    entry.annotations.get(ANNOTATION_PACKED, "").split(",")
                )
                return found
        return None

    def _list_beside(self, kind: str) -> list[oci.Descriptor]:
        """Referrers of the image, of that type. A registry that has trouble with its list may have
        the image all the same."""
        try:
            return self.remote.fetch_referrers(self.ref.repository, self.image.digest, kind)
        except (*REFUSED, RemoteError) as exc:
            if self.remote.chunk_server is not None:
                raise
            _log.info("nothing beside %s: %s", self.image.digest.short, exc.message)
            return []

    def _want(
        self, blob: oci.Descriptor, diff_id: Digest, artifact: oci.Manifest | None
    ) -> LayerWant:
        parts = {
            part.media_type: part
            for part in (artifact.layers if artifact else ())
            if part.annotations.get(oci.ANNOTATION_LAYER) == str(diff_id)
        }
        listed, form = parts.get(oci.CHUNK_MANIFEST), parts.get(oci.FORM_ZSTD)
        made = self.layers.get(diff_id)
        if listed is None:
            return LayerWant(blob, diff_id, made)
        packed = parts.get(PACKED_TYPE)
        is_packed = form is not None and str(form.digest) in self.packed_here
        want = LayerWant(
            blob, diff_id, made, form, listed, packed, is_packed, parts.get(LABELS_TYPE)
        )
        if made is not None:
            return want
        known = listed.digest in self.blobs or self.store.has_blob(listed.digest)
        near = {} if known else self._list_near(blob, listed)
        if form is not None and not near and not known and not self.is_begun:
            return want
        if self.remote.chunk_server is None:
            is_whole = known and self._holds_all(listed)
            want = replace(want, has_chunks=False) if is_whole else self._find_pack(want)
            if not want.has_chunks and not known:
                return want
        try:
            if near:
                self._fetch_change(listed, near)
            raw = self.read_small(listed.digest, listed.size, kind=CHUNK_MANIFEST_KIND)
            manifest = parse_chunk_manifest(raw)
            check_manifest(manifest, diff_id)
        except REFUSED as exc:
            _log.warning("chunk manifest %s is refused: %s", listed.digest, exc.message)
            self.blobs.pop(listed.digest, None)
            return LayerWant(blob, diff_id)
        self.near[diff_id] = near
        return replace(want, chunk_manifest=manifest)

    def _holds_all(self, listed: oci.Descriptor) -> bool:
        """Is every chunk here of a chunk manifest that is?"""
        try:
            raw = self.read_small(listed.digest, listed.size, kind=CHUNK_MANIFEST_KIND)
            ids = set(parse_chunk_manifest(raw).list_raw_ids())
        except REFUSED:
            return False
        return self.store.has_raw(ids) == ids

    def _find_pack(self, want: LayerWant) -> LayerWant:
        """The layer with its chunk pack, where one lies beside the image."""
        if self.packs is None:
            self.packs = self._find_beside(oci.PACKS_ARTIFACT)
        parts = {
            part.media_type: part
            for part in (self.packs.layers if self.packs is not None else ())
            if part.annotations.get(oci.ANNOTATION_LAYER) == str(want.diff_id)
        }
        pack, index = parts.get(PACK_TYPE), parts.get(PACK_INDEX_TYPE)
        if pack is None or index is None or index.size > MAX_INDEX_SIZE:
            return replace(want, has_chunks=False)
        return replace(want, pack=pack, pack_index=index)

    def _find_beside(self, kind: str) -> oci.Manifest | None:
        """The first usable artifact of that type beside the image; nothing of it is kept."""
        for entry in self._list_beside(kind):
            try:
                raw = self.remote.resolve(self.ref.repository, str(entry.digest))
                found = oci.parse_manifest(raw.data if raw is not None else b"")
            except REFUSED as exc:
                _log.warning("artifact %s is refused: %s", entry.digest, exc.message)
                continue
            if found.subject is not None and found.subject.digest == self.image.digest:
                return found
        return None

    def _list_near(self, blob: oci.Descriptor, listed: oci.Descriptor) -> dict[Digest, bytes]:
        """Chunk manifests of such layers that are held."""
        role = ROLE_CODES.get(blob.annotations.get(oci.ANNOTATION_ROLE, ""), 0)
        profile = listed.annotations.get(ANNOTATION_CHUNKER, DEFAULT_PROFILE)
        return held.list_near(self.store, self.ref, role, profile)

    def _fetch_change(self, listed: oci.Descriptor, near: dict[Digest, bytes]) -> None:
        """The chunk manifest as a change of those that are held; if the server knows none of them,
        without the runs that are. Nothing comes of it when it has no changes at all."""
        name, limit = self.ref.repository, listed.size + CHANGE_OVERHEAD
        server = self.remote.chunk_server
        if server is None:
            self._fetch_runs(listed, near)
            return
        try:
            raw = server.fetch_change(name, listed.digest, Have(tuple(near)), limit)
            olds, runs = change_olds(raw), {}
            if olds is None:
                manifests = (parse_chunk_manifest(one) for one in near.values())
                runs = {run.id: run.data for one in manifests for run in one.runs()}
                runs = dict(list(runs.items())[:MAX_RUN_COUNT])
                have = Have((), tuple(short_id(name) for name in runs))
                raw = server.fetch_change(name, listed.digest, have, limit)
                olds = change_olds(raw) or []
            if any(old not in near for old in olds):
                raise IntegrityError("change of a chunk manifest that is not held")
            data = parse_change(raw, [near[old] for old in olds], runs, listed.size)
            check_digest(data, listed.digest, f"chunk manifest {listed.digest.short}")
            self.blobs[listed.digest] = (data, CHUNK_MANIFEST_KIND)
        except (*REFUSED, RemoteError) as exc:
            _log.info("no change of chunk manifest %s: %s", listed.digest.short, exc.message)

    def _fetch_runs(self, listed: oci.Descriptor, near: dict[Digest, bytes]) -> None:
        """The chunk manifest from where nobody makes a change of it: what is not held of it."""
        if listed.size < MIN_PARTED_SIZE:
            return
        try:
            name = self.ref.repository
            data = read_chunk_manifest(self.remote, name, listed, near.values())
            self.blobs[listed.digest] = (data, CHUNK_MANIFEST_KIND)
        except (*REFUSED, RemoteError) as exc:
            _log.info("no parts of chunk manifest %s: %s", listed.digest.short, exc.message)
