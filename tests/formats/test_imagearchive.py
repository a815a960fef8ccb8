"""Images in tars, as skopeo, buildx and docker (old and new) write them; and what nobody should."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

import pytest

from layerkit.digest import sha256_digest
from layerkit.errors import FormatError, IntegrityError, NotFoundError, UsageError
from layerkit.formats import oci, tar
from layerkit.formats.imagearchive import ANNOTATION_CONTAINERD, parse_image_archive
from layerkit.formats.tar import TarEntry, write_tar

LAYERS = [write_tar([TarEntry(f"f{n}", tar.FILE, data=b"x" * n)]) for n in (1, 2)]
CONFIG = json.dumps(
    {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(sha256_digest(one)) for one in LAYERS]},
    }
).encode()
CONFIG_HEX = sha256_digest(CONFIG).hex


def tar_of(files: Mapping[str, bytes], *more: TarEntry) -> bytes:
    return write_tar([*(TarEntry(p, tar.FILE, data=d) for p, d in files.items()), *more])


def docker_files(**changes: object) -> dict[str, bytes]:
    """What docker 20.10 writes."""
    item = {
        "Config": f"{CONFIG_HEX}.json",
        "RepoTags": ["shop:1", "shop:latest"],
        "Layers": ["aa/layer.tar", "bb/layer.tar"],
    }
    return {
        "manifest.json": json.dumps([item | changes]).encode(),
        f"{CONFIG_HEX}.json": CONFIG,
        "aa/layer.tar": LAYERS[0],
        "aa/VERSION": b"1.0",
        "bb/layer.tar": LAYERS[1],
        "repositories": b"{}",
    }


def layout_files(annotations: Mapping[str, str]) -> tuple[dict[str, bytes], oci.Descriptor]:
    blobs = [(CONFIG, oci.CONFIG), *((one, oci.LAYER_TAR) for one in LAYERS)]
    described = [oci.describe(data, kind) for data, kind in blobs]
    manifest = oci.serialize_manifest(oci.Manifest(described[0], tuple(described[1:])))
    top = oci.describe(manifest, oci.MANIFEST, annotations)
    sbom = oci.serialize_manifest(
        oci.Manifest(oci.EMPTY_DESCRIPTOR, (), artifact_type="application/x", subject=top)
    )
    about = oci.describe(sbom, oci.MANIFEST)
    files = {f"blobs/sha256/{sha256_digest(data).hex}": data for data, _ in blobs}
    files |= {f"blobs/sha256/{top.digest.hex}": manifest, f"blobs/sha256/{about.digest.hex}": sbom}
    files["oci-layout"] = oci.LAYOUT_MARKER
    files["index.json"] = oci.serialize_index(oci.Index((top, about)))
    return files, top


def layers_of(data: bytes, name: str = "") -> list[bytes]:
    archive = parse_image_archive(data)
    manifest = oci.parse_manifest(archive.read_blob(archive.find(name).top))
    assert archive.read_blob(manifest.config) == CONFIG
    return [archive.read_blob(blob) for blob in manifest.layers]


@pytest.mark.parametrize("name", ["", "shop:1", "shop", "docker.io/library/shop:1"])
def test_what_docker_saves(name: str) -> None:
    assert layers_of(tar_of(docker_files()), name) == LAYERS


def test_a_layer_that_is_there_once_and_linked_to() -> None:
    files = docker_files(Layers=["aa/layer.tar", "cc/layer.tar"])
    link = TarEntry("cc/layer.tar", tar.SYMLINK, link="../bb/layer.tar")
    assert layers_of(tar_of(files, link)) == LAYERS
    hard = TarEntry("cc/layer.tar", tar.HARDLINK, link="bb/layer.tar")
    assert layers_of(tar_of(files, hard)) == LAYERS


def test_compressed_layers_are_told_by_their_bytes() -> None:
    files = docker_files() | {"aa/layer.tar": gzip.compress(LAYERS[0])}
    archive = parse_image_archive(tar_of(files))
    manifest = oci.parse_manifest(archive.read_blob(archive.find().top))
    assert [one.media_type for one in manifest.layers] == [oci.LAYER_GZIP, oci.LAYER_TAR]


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {oci.ANNOTATION_REF_NAME: "shop:1"},
        {oci.ANNOTATION_REF_NAME: "1", ANNOTATION_CONTAINERD: "docker.io/library/shop:1"},
    ],
)
def test_layouts_in_a_tar_what_is_about_an_image_is_none(annotations: dict[str, str]) -> None:
    files, top = layout_files(annotations)
    assert layers_of(tar_of(files), "shop:1" if annotations else "") == LAYERS
    mixed = tar_of(docker_files() | files)  # docker from 25 on: both; the layout has the manifest
    assert parse_image_archive(mixed).find().top == top


def test_names_that_are_not_there_or_are_several() -> None:
    two = json.loads(docker_files()["manifest.json"])
    two.append(two[0] | {"RepoTags": ["other:1"], "Layers": ["aa/layer.tar"]})
    archive = parse_image_archive(
        tar_of(docker_files() | {"manifest.json": json.dumps(two).encode()})
    )
    assert archive.find("other:1").names == ("other:1",)
    with pytest.raises(UsageError, match="2 images"):
        archive.find()
    with pytest.raises(NotFoundError, match="shop:2"):
        archive.find("shop:2")


@pytest.mark.parametrize(
    ("files", "more", "says"),
    [
        ({"a": b""}, [], "neither"),
        ({"repositories": b"{}"}, [], "before 1.10"),
        (docker_files(), [TarEntry("aa/layer.tar", tar.FILE, data=b"other")], "twice"),
        (docker_files(), [TarEntry("x", tar.SYMLINK, link="../../etc/passwd")], "leaves the root"),
        (docker_files(), [TarEntry("x", tar.SYMLINK, link="/etc/passwd")], "leads out"),
        (docker_files(), [TarEntry("x", tar.SYMLINK, link="y")], "not there"),
        (
            docker_files(),
            [TarEntry("x", tar.SYMLINK, link="y"), TarEntry("y", tar.SYMLINK, link="x")],
            "too many links",
        ),
        (docker_files(), [TarEntry("x", tar.CHAR_DEVICE, device=(1, 3))], "character device"),
        (docker_files(Layers=["../../etc/passwd"]), [], "leaves the root"),
        (docker_files(Layers=["gone.tar"]), [], "gone.tar"),
        (docker_files(Layers=[1]), [], "list of strings"),
        (docker_files(Config=None), [], "list of strings"),
        ({"manifest.json": b"{"}, [], "not JSON"),
        ({"manifest.json": b"{}"}, [], "not a list"),
        ({"manifest.json": b"[1]"}, [], "not an object"),
    ],
)
def test_what_is_refused(files: dict[str, bytes], more: list[TarEntry], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        parse_image_archive(tar_of(files, *more))


def test_other_bytes_than_a_digest_names() -> None:
    with pytest.raises(IntegrityError):
        parse_image_archive(tar_of(docker_files() | {f"{CONFIG_HEX}.json": b"{}"}))
    files, _ = layout_files({})
    for name in files:
        if name.startswith("blobs") and files[name] == LAYERS[0]:
            files[name] = files[name][:-1] + b"!"
    with pytest.raises(IntegrityError):
        layers_of(tar_of(files))


def test_any_damage_is_a_format_error() -> None:
    plain = tar_of(docker_files() | layout_files({})[0])
    for at in range(0, len(plain), 97):
        damaged = plain[:at] + bytes([plain[at] ^ 0x55]) + plain[at + 1 :]
        for data in (damaged, plain[:at]):
            try:
                archive = parse_image_archive(data)
                layers_of(data, archive.images[0].names[0] if archive.images[0].names else "")
            except (FormatError, IntegrityError, NotFoundError, UsageError, IndexError):
                pass
            except AssertionError:
                pass  # another config
