"""An OCI image layout folder: blobs by digest, tags and referrers in `index.json`.

Write order: blobs, then `index.json`, the one commit point, replaced atomically under a lock. A
crash leaves blobs that nothing names. `batch` undoes what it wrote when its body fails. Tags are
whole references (`hello:v1`) in `org.opencontainers.image.ref.name`; a foreign layout
with bare tags resolves too. Referrers (manifests with a `subject`) are listed without a name.
Spec: OCI image-spec 1.1 "Image Layout"; docs/design.md.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest
from layerkit.edges.disk import Disk
from layerkit.errors import FormatError, NotFoundError, StoreError, UsageError
from layerkit.formats import oci
from layerkit.formats.deflate import decompress
from layerkit.formats.imagearchive import ANNOTATION_CONTAINERD
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.reference import Reference

__all__ = ["KEEP_UNTAGGED", "Layout", "add_to_index", "write_docker_archive"]

KEEP_UNTAGGED: Final = 64  # images whose tag moved on stay reachable by digest; older ones go
MAX_BLOB_SIZE: Final = 8 << 30  # bytes read into memory at most, unless the caller says less
_INDEX: Final = "index.json"
_MARKER: Final = "oci-layout"


class Layout:
    """One layout folder. Reading needs no lock; `commit` takes it."""

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self.path = path
        self._disk = disk or Disk()
        self._written: list[Path] | None = None

    # --- blobs -----------------------------------------------------------------------------

    def exists(self) -> bool:
        return (self.path / _MARKER).is_file()

    def create(self) -> None:
        """Make the folder with its marker and an empty index, where it is not there yet."""
        if self.exists():
            oci.parse_layout_marker(self._read_file(self.path / _MARKER, oci.MAX_DOCUMENT_SIZE))
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UsageError(
                f"{self.path} is not empty and not an OCI layout", hint="name another folder"
            )
        self._disk.make_folder(self.path / "blobs" / "sha256")
        if not (self.path / _INDEX).exists():
            self._disk.write_atomic(self.path / _INDEX, oci.serialize_index(oci.Index(())))
        if not self.exists():
            self._disk.write_atomic(self.path / _MARKER, oci.LAYOUT_MARKER)

    def blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex

    def has_blob(self, digest: Digest) -> bool:
        return self.blob_path(digest).is_file()

    def put_blob(
        self,
        data: bytes,
        media_type: str,
        annotations: Mapping[str, str] | None = None,
        *,
        platform: oci.Platform | None = None,
        artifact_type: str = "",
    ) -> oci.Descriptor:
        """Store `data` durably under its digest and return its descriptor."""
        descriptor = oci.describe(
            data, media_type, annotations, platform=platform, artifact_type=artifact_type
        )
        path = self.blob_path(descriptor.digest)
        if not (path.is_file() and path.stat().st_size == len(data)):
            if self._written is not None:
                self._written.append(path)
            self._disk.write_atomic(path, data)
        return descriptor

    def read_blob(self, what: Digest | oci.Descriptor, limit: int = MAX_BLOB_SIZE) -> bytes:
        """The bytes of a blob of at most `limit` bytes, checked against its digest."""
        if isinstance(what, oci.Descriptor):
            limit = min(limit, what.size)
            what = what.digest
        data = self._read_file(self.blob_path(what), limit)
        check_digest(data, what, f"blob {what.short} in {self.path}")
        return data

    def read_manifest(self, digest: Digest) -> oci.Manifest:
        return oci.parse_manifest(self.read_blob(digest, oci.MAX_DOCUMENT_SIZE))

    def _read_file(self, path: Path, limit: int) -> bytes:
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as exc:
            raise NotFoundError(f"{path} does not exist") from exc
        except OSError as exc:
            raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
        if len(data) > limit:
            raise FormatError(f"{path} is over its limit of {limit} bytes")
        return data

    # --- index.json --------------------------------------------------------------------------

    def read_index(self) -> oci.Index:
        """`index.json`, parsed; NotFoundError if this is no layout."""
        if not self.exists():
            raise NotFoundError(f"{self.path} is not an OCI layout")
        return oci.parse_index(self._read_file(self.path / _INDEX, oci.MAX_DOCUMENT_SIZE))

    def tags(self) -> dict[str, oci.Descriptor]:
        """Descriptors by the name in their annotation (`hello:v1`)."""
        return {name: entry for entry in self.read_index().manifests if (name := _name(entry))}

    def resolve(self, ref: Reference) -> oci.Descriptor:
        """The descriptor that `ref` names: by digest if it has one, else by name and tag."""
        ref = ref.tagged
        if ref.digest is not None:
            return self._resolve_digest(ref.digest, ref)
        tags = self.tags()
        found = tags.get(str(ref)) or tags.get(ref.tag)
        if found is None:
            have = ", ".join(sorted(tags)[:5]) or "no tags"
            raise NotFoundError(f"{ref} is not in {self.path}", cause=f"the layout has {have}")
        return found

    def _resolve_digest(self, digest: Digest, ref: Reference) -> oci.Descriptor:
        entries = self.read_index().manifests
        for entry in entries:
            if entry.digest == digest:
                return entry
        for entry in entries:
            if entry.media_type in oci.INDEX_TYPES:
                for child in self._children(entry):
                    if child.digest == digest:
                        return child
        raise NotFoundError(f"{ref} is not in {self.path}")

    def _children(self, entry: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        return oci.parse_index(self.read_blob(entry.digest, oci.MAX_DOCUMENT_SIZE)).manifests

    def images(self, descriptor: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
        """The image manifests behind a descriptor: itself, or those of its index."""
        if descriptor.media_type in oci.INDEX_TYPES:
            return self._children(descriptor)
        return (descriptor,)

    def select(self, descriptor: oci.Descriptor, platform: oci.Platform) -> oci.Descriptor:
        """The image manifest for `platform`; a single image is taken as it is."""
        images = self.images(descriptor)
        if descriptor.media_type not in oci.INDEX_TYPES:
            return descriptor
        for image in images:
            if image.platform == platform:
                return image
        have = ", ".join(str(image.platform) for image in images)
        raise NotFoundError(f"no image for {platform}", cause=f"the index has {have}")

    def referrers(self, digest: Digest, artifact_type: str = "") -> list[oci.Descriptor]:
        """Descriptors, as the referrers API gives them, of manifests whose subject is `digest`."""
        found = []
        for entry in self.read_index().manifests:
            if _name(entry) or entry.media_type not in oci.MANIFEST_TYPES:
                continue
            manifest = self.read_manifest(entry.digest)
            if manifest.subject is None or manifest.subject.digest != digest:
                continue
            kind = manifest.artifact_type or manifest.config.media_type
            if artifact_type in ("", kind):
                found.append(
                    replace(entry, artifact_type=kind, annotations=dict(manifest.annotations))
                )
        return found

    def commit(
        self, ref: Reference, descriptor: oci.Descriptor, referrers: Iterable[oci.Descriptor] = ()
    ) -> None:
        """Make `ref` name `descriptor` and list its `referrers`: the commit point."""
        name = str(replace(ref.tagged, digest=None)) if ref.tag or ref.digest is None else ""
        with self._disk.lock(self.path / _MARKER, wait=True):
            new = add_to_index(self.read_index(), name, descriptor, referrers, self._read_held)
            self._disk.write_atomic(self.path / _INDEX, oci.serialize_index(new))

    def add_referrers(self, referrers: Iterable[oci.Descriptor]) -> None:
        """List further referrers of images that are here; no name moves."""
        with self._disk.lock(self.path / _MARKER, wait=True):
            old = self.read_index()
            known = {entry.digest for entry in old.manifests}
            new = tuple(entry for entry in referrers if entry.digest not in known)
            if new:
                index = replace(old, manifests=old.manifests + new)
                self._disk.write_atomic(self.path / _INDEX, oci.serialize_index(index))

    def _read_held(self, entry: oci.Descriptor) -> bytes | None:
        return self.read_blob(entry) if self.has_blob(entry.digest) else None

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Create the layout if needed; if the body fails, remove what was written in it."""
        was_there = self.path.exists()
        was_empty = self.path.is_dir() and not any(self.path.iterdir())
        old_index = self._raw_index()
        self._written = []
        try:
            self.create()
            yield
        except BaseException:
            self._undo(was_there=was_there, was_empty=was_empty, old_index=old_index)
            raise
        finally:
            self._written = None

    def _raw_index(self) -> bytes:
        path = self.path / _INDEX
        return self._read_file(path, oci.MAX_DOCUMENT_SIZE) if path.exists() else b""

    def _undo(self, *, was_there: bool, was_empty: bool, old_index: bytes) -> None:
        if not was_there:
            if self.path.exists():
                self._disk.remove_tree(self.path)
        elif was_empty:
            for child in self.path.iterdir():
                if stat.S_ISDIR(child.lstat().st_mode):
                    self._disk.remove_tree(child)
                else:
                    self._disk.remove(child)
        elif self._raw_index() == old_index:  # else the commit got through: its blobs are named
            for path in self._written or ():
                self._disk.remove(path)


