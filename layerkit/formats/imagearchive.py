"""Images in a tar: OCI archives, and what `docker save` writes, old engines and new ones.

An archive is an OCI layout in a tar (skopeo, podman, buildx, `ctr images export`, docker from 25
on), or docker's `manifest.json` with layers beside it (docker before 25, kaniko, bazel); where both
are there, the layout is read, for it has the manifest's own bytes. Of a `manifest.json` an OCI
manifest is made here. Nothing is extracted: a file is a slice of the tar. Names are looked up
among the tar's own, so no path leads out of it; links lead to other names of the tar only, at most
MAX_LINKS long (old engines write a layer once, and symbolic links to it). Two files of one name are
an error, for readers would differ in which one they believe.

Raises FormatError; IntegrityError where a digest names other bytes. Memory: the list of files.
Spec: OCI image-spec 1.1 "Image Layout"; moby image/spec/v1.2.md. Limits: MAX_FILE_COUNT.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.errors import FormatError, NotFoundError, UsageError
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.formats.tar import FILE, FOLDER, HARDLINK, SYMLINK, clean_path, read_tar

__all__ = ["ANNOTATION_CONTAINERD", "ArchivedImage", "ImageArchive", "parse_image_archive"]

ANNOTATION_CONTAINERD: Final = "io.containerd.image.name"  # the whole name, with its host
MAX_FILE_COUNT: Final = 1 << 16  # an image has some ten; an archive may hold many images
MAX_LINKS: Final = 8
_MARKER, _INDEX, _DOCKER, _ANCIENT = "oci-layout", "index.json", "manifest.json", "repositories"
_CONFIG_NAME: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image of an archive, and what it is called there."""

    names: tuple[str, ...]
    top: oci.Descriptor


@dataclass(slots=True)
class ImageArchive:
    """The images of an archive; reads blobs and manifests of them, verified."""

    images: tuple[ArchivedImage, ...] = ()
    _files: Mapping[str, memoryview] = field(default_factory=dict, repr=False)
    _blobs: dict[Digest, bytes | memoryview] = field(default_factory=dict, repr=False)

    def find(self, name: str = "") -> ArchivedImage:
        """The image called `name`, by its whole name or its tag; without a name the only one."""
        found = [image for image in self.images if not name or _is_called(image, name)]
        if len({image.top.digest for image in found}) == 1:
            return found[0]
        have = ", ".join(sorted(one for image in self.images for one in image.names)[:5]) or "none"
        if found:
            what = f"the archive has {len(found)} images" + (f" called {name}" if name else "")
            raise UsageError(what, cause=f"it has {have}", hint="name one as FILE:REF")
        raise NotFoundError(f"{name or 'an image'} is not in the archive", cause=f"it has {have}")

    def read_blob(self, what: oci.Descriptor) -> bytes:
        """The bytes of a blob or manifest, of at most the size that its descriptor says."""
        data = self._blobs.get(what.digest)
        if data is None:
            data = self._files.get(f"blobs/{what.digest.algorithm}/{what.digest.hex}")
        if data is None:
            raise NotFoundError(f"blob {what.digest.short} is not in the archive")
        if len(data) != what.size:
            raise FormatError(
                f"archive: blob {what.digest.short} has {len(data)} bytes, want {what.size}"
            )
        check_digest(data, what.digest, f"blob {what.digest.short} of the archive")
        return bytes(data)


def parse_image_archive(data: bytes | memoryview) -> ImageArchive:
    """Read the list of files and the documents of a plain tar; layers are read when asked for."""
    files = _list_files(data)
    if _MARKER in files and _INDEX in files:
        return _parse_layout(files)
    if _DOCKER in files:
        return _parse_docker(files)
    if _ANCIENT in files:
        raise FormatError(
            "archive: written by a docker before 1.10, which had no manifest.json",
            hint="load it into docker and name the image as docker-daemon:REF",
        )
    raise FormatError("archive: neither an OCI layout nor what 'docker save' writes")


# --- the tar's files ---------------------------------------------------------------------------


def _list_files(data: bytes | memoryview) -> dict[str, memoryview]:
    """Slices of the tar by clean path, links followed."""
    files: dict[str, memoryview] = {}
    links: dict[str, str] = {}
    for entry in read_tar(data):
        if entry.kind == FOLDER:
            continue
        if entry.path in files or entry.path in links:
            raise FormatError(f"archive: {entry.path[:120]!r} is there twice")
        if len(files) + len(links) >= MAX_FILE_COUNT:
            raise FormatError(f"archive: over {MAX_FILE_COUNT} files")
        if entry.kind == FILE:
            files[entry.path] = memoryview(entry.data)
        elif entry.kind == HARDLINK:
            links[entry.path] = entry.link
        elif entry.kind == SYMLINK:
            links[entry.path] = _target(entry.path, entry.link)
        else:
            raise FormatError(f"archive: {entry.path[:120]!r} is a {entry.kind}")
    for path in links:
        files[path] = _follow(path, links, files)
    return files


def _target(path: str, link: str) -> str:
    """Where a symbolic link leads, as a path of the tar; FormatError if out of it."""
    if link.startswith("/"):
        raise FormatError(f"archive: link {path[:120]!r} leads out of it")
    return clean_path(posixpath.normpath(posixpath.join(posixpath.dirname(path), link)))


