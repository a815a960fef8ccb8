"""`layerkit inspect`: what a file or an image is, as one document.

A file is told by its first bytes: binary, chunk manifest, OCI manifest, index or config, plain tar
layer. An image is read from its layout, digests checked. Changes nothing.
"""

from __future__ import annotations

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.subject import Subject
from layerkit.errors import FormatError
from layerkit.formats import chunkmanifest, oci
from layerkit.formats.elf import MACHINE_AMD64, MACHINE_ARM64, PT_INTERP, parse_elf
from layerkit.formats.golang import go_release
from layerkit.formats.layer import read_tar

__all__ = ["inspect", "inspect_file", "inspect_image"]

Document = dict[str, object]
ARCHITECTURES = {MACHINE_AMD64: "amd64", MACHINE_ARM64: "arm64"}


def inspect(subject: Subject) -> Document:
    """Describe what a person named."""
    if subject.layout is None or subject.descriptor is None:
        return inspect_file(subject.raw, subject.name)
    return inspect_image(subject.name, subject.descriptor, subject.layout)


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
        "go": _go_release(raw),
        "static": not any(segment.kind == PT_INTERP for segment in elf.segments),
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


def inspect_image(name: str, descriptor: oci.Descriptor, layout: Layout) -> Document:
    """Describe an image or an index of a layout."""
    raw = layout.read_blob(descriptor.digest, oci.MAX_DOCUMENT_SIZE)
    head: Document = {"name": name, "digest": str(descriptor.digest), "size": len(raw)}
    if descriptor.media_type in oci.INDEX_TYPES:
        children = oci.parse_index(raw).manifests
        images = [inspect_image(str(child.platform), child, layout) for child in children]
        return {"kind": "index", **head, "manifests": images}
    manifest = oci.parse_manifest(raw)
    config = oci.parse_config(layout.read_blob(manifest.config.digest, oci.MAX_DOCUMENT_SIZE))
    chunk_manifests = _chunk_manifests(descriptor, layout)
    layers = []
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=False):
        found: Document = {
            "role": layer.annotations.get(oci.ANNOTATION_ROLE, ""),
            "media_type": layer.media_type,
            "digest": str(layer.digest),
            "size": layer.size,
            "diff_id": str(diff_id),
            "compression": layer.annotations.get(oci.ANNOTATION_COMPRESSION, ""),
        }
        if str(diff_id) in chunk_manifests:
            found["chunk_manifest"] = chunk_manifests[str(diff_id)]
        layers.append(found)
    return {
        "kind": "image",
        **head,
        "config": config_document(config),
        "annotations": dict(manifest.annotations),
        "layers": layers,
    }


def _chunk_manifests(descriptor: oci.Descriptor, layout: Layout) -> dict[str, Document]:
    """Chunk manifests of an image, by the diff_id of their layer."""
    found = {}
    for artifact in layout.referrers(descriptor.digest, oci.CHUNKS_ARTIFACT):
        for blob in layout.read_manifest(artifact.digest).layers:
            if blob.media_type == oci.CHUNK_MANIFEST:
                parsed = chunkmanifest.parse_chunk_manifest(layout.read_blob(blob.digest))
                found[str(parsed.diff_id)] = chunk_manifest_document(parsed)
    return found


def _go_release(raw: bytes) -> str:
    """The Go release that a binary was built with; "" where it does not say."""
    try:
        return go_release(raw)
    except FormatError:
        return ""