def write_docker_archive(
    layout: Layout,
    ref: Reference,
    path: Path,
    platform: oci.Platform,
    disk: Disk | None = None,
    *,
    unpacked: bool = False,
) -> None:
    """Write a tar that `docker load` takes, old engines too: an OCI layout with docker's
    `manifest.json`. `unpacked`: the latter only, zstd layers as plain tars, for engines that cannot
    read them; the config, which names the plain layers, is the same. One platform; held in memory.
    """
    top = layout.select(layout.resolve(ref), platform)
    manifest = layout.read_manifest(top.digest)
    name = str(replace(ref.tagged, digest=None)) if ref.tag or ref.digest is None else ""
    config = layout.read_blob(manifest.config)
    files = {_archive_path(manifest.config.digest): config}
    layers = []
    for layer, diff_id in zip(manifest.layers, oci.parse_config(config).diff_ids, strict=False):
        data, digest = layout.read_blob(layer), layer.digest
        if unpacked and layer.media_type == oci.LAYER_ZSTD:
            data, digest = decompress(data, layer.media_type, MAX_BLOB_SIZE), diff_id
            check_digest(data, diff_id, f"layer {diff_id.short}")
        files[_archive_path(digest)] = data
        layers.append(_archive_path(digest))
    docker = {
        "Config": _archive_path(manifest.config.digest),
        "RepoTags": [name] if name else None,
        "Layers": layers,
    }
    files["manifest.json"] = b"[" + oci.serialize_json(docker) + b"]"
    if not unpacked:
        annotations = {oci.ANNOTATION_REF_NAME: name} if name else {}
        if ref.tagged.tag:
            annotations[ANNOTATION_CONTAINERD] = f"{ref.full_name}:{ref.tagged.tag}"
        entry = oci.Descriptor(top.media_type, top.digest, top.size, annotations)
        files[_archive_path(top.digest)] = layout.read_blob(top)
        files["oci-layout"] = oci.LAYOUT_MARKER
        files["index.json"] = oci.serialize_index(oci.Index((entry,)))
    entries = [Entry(name, data) for name, data in files.items()]
    (disk or Disk()).write_atomic(path, build_tar(entries))


