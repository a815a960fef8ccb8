"""`layerkit split`: any image, cut anew into base, deps and code layers, with its chunks beside it.

The files stay as they are: the tree that the new layers make is compared with that of the old ones
before anything is published. The config stays, too, but for the layers: what was history is kept as
history. Go binaries in the image, whoever built them, get their address-free form.
Which file goes where is `formats/splitting`'s rule. Of an index each platform's image is cut, one
after the other. Memory: one image's plain layers, about five times (MAX_PLAIN_SIZE).
Spec: docs/design.md "Split".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from layerkit.digest import Digest, check_digest
from layerkit.edges.layout import Layout
from layerkit.errors import FormatError, NotFoundError, UsageError
from layerkit.formats import oci
from layerkit.formats.deflate import Compression, decompress
from layerkit.formats.image import (
    Blob,
    Layer,
    PackedImage,
    pack_chunks_artifact,
    pack_index,
    pack_tar,
)
from layerkit.formats.layer import ROLES
from layerkit.formats.reference import Reference
from layerkit.formats.splitting import Rule, assign_roles
from layerkit.formats.tree import Tree, read_tree, same_trees, write_layers
from layerkit.jobs.split.contents import (
    Contents,
    SplitBinary,
    describe,
    read_contents,
    say_forms,
)

__all__ = ["SplitBinary", "SplitImage", "SplitLayer", "SplitResult", "split"]

ANNOTATION_SPLIT: Final = "dev.layerkit.split-from"  # digest of the image that was cut anew
MAX_PLAIN_SIZE: Final = 4 << 30  # bytes of an image's plain tars; they are held in memory
CREATED_BY: Final = "layerkit split"


class Source(Protocol):
    """Where the old image lies."""

    def read_blob(self, what: oci.Descriptor) -> bytes:
        """The bytes of a blob or manifest, verified."""


@dataclass(frozen=True, slots=True)
class SplitLayer:
    """A new layer."""

    role: str
    digest: Digest
    diff_id: Digest
    size: int
    plain_size: int
    path_count: int


@dataclass(frozen=True, slots=True)
class SplitImage:
    """One platform's image, before and after."""

    platform: str
    old_digest: Digest
    digest: Digest
    old_layer_count: int
    old_size: int  # bytes of the old layers' blobs
    layers: tuple[SplitLayer, ...]
    binaries: tuple[SplitBinary, ...]  # those of Go, and those that are packed
    package_count: int


@dataclass(frozen=True, slots=True)
class SplitResult:
    """What was cut; `reference` is ``name@digest``. With `dry_run` nothing was written. `left_out`:
    platforms of the index that nobody asked for by name and that are not linux (their files are
    more than a tree says), or are not there, as in what docker saves of an index."""

    reference: str
    tag: str
    digest: Digest
    layout: str
    dry_run: bool
    images: tuple[SplitImage, ...]
    left_out: tuple[str, ...] = ()


def split(
    source: Source,
    top: oci.Descriptor,
    ref: Reference,
    layout: Layout,
    *,
    rules: Sequence[Rule] = (),
    recipe: Compression,
    packs: bool = False,
    platforms: Sequence[oci.Platform] = (),
    describes: bool = True,
    dry_run: bool = False,
) -> SplitResult:
    """Cut the image (each image of the index, or those of `platforms`) that `top` describes, and
    commit it as `ref`; with `describes` with an SBOM of what is in it, and provenance.

    Raises FormatError where a layer is no tar, or the new layers would not make the same files.
    """
    name = ref.repository if describes else ""
    cut = _Cut(source, rules, recipe, packs, name, None if dry_run else layout)
    entries, left_out, annotations = _list_images(source, top, platforms)
    with contextlib.nullcontext() if dry_run else layout.batch():
        for entry in entries:
            cut.add(entry)
        new = cut.manifests[0]
        if len(entries) > 1:
            new = pack_index(cut.manifests, annotations | {ANNOTATION_SPLIT: str(top.digest)})
            cut.put(new)
        if not dry_run:
            layout.commit(ref, new.descriptor, cut.artifacts)
    return SplitResult(
        str(ref.pinned(new.descriptor.digest)),
        str(replace(ref.tagged, digest=None)),
        new.descriptor.digest,
        str(layout.path),
        dry_run,
        tuple(cut.facts),
        left_out,
    )


