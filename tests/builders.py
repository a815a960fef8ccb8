"""Small real things for tests: images in OCI layouts, forms that chunk well."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.storage import FolderStorage, Shelf
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    ROLE_CODES,
    build_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.deflate import compress, compression_by_name
from layerkit.formats.formpack import PACKED_TYPE, pack
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.protocol import pack_form
from layerkit.formats.reference import Reference
from layerkit.jobs.serve import SourceOptions, StorageSource

AMD64 = oci.Platform("linux", "amd64")


class Silent:
    """Progress that nobody sees."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress; the same on every machine."""
    return random.Random(seed).randbytes(size)


def publish_image(
    path: Path,
    ref: str,
    files: Mapping[str, Mapping[str, bytes]],
    *,
    compression: str = "gzip",
    chunks: bool = True,
    recipe: bool = True,
    packs: bool = False,
) -> oci.Descriptor:
    """Put an image with one layer a role into a layout; `files` is role -> path -> bytes."""
    tars = {
        role: build_tar([Entry(name, data, 0o755) for name, data in contents.items()])
        for role, contents in files.items()
    }
    return publish_tars(
        path, ref, tars, compression=compression, chunks=chunks, recipe=recipe, packs=packs
    )


def publish_tars(
    path: Path,
    ref: str,
    tars: Mapping[str, bytes],
    *,
    compression: str = "gzip",
    chunks: bool = True,
    recipe: bool = True,
    packs: bool = False,
) -> oci.Descriptor:
    """The same for layers that are tars already, also such as nobody should make."""
    layout = Layout(path)
    how = compression_by_name(compression)
    media_type = {"gzip": oci.LAYER_GZIP, "zstd": oci.LAYER_ZSTD, "tar": oci.LAYER_TAR}
    with layout.batch():
        layers, parts, diff_ids = [], [], []
        for role, tar in tars.items():
            annotations = {oci.ANNOTATION_ROLE: role}
            if recipe:
                annotations[oci.ANNOTATION_COMPRESSION] = str(how)
            blob = compress(tar, how)
            layers.append(layout.put_blob(blob, media_type[compression], annotations))
            diff_id = sha256_digest(tar)
            diff_ids.append(diff_id)
            manifest = build_chunk_manifest(tar, "raw", diff_id, len(tar), ROLE_CODES[role])
            forms = [(pack_form(tar, 3), oci.FORM_ZSTD)]
            if packs:
                forms.append((pack(tar), PACKED_TYPE))
            for data, kind in ((serialize_chunk_manifest(manifest), oci.CHUNK_MANIFEST), *forms):
                parts.append(layout.put_blob(data, kind, {oci.ANNOTATION_LAYER: str(diff_id)}))
        config = oci.ImageConfig(AMD64, tuple(diff_ids), ("/app/hello",))
        top = layout.put_blob(
            oci.serialize_manifest(
                oci.Manifest(
                    layout.put_blob(oci.serialize_config(config), oci.CONFIG), tuple(layers)
                )
            ),
            oci.MANIFEST,
        )
        artifact = oci.Manifest(
            layout.put_blob(oci.EMPTY_BLOB, oci.EMPTY),
            tuple(parts),
            artifact_type=oci.CHUNKS_ARTIFACT,
            subject=top,
        )
        referrer = layout.put_blob(
            oci.serialize_manifest(artifact), oci.MANIFEST, artifact_type=oci.CHUNKS_ARTIFACT
        )
        layout.commit(Reference.parse(ref), top, [referrer] if chunks else [])
    return top


def hello_files(binary: bytes) -> dict[str, dict[str, bytes]]:
    """An image like ours: a base that never changes and a code layer."""
    return {
        "base": {"etc/passwd": b"root:x:0:0\n", "etc/ssl/certs.pem": noise(20_000, 7)},
        "code": {"app/hello": binary},
    }


class LayoutSource(StorageSource):
    """The source of a layout folder; tests give it other answers."""

    def __init__(
        self, layout: Path, made: Shelf | None = None, options: SourceOptions | None = None
    ) -> None:
        super().__init__(FolderStorage(layout, made), options)

    def prepare_all(self) -> int:
        """Do now what a server does aside; how many things were done."""
        preparing, count = self.make_preparing(), 0
        while preparing.step():
            count += 1
        return count

    def path_of(self, name: str, digest: Digest) -> Path:
        """The file of a blob, to damage it."""
        path = self.open_blob(name, digest).path
        assert path is not None
        return path