def _follow(path: str, links: Mapping[str, str], files: Mapping[str, memoryview]) -> memoryview:
    for _ in range(MAX_LINKS):
        if path in files:
            return files[path]
        if path not in links:
            raise FormatError(f"archive: a link leads to {path[:120]!r}, which is not there")
        path = links[path]
    raise FormatError(f"archive: link {path[:120]!r} leads through too many links")


def _read(files: Mapping[str, memoryview], path: str, what: str) -> memoryview:
    found = files.get(path)
    if found is None:
        raise FormatError(f"archive: {what} {path[:120]!r} is not there")
    return found


def _read_document(files: Mapping[str, memoryview], path: str) -> bytes:
    found = _read(files, path, "document")
    if len(found) > oci.MAX_DOCUMENT_SIZE:
        raise FormatError(f"archive: {path[:120]!r} is over {oci.MAX_DOCUMENT_SIZE} bytes")
    return bytes(found)


# --- an OCI layout -----------------------------------------------------------------------------


def _parse_layout(files: Mapping[str, memoryview]) -> ImageArchive:
    oci.parse_layout_marker(_read_document(files, _MARKER))
    archive = ImageArchive((), files)
    names: dict[Digest, list[str]] = {}
    tops: dict[Digest, oci.Descriptor] = {}
    for entry in oci.parse_index(_read_document(files, _INDEX)).manifests:
        known = entry.media_type in (*oci.MANIFEST_TYPES, *oci.INDEX_TYPES)
        if not known or _refers(archive, entry):
            continue
        tops.setdefault(entry.digest, entry)
        called = names.setdefault(entry.digest, [])
        for key in (ANNOTATION_CONTAINERD, oci.ANNOTATION_REF_NAME):
            name = entry.annotations.get(key, "")
            if name and name not in called:
                called.append(name)
    archive.images = tuple(ArchivedImage(tuple(names[digest]), top) for digest, top in tops.items())
    return archive


def _refers(archive: ImageArchive, entry: oci.Descriptor) -> bool:
    """Is it about an image, as an SBOM is, and no image itself?"""
    if entry.media_type not in oci.MANIFEST_TYPES or entry.size > oci.MAX_DOCUMENT_SIZE:
        return False
    manifest = oci.parse_manifest(archive.read_blob(entry))
    return manifest.subject is not None or bool(manifest.artifact_type)


# --- docker's manifest.json --------------------------------------------------------------------


def _parse_docker(files: Mapping[str, memoryview]) -> ImageArchive:
    try:
        document = json.loads(_read_document(files, _DOCKER))
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"archive: {_DOCKER} is not JSON") from exc
    if not isinstance(document, list) or len(document) > oci.MAX_ITEMS:
        raise FormatError(f"archive: {_DOCKER} is not a list of images")
    archive = ImageArchive((), files)
    archive.images = tuple(_docker_image(item, files, archive._blobs) for item in document)
    return archive


def _docker_image(
    item: object, files: Mapping[str, memoryview], blobs: dict[Digest, bytes | memoryview]
) -> ArchivedImage:
    """An OCI manifest over the config and the layers that docker names."""
    if not isinstance(item, dict):
        raise FormatError(f"archive: an image of {_DOCKER} is not an object")
    (path,) = _strings([item.get("Config")], "Config")
    raw_config = _read_document(files, clean_path(path))
    config = oci.describe(raw_config, oci.CONFIG)
    found = _CONFIG_NAME.fullmatch(path)
    if found:
        check_digest(raw_config, Digest("sha256", bytes.fromhex(found[1])), f"config {path[:80]}")
    layers = []
    for name in _strings(item.get("Layers") or [], "Layers"):
        data = _read(files, clean_path(name), "layer")
        layer = oci.Descriptor(_layer_type(data), sha256_digest(data), len(data))
        blobs[layer.digest] = data
        layers.append(layer)
    raw = oci.serialize_manifest(oci.Manifest(config, tuple(layers)))
    top = oci.describe(raw, oci.MANIFEST)
    blobs |= {config.digest: raw_config, top.digest: raw}
    return ArchivedImage(tuple(_strings(item.get("RepoTags") or [], "RepoTags")), top)


def _layer_type(data: memoryview) -> str:
    """By its first bytes: docker writes plain tars, other tools do not always."""
    head = bytes(data[:4])
    if head[:2] == b"\x1f\x8b":
        return oci.LAYER_GZIP
    return oci.LAYER_ZSTD if head == b"\x28\xb5\x2f\xfd" else oci.LAYER_TAR


def _strings(value: object, key: str) -> Iterable[str]:
    if not isinstance(value, list) or len(value) > oci.MAX_ITEMS:
        raise FormatError(f"archive: {key} of {_DOCKER} is not a list")
    if not all(isinstance(one, str) for one in value):
        raise FormatError(f"archive: {key} of {_DOCKER} is not a list of strings")
    return value


# --- names -------------------------------------------------------------------------------------


def _is_called(image: ArchivedImage, name: str) -> bool:
    """By its name as written or as engines have it (docker.io/library/...), or by its digest."""
    if name == str(image.top.digest):
        return True
    return any(one == name or _full(one) == _full(name) for one in image.names)


def _full(name: str) -> str:
    try:
        ref = Reference.parse(name).tagged
    except UsageError:
        return name
    return f"{ref.full_name}:{ref.tag}"