@dataclass(slots=True)
class _Cut:
    """What was cut by now; blobs go to the layout (if any) as they are made, then are let go."""

    source: Source
    rules: Sequence[Rule]
    recipe: Compression
    packs: bool
    name: str  # by which SBOM and provenance know the image; "": there are none
    layout: Layout | None
    manifests: list[Blob] = field(default_factory=list)
    artifacts: list[oci.Descriptor] = field(default_factory=list)
    facts: list[SplitImage] = field(default_factory=list)

    def add(self, entry: oci.Descriptor) -> None:
        """Cut one image."""
        packed, found, fact = _split_image(self.source, entry, self.rules, self.recipe)
        self.manifests.append(packed.manifest)
        if self.layout is None:
            self.facts.append(fact)
            return
        for blob in packed.blobs():
            self.put(blob)
        outcomes: dict[Digest, str] = {}
        tell = outcomes.__setitem__
        artifacts = [pack_chunks_artifact(packed, found.hints, self.packs, tell)]
        self.facts.append(replace(fact, binaries=say_forms(found, outcomes)))
        if self.name:
            artifacts += describe(self.name, packed, entry.digest, found)
        for artifact in artifacts:
            for blob in artifact:
                self.put(blob)
            self.artifacts.append(artifact[-1].descriptor)

    def put(self, blob: Blob) -> None:
        if self.layout is not None:
            self.layout.put_blob(blob.data, blob.descriptor.media_type)


def _list_images(
    source: Source, top: oci.Descriptor, platforms: Sequence[oci.Platform]
) -> tuple[list[oci.Descriptor], tuple[str, ...], dict[str, str]]:
    """The image, or the wanted ones of an index; the platforms that are left out; the index's
    annotations. Attestations beside images stay behind: they are about other bytes."""
    if top.media_type not in oci.INDEX_TYPES:
        index = oci.Index((replace(top, platform=_platform_of(source, top)),))
    else:
        index = oci.parse_index(source.read_blob(top))
    images = {
        entry: str(entry.platform or _platform_of(source, entry))
        for entry in index.manifests
        if entry.media_type in oci.MANIFEST_TYPES
        and not (entry.platform and entry.platform.os == "unknown")
    }
    wanted = {str(platform) for platform in platforms}
    found = [
        entry
        for entry, platform in images.items()
        if (platform in wanted if wanted else _can_be_cut(source, entry, platform))
    ]
    missing = ", ".join(sorted(wanted - {images[entry] for entry in found}))
    if missing or not found:
        what = f"image for {missing or 'linux'}"
        have = ", ".join(images.values()) or "none"
        raise NotFoundError(f"image {top.digest.short} has no {what}", cause=f"it has {have}")
    if any(not images[entry].startswith("linux/") for entry in found):
        raise UsageError("only images for linux can be cut")
    left = sorted(platform for entry, platform in images.items() if entry not in found)
    return found, tuple(() if wanted else left), dict(index.annotations)


def _can_be_cut(source: Source, entry: oci.Descriptor, platform: str) -> bool:
    if not platform.startswith("linux/"):
        return False
    try:
        source.read_blob(oci.parse_manifest(source.read_blob(entry)).config)
    except NotFoundError:
        return False
    return True


def _platform_of(source: Source, image: oci.Descriptor) -> oci.Platform:
    """What the image itself says that it runs on."""
    manifest = oci.parse_manifest(source.read_blob(image))
    return oci.parse_config(source.read_blob(manifest.config)).platform


