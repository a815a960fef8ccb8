"""`layerkit inspect`: what a file or an image is, as one document.

A file is told by its first bytes: binary, chunk manifest, OCI manifest, index or config, plain tar
layer. An image is read from a layout through `ImageReader`. Checks what it reads; changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError
from layerkit.formats import chunkmanifest, oci
from layerkit.formats.elf import MACHINE_AMD64, MACHINE_ARM64, parse_elf
from layerkit.formats.layer import read_tar

__all__ = ["BlobReader", "inspect_file", "inspect_image"]

Document = dict[str, object]
ARCHITECTURES = {MACHINE_AMD64: "amd64", MACHINE_ARM64: "arm64"}


class BlobReader(Protocol):
    """Verified reads from a layout."""

    def read_blob(self, descriptor: oci.Descriptor) -> bytes: ...


def inspect_file(raw: bytes, name: str) -> Document:
    """Describe the bytes of one file; FormatError if they are nothing that layerkit knows."""
    head: Document = {"name": name, "digest": str(sha256_digest(raw)), "size": len(raw)}
    if raw.startswith(b"\x7fELF"):
        return {"kind": "binary", **head, **_binary_document(raw)}
    if raw.startswith(chunkmanifest.MAGIC):
        manifest = chunkmanifest.parse_chunk_manifest(raw)
        return {"kind": "chunk manifest", **head, **chunk_manifest_document(manifest)}
    if raw[257:262] == b"ustar":
        return {"kind": "layer", **head, "entries": _tar_entries(raw)}
    if raw.lstrip()[:1] == b"{":
        return {**_json_document(raw), **head}
    raise FormatError(
        f"{name} is nothing that layerkit knows",
        cause=f"first bytes {raw[:8].hex() or 'none'}",
        hint="name a binary, a chunk manifest, an OCI document, a tar layer or LAYOUT:REF",
    )


def _binary_document(raw: bytes) -> Document:
    elf = parse_elf(raw)
    return {
        "architecture": ARCHITECTURES.get(elf.machine, f"machine {elf.machine}"),
        "static": not any(segment.kind == 3 for segment in elf.segments),  # PT_INTERP
        "sections": {
            section.name: {"addr": section.addr, "offset": section.offset, "size": section.size}
            for section in elf.sections
            if section.kind
        },
    }


def chunk_manifest_document(manifest: chunkmanifest.ChunkManifest) -> Document:
    """A chunk manifest's facts, without the list of its chunks."""
    sizes = [chunk.size for chunk in manifest.chunks]
    return {
        "version": f"{chunkmanifest.MAJOR}.{chunkmanifest.MINOR}",
        "transform": manifest.transform,
        "profile": manifest.profile,
        "diff_id": str(manifest.diff_id),
        "plain_size": manifest.plain_size,
        "form_digest": str(manifest.form_digest),
        "form_size": manifest.form_size,
        "chunk_count": len(sizes),
        "distinct_count": len({chunk.id for chunk in manifest.chunks}),
        "smallest_chunk_size": min(sizes, default=0),
        "largest_chunk_size": max(sizes, default=0),
    }


def _tar_entries(raw: bytes) -> list[Document]:
    return [
        {
            "path": entry.path,
            "kind": entry.kind,
            "mode": f"{entry.mode:04o}",
            "size": len(entry.data),
        }
        for entry in read_tar(raw)
    ]


def _json_document(raw: bytes) -> Document:
    """An OCI document, told by which parser takes it: manifest, then index, then config."""
    try:
        return {"kind": "manifest", **manifest_document(oci.parse_manifest(raw))}
    except FormatError:
        pass
    try:
        index = oci.parse_index(raw)
        return {"kind": "index", "manifests": [_descriptor_document(d) for d in index.manifests]}
    except FormatError:
        return {"kind": "config", **config_document(oci.parse_config(raw))}


def manifest_document(manifest: oci.Manifest) -> Document:
    found: Document = {
        "media_type": manifest.media_type,
        "config": _descriptor_document(manifest.config),
        "layers": [_descriptor_document(layer) for layer in manifest.layers],
        "annotations": dict(manifest.annotations),
    }
    if manifest.artifact_type:
        found["artifact_type"] = manifest.artifact_type
    if manifest.subject is not None:
        found["subject"] = _descriptor_document(manifest.subject)
    return found


def config_document(config: oci.ImageConfig) -> Document:
    return {
        "platform": str(config.platform),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": list(config.env),
        "user": config.user,
        "exposed_ports": list(config.exposed_ports),
        "labels": dict(config.labels),
        "diff_ids": [str(diff_id) for diff_id in config.diff_ids],
    }


def _descriptor_document(descriptor: oci.Descriptor) -> Document:
    found: Document = {
        "media_type": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.platform is not None:
        found["platform"] = str(descriptor.platform)
    if descriptor.annotations:
        found["annotations"] = dict(descriptor.annotations)
    return found


def inspect_image(
    name: str,
    descriptor: oci.Descriptor,
    blobs: BlobReader,
    chunk_manifests: Mapping[Digest, bytes],
) -> Document:
    """Describe an image or an index; `chunk_manifests` are raw, by the diff_id of their layer."""
    raw = blobs.read_blob(descriptor)
    head: Document = {"name": name, "digest": str(descriptor.digest), "size": len(raw)}
    if descriptor.media_type in oci.INDEX_TYPES:
        index = oci.parse_index(raw)
        images = [
            inspect_image(str(d.platform), d, blobs, chunk_manifests) for d in index.manifests
        ]
        return {"kind": "index", **head, "manifests": images}
    manifest = oci.parse_manifest(raw)
    config = oci.parse_config(blobs.read_blob(manifest.config))
    layers = []
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=False):
        found = {
            "role": layer.annotations.get(oci.ANNOTATION_ROLE, ""),
            "media_type": layer.media_type,
            "digest": str(layer.digest),
            "size": layer.size,
            "diff_id": str(diff_id),
            "compression": layer.annotations.get(oci.ANNOTATION_COMPRESSION, ""),
        }
        if diff_id in chunk_manifests:
            parsed = chunkmanifest.parse_chunk_manifest(chunk_manifests[diff_id])
            found["chunk_manifest"] = chunk_manifest_document(parsed)
        layers.append(found)
    return {
        "kind": "image",
        **head,
        "config": config_document(config),
        "annotations": dict(manifest.annotations),
        "layers": layers,
    }
