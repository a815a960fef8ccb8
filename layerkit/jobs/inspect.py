"""`layerkit inspect`: what a file or an image is, as one document.

A file is told by its first bytes: binary, form, layer form, delta, chunk manifest, bundle, OCI
manifest, index or config, plain tar layer. An image is read from its layout, digests checked. Go
binaries, their forms and the chunks of those are told by role (`formats.roles` says what is exact).
Changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.subject import Subject
from layerkit.errors import FormatError
from layerkit.formats import addressfree, bundle, chunkmanifest, delta, oci
from layerkit.formats.addressfree.wire import MAGIC as FORM_MAGIC
from layerkit.formats.buildinfo import BuildInfo, Module, read_build_info
from layerkit.formats.chunker import DEFAULT_PROFILE, cut
from layerkit.formats.elf import MACHINE_AMD64, MACHINE_ARM64, PT_INTERP, Elf, parse_elf
from layerkit.formats.golang import go_release
from layerkit.formats.gonames import ROLES, SHARED
from layerkit.formats.layerform import PART_BINARY, decode_layer, is_layer_form
from layerkit.formats.protocol import unpack_form
from layerkit.formats.ranges import RoleRanges, chunk_roles, one_role
from layerkit.formats.roles import binary_roles, form_roles, layer_parts, layer_roles
from layerkit.formats.storedupdate import NOTHING, find_updates
from layerkit.formats.tar import read_tar

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
    if raw.startswith(FORM_MAGIC):
        return {"kind": "form", **head, **_form_document(raw)}
    if is_layer_form(raw):
        return {"kind": "layer form", **head, **_layer_form_document(raw)}
    if raw.startswith(bundle.MAGIC):
        return {"kind": "bundle", **head, **_bundle_document(raw)}
    if raw.startswith(delta.MAGIC):
        return {"kind": "delta", **head, **_delta_document(raw)}
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
        hint="name a binary, a form, a delta, a chunk manifest, a bundle, an OCI document,"
        " a tar layer or LAYOUT:REF",
    )


def _binary_document(raw: bytes) -> Document:
    elf = parse_elf(raw)
    found: Document = {
        "architecture": ARCHITECTURES.get(elf.machine, f"machine {elf.machine}"),
        "go": _go_release(raw),
        "static": not any(segment.kind == PT_INTERP for segment in elf.segments),
    }
    found |= _modules_document(elf)
    roles = _roles_of(raw)
    if roles is not None:
        found["roles"] = roles.sizes()
    found["sections"] = {
        section.name: {"addr": section.addr, "offset": section.offset, "size": section.size}
        | _section_roles(roles, section.offset, section.size if section.in_file else 0)
        for section in elf.sections
        if section.kind
    }
    return found


def _roles_of(binary: bytes) -> RoleRanges | None:
    """The roles of a Go binary; None for another file."""
    try:
        return binary_roles(binary)
    except FormatError:
        return None


def _section_roles(roles: RoleRanges | None, offset: int, size: int) -> Document:
    if roles is None or not size:
        return {}
    counts = roles.sizes_between([offset, offset + size])[0].tolist()
    return {name: count for name, count in zip(ROLES, counts, strict=True) if count}


def _modules_document(elf: Elf) -> Document:
    """The main package and its modules; empty where the binary records none."""
    try:
        info: BuildInfo = read_build_info(elf)
    except FormatError:
        return {}
    found: Document = {"package": info.path}
    if info.main is not None:
        found["module"] = _module_text(info.main)
    found["deps"] = [_module_text(module) for module in info.deps]
    return found


def _module_text(module: Module) -> str:
    text = f"{module.path}@{module.version}"
    return f"{text}=>{module.replaced_by}" if module.replaced_by else text


def _form_document(form: bytes) -> Document:
    binary = addressfree.decode(form)
    roles = _roles_of(binary)
    ranges = form_roles(len(form), roles) if roles else one_role(len(form), SHARED)
    is_go = not form.endswith(binary)  # a raw form is the file behind a header
    found: Document = {"transform": "address-free" if is_go else "raw"}
    found["header_and_labels_size"] = len(form) - len(binary)
    found["binary"] = {"digest": str(sha256_digest(binary)), "size": len(binary)}
    if roles is not None:
        found["roles"] = ranges.sizes()
    return found | {"chunks": _chunks_document(form, ranges)}


def _layer_form_document(form: bytes) -> Document:
    tar = decode_layer(form)
    ranges = layer_roles(form, SHARED).form
    parts = [
        {"kind": "form" if kind == PART_BINARY else "raw", "offset": offset, "size": size}
        for kind, offset, size in layer_parts(form)
    ]
    return {
        "layer": {"diff_id": str(sha256_digest(tar)), "size": len(tar)},
        "parts": parts,
        "roles": ranges.sizes(),
        "chunks": _chunks_document(form, ranges),
    }


def _chunks_document(form: bytes, ranges: RoleRanges, profile: str = DEFAULT_PROFILE) -> Document:
    """Chunks of a form by role: how many, and their bytes."""
    sizes = cut(form, profile)
    found = {name: {"chunk_count": 0, "size": 0} for name in ROLES}
    for role, size in zip(chunk_roles(sizes, ranges), sizes, strict=True):
        found[ROLES[role]]["chunk_count"] += 1
        found[ROLES[role]]["size"] += size
    by_role: Document = {name: row for name, row in found.items() if row["chunk_count"]}
    return {"profile": profile, "chunk_count": len(sizes)} | by_role


def _bundle_document(raw: bytes) -> Document:
    """What a bundle names, and what of it refers to that; each part is checked."""
    parts = bundle.parse_head(raw, len(raw))
    held = {part.digest: raw[part.offset : part.offset + part.size] for part in parts}
    for digest, data in held.items():
        check_digest(data, digest, f"part {digest.short}")
    images, updates, referrers = list[Document](), list[Document](), list[Document]()
    for entry in oci.parse_index(held[parts[0].digest]).manifests:
        name = entry.annotations.get(oci.ANNOTATION_REF_NAME, "")
        manifest = oci.parse_manifest(held[entry.digest]) if _is_referrer(entry, held) else None
        if manifest is None or manifest.subject is None:
            images.append({"name": name, **_descriptor_document(entry)})
            continue
        kind = manifest.artifact_type or manifest.config.media_type
        facts = dict(manifest.annotations)
        listed = replace(entry, artifact_type=kind, annotations=facts)
        for update in (made := find_updates([listed])):
            updates.append(
                {
                    "old": str(update.old) if update.old != NOTHING else "",
                    "old_name": entry.annotations.get(oci.ANNOTATION_WAS, ""),
                    "platform": str(update.platform or ""),
                    "size": update.size,
                }
            )
        if not made:
            referrers.append({"artifact_type": kind, "subject": str(manifest.subject.digest)})
    return {
        "part_count": len(parts),
        "images": images,
        "updates": updates,
        "referrers": referrers,
    }


def _is_referrer(entry: oci.Descriptor, held: Mapping[Digest, bytes]) -> bool:
    named = oci.ANNOTATION_REF_NAME in entry.annotations
    return not named and entry.media_type in oci.MANIFEST_TYPES and entry.digest in held


def _delta_document(raw: bytes) -> Document:
    olds, new, new_size = delta.read_digests(raw)
    return {
        "old_forms": [f"sha256:{start.hex()}…" for start in olds],
        "new_form": f"sha256:{new.hex()}…",
        "new_size": new_size,
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
    chunk_manifests, forms = _chunks_artifacts(descriptor, layout)
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
        if str(diff_id) in forms:
            found |= _form_roles_document(*forms[str(diff_id)], str(found["role"]))
        layers.append(found)
    return {
        "kind": "image",
        **head,
        "config": config_document(config),
        "annotations": dict(manifest.annotations),
        "layers": layers,
    }


def _chunks_artifacts(
    descriptor: oci.Descriptor, layout: Layout
) -> tuple[dict[str, Document], dict[str, tuple[bytes, str]]]:
    """Chunk manifests of an image, and forms with their chunker profile, by the layer's diff_id."""
    found, forms = {}, {}
    for artifact in layout.referrers(descriptor.digest, oci.CHUNKS_ARTIFACT):
        packed: dict[str, oci.Descriptor] = {}
        sizes: dict[str, tuple[int, str]] = {}
        for blob in layout.read_manifest(artifact.digest).layers:
            if blob.media_type == oci.CHUNK_MANIFEST:
                parsed = chunkmanifest.parse_chunk_manifest(layout.read_blob(blob.digest))
                found[str(parsed.diff_id)] = chunk_manifest_document(parsed)
                sizes[str(parsed.diff_id)] = parsed.form_size, parsed.profile
            elif blob.media_type == oci.FORM_ZSTD:
                packed[blob.annotations.get(oci.ANNOTATION_LAYER, "")] = blob
        for diff_id, (size, profile) in sizes.items():
            if diff_id in packed:
                raw = layout.read_blob(packed[diff_id].digest)
                forms[diff_id] = unpack_form(raw, size), profile
    return found, forms


def _form_roles_document(form: bytes, profile: str, role: str) -> Document:
    """What each role owns of a layer's form, and its chunks by role."""
    ranges = layer_roles(form, ROLES.index(role) if role in ROLES else SHARED).form
    return {"roles": ranges.sizes(), "chunks": _chunks_document(form, ranges, profile)}


def _go_release(raw: bytes) -> str:
    """The Go release that a binary was built with; "" where it does not say."""
    try:
        return go_release(raw)
    except FormatError:
        return ""