def _split_image(
    source: Source, entry: oci.Descriptor, rules: Sequence[Rule], recipe: Compression
) -> tuple[PackedImage, Contents, SplitImage]:
    manifest = oci.parse_manifest(source.read_blob(entry))
    raw_config = source.read_blob(manifest.config)
    config = oci.parse_config(raw_config)
    tree = read_tree(_read_layers(source, manifest, config.diff_ids))
    roles = assign_roles(
        tree,
        rules,
        work_folder=config.working_dir,
        entrypoint=(*config.entrypoint, *config.cmd),
    )
    found = read_contents(tree, roles)
    layers, counts = _pack_layers(tree, roles, recipe)
    platform = entry.platform or config.platform
    packed = _pack_image(entry, manifest, raw_config, layers, platform)
    fact = SplitImage(
        str(platform),
        entry.digest,
        packed.manifest.descriptor.digest,
        len(manifest.layers),
        sum(blob.size for blob in manifest.layers),
        tuple(
            SplitLayer(
                layer.role,
                layer.blob.descriptor.digest,
                layer.diff_id,
                layer.blob.descriptor.size,
                len(layer.tar),
                count,
            )
            for layer, count in zip(layers, counts, strict=True)
        ),
        found.binaries,
        len(found.packages),
    )
    return packed, found, fact


def _read_layers(source: Source, manifest: oci.Manifest, diff_ids: Sequence[Digest]) -> list[bytes]:
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(f"image has {len(manifest.layers)} layers and {len(diff_ids)} diff_ids")
    plains = []
    left = MAX_PLAIN_SIZE
    for blob, diff_id in zip(manifest.layers, diff_ids, strict=True):
        plain = decompress(source.read_blob(blob), blob.media_type, left)
        check_digest(plain, diff_id, f"layer {diff_id.short}")
        plains.append(plain)
        left -= len(plain)
    return plains


def _pack_layers(
    tree: Tree, roles: dict[str, int], recipe: Compression
) -> tuple[list[Layer], list[int]]:
    """The layers that have something in them, and how many paths each one is there for."""
    tars = write_layers(tree, roles, len(ROLES))
    counts = [sum(role == at for role in roles.values()) for at in range(len(ROLES))]
    used = [at for at in range(len(ROLES)) if counts[at]] or [0]
    differs = same_trees(tree, read_tree(tars[at] for at in used))
    if differs:
        raise FormatError(f"the new layers do not make the same files: {differs[:200]}")
    layers = [pack_tar(ROLES[at], tars[at], recipe, f"{CREATED_BY}: {ROLES[at]}") for at in used]
    return layers, [counts[at] for at in used]


def _pack_image(
    entry: oci.Descriptor,
    manifest: oci.Manifest,
    raw_config: bytes,
    layers: Sequence[Layer],
    platform: oci.Platform,
) -> PackedImage:
    """The old config with the new layers in it, and a manifest over both."""
    data = _new_config(raw_config, layers)
    config = Blob(oci.describe(data, oci.CONFIG), data)
    annotations = dict(manifest.annotations) | {ANNOTATION_SPLIT: str(entry.digest)}
    new = oci.Manifest(
        config.descriptor, tuple(layer.blob.descriptor for layer in layers), annotations
    )
    raw = oci.serialize_manifest(new)
    if oci.parse_config(data).diff_ids != tuple(layer.diff_id for layer in layers):
        raise FormatError("image config does not parse as it was written")
    return PackedImage(
        config, tuple(layers), Blob(oci.describe(raw, oci.MANIFEST, platform=platform), raw)
    )


def _new_config(raw_config: bytes, layers: Sequence[Layer]) -> bytes:
    """What it says of running stays, known to us or not; parse_config has checked its shape."""
    document: dict[str, Any] = json.loads(raw_config)
    created = document.get("created")
    history = document.get("history")
    old = [dict(step) for step in history if isinstance(step, dict)] if history else []
    steps = [step | {"empty_layer": True} for step in old]
    stamp = {"created": created} if isinstance(created, str) else {}
    steps += [stamp | {"created_by": layer.created_by} for layer in layers]
    document["history"] = steps
    document["rootfs"] = {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]}
    return oci.serialize_json(document)
