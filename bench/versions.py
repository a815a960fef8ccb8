"""Versions of one function in an OCI layout, as `layerkit build` publishes them: a repository, and
a tag for each workload. Kept under bench/work by the digest of layerkit's formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ours
from build import WORK, build_workload

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.sources import read_base
from layerkit.formats import addressfree, image, layer, oci
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.elf import parse_elf
from layerkit.formats.reference import Reference

AMD64 = oci.Platform("linux", "amd64")
REPOSITORY = "functions/fn"
RECIPE = compression_by_name("gzip")
SETTINGS = image.ImageSettings(AMD64, ("/app/fn",), "65532")
Hints = dict[Digest, addressfree.Hints]  # by digest of a binary


def pack(name: str) -> tuple[image.PackedImage, Hints]:
    """The image of a workload, and the names of its link."""
    built = build_workload(name)
    entries, made_from = read_base()
    base = image.pack_layer(layer.BASE, entries, RECIPE, made_from)
    hints = {sha256_digest(built.binary): addressfree.read_hints(parse_elf(built.named))}
    return image.pack_image([base, pack_code(built.binary)], SETTINGS), hints


def pack_code(binary: bytes) -> image.Layer:
    """The code layer of a function whose program this is."""
    entries = layer.code_entries("fn", binary, [])
    return image.pack_layer(layer.CODE, entries, RECIPE, "layerkit code")


def reference(name: str) -> Reference:
    return Reference.parse(f"{REPOSITORY}:{name.lower()}")


def publish(path: Path, name: str, *, chunks: bool = True) -> None:
    """One more version; `chunks`: with a chunks artifact."""
    packed, hints = pack(name)
    put(Layout(path), [reference(name)], packed, hints, chunks=chunks)


def put(
    layout: Layout,
    refs: Sequence[Reference],
    packed: image.PackedImage,
    hints: Hints,
    *,
    chunks: bool = True,
) -> None:
    """An image and its chunks artifact into a layout, by these names."""
    artifact = image.pack_chunks_artifact(packed, hints) if chunks else ()
    with layout.batch():
        for blob in (*packed.blobs(), *artifact):
            layout.put_blob(blob.data, blob.descriptor.media_type)
        referrers = [artifact[-1].descriptor] if chunks else []
        for ref in refs:
            layout.commit(ref, packed.manifest.descriptor, referrers)


def layout_of(names: Sequence[str], *, chunks: bool = True) -> Path:
    """A layout that holds these versions, and maybe others."""
    kind = "versions" if chunks else "plain-versions"
    path = WORK / "ours" / ours.formats_key() / kind
    layout = Layout(path)
    tags = layout.tags() if layout.exists() else {}
    for name in names:
        if str(reference(name)) not in tags:
            publish(path, name, chunks=chunks)
    return path