def _archive_path(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def add_to_index(
    old: oci.Index,
    name: str,
    descriptor: oci.Descriptor,
    referrers: Iterable[oci.Descriptor],
    read: Callable[[oci.Descriptor], bytes | None],
) -> oci.Index:
    """The index of a layout once `name` (if any) names `descriptor`. An image whose name moved on
    stays, up to KEEP_UNTAGGED of them; a referrer stays as long as its subject, and an update to
    it as long as that is named. `read` gives the bytes of a manifest, None if it is not there."""
    kept = _kept(old.manifests, name, descriptor.digest, read)
    annotations = dict(descriptor.annotations)
    if name:
        annotations[oci.ANNOTATION_REF_NAME] = name
    entries = [*kept, replace(descriptor, annotations=annotations)]
    known = {entry.digest for entry in entries}
    entries += [entry for entry in referrers if entry.digest not in known]
    return replace(old, manifests=tuple(entries))


def _kept(
    entries: Iterable[oci.Descriptor],
    name: str,
    digest: Digest,
    read: Callable[[oci.Descriptor], bytes | None],
) -> list[oci.Descriptor]:
    """Old entries that stay when `name` moves to `digest`."""
    kept: list[oci.Descriptor] = []
    for entry in entries:
        if _name(entry) == name and name:
            entry = _unnamed(entry)
        if _name(entry) or entry.digest != digest:
            kept.append(entry)
    subjects = {entry.digest: _subject(entry, read) for entry in kept}
    named = {entry.digest for entry in kept if _name(entry)}
    images = [entry for entry in kept if not _name(entry) and not subjects[entry.digest]]
    stale = {entry.digest for entry in images if entry.digest in named}
    stale |= {entry.digest for entry in images[:-KEEP_UNTAGGED]}
    kept = [entry for entry in kept if _name(entry) or entry.digest not in stale]
    named.add(digest)
    alive = named | {entry.digest for entry in kept}
    for entry in kept:
        if entry.media_type in oci.INDEX_TYPES and (raw := read(entry)) is not None:
            alive |= {child.digest for child in oci.parse_index(raw).manifests}
    return [
        entry
        for entry in kept
        if (found := subjects[entry.digest]) is None
        or found[0] in (named if found[1] == oci.UPDATE_ARTIFACT else alive)
    ]


def _subject(
    entry: oci.Descriptor, read: Callable[[oci.Descriptor], bytes | None]
) -> tuple[Digest, str] | None:
    """What an unnamed entry refers to, and its artifact type; None for an image or a blob that is
    not here."""
    is_image = _name(entry) or oci.ANNOTATION_WAS in entry.annotations
    if is_image or entry.media_type not in oci.MANIFEST_TYPES:
        return None
    raw = read(entry)
    manifest = None if raw is None else oci.parse_manifest(raw)
    if manifest is None or manifest.subject is None:
        return None
    return manifest.subject.digest, manifest.artifact_type


def _name(entry: oci.Descriptor) -> str:
    return entry.annotations.get(oci.ANNOTATION_REF_NAME, "")


def _unnamed(entry: oci.Descriptor) -> oci.Descriptor:
    """The entry of an image that its name left: kept for deltas, and served by digest."""
    rest = {k: v for k, v in entry.annotations.items() if k != oci.ANNOTATION_REF_NAME}
    return replace(entry, annotations=rest | {oci.ANNOTATION_WAS: _name(entry)})
